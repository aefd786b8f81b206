"""torch.compile of a loop over the cell, at few steps: it unrolls them, so that longer ones take minutes."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch

from . import loop
from .contenders import MODES, OURS, THEIRS, make_input, standard, whole
from .contenders import same_weights as ours
from .grid import Setting
from .measure import DEVICE, TOLERANCES, Ratio, build, check_outputs, record

SUITE = "compiled"
COMPILED = "torch.compile of the loop"
RATIOS = [Ratio("nn.LSTM / ours", THEIRS, OURS), Ratio("compiled loop / ours", COMPILED, OURS)]


def why_not() -> str:
    """Why torch.compile cannot be had here; empty where it can."""
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and {compiler} is not on the PATH"
    try:
        torch.compile(loop.plain)  # compiles nothing yet, but says if it does not know this Python
    except RuntimeError as error:
        return f"no torch.compile here: {error}"
    return ""


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
@pytest.mark.usefixtures("tf32", "threads")
# Of its own use of other packages; they say nothing of the result.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_compiled(benchmark: Any, setting: Setting, mode: str) -> None:
    torch.compiler.reset()
    runs = build(
        {
            OURS: whole(setting, mode, DEVICE, ours, backend="fused"),
            THEIRS: whole(setting, mode, DEVICE, standard),
        }
    )
    module = loop.LoopLSTM(standard(setting, DEVICE), torch.compile(loop.plain, dynamic=False))
    x = make_input(setting, mode, DEVICE)
    runs[COMPILED] = MODES[mode](module, lambda: module(x)[0], x)
    runs[COMPILED]()  # compiles here, not while anything is timed
    check_outputs(runs, [(OURS, THEIRS), (OURS, COMPILED)], TOLERANCES[setting.dtype])
    record(benchmark, runs, setting, mode, suite=SUITE, ours=OURS, ratios=RATIOS)
