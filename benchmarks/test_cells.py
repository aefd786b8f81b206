"""Changed cells: hard functions and piecewise-linear ones of 16 knots, which nn.LSTM cannot run.

Against the plain cell on the same kernel, the same cell as a TorchScript loop, and in plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import pytest

from .contenders import CELLS, LOOP, OURS, REFERENCE, cells
from .grid import Setting
from .measure import DEVICE, TOLERANCES, Ratio, build, check_outputs, record

SUITE = "cells"
RATIOS = [
    Ratio(title.format(name), of.format(name), to.format(name), least)
    for title, of, to, least in (
        ("plain / {}", OURS, "{}", 1 / 1.15),
        ("loop / ours, {}", f"{{}}, {LOOP}", "{}", 1.0),
        ("reference / ours, {}", f"{{}}, {REFERENCE}", "{}", 1.0),
    )
    for name in CELLS
]


@pytest.mark.usefixtures("tf32", "threads")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_cells(benchmark: Any, setting: Setting, mode: str) -> None:
    runs = build(cells(setting, mode, DEVICE))
    same = [(name, f"{name}, {other}") for name in CELLS for other in (LOOP, REFERENCE)]
    check_outputs(runs, [pair for pair in same if pair[1] in runs], TOLERANCES[setting.dtype])
    record(benchmark, runs, setting, mode, suite=SUITE, ours=OURS, ratios=RATIOS, memory_of=cells)
