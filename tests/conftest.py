"""Settings of the whole suite."""

import os
import tempfile

import pytest
import torch


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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
