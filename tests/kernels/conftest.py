"""The kernel tests need the compiled library, whichever way it came."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from customlstm import _binary


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips where nothing was compiled; a library that is there and does not load is a failure."""
    status = _binary.status()
    if status.loaded:
        return
    if status.build or "damaged" in status.reason:
        raise pytest.UsageError(f"the compiled library does not load: {status.reason}")
    skip = pytest.mark.skip(reason=f"no compiled library: {status.reason}")
    here = __file__.rpartition("/")[0]
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(skip)


@pytest.fixture
def any_threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest, any_threads: None) -> int:
    """The test runs once on one thread and once on two."""
    torch.set_num_threads(request.param)
    return request.param
