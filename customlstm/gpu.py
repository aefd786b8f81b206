"""What GPUs this process can use, and whether the compiled kernels are for them."""

from __future__ import annotations

import functools
import re

import torch

from . import _binary

OLDEST = (8, 0)

# "8.6", "9.0a", "10.0f" or "9.0+PTX", as TORCH_CUDA_ARCH_LIST has them.
_ARCHITECTURE = re.compile(r"(\d+)\.(\d+)([af]?)(\+PTX)?")


def why_no_gpu() -> str | None:
    """Why torch can use no GPU here; None if it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0]
    return "torch.cuda.is_available() is False"


def why_not_built() -> str | None:
    """Why the loaded library has no CUDA kernels; None if it has some."""
    build = _binary.status().build
    if build.get("cuda") is not None:
        return None
    reason = build.get("why_no_cuda") or "it was built without them"
    return f"the compiled library has no CUDA kernels: {reason}. For kernels: {how_to_build(reason)}"


def how_to_build(reason: str) -> str:
    """What gives the library CUDA kernels where ``reason`` left them out, one of those of setup.py.

    Building anew alone would give the same result again. A shell command, or a few words and the command
    that comes after.
    """
    command = _binary.rebuild_command()
    if "CUSTOMLSTM_NO_CUDA was set" in reason:
        return f"unset CUSTOMLSTM_NO_CUDA && {command}"
    if "was built without CUDA" in reason and torch.version.cuda is None:
        return f"install a torch that was built with CUDA, and a CUDA toolkit of its version; then {command}"
    if "no CUDA toolkit" in reason:
        version = f" {torch.version.cuda.partition('.')[0]}" if torch.version.cuda else ""
        return f"install a CUDA{version} toolkit, and set CUDA_HOME to its folder; then {command}"
    if "FORCE_CUDA was not set" in reason and why_no_gpu() is not None:
        return f"build where torch sees the GPU, or here with export FORCE_CUDA=1 && {command}"
    return command


def why_not_capability(capability: tuple[int, int], architectures: str) -> str | None:
    """Why kernels built for ``architectures`` do not run on a GPU of this compute capability.

    Args:
        capability: (9, 0) for 9.0.
        architectures: as in TORCH_CUDA_ARCH_LIST, separated by spaces or semicolons. Empty, or with a name
            that is no number: nothing is known, and nothing is refused.
    """
    shown = f"{capability[0]}.{capability[1]}"
    if capability < OLDEST:
        return f"the GPU has compute capability {shown}, the fused kernels need 8.0 (Ampere) or later"
    words = architectures.replace(";", " ").split()
    parts = [_ARCHITECTURE.fullmatch(word) for word in words]
    if not parts or None in parts:
        return None
    for major, minor, kind, ptx in (part.groups() for part in parts):
        target = (int(major), int(minor))
        same_family = target[0] == capability[0] and target[1] <= capability[1]
        if (
            target == capability
            or (kind != "a" and same_family)
            or (ptx and not kind and target < capability)
        ):
            return None
    return (
        f"the GPU has compute capability {shown}, and the library was built for {' '.join(words)} only; "
        f"build it on this machine, or with TORCH_CUDA_ARCH_LIST={shown}: {_binary.rebuild_command()}"
    )


@functools.cache
def why_not_device(index: int) -> str | None:
    """Why the fused kernels cannot run on this CUDA device; None if they can."""
    cuda = _binary.status().build.get("cuda") or {}
    return why_not_capability(torch.cuda.get_device_capability(index), cuda.get("archs") or "")
