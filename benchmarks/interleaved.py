"""Timing on a shared machine: every contender runs once a round, so that a slow moment hits all.

The order is another one in every round, the same in every process: whoever ran always after one that empties
the caches and gives its memory back to the system was measured up to 1.3 times as slow as when it did not.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

ROUNDS = {"cpu": 15, "cuda": 20}
# On a CPU short rounds are cheap, and their medians the noisiest: as many as fit into these seconds.
MORE_ROUNDS, MORE_SECONDS = 60, 4.0


def seconds(run: Callable[[], object], device: str) -> float:
    """Of one call. On a GPU between two events on the stream, so that launches which overlap do not count."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleave(
    contenders: Mapping[str, Callable[[], object]], device: str = "cpu", rounds: int | None = None
) -> dict[str, list[float]]:
    """Seconds of every run of every contender; one warm-up round, on a GPU three, does not count.

    Args:
        rounds: None for as many as ROUNDS says, more of them where they are short.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffled = list(contenders), random.Random(0)
    start = time.perf_counter()
    for _ in range(1 if device == "cpu" else 3):
        for run in contenders.values():
            run()
    if rounds is None:
        rounds = ROUNDS[device]
        if device == "cpu":
            fit = int(MORE_SECONDS / max(time.perf_counter() - start, 1e-9))
            rounds = max(rounds, min(MORE_ROUNDS, fit))
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            times[name].append(seconds(contenders[name], device))
    return times


def summary(times: Mapping[str, list[float]], ours: str, calls: int = 1) -> dict[str, dict[str, float]]:
    """Minimum and median in milliseconds, and both as ratio to those of ``ours``: above 1, ours is faster.

    Args:
        calls: how many calls of interest each timed run made; the milliseconds are those of one.
    """
    best, middle = min(times[ours]), statistics.median(times[ours])
    return {
        name: {
            "min_ms": min(values) * 1e3 / calls,
            "median_ms": statistics.median(values) * 1e3 / calls,
            "ratio_min": min(values) / best,
            "ratio_median": statistics.median(values) / middle,
        }
        for name, values in times.items()
    }
