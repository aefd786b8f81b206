"""Settings of the whole suite."""

import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # Warnings are errors here. Where no library was built, this one is expected; its own tests ask for it.
    config.addinivalue_line("filterwarnings", "ignore::customlstm.FallbackWarning")
    # The suite runs in parallel with other work; results do not depend on the number of threads.
    torch.set_num_threads(1)
    # Tests ask for teams of up to 4 threads, on whatever machine.
    os.environ["CUSTOMLSTM_OVERSUBSCRIBE"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
