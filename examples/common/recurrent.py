"""The recurrent layer of an example: `customlstm.LSTM` with the cell of --cell, or `nn.LSTM`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import customlstm

MODELS = ("customlstm", "nn.LSTM")

SHORTCUTS = {
    "plain": ("sigmoid", "tanh", "tanh"),
    "hard": ("hard_sigmoid", "hard_tanh", "hard_tanh"),
}

CELL_HELP = (
    "the cell of customlstm.LSTM: plain (sigmoid and tanh, what nn.LSTM has), hard (hard_sigmoid and "
    "hard_tanh), pwl:K (piecewise-linear fits with K knots), or GATE,CELL,OUTPUT (without OUTPUT it is CELL, "
    "without CELL it is tanh), each the name of an activation of customlstm such as relu or softsign, with "
    "its coefficients after colons (hard_sigmoid:0.2:0.5), or pwl:K"
)

# What a piecewise-linear activation fits in each place, and where: beyond, both are flat to within 0.1 %.
FITS = {"gate": ("sigmoid", (-7.0, 7.0)), "cell": ("tanh", (-4.0, 4.0)), "output": ("tanh", (-4.0, 4.0))}


def _activation(text: str, place: str) -> Any:
    """One part of a --cell: `relu`, `hard_sigmoid:0.2:0.5` or `pwl:16`; `place` is gate, cell or output."""
    name, *numbers = text.strip().split(":")
    if name == "pwl":
        try:
            (knots,) = (int(number) for number in numbers)
        except ValueError:
            raise ValueError(f"expected pwl:K with a whole number of knots K, got {text!r}") from None
        function, bounds = FITS[place]
        return customlstm.PiecewiseLinear.fit(function, knots=knots, bounds=bounds)
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        raise ValueError(f"expected NAME, NAME:ALPHA or NAME:ALPHA:BETA, got {text!r}") from None
    if len(values) > 2:
        raise ValueError(f"expected at most two coefficients, got {text!r}")
    return (name, dict(zip(("alpha", "beta"), values, strict=False))) if values else name


def parse_cell(text: str) -> customlstm.Cell:
    """Builds the cell that --cell describes (see `CELL_HELP`).

    Raises ValueError for a text that describes none, an unknown activation included.
    """
    parts = SHORTCUTS.get(text) or tuple(text.split(","))
    if len(parts) > 3:
        raise ValueError(f"expected at most GATE,CELL,OUTPUT, got {text!r}")
    if len(parts) == 1:
        parts = (parts[0],) * 3 if parts[0].startswith("pwl") else (parts[0], "tanh", "tanh")
    elif len(parts) == 2:
        parts = (*parts, parts[1])
    gate, cell, output = (_activation(part, place) for part, place in zip(parts, FITS, strict=True))
    return customlstm.Cell(gate_activation=gate, cell_activation=cell, output_activation=output)


def build_layer(
    model: str, input_size: int, hidden_size: int, *, cell: str, backend: str, **options: Any
) -> nn.Module:
    """Builds the recurrent layer. `options` are those that `nn.LSTM` and `customlstm.LSTM` share.

    Parameter names, shapes and initial values are equal in both: one seed starts both from the same weights,
    and a state_dict of one loads into the other.
    """
    if model == "nn.LSTM":
        return nn.LSTM(input_size, hidden_size, **options)
    return customlstm.LSTM(input_size, hidden_size, **options, cell=parse_cell(cell), backend=backend)


def kernel(layer: nn.Module) -> str:
    """What runs `layer` where its weights are, in words: a fused kernel, or why there is none."""
    if isinstance(layer, nn.LSTM):
        return "PyTorch's own LSTM"
    weight = next(layer.parameters())
    found = customlstm.explain(
        layer, torch.zeros(1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype)
    )
    return f"{found.backend} ({found.kernel})" + (f", because {found.reason}" if found.reason else "")
