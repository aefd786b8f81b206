"""PiecewiseLinear as a function: against a scalar implementation, at its knots, at its ends."""

import bisect
import math
import pickle

import pytest
import torch

from customlstm import PiecewiseLinear

X, Y = [-2.0, -0.5, 0.0, 1.5], [-1.0, -0.5, 0.25, 1.0]
SLOPES = [(Y[j + 1] - Y[j]) / (X[j + 1] - X[j]) for j in range(3)]
FUNCTION = PiecewiseLinear(X, Y)


def scalar(t: float) -> tuple[float, float]:
    j = min(max(bisect.bisect_right(X, t) - 1, 0), len(X) - 2)
    return Y[j] + SLOPES[j] * (t - X[j]), SLOPES[j]


def both(function, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    t = t.clone().requires_grad_()
    value = function(t)
    return value.detach(), torch.autograd.grad(value.sum(), t)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_derivative(dtype):
    t = torch.tensor([-100.0, -2.5, *X, -1.0, -0.25, 0.75, 1.75, 40.0], dtype=dtype)  # the knots too
    value, slope = both(FUNCTION, t)
    expected = [scalar(p) for p in t.tolist()]
    assert value.dtype == slope.dtype == dtype
    torch.testing.assert_close(value, torch.tensor([v for v, _ in expected], dtype=dtype))
    torch.testing.assert_close(slope, torch.tensor([s for _, s in expected], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tensors_are_evaluated_in_float32(dtype):
    t = torch.linspace(-4, 4, 97).to(dtype)
    assert torch.equal(FUNCTION(t), FUNCTION(t.float()).to(dtype))
    assert both(FUNCTION, t)[1].dtype == dtype


def test_two_knots_are_a_line():
    value, slope = both(PiecewiseLinear([0, 2], [1, 2]), torch.tensor([-4.0, 0.0, 1.0, 2.0, 6.0]))
    assert value.tolist() == [-1.0, 1.0, 1.5, 2.0, 4.0]
    assert slope.tolist() == [0.5] * 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_infinities_and_nan(dtype):
    limit = torch.finfo(dtype).max
    flat = PiecewiseLinear([-1, -0.5, 0.5, 1], [-1, -1, 1, 1])
    value, slope = both(flat, torch.tensor([-math.inf, math.inf, -limit, limit], dtype=dtype))
    assert value.tolist() == [-1, 1, -1, 1]
    assert slope.tolist() == [0, 0, 0, 0]
    steep = PiecewiseLinear([-1, 0, 1], [-2, 0, 0.5])
    value, slope = both(steep, torch.tensor([-math.inf, math.inf], dtype=dtype))
    assert value.tolist() == [-math.inf, limit / 2]  # the end slopes go on to the largest finite number
    assert slope.tolist() == [2, 0.5]
    assert both(flat, torch.tensor([math.nan], dtype=dtype))[0].isnan().all()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # torch's own, in forward mode
def test_derivatives_by_finite_differences():
    t = torch.tensor([-3.0, -1.0, -0.2, 0.8, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FUNCTION, t, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda t: FUNCTION(t) ** 2, t)


def test_under_function_transforms():
    t = torch.linspace(-3, 3, 12, dtype=torch.float64)
    value, slope = both(FUNCTION, t)
    assert torch.equal(torch.func.vmap(FUNCTION)(t), value)
    assert torch.equal(torch.func.vmap(torch.func.grad(FUNCTION))(t), slope)


def test_strides_and_empty_tensors():
    t = torch.randn(6, 4).t()
    assert torch.equal(FUNCTION(t), FUNCTION(t.contiguous()))  # a warning would be an error here
    assert torch.equal(FUNCTION(t[::2]), FUNCTION(t)[::2])
    assert FUNCTION(torch.empty(0, 3)).shape == (0, 3)


def test_nothing_of_inference_mode_is_left():
    with torch.inference_mode():
        FUNCTION(torch.zeros(2))
    assert both(FUNCTION, torch.ones(2))[1].tolist() == [0.5, 0.5]


def test_bind():
    t = torch.linspace(-3, 3, 30, dtype=torch.float64)
    assert torch.equal(FUNCTION.bind(t)(t), FUNCTION(t))


def test_values():
    assert FUNCTION.x == tuple(X) and FUNCTION.y == tuple(Y) and FUNCTION.slopes == tuple(SLOPES)
    same = [
        PiecewiseLinear(tuple(X), iter(Y)),
        PiecewiseLinear(torch.tensor(X), torch.tensor(Y)),
        pickle.loads(pickle.dumps(FUNCTION)),
        eval(repr(FUNCTION)),
    ]
    for other in same:
        assert other == FUNCTION
        assert hash(other) == hash(FUNCTION)
    assert PiecewiseLinear(X, [*Y[:3], 2]) != FUNCTION
    assert str(FUNCTION) == "PiecewiseLinear(4 knots on [-2, 1.5])"
    assert FUNCTION.encode() == [13, 0, 0, 4, *X, *Y]
    with pytest.raises(AttributeError):
        FUNCTION.x = (0.0, 1.0)


@pytest.mark.parametrize(
    ("x", "y", "error", "text"),
    [
        ([0], [0], ValueError, "at least 2 knots, got 1"),
        ([0, 1, 2], [0, 1], ValueError, "equal lengths, got 3 and 2"),
        ([0, 1, 1], [0, 1, 2], ValueError, r"must increase strictly, got x\[1\]=1.0 and x\[2\]=1.0"),
        ([0, 2, 1], [0, 1, 2], ValueError, r"must increase strictly, .*; sort the knots"),
        ([0, math.inf], [0, 1], ValueError, r"x\[1\] of PiecewiseLinear must be finite, got inf"),
        ([0, 1], [math.nan, 1], ValueError, r"y\[0\] of PiecewiseLinear must be finite, got nan"),
        ([0, 1e-300], [0, 1e10], ValueError, "the slope between knots 0 and 1 .* is inf"),
        ([0, "1"], [0, 1], TypeError, r"x\[1\] of PiecewiseLinear must be a number, got '1'"),
        (
            "01",
            [0, 1],
            TypeError,
            "x of PiecewiseLinear must be a sequence of numbers or a 1-D tensor, got '01'",
        ),
        ([0, 1], 3, TypeError, "y of PiecewiseLinear must be a sequence"),
        (torch.zeros(2, 2), [0, 1], ValueError, r"x of PiecewiseLinear must be 1-D, got shape \(2, 2\)"),
    ],
)
def test_what_are_no_knots(x, y, error, text):
    with pytest.raises(error, match=text):
        PiecewiseLinear(x, y)
