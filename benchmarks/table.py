"""``python -m benchmarks.table FILE``: a result of ``test_layer.py`` as a markdown table, losses included."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Column title, whose time is divided by whose.
RATIOS = [
    ("`nn.LSTM` / ours", "nn.LSTM", "customlstm"),
    ("plain PyTorch / ours, piecewise cell", "piecewise, plain PyTorch", "piecewise"),
    ("TorchScript loop / ours", "TorchScript loop", "customlstm"),
    ("hard / plain cell", "hard", "customlstm"),
    ("piecewise / plain cell", "piecewise", "customlstm"),
]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def shape_of(setting: dict[str, Any]) -> str:
    text = ", ".join(str(setting[name]) for name in ("steps", "batch", "features", "hidden"))
    return (
        text
        + (", bidirectional" if setting["bidirectional"] else "")
        + (f", {setting['layers']} layers" if setting["layers"] > 1 else "")
    )


def table(result: dict[str, Any]) -> str:
    """Ratios of median times, above 1: the fused kernel is faster; the last two columns compare cells."""
    runs = [run["extra_info"] for run in result["benchmarks"]]
    ratios = [r for r in RATIOS if any(r[1] in info["times"] for info in runs)]
    titles = ["T, B, I, H", "dtype", "mode", "customlstm, ms", *(title for title, _, _ in ratios)]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    groups: dict[tuple[str, str], list[list[float | None]]] = {}
    for info in runs:
        times = {name: values["median_ms"] for name, values in info["times"].items()}
        row = [times[a] / times[b] if a in times and b in times else None for _, a, b in ratios]
        setting = info["setting"]
        groups.setdefault((setting["dtype"], info["mode"]), []).append(row)
        lines.append(
            _line(shape_of(setting), setting["dtype"], info["mode"], f"{times['customlstm']:.2f}", row)
        )
    for (dtype, mode), rows in groups.items():
        columns = [[x for x in column if x is not None] for column in zip(*rows, strict=True)]
        means = [geometric_mean(column) if column else None for column in columns]
        lines.append(_line("geometric mean", dtype, mode, "", means))
    return "\n".join(lines)


def summary_table(result: dict[str, Any]) -> str:
    """One line for each dtype and mode: how many shapes, geometric mean against nn.LSTM, the worst shape."""
    groups: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for info in (run["extra_info"] for run in result["benchmarks"]):
        times = {name: values["median_ms"] for name, values in info["times"].items()}
        key = info["setting"]["dtype"], info["mode"]
        groups.setdefault(key, []).append((times["nn.LSTM"] / times["customlstm"], shape_of(info["setting"])))
    lines = ["dtype      mode       shapes  nn.LSTM / ours: mean   worst", ""]
    for (dtype, mode), rows in groups.items():
        mean, (worst, shape) = geometric_mean([ratio for ratio, _ in rows]), min(rows)
        lines.append(f"{dtype:<10} {mode:<10} {len(rows):6}  {mean:20.2f}   {worst:.2f} at ({shape})")
    return "\n".join(lines)


def _line(shape: str, dtype: str, mode: str, ms: str, ratios: Sequence[float | None]) -> str:
    cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return "| " + " | ".join([shape, dtype, mode, ms, *cells]) + " |"


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
