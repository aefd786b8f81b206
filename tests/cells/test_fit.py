"""PiecewiseLinear.fit: errors, ends, symmetry, and functions that already are piecewise linear."""

import math

import pytest
import torch
import torch.nn.functional as F

from customlstm import PiecewiseLinear
from customlstm.activations import KINDS, Activation, activation

WIDE = torch.cat([torch.linspace(-60, 60, 60001, dtype=torch.float64), torch.tensor([-1e4, 1e4]).double()])


def error(fit: PiecewiseLinear, function, t: torch.Tensor = WIDE) -> float:
    return float((fit(t) - function(t)).abs().max())


# largest error over all real numbers, as measured; 2 % is left for another machine's rounding
@pytest.mark.parametrize(
    ("name", "bounds", "knots", "measured"),
    [
        ("tanh", (-4.0, 4.0), 4, 0.139),
        ("tanh", (-4.0, 4.0), 8, 0.0264),
        ("tanh", (-4.0, 4.0), 16, 0.00565),
        ("tanh", (-4.0, 4.0), 32, 0.00127),
        ("sigmoid", (-4.0, 4.0), 16, 0.0180),
        ("sigmoid", (-8.0, 8.0), 8, 0.0132),
        ("sigmoid", (-8.0, 8.0), 16, 0.00283),
        ("sigmoid", (-8.0, 8.0), 32, 0.000634),
        ("softplus", (-8.0, 8.0), 16, 0.0054),
        ("elu", (-8.0, 8.0), 16, 0.00253),
    ],
)
def test_largest_error(name, bounds, knots, measured):
    fit = PiecewiseLinear.fit(name, knots=knots, bounds=bounds)
    assert len(fit.x) == knots
    assert (fit.x[0], fit.x[-1]) == bounds
    assert error(fit, Activation(name)) == pytest.approx(measured, rel=0.02)


def test_the_error_falls_with_the_number_of_knots():
    t = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    counts = [4, 6, 8, 12, 16, 24, 32, 64, 128]
    squares = [float((PiecewiseLinear.fit("tanh", n)(t) - t.tanh()).square().mean()) for n in counts]
    for n, m, before, after in zip(counts, counts[1:], squares, squares[1:], strict=False):
        assert after < before * (n / m) ** 2  # a least-squares fit of a smooth function loses (n / m) ** 4
    # An odd number leaves the middle knot of an odd function without use, but is never worse.
    for n in (4, 8, 16):
        assert error(PiecewiseLinear.fit("tanh", n + 1), torch.tanh, t) < 1.01 * error(
            PiecewiseLinear.fit("tanh", n), torch.tanh, t
        )


@pytest.mark.parametrize("knots", [4, 5, 16, 33])
@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        ("tanh", (0.0, -1.0), (0.0, 1.0)),
        ("sigmoid", (0.0, 0.0), (0.0, 1.0)),
        ("softsign", (0.0, -1.0), (0.0, 1.0)),
        (("scaled_tanh", {"alpha": 1.7159, "beta": 2 / 3}), (0.0, -1.7159), (0.0, 1.7159)),
        ("relu", (0.0, 0.0), (1.0, 0.0)),
        ("softplus", (0.0, 0.0), (1.0, 0.0)),
        ("elu", (0.0, -1.0), (1.0, 0.0)),
        ("leaky_relu", (0.01, 0.0), (1.0, 0.0)),
        (F.silu, (0.0, 0.0), (1.0, 0.0)),
        (torch.atan, (0.0, -math.pi / 2), (0.0, math.pi / 2)),
    ],
)
def test_ends_run_on_the_asymptotes(name, left, right, knots):
    fit = PiecewiseLinear.fit(name, knots)
    tolerance = 1e-8 if name is torch.atan else 0.0  # known as a limit only: its offset is no round number
    for end, (slope, offset) in ((0, left), (-1, right)):
        if slope == 0.0:
            assert fit.slopes[end] == 0.0  # exactly: anything else would drift
            assert fit.y[end] == pytest.approx(offset, rel=1e-15, abs=tolerance)
        else:
            assert fit.slopes[end] == pytest.approx(slope, rel=1e-12)
            assert fit.y[end] == pytest.approx(slope * fit.x[end] + offset, rel=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_no_segment_is_much_steeper_than_the_function(name):
    if name == "thresholded_relu":
        pytest.skip("jumps")
    t = torch.linspace(-4, 4, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(Activation(name)(t).sum(), t)
    for knots in (6, 16, 40):
        fit = PiecewiseLinear.fit(name, knots)
        assert max(map(abs, fit.slopes)) < 2 * float(slope.abs().max())


@pytest.mark.parametrize(
    "name",
    ["relu", "leaky_relu", "hard_sigmoid", "hard_tanh", "identity", "affine",
     ("hard_tanh", {"alpha": -0.4, "beta": 1 / 3}), ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}),
     PiecewiseLinear([-3, -1, 0.123456789, 2], [0, 0, 1, -1])],
)  # fmt: skip
@pytest.mark.parametrize("knots", [4, 7, 16])
def test_piecewise_linear_functions_come_back(name, knots):
    function = activation(name)
    if isinstance(function, PiecewiseLinear):
        knots += 2
    fit = PiecewiseLinear.fit(name, knots)
    t = torch.linspace(-50, 50, 5001, dtype=torch.float64)
    # a kink at no round number is found to rounding only
    atol = 1e-9 if isinstance(function, PiecewiseLinear) else 1e-12
    torch.testing.assert_close(fit(t), function(t), rtol=1e-12, atol=atol)


