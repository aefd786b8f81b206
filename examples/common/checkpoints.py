"""Checkpoints that a crash cannot half-write and that run no code when they are read."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from .cli import UsageError
from .files import write_atomically

# What torch.load raises, depending on where a file is cut or changed.
_DAMAGE = (RuntimeError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, KeyError)


def save(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Writes tensors, numbers, texts and containers of them to `path`, atomically.

    `kind` names the program; `load` refuses the checkpoint of another one.

    Raises:
        UsageError: it cannot be written; what was at `path` before is still there.
    """
    try:
        write_atomically(path, lambda file: torch.save({"kind": kind, **content}, file))
    except OSError as error:
        raise UsageError(f"cannot write the checkpoint {path} ({error.strerror})") from error


def load(path: Path, kind: str) -> dict[str, Any]:
    """Reads what `save` wrote, onto the CPU.

    Raises:
        UsageError: there is no whole checkpoint of this kind.
    """
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no checkpoint {path}; leave --resume out to start one") from None
    except OSError as error:
        raise UsageError(f"cannot read the checkpoint {path} ({error.strerror})") from error
    try:
        # weights_only: a pickle can run any code; a checkpoint that somebody sent must not.
        content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        # Without torch's own text, which advises to load the file with weights_only=False.
        raise UsageError(f"{path} is no checkpoint, or a damaged one ({len(stored):,} bytes)") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise UsageError(f"{path} was not written by this program: expected a checkpoint of kind {kind!r}")
    return content


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's generators that a run on `device` uses (dropout masks come from them)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Goes back to `random_state`. A run that moves between CPU and CUDA keeps only the CPU's."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
