"""The comparisons themselves: they must fail where they should, and say where."""

from __future__ import annotations

import pytest
import torch
from support_compare import assert_close, assert_same_bits, first_bit_difference, worst_difference


def changed(value: float, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor, and a copy that differs at [1, 2] only."""
    expected = torch.arange(12, dtype=dtype).view(3, 4)
    actual = expected.clone()
    actual[1, 2] = value
    return actual, expected


@pytest.mark.parametrize("value", [6 + 1e-9, -6.0, torch.nan, torch.inf, -torch.inf])
def test_a_difference_is_found_and_located(value: float) -> None:
    text = worst_difference(*changed(value), 1e-12)
    assert text is not None and "at [1, 2] of [3, 4], expected 6.0" in text and "1 of 12" in text
    # also the other way round, when the expectation is the odd one
    assert "at [1, 2]" in worst_difference(*reversed(changed(value)), 1e-12)


def test_the_worst_of_several_is_named() -> None:
    actual, expected = changed(6.5)
    actual[2, 3] += 2.0
    actual[0, 0] += 0.1
    assert "13.0 at [2, 3]" in worst_difference(actual, expected, 1e-12)
    actual[0, 1] = torch.nan  # worse than any number
    assert "nan at [0, 1]" in worst_difference(actual, expected, 1e-12)


def test_the_bound_is_absolute_and_inclusive() -> None:
    actual, expected = changed(6.5)
    assert worst_difference(actual, expected, 0.5) is None
    assert worst_difference(actual, expected, 0.4999) is not None


def test_the_relative_bound_adds_to_the_absolute_one() -> None:
    actual, expected = changed(6.65)
    assert worst_difference(actual, expected, 0.1, relative=0.1) is None  # 0.1 + 0.1 * 6
    text = worst_difference(actual, expected, 0.0, relative=0.1)
    assert "6.65 at [1, 2]" in text and "0.65 apart, allowed 0.6" in text
    actual[0, 1] = 1.3  # closer than the other, but further beyond what it is allowed
    assert "1.3 at [0, 1]" in worst_difference(actual, expected, 0.0, relative=0.1)


def test_equal_infinities_and_nans_agree() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    assert worst_difference(x, x.clone(), 0.0) is None
    assert "at [0]" in worst_difference(x, -x, 0.0)


def test_shape_and_dtype_count() -> None:
    x = torch.zeros(2, 3)
    assert "shape [2, 3], expected [3, 2]" == worst_difference(x, x.t(), 1.0)
    assert "float32, expected torch.float64" in worst_difference(x, x.double(), 1.0)
    assert worst_difference(torch.zeros(0, 3), torch.zeros(0, 3), 0.0) is None


def test_failures_list_every_wrong_tensor_by_name() -> None:
    actual, expected = changed(7.0)
    with pytest.raises(AssertionError, match=r"the case\n  h: 7.0 at \[1, 2\]"):
        assert_close({"output": expected, "h": actual}, {"output": expected, "h": expected}, "the case")
    with pytest.raises(AssertionError, match="got \\['output'\\], expected \\['output', 'h'\\]"):
        assert_close({"output": expected}, {"output": expected, "h": expected})
    assert_close({"output": expected}, {"output": expected.clone()})


def test_bits_tell_what_numbers_do_not() -> None:
    x = torch.tensor([1.0, 0.0, torch.nan])
    assert first_bit_difference(x, x.clone()) is None
    assert "0.0 at [1] of [3], expected -0.0" in first_bit_difference(x, torch.tensor([1.0, -0.0, torch.nan]))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        y = x.to(dtype)
        assert first_bit_difference(y, y.clone()) is None
        z = y.clone()
        z[0] = z[0].nextafter(y[1]) if dtype != torch.float16 else 1.001
        assert "at [0]" in first_bit_difference(z, y)
    with pytest.raises(AssertionError, match=r"2 threads\n  output: 0\.0 at"):
        assert_same_bits({"output": x}, {"output": torch.tensor([1.0, -0.0, torch.nan])}, "2 threads")
