"""A fair race: one cell fused and in plain PyTorch, and nn.LSTM; equal sizes, weights, data and steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from .char_options import DEFAULT_CELL, Settings
from .progress import track

ROUNDS = 5


class Contender(Protocol):
    """What `compare` needs of a trainer."""

    steps: int

    def step(self, fraction: float | None = None) -> float: ...

    def measure(self, limit: int | None = None) -> float: ...


def compare(make: Callable[[Settings, str], Contender], settings: Settings, seconds: float) -> dict[str, Any]:
    """Trains the contenders side by side from their first step.

    Args:
        make: builds a trainer from settings and a backend; equal settings and seed give equal weights.
        settings: sizes, and the cell (the default one where the settings are those of nn.LSTM).
        seconds: about how long all of it may take.

    Returns:
        "steps" that each has done, "rows" with cell, characters_per_second, times_plain_pytorch and
        held_out_bpc, and "missing": why there is no fused row, or "".
    """
    cell = DEFAULT_CELL if settings.model == "nn.LSTM" else settings.cell
    custom = replace(settings, model="customlstm", cell=cell)
    fused, plain, fixed = f"{cell}, fused", f"{cell}, plain PyTorch", "sigmoid and tanh, nn.LSTM"
    contenders: dict[str, Contender] = {}
    missing = ""
    try:
        contenders[fused] = make(custom, "fused")
        contenders[fused].step(0.0)
    except RuntimeError as error:
        contenders.clear()
        missing = str(error)
    contenders[plain] = make(custom, "reference")
    contenders[fixed] = make(replace(settings, model="nn.LSTM", cell="plain"), "auto")

    def one_step(contender: Contender) -> Callable[[], int]:
        def step() -> int:
            # A warm-up of 30 steps, then the full rate: how many steps there will be is not known before.
            contender.step(min(0.001 * contender.steps, 0.03))
            return settings.batch * settings.bptt

        return step

    # All have done one step now, outside the clock: memory, caches and the choice of kernels have settled.
    for name in list(contenders)[0 if missing else 1 :]:
        contenders[name].step(0.0)
    rates = race({name: one_step(contender) for name, contender in contenders.items()}, seconds)
    rows = [
        {
            "cell": name,
            "characters_per_second": rates[name],
            "times_plain_pytorch": rates[name] / rates[plain],
            "held_out_bpc": contender.measure(limit=20_000),
        }
        for name, contender in contenders.items()
    ]
    return {"steps": contenders[plain].steps, "rows": rows, "missing": missing}


def race(contenders: Mapping[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """Lets all train in turn (A B C A B C ...) for about `seconds`, equal steps each; characters per second.

    In turn, so that a slow moment of the machine hits all of them; the median over the rounds drops it.

    Args:
        contenders: for each name a function that trains one step and returns how many characters it read.
    """
    start = time.perf_counter()
    for step in contenders.values():
        step()
    per_round = max(1, int(seconds / ROUNDS / (time.perf_counter() - start)))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + 1.5 * seconds
    for completed in track(range(ROUNDS), desc="comparing", unit="round"):
        if completed >= 3 and time.perf_counter() > end:
            break  # the machine has become slower than the first steps promised
        for name, step in contenders.items():
            start = time.perf_counter()
            characters = sum(step() for _ in range(per_round))
            rates[name].append(characters / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def comparison_table(comparison: dict[str, Any], settings: Settings) -> str:
    """What `compare` found, as text."""
    steps = comparison["steps"]
    rows = [
        (
            row["cell"],
            f"{row['characters_per_second']:,.0f}",
            f"{row['times_plain_pytorch']:.2f}x",
            f"{row['held_out_bpc']:.3f}",
        )
        for row in comparison["rows"]
    ]
    title = (
        f"Training, hidden size {settings.hidden}, batch {settings.batch}, {settings.bptt} characters a step"
    )
    text = f"{title}; in turn, median of the rounds:\n" + table(
        ("cell", "characters/s", "vs plain PyTorch", f"held-out bpc after {steps} steps"), rows
    )
    return text + (f"\nNo fused kernel here: {comparison['missing']}" if comparison["missing"] else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first flush left, the others flush right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def show(line: Sequence[str]) -> str:
        others = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        return "  ".join([line[0].ljust(widths[0]), *others])

    return "\n".join([show(header), "  ".join("-" * width for width in widths), *map(show, rows)])
