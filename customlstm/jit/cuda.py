"""Kernels of a user's cell for GPUs: its sources, their compilation by NVRTC, their registration.

The sources are the struct that :mod:`customlstm.jit.generate` writes and, for each recurrence of
``csrc/cuda``, a few lines that put it in; a program each, so that they are compiled side by side.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import cache, headers, nvrtc
from .build import Built
from .build_error import BuildDisabledError, BuildError, HeadersChangedError, NoCompilerError
from .entries import Entry, Recipe, file_name
from .errors import CellError
from .generate import generate
from .ingredients import Ingredients
from .locks import within_process
from .program import Program

if TYPE_CHECKING:
    from ..cells import UserCell

__all__ = ["compile_for_gpu", "register_on_gpu", "sources"]

#: How products are computed: MathKind in csrc/cuda/params.h, and its number. Which of the two of float32 runs
#: torch's switch for TF32 decides when a layer is called.
_MATHS = {
    torch.float32: {"fma32": ("kFma32", 0), "tf32": ("kTf32", 4)},
    torch.float64: {"fma64": ("kFma64", 1)},
    torch.bfloat16: {"bfloat16": ("kBFloat16", 2)},
    torch.float16: {"float16": ("kFloat16", 3)},
}

_UNIT = """\
// Kernels of {cell}: {part} in {math}, the {variant} recurrence.
#include "cuda/{part}.h"
#include "cuda/functions.h"

