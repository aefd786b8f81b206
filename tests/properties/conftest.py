"""One profile for every run: the same examples everywhere, no time limit, nothing written to disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from customlstm import _binary

# The helpers of the kernel tests, which are imported by name.
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

settings.register_profile(
    "reproducible",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("reproducible")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These are laws of the fused kernels. (tests/kernels fails where a library is there and does not
    load.)
    """
    status = _binary.status()
    if status.loaded:
        return
    skip = pytest.mark.skip(reason=f"no compiled library: {status.reason}")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(skip)
