"""ATen operations as primitives. What is not here is decomposed by torch's own tables until it is.

Derivatives are not lowered as such: autograd writes them down as further ATen operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .simplify import Builder

__all__ = ["LOWERINGS", "Condition", "Symbol", "Unsupported", "number"]


class Unsupported(Exception):
    """A form of a known operation that has no lowering; the text says what to write in its place."""


@dataclass(frozen=True)
class Condition:
    """A bool: a comparison (gt, ge or eq) of two values, or conditions put together (not, and, or)."""

    kind: str
    parts: tuple[Any, ...]

    def select(self, b: Builder, x: int, y: int) -> int:
        """x where it holds, else y: one ``select_*`` for each comparison in it."""
        if self.kind == "not":
            return self.parts[0].select(b, y, x)
        if self.kind in ("and", "or"):
            first, second = self.parts
            inner = second.select(b, x, y)
            return first.select(b, inner, y) if self.kind == "and" else first.select(b, x, inner)
        return b.emit(f"select_{self.kind}", *self.parts, x, y)

    def invert(self) -> Condition:
        return self.parts[0] if self.kind == "not" else Condition("not", (self,))

    def is_known(self, b: Builder) -> bool:
        """Whether it compares constants only."""
        if self.kind in ("not", "and", "or"):
            return all(x.is_known(b) for x in self.parts)
        return all(b.constant_of(x) is not None for x in self.parts)


Symbol = int | Condition


def number(b: Builder, x: Symbol | float | bool) -> int:
    """The value itself, a constant, or 1 and 0 for a condition."""
    if isinstance(x, Condition):
        return x.select(b, b.constant(1.0), b.constant(0.0))
    return x


def _condition(b: Builder, x: Symbol) -> Condition:
    return x if isinstance(x, Condition) else Condition("not", (Condition("eq", (x, b.constant(0.0))),))


def _values(function: Callable[..., Symbol]) -> Callable[..., Symbol]:
    """For lowerings of numbers: conditions among the arguments become 1 and 0."""

    def lower(b: Builder, *arguments: Any, **options: Any) -> Symbol:
        numbers = [number(b, x) if isinstance(x, (int, Condition)) else x for x in arguments]
        return function(b, *numbers, **options)

    return lower


def _direct(op: str) -> Callable[..., Symbol]:
    return _values(lambda b, *arguments: b.emit(op, *arguments))


def _scaled(op: str) -> Callable[..., Symbol]:
    def lower(b: Builder, x: int, y: int, *, alpha: float = 1) -> int:
        return b.emit(op, x, y if alpha == 1 else b.emit("mul", y, b.constant(alpha)))

    return _values(lower)


def _div(b: Builder, x: int, y: int, *, rounding_mode: str | None = None) -> int:
    quotient = b.emit("div", x, y)
    if rounding_mode == "floor":
        # From the remainder, as in Python: the floor of a rounded quotient may be one too large.
        whole = b.emit("round", b.emit("div", b.emit("sub", x, _remainder(b, x, y)), y))
        return b.emit("select_eq", y, b.constant(0.0), quotient, whole)
    return quotient if rounding_mode is None else b.emit("trunc", quotient)


def _pow(b: Builder, x: int, y: int) -> int:
    exponent = b.constant_of(y)
    if exponent is None or b.constant_of(x) is not None:
        return b.emit("pow", x, y)
    if exponent in (0.5, -0.5):  # as torch does, which is what makes -inf a NaN
        return b.emit("sqrt" if exponent > 0 else "rsqrt", x)
    if exponent not in (1, 2, 3, -1, -2):
        return b.emit("pow", x, y)
    power = x
    for _ in range(int(abs(exponent)) - 1):
        power = b.emit("mul", power, x)
    return power if exponent > 0 else b.emit("reciprocal", power)


def _round(b: Builder, x: int, *, decimals: int = 0) -> int:
    if decimals != 0:
        raise Unsupported("decimals has no form in a kernel; write torch.round(x * 10**n) / 10**n")
    return b.emit("round", x)


def _sign(b: Builder, x: int) -> int:
    zero = b.constant(0.0)
    return b.emit("select_gt", x, zero, b.constant(1.0), b.emit("select_gt", zero, x, b.constant(-1.0), zero))


def _relu(b: Builder, x: int) -> int:
    zero = b.constant(0.0)
    return b.emit("select_ge", zero, x, zero, x)  # this way round NaN goes through


def _at_least(b: Builder, x: int, low: int) -> int:
    return b.emit("select_gt", low, x, low, x)


def _at_most(b: Builder, x: int, high: int) -> int:
    return b.emit("select_gt", x, high, high, x)


def _clamp(b: Builder, x: int, low: int | None = None, high: int | None = None) -> int:
    for bound in (low, high):
        if bound is not None and _is_nan(b, bound):
            raise Unsupported("a bound is NaN; give a number or None")
    if low is not None:
        x = _at_least(b, x, low)
    return x if high is None else _at_most(b, x, high)


def _is_nan(b: Builder, x: int) -> bool:
    value = b.constant_of(x)
    return value is not None and math.isnan(value)


def _hardtanh(b: Builder, x: int, low: int | None = None, high: int | None = None) -> int:
    low = b.constant(-1.0) if low is None else low
    high = b.constant(1.0) if high is None else high
    return b.emit("select_ge", low, x, low, b.emit("select_ge", x, high, high, x))


def _hardsigmoid(b: Builder, x: int) -> int:
    three, zero, one = b.constant(3.0), b.constant(0.0), b.constant(1.0)
    inner = b.emit("mul", b.emit("add", x, three), b.constant(1.0 / 6.0))
    upper = b.emit("select_ge", x, three, one, inner)
    return b.emit("select_ge", b.constant(-3.0), x, zero, upper)


def _elu(
    b: Builder, x: int, alpha: int | None = None, scale: int | None = None, inner: int | None = None
) -> int:
    zero, one = b.constant(0.0), b.constant(1.0)
    alpha, scale, inner = (one if value is None else value for value in (alpha, scale, inner))
    below = b.emit("expm1", b.emit("mul", b.emit("select_gt", x, zero, zero, x), inner))
    below = b.emit("mul", below, b.emit("mul", alpha, scale))
    return b.emit("select_gt", x, zero, b.emit("mul", x, scale), below)


def _softplus(b: Builder, x: int, beta: int | None = None, threshold: int | None = None) -> int:
    beta = b.constant(1.0) if beta is None else beta
    threshold = b.constant(20.0) if threshold is None else threshold
    scaled = b.emit("mul", x, beta)
    curved = b.emit("div", b.emit("log1p", b.emit("exp", scaled)), beta)
    return b.emit("select_gt", scaled, threshold, x, curved)


def _silu_backward(b: Builder, gradient: int, x: int) -> int:
    one, s = b.constant(1.0), b.emit("sigmoid", x)
    inner = b.emit("add", one, b.emit("mul", x, b.emit("sub", one, s)))
    return b.emit("mul", gradient, b.emit("mul", s, inner))


def _shrink_backward(b: Builder, gradient: int, x: int, bound: int) -> int:
    zero = b.constant(0.0)
    inside = b.emit("select_ge", bound, x, zero, gradient)
    return b.emit("select_ge", x, b.emit("neg", bound), inside, gradient)


def _lerp(b: Builder, x: int, y: int, weight: int) -> int:
    step = b.emit("sub", y, x)
    near_y = b.emit("sub", y, b.emit("mul", step, b.emit("sub", b.constant(1.0), weight)))
    near_x = b.emit("add", x, b.emit("mul", weight, step))
    return b.emit("select_gt", b.constant(0.5), b.emit("abs", weight), near_x, near_y)


def _ignoring_nan(op: str) -> Callable[..., Symbol]:
    def lower(b: Builder, x: int, y: int) -> int:
        return b.emit("select_eq", y, y, b.emit("select_eq", x, x, b.emit(op, x, y), y), x)

    return _values(lower)


def _logaddexp(b: Builder, x: int, y: int) -> int:
    apart = b.emit("select_eq", x, y, b.constant(0.0), b.emit("sub", x, y))  # equal infinities are 0 apart
    tail = b.emit("log1p", b.emit("exp", b.emit("neg", b.emit("abs", apart))))
    return b.emit("add", b.emit("maximum", x, y), tail)


def _remainder(b: Builder, x: int, y: int) -> int:
    zero, rest = b.constant(0.0), b.emit("fmod", x, y)
    moved = b.emit("add", rest, y)
    below = b.emit("select_gt", rest, zero, moved, rest)  # for a negative divisor
    above = b.emit("select_gt", zero, rest, moved, rest)
    return b.emit("select_gt", zero, y, below, above)


def _sigmoid_backward(b: Builder, gradient: int, y: int) -> int:
    return b.emit("mul", gradient, b.emit("mul", y, b.emit("sub", b.constant(1.0), y)))


def _tanh_backward(b: Builder, gradient: int, y: int) -> int:
    return b.emit("mul", gradient, b.emit("sub", b.constant(1.0), b.emit("mul", y, y)))


def _where(b: Builder, condition: Symbol, x: Symbol, y: Symbol) -> Symbol:
    value = _condition(b, condition).select(b, number(b, x), number(b, y))
    both = isinstance(x, Condition) and isinstance(y, Condition)
    return Condition("gt", (value, b.constant(0.0))) if both else value


def _compare(kind: str, swap: bool = False, invert: bool = False) -> Callable[..., Symbol]:
    def lower(b: Builder, x: int, y: int) -> Condition:
        condition = Condition(kind, (y, x) if swap else (x, y))
        return condition.invert() if invert else condition

    return _values(lower)


def _logical(kind: str) -> Callable[..., Symbol]:
    def lower(b: Builder, x: Symbol, y: Symbol) -> Condition:
        return Condition(kind, (_condition(b, x), _condition(b, y)))

    return lower


def _xor(b: Builder, x: Symbol, y: Symbol) -> Condition:
    # As numbers: put together from selections its size would double with each one.
    one, zero = b.constant(1.0), b.constant(0.0)
    other = _condition(b, y).select(b, one, zero)
    value = _condition(b, x).select(b, b.emit("sub", one, other), other)
    return Condition("gt", (value, zero))


def _isinf(b: Builder, x: int) -> Condition:
    return Condition("eq", (b.emit("abs", x), b.constant(math.inf)))


def _isnan(b: Builder, x: int) -> Condition:
    return Condition("not", (Condition("eq", (x, x)),))


_UNARY = (
    "neg abs floor ceil trunc reciprocal sqrt rsqrt sigmoid tanh exp expm1 log log1p exp2 log2 log10 "
    "sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc"
).split()

#: By the name of the ATen operation, whatever its overload. Arguments are symbols (numbers come as constants)
#: or None; results are symbols.
LOWERINGS: dict[str, Callable[..., Symbol]] = {
    **{name: _direct(name) for name in _UNARY},
    **{name: _direct(name) for name in ("mul", "maximum", "minimum", "atan2", "fmod")},
    "fix": _direct("trunc"),
    "add": _scaled("add"),
    "sub": _scaled("sub"),
    "rsub": lambda b, x, y, *, alpha=1: _scaled("sub")(b, y, x, alpha=alpha),
    "div": _values(_div),
    "pow": _values(_pow),
    "round": _values(_round),
    "sign": _values(_sign),
    "sgn": _values(_sign),
    "relu": _values(_relu),
    "clamp": _values(_clamp),
    "clamp_min": _values(_at_least),
    "clamp_max": _values(_at_most),
    "hardtanh": _values(_hardtanh),
    "hardsigmoid": _values(_hardsigmoid),
    "elu": _values(_elu),
    "silu": _values(lambda b, x: b.emit("mul", x, b.emit("sigmoid", x))),
    "silu_backward": _values(_silu_backward),
    "frac": _values(lambda b, x: b.emit("sub", x, b.emit("trunc", x))),
    "lerp": _values(_lerp),
    "fmax": _ignoring_nan("maximum"),
    "fmin": _ignoring_nan("minimum"),
    "softshrink_backward": _values(_shrink_backward),
    "hardshrink_backward": _values(_shrink_backward),
    "softplus": _values(_softplus),
    "logaddexp": _values(_logaddexp),
    "remainder": _values(_remainder),
    "sigmoid_backward": _values(_sigmoid_backward),
    "tanh_backward": _values(_tanh_backward),
    "where": _where,
    "masked_fill": lambda b, x, mask, value: _where(b, mask, value, x),
    "gt": _compare("gt"),
    "ge": _compare("ge"),
    "lt": _compare("gt", swap=True),
    "le": _compare("ge", swap=True),
    "eq": _compare("eq"),
    "ne": _compare("eq", invert=True),
    "isnan": _values(_isnan),
    "isinf": _values(_isinf),
    "logical_and": _logical("and"),
    "logical_or": _logical("or"),
    "logical_xor": _xor,
    "logical_not": lambda b, x: _condition(b, x).invert(),
    "bitwise_and": _logical("and"),
    "bitwise_or": _logical("or"),
    "bitwise_xor": _xor,
    "bitwise_not": lambda b, x: _condition(b, x).invert(),
}
