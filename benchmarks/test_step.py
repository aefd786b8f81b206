"""One step, Python included: a sequence of length 1, LSTMCell, and Stream, which keeps the packed weights.

The states go from call to call.

A run is many calls, since one takes microseconds; the times are those of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import customlstm

from .contenders import OURS, THEIRS, make_input, place, same_weights, standard
from .grid import Setting
from .measure import DEVICE, TOLERANCES, Ratio, check_outputs, record

SUITE = "step"
OUR_CELL, THEIR_CELL, STREAM = "customlstm.LSTMCell", "nn.LSTMCell", "customlstm.Stream"
RATIOS = [
    Ratio("nn.LSTM / ours", THEIRS, OURS),
    Ratio("nn.LSTMCell / our LSTM", THEIR_CELL, OURS),
    Ratio("nn.LSTMCell / our LSTMCell", THEIR_CELL, OUR_CELL),
    Ratio("nn.LSTM / Stream", THEIRS, STREAM),
    Ratio("nn.LSTMCell / Stream", THEIR_CELL, STREAM),
]
CALLS = {"inference": 100, "training": 20}

Step = Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


def modules(setting: Setting) -> dict[str, nn.Module]:
    """All four with equal weights."""
    theirs = standard(setting, DEVICE)
    weights = {name.removesuffix("_l0"): weight for name, weight in theirs.state_dict().items()}
    found = {THEIRS: theirs, OURS: same_weights(setting, DEVICE, backend="fused")}
    for name, make, options in (
        (OUR_CELL, customlstm.LSTMCell, {"backend": "fused"}),
        (THEIR_CELL, nn.LSTMCell, {}),
    ):
        found[name] = make(setting.features, setting.hidden, **place(setting, DEVICE), **options)
        found[name].load_state_dict(weights)
    return found


def steps(module: nn.Module, x: Tensor, calls: int, mode: str) -> Callable[[], Tensor]:
    """The last h of so many calls. In training each call is followed by its own backward."""
    sequence = isinstance(module, nn.LSTM | customlstm.LSTM)
    first = x if sequence else x[0].detach().requires_grad_(x.requires_grad)
    zero = x.new_zeros(
        (1, *x.shape[1:2], module.hidden_size) if sequence else (x.shape[1], module.hidden_size)
    )

    def one(states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return module(first, states)[1] if sequence else module(first, states)

    def inference() -> Tensor:
        states = zero, zero
        with torch.no_grad():
            for _ in range(calls):
                states = one(states)
        return states[0].view(-1, module.hidden_size)

    def training() -> Tensor:
        states = zero, zero
        for _ in range(calls):
            for parameter in module.parameters():
                parameter.grad = None
            h, c = one(states)
            torch.autograd.backward((h, c), (ones, ones))
            states = h.detach(), c.detach()
        return states[0].view(-1, module.hidden_size)

    ones = torch.ones_like(zero)
    return {"inference": inference, "training": training}[mode]


def stream_steps(setting: Setting, x: Tensor, calls: int) -> Callable[[], Tensor]:
    """As :func:`steps` in inference; the first run packs the weights, and the others find them packed."""
    stream = customlstm.Stream(same_weights(setting, DEVICE, backend="fused"), setting.batch)

    def run() -> Tensor:
        stream.reset()
        for _ in range(calls):
            output = stream.step(x[0])
        return output

    return run


@pytest.mark.usefixtures("tf32", "threads")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_step(benchmark: Any, setting: Setting, mode: str) -> None:
    x = make_input(setting, mode, DEVICE)
    calls = CALLS[mode]
    runs = {name: steps(module, x, calls, mode) for name, module in modules(setting).items()}
    if mode == "inference":
        runs[STREAM] = stream_steps(setting, x, calls)
    check_outputs(runs, [(name, THEIRS) for name in runs if name != THEIRS], TOLERANCES[setting.dtype])
    record(benchmark, runs, setting, mode, suite=SUITE, ours=OURS, ratios=RATIOS, calls=calls)
