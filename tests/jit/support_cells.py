"""Cells that several tests trace, and what plain PyTorch makes of a cell function."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from customlstm.jit import Program

Function = Callable[..., Any]


def standard(i, f, g, o, c):
    i = torch.sigmoid(i)
    f = torch.sigmoid(f)
    g = torch.tanh(g)
    o = torch.sigmoid(o)
    c = f * c + i * g
    h = o * torch.tanh(c)
    return h, c


def hard_sigmoid(i, f, g, o, c):
    # As a clamp, since torch's own hardsigmoid_backward multiplies float64 by a sixth in float32.
    i = torch.clamp(i / 6 + 0.5, 0, 1)
    f = torch.clamp(f / 6 + 0.5, min=0).clamp(max=1)
    c *= f
    c += i * F.hardtanh(g)
    return F.relu6(o + 3) / 6 * F.softsign(c), c


def peephole(i, f, g, o, c, *, p_i, p_f=0.0, p_o=0.5):
    i = torch.sigmoid(i + p_i * c)
    f = torch.sigmoid(f + p_f * c)
    c = f * c + i * torch.tanh(g)
    o = torch.sigmoid(o + p_o * c)
    return o * torch.tanh(c), c


def coupled(i, g, o, c):
    i = torch.sigmoid(i)
    c = (1 - i) * c + i * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def slstm(i, f, z, o, c, n, m):
    """Beck et al. 2024, equations 8 to 17, with the stabiliser m."""
    log_f = F.logsigmoid(f) + m
    m = torch.maximum(log_f, i)
    i = torch.exp(i - m)
    f = torch.exp(log_f - m)
    c = f * c + i * torch.tanh(z)
    n = f * n + i
    h = torch.sigmoid(o) * c / n
    return h, c, n, m


def janet(f, g, c):
    """van der Westhuizen and Lasenby 2018."""
    f = torch.sigmoid(f)
    c = f * c + (1 - f) * torch.tanh(g)
    return c, c


def nas(a0, a1, a2, a3, a4, a5, a6, a7, c):
    """Zoph and Le 2017, figure 8, as a cell of eight gates."""
    first = torch.tanh(torch.sigmoid(a0) * F.relu(a1))
    second = torch.tanh(torch.sigmoid(a2) * torch.tanh(a3))
    third = torch.sigmoid(F.relu(a4) + torch.sigmoid(a5))
    fourth = torch.tanh(torch.tanh(a6) * torch.sigmoid(a7))
    c = torch.tanh(first + c) * torch.sigmoid(second)
    return torch.tanh(c * third * fourth), c


def leaky(a, c, *, decay=0.9):
    c = decay * c + torch.tanh(a)
    return c.sin(), c


def swap(a, c, d):
    """Results that are arguments."""
    return c, d, c


def constants(a, c):
    """Constants of every kind, a result that depends on nothing, and a gate without a gradient."""
    return torch.where(c < 1e300, c * 0.1, float("nan")), torch.full_like(c, float("-inf"))


NAMED: dict[str, Function] = {
    x.__name__: x
    for x in (standard, hard_sigmoid, peephole, coupled, slstm, janet, nas, leaky, swap, constants)
}

#: Unary functions that a cell may use, on all numbers: each with what keeps it in its domain and its slope
#: small.
UNARY: dict[str, Function] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "sgn": torch.sgn,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "frac": torch.frac,
    "square": torch.square,
    "positive": torch.positive,
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.1),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.5),
    "reciprocal": lambda x: 1 / (x * x + 1),
    "divide": lambda x: x / (2 + torch.tanh(x)),
    "exp": lambda x: torch.exp(-x.abs()),
    "exp2": lambda x: torch.exp2(-x.abs()),
    "expm1": lambda x: torch.expm1(-x.abs()),
    "log": lambda x: torch.log(x.abs() + 0.5),
    "log2": lambda x: torch.log2(x.abs() + 0.5),
    "log10": lambda x: torch.log10(x.abs() + 0.5),
    "log1p": lambda x: torch.log1p(x.abs()),
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": lambda x: torch.tan(torch.tanh(x)),
    "asin": lambda x: torch.asin(torch.tanh(x) / 2),
    "acos": lambda x: torch.acos(torch.tanh(x) / 2),
    "atan": torch.atan,
    "sinh": lambda x: torch.sinh(torch.tanh(x)),
    "cosh": lambda x: torch.cosh(torch.tanh(x)),
    "asinh": torch.asinh,
    "acosh": lambda x: torch.acosh(x.abs() + 1.5),
    "atanh": lambda x: torch.atanh(torch.tanh(x) / 2),
    "sinc": torch.sinc,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "sigmoid": torch.sigmoid,
    "expit": torch.special.expit,
    "tanh": torch.tanh,
    "logit": lambda x: torch.logit(torch.sigmoid(x) * 0.8 + 0.1),
    "ndtr": torch.special.ndtr,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.25], dtype=x.dtype)),
    "elu": F.elu,
    "elu_alpha": lambda x: F.elu(x, 1.5),
    "celu": lambda x: F.celu(x, alpha=2.0),
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "softplus": F.softplus,
    "softplus_beta": lambda x: F.softplus(x, beta=2.0, threshold=1.0),
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 2.0),
    "clamp": lambda x: torch.clamp(x, -0.5, 0.5),
    "clamp_min": lambda x: x.clamp(min=0.1),
    "clip_max": lambda x: x.clip(max=0.1),
    "pow_2": lambda x: torch.tanh(x) ** 2,
    "pow_3": lambda x: torch.tanh(x) ** 3,
    "pow_half": lambda x: (x.abs() + 0.1) ** 0.5,
    "pow_minus_2": lambda x: (x.abs() + 1) ** -2,
    "pow_real": lambda x: (x.abs() + 0.1) ** 1.7,
    "pow_of_number": lambda x: 2.0 ** torch.tanh(x),
    "fmod": lambda x: torch.fmod(x, 0.75),
    "remainder": lambda x: x % 0.75,
    "remainder_negative": lambda x: torch.remainder(x, -0.75),
    "div_trunc": lambda x: torch.div(x, 0.75, rounding_mode="trunc") + x,
    "deg2rad": torch.deg2rad,
    "nan_inf": lambda x: torch.where(x.isnan() | x.isinf() | ~torch.isfinite(x), 0.0, x),
    "in_place": lambda x: (x * 2).mul_(x).add_(1).sigmoid_(),
    "silu_in_place": lambda x: F.silu(x + 1, inplace=True),
    "constant": lambda x: x * torch.tensor(0.3, dtype=torch.float64) + torch.full_like(x, 0.1),
    "mask_product": lambda x: (x > 0.3) * x + (x < -0.3).to(x.dtype) + (x == 0).float(),
    "masked_fill": lambda x: x.masked_fill(x > 0.5, 0.5),
    "zeroed": lambda x: x.clone().zero_() + x,
}

#: The same for two arguments.
BINARY: dict[str, Function] = {
    "add": torch.add,
    "sub": lambda x, y: torch.sub(x, y, alpha=3),
    "rsub": lambda x, y: torch.rsub(x, y, alpha=2),
    "mul": lambda x, y: torch.tanh(x) * y,
    "div": lambda x, y: x / (y * y + 1),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "max": lambda x, y: torch.max(x, y),
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "atan2": lambda x, y: torch.atan2(x, y.abs() + 0.5),
    "fmod": lambda x, y: torch.fmod(x, y.abs() + 1),
    "remainder": lambda x, y: torch.remainder(x, y.abs() + 1),
    "pow": lambda x, y: (x.abs() + 0.5) ** torch.tanh(y),
    "logaddexp": torch.logaddexp,
    "xlogy": lambda x, y: torch.xlogy(x, y.abs() + 0.5),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "lerp_by": lambda x, y: torch.lerp(x, y * 2, torch.sigmoid(x)),
    "addcmul": lambda x, y: torch.addcmul(x, torch.tanh(x), y, value=0.5),
    "addcdiv": lambda x, y: torch.addcdiv(x, y, y.abs() + 1),
    "clamp_tensor": lambda x, y: torch.clamp(x, min=-y.abs() - 0.5, max=y.abs()),
    "where": lambda x, y: torch.where(x > y, x, y * 0.5),
    "where_and": lambda x, y: torch.where((x >= y) & (y < 1), x, 0.5),
    "where_or": lambda x, y: torch.where((x <= 0) | ~(y != 0), x, y),
    "where_xor": lambda x, y: torch.where((x > 0) ^ (y > 0), x, y),
    "where_where": lambda x, y: torch.where(x > 0, x > 1, y < 0) * y,
    "logical": lambda x, y: torch.where(torch.logical_and(x, y > 0).logical_not(), x, -y),
    "isclose": lambda x, y: torch.where(torch.isclose(x, y), x, y),
    "detached": lambda x, y: x.detach() * y,
}


def random_function(seed: int) -> Function:
    """A cell of three gates, two states and a parameter, put together from UNARY and BINARY at random."""
    choices = random.Random(seed)
    steps = []
    for number in range(choices.randint(3, 9)):
        if choices.random() < 0.5:
            steps.append((UNARY[choices.choice(list(UNARY))], [choices.randrange(6 + number)]))
        else:
            steps.append(
                (BINARY[choices.choice(list(BINARY))], [choices.randrange(6 + number) for _ in range(2)])
            )
    results = [choices.randrange(6, 6 + len(steps)) for _ in range(3)]

    def made(a, b, g, c, d, *, p=0.25):
        values = [a, b, g, c, d, p]
        for function, arguments in steps:
            values.append(function(*(values[x] for x in arguments)))
        return tuple(values[x] for x in results)

    made.__name__ = f"random_{seed}"
    return made


@dataclass
class Values:
    """A cell's arguments, gradients of its results, and what plain PyTorch makes of them: all [n]."""

    gates: list[Tensor]
    states: list[Tensor]
    parameters: list[Tensor]
    dh: Tensor
    dstates: list[Tensor]
    results: list[Tensor]  # h and the new states
    gradients: list[Tensor]  # of states, gates and parameters


