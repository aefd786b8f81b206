"""Timing on a shared machine: every contender runs once a round, in turn, so that a slow moment hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

ROUNDS = {"cpu": 15, "cuda": 20}


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
    """Seconds of every run of every contender; one warm-up round, on a GPU three, does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(1 if device == "cpu" else 3):
        for run in contenders.values():
            run()
    for _ in range(rounds or ROUNDS[device]):
        for name, run in contenders.items():
            times[name].append(seconds(run, device))
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
