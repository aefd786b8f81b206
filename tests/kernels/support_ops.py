"""Calls of the operators with everything that can vary, run on one kernel or another."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from customlstm import Cell, PiecewiseLinear
from customlstm.activations import KINDS, Activation
from customlstm.cells import own_parameters

SAVE_NOTHING, SAVE_STATES, SAVE_FOR_BACKWARD = 0, 1, 2

ops = torch.ops.customlstm

# Every activation; coefficients other than the defaults, so that a kernel which ignores them fails.
COEFFICIENTS = {
    "affine": (0.7, -0.2),
    "leaky_relu": (0.15,),
    "thresholded_relu": (0.3,),
    "scaled_tanh": (1.3, 0.6),
    "hard_sigmoid": (0.25, 0.5),  # alpha a power of 2: its kinks are at the same numbers with and without fma
    "elu": (0.8,),
    "hard_tanh": (-0.6, 0.9),
}
ACTIVATIONS: dict[str, Activation | PiecewiseLinear] = {
    **{name: Activation(name, *COEFFICIENTS.get(name, ())) for name in KINDS},
    "piecewise linear": PiecewiseLinear([-1.5, -0.5, 0.0, 0.4, 2.0], [-0.9, -0.6, 0.1, 0.3, 0.8]),
    "two knots": PiecewiseLinear([-1.0, 1.0], [0.2, 0.6]),
}
# The clips hold for some values of the calls made here, and not for others.
OPTIONS: dict[str, Cell] = {
    "peephole": Cell(peephole=True),
    "coupled gates": Cell(coupled_gates=True),
    "gate clip": Cell(gate_clip=0.6),
    "cell clip": Cell(cell_clip=0.5),
    "peephole and coupled gates": Cell("sigmoid", "softsign", peephole=True, coupled_gates=True),
    "peephole and clips": Cell(peephole=True, gate_clip=0.75, cell_clip=0.5),
    "all options": Cell(
        "hard_sigmoid",
        ACTIVATIONS["piecewise linear"],
        peephole=True,
        coupled_gates=True,
        gate_clip=0.75,
        cell_clip=0.5,
    ),
    "layer norm": Cell(layer_norm=("input", "recurrent", "cell")),
    "layer norm of the input": Cell("hard_sigmoid", layer_norm="input"),
    "layer norm of the state and peephole": Cell(peephole=True, layer_norm="recurrent"),
    "layer norm of the cell and clips": Cell(gate_clip=0.75, cell_clip=0.5, layer_norm="cell"),
    "layer norm and all options": Cell(
        "sigmoid",
        "softsign",
        "scaled_tanh",
        peephole=True,
        coupled_gates=True,
        gate_clip=1.5,
        cell_clip=0.5,
        layer_norm=("input", "recurrent", "cell"),
    ),
}
NORMALISED = [name for name, cell in OPTIONS.items() if cell.layer_norm]
CELLS: dict[str, Cell] = {
    "standard": Cell(),
    **OPTIONS,
    "piecewise linear": Cell("hard_sigmoid", ACTIVATIONS["piecewise linear"], "softsign"),
    **{
        f"{name} {role}": Cell(**{f"{role}_activation": function})
        for name, function in ACTIVATIONS.items()
        for role in ("gate", "cell", "output")
    },
}


@dataclass(frozen=True)
class Case:
    """Sizes and options of one layer call.

    ``layout`` is "padded", "packed", "lengths" (any order, some zero if the batch allows) or "no lengths"
    (all zero); ``resets`` is "none", "first" (t = 0), "every" or "some"; ``cell`` a key of CELLS;
    ``dropout`` the rate of the recurrent mask, or 0 for none; ``zoneout`` "none", or of "h", "c" or "both"
    the "masks" or the "rates", as "c masks". ``gain`` scales the weights: gates that are not bounded need a
    small one, or the states explode and every rounding with them.
    """

    steps: int = 7
    batch: int = 5
    features: int = 3
    hidden: int = 8
    projection: int = 0
    bias: bool = True
    bidirectional: bool = False
    layout: str = "padded"
    resets: str = "none"
    given: bool = True
    cell: str = "standard"
    gain: float = 1.0
    dropout: float = 0.0
    zoneout: str = "none"
    seed: int = 0
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        sizes = f"T{self.steps} B{self.batch} L{self.features} H{self.hidden}"
        options = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)[4:]
            if getattr(self, field.name) != field.default
        ]
        return " ".join([sizes, *options])


@dataclass(frozen=True)
class LayerCall:
    """The arguments of ``lstm_layer`` but ``save``, in its order."""

    input: Tensor
    h_0: Tensor | None
    c_0: Tensor | None
    weights: list[Tensor]
    batch_sizes: Tensor | None
    lengths: Tensor | None
    resets: Tensor | None
    recurrent_mask: Tensor | None
    zoneout_h: Tensor | None
    zoneout_c: Tensor | None
    cell: str
    cell_args: list[float]
    bias: bool
    projection: bool
    bidirectional: bool
    recurrent_scale: float
    zoneout_h_rate: float
    zoneout_c_rate: float

    def arguments(self) -> list[Any]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    def replace(self, **changes: Any) -> LayerCall:
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype) -> LayerCall:
        """The same call with every floating tensor converted."""

        def convert(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(dtype)

        return self.replace(
            input=convert(self.input),
            h_0=convert(self.h_0),
            c_0=convert(self.c_0),
            weights=[convert(w) for w in self.weights],
        )

    def leaves(self) -> dict[str, Tensor]:
        """The differentiable arguments by name, absent ones left out."""
        found = {"input": self.input, "h_0": self.h_0, "c_0": self.c_0}
        found |= dict(zip(self.weight_names(), self.weights, strict=True))
        return {name: x for name, x in found.items() if x is not None}

    def weight_names(self, bidirectional: bool | None = None) -> list[str]:
        """In the order of ``weights``; of one direction only with ``bidirectional=False``."""
        names = [
            "w_ih",
            "w_hh",
            *(["b_ih", "b_hh"] if self.bias else []),
            *(["w_hr"] if self.projection else []),
        ]
        names += own_parameters(Cell.decode(self.cell, self.cell_args))
        both = self.bidirectional if bidirectional is None else bidirectional
        return names + [f"{name}_reverse" for name in names] if both else names


def weight_shapes(case: Case) -> list[tuple[int, ...]]:
    gate_rows, state = 4 * case.hidden, case.projection or case.hidden
    shapes: list[tuple[int, ...]] = [(gate_rows, case.features), (gate_rows, state)]
    shapes += [(gate_rows,)] * 2 if case.bias else []
    shapes += [(case.projection, case.hidden)] if case.projection else []
    return shapes + [(size * case.hidden,) for size in own_parameters(CELLS[case.cell]).values()]


def make_call(case: Case) -> LayerCall:
    """Random arguments of the case's sizes; the same ones for the same case, in any process.

    Numbers are drawn in float64 and rounded to the dtype, so that a case holds nearly equal numbers in
    every dtype.
    """
    plain = str(dataclasses.replace(case, dtype=torch.float64))
    generator = torch.Generator().manual_seed(zlib.crc32(plain.encode()))

    def randn(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(case.dtype)

    directions, state = 2 if case.bidirectional else 1, case.projection or case.hidden
    weights = []
    for _ in range(directions):
        for shape in weight_shapes(case):
            weights.append(randn(*shape, scale=case.gain * (0.5 if len(shape) == 1 else shape[1] ** -0.5)))
    lengths = _lengths(case, generator)
    batch_sizes = None
    input = randn(case.steps, case.batch, case.features)
    if case.layout == "packed":
        assert lengths is not None
        lengths = lengths.clamp(min=1).sort(descending=True).values if case.steps else lengths
        steps = int(lengths.max()) if case.batch else 0
        valid = torch.arange(steps).unsqueeze(1) < lengths
        batch_sizes, lengths = valid.sum(1), None
        input = input[:steps][valid]
    else:
        steps = case.steps
    resets = None
    if case.resets != "none":
        resets = torch.rand(steps, case.batch, generator=generator) < (0.3 if case.resets == "some" else 0.0)
        resets[: {"first": 1, "every": steps}.get(case.resets, 0)] = True
    h_0 = c_0 = None
    if case.given or case.layout == "packed":
        h_0 = randn(directions, case.batch, state)
        c_0 = randn(directions, case.batch, case.hidden)
    mask = None
    if case.dropout:
        mask = torch.rand(directions, case.batch, state, generator=generator) >= case.dropout
    scale = 1.0 / (1.0 - case.dropout) if case.dropout < 1 else 1.0
    zoneout, rates = _zoneout(case, input, generator)
    name, cell_args = CELLS[case.cell].encode()
    return LayerCall(
        input, h_0, c_0, weights, batch_sizes, lengths, resets, mask, *zoneout, name, cell_args,
        case.bias, case.projection > 0, case.bidirectional, scale, *rates,
    )  # fmt: skip


def _zoneout(
    case: Case, input: Tensor, generator: torch.Generator
) -> tuple[list[Tensor | None], list[float]]:
    masks: list[Tensor | None] = [None, None]
    rates = [0.0, 0.0]
    if case.zoneout == "none":
        return masks, rates
    which, how = case.zoneout.split(" ")
    directions = 2 if case.bidirectional else 1
    for k, (state, size) in enumerate([("h", case.projection or case.hidden), ("c", case.hidden)]):
        if which not in (state, "both"):
            continue
        if how == "rates":
            rates[k] = (0.3, 0.15)[k]
        else:
            masks[k] = torch.rand(*input.shape[:-1], directions * size, generator=generator) < 0.3
    return masks, rates


ZONEOUTS = [f"{which} {how}" for which in ("h", "c", "both") for how in ("masks", "rates")]


def _lengths(case: Case, generator: torch.Generator) -> Tensor | None:
    if case.layout == "padded":
        return None
    if case.layout == "no lengths":
        return torch.zeros(case.batch, dtype=torch.int64)
    lengths = torch.randint(0, case.steps + 1, (case.batch,), generator=generator)
    if case.batch > 1:
        lengths[case.batch // 2] = 0
        lengths[-1] = case.steps
    return lengths


def output_activation_call(cell_args: Sequence[float], values: Tensor) -> LayerCall:
    """One step that hands ``values`` [rows, H] to an activation bit by bit: h_n is its value, and with a
    gradient of 1 the gradient of c_0 is its derivative.

    The gates are the constant 1, and the cell input is 0 since all weights are: c_1 = 1 * c_0 + 1 * 0.
    """
    rows, hidden = values.shape
    zeros = values.new_zeros
    one, identity = [3.0, 0.0, 1.0, 0.0], [12.0, 0.0, 0.0, 0.0]
    return LayerCall(
        zeros(1, rows, 1), zeros(1, rows, hidden), values.unsqueeze(0),
        [zeros(4 * hidden, 1), zeros(4 * hidden, hidden)],
        None, None, None, None, None, None, "lstm", [*one, *identity, *cell_args], False, False, False,
        1.0, 0.0, 0.0,
    )  # fmt: skip


def gradients_given(results: dict[str, Tensor]) -> list[Tensor]:
    """A gradient for every result, normally distributed; it depends on the result's name and shape alone."""
    given = []
    for name, y in results.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        given.append(torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype))
    return given


