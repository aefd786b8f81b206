"""Every named activation against formulas written anew, in Python floats."""

import math
import pickle
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from customlstm.activations import KINDS, Activation, PiecewiseLinear, activation

INF, NAN = math.inf, math.nan

# name -> (value, derivative), both of (x, alpha, beta) in Python floats, and the places of the kinks
FORMULAS = {
    "sigmoid": (
        lambda x, a, b: 1 / (1 + math.exp(-x)),
        lambda x, a, b: math.exp(-x) / (1 + math.exp(-x)) ** 2,
    ),
    "tanh": (lambda x, a, b: math.tanh(x), lambda x, a, b: 1 / math.cosh(x) ** 2),
    "relu": (lambda x, a, b: max(x, 0.0), lambda x, a, b: float(x > 0)),
    "affine": (lambda x, a, b: a * x + b, lambda x, a, b: a),
    "leaky_relu": (lambda x, a, b: x if x > 0 else a * x, lambda x, a, b: 1.0 if x > 0 else a),
    "thresholded_relu": (lambda x, a, b: x if x > a else 0.0, lambda x, a, b: float(x > a)),
    "scaled_tanh": (lambda x, a, b: a * math.tanh(b * x), lambda x, a, b: a * b / math.cosh(b * x) ** 2),
    "hard_sigmoid": (
        lambda x, a, b: min(max(a * x + b, 0.0), 1.0),
        lambda x, a, b: a if 0 <= a * x + b <= 1 else 0.0,
    ),
    "elu": (
        lambda x, a, b: x if x > 0 else a * math.expm1(x),
        lambda x, a, b: 1.0 if x > 0 else a * math.exp(x),
    ),
    "softsign": (lambda x, a, b: x / (1 + abs(x)), lambda x, a, b: 1 / (1 + abs(x)) ** 2),
    "softplus": (
        lambda x, a, b: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
        lambda x, a, b: 1 / (1 + math.exp(-x)),
    ),
    "hard_tanh": (lambda x, a, b: min(max(x, a), b), lambda x, a, b: float(a <= x <= b)),
    "identity": (lambda x, a, b: x, lambda x, a, b: 1.0),
}
COEFFICIENTS = {  # the defaults, and others
    "affine": [(1.0, 0.0), (0.7, -0.2)],
    "leaky_relu": [(0.01,), (0.3,), (-0.5,)],
    "thresholded_relu": [(1.0,), (0.25,)],
    "scaled_tanh": [(1.0, 1.0), (1.7159, 2 / 3)],
    "hard_sigmoid": [(1 / 6, 0.5), (0.2, 0.5), (-0.5, 0.25)],
    "elu": [(1.0,), (0.4,)],
    "hard_tanh": [(-1.0, 1.0), (-0.3, 2.5)],
}
CASES = [(name, given) for name in KINDS for given in COEFFICIENTS.get(name, [()])]
POINTS = [-30.0, -5.5, -2.75, -1.1, -0.4, -1e-3, 1e-3, 0.1, 0.6, 1.3, 2.2, 4.75, 30.0]  # no kinks


def filled(given: tuple[float, ...]) -> tuple[float, float]:
    return (*given, 0.0, 0.0)[:2]


