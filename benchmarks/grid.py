"""What the suites time: the settings for the device at hand."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

# The quickest first: a run that is cut short has them.
DTYPES = ("bfloat16", "float16", "tf32", "float32")
CPU_DTYPES = ("float32", "bfloat16")  # of whole sequences where none are asked for; elsewhere the first
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Setting:
    """One layer (or a few) over a whole sequence.

    Attributes:
        steps, batch, features, hidden: T, B, input size, H.
        dtype: "float32", "tf32" (float32 whose products may use TF32), "bfloat16" or "float16".
        loop: whether the TorchScript loop takes part, which needs hundreds of launches a call; on a CPU the
            reference as well.
        cells: whether the hard and the piecewise cell take part.
    """

    steps: int
    batch: int
    features: int
    hidden: int
    dtype: str = "float32"
    bidirectional: bool = False
    layers: int = 1
    loop: bool = False
    cells: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "tf32" else getattr(torch, self.dtype)

    def __str__(self) -> str:
        more = ("-bidirectional" if self.bidirectional else "") + (
            f"-{self.layers}layers" if self.layers > 1 else ""
        )
        return f"T{self.steps}-B{self.batch}-I{self.features}-H{self.hidden}-{self.dtype}{more}"


# (T, B, I, H) that the targets of the CPU kernels are stated for.
ACCEPTANCE = [
    (100, 1, 128, 128), (100, 1, 512, 512), (100, 1, 1024, 1024), (100, 16, 256, 256), (100, 64, 128, 128),
    (100, 64, 512, 512), (100, 32, 1024, 1024), (256, 128, 256, 256), (50, 256, 64, 64), (1000, 32, 64, 128),
    (128, 64, 100, 100), (70, 20, 400, 1150), (37, 7, 61, 97),
]  # fmt: skip
# What others published figures of: haste (a series by B, one by H), FlashRNN (by T), DeepCPU (by H at B=1),
# large H at few sequences, PyTorch pull requests 62143 and 43165, SRU, oneDNN's GNMT. Left out, for the time
# they take on a CPU: haste at I=64 to 512 each and H > 2048, FlashRNN at T > 512 and B > 16, DeepSpeech2
# (H=1760, B=64), AWD-LSTM's enwik8 (H=1840, B=128), and the four-layer stacks over 2,000 steps.
PUBLISHED = [
    *((50, batch, 256, 512) for batch in (1, 4, 16, 64, 128)),
    *((50, 32, 256, hidden) for hidden in (128, 256, 512, 768, 1024, 1536, 2048)),
    *((steps, 16, 768, 768) for steps in (64, 128, 256, 512)),
    *((100, 1, hidden, hidden) for hidden in (64, 256)),
    *((100, batch, 256, 256) for batch in (4, 8)),
    (128, 1, 1792, 1792), (128, 4, 1792, 1792), (1125, 44, 40, 160), (2058, 62, 16, 168),
    (1252, 12, 304, 192), (20, 64, 128, 1024), (32, 32, 128, 128), (50, 64, 512, 512),
]  # fmt: skip
GRIDS = ("tiny", "small", "full")
TINY = (3, 2, 5, 8)  # to see that a suite works, not to time anything


def cpu_settings(grid: str = "small", dtype: str = "float32") -> Iterator[Setting]:
    """Cells and the slow contenders take part at the acceptance shapes, the latter in float32 only."""
    slow = {"cells": True, "loop": dtype == "float32"}
    if grid == "tiny":
        yield Setting(*TINY, dtype, **slow)
        yield Setting(*TINY, dtype, bidirectional=True, layers=2, **slow)
        return
    yield from (Setting(*shape, dtype, **slow) for shape in ACCEPTANCE)
    yield Setting(100, 32, 256, 256, dtype, bidirectional=True, **slow)
    yield Setting(100, 16, 256, 256, dtype, layers=2, **slow)
    if grid == "full":
        yield from (Setting(*shape, dtype) for shape in PUBLISHED)
        yield Setting(1314, 20, 344, 32, dtype, layers=3)
        yield Setting(100, 64, 512, 512, dtype, layers=4)


def cuda_settings(dtype: str) -> Iterator[Setting]:
    """The grid for a GPU, with the shapes of FlashRNN and PyTorch, and those that cuDNN is slow on."""
    loops = {(100, 64, 512), (1024, 16, 768)}
    cells = {(100, 1, 256), (100, 16, 512), (100, 64, 128), (100, 64, 512), (100, 64, 2048), (100, 128, 1024),
             (1024, 8, 256), (1024, 16, 768)}  # fmt: skip
    for steps, batch, hidden in [
        *itertools.product((100, 1024), (1, 8, 16, 64, 128), (128, 256, 512, 768, 1024)),
        *itertools.product((100,), (16, 64), (1760, 2048)),
    ]:
        shape = steps, batch, hidden
        yield Setting(*shape, hidden, dtype, loop=shape in loops, cells=shape in cells)
    yield Setting(100, 64, 512, 512, dtype, bidirectional=True)
    yield Setting(100, 64, 512, 512, dtype, layers=2)
    # From the benchmark in PyTorch pull request 62143: cuDNN's algorithm for small H was the slower one.
    yield Setting(1125, 44, 40, 160, dtype)
    yield Setting(2058, 62, 16, 168, dtype)
    yield Setting(1981, 45, 56, 152, dtype, layers=4)
    yield Setting(1252, 12, 304, 192, dtype)


def chosen_dtypes() -> tuple[str, ...]:
    """Those of CUSTOMLSTM_BENCHMARK_DTYPES, which separates them by commas; all where it is not set.

    Raises:
        ValueError: one of them is none of DTYPES.
    """
    text = os.environ.get("CUSTOMLSTM_BENCHMARK_DTYPES", "")
    chosen = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in chosen:
        if name not in DTYPES:
            raise ValueError(
                f"CUSTOMLSTM_BENCHMARK_DTYPES holds {name!r}, expected some of {', '.join(DTYPES)}"
            )
    return chosen or DTYPES


def settings(device: str, grid: str = "small", dtypes: Sequence[str] | None = None) -> list[Setting]:
    """Whole sequences, for "cpu" or "cuda".

    Args:
        grid: one of GRIDS. For a GPU "small" and "full" are the same.
        dtypes: for a GPU by default those of :func:`chosen_dtypes`, else float32.
    """
    if device == "cpu":
        return [s for dtype in dtypes or ("float32",) for s in cpu_settings(grid, dtype)]
    dtypes = dtypes or chosen_dtypes()
    if grid == "tiny":
        return [s for dtype in dtypes for s in cpu_settings(grid, dtype)]
    return [s for dtype in dtypes for s in cuda_settings(dtype)]


def _shapes(grid: str, tiny: Shape, small: list[Shape], more: list[Shape]) -> list[Shape]:
    return {"tiny": [tiny], "small": small, "full": small + more}[grid]


def step_shapes(grid: str) -> list[Shape]:
    """One step; the additional ones are the decoder of oneDNN's GNMT."""
    small = [(1, 1, 128, 128), (1, 1, 512, 512), (1, 16, 256, 256), (1, 64, 512, 512)]
    return _shapes(grid, (1, 2, 5, 8), small, [(1, b, i, 512) for b in (10, 128) for i in (512, 1024)])


