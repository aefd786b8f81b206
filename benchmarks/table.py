"""``python -m benchmarks.table FILE``: a result of ``test_layer.py`` as a markdown table, losses included."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
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

# Those of the summary, and which is the worst of many.
SUMMARY: dict[str, tuple[str, str, Callable[[Iterable[float]], float]]] = {
    "nn.LSTM / ours": ("nn.LSTM", "customlstm", min),
    "loop / ours": ("TorchScript loop", "customlstm", min),
    "hard / plain": ("hard", "customlstm", max),
    "piecewise / plain": ("piecewise", "customlstm", max),
}


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


def is_loss(ratio: float, dtype: str) -> bool:
    """Whether ``nn.LSTM`` / ours misses the bar for every shape."""
    return ratio < (0.9 if dtype == "float16" else 1.0)


def summary_table(result: dict[str, Any]) -> str:
    """One line for each dtype and mode, mean and worst of every ratio; then every loss to ``nn.LSTM``."""
    groups: dict[tuple[str, str], dict[str, list[tuple[float, str]]]] = {}
    for info in (run["extra_info"] for run in result["benchmarks"]):
        times = {name: values["median_ms"] for name, values in info["times"].items()}
        group = groups.setdefault((info["setting"]["dtype"], info["mode"]), {title: [] for title in SUMMARY})
        for title, (a, b, _) in SUMMARY.items():
            if a in times and b in times:
                group[title].append((times[a] / times[b], shape_of(info["setting"])))
    lines = [f"{'dtype':<10} {'mode':<10} shapes losses" + "".join(f"{title:>19}" for title in SUMMARY)]
    lost: list[str] = []
    for (dtype, mode), group in groups.items():
        against = group["nn.LSTM / ours"]
        losses = sorted(each for each in against if is_loss(each[0], dtype))
        lost += [f"loss: {dtype} {mode} ({shape}): {ratio:.2f}" for ratio, shape in losses]
        cells = "".join(f"{_mean_and_worst(group[title], SUMMARY[title][2]):>19}" for title in SUMMARY)
        lines.append(f"{dtype:<10} {mode:<10} {len(against):6} {len(losses):6}{cells}")
    return "\n".join([*lines, "mean (worst); a loss is below 1.0, in float16 below 0.9", *lost])


def _mean_and_worst(rows: Sequence[tuple[float, str]], worst: Callable[[Iterable[float]], float]) -> str:
    ratios = [ratio for ratio, _ in rows]
    return f"{geometric_mean(ratios):.2f} ({worst(ratios):.2f})" if ratios else "-"


def _line(shape: str, dtype: str, mode: str, ms: str, ratios: Sequence[float | None]) -> str:
    cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return "| " + " | ".join([shape, dtype, mode, ms, *cells]) + " |"


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
