"""Command line parts that both examples have: options, device, seed, and errors that end with exit code 2."""

from __future__ import annotations

import argparse
import io
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from .recurrent import CELL_HELP, MODELS, parse_cell


class UsageError(Exception):
    """Something the user gave cannot be used. The text says what came, what was expected and the way out."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs of descriptions as they are written and leaves room for long option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


def run(main: Callable[[], int | None], program: str) -> int:
    """Runs `main`; returns its exit code (None is 0), or 2 with a line on stderr for a `UsageError`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A sample in Chinese on a terminal that knows only ASCII must not end a long run in a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return main() or 0
    except UsageError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2


def positive(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def not_negative(text: str) -> float:
    """An argparse type: a finite number, 0 or above."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number, 0 or above, got {text}")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number no smaller than `least`."""

    def convert(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {text}")
        return int(text)

    convert.__name__ = "whole number"
    return convert


def rate(text: str) -> float:
    """An argparse type: a dropout rate in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a rate of at least 0 and below 1, got {text}")
    return value


def add_layer_options(parser: argparse.ArgumentParser, default_cell: str) -> None:
    """Adds --model, --cell and --backend: which recurrent layer runs, and how."""
    group = parser.add_argument_group("the recurrent layer")
    group.add_argument("--model", choices=MODELS, help="which layer to train (default: customlstm)")
    group.add_argument("--cell", metavar="SPEC", help=f"{CELL_HELP} (default: {default_cell})")
    group.add_argument(
        "--backend",
        choices=("auto", "fused", "reference"),
        default="auto",
        help="auto: the fused kernel where there is one; fused: an error where there is none; "
        "reference: plain PyTorch, any device (default: auto)",
    )


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Adds --device and --threads."""
    group = parser.add_argument_group("the machine")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: cuda where there is one)"
    )
    group.add_argument(
        "--threads", type=at_least(1), help="threads for PyTorch on the CPU (default: PyTorch's)"
    )


def choose_cell(model: str | None, cell: str | None, default: str) -> tuple[str, str]:
    """What --model and --cell mean together: the model, and the text of a cell that it can have."""
    if model == "nn.LSTM":
        if cell not in (None, "plain"):
            raise UsageError(f"--cell {cell}: nn.LSTM has one fixed cell; use --model customlstm")
        return model, "plain"
    cell = cell or default
    try:
        parse_cell(cell)
    except ValueError as error:
        raise UsageError(f"--cell {cell}: {error}") from error
    return "customlstm", cell


def choose_device(name: str, threads: int | None = None) -> torch.device:
    """Returns the device to run on and sets the number of CPU threads."""
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    return device


def seed_everything(seed: int) -> None:
    """Seeds Python's and torch's generators, CUDA included."""
    random.seed(seed)
    torch.manual_seed(seed)


def make_folder(path: Path, option: str) -> None:
    """Creates `path` before a long run, so that a mistyped place fails in the first second, not the last."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}: cannot create the folder {path} ({error.strerror})") from error


class StopRequest:
    """Makes of the first Ctrl-C a request, for the loop to read between two steps; a second one interrupts.

    An exception in the middle of an optimiser step would leave half of the parameters updated, and a
    checkpoint of that would not continue the same run.

    >>> with StopRequest() as stop:
    ...     while not stop.asked:
    ...         step()
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> StopRequest:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._previous)
