"""Activations that are piecewise linear, from knots of one's own or fitted to a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import fitting

if TYPE_CHECKING:
    from .activations import ActivationSpec

__all__ = ["PiecewiseLinear"]

#: What the operators call this kind of activation; :data:`customlstm.activations.KINDS` has the others.
PIECEWISE_LINEAR = 13


def finite_number(value: object, argument: str) -> float:
    """``value`` as a float, or a TypeError or ValueError that calls it ``argument``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{argument} must be finite, got {number}")
    return number


class _Saturate(torch.autograd.Function):
    """Clamp to the finite range of the dtype; derivative 1 at the infinities too, where torch.clamp has 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        limit = torch.finfo(x.dtype).max
        return torch.clamp(x, -limit, limit)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        return tangent.view_as(tangent)


def _knots(values: object, argument: str) -> tuple[float, ...]:
    if isinstance(values, Tensor):
        if values.dim() != 1:
            raise ValueError(f"{argument} of PiecewiseLinear must be 1-D, got shape {tuple(values.shape)}")
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(
            f"{argument} of PiecewiseLinear must be a sequence of numbers or a 1-D tensor, got {values!r} "
            f"({type(values).__name__})"
        )
    return tuple(
        finite_number(value, f"{argument}[{index}] of PiecewiseLinear") for index, value in enumerate(values)
    )


@dataclass(frozen=True, init=False, repr=False)
class PiecewiseLinear:
    """A function given by knots: linear between them, and beyond both ends with the slope of the end segment.

    The value at ``t`` is ``y[j] + s[j] * (t - x[j])``, where j counts the *interior* knots at or below ``t``
    and ``s`` are the slopes; the derivative is ``s[j]``, at a knot the one to its right. ``t`` is clamped to
    the finite range of its dtype first, so that a flat end has a finite value at infinity too; NaN gives NaN.
    16-bit tensors are evaluated in float32. Immutable, hashable, picklable.

    Args:
        x: knot positions, strictly increasing, finite, at least 2; a sequence of numbers or a 1-D tensor
            (values are copied, as double precision numbers).
        y: the value at each knot.

    Raises:
        TypeError: x or y is no sequence of numbers.
        ValueError: fewer than 2 knots, different lengths, values that are not finite, positions that do not
            increase strictly, or a slope beyond double precision.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    slopes: tuple[float, ...] = field(init=False, compare=False)

    def __init__(self, x: Iterable[float] | Tensor, y: Iterable[float] | Tensor) -> None:
        xs, ys = _knots(x, "x"), _knots(y, "y")
        if len(xs) != len(ys):
            raise ValueError(
                f"x and y of PiecewiseLinear must have equal lengths, got {len(xs)} and {len(ys)}"
            )
        if len(xs) < 2:
            raise ValueError(f"PiecewiseLinear needs at least 2 knots, got {len(xs)}")
        slopes = []
        for j in range(len(xs) - 1):
            if not xs[j] < xs[j + 1]:
                raise ValueError(
                    f"x of PiecewiseLinear must increase strictly, got x[{j}]={xs[j]!r} and "
                    f"x[{j + 1}]={xs[j + 1]!r}; sort the knots and drop repeated ones"
                )
            slopes.append((ys[j + 1] - ys[j]) / (xs[j + 1] - xs[j]))
            if not math.isfinite(slopes[-1]):
                raise ValueError(
                    f"the slope between knots {j} and {j + 1} of PiecewiseLinear is {slopes[-1]}: "
                    f"x[{j}]={xs[j]!r} and x[{j + 1}]={xs[j + 1]!r} are too close or y too far apart"
                )
        object.__setattr__(self, "x", xs)
        object.__setattr__(self, "y", ys)
        object.__setattr__(self, "slopes", tuple(slopes))

    @classmethod
    def fit(
        cls,
        fn: ActivationSpec | Callable[[Tensor], Tensor],
        knots: int = 16,
        bounds: tuple[float, float] = (-4.0, 4.0),
    ) -> PiecewiseLinear:
        """The piecewise-linear function closest to ``fn``.

        Minimised is the mean of the squared error over ``bounds``, over the values and the positions of the
        knots together, with no segment much steeper than ``fn`` itself. Outside ``bounds`` the result runs on
        the asymptote of ``fn`` where it has one (tanh, sigmoid: flat ends exactly at the limits, so that a
        recurrent state cannot drift; relu, softplus, elu: slope 0 and slope 1), else on with the slope of the
        last segment. Functions that are odd or even about the centre of ``bounds`` give a symmetric result.
        Kinks of ``fn`` become knots, so a function that already is piecewise linear comes back, up to
        rounding. Deterministic; takes some hundredths of a second, up to half a second for 256 knots.

        Largest error over all real numbers for 8, 16 and 32 knots: tanh 0.027, 0.0057 and 0.0013; sigmoid
        within (-8, 8) 0.014, 0.0029 and 0.0007. Give bounds at which ``fn`` is near its asymptotes: within
        the default ones sigmoid stays at 0.018, as far as it is from its limits where the flat ends begin. An
        even number of knots suits odd functions better: of an odd number the middle one has no use.

        Args:
            fn: an activation name, ``(name, {...})``, an :class:`Activation`, or any function that maps a
                float64 tensor to one of equal shape, elementwise. It is called without gradient, also far
                outside ``bounds`` to find the asymptotes; it may return inf or NaN there.
            knots: how many, at least 2. Two ends on different asymptotes need 4 (3 where the asymptotes cross
                within ``bounds``); with fewer the ends are those of the best fit.
            bounds: where the knots lie and the error is measured.

        Raises:
            TypeError: an argument of the wrong type, or ``fn`` does not return a tensor.
            ValueError: fewer than 2 knots, bounds that are not finite and increasing, or ``fn`` returns
                another shape, or values within ``bounds`` that are not finite.
        """
        from .activations import activation  # which imports this module

        target = fn if callable(fn) else activation(fn, "fn")
        if isinstance(knots, bool) or not isinstance(knots, int):
            raise TypeError(f"knots must be an int, got {knots!r} ({type(knots).__name__})")
        if knots < 2:
            raise ValueError(f"knots must be at least 2, got {knots}")
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
            raise TypeError(f"bounds must be a pair (lower, upper), got {bounds!r}")
        lower, upper = (finite_number(bound, f"bounds[{index}]") for index, bound in enumerate(bounds))
        if not lower < upper:
            raise ValueError(f"bounds must increase, got {tuple(bounds)!r}")
        return cls(*fitting.fit_knots(target, knots, lower, upper))

    def encode(self) -> list[float]:
        """[kind, 0, 0, n, x_1..x_n, y_1..y_n]: this activation as the operators take it."""
        return [float(PIECEWISE_LINEAR), 0.0, 0.0, float(len(self.x)), *self.x, *self.y]

    def bind(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        """This function with its knots as tensors of ``like``'s dtype and device.

        For loops over time: a call of the object itself makes these tensors anew (they are not cached,
        because a tensor made under inference mode or a fake-tensor mode must not turn up outside of it).
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        positions, values, slopes = (
            torch.tensor(numbers, dtype=dtype, device=like.device)
            for numbers in (self.x[:-1], self.y[:-1], self.slopes)
        )
        interior = positions[1:]

        def evaluate(x: Tensor) -> Tensor:
            t = _Saturate.apply(x.to(dtype))
            # contiguous: bucketize warns about anything else
            segment = torch.bucketize(t.detach().contiguous(), interior, right=True).flatten()
            # index_select, not x[segment]: vmap has no rule for the latter
            y_j, s_j, x_j = (k.index_select(0, segment).view(t.shape) for k in (values, slopes, positions))
            return (y_j + s_j * (t - x_j)).to(x.dtype)

        return evaluate

    def __call__(self, x: Tensor) -> Tensor:
        return self.bind(x)(x)

    def __reduce__(self) -> tuple[Any, ...]:
        return (PiecewiseLinear, (self.x, self.y))

    def __repr__(self) -> str:
        return f"PiecewiseLinear(x={list(self.x)!r}, y={list(self.y)!r})"

    def __str__(self) -> str:
        return f"PiecewiseLinear({len(self.x)} knots on [{self.x[0]:.4g}, {self.x[-1]:.4g}])"
