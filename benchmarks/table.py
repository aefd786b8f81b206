"""``python -m benchmarks.table FILE``: a result of ``test_layer.py`` as a markdown table, losses included."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def table(result: dict[str, Any]) -> str:
    """Ratios of median times, above 1: the fused kernel is faster; the last two columns compare cells."""
    lines = [
        "| T, B, I, H | mode | customlstm, ms | `nn.LSTM` / ours | plain PyTorch / ours, piecewise cell "
        "| hard / plain cell | piecewise / plain cell |",
        "|---|---|---|---|---|---|---|",
    ]
    columns: dict[str, list[list[float]]] = {}
    for run in result["benchmarks"]:
        info = run["extra_info"]
        times = {name: values["median_ms"] for name, values in info["times"].items()}
        ours = times["customlstm"]
        ratios = [
            times["nn.LSTM"] / ours,
            times["piecewise, plain PyTorch"] / times["piecewise"],
            times["hard"] / ours,
            times["piecewise"] / ours,
        ]
        columns.setdefault(info["mode"], []).append(ratios)
        shape = ", ".join(map(str, info["shape"]))
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {shape} | {info['mode']} | {ours:.2f} | {cells} |")
    for mode, rows in columns.items():
        means = " | ".join(f"{geometric_mean(column):.2f}" for column in zip(*rows, strict=True))
        lines.append(f"| geometric mean | {mode} | | {means} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
