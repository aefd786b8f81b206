"""The helpers fail when they should, and say where."""

import pytest
import torch
from support import assert_near, weighted_sum


def test_assert_near() -> None:
    expected = torch.zeros(2, 3, dtype=torch.float64)
    assert_near(expected.clone(), expected)
    off = expected.clone()
    off[1, 2] = 2e-12
    with pytest.raises(AssertionError, match=r"here: 2e-12 at \[1, 2\], expected 0.0, 2e-12 apart"):
        assert_near(off, expected, "here")
    off[0, 1] = float("nan")
    with pytest.raises(AssertionError, match=r"NaN at \[0, 1\]"):
        assert_near(off, expected)
    with pytest.raises(AssertionError, match=r"shape \[3, 2\], expected \[2, 3\]"):
        assert_near(expected.t(), expected)
    with pytest.raises(AssertionError, match=r"torch\.float32, expected torch\.float64"):
        assert_near(expected.float(), expected)


def test_weighted_sum_sees_every_element() -> None:
    x = torch.zeros(4, 5, requires_grad=True)
    weights = torch.autograd.grad(weighted_sum([x]), x)[0]
    assert len(weights.unique()) == x.numel()
    assert torch.equal(weights, torch.autograd.grad(weighted_sum([x]), x)[0])
