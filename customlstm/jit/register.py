"""Makes a user's cell known to the operators: has its kernels written out, built, loaded and registered.

The sources of one cell are the struct that :mod:`customlstm.jit.generate` writes, and a few lines that put it
into the recurrence of ``csrc/cpu``; sizes are run-time values, so a cell is built once for each dtype. For
GPUs all of that is in :mod:`customlstm.jit.cuda`.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from .build import BuildError, build_library
from .cuda import register_on_gpu
from .generate import generate
from .headers import headers
from .locks import within_process
from .program import Program

if TYPE_CHECKING:
    from ..cells import UserCell

__all__ = ["register", "sources"]

#: C++ types of the kernels, and the numbers of StorageType in csrc/types.h.
_STORAGE = {torch.float32: ("float", 0), torch.float64: ("double", 1)}
_STORAGE |= {torch.bfloat16: ("BFloat16", 2), torch.float16: ("Half", 3)}

_PART = """\
// Kernels of {cell}, {part}; the recurrence around it is that of every cell.
#include "cpu/kernels.h"
#include "cpu/isa/{isa}.h"

namespace customlstm {{
namespace user_cell {{
#include "cpu/recurrence.inl"
#include "cpu/functions.inl"
#include "cell.inl"
}}  // namespace user_cell
}}  // namespace customlstm

extern "C" __attribute__((visibility("default")))
void customlstm_{part}(customlstm::{Part}Kernels* kernels) {{
  *kernels = customlstm::user_cell::{part}_kernels<{type}, customlstm::user_cell::UserCell>();
}}
"""
_SIZES = """
extern "C" __attribute__((visibility("default"))) void customlstm_sizes(customlstm::CellSizes* sizes) {
  *sizes = customlstm::user_cell::cell_sizes<customlstm::user_cell::UserCell>();
}
"""
# What meets between threads is one object of the package's own library; this is the code that works on it.
_TEAM = '#include "cpu/team.cpp"\n'

_registered: set[tuple[str, torch.dtype]] = set()
# A library that is unloaded takes the code of running and recorded calls with it.
_loaded: dict[str, ctypes.CDLL] = {}


def sources(program: Program, dtype: torch.dtype, isa: str) -> dict[str, str]:
    """The C++ files of a cell's kernels on the CPU, by name.

    Args:
        program: the cell.
        dtype: float32, float64, bfloat16 or float16.
        isa: the instruction set, as ``torch.ops.customlstm.cpu_isa()`` names it.
    """
    if isa == "avx512_bf16" and dtype != torch.bfloat16:
        isa = "avx512"  # that set has kernels of bfloat16 only: see csrc/cpu/dispatch.cpp
    name, _ = _STORAGE[dtype]
    type_name = name if name in ("float", "double") else f"customlstm::{name}"
    parts = {
        f"{part}.cpp": _PART.format(
            cell=program.digest[:16], part=part, Part=part.title(), isa=isa, type=type_name
        )
        for part in ("forward", "backward")
    }
    parts["forward.cpp"] += _SIZES
    return {"cell.inl": generate(program), **parts, "team.cpp": _TEAM}


def register(cell: UserCell, dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
    """Builds the kernels of ``cell`` for ``dtype``, or takes them from the cache, and registers them.

    A call does this by itself when it needs it. Call it before TorchScript or an exported program runs a cell
    in a process of its own, or to spend the seconds of a first build at a time of your choice.

    Args:
        cell: made by ``@customlstm.cell``.
        dtype: float32, float64, bfloat16 or float16.
        device: the CPU, or a CUDA device, for all of whose compute capability the kernels are then there.

    Raises:
        CellError: the cell cannot be fused; the text says which line is in the way.
        BuildError: it could not be compiled, with the compiler's first error, or what was compiled cannot be
            loaded.
        ValueError: a dtype or device for which there are no kernels.
        RuntimeError: the package's own compiled library is not loaded, or cannot compute on that device.
    """
    from .. import _binary
    from .errors import CellError

    if cell.why_not_fused is not None:
        raise CellError(cell.why_not_fused)
    if dtype not in _STORAGE:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _STORAGE))}, got {dtype}")
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device must be the CPU or a CUDA device, got {device}")
    status = _binary.status()
    if not status.loaded:
        raise RuntimeError(f"the compiled library is not loaded: {status.reason}")
    if kind == "cuda":
        register_on_gpu(cell, dtype, torch.device(device))
        return
    name, _ = cell.encode()
    if (name, dtype) not in _registered:
        with within_process((name, dtype)):
            if (name, dtype) not in _registered:
                _register(name, cell.program, dtype, status.path)
                _registered.add((name, dtype))


def _register(name: str, program: Program, dtype: torch.dtype, package_library: str | None) -> None:
    type_name, number = _STORAGE[dtype]
    files = sources(program, dtype, torch.ops.customlstm.cpu_isa())
    built = build_library(f"{program.name}-{type_name.lower()}", files, includes=headers())
    path = str(built.path)
    try:
        library = _loaded.get(path) or ctypes.CDLL(path)
        functions = [getattr(library, f"customlstm_{part}") for part in ("sizes", "forward", "backward")]
    except (OSError, AttributeError) as error:
        raise BuildError(
            f"the kernel of {program.name!r} was built, but cannot be loaded: {error}. If its folder is on a "
            "disk from which no program may be run (noexec), set CUSTOMLSTM_CACHE_DIR to another; else "
            f"remove {path}"
        ) from error
    _loaded[path] = library
    register_cell = ctypes.CDLL(package_library).customlstm_register_cell  # the one that is loaded
    register_cell.restype = ctypes.c_char_p
    register_cell.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, *[ctypes.c_void_p] * 3]
    addresses = (ctypes.cast(function, ctypes.c_void_p) for function in functions)
    why_not = register_cell(name.encode(), " ".join(program.parameters).encode(), number, *addresses)
    if why_not is not None:
        raise BuildError(f"the kernel of {program.name!r} was built, but is refused: {why_not.decode()}")
