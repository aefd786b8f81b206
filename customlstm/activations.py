"""Activation functions of a cell: their names, coefficients and exact formulas.

The names are those of the ONNX LSTM operator (https://onnx.ai/onnx/operators/onnx__LSTM.html) in snake case,
plus ``hard_tanh``, ``identity`` and :class:`PiecewiseLinear`. Default coefficients are PyTorch's where
PyTorch has the function, else ONNX's; :data:`KINDS` says for each which. The formulas here are the
specification: every kernel follows them, also at kinks, at infinities, and in that NaN comes out as NaN.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .piecewise import PIECEWISE_LINEAR, PiecewiseLinear, finite_number

__all__ = [
    "KINDS",
    "PIECEWISE_LINEAR",
    "Activation",
    "ActivationSpec",
    "Kind",
    "PiecewiseLinear",
    "activation",
]


class Kind(NamedTuple):
    """One row of the table of activations.

    ``id`` is the number that kernels know it by; ``defaults`` its coefficients in the order alpha, beta (a
    missing one is not used by the formula); ``formula(x, alpha, beta)`` the specification, any floating dtype
    and device.
    """

    id: int
    defaults: tuple[float, ...]
    formula: Callable[[Tensor, float, float], Tensor]
    source: str


def _softsign(x: Tensor, alpha: float, beta: float) -> Tensor:
    limit = torch.finfo(x.dtype).max
    x = x.clamp(-limit, limit)
    return x / (1.0 + x.abs())


def _softplus(x: Tensor, alpha: float, beta: float) -> Tensor:
    # Not F.softplus: above its threshold that one returns x, 2e-9 off. Not logaddexp: its second derivative
    # is NaN where exp(-x) overflows.
    return -F.logsigmoid(-x)


# fmt: off
KINDS: Mapping[str, Kind] = MappingProxyType({
    # 1 / (1 + exp(-x))
    "sigmoid": Kind(0, (), lambda x, a, b: torch.sigmoid(x), "ONNX Sigmoid"),
    "tanh": Kind(1, (), lambda x, a, b: torch.tanh(x), "ONNX Tanh"),
    # max(x, 0); derivative 0 at 0
    "relu": Kind(2, (), lambda x, a, b: torch.relu(x), "ONNX Relu; Nair and Hinton 2010"),
    # alpha x + beta; ONNX states no defaults: 1 and 0, which is the identity
    "affine": Kind(3, (1.0, 0.0), lambda x, a, b: a * x + b, "ONNX Affine"),
    # x where x > 0, else alpha x; derivative alpha at 0
    "leaky_relu": Kind(4, (0.01,), lambda x, a, b: F.leaky_relu(x, a), "ONNX LeakyRelu; Maas et al. 2013"),
    # x where x > alpha, else 0; value and derivative 0 at alpha, as F.threshold and the ONNX operator
    # ThresholdedRelu have it (the page of ONNX's LSTM has x there)
    "thresholded_relu": Kind(5, (1.0,), lambda x, a, b: F.threshold(x, a, 0.0),
                             "ONNX ThresholdedRelu; Konda et al. 2014"),
    # alpha tanh(beta x); ONNX states no defaults (LeCun et al. 1998 have 1.7159, 2/3): 1 and 1, which is tanh
    "scaled_tanh": Kind(6, (1.0, 1.0), lambda x, a, b: a * torch.tanh(b * x), "ONNX ScaledTanh"),
    # clamp(alpha x + beta, 0, 1); derivative alpha on the closed interval; ONNX's alpha is 0.2
    "hard_sigmoid": Kind(7, (1.0 / 6.0, 0.5), lambda x, a, b: torch.clamp(a * x + b, 0.0, 1.0),
                         "ONNX HardSigmoid with the coefficients of F.hardsigmoid; Courbariaux et al. 2015"),
    # x where x > 0, else alpha (exp(x) - 1); derivative alpha at 0
    "elu": Kind(8, (1.0,), lambda x, a, b: F.elu(x, a), "ONNX Elu; Clevert et al. 2016"),
    # x / (1 + |x|); at the infinities its limits, where F.softsign has NaN
    "softsign": Kind(9, (), _softsign, "ONNX Softsign; Glorot and Bengio 2010"),
    # log(1 + exp(x)) for every x, without F.softplus's threshold
    "softplus": Kind(10, (), _softplus, "ONNX Softplus; Dugas et al. 2001"),
    # clamp(x, alpha, beta); derivative 1 on the closed interval
    "hard_tanh": Kind(11, (-1.0, 1.0), lambda x, a, b: torch.clamp(x, a, b), "F.hardtanh; Collobert 2004"),
    "identity": Kind(12, (), lambda x, a, b: x, "torch.nn.Identity"),
})
# fmt: on


@dataclass(frozen=True, repr=False)
class Activation:
    """A named activation with its coefficients; call it on a tensor of any floating dtype, device and shape.

    Args:
        name: one of :data:`KINDS`.
        alpha, beta: coefficients; the name's defaults where None. None stays for one that the name does not
            use.

    Raises:
        TypeError: ``name`` is no string, or a coefficient is no number.
        ValueError: an unknown name, a coefficient that the name does not have, one that is not finite, or
            ``hard_tanh`` with alpha > beta.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        kind = _kind(self.name, "name")
        for index, key in enumerate(("alpha", "beta")):
            value = getattr(self, key)
            if index < len(kind.defaults):
                value = (
                    kind.defaults[index] if value is None else finite_number(value, f"{key} of {self.name!r}")
                )
                object.__setattr__(self, key, value)
            elif value is not None:
                has = " and ".join(("alpha", "beta")[: len(kind.defaults)]) or "no coefficients"
                raise ValueError(f"activation {self.name!r} has {has}, got {key}={value!r}; leave {key} out")
        if self.name == "hard_tanh" and self.coefficients[0] > self.coefficients[1]:
            raise ValueError(
                f"hard_tanh clamps to [alpha, beta] and needs alpha <= beta, got alpha={self.alpha}, "
                f"beta={self.beta}"
            )

    @property
    def coefficients(self) -> tuple[float, float]:
        """(alpha, beta) as kernels take them: 0 for one that is not used."""
        return (0.0 if self.alpha is None else self.alpha, 0.0 if self.beta is None else self.beta)

    @property
    def spec(self) -> str | tuple[str, dict[str, float]]:
        """What :func:`activation` turns back into this one: the name, or name and coefficients if need be."""
        kind = KINDS[self.name]
        given = {
            key: value
            for key, value, default in zip(("alpha", "beta"), self.coefficients, kind.defaults, strict=False)
            if value != default
        }
        return (self.name, given) if given else self.name

    def encode(self) -> list[float]:
        """[kind, alpha, beta, 0]: this activation as the operators take it."""
        return [float(KINDS[self.name].id), *self.coefficients, 0.0]

    def bind(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        """This function, made ready for tensors of ``like``'s dtype and device (see PiecewiseLinear.bind)."""
        return self

    def __call__(self, x: Tensor) -> Tensor:
        return KINDS[self.name].formula(x, *self.coefficients)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Activation, (self.name, self.alpha, self.beta))  # the constructor checks what was stored

    def __repr__(self) -> str:
        kind = KINDS[self.name]
        given = "".join(
            f", {key}={value!r}"
            for key, value, _ in zip(("alpha", "beta"), self.coefficients, kind.defaults, strict=False)
        )
        return f"Activation({self.name!r}{given})"


