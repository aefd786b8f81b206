"""Cells that users write: the cell of nn.LSTM written out against the one that is built in, and an sLSTM
against the loop that one writes without this package.

The loop is the same Python function, called step after step; and once more in TorchScript.
"""

from __future__ import annotations

from typing import Any

import pytest

from .contenders import LOOP, OURS, PYTHON_LOOP, WRITTEN, written
from .grid import Setting
from .measure import DEVICE, TOLERANCES, Ratio, build, check_outputs, record

SUITE = "written"
COPY, SLSTM = WRITTEN
RATIOS = [
    Ratio(f"built in / {COPY}", OURS, COPY, 1 / 1.05),
    Ratio(f"{PYTHON_LOOP} / ours, {SLSTM}", f"{SLSTM}, {PYTHON_LOOP}", SLSTM, 5.0),
    Ratio(f"{LOOP} / ours, {SLSTM}", f"{SLSTM}, {LOOP}", SLSTM, 1.0),
    Ratio(f"built in / {SLSTM}", OURS, SLSTM, 0.0),
]


@pytest.mark.usefixtures("tf32", "threads")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_written(benchmark: Any, setting: Setting, mode: str) -> None:
    runs = build(written(setting, mode, DEVICE))
    same = [(OURS, COPY), *((SLSTM, f"{SLSTM}, {loop}") for loop in (PYTHON_LOOP, LOOP))]
    check_outputs(runs, [pair for pair in same if pair[1] in runs], TOLERANCES[setting.dtype])
    record(benchmark, runs, setting, mode, suite=SUITE, ours=OURS, ratios=RATIOS, memory_of=written)