#: Where the functions of a cell have their kinks.
KINKS = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0, 0.1, -0.1, 2.0]


def in_torch(function: Function, program: Program, count: int = 64, seed: int = 0) -> Values:
    """``function`` and autograd in float64, on random numbers and then on kinks."""
    generator = torch.Generator().manual_seed(seed)
    names = [*program.gates, *program.states, *program.parameters]

    def numbers(shift: int) -> Tensor:
        kinks = torch.tensor(KINKS, dtype=torch.float64).roll(shift)
        ordinary = torch.randn(count - len(KINKS), generator=generator, dtype=torch.float64)
        return torch.cat([ordinary * 2, kinks])

    inputs = [numbers(k).requires_grad_() for k in range(len(names))]
    positional = len(program.gates) + len(program.states)
    parameters = dict(zip(program.parameters, inputs[positional:], strict=True))
    results = function(*(x.clone() for x in inputs[:positional]), **parameters)
    given = [torch.randn(count, generator=generator, dtype=torch.float64) for _ in results]
    pairs = [(x, d) for x, d in zip(results, given, strict=True) if x.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if pairs:
        outputs, dresults = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, inputs, dresults, allow_unused=True)
    gradients = [torch.zeros_like(given[0]) if d is None else d for d in found]
    inputs, gates = [x.detach() for x in inputs], len(program.gates)
    return Values(
        inputs[:gates],
        inputs[gates:positional],
        inputs[positional:],
        given[0],
        given[1:],
        [x.detach() for x in results],
        [*gradients[gates:positional], *gradients[:gates], *gradients[positional:]],
    )
