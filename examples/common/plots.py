"""Curves as PNG and pictures as SVG, drawn without a display."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import write_atomically

Points = Sequence[tuple[float, float]]


def save_curves(path: Path, title: str, x_label: str, y_label: str, curves: Mapping[str, Points]) -> None:
    """Draws each curve, a list of (x, y), with its name; few points are marked one by one."""
    # Imported here: matplotlib takes a second, which a run that draws nothing should not wait for.
    # A Figure without pyplot always draws with the Agg backend and needs no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, label=name, marker="o" if len(points) <= 30 else None, linewidth=1.2)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))


# The same numbers give the same file, and text stays text: smaller, and readable without the font. White
# behind it all, so that a dark page does not swallow black letters. One font: each text would list all.
_SVG = {
    "svg.hashsalt": "customlstm",
    "svg.fonttype": "none",
    "savefig.facecolor": "white",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
}


def save_svg(path: Path, draw: Callable[[], Any]) -> None:
    """Writes the matplotlib Figure that `draw` returns."""
    import matplotlib

    with matplotlib.rc_context(_SVG):
        figure = draw()
        write_atomically(path, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
