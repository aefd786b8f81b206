"""The functions that generated cells may use: csrc/cpu/functions.inl and csrc/cuda/functions.h against more
exact ones."""

import math

import numpy as np
import pytest
import torch
from support_native import KINDS, Library, kinds
from torch import Tensor

from customlstm.jit.primitives import PRIMITIVES

CPU = [kind for kind in kinds() if kind != "cuda"]
DTYPES = {"float32": (torch.float32, np.float64, 24), "float64": (torch.float64, np.longdouble, 53)}
#: Units in the last place: what csrc/cpu/functions.inl promises.
LIMIT = 2.0

#: numpy's function in the more exact type.
EXACT = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
}


def everything(dtype: torch.dtype) -> Tensor:
    """Numbers of every size and sign, those around the ends of ranges, and what is no number."""
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    info = torch.finfo(dtype)
    generator = torch.Generator().manual_seed(0)
    whole = torch.iinfo(bits)
    spread = torch.randint(whole.min, whole.max, (200_000,), generator=generator, dtype=bits).view(dtype)
    near_one = 1 + torch.randn(50_000, generator=generator, dtype=torch.float64) * 10.0 ** -torch.rand(
        50_000, generator=generator, dtype=torch.float64
    ).mul(16)
    ordinary = torch.rand(200_000, generator=generator, dtype=torch.float64) * 1600 - 800
    small = torch.rand(100_000, generator=generator, dtype=torch.float64) * 240 - 120
    ends = [
        88.72283, 88.72284, -87.33654, -103.97, -103.98, 709.782712893384, 709.7827128933841, -745.13,
        -745.14, -708.3964185322641, -1.0, 1.0, 0.0, -0.0, math.inf, -math.inf, math.nan, info.max, info.min,
        info.tiny, info.smallest_normal / 3, info.eps, -info.eps, 1 - info.eps, 1 + info.eps, math.sqrt(0.5),
        math.sqrt(2.0), -0.5, -0.2928932188134524, 0.41421356237309503,
    ]  # fmt: skip
    numbers = [spread, near_one, -near_one, ordinary, small, torch.tensor(ends, dtype=torch.float64)]
    return torch.cat([x.to(dtype) for x in numbers])


def units_off(found: Tensor, exact: np.ndarray, digits: int, dtype: torch.dtype) -> tuple[float, int]:
    """The largest distance in units in the last place of the exact value, and where it is.

    Infinities and NaN have to be where they are in ``exact``, rounded to ``dtype``.
    """
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    ours = found.numpy()
    with np.errstate(all="ignore"):
        rounded = exact.astype(ours.dtype)
        size = np.abs(np.where(np.isfinite(exact), exact, 1))
        exponent = np.frexp(np.maximum(size, np.asarray(smallest, exact.dtype)))[1]
        unit = np.ldexp(np.ones_like(exact), exponent - digits)
        off = np.abs(ours.astype(exact.dtype) - exact) / unit
    same = (ours == rounded) | (np.isnan(ours) & np.isnan(rounded))
    # Beside the largest number infinity is one unit away, on both sides.
    edge = np.isinf(rounded) & (np.abs(ours) == largest) | np.isinf(ours) & (np.abs(rounded) == largest)
    off = np.where(same, np.where(np.isfinite(exact) & np.isfinite(ours), off, 0), np.where(edge, 1, off))
    off = np.where(np.isnan(off), np.inf, off)
    worst = int(np.argmax(off))
    return float(off[worst]), worst


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CPU)
@pytest.mark.parametrize("name", EXACT)
def test_accuracy_over_the_whole_range(compiled: Library, kind: str, dtype: str, name: str) -> None:
    torch_dtype, wide, digits = DTYPES[dtype]
    x = everything(torch_dtype)
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.numpy().astype(wide))
    off, at = units_off(compiled.apply(kind, name, x), exact, digits, torch_dtype)
    assert off <= LIMIT, f"{name}({x[at].item()!r}): {off} units off {exact[at]!r}"


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("name", ["exp", "expm1", "log1p", "sqrt", "neg", "floor", "ceil", "round", "trunc"])
def test_sign_of_zero(compiled: Library, kind: str, name: str) -> None:
    x = torch.tensor([0.0, -0.0])
    found, expected = compiled.apply(kind, name, x), PRIMITIVES[name].function(x)
    assert torch.equal(torch.signbit(found), torch.signbit(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("name", [name for name in PRIMITIVES if name not in ("add", "sub", "mul")])
def test_as_torch(compiled: Library, kind: str, dtype: torch.dtype, name: str) -> None:
    """Ordinary and special arguments, in all combinations."""
    special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        -2.5,
        2.5,
        3.0,
        -3.0,
        100.0,
        -100.0,
        math.inf,
        -math.inf,
        math.nan,
    ]
    ordinary = torch.linspace(-4, 4, 40).tolist()
    arity = PRIMITIVES[name].arity
    numbers = torch.tensor(special + (ordinary if arity < 4 else []), dtype=dtype)
    first, second = (x.flatten() for x in torch.meshgrid(numbers, numbers, indexing="ij"))
    arguments = [first, second, first + 1, second - 1][:arity] if arity > 1 else [numbers]
    found, expected = compiled.apply(kind, name, *arguments), PRIMITIVES[name].function(*arguments)
    # torch's own vectorised functions are a few units off, and so is a GPU's form of sigmoid and tanh.
    tolerance = 1e-12 if dtype == torch.float64 else 5e-6 if kind == "cuda" else 1e-6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_every_value_type_has_a_place_in_the_library() -> None:
    assert {"default", "cuda"} <= set(kinds()) <= set(KINDS)


def test_units_off_sees_what_is_wrong() -> None:
    exact = np.array([1.0, 2.0, np.inf, np.nan, 0.0])
    right = torch.tensor([1.0, 2.0, math.inf, math.nan, 0.0])
    assert units_off(right, exact, 24, torch.float32) == (0.0, 0)
    for at, wrong in enumerate([1 + 4 * 2.0**-23, math.nan, 1.0, 0.0, 1e-30]):
        bad = right.clone()
        bad[at] = wrong
        off, where = units_off(bad, exact, 24, torch.float32)
        assert off > 2 and where == at
