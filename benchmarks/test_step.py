"""One step, Python included: a sequence of length 1, LSTMCell, and Stream, which keeps the packed weights.

The states go from call to call.

A run is many calls, since one takes microseconds; the times are those of one.
"""

from __future__ import annotations

from typing import Any

import pytest

from .contenders import OURS, THEIRS, make_input
from .grid import Setting
from .measure import DEVICE, TOLERANCES, Ratio, check_outputs, record
from .steps import OUR_CELL, STREAM, THEIR_CELL, modules, steps, stream_steps

SUITE = "step"
RATIOS = [
    Ratio("nn.LSTM / ours", THEIRS, OURS),
    Ratio("nn.LSTMCell / our LSTM", THEIR_CELL, OURS),
    Ratio("nn.LSTMCell / our LSTMCell", THEIR_CELL, OUR_CELL),
    Ratio("nn.LSTM / Stream", THEIRS, STREAM),
    Ratio("nn.LSTMCell / Stream", THEIR_CELL, STREAM),
]
CALLS = {"inference": 100, "training": 20}


@pytest.mark.usefixtures("tf32", "threads")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_step(benchmark: Any, setting: Setting, mode: str) -> None:
    x = make_input(setting, mode, DEVICE)
    calls = CALLS[mode]
    runs = {name: steps(module, x, calls, mode) for name, module in modules(setting, DEVICE).items()}
    if mode == "inference":
        runs[STREAM] = stream_steps(setting, x, calls, DEVICE)
    check_outputs(runs, [(name, THEIRS) for name in runs if name != THEIRS], TOLERANCES[setting.dtype])
    record(benchmark, runs, setting, mode, suite=SUITE, ours=OURS, ratios=RATIOS, calls=calls)
