"""What the benchmarks print: the summary that ``make gpu-check`` ends with, and the predictions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import predict, table
from benchmarks.grid import Setting, cuda_settings
from customlstm import _binary
from customlstm.launch_plan import H200, plan


def run(dtype: str, hidden: int, mode: str = "inference", **times: float) -> dict[str, Any]:
    """One benchmark; ``times`` in milliseconds, the plain fused cell takes 1."""
    names = {"theirs": "nn.LSTM", "loop": "TorchScript loop", "hard": "hard", "piecewise": "piecewise"}
    medians = {"customlstm": {"median_ms": 1.0}}
    medians |= {names[name]: {"median_ms": value} for name, value in times.items()}
    setting = vars(Setting(100, 16, hidden, hidden, dtype))
    return {"extra_info": {"setting": setting, "mode": mode, "times": medians}}


def test_summary_names_every_loss() -> None:
    runs = [
        run("bfloat16", 128, theirs=4.0, loop=20.0, hard=1.02, piecewise=1.1),
        run("bfloat16", 256, theirs=1.0, hard=1.08),
        run("bfloat16", 512, theirs=0.99),
        run("bfloat16", 512, "training", theirs=0.5),
        run("float16", 128, theirs=0.9),
        run("float16", 256, theirs=0.85),
    ]
    head, *groups, legend, first, second, third = table.summary_table({"benchmarks": runs}).splitlines()
    assert head.split()[:4] == ["dtype", "mode", "shapes", "losses"]
    assert [line.split() for line in groups] == [
        ["bfloat16", "inference", "3", "1", *"1.58 (0.99) 20.00 (20.00) 1.05 (1.08) 1.10 (1.10)".split()],
        ["bfloat16", "training", "1", "1", "0.50", "(0.50)", "-", "-", "-"],
        ["float16", "inference", "2", "1", "0.87", "(0.85)", "-", "-", "-"],
    ]  # fmt: skip
    assert "worst" in legend
    assert first == "loss: bfloat16 inference (100, 16, 512, 512): 0.99"
    assert second == "loss: bfloat16 training (100, 16, 512, 512): 0.50"
    assert third == "loss: float16 inference (100, 16, 256, 256): 0.85"


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
