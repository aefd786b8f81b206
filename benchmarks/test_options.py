"""Options of the cell and of the module against the plain cell, all fused.

nn.LSTM has none of them. What they compute is compared with plain PyTorch first, but for those that draw
masks; where float32 leaves two right results far apart, by their errors against float64.
"""

from __future__ import annotations

from typing import Any

import pytest

from .contenders import (
    EXACT,
    ILL_CONDITIONED,
    MODULE_OPTIONS,
    OPTIONS,
    OURS,
    REFERENCE,
    option_references,
    options,
)
from .grid import Setting
from .measure import DEVICE, TOLERANCES, Ratio, build, check_errors, check_outputs, record

SUITE = "options"
# Layer norm sums over every row twice and keeps twice as much for backward.
TIMES = {name: 1.6 if name == "layer norm" else 1.25 for name in (*OPTIONS, *MODULE_OPTIONS)}
RATIOS = [Ratio(f"plain / {name}", OURS, name, 1 / most) for name, most in TIMES.items()]


@pytest.mark.usefixtures("tf32", "threads")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_options(benchmark: Any, setting: Setting, mode: str) -> None:
    runs = build(options(setting, mode, DEVICE))
    all_runs = {**runs, **build(option_references(setting, mode, DEVICE))}
    same = [(name, f"{name}, {REFERENCE}") for name in OPTIONS if name not in ILL_CONDITIONED]
    check_outputs(all_runs, same, TOLERANCES[setting.dtype])
    check_errors(all_runs, [(name, f"{name}, {REFERENCE}", f"{name}, {EXACT}") for name in ILL_CONDITIONED])
    del all_runs
    record(benchmark, runs, setting, mode, suite=SUITE, ours=OURS, ratios=RATIOS, memory_of=options)
