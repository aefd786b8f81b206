"""What is predicted of the benchmarks on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import predict
from benchmarks.grid import Setting, cuda_settings
from customlstm import _binary
from customlstm.launch_plan import H200, plan


@pytest.mark.skipif(not _binary.status().loaded, reason=_binary.status().reason)
def test_predictions_are_of_what_the_benchmark_times() -> None:
    """Of a product 2 m n k operations, over the rate: the projection, and for training three more."""
    setting = Setting(1024, 64, 1024, 1024, "bfloat16")
    rows, hidden = 1024 * 64, 1024
    sizes = {"steps": 1024, "batch": 64, "hidden_size": hidden, "math": "bfloat16"}
    forward, backward = (plan(H200, **sizes, backward=back).predicted_us for back in (False, True))
    product = 1e6 * 2 * rows * hidden * 4 * hidden / predict.FLOPS["bfloat16"]
    inference, training = (float(predict.cell(setting, mode).split()[0]) * 1e3 for mode in (False, True))
    assert inference == pytest.approx(forward + product, abs=10)
    copies = 1e6 * rows * 6 * hidden * 2 / predict.BANDWIDTH
    assert training == pytest.approx(forward + backward + 4 * product + copies, abs=10)
    lines = predict.table(["float32"]).splitlines()
    assert len(lines) == 2 + len(list(cuda_settings("float32"))) and "float32 training" in lines[0]
