"""Helpers that several test files share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import customlstm
from customlstm import _binary

#: The backends that can run here.
BACKENDS = ["reference", *(["fused"] if _binary.status().loaded else [])]


def lstm_pair(backend: str, *args: Any, **options: Any) -> tuple[nn.LSTM, customlstm.LSTM]:
    """``nn.LSTM`` and ``customlstm.LSTM`` in float64 with equal weights."""
    theirs = nn.LSTM(*args, dtype=torch.float64, **options)
    ours = customlstm.LSTM(*args, dtype=torch.float64, backend=backend, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_near(actual: Tensor, expected: Tensor, what: str = "", tolerance: float = 1e-12) -> None:
    """Equal shapes and dtypes, no element further apart than ``tolerance``; names the worst coordinate."""
    assert actual.shape == expected.shape, (
        f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    )
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    if actual.numel() == 0:
        return
    error = (actual - expected).abs()
    assert not error.isnan().any(), f"{what}: NaN at {error.isnan().nonzero()[0].tolist()}"
    worst = int(error.argmax())
    at = [int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)]
    assert error.flatten()[worst] <= tolerance, (
        f"{what}: {actual.flatten()[worst].item()!r} at {at}, expected {expected.flatten()[worst].item()!r}, "
        f"{error.flatten()[worst].item():.3g} apart"
    )


def assert_all_near(
    actual: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str], tolerance: float = 1e-12
) -> None:
    """:func:`assert_near` for every pair."""
    for a, e, name in zip(actual, expected, names, strict=True):
        assert_near(a, e, name, tolerance)


def weighted_sum(tensors: Sequence[Tensor]) -> Tensor:
    """A scalar on which every element of ``tensors`` has an influence of its own; the same at every call."""
    generator = torch.Generator().manual_seed(1)
    return sum((t * torch.rand(t.shape, generator=generator, dtype=t.dtype)).sum() for t in tensors)
