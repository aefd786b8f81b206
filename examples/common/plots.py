"""Curves as PNG, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
