"""The compiled cells and functions, once for all tests of this folder."""

import pytest
from support_cells import NAMED, random_function
from support_native import Library, build

from customlstm.jit import trace
from customlstm.jit.primitives import PRIMITIVES

#: Cells put together at random that are compiled, too.
RANDOM = range(8)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Library:
    functions = [*NAMED.values(), *map(random_function, RANDOM)]
    primitives = {name: x.arity for name, x in PRIMITIVES.items() if name not in ("add", "sub", "mul")}
    return build(tmp_path_factory.mktemp("native"), [trace(x) for x in functions], primitives)