def streaming_shapes(grid: str) -> list[Shape]:
    """No multiple of the longest chunk, so that a shorter one comes last."""
    small = [(200, 1, 128, 128), (200, 1, 512, 512), (200, 16, 256, 256)]
    return _shapes(grid, (70, 2, 5, 8), small, [(1000, 1, 80, 256), (200, 64, 512, 512)])


def lengths_shapes(grid: str) -> list[Shape]:
    """The longest sequence has T steps, the others are uniform in 3/10 T to T: 30..100, as in fastrnns."""
    small = [(100, 64, 512, 512), (100, 64, 128, 128), (100, 16, 256, 256)]
    return _shapes(
        grid, (10, 4, 5, 8), small, [(100, 1, 256, 256), (100, 128, 256, 256), (100, 32, 1024, 1024)]
    )


def compiled_shapes(grid: str) -> list[Shape]:
    """T of at most 16: torch.compile unrolls the loop and takes minutes for longer ones."""
    return _shapes(grid, (2, 2, 5, 8), [(8, 16, 256, 256)], [(16, 64, 128, 128)])


def suite_settings(suite: str, device: str, grid: str, dtypes: Sequence[str] | None) -> list[Setting]:
    """Of the suite in ``test_<suite>.py``.

    Raises:
        ValueError: there is no such grid, or the device has no such dtype.
    """
    known = DTYPES if device == "cuda" else tuple(name for name in DTYPES if name != "tf32")
    for name in dtypes or ():
        if name not in known:
            raise ValueError(f"--dtype holds {name!r}, expected some of {', '.join(known)}")
    if grid not in GRIDS:
        raise ValueError(f"--grid is {grid!r}, expected one of {', '.join(GRIDS)}")
    if suite == "layer":
        return settings(device, grid, dtypes or (CPU_DTYPES if device == "cpu" else None))
    if suite in ("cells", "options", "written"):
        found = settings(device, grid, dtypes)
        return [s for s in found if s.cells and s.layers == 1 and not s.bidirectional]
    shapes = {
        "step": step_shapes, "streaming": streaming_shapes, "lengths": lengths_shapes,
        "compiled": compiled_shapes,
    }  # fmt: skip
    return [Setting(*shape, dtype) for dtype in dtypes or ("float32",) for shape in shapes[suite](grid)]
