"""Timing on a shared machine: every contender runs once a round, in turn, so that a slow moment hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

ROUNDS = 15


def interleave(
    contenders: Mapping[str, Callable[[], object]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of every run of every contender, after one warm-up round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def summary(times: Mapping[str, list[float]], ours: str) -> dict[str, dict[str, float]]:
    """Minimum and median in milliseconds, and both as ratio to those of ``ours``: above 1, ours is faster."""
    best, middle = min(times[ours]), statistics.median(times[ours])
    return {
        name: {
            "min_ms": min(values) * 1e3,
            "median_ms": statistics.median(values) * 1e3,
            "ratio_min": min(values) / best,
            "ratio_median": statistics.median(values) / middle,
        }
        for name, values in times.items()
    }
