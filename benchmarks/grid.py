"""What the suites time: the settings for the device at hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Setting:
    """One layer (or a few) over a whole sequence.

    Attributes:
        steps, batch, features, hidden: T, B, input size, H.
        dtype: "float32", "tf32" (float32 whose products may use TF32), "bfloat16" or "float16".
        loop: whether the TorchScript loop takes part, which needs hundreds of launches a call.
    """

    steps: int
    batch: int
    features: int
    hidden: int
    dtype: str = "float32"
    bidirectional: bool = False
    layers: int = 1
    loop: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "tf32" else getattr(torch, self.dtype)

    def __str__(self) -> str:
        more = ("-bidirectional" if self.bidirectional else "") + (
            f"-{self.layers}layers" if self.layers > 1 else ""
        )
        return f"T{self.steps}-B{self.batch}-I{self.features}-H{self.hidden}-{self.dtype}{more}"


CPU = [
    Setting(*shape)
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
    for steps, batch, hidden in [
        *itertools.product((100, 1024), (1, 8, 16, 64, 128), (128, 256, 512, 768, 1024)),
        *itertools.product((100,), (16, 64), (1760, 2048)),
    ]:
        yield Setting(steps, batch, hidden, hidden, dtype, loop=(steps, batch, hidden) in loops)
    yield Setting(100, 64, 512, 512, dtype, bidirectional=True)
    yield Setting(100, 64, 512, 512, dtype, layers=2)
    # From the benchmark in PyTorch pull request 62143: cuDNN's algorithm for small H was the slower one.
    yield Setting(1125, 44, 40, 160, dtype)
    yield Setting(2058, 62, 16, 168, dtype)
    yield Setting(1981, 45, 56, 152, dtype, layers=4)
    yield Setting(1252, 12, 304, 192, dtype)


def settings(device: str) -> list[Setting]:
    """For "cpu" or "cuda", the quickest dtypes first: a run that is cut short has them."""
    if device == "cpu":
        return CPU
    return [s for dtype in ("bfloat16", "float16", "tf32", "float32") for s in cuda_settings(dtype)]
