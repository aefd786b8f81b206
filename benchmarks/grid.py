"""What the suites time: the settings for the device at hand."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# The quickest first: a run that is cut short has them.
DTYPES = ("bfloat16", "float16", "tf32", "float32")


@dataclass(frozen=True)
class Setting:
    """One layer (or a few) over a whole sequence.

    Attributes:
        steps, batch, features, hidden: T, B, input size, H.
        dtype: "float32", "tf32" (float32 whose products may use TF32), "bfloat16" or "float16".
        loop: whether the TorchScript loop takes part, which needs hundreds of launches a call.
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


CPU = [
    Setting(*shape, cells=True)
    for shape in [
        (100, 1, 128, 128),
        (100, 1, 512, 512),
        (100, 16, 256, 256),
        (100, 64, 128, 128),
        (100, 64, 512, 512),
        (256, 128, 256, 256),
        (50, 256, 64, 64),
        (128, 64, 100, 100),
        (37, 7, 61, 97),
    ]
]


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


def settings(device: str) -> list[Setting]:
    """For "cpu" or "cuda", there in the dtypes of :func:`chosen_dtypes`."""
    if device == "cpu":
        return CPU
    return [s for dtype in chosen_dtypes() for s in cuda_settings(dtype)]