namespace customlstm {{
namespace cuda {{
#define CUSTOMLSTM_INLINE CUSTOMLSTM_DEVICE
#include "cell.inl"
{kernels}
}}  // namespace cuda
}}  // namespace customlstm
"""
# As `entry` in csrc/cuda/cuda_launcher.cuh, under a name that can be looked up.
_KERNEL = """
using {Kernel} = {Part}Kernel<Math<MathKind::{kind}>, UserCell, {tiles}, Variant::{Variant}>;
extern "C" __global__ void __launch_bounds__({Kernel}::kThreads, 1)
customlstm_{part}_{variant}_{tiles}(const __grid_constant__ {Kernel}::Params params) {{
  {Kernel}::run(params);
}}
"""

#: Compute capabilities of integrated GPUs (Jetson, DRIVE): what is compiled for one runs on no other GPU.
_INTEGRATED = {72, 87, 101, 110}

#: The first CUDA whose runtime has what csrc/cuda/load_written.cu looks up.
_FIRST_TOOLKIT = (12, 8)

_registered: set[tuple[str, torch.dtype, int]] = set()
# Each call asks for what is not registered, and to find out again takes milliseconds. With the environment
# that decides what the cache may hold: whoever changes it gets another attempt.
_failures: dict[tuple[object, ...], BuildError] = {}
cache.forget_too(_failures.clear)


def sources(program: Program, dtype: torch.dtype, arch: str) -> dict[str, str]:
    """The CUDA files of a cell's kernels, by name: which there are is what csrc/cuda/driver.h launches.

    Args:
        program: the cell.
        dtype: float32, float64, bfloat16 or float16.
        arch: "sm_90", for example.
    """
    has_clusters = nvrtc.capability_of(arch) >= 90
    variants = ["step"] if dtype == torch.float64 else ["step", "grid", *["cluster"] * has_clusters]
    column_tiles = (1,) if dtype == torch.float64 else (1, 4)
    files = {"cell.inl": generate(program)}
    for math, (kind, _) in _MATHS[dtype].items():
        for part in ("backward", "forward"):  # those that take longest are begun first
            for variant in variants:
                kernels = [
                    _KERNEL.format(
                        Kernel=f"Kernel{tiles}", Part=part.title(), kind=kind, tiles=tiles,
                        Variant=f"k{variant.title()}", part=part, variant=variant,
                    )
                    for tiles in column_tiles
                ]  # fmt: skip
                files[f"{math}_{part}_{variant}.cu"] = _UNIT.format(
                    cell=program.digest[:16], part=part, math=math, variant=variant, kernels="".join(kernels)
                )
    return files


def compile_for_gpu(cell: UserCell, dtype: torch.dtype, arch: str = "sm_90") -> Built:
    """Compiles the kernels of ``cell`` for a GPU that need not be here, or takes them from the cache.

    What a call on such a GPU needs is then in the cache folder, which can be moved to its machine. Neither a
    GPU nor a compiled library with CUDA is needed.

    Args:
        cell: made by ``@customlstm.cell``.
        dtype: float32, float64, bfloat16 or float16.
        arch: "sm_" and the compute capability of the GPU, "sm_90" for 9.0; sm_80 or later.

    Returns:
        The archive of cubins, a zip file (:func:`customlstm.jit.nvrtc.read_images`), and how it came about.

    Raises:
        CellError: the cell cannot be fused; the text says which line is in the way.
        BuildError: it was not compiled: NVRTC's own error, there is no NVRTC (:class:`NoCompilerError`), or
            CUSTOMLSTM_JIT=0 (:class:`BuildDisabledError`).
        TypeError, ValueError: a dtype or an architecture for which there are no kernels.
    """
    start = time.perf_counter()
    return Built.of(_obtain(_program_of(cell, dtype), dtype, arch), start)


def register_on_gpu(cell: UserCell, dtype: torch.dtype, device: torch.device) -> None:
    """:func:`customlstm.jit.register` for a CUDA device: for its compute capability, and so for its like.

    Raises:
        CellError, BuildError, ValueError: as :func:`compile_for_gpu`; BuildError also where the driver does
            not load what was compiled, or the package's own library cannot. It is remembered, and raised
            again, until :func:`customlstm.jit.build.forget_failures`.
        RuntimeError: there is no such GPU, or the package's own library has no kernels for it.
    """
    from .. import gpu

    program = _program_of(cell, dtype)
    why_not = gpu.why_not_built() or gpu.why_no_gpu()
    if why_not is None:
        index = torch.cuda.current_device() if device.index is None else device.index
        why_not = gpu.why_not_device(index)
    if why_not is not None:
        raise RuntimeError(f"the cell {cell} cannot be registered for {device}: {why_not}")
    major, minor = torch.cuda.get_device_capability(index)
    name, _ = cell.encode()
    capability = 10 * major + minor
    key = (name, dtype, capability)
    if key in _registered:
        return
    attempt = (*key, *map(os.environ.get, ("CUSTOMLSTM_JIT", "CUSTOMLSTM_CACHE_DIR", "XDG_CACHE_HOME")))
    with within_process(key):
        if key in _registered:
            return
        if attempt in _failures:
            raise _failures[attempt].again()
        try:
            _register(name, program, dtype, capability, index)
        except HeadersChangedError:  # of the next attempt it says nothing
            raise
        except BuildError as error:
            _failures[attempt] = error.again()  # without the traceback, which would keep tensors alive
            raise
        _registered.add(key)


def _program_of(cell: UserCell, dtype: torch.dtype) -> Program:
    if cell.why_not_fused is not None:
        raise CellError(cell.why_not_fused)
    if dtype not in _MATHS:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _MATHS))}, got {dtype}")
    return cell.program


def _obtain(program: Program, dtype: torch.dtype, arch: str) -> Entry:
    name = f"{program.name}-{str(dtype).removeprefix('torch.')}-{arch}"
    file = f"{file_name(name)}.zip"
    images = nvrtc.Images(repr(name), file, sources(program, dtype, arch), headers.headers(), arch)
    builder = _ImageBuilder(images)
    return cache.obtain(Recipe("cuda", name, file, builder.inputs()), builder)


class _ImageBuilder:
    """Builds the archive of one cell; a :class:`customlstm.jit.cache.Builder`."""

    def __init__(self, images: nvrtc.Images) -> None:
        self.images = images
        self.ingredients = Ingredients(images.sources, images.includes, headers.CUDA)

    def inputs(self) -> dict[str, Any]:
        return self.ingredients.inputs() | {"architecture": self.images.arch, "flags": nvrtc.FLAGS}

    def identity(self) -> Mapping[str, Any]:
        return nvrtc.find_nvrtc().identity()

    def build(self, folder: Path, kept: Path) -> Mapping[str, Any]:
        start = time.perf_counter()
        command = nvrtc.compile_images(self.images, folder, kept)
        self.ingredients.check_unchanged(self.images.subject)
        return {
            "seconds": round(time.perf_counter() - start, 3),
            "command": command,
            "nvrtc": nvrtc.find_nvrtc().version,
        }


def _archs_for(capability: int) -> list[str]:
    """What a GPU of this compute capability runs, best first: compiled for it, or for one before it of its
    generation.

    Where NVRTC compiles, only the latest that it knows. Else all of them: what the cache holds may have been
    compiled by an older NVRTC.
    """
    earlier = range(capability - 1, capability // 10 * 10 - 1, -1)
    runs = [capability, *(each for each in earlier if each not in _INTEGRATED)]
    try:
        known = nvrtc.find_nvrtc().architectures
    except NoCompilerError:
        known = ()
    if known and not cache.building_disabled():
        runs = [each for each in runs if each in known][:1] or [capability]
    return [f"sm_{each}" for each in runs]


def _obtain_for(program: Program, dtype: torch.dtype, capability: int) -> Entry:
    errors = []
    for arch in _archs_for(capability):
        try:
            return _obtain(program, dtype, arch)
        except (NoCompilerError, BuildDisabledError) as error:
            errors.append(error)
    raise errors[0]


def _why_too_old(build: Mapping[str, Any]) -> str | None:
    """Why a library built like this takes no kernels; csrc would say so too, but after the compilation."""
    toolkit = str((build.get("cuda") or {}).get("toolkit"))
    version = re.match(r"(\d+)\.(\d+)", toolkit)
    if version is None or (int(version[1]), int(version[2])) >= _FIRST_TOOLKIT:
        return None
    return (
        f"customlstm was built with CUDA {toolkit}, whose runtime loads no libraries; build it with CUDA "
        "12.8 or later, and a torch that was"
    )


def _register(name: str, program: Program, dtype: torch.dtype, capability: int, device_index: int) -> None:
    from .. import _binary

    status = _binary.status()
    too_old = _why_too_old(status.build)
    if too_old is not None:
        raise BuildError(f"the kernel of {program.name!r} is not built: {too_old}")
    entry = _obtain_for(program, dtype, capability)
    images = nvrtc.read_images(entry.product)
    register_cell = ctypes.CDLL(status.path).customlstm_register_cuda_cell  # the one that is loaded
    register_cell.restype = ctypes.c_char_p
    numbers = [ctypes.c_int64] * 6
    register_cell.argtypes = [ctypes.c_char_p, ctypes.c_char_p, *numbers, ctypes.c_void_p, ctypes.c_int64]
    sizes = (len(program.gates), len(program.states), program.saved_count)
    target = (capability, device_index)
    parameters = " ".join(program.parameters).encode()
    for math, (_, number) in _MATHS[dtype].items():
        own = [image for stem, image in images.items() if stem.startswith(f"{math}_")]
        pointers = (ctypes.c_char_p * len(own))(*own)
        address = ctypes.cast(pointers, ctypes.c_void_p)
        why_not = register_cell(name.encode(), parameters, *sizes, number, *target, address, len(own))
        if why_not is not None:
            raise BuildError(
                f"the kernel of {program.name!r} was built, but is refused: {why_not.decode()}"
                f"{_why_refused(entry.notes.get('nvrtc', ''))}"
            )


def _why_refused(version: str) -> str:
    """What to do where the driver is older than the NVRTC that compiled; empty where it is not."""
    driver = torch._C._cuda_getDriverVersion()
    shown = f"{driver // 1000}.{driver % 1000 // 10}"
    if not version or int(version.partition(".")[0]) <= driver // 1000:
        return ""
    return (
        f". It was compiled by NVRTC {version}, and the driver is for CUDA {shown}: install a newer "
        f"driver, or an NVRTC of major version {driver // 1000}"
    )
