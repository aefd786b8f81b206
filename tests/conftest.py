"""Settings of the whole suite."""

import os
import tempfile
from typing import Any

import pytest
import torch

#: Folders whose tests share what a fixture of the session compiles.
_SHARE_LIBRARIES = ("cuda",)


def pytest_configure(config: pytest.Config) -> None:
    # Warnings are errors here. Where no library was built, this one is expected; its own tests ask for it.
    config.addinivalue_line("filterwarnings", "ignore::customlstm.FallbackWarning")
    # The suite runs in parallel with other work; results do not depend on the number of threads.
    torch.set_num_threads(1)
    # Tests ask for teams of up to 4 threads, on whatever machine.
    os.environ["CUSTOMLSTM_OVERSUBSCRIBE"] = "1"
    # Cells are built anew in every run, in a folder of its own, unless one is named: for whoever runs many.
    if "CUSTOMLSTM_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="customlstm-tests-")
        os.environ["CUSTOMLSTM_CACHE_DIR"] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes share the tests, one file is for one of them, and so is what shares libraries.

    Fixtures of a module or a session that compile something would otherwise do so in every process.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            shared = (folder for folder in _SHARE_LIBRARIES if file.startswith(f"tests/{folder}/"))
            return next(shared, file)

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
