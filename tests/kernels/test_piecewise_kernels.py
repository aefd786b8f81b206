"""Piecewise-linear functions in the kernels against the reference, for numbers of knots around every limit.

csrc/cpu/piecewise.inl looks segments up in one register, in two, or one by one. A register has 16 or 8
floats, or 8 doubles, by instruction set, and there is one segment less than there are knots.
test_instruction_sets.py runs this file on each set.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from support_compare import assert_close, assert_same_bits
from support_ops import Case, make_call, ops, output_activation_call, run_layer, run_reference
from torch import Tensor

from customlstm import Cell, PiecewiseLinear

KNOTS = [2, 3, 8, 9, 10, 15, 16, 17, 18, 31, 32, 33, 34, 60]
DTYPES = [torch.float32, torch.float64]


def function(knots: int, seed: int = 0) -> PiecewiseLinear:
    """Knots at float32 numbers, of irregular distances; no segment has the slope of another one."""
    source = random.Random(f"{knots} {seed}")
    x = [0.0]
    while len(x) < knots:
        x.append(x[-1] + source.randint(1, 40) / 64)
    middle = x[knots // 2] - 1 / 64
    while True:
        found = PiecewiseLinear([t - middle for t in x], [source.randint(-128, 128) / 128 for _ in x])
        if len({round(slope, 4) for slope in found.slopes}) == knots - 1:
            return found


def arguments(f: PiecewiseLinear, dtype: torch.dtype) -> Tensor:
    """Rows whose neighbours lie in different segments: the knots, beside, between and beyond them."""
    x = torch.tensor(f.x, dtype=dtype)
    up, down = torch.full_like(x, torch.inf), torch.full_like(x, -torch.inf)
    between = torch.cat([(x[1:] + x[:-1]) / 2, x[-1:] + 1])
    beyond = torch.cat([x[:1] - 0.5, -(2.0 ** torch.arange(len(x) - 1))]).to(dtype)
    rows = [x, x.nextafter(up), x.nextafter(down), x.flip(0), between, beyond, -beyond]
    return torch.stack([*rows, torch.cat([x[len(x) // 2 :], x[: len(x) // 2]])])


def value_and_derivative(operator: str, f: PiecewiseLinear, values: Tensor) -> dict[str, Tensor]:
    call = output_activation_call(f.encode(), values)
    c_0 = call.c_0.requires_grad_()
    h_n = getattr(ops, operator)(*call.arguments(), 2)[1]
    (derivative,) = torch.autograd.grad(h_n, c_0, torch.ones_like(h_n))
    return {"value": h_n.detach()[0], "derivative": derivative[0]}


def compare(f: PiecewiseLinear, values: Tensor) -> dict[str, Tensor]:
    """The derivative is a slope, nothing is computed with it: so its bits are those of the reference."""
    actual = value_and_derivative("lstm_layer", f, values)
    expected = value_and_derivative("lstm_layer_reference", f, values)
    assert_same_bits({"derivative": actual["derivative"]}, {"derivative": expected["derivative"]}, f)
    accuracy = 8 * torch.finfo(values.dtype).eps
    assert_close(actual, expected, f, accuracy, accuracy)
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("knots", KNOTS)
def test_at_knots_beside_between_and_beyond(knots: int, dtype: torch.dtype) -> None:
    f = function(knots)
    found = compare(f, arguments(f, dtype))
    # Not only what the reference says: at each knot its value, and the slope to its right.
    y, slopes = (torch.tensor(numbers, dtype=dtype) for numbers in (f.y, [*f.slopes, f.slopes[-1]]))
    torch.testing.assert_close(found["value"][0], y)
    assert torch.equal(found["derivative"][0], slopes)
    assert torch.equal(found["derivative"][2, 1:], slopes[:-1])  # just below: to its left


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("knots", KNOTS)
def test_at_infinities_and_nan(knots: int, dtype: torch.dtype) -> None:
    """Beside finite arguments, whose lanes must not notice.

    The derivative at NaN is not compared: it is the slope of the first segment, in the reference of the last.
    """
    f, limit = function(knots), torch.finfo(dtype).max
    x = torch.tensor(f.x, dtype=dtype)
    bad = torch.tensor([torch.inf, -torch.inf, limit, -limit, 0.0, -0.0], dtype=dtype)
    values = torch.cat([x[:1], bad, x, bad]).expand(3, -1).contiguous()
    values[1] = values[1].flip(0)
    compare(f, values)
    flat = PiecewiseLinear([f.x[0] - 1, *f.x, f.x[-1] + 1], [f.y[0], *f.y, f.y[-1]])
    found = compare(flat, values)
    assert found["value"].isfinite().all() and found["derivative"][0, 1] == 0

    values[:, 2::3] = torch.nan
    actual = value_and_derivative("lstm_layer", f, values)
    expected = value_and_derivative("lstm_layer_reference", f, values)
    assert actual["value"][:, 2::3].isnan().all()
    numbers = ~values.isnan()
    for name in actual:
        torch.testing.assert_close(actual[name][numbers], expected[name][numbers])


@pytest.mark.parametrize("knots", KNOTS)
def test_knots_that_float32_does_not_tell_apart(knots: int) -> None:
    """The last of them holds, and the arguments just below it have the segment before the first."""
    f = function(knots)
    x, y = list(f.x), list(f.y)
    x[knots // 2 : knots // 2] = [x[knots // 2] - 2.0**-40]
    y[knots // 2 : knots // 2] = [y[knots // 2] - 2.0**-10]
    compare(PiecewiseLinear(x, y), arguments(f, torch.float32))


@pytest.mark.parametrize("knots", KNOTS)
def test_in_every_place_of_a_cell(knots: int) -> None:
    """A layer whose gate, cell and output activations have lists of different lengths."""

    def like_tanh(knots: int, seed: int) -> PiecewiseLinear:  # steep ones would make states explode
        x = function(knots, seed).x
        return PiecewiseLinear(x, [math.tanh(t) for t in x])

    other = KNOTS[-1 - KNOTS.index(knots)]
    name, cell_args = Cell(like_tanh(knots, 1), like_tanh(other, 2), like_tanh(knots + 1, 3)).encode()
    call = make_call(Case(4, 7, 3, 37, bidirectional=True, gain=0.5))
    call = call.replace(cell=name, cell_args=cell_args)
    assert_close(run_layer(call), run_reference(call), f"{knots} and {other} knots", relative=1e-13)
