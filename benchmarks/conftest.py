"""CUSTOMLSTM_BENCHMARK_SECONDS: what has not begun by then is skipped; the summary counts the skips."""

import os
import time

import pytest

_START = time.monotonic()


@pytest.fixture(autouse=True)
def _in_time() -> None:
    seconds = float(os.environ.get("CUSTOMLSTM_BENCHMARK_SECONDS", "inf"))
    if time.monotonic() - _START > seconds:
        pytest.skip(f"not timed: the {seconds:.0f} seconds for benchmarks are over")