def derivative(function, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def test_the_table_is_complete():
    assert set(FORMULAS) == set(KINDS)
    # The numbers are part of the operators' interface: they are in exported programs.
    assert {name: kind.id for name, kind in KINDS.items()} == {
        "sigmoid": 0, "tanh": 1, "relu": 2, "affine": 3, "leaky_relu": 4, "thresholded_relu": 5,
        "scaled_tanh": 6, "hard_sigmoid": 7, "elu": 8, "softsign": 9,
        "softplus": 10, "hard_tanh": 11, "identity": 12,
    }  # fmt: skip
    for name, kind in KINDS.items():
        assert kind.defaults == COEFFICIENTS.get(name, [()])[0]


@pytest.mark.parametrize(("name", "given"), CASES)
def test_value_and_derivative(name, given):
    function = Activation(name, *given)
    x = torch.tensor(POINTS, dtype=torch.float64)
    value, slope = FORMULAS[name]
    expected = torch.tensor([value(p, *filled(given)) for p in POINTS], dtype=torch.float64)
    torch.testing.assert_close(function(x), expected, rtol=1e-15, atol=1e-16)
    expected = torch.tensor([slope(p, *filled(given)) for p in POINTS], dtype=torch.float64)
    torch.testing.assert_close(derivative(function, x), expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize(("name", "given"), CASES)
def test_derivatives_by_finite_differences(name, given):
    function = Activation(name, *given)
    x = torch.tensor(POINTS[1:-1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


# where two formulas meet: (name, coefficients, x, value, derivative)
KINKS = [
    ("relu", (), 0.0, 0.0, 0.0),
    ("leaky_relu", (0.01,), 0.0, 0.0, 0.01),
    ("thresholded_relu", (1.0,), 1.0, 0.0, 0.0),
    ("thresholded_relu", (0.25,), 0.25, 0.0, 0.0),
    ("hard_sigmoid", (0.25, 0.5), -2.0, 0.0, 0.25),
    ("hard_sigmoid", (0.25, 0.5), 2.0, 1.0, 0.25),
    ("elu", (0.5,), 0.0, 0.0, 0.5),
    ("softsign", (), 0.0, 0.0, 1.0),
    ("softplus", (), 0.0, math.log(2), 0.5),
    ("hard_tanh", (-1.0, 1.0), -1.0, -1.0, 1.0),
    ("hard_tanh", (-1.0, 1.0), 1.0, 1.0, 1.0),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "given", "x", "value", "slope"), KINKS)
def test_kinks(name, given, x, value, slope, dtype):
    function = Activation(name, *given)
    x = torch.tensor([x], dtype=dtype)
    torch.testing.assert_close(function(x), torch.tensor([value], dtype=dtype))
    torch.testing.assert_close(derivative(function, x), torch.tensor([slope], dtype=dtype))


INFINITIES = {  # (value, derivative) at -inf and at inf, for the default coefficients
    "sigmoid": ((0.0, 0.0), (1.0, 0.0)),
    "tanh": ((-1.0, 0.0), (1.0, 0.0)),
    "relu": ((0.0, 0.0), (INF, 1.0)),
    "affine": ((-INF, 1.0), (INF, 1.0)),
    "leaky_relu": ((-INF, 0.01), (INF, 1.0)),
    "thresholded_relu": ((0.0, 0.0), (INF, 1.0)),
    "scaled_tanh": ((-1.0, 0.0), (1.0, 0.0)),
    "hard_sigmoid": ((0.0, 0.0), (1.0, 0.0)),
    "elu": ((-1.0, 0.0), (INF, 1.0)),
    "softsign": ((-1.0, 0.0), (1.0, 0.0)),
    "softplus": ((0.0, 0.0), (INF, 1.0)),
    "hard_tanh": ((-1.0, 0.0), (1.0, 0.0)),
    "identity": ((-INF, 1.0), (INF, 1.0)),
}


@pytest.mark.parametrize("name", KINDS)
def test_infinities_and_nan(name):
    function = Activation(name)
    x = torch.tensor([-INF, INF], dtype=torch.float64)
    value, slope = zip(*INFINITIES[name], strict=True)
    torch.testing.assert_close(function(x), torch.tensor(value, dtype=torch.float64), equal_nan=True)
    torch.testing.assert_close(
        derivative(function, x), torch.tensor(slope, dtype=torch.float64), equal_nan=True
    )
    assert function(torch.tensor([NAN])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS)
def test_dtypes(name, dtype):
    x = torch.linspace(-6, 6, 101).to(dtype)
    result = Activation(name)(x)
    assert result.dtype == dtype
    expected = Activation(name)(x.double())
    torch.testing.assert_close(
        result.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("relu", F.relu), ("leaky_relu", F.leaky_relu), ("hard_sigmoid", F.hardsigmoid), ("elu", F.elu),
     ("softsign", F.softsign), ("hard_tanh", F.hardtanh)],
)  # fmt: skip
def test_defaults_are_those_of_pytorch(name, theirs):
    x = torch.linspace(-5, 5, 103, dtype=torch.float64)
    torch.testing.assert_close(Activation(name)(x), theirs(x), rtol=1e-15, atol=1e-15)


def test_softplus_has_no_threshold():
    x = torch.tensor([-700.0, 25.0], dtype=torch.float64, requires_grad=True)
    value = Activation("softplus")(x)
    assert value.tolist()[1] == 25.0 + math.log1p(math.exp(-25.0)) != 25.0
    assert value.tolist()[0] == pytest.approx(math.exp(-700.0), rel=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert curvature.isfinite().all()


def test_specifications():
    assert activation("tanh") == Activation("tanh")
    hard = activation(("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}))
    assert (hard.alpha, hard.beta) == (0.2, 0.5)
    assert activation(("hard_sigmoid", {"alpha": 0.2})) == hard
    assert activation(["elu", {}]) == Activation("elu", 1.0)
    assert activation(hard) is hard
    knots = PiecewiseLinear([0, 1], [0, 1])
    assert activation(knots) is knots
    for function in (hard, Activation("tanh"), Activation("affine", 2)):
        assert activation(function.spec) == function
    assert Activation("affine", 2).spec == ("affine", {"alpha": 2.0})


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        (3, TypeError, r"here must be an activation name, .* got 3 \(int\); names: sigmoid, tanh, "),
        (None, TypeError, r"got None \(NoneType\)"),
        (torch.tanh, TypeError, r"here must be an activation name"),
        (("tanh", 1.0), TypeError, r"got \('tanh', 1.0\)"),
        ((torch.tanh, {}), TypeError, r"here must be an activation name, got .* names: sigmoid"),
        (
            "",
            ValueError,
            r"here: unknown activation ''; expected one of sigmoid, tanh, .* or a PiecewiseLinear",
        ),
        ("tanhh", ValueError, r"unknown activation 'tanhh' \(did you mean 'tanh'\?\)"),
        ("hardsigmoid", ValueError, r"did you mean 'hard_sigmoid'"),
        (
            ("tanh", {"alpha": 1.0}),
            ValueError,
            r"here: activation 'tanh' has no coefficient 'alpha', expected none",
        ),
        (("elu", {"beta": 1.0}), ValueError, r"'elu' has no coefficient 'beta', expected alpha"),
        (("affine", {"gamma": 1.0}), ValueError, r"no coefficient 'gamma', expected alpha and beta"),
        (("elu", {"alpha": "1"}), TypeError, r"alpha of 'elu' must be a number, got '1' \(str\)"),
        (("elu", {"alpha": True}), TypeError, r"alpha of 'elu' must be a number, got True"),
        (("elu", {"alpha": NAN}), ValueError, r"alpha of 'elu' must be finite, got nan"),
        (("hard_tanh", {"alpha": 2.0}), ValueError, r"needs alpha <= beta, got alpha=2.0, beta=1.0"),
    ],
)
def test_what_is_no_specification(spec, error, text):
    with pytest.raises(error, match=text):
        activation(spec, "here")


def test_a_coefficient_that_is_not_used():
    with pytest.raises(ValueError, match=r"'tanh' has no coefficients, got alpha=1.0; leave alpha out"):
        Activation("tanh", 1.0)
    with pytest.raises(ValueError, match=r"'elu' has alpha, got beta=2.0"):
        Activation("elu", 1.0, 2.0)


@pytest.mark.parametrize(
    ("onnx", "ours"),
    [("Sigmoid", "sigmoid"), ("Tanh", "tanh"), ("Relu", "relu"), ("Affine", "affine"),
     ("LeakyRelu", "leaky_relu"), ("ThresholdedRelu", "thresholded_relu"), ("ScaledTanh", "scaled_tanh"),
     ("HardSigmoid", "hard_sigmoid"),
     ("Elu", "elu"), ("Softsign", "softsign"), ("Softplus", "softplus")],
)  # fmt: skip
def test_names_of_onnx_are_hinted_at(onnx, ours):
    with pytest.raises(ValueError, match=f"did you mean '{ours}'"):
        activation(onnx)


@pytest.mark.parametrize(("name", "given"), CASES)
def test_values_of_an_activation(name, given):
    function = Activation(name, *given)
    assert eval(repr(function), {"Activation": Activation}) == function
    assert pickle.loads(pickle.dumps(function)) == function
    assert hash(Activation(name, *given)) == hash(function)
    assert function.encode() == [KINDS[name].id, *filled(given), 0]
    with pytest.raises(AttributeError):
        function.name = "relu"


def test_the_document_lists_them_with_their_coefficients() -> None:
    """docs/cells.md, under Activations: | `name` | formula | coefficients |"""
    text = (Path(__file__).resolve().parents[2] / "docs" / "cells.md").read_text()
    lines = text.split("\n## Activations\n")[1].splitlines()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    listed = {
        name.strip("`"): tuple(float(Fraction(number)) for number in defaults.split(", ") if number)
        for name, _, defaults in rows
    }
    assert listed == {name: pytest.approx(kind.defaults) for name, kind in KINDS.items()}
