"""Comparisons of tensors whose failures name the worst coordinate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def at(tensor: Tensor, flat_index: int) -> list[int]:
    """The coordinate of element ``flat_index`` in row-major order."""
    return [int(i) for i in torch.unravel_index(torch.tensor(flat_index), tensor.shape)]


def worst_difference(actual: Tensor, expected: Tensor, tolerance: float, relative: float = 0.0) -> str | None:
    """What is wrong with ``actual``, or None.

    Elements must agree within ``tolerance + relative * |expected|``. An infinity or a NaN agrees with the
    same only.
    """
    if actual.shape != expected.shape:
        return f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    if actual.dtype != expected.dtype:
        return f"{actual.dtype}, expected {expected.dtype}"
    if actual.numel() == 0:
        return None
    a, e = actual.detach().to(torch.float64), expected.detach().to(torch.float64)
    same = (a == e) | (a.isnan() & e.isnan())
    error = torch.where(same, 0.0, (a - e).abs())
    # A NaN or an infinity on one side only is worse than any number; differences of infinities are NaN, too.
    error = torch.where(same | (a.isfinite() & e.isfinite()), error, torch.inf)
    allowed = tolerance + relative * torch.where(e.isfinite(), e.abs(), 0.0)
    if (error <= allowed).all():
        return None
    index = int((error - allowed).argmax())
    worst, bound = error.flatten()[index].item(), allowed.flatten()[index].item()
    return (
        f"{actual.flatten()[index].item()!r} at {at(error, index)} of {list(error.shape)}, expected "
        f"{expected.flatten()[index].item()!r}; {worst:.3g} apart, allowed {bound:.3g}; "
        f"{int((error > allowed).sum())} of {error.numel()} elements are wrong"
    )


def assert_close(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    what: object = "",
    tolerance: float = 1e-12,
    relative: float = 0.0,
) -> None:
    """Equal names, and no :func:`worst_difference`; a failure lists every tensor that is wrong."""
    assert list(actual) == list(expected), f"{what}: got {list(actual)}, expected {list(expected)}"
    wrong = {name: worst_difference(actual[name], expected[name], tolerance, relative) for name in expected}
    assert not any(wrong.values()), f"{what}\n" + "\n".join(
        f"  {n}: {text}" for n, text in wrong.items() if text
    )


def assert_same_bits(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: object = "") -> None:
    """Equal names, and equal bits in every tensor: -0.0 is not 0.0, NaN is NaN of the same bits."""
    assert list(actual) == list(expected), f"{what}: got {list(actual)}, expected {list(expected)}"
    wrong = {name: first_bit_difference(actual[name], expected[name]) for name in expected}
    assert not any(wrong.values()), f"{what}\n" + "\n".join(
        f"  {n}: {text}" for n, text in wrong.items() if text
    )


def first_bit_difference(actual: Tensor, expected: Tensor) -> str | None:
    """The first coordinate where the bits differ, or None."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return f"{actual.dtype} {list(actual.shape)}, expected {expected.dtype} {list(expected.shape)}"
    different = bits(actual) != bits(expected)
    if not different.any():
        return None
    index = int(different.flatten().to(torch.uint8).argmax())
    return (
        f"{actual.flatten()[index].item()!r} at {at(different, index)} of {list(different.shape)}, expected "
        f"{expected.flatten()[index].item()!r}; {int(different.sum())} of {different.numel()} elements differ"
    )


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns as integers."""
    if not tensor.is_floating_point():
        return tensor
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(integer)