def differentiate(results: dict[str, Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """``results``, and the gradient of every leaf that they depend on."""
    connected = {name: y for name, y in results.items() if y.requires_grad}
    gradients = torch.autograd.grad(
        list(connected.values()), list(leaves.values()), gradients_given(connected), allow_unused=True
    )
    found = {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True) if g is not None}
    return {name: y.detach() for name, y in results.items()} | found


RESULTS = ("output", "h_n", "c_n", "c_all")


def run_layer(
    call: LayerCall,
    operator: Callable[..., Sequence[Tensor]] | None = None,
    results: Sequence[str] = RESULTS,
) -> dict[str, Tensor]:
    """Results of an operator (default: the fused one), and the gradient of every argument."""
    operator = ops.lstm_layer if operator is None else operator
    leaves = {name: x.detach().requires_grad_() for name, x in call.leaves().items()}
    weights = [leaves[name] for name in call.weight_names()]
    fresh = call.replace(input=leaves["input"], h_0=leaves.get("h_0"), c_0=leaves.get("c_0"), weights=weights)
    found = dict(zip(RESULTS, operator(*fresh.arguments(), SAVE_FOR_BACKWARD), strict=False))
    return differentiate({name: found[name] for name in results}, leaves)


def run_reference(call: LayerCall) -> dict[str, Tensor]:
    """The same of the reference operator."""
    return run_layer(call, ops.lstm_layer_reference)


def run_cell(call: LayerCall, operator: Callable[..., Sequence[Tensor]] | None = None) -> dict[str, Tensor]:
    """h_1, c_1 and c_all of a single step: the first step and direction of a layer call that has states."""
    operator = ops.lstm_cell if operator is None else operator
    names = call.weight_names(bidirectional=False)
    leaves = {"input": call.input[0], "h_0": call.h_0[0], "c_0": call.c_0[0]}
    leaves |= dict(zip(names, call.weights[: len(names)], strict=True))
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    results = operator(
        leaves["input"], leaves["h_0"], leaves["c_0"], [leaves[name] for name in names],
        call.cell, call.cell_args, call.bias, call.projection, SAVE_FOR_BACKWARD,
    )  # fmt: skip
    # Of a single step c_all is c_1 in the accumulation dtype, without a gradient of its own.
    return differentiate(dict(zip(("h_1", "c_1"), results, strict=False)), leaves) | {
        "c_all": results[2].detach()
    }
