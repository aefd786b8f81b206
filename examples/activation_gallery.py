"""Every activation with its piecewise-linear fit, and how the error of a fit falls with its knots.

`python activation_gallery.py --out docs/plots` draws the pictures of docs/cells.md and prints its table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import cli
from common.plots import save_svg
from common.progress import track
from matplotlib.figure import Figure
from torch import Tensor

from customlstm import PiecewiseLinear
from customlstm.activations import KINDS, activation

DESCRIPTION = """\
Draws every activation of customlstm and its piecewise-linear fit (activations.svg), and the largest error of
the fits against the number of knots (activation-errors.svg); prints the errors as a table. Half a minute.
"""

BOUNDS = ((-4.0, 4.0), (-8.0, 8.0))
SHOWN = 6
"""Knots of a fit in the gallery, where it is not exact with fewer."""
# Even ones: of an odd number a fit to an odd function does not use the middle one.
COUNTS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
IN_TABLE = (4, 8, 16, 32)

_EXACT = 1e-12  # rounding; the smallest error of a fit that is not exact is 2e-7
_GRID = 1 << 15


@cache
def fit(name: str, knots: int, bounds: tuple[float, float]) -> PiecewiseLinear:
    return PiecewiseLinear.fit(name, knots=knots, bounds=bounds)


@cache
def largest_error(name: str, knots: int, bounds: tuple[float, float] = BOUNDS[0]) -> float:
    """The largest error of the fit within `bounds`; 0 where there is nothing but rounding."""
    fitted = fit(name, knots, bounds)
    x = torch.cat([torch.linspace(*bounds, _GRID + 1, dtype=torch.float64), torch.tensor(fitted.x).double()])
    error = float((fitted(x) - activation(name)(x)).abs().max())
    return error if error > _EXACT else 0.0


def exact_from(name: str) -> int | None:
    """The fewest knots, up to 4, with which a fit is the function itself; None where it is not."""
    return next((knots for knots in (2, 3, 4) if largest_error(name, knots) == 0.0), None)


def table() -> str:
    """The largest errors within both bounds as a table in Markdown."""
    lines = [
        f"| | exact with | {' | '.join(f'{k}, ±{upper:g}' for _, upper in BOUNDS for k in IN_TABLE)} |",
        "|---|---|" + "---|" * (len(BOUNDS) * len(IN_TABLE)),
    ]
    for name in KINDS:
        errors = [f"{largest_error(name, knots, bounds):.2g}" for bounds in BOUNDS for knots in IN_TABLE]
        exact = exact_from(name)
        lines.append(f"| {name} | {f'{exact} knots' if exact else ''} | {' | '.join(errors)} |")
    return "\n".join(lines)


def gallery() -> Figure:
    """A panel for each activation and its fit, and one for knots of one's own."""
    figure = Figure(figsize=(9.5, 8.6), layout="constrained")
    panels = figure.subplots(4, 4).flatten()
    for axes, name in zip(panels, KINDS, strict=False):
        exact = exact_from(name)
        knots = exact or SHOWN
        fitted = fit(name, knots, BOUNDS[0])
        error = largest_error(name, knots)
        label = f"{knots} knots, " + ("exact" if exact else f"error {error:.2g}")
        _draw(axes, name, activation(name), fitted, label)
    own = PiecewiseLinear([-3, -1, 0, 1.5, 3.5], [-1, 1, 0, 2, 1.5])
    _draw(panels[len(KINDS)], "PiecewiseLinear(x, y)", None, own, "knots of one's own")
    for axes in panels[len(KINDS) + 1 :]:
        axes.remove()
    return figure


def _draw(
    axes: Any, title: str, function: Callable[[Tensor], Tensor] | None, fitted: PiecewiseLinear, label: str
) -> None:
    x = torch.linspace(-5, 5, 151, dtype=torch.float64)  # beyond the bounds, where the end segments run on
    if function is not None:
        axes.plot(x, function(x), color="C0", linewidth=2.5, alpha=0.6)
    ends = torch.tensor([-5.0, *fitted.x, 5.0], dtype=torch.float64)
    axes.plot(ends, fitted(ends), color="C1", linewidth=1.2)
    axes.plot(fitted.x, fitted.y, "o", color="C1", markersize=3.5)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(label, fontsize=8)
    axes.set_xlim(-5, 5)
    axes.set_xticks([-4, 0, 4])
    axes.locator_params(axis="y", nbins=4)
    axes.grid(alpha=0.3)


def error_figure() -> Figure:
    """A panel for each of BOUNDS, a line for each activation whose fit is not exact."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    panels = figure.subplots(1, len(BOUNDS), sharey=True)
    # scaled_tanh is tanh unless it is given coefficients.
    names = [name for name in KINDS if name != "scaled_tanh" and exact_from(name) is None]
    for axes, bounds in zip(panels, BOUNDS, strict=True):
        for number, (name, marker) in enumerate(zip(names, "os^vDP", strict=True)):
            errors = [largest_error(name, knots, bounds) for knots in COUNTS]
            axes.plot(COUNTS, errors, marker=marker, markersize=4, color=f"C{number}", label=name)
        # A straight line over a length of h is off by a multiple of h², and h goes with 1 / knots.
        axes.plot([8, 64], [0.02, 0.02 / 64], "--", color="gray", label="slope of h²")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
        axes.set_xlabel("knots")
        axes.set_title(f"bounds ({bounds[0]:g}, {bounds[1]:g})", fontsize=9)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("largest absolute error")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "activation_gallery.py", description=DESCRIPTION, formatter_class=cli.HelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/gallery"),
        metavar="DIR",
        help="folder for activations.svg and activation-errors.svg (default: runs/gallery)",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    cli.make_folder(options.out, "--out")
    for name in track(KINDS, desc="fitting", unit="activation"):
        for bounds in BOUNDS:
            for knots in COUNTS:
                largest_error(name, knots, bounds)
    save_svg(options.out / "activations.svg", gallery)
    save_svg(options.out / "activation-errors.svg", error_figure)
    print(table())
    print(f"\nWrote activations.svg and activation-errors.svg into {options.out}.")


if __name__ == "__main__":
    sys.exit(cli.run(main, "activation_gallery.py"))
