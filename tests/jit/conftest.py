"""The compiled cells and functions, once for all tests of this folder; a cache folder for tests of builds."""

from pathlib import Path

import pytest
from support_builds import RECIPE, Writer, includes, set_up
from support_cells import NAMED, random_function
from support_native import Library, build

from customlstm.jit import cache, trace
from customlstm.jit.entries import Entry
from customlstm.jit.primitives import PRIMITIVES

#: Cells put together at random that are compiled, too.
RANDOM = range(8)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Library:
    functions = [*NAMED.values(), *map(random_function, RANDOM)]
    primitives = {name: x.arity for name, x in PRIMITIVES.items() if name not in ("add", "sub", "mul")}
    return build(tmp_path_factory.mktemp("native"), [trace(x) for x in functions], primitives)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache folder, not yet made."""
    return set_up(monkeypatch, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of headers."""
    return includes(tmp_path / "includes")


@pytest.fixture
def entry() -> Entry:
    return cache.obtain(RECIPE, Writer())
