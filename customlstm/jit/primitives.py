"""The operations that a program consists of: what each takes, what it costs, what it is in torch.

Every value is a number; a condition exists only inside ``select_*``, whose first two arguments are compared
and whose last two are the values where the comparison holds and where not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["COMMUTATIVE", "PRIMITIVES", "SAVE_PRICE", "Primitive", "apply", "constant"]

#: What a value that forward keeps for backward costs: a store and a load of one number a unit and step. Just
#: above one tanh, so that whatever is had from the new states by one function is computed again.
SAVE_PRICE = 11

_CHEAP, _DIVISION, _FUNCTION, _LANES = 1, 5, 10, 40  # relative times on a CPU; _LANES: no SIMD form


@dataclass(frozen=True)
class Primitive:
    """One operation: the number of its arguments, its price in backward, and the torch function."""

    arity: int
    price: int
    function: Callable[..., Tensor]


def _unary(price: int, *names: str) -> dict[str, Primitive]:
    return {name: Primitive(1, price, getattr(torch, name)) for name in names}


PRIMITIVES: dict[str, Primitive] = {
    "add": Primitive(2, _CHEAP, torch.add),
    "sub": Primitive(2, _CHEAP, torch.sub),
    "mul": Primitive(2, _CHEAP, torch.mul),
    "div": Primitive(2, _DIVISION, torch.div),
    "maximum": Primitive(2, 3 * _CHEAP, torch.maximum),
    "minimum": Primitive(2, 3 * _CHEAP, torch.minimum),
    "select_gt": Primitive(4, _CHEAP, lambda a, b, x, y: torch.where(a > b, x, y)),
    "select_ge": Primitive(4, _CHEAP, lambda a, b, x, y: torch.where(a >= b, x, y)),
    "select_eq": Primitive(4, _CHEAP, lambda a, b, x, y: torch.where(a == b, x, y)),
    **_unary(_CHEAP, "neg", "abs"),
    **_unary(2 * _CHEAP, "floor", "ceil", "round", "trunc"),
    **_unary(_DIVISION, "reciprocal", "sqrt"),
    **_unary(2 * _DIVISION, "rsqrt"),
    **_unary(_FUNCTION, "sigmoid", "tanh", "exp", "expm1", "log", "log1p"),
    **_unary(_LANES, "exp2", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan"),
    **_unary(_LANES, "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc"),
    "pow": Primitive(2, _LANES, torch.pow),
    "atan2": Primitive(2, _LANES, torch.atan2),
    "fmod": Primitive(2, _LANES, torch.fmod),
}

#: Argument order does not matter to these, not even for NaN.
COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum"})

# torch takes a Python number for these beside a tensor, and then computes with all of its digits in any
# dtype.
_TAKE_NUMBERS = frozenset({"add", "sub", "mul", "div", "pow"})


def constant(value: float, like: Tensor) -> Tensor:
    """0-dimensional, rounded to ``like``'s dtype as C++ does it: what is too large is infinite."""
    if math.isfinite(value) and abs(value) > torch.finfo(like.dtype).max:
        value = math.copysign(math.inf, value)
    return like.new_full((), value)


def apply(op: str, arguments: list[Tensor | float], like: Tensor) -> Tensor:
    """The value of ``op``; numbers among the arguments count as tensors of ``like``'s dtype and device."""

    def tensor(x: Tensor | float) -> Tensor:
        return x if isinstance(x, Tensor) else constant(x, like)

    if op.startswith("select_"):
        # where() of two numbers would be float32, whatever it is for.
        a, b, x, y = arguments
        return PRIMITIVES[op].function(tensor(a), b, *((x, y) if isinstance(x, Tensor) else (tensor(x), y)))
    if op in _TAKE_NUMBERS and any(isinstance(x, Tensor) for x in arguments):
        return PRIMITIVES[op].function(*_first_a_tensor(op, arguments, tensor))
    return PRIMITIVES[op].function(*map(tensor, arguments))


def _first_a_tensor(
    op: str, arguments: list[Tensor | float], tensor: Callable[[Tensor | float], Tensor]
) -> list[Tensor | float]:
    x, y = arguments
    if isinstance(x, Tensor):
        return [x, y]
    if op in COMMUTATIVE:
        return [y, x]
    return [x, y] if op == "pow" else [tensor(x), y]
