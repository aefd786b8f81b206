"""What quantised_activations.py found, as tables in Markdown and as a picture, from result.json alone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from .replacing import EXACT, PLACES, title

DIVERGED = "diverged"


def report(result: dict[str, Any]) -> str:
    """The tables: accuracy and time of every cell, and what one place alone costs."""
    settings, seeds = result["settings"], len(result["seeds"])
    about = (
        f"Accuracy on {result['reviews']['test']:,} test reviews, mean of {seeds} trained "
        f"model{'s' * (seeds != 1)}. In points: what it is more than with exact activations, ± the standard "
        "error of that over the reviews, and in brackets the smallest and the largest of the models. "
        f"Milliseconds are for a batch of {settings['batch']}, forward and backward of training, and "
        f"inference; medians of {settings['rounds']}, in turn."
    )
    places = "Where the loss comes from: one place replaced, the others exact, not trained again; in points."
    parts = (_fill(about), _accuracy_table(result), _fill(places), _places_table(result))
    return "\n\n".join(parts) + "\n"


def _fill(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _accuracy_table(result: dict[str, Any]) -> str:
    header = (
        "cell",
        "largest error of sigmoid, tanh",
        "replaced",
        "against exact",
        f"trained {result['settings']['tune_steps']} steps more",
        "against exact, trained as long",
        "training",
        "inference",
    )
    rows = []
    for cell, found in result["cells"].items():
        errors = ", ".join(f"{error:.2g}" for error in found["largest_errors"].values())
        times = (f"{found['milliseconds'][mode]:.1f} ms" for mode in ("training", "inference"))
        accuracies = [
            text
            for stage in ("replaced", "tuned")
            for text in (_accuracy(found[stage]), _gain(cell, found[stage]))
        ]
        rows.append((title(cell), "0" if cell == EXACT else errors, *accuracies, *times))
    return _table(header, rows)


def _places_table(result: dict[str, Any]) -> str:
    rows = [
        (
            title(cell),
            *(_points(places[place]) for place in PLACES),
            _points(result["cells"][cell]["replaced"]),
        )
        for cell, places in result["places"].items()
    ]
    return _table(("cell", *PLACES, "all three"), rows)


def _accuracy(found: dict[str, Any] | None) -> str:
    return f"{found['accuracy']:.2%}" if found else DIVERGED


def _gain(cell: str, found: dict[str, Any] | None) -> str:
    return _points(found) if found and cell != EXACT else ""


def _points(found: dict[str, Any]) -> str:
    seeds = [100 * value for value in found["seeds"]]
    mean, error = 100 * found["mean"], 100 * found["standard_error"]
    return f"{mean:+.2f} ± {error:.2f} ({min(seeds):+.2f} .. {max(seeds):+.2f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def picture(result: dict[str, Any]) -> Any:
    """A Figure of what each cell costs, before and after training on, and of what it costs in one place."""
    # Imported here, and without pyplot, for the reasons that plots.py has.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    cells = [cell for cell in result["cells"] if cell != EXACT]
    stages = {"replaced": "replaced", "tuned": f"and trained {result['settings']['tune_steps']} steps more"}
    for number, (stage, label) in enumerate(stages.items()):
        found = [result["cells"][cell][stage] for cell in cells]
        _draw(left, found, 0.2 * number - 0.1, f"C{number}", label)
    left.set_title("all three places, against exact activations trained as long", fontsize=9)
    for number, place in enumerate(PLACES):
        found = [places[place] for places in result["places"].values()]
        _draw(right, found, 0.2 * (number - 1), f"C{number + 2}", place)
    right.set_title("in one place alone, replaced", fontsize=9)
    for axes, shown in ((left, cells), (right, result["places"])):
        labels = [title(cell).replace(", ", ",\n") for cell in shown]
        axes.set_xticks(range(len(shown)), labels, fontsize=7.5)
        axes.axhline(0.0, color="black", linewidth=1)
        axes.set_ylabel("accuracy gained, points")
        axes.grid(axis="y", alpha=0.3)
        axes.legend()
    return figure


def _draw(axes: Any, found: Sequence[dict[str, Any] | None], shift: float, color: str, label: str) -> None:
    """Means with their standard errors, and small dots for the seeds; nothing for a cell that diverged."""
    points = [(position + shift, one) for position, one in enumerate(found) if one]
    axes.errorbar(
        [x for x, _ in points],
        [100 * one["mean"] for _, one in points],
        [100 * one["standard_error"] for _, one in points],
        fmt="o",
        capsize=3,
        color=color,
        label=label,
    )
    dots = [(x, 100 * value) for x, one in points for value in one["seeds"]]
    axes.plot([x for x, _ in dots], [y for _, y in dots], ".", markersize=3, color=color, alpha=0.5)
