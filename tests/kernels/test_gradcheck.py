"""Gradients against finite differences, through the fused operators: first and second, for every option."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import pytest
import torch
from support_ops import CELLS, OPTIONS, ZONEOUTS, Case, LayerCall, make_call, ops
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

import customlstm

Function = Callable[..., tuple[Tensor, ...]]


def layer_function(call: LayerCall) -> tuple[Function, tuple[Tensor, ...]]:
    """output, h_n, c_n and c_all as a function of every differentiable argument, and the arguments."""
    leaves = call.leaves()
    names = list(leaves)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        weights = [given[name] for name in call.weight_names()]
        fresh = call.replace(
            input=given["input"], h_0=given.get("h_0"), c_0=given.get("c_0"), weights=weights
        )
        return ops.lstm_layer(*fresh.arguments(), 2)[:4]

    return function, tuple(x.detach().requires_grad_() for x in leaves.values())


SMALL = Case(3, 2, 2, 3)


@pytest.mark.parametrize("cell", CELLS)
def test_activations(cell: str) -> None:
    # Gates that are not bounded need small weights, or finite differences lose their digits.
    gain = 0.5 if cell.endswith("gate") else 1.0
    function, leaves = layer_function(make_call(dataclasses.replace(SMALL, cell=cell, gain=gain)))
    assert gradcheck(function, leaves)


@pytest.mark.parametrize("layout", ["padded", "packed", "lengths", "no lengths"])
@pytest.mark.parametrize("resets", ["none", "first", "every", "some"])
def test_layouts_and_resets(layout: str, resets: str) -> None:
    for projection, bias, given in [(0, True, True), (2, False, False)]:
        case = Case(3, 3, 2, 3, projection, bias, True, layout, resets, given, "piecewise linear")
        function, leaves = layer_function(make_call(case))
        assert gradcheck(function, leaves)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("projection", [0, 2])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_options(bidirectional: bool, projection: int, bias: bool, given: bool) -> None:
    case = Case(3, 2, 2, 3, projection, bias, bidirectional, given=given)
    function, leaves = layer_function(make_call(case))
    assert gradcheck(function, leaves)


@pytest.mark.parametrize("projection", [0, 2])
@pytest.mark.parametrize("layout", ["padded", "packed", "lengths"])
def test_recurrent_masks(layout: str, projection: int) -> None:
    case = Case(3, 3, 2, 3, projection, True, True, layout, "some", cell="peephole", dropout=0.4)
    function, leaves = layer_function(make_call(case))
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("projection", [0, 2])
@pytest.mark.parametrize("layout", ["padded", "packed", "lengths"])
@pytest.mark.parametrize("zoneout", ["both masks", "both rates"])
def test_zoneout(layout: str, projection: int, zoneout: str) -> None:
    case = Case(3, 3, 2, 3, projection, True, True, layout, "some", cell="peephole", zoneout=zoneout)
    function, leaves = layer_function(make_call(case))
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


def drawn_cell(draw: random.Random) -> customlstm.Cell:
    """Smooth activations, since finite differences step over kinks; clips wide enough to hold seldom."""
    smooth = ["sigmoid", "tanh", "softsign", "softplus", "scaled_tanh"]
    return customlstm.Cell(
        draw.choice(["sigmoid", "tanh", "softsign"]),
        draw.choice(smooth),
        draw.choice([*smooth, "identity"]),
        peephole=draw.random() < 0.5,
        coupled_gates=draw.random() < 0.4,
        gate_clip=draw.choice([None, 1.5, 2.5]),
        cell_clip=draw.choice([None, 0.9, 1.7]),
        layer_norm=[place for place in ("input", "recurrent", "cell") if draw.random() < 0.3],
    )


@pytest.mark.parametrize("tenth", range(10))
def test_random_combinations_of_options(tenth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(20 * tenth, 20 * tenth + 20):
        draw = random.Random(seed)
        monkeypatch.setitem(CELLS, "drawn", drawn_cell(draw))
        case = Case(
            draw.randint(1, 4), draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 4),
            projection=draw.choice([0, 0, 2]),
            bias=draw.random() < 0.7,
            bidirectional=draw.random() < 0.5,
            layout=draw.choice(["padded", "packed", "lengths"]),
            resets=draw.choice(["none", "some"]),
            given=draw.random() < 0.7,
            cell="drawn",
            gain=0.7,
            dropout=draw.choice([0.0, 0.4]),
            zoneout=draw.choice(["none", *ZONEOUTS]),
            seed=seed,
        )  # fmt: skip
        function, leaves = layer_function(make_call(case))
        assert gradcheck(function, leaves), f"{case} {CELLS['drawn']}"


@pytest.mark.parametrize("frozen", ["input", "h_0", "c_0", "weights"])
def test_some_arguments_without_gradient(frozen: str) -> None:
    call = make_call(Case(3, 2, 2, 3, 2, bidirectional=True))
    function, leaves = layer_function(call)
    for name, x in zip(call.leaves(), leaves, strict=True):
        if name == frozen or (frozen == "weights" and name[1:2] == "_" and name[0] in "wb"):
            x.requires_grad_(False)
    assert gradcheck(function, leaves)


@pytest.mark.parametrize("projection", [0, 2])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("cell", ["standard", "piecewise linear", "softplus output", *OPTIONS])
def test_single_step(projection: int, bias: bool, cell: str) -> None:
    call = make_call(Case(1, 2, 2, 3, projection, bias, cell=cell))
    options = (call.cell, call.cell_args, bias, projection > 0, 2)
    leaves = [call.input[0], call.h_0[0], call.c_0[0], *call.weights]
    leaves = tuple(x.detach().requires_grad_() for x in leaves)
    assert gradcheck(lambda x, h, c, *weights: ops.lstm_cell(x, h, c, list(weights), *options)[:2], leaves)
    assert gradgradcheck(
        lambda x, h, c, *weights: ops.lstm_cell(x, h, c, list(weights), *options)[:2], leaves
    )


# --- whole modules ---


def check_module(
    module: customlstm.LSTM,
    run: Callable[..., tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    check: Callable[..., bool],
) -> None:
    """``check`` for ``run(module, *inputs)`` as a function of the inputs and of every parameter."""
    names = [name for name, _ in module.named_parameters()]
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    leaves = tuple(p.detach().clone().requires_grad_() for p in module.parameters())

    class Caller(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
            return run(self.inner, *values)

    caller = Caller()

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        parameters = {f"inner.{n}": v for n, v in zip(names, values[len(inputs) :], strict=True)}
        return functional_call(caller, parameters, values[: len(inputs)])

    assert check(function, (*inputs, *leaves))


def outputs(module: customlstm.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    output, (h_n, c_n) = module(x, (h, c))
    return output, h_n, c_n


def states(module: customlstm.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    return module.states(x, (h, c))


def ragged(module: customlstm.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    resets = torch.tensor([[False, True], [True, False], [False, False]])
    return module.states(x, (h, c), lengths=torch.tensor([2, 3]), resets=resets)


def packed(module: customlstm.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    output, (h_n, c_n) = module(pack_padded_sequence(x, torch.tensor([2, 3]), enforce_sorted=False), (h, c))
    return output.data, h_n, c_n


RUNS = {"outputs": outputs, "states": states, "ragged states": ragged, "packed": packed}


def module_and_inputs(layers: int) -> tuple[customlstm.LSTM, tuple[Tensor, ...]]:
    cell = customlstm.Cell("sigmoid", "softsign", "scaled_tanh")  # smooth, for the second derivatives
    module = customlstm.LSTM(
        2, 3, layers, bidirectional=True, proj_size=2, dtype=torch.float64, cell=cell, backend="fused"
    )
    shapes = [(3, 2, 2), (2 * layers, 2, 2), (2 * layers, 2, 3)]
    return module, tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("run", RUNS)
def test_module(run: str) -> None:
    module, inputs = module_and_inputs(2)
    check_module(module, RUNS[run], inputs, gradcheck)


@pytest.mark.parametrize("run", RUNS)
def test_second_derivatives_of_a_module(run: str) -> None:
    module, inputs = module_and_inputs(1)
    check_module(module, RUNS[run], inputs, lambda *a: gradgradcheck(*a, fast_mode=True))


@pytest.mark.parametrize(
    "cell", ["standard", "elu cell", "softplus gate", "scaled_tanh output", "hard_sigmoid gate"]
)
def test_second_derivatives_of_a_layer(cell: str) -> None:
    function, leaves = layer_function(make_call(dataclasses.replace(SMALL, steps=2, cell=cell, gain=0.5)))
    assert gradgradcheck(function, leaves)


def test_second_derivatives_are_those_of_the_reference() -> None:
    """A gradient penalty, exactly."""
    call = make_call(Case(4, 3, 2, 5, 2, bidirectional=True, layout="lengths", resets="some"))
    found = []
    for operator in (ops.lstm_layer, ops.lstm_layer_reference):
        leaves = {name: x.detach().requires_grad_() for name, x in call.leaves().items()}
        weights = list(leaves.values())[3:]
        fresh = call.replace(input=leaves["input"], h_0=leaves["h_0"], c_0=leaves["c_0"], weights=weights)
        output = operator(*fresh.arguments(), 2)[0]
        (gradient,) = torch.autograd.grad(output.pow(2).sum(), leaves["input"], create_graph=True)
        penalty = (gradient.norm(dim=-1) - 1).pow(2).sum()
        found.append(torch.autograd.grad(penalty, list(leaves.values())))
    for name, a, b in zip(call.leaves(), *found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