#: What every place that takes an activation accepts.
ActivationSpec = str | tuple[str, Mapping[str, float]] | Activation | PiecewiseLinear


def _kind(name: object, argument: str) -> Kind:
    if not isinstance(name, str):
        raise TypeError(
            f"{argument} must be an activation name, got {name!r} ({type(name).__name__}); "
            f"names: {', '.join(KINDS)}"
        )
    if name not in KINDS:
        # so that HardSigmoid and hard-sigmoid lead to hard_sigmoid
        plain = {known.replace("_", ""): known for known in KINDS}
        close = difflib.get_close_matches("".join(c for c in name.lower() if c.isalnum()), plain, n=1)
        hint = f" (did you mean {plain[close[0]]!r}?)" if close else ""
        raise ValueError(
            f"{argument}: unknown activation {name!r}{hint}; expected one of {', '.join(KINDS)}, or a "
            "PiecewiseLinear"
        )
    return KINDS[name]


def activation(spec: ActivationSpec, argument: str = "activation") -> Activation | PiecewiseLinear:
    """The activation that ``spec`` describes.

    Args:
        spec: a name of :data:`KINDS`; ``(name, {"alpha": ..., "beta": ...})`` with some or all coefficients;
            or an :class:`Activation` or :class:`PiecewiseLinear`, which comes back as it is.
        argument: what error messages call it.

    Raises:
        TypeError: ``spec`` is none of these.
        ValueError: an unknown name or coefficient, or a coefficient that is not finite.
    """
    if isinstance(spec, (Activation, PiecewiseLinear)):
        return spec
    if isinstance(spec, str):
        _kind(spec, argument)
        return Activation(spec)
    if isinstance(spec, (tuple, list)) and len(spec) == 2 and isinstance(spec[1], Mapping):
        name, coefficients = spec
        kind = _kind(name, argument)
        known = ("alpha", "beta")[: len(kind.defaults)]
        for key in coefficients:
            if key not in known:
                raise ValueError(
                    f"{argument}: activation {name!r} has no coefficient {key!r}, expected "
                    f"{' and '.join(known) or 'none'}"
                )
        return Activation(name, **coefficients)
    raise TypeError(
        f"{argument} must be an activation name, (name, {{'alpha': ..., 'beta': ...}}), an Activation or a "
        f"PiecewiseLinear, got {spec!r} ({type(spec).__name__}); names: {', '.join(KINDS)}"
    )
