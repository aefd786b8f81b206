"""Whole sequences, on a GPU where there is one: the plain cell against nn.LSTM, changed cells against it.

Inference and forward + backward, and the forward pass of training, which keeps what a backward needs.
Results are checked before anything is timed. The interleaved times are in ``extra_info`` of the JSON of
pytest-benchmark (``--benchmark-json FILE``), which ``python -m benchmarks.report FILE`` shows.
"""

from __future__ import annotations

from typing import Any

import pytest

from .contenders import (
    LOOP,
    OURS,
    REFERENCE,
    THEIRS,
    layer,
    make_input,
    operations,
    products,
    same_weights,
    standard,
)
from .grid import Setting
from .measure import (
    DEVICE,
    GRADIENT_TOLERANCES,
    TOLERANCES,
    Ratio,
    build,
    check_gradients,
    check_outputs,
    record,
)

SUITE = "layer"
MORE_RATIOS = [
    Ratio("reference / ours", REFERENCE, OURS),
    Ratio("TorchScript loop / ours", LOOP, OURS),
    Ratio("plain / hard cell", OURS, "hard", least=1 / 1.15),
    Ratio("plain / piecewise cell", OURS, "piecewise", least=1 / 1.15),
]


def ratios(setting: Setting) -> list[Ratio]:
    """On a GPU in float16 nine tenths of cuDNN's speed are aimed at."""
    least = 0.9 if DEVICE == "cuda" and setting.dtype == "float16" else 1.0
    return [Ratio("nn.LSTM / ours", THEIRS, OURS, least=least), *MORE_RATIOS]


def run(benchmark: Any, setting: Setting, mode: str) -> None:
    if mode == "training":
        check_gradients(
            same_weights(setting, DEVICE, backend="fused"),
            standard(setting, DEVICE),
            make_input(setting, mode, DEVICE),
            GRADIENT_TOLERANCES[setting.dtype],
        )
    runs = build(layer(setting, mode, DEVICE))
    same = [(OURS, name) for name in (THEIRS, REFERENCE, LOOP) if name in runs]
    check_outputs(runs, same, TOLERANCES[setting.dtype])
    record(
        benchmark,
        runs,
        setting,
        mode,
        suite=SUITE,
        ours=OURS,
        ratios=ratios(setting),
        products=products(setting, mode, DEVICE),
        operations=operations(setting, mode),
        memory_of=layer,
    )


@pytest.mark.usefixtures("tf32", "threads")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_layer(benchmark: Any, setting: Setting, mode: str) -> None:
    run(benchmark, setting, mode)


@pytest.mark.usefixtures("tf32", "threads")
@pytest.mark.long_on_gpu
def test_training_forward(benchmark: Any, setting: Setting) -> None:
    run(benchmark, setting, "training_forward")
