"""The thread plan of the CPU kernels: how many threads compute a layer, what each of them owns, and how the
weights are read.

A pure function of sizes and the number of threads, computed by the compiled library; the kernels ask the same
function at every call. It changes how long a call takes, and no bit of its results.

    >>> print(plan(steps=100, batch=64, input_size=128, hidden_size=128, threads=2))
    2 threads, each with sequences of its own
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch

from . import _binary
from .limits import MAX_GATES

#: In the order in which the library numbers them (WeightAccess in csrc/cpu/kernels.h): packed before anything
#: else, turned in registers where they lie, summed along their rows, packed panel by panel just before use.
ACCESS = ("packed", "turned", "along rows", "packed in turn")


@dataclass(frozen=True)
class ThreadPlan:
    """What :func:`plan` found; ``str()`` of it is for people.

    Attributes:
        threads: how many compute, at most as many as there are.
        groups: parts into which the sequences of each direction are dealt; 1 with ``share_units``.
        share_units: whether the threads share the hidden units of every step, and meet after it. Otherwise
            each has sequences, or a direction, of its own.
        weight_ih, weight_hh: how forward reads these weights, one of :data:`ACCESS`.
        backward_ih, backward_hh: how backward reads them. "turned" is then where they lie, which takes no
            turning there.
        cycles: the time by the model that chooses, in cycles of one core; good for comparing plans of one
            call only.
    """

    threads: int
    groups: int
    share_units: bool
    weight_ih: str
    weight_hh: str
    backward_ih: str
    backward_hh: str
    cycles: float

    def __str__(self) -> str:
        if self.threads == 1:
            return "1 thread"
        if self.share_units:
            return f"{self.threads} threads, which share the units of every step"
        own = "sequences" if self.groups > 1 else "a direction"
        return f"{self.threads} threads, each with {own} of its own"


def plan(
    *,
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    proj_size: int = 0,
    directions: int = 1,
    gates: int = 4,
    threads: int | None = None,
    backward: bool = False,
) -> ThreadPlan:
    """The plan of one layer.

    Args:
        steps, batch, input_size, hidden_size, proj_size: T, B, L, H and P as in :class:`torch.nn.LSTM`; of a
            layer above another one ``input_size`` is the size of the outputs below.
        directions: 1 or 2.
        gates: of the cell, 1 to 8.
        threads: how many there are; default: as many as a call here would have, which is
            :func:`torch.get_num_threads`, but no more than the CPUs that the calling thread may run on.
        backward: the plan of the backward pass.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: the compiled library, which plans, is not loaded; or the sizes are beyond any memory.
    """
    status = _binary.status()
    if not status.loaded:
        raise RuntimeError(f"the thread plan is computed by the compiled library: {status.reason}")
    threads = _threads() if threads is None else threads
    least = {"steps": 0, "batch": 0, "input_size": 0, "hidden_size": 1, "proj_size": 0, "threads": 1}
    given = (steps, batch, input_size, hidden_size, proj_size, threads)
    for (name, smallest), value in zip(least.items(), given, strict=True):
        if operator.index(value) < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {value}")
    if directions not in (1, 2):
        raise ValueError(f"directions must be 1 or 2, got {directions}")
    if gates not in range(1, MAX_GATES + 1):
        raise ValueError(f"gates must be 1 to {MAX_GATES}, got {gates}")

    sizes = [steps, batch, input_size, hidden_size, proj_size or hidden_size, directions, gates]
    op = torch.ops.customlstm.cpu_plan.default
    found, cycles = op([int(size) for size in sizes], int(threads), backward)
    chosen, groups, share_units, *access = found
    return ThreadPlan(chosen, groups, bool(share_units), *(ACCESS[number] for number in access), cycles)


def _threads() -> int:
    """How many a call made now would have."""
    return torch.ops.customlstm.cpu_threads.default()
