"""The launch plan of the CUDA kernels: which recurrence would run a layer, cut how, or why one does not fit.

A pure function of sizes, arithmetic and device limits, computed by the compiled library; no GPU is needed.
The same function chooses at every call on a GPU, with the limits that the driver reports.

    >>> print(plan(H200, steps=1024, batch=16, hidden_size=768, math="bfloat16"))
"""

from __future__ import annotations

import operator
from dataclasses import astuple, dataclass, field
from typing import Any

import torch

from . import _binary
from .limits import MAX_GATES

#: In the order in which the library numbers them.
VARIANTS = ("step", "grid", "cluster")
MATH = ("float32", "float64", "bfloat16", "float16", "tf32")

_FIRST_WITH_CLUSTERS = 90
_PORTABLE_CLUSTER = 8  # blocks; a data-centre GPU holds twice as many where a kernel asks for it
_PROCESSORS_OF_A_CLUSTER = 18  # multiprocessors in a group that a cluster cannot leave, at most


@dataclass(frozen=True)
class DeviceLimits:
    """What of a device the plan depends on.

    Attributes:
        capability: compute capability without the point: 90 for 9.0.
        multiprocessors: how many there are.
        shared_bytes: dynamic shared memory that a block can opt in to.
        l2_bytes: size of the L2 cache.
        cluster_blocks: blocks of the largest cluster; 1 where there are none.
        clusters: clusters of that size resident at once, with all of the shared memory.
        cooperative: whether a launch can demand that all of its blocks are resident.
    """

    capability: int
    multiprocessors: int
    shared_bytes: int
    l2_bytes: int
    cluster_blocks: int = 1
    clusters: int = 0
    cooperative: bool = True

    @classmethod
    def from_device(cls, index: int | None = None) -> DeviceLimits:
        """The limits of a CUDA device (default: the current one).

        How many clusters are resident only the driver knows, which Python cannot ask: the number here is a
        careful guess. The kernels ask the driver.
        """
        properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
        capability = 10 * properties.major + properties.minor
        # A data-centre GPU has 228 KB of shared memory a multiprocessor, and clusters of 16.
        large = properties.shared_memory_per_block_optin > 128 * 1024
        clusters = capability >= _FIRST_WITH_CLUSTERS
        blocks = (2 if large else 1) * _PORTABLE_CLUSTER if clusters else 1
        processors = properties.multi_processor_count
        return cls(
            capability=capability,
            multiprocessors=processors,
            shared_bytes=properties.shared_memory_per_block_optin,
            l2_bytes=properties.L2_cache_size,
            cluster_blocks=blocks,
            clusters=max(1, processors // _PROCESSORS_OF_A_CLUSTER) if clusters else 0,
        )


# 8 clusters of 16: one in each group of multiprocessors; to be compared with what the driver says.
A100 = DeviceLimits(80, 108, 163 << 10, 40 << 20)
RTX_3090 = DeviceLimits(86, 82, 99 << 10, 6 << 20)
H100 = DeviceLimits(90, 132, 227 << 10, 50 << 20, 16, 8)
H200 = DeviceLimits(90, 132, 227 << 10, 60 << 20, 16, 8)
B200 = DeviceLimits(100, 148, 227 << 10, 126 << 20, 16, 8)
RTX_5090 = DeviceLimits(120, 170, 99 << 10, 96 << 20, 8, 9)


@dataclass(frozen=True)
class Tiling:
    """How a recurrence is cut into blocks; csrc/cuda/tiling.h explains the fields."""

    variant: str
    units: int
    state_rows: int
    columns: int
    column_tiles: int
    warps: int
    unit_blocks: int
    column_blocks: int
    cluster: int

    def __str__(self) -> str:
        rows = f" and {self.state_rows} rows of the state" if self.state_rows else ""
        warps = f"{self.warps} warp{'s' if self.warps > 1 else ''}"
        blocks = f"{self.unit_blocks} x {self.column_blocks} blocks of {warps}"
        return f"{blocks}, each {self.units} units{rows} of {self.columns} sequences"


@dataclass(frozen=True)
class LaunchPlan:
    """What :func:`plan` found; ``str()`` of it is for people.

    Attributes:
        variant: "step", "grid" or "cluster"; None where the variant that was forced does not fit.
        tiling: that variant's; None likewise.
        why_not: for every variant that does not fit, a sentence with the number that forbids it.
        predicted_us: the time model's microseconds for all steps, without the input projection; None
            likewise.
    """

    variant: str | None
    tiling: Tiling | None
    why_not: dict[str, str] = field(default_factory=dict)
    predicted_us: float | None = None

    def __str__(self) -> str:
        lines = ["no plan: the variant that was forced does not fit"]
        if self.tiling is not None and self.predicted_us is not None:
            lines = [f"{self.variant}: {self.tiling}; predicted {self.predicted_us:.0f} us"]
        return "\n".join([*lines, *(f"  not {text}" for text in self.why_not.values())])


def plan(
    limits: DeviceLimits,
    *,
    steps: int,
    batch: int,
    hidden_size: int,
    proj_size: int = 0,
    directions: int = 1,
    gates: int = 4,
    math: str = "float32",
    backward: bool = False,
    ragged: bool = False,
    variant: str | None = None,
    layer_norm: bool = False,
) -> LaunchPlan:
    """The plan of one layer on a device with these limits.

    Args:
        limits: the device: :meth:`DeviceLimits.from_device`, or one of the presets of this module.
        steps, batch, hidden_size, proj_size: T, B, H and P as in :class:`torch.nn.LSTM`.
        directions: 1 or 2.
        gates: of the cell, 1 to 8.
        math: how products are computed: "float32" (without tensor cores), "tf32", "bfloat16", "float16" or
            "float64".
        backward: the recurrence of the backward pass.
        ragged: whether the sequences have lengths of their own.
        variant: plan this one, though another may be faster.
        layer_norm: whether the cell has layer norm, in any place.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: the compiled library, which plans, is not loaded.
    """
    _check_choice("math", math, MATH)
    if variant is not None:
        _check_choice("variant", variant, VARIANTS)
    sizes = {"steps": steps, "batch": batch, "hidden_size": hidden_size, "proj_size": proj_size}
    for name, size in sizes.items():
        if operator.index(size) < (name == "hidden_size"):
            raise ValueError(f"{name} must be at least {int(name == 'hidden_size')}, got {size}")
    if directions not in (1, 2):
        raise ValueError(f"directions must be 1 or 2, got {directions}")
    if gates not in range(1, MAX_GATES + 1):
        raise ValueError(f"gates must be 1 to {MAX_GATES}, got {gates}")
    status = _binary.status()
    if not status.loaded:
        raise RuntimeError(f"the launch plan is computed by the compiled library: {status.reason}")

    state_size = proj_size or hidden_size
    request = [steps, batch, hidden_size, state_size, directions, proj_size > 0, backward, ragged]
    forced = -1 if variant is None else VARIANTS.index(variant)
    numbers = [int(value) for value in (*request, MATH.index(math), gates, layer_norm)]
    tiling, why_not, predicted_us = _op()(numbers, [int(value) for value in astuple(limits)], forced)
    reasons = dict(zip(VARIANTS, why_not.split("\n"), strict=True))
    reasons = {name: reason for name, reason in reasons.items() if reason}
    chosen = Tiling(VARIANTS[tiling[0]], *tiling[1:])
    if chosen.warps == 0:
        return LaunchPlan(None, None, reasons)
    return LaunchPlan(chosen.variant, chosen, reasons, predicted_us)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _op() -> Any:
    return torch.ops.customlstm.cuda_plan.default
