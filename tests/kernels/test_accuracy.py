"""How far results are from those in float64, against how far PyTorch's own are; elementary functions.

The rule, for every result and every gradient, with the error of a tensor being its largest:

    error of the kernel <= 2 * error of PyTorch in that dtype + half an ulp of the largest element

The last term is what even a correctly rounded result loses (PyTorch's error can be zero by luck). Errors
are the median of several draws: where a pre-activation comes within rounding of a kink, that draw compares
two different derivatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import pytest
import torch
from support_compare import at
from support_ops import (
    ACTIVATIONS,
    CELLS,
    NORMALISED,
    Case,
    LayerCall,
    make_call,
    ops,
    output_activation_call,
    run_layer,
    run_reference,
)
from support_torch import formula, run_nn_lstm
from torch import Tensor

from customlstm import Cell, PiecewiseLinear

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RESULTS = ("output", "h_n", "c_n")
Runner = Callable[[LayerCall], dict[str, Tensor]]


def run_formula(call: LayerCall) -> dict[str, Tensor]:
    return run_layer(call, formula, RESULTS)


def check_rule(calls: Sequence[LayerCall], theirs: Runner, what: object) -> None:
    """Asserts the rule over the draws ``calls``, all of the same sizes."""
    ours_errors: dict[str, list[float]] = {}
    theirs_errors: dict[str, list[float]] = {}
    noise: dict[str, float] = {}
    places: dict[str, str] = {}
    for call in calls:
        truth = run_layer(call.to(torch.float64), ops.lstm_layer_reference, RESULTS)
        ours, other = run_layer(call, results=RESULTS), theirs(call)
        assert list(ours) == list(other) == list(truth)
        for name, expected in truth.items():
            assert ours[name].dtype == other[name].dtype == call.input.dtype
            errors = (ours[name].double() - expected).abs()
            ours_errors.setdefault(name, []).append(errors.max().item())
            theirs_errors.setdefault(name, []).append((other[name].double() - expected).abs().max().item())
            half_ulp = torch.finfo(call.input.dtype).eps / 2 * expected.abs().max().item()
            noise[name] = max(half_ulp, noise.get(name, 0.0))
            places[name] = str(at(errors, int(errors.argmax())))
    wrong = []
    for name, mine in ours_errors.items():
        allowed = 2 * median(theirs_errors[name]) + noise[name]
        if not median(mine) <= allowed:
            wrong.append(
                f"  {name}: error {median(mine):.3g}, PyTorch's is {median(theirs_errors[name]):.3g}, "
                f"allowed {allowed:.3g}; in the last draw worst at {places[name]}"
            )
    assert not wrong, f"{what}\n" + "\n".join(wrong)


def draws(case: Case, count: int) -> list[LayerCall]:
    return [make_call(dataclasses.replace(case, seed=seed)) for seed in range(count)]


SIZES = {
    "small": Case(12, 8, 24, 48),
    "no bias": Case(12, 8, 24, 48, bias=False),
    "projected, both directions": Case(12, 8, 24, 40, 17, bidirectional=True),
    # what sums over thousands of rows, and over thousands of gates, lose
    "many rows": Case(200, 64, 16, 32),
    "wide": Case(12, 16, 256, 512),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
def test_standard_cell_against_nn_lstm(sizes: str, dtype: torch.dtype) -> None:
    case = dataclasses.replace(SIZES[sizes], dtype=dtype)
    check_rule(draws(case, 1 if sizes in ("many rows", "wide") else 5), run_nn_lstm, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
def test_standard_cell_against_the_formula(sizes: str, dtype: torch.dtype) -> None:
    case = dataclasses.replace(SIZES[sizes], dtype=dtype)
    check_rule(draws(case, 1 if sizes in ("many rows", "wide") else 5), run_formula, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_every_activation_against_the_formula(cell: str, dtype: torch.dtype) -> None:
    case = Case(8, 8, 16, 32, cell=cell, dtype=dtype, gain=0.3 if cell.endswith("gate") else 1.0)
    # How little a product varies before it is normalised, and so what roundings count, is each draw's luck.
    check_rule(draws(case, 15 if cell in NORMALISED else 5), run_formula, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [1.0, 30.0, 1000.0])
def test_knots_far_from_zero(shift: float, dtype: torch.dtype) -> None:
    """A steep function around ``shift``, evaluated at values that the dtype holds exactly."""
    function = PiecewiseLinear([shift - 1, shift - 0.25, shift + 0.5, shift + 1], [0.0, 1.0, -1.0, 2.0])
    values = torch.linspace(shift - 2, shift + 2, 256, dtype=torch.float64).to(dtype).view(4, 64)
    call = output_activation_call(function.encode(), values)
    check_rule([call], run_formula, f"knots around {shift}")


# --- elementary functions ---

Exact = Callable[[np.ndarray], np.ndarray]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# Function and derivative, to be evaluated in a wider type; then the bound on the value in ulps of the
# value, and that on the derivative in ulps of 1, both for float32 and float64 and every instruction set.
# Measured over the ranges below: sigmoid 2.32, tanh 2.71, elu 1.41, softsign 2.00, softplus 3.41;
# derivatives 0.75, 2.72, 0.52, 1.75, 0.75.
FUNCTIONS: dict[str, tuple[Exact, Exact, float, float]] = {
    "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x), 2.4, 0.8),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(np.clip(x, -800, 800)) ** 2, 2.8, 2.8),
    "elu": (
        lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
        lambda x: np.where(x > 0, 1, np.exp(np.minimum(x, 0))),
        1.5,
        0.6,
    ),
    "softsign": (lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2, 2.1, 1.8),
    "softplus": (lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), _sigmoid, 3.5, 0.8),
}
# exp(x) is cut off below these; what is smaller than its value there is off by at most that value.
SMALLEST = {torch.float32: 1.65e-38, torch.float64: 3.4e-308}


def arguments_of(dtype: torch.dtype) -> Tensor:
    """float32: every 4093rd number there is below 2^127. float64: 600,000 random ones of all scales."""
    if dtype == torch.float32:
        patterns = torch.arange(0, 0x7F000000, 4093, dtype=torch.int32)
        positive = patterns.view(torch.float32)
        return torch.cat([positive, -positive])
    generator = torch.Generator().manual_seed(0)
    fraction = torch.rand(600_000, generator=generator, dtype=dtype) * 2 - 1
    exponent = torch.randint(-60, 11, (300_000,), generator=generator)
    return torch.cat([fraction[:300_000] * exponent.to(dtype).exp2(), fraction[300_000:] * 10])


def evaluate(name: str, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments, values and derivatives that the kernel computes; whole rows of 64."""
    call = output_activation_call(
        Cell(output_activation=name).encode()[1][8:], values[: len(values) // 64 * 64].view(-1, 64)
    )
    c_0 = call.c_0.requires_grad_()
    h_n = ops.lstm_layer(*call.arguments(), 2)[1]
    (derivative,) = torch.autograd.grad(h_n.sum(), c_0)
    return c_0.detach().flatten(), h_n.detach().flatten(), derivative.flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions(name: str, dtype: torch.dtype) -> None:
    wide = np.float64 if dtype == torch.float32 else np.longdouble
    if wide is np.longdouble and np.finfo(wide).eps > 1e-18:
        pytest.skip("this platform has no type wider than double to compare with")
    value, derivative, value_bound, derivative_bound = FUNCTIONS[name]
    x, y, dy = (t.numpy() for t in evaluate(name, arguments_of(dtype)))
    with np.errstate(over="ignore", under="ignore"):
        exact, exact_derivative = value(x.astype(wide)), derivative(x.astype(wide))
    ulp = np.maximum(np.spacing(np.abs(exact).astype(x.dtype)), np.finfo(x.dtype).smallest_subnormal)
    excess = np.abs(y.astype(wide) - exact) - SMALLEST[dtype]
    worst = int(np.nanargmax(excess / ulp))
    assert not np.isnan(y).any() and not np.isnan(dy).any()
    assert excess[worst] / ulp[worst] <= value_bound, (
        f"{name}({x[worst]!r}) is {y[worst]!r}, {excess[worst] / ulp[worst]} ulp off"
    )
    off = np.abs(dy.astype(wide) - exact_derivative) / np.finfo(x.dtype).eps
    worst = int(off.argmax())
    assert off[worst] <= derivative_bound, (
        f"{name}'({x[worst]!r}) is {dy[worst]!r}, {off[worst]} ulp of 1 off"
    )


def test_the_standard_cell_has_the_same_functions() -> None:
    """The cell that is specialised at compile time against the one that reads its activations at run time."""
    standard, configurable = Cell(), Cell("sigmoid", "tanh", ("scaled_tanh", {"alpha": 1.0, "beta": 1.0}))
    for dtype in (torch.float32, torch.float64):
        call = make_call(Case(9, 13, 5, 33, bidirectional=True, dtype=dtype))
        first = ops.lstm_layer(*call.arguments(), 1)
        second = ops.lstm_layer(*call.replace(cell_args=configurable.encode()[1]).arguments(), 1)
        assert call.cell_args == standard.encode()[1] != configurable.encode()[1]
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)


def test_float64_is_the_formula() -> None:
    """The reference, against the equations written out a second time."""
    for cell in CELLS:
        for case in (Case(cell=cell, gain=0.3), Case(3, 2, 2, 9, 4, bidirectional=True, cell=cell, gain=0.3)):
            call = make_call(case)
            actual, expected = run_reference(call), run_layer(call, formula)
            for name, value in expected.items():
                error = (actual[name] - value).abs().max().item()
                assert error < 1e-13, f"{case}: {name} is {error} off"


def test_activations_are_all_there() -> None:
    assert {name for name in ACTIVATIONS if not isinstance(ACTIVATIONS[name], PiecewiseLinear)} >= set(
        FUNCTIONS
    )
