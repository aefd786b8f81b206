"""Cells of a few straight lines in place of sigmoid and tanh: which there are, how far off, at what cost."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .recurrent import FITS, SHORTCUTS, parse_cell

EXACT = "plain"

_TITLES = {
    EXACT: "exact",
    "hard": "hard_sigmoid, hard_tanh",
    # Gates as close as 4 knots come, and in the middle the slope of tanh.
    "pwl:4,hard_tanh": "4 knots, hard_tanh",
}

PLACES = {
    "gates": "{gate},tanh,tanh",
    "cell input": "sigmoid,{other},tanh",
    "output": "sigmoid,tanh,{other}",
}
"""What is replaced, and the --cell that replaces nothing else."""

COARSE = 4
"""Up to this many knots, what each place costs alone is measured too."""

_GRID = 1 << 16


def replacements(knots: list[int]) -> list[str]:
    """The cells that take the place of the exact one, as `parse_cell` reads them, the coarsest first."""
    return [*list(_TITLES)[1:], *(f"pwl:{count}" for count in sorted(set(knots)))]


def title(cell: str) -> str:
    """What tables call a cell."""
    return _TITLES.get(cell) or f"{cell.removeprefix('pwl:')} knots"


def is_coarse(cell: str) -> bool:
    """Whether it is the same everywhere, and costs enough that the place matters."""
    return cell == "hard" or (cell not in _TITLES and int(cell.removeprefix("pwl:")) <= COARSE)


def in_one_place(cell: str, place: str) -> str:
    """The --cell that has the activations of `cell` in that one of `PLACES`, and the exact ones elsewhere."""
    gate, other, _ = SHORTCUTS.get(cell, (cell, cell, cell))
    return PLACES[place].format(gate=gate, other=other)


def largest_errors(cell: str) -> dict[str, float]:
    """The largest error of `cell` in place of sigmoid and of tanh, within the bounds of the fits."""
    activations = parse_cell(cell)
    found = {}
    for place, part in (("gate", activations.gate_activation), ("cell", activations.cell_activation)):
        name, bounds = FITS[place]
        # The error peaks between two knots or at one of them.
        knots = torch.tensor(getattr(part, "x", ()), dtype=torch.float64)
        x = torch.cat([torch.linspace(*bounds, _GRID + 1, dtype=torch.float64), knots])
        found[name] = float((part(x) - getattr(torch, name)(x)).abs().max())
    return found


def difference(runs: list[Tensor], exact: list[Tensor]) -> dict[str, Any]:
    """How much more accurate `runs` are than the `exact` ones of equal seeds, on the same reviews.

    Args:
        runs, exact: for each seed bool [N], whether the verdict on each review is right; the same order.

    Returns:
        "mean"; "standard_error" of that over the reviews, which are judged by both, so that what is hard for
        both does not count; and the difference of each seed, as "seeds". All as fractions.
    """
    each = torch.stack([ours.double() - theirs.double() for ours, theirs in zip(runs, exact, strict=True)])
    per_review = each.mean(0)
    return {
        "mean": float(per_review.mean()),
        "standard_error": float(per_review.std()) / math.sqrt(per_review.numel()),
        "seeds": each.mean(1).tolist(),
    }
