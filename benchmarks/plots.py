"""The plots of :mod:`benchmarks.report`: ratios by shape, and times by T, by B and by H."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

if TYPE_CHECKING:
    from .runs import Run

AXES = {"T": "steps", "B": "batch", "H": "hidden"}
FEWEST = 3  # points that make a line worth drawing
MARKERS = "osD^vP*X<>"
FINE, COARSE = [0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7], [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
# The same result gives the same file, and text stays text: smaller, and readable without the font.
STYLE = {
    "svg.hashsalt": "customlstm",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def plot_all(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Writes every plot that there are points for; the paths."""
    paths = []
    with matplotlib.rc_context(STYLE):
        for suite, dtype, threads in dict.fromkeys((r.suite, r.setting["dtype"], r.threads) for r in runs):
            chosen = [r for r in runs if (r.suite, r.setting["dtype"], r.threads) == (suite, dtype, threads)]
            path = folder / f"ratio-{suite}-{dtype}-{threads}threads.svg"
            paths.append(_save(ratio_figure(chosen, f"{suite}, {dtype}, {_threads(threads)}"), path))
        layers = [r for r in runs if r.suite == "layer"]
        for name in AXES:
            for mode in dict.fromkeys(r.mode for r in layers):
                found = series([r for r in layers if r.mode == mode], name)
                if found:
                    path = folder / f"time-by-{name}-{mode}.svg"
                    paths.append(_save(time_figure(found, name, mode), path))
    return paths


def _threads(number: int) -> str:
    return f"{number} thread" + "s" * (number != 1)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    return path


def ratio_figure(runs: Sequence[Run], title: str) -> Figure:
    """A row for each shape, a panel for each mode, a marker for each ratio; a line at 1."""
    shapes = list(dict.fromkeys(r.shape for r in runs))
    modes = list(dict.fromkeys(r.mode for r in runs))
    names = list(dict.fromkeys(name for r in runs for name in r.ratios()))
    figure = Figure(figsize=(2.2 + 3.2 * len(modes), 2.0 + 0.28 * len(shapes)), layout="constrained")
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for panel, mode in zip(panels, modes, strict=True):
        points = [(name, r.ratios()[name].median, shapes.index(r.shape))
                  for name in names for r in runs if r.mode == mode and name in r.ratios()]  # fmt: skip
        for marker, (number, name) in zip(MARKERS * 2, enumerate(names), strict=False):
            mine = [(x, y) for n, x, y in points if n == name]
            # The empty ones as well, so that the legend, which is the first panel's, has all of them.
            panel.plot(
                [x for x, _ in mine], [y for _, y in mine], marker, ms=5, color=f"C{number}", label=name
            )
        panel.axvline(1.0, color="black", lw=1)
        panel.set_xscale("log")
        low, high = min([0.8, *(x for _, x, _ in points)]), max([1.25, *(x for _, x, _ in points)])
        panel.set_xlim(low / 1.15, high * 1.15)
        _plain_ticks(
            panel.xaxis, [t for t in (FINE if high < 10 * low else COARSE) if low / 1.15 <= t <= high * 1.15]
        )
        panel.set_title(mode)
        panel.set_xlabel("ratio of times; right of 1 the second is faster")
    panels[0].set_yticks(range(len(shapes)), shapes)
    panels[0].set_ylim(len(shapes) - 0.5, -0.5)
    panels[0].set_ylabel("T, B, I, H")
    figure.suptitle(title)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(names))
    )
    return figure


def _plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """At these values, written as numbers; a logarithmic axis would write powers, and too many of them."""
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def series(runs: Sequence[Run], name: str) -> dict[str, list[Run]]:
    """Runs that differ in T, B or H only, at least FEWEST, by size, under a title that says what is equal.

    Where I is equal to H it may grow with it.
    """
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        keys = [{**run.setting, AXES[name]: name}]
        if name == "H" and run.setting["features"] == run.setting["hidden"]:
            keys.append({**keys[0], "features": "H"})
        for key in keys:
            # Who takes part besides is no difference.
            key = {k: v for k, v in key.items() if k not in ("loop", "cells")}
            text = json.dumps({**key, "threads": run.threads}, sort_keys=True)
            found.setdefault(text, {})[run.setting[AXES[name]]] = run
    return {
        _title(json.loads(key)): [members[size] for size in sorted(members)]
        for key, members in found.items()
        if len(members) >= FEWEST
    }


def _title(key: dict[str, Any]) -> str:
    sizes = ", ".join(
        f"{letter}={key[field]}"
        for letter, field in {**AXES, "I": "features"}.items()
        if key[field] != letter
    )
    more = ("bidirectional, " if key["bidirectional"] else "") + (
        f"{key['layers']} layers, " if key["layers"] > 1 else ""
    )
    return f"{sizes}\n{more}{key['dtype']}, {_threads(key['threads'])}"


def time_figure(found: dict[str, list[Run]], name: str, mode: str) -> Figure:
    """A panel for each series, a line for each contender."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.6 * columns, 0.9 + 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    names = list(dict.fromkeys(n for members in found.values() for r in members for n in r.times))
    lines: dict[str, Any] = {}
    for panel, (title, members) in zip(panels, found.items(), strict=False):
        for number, contender in enumerate(names):
            points = [
                (r.setting[AXES[name]], r.times[contender]["median_ms"])
                for r in members
                if contender in r.times
            ]
            if points:
                (lines[contender],) = panel.plot(*zip(*points, strict=True), "o-", ms=4, color=f"C{number}")
        panel.set_xscale("log")
        panel.set_yscale("log")
        _plain_ticks(panel.xaxis, _apart([r.setting[AXES[name]] for r in members]))
        panel.set_title(title, fontsize=8)
        panel.set_xlabel(name)
        panel.set_ylabel("median time, ms")
    for panel in panels[len(found) :]:
        panel.remove()
    figure.suptitle(f"{mode}: time by {name}")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(4, len(lines)))
    return figure


def _apart(values: Sequence[int], factor: float = 1.25) -> list[int]:
    """Those whose labels do not run into each other's on a logarithmic axis."""
    chosen = list(values[:1])
    for value in values[1:]:
        if value >= factor * chosen[-1]:
            chosen.append(value)
    return chosen