def test_relu_takes_three_knots():
    assert PiecewiseLinear.fit("relu", 3) == PiecewiseLinear([-4, 0, 4], [0, 0, 4])
    assert PiecewiseLinear.fit("hard_tanh", 4) == PiecewiseLinear([-4, -1, 1, 4], [-1, -1, 1, 1])


@pytest.mark.parametrize("knots", [2, 3, 4, 5, 16, 31])
@pytest.mark.parametrize(
    ("function", "centre", "parity"),
    [(torch.tanh, 0.0, -1), (torch.sigmoid, 0.5, -1), (torch.sin, 0.0, -1), (torch.abs, 0.0, 1),
     (lambda t: torch.exp(-(t**2)), 0.0, 1)],
)  # fmt: skip
def test_symmetric_functions_give_symmetric_fits(function, centre, parity, knots):
    if parity == 1 and knots in (3, 5, 31):
        knots += 1  # the peak needs the middle; with a knot there the fit need not be symmetric in between
    fit = PiecewiseLinear.fit(function, knots)
    mirrored = [2 * centre - y for y in fit.y[::-1]] if parity == -1 else list(fit.y[::-1])
    if parity == -1:
        assert [-x for x in fit.x[::-1]] == list(fit.x)
        assert list(fit.y) == pytest.approx(mirrored, abs=1e-15)
    t = torch.linspace(0, 4, 500, dtype=torch.float64)
    expected = 2 * centre - fit(-t) if parity == -1 else fit(-t)
    torch.testing.assert_close(fit(t), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("knots", [2, 3, 4, 16])
@pytest.mark.parametrize(
    "function", [torch.sin, torch.exp, lambda t: t**2, lambda t: torch.sqrt(t.abs() + 1)]
)
def test_functions_without_asymptotes(function, knots):
    t = torch.linspace(-4, 4, 1001, dtype=torch.float64)
    fit = PiecewiseLinear.fit(function, knots)
    line = PiecewiseLinear.fit(function, 2)
    assert error(fit, function, t) <= error(line, function, t) * (1 if knots < 16 else 0.1)


def test_two_knots_are_the_line_of_least_squares():
    fit = PiecewiseLinear.fit(torch.exp, 2, (0.0, 1.0))
    assert fit.slopes[0] == pytest.approx(18 - 6 * math.e, rel=1e-3)
    assert fit.y[0] == pytest.approx(4 * math.e - 10, rel=1e-3)


def test_many_knots():
    fit = PiecewiseLinear.fit("sigmoid", 256, (-16.0, 16.0))
    assert len(fit.x) == 256
    assert error(fit, torch.sigmoid) < 5e-5


def test_a_jump_is_bridged():
    fit = PiecewiseLinear.fit("thresholded_relu", 8)
    t = torch.tensor([-3.0, 0.0, 0.99, 1.01, 3.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(fit(t), Activation("thresholded_relu")(t), rtol=0.02, atol=0.02)


def test_bounds_need_not_be_symmetric():
    fit = PiecewiseLinear.fit("tanh", 16, (-3.0, 5.0))
    assert error(fit, torch.tanh) < 0.006
    assert (fit.slopes[0], fit.slopes[-1]) == (0.0, 0.0)
    shifted = PiecewiseLinear.fit(lambda t: torch.tanh(t - 1), 16, (-3.0, 5.0))
    assert list(shifted.x) == pytest.approx([2 - x for x in shifted.x[::-1]], abs=1e-12)


def test_the_same_fit_every_time():
    assert (
        PiecewiseLinear.fit("tanh")
        == PiecewiseLinear.fit(Activation("tanh"))
        == PiecewiseLinear.fit(torch.tanh)
    )


def test_state_of_the_caller():
    def function(t):
        assert t.dtype == torch.float64 and not torch.is_grad_enabled()
        return t.tanh_()  # in place

    assert torch.is_grad_enabled()
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        assert PiecewiseLinear.fit(function, 8) == PiecewiseLinear.fit("tanh", 8)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


def test_a_module_in_float32():
    weight = torch.nn.Parameter(torch.tensor(2.0))
    fit = PiecewiseLinear.fit(lambda t: torch.tanh(weight * t.float()))
    assert error(fit, lambda t: torch.tanh(2 * t)) < 0.01


@pytest.mark.parametrize(
    ("arguments", "failure", "text"),
    [
        (("tanhh",), ValueError, "fn: unknown activation 'tanhh'"),
        ((3,), TypeError, r"fn must be an activation name"),
        (("tanh", 1), ValueError, "knots must be at least 2, got 1"),
        (("tanh", 16.0), TypeError, r"knots must be an int, got 16.0 \(float\)"),
        (("tanh", True), TypeError, "knots must be an int, got True"),
        (("tanh", 8, (1.0, 1.0)), ValueError, r"bounds must increase, got \(1.0, 1.0\)"),
        (("tanh", 8, (0.0, math.inf)), ValueError, r"bounds\[1\] must be finite, got inf"),
        (("tanh", 8, 4.0), TypeError, r"bounds must be a pair \(lower, upper\), got 4.0"),
        (("tanh", 8, (None, 1.0)), TypeError, r"bounds\[0\] must be a number, got None"),
        ((math.tanh,), TypeError, "fn must work on a tensor of any size, but .* it raised: "),
        ((lambda t: 1.0,), TypeError, "fn must map a tensor to a tensor, got float"),
        (
            (lambda t: t.sum(),),
            ValueError,
            r"fn must keep the shape, got \(\) for an input of shape \(4097,\)",
        ),
        ((torch.log,), ValueError, r"fn must be finite within bounds, got nan at -4.0"),
    ],
)
def test_errors(arguments, failure, text):
    with pytest.raises(failure, match=text):
        PiecewiseLinear.fit(*arguments)
