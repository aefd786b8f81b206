"""A sequence in chunks of 1, 8 or 64 steps, the states carried over, against the sequence as a whole.

By hand with ``hx``, and with ``customlstm.Stream``. On a CPU in float32 our
output has the same bits however it is cut; this is checked before timing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import customlstm

from .contenders import make_input, same_weights, standard
from .grid import Setting
from .measure import DEVICE, TOLERANCES, Ratio, check_outputs, record

SUITE = "streaming"
STREAM = "customlstm.Stream, in chunks"
WHOLE, CHUNKS = "customlstm, whole", "customlstm, in chunks"
THEIR_WHOLE, THEIR_CHUNKS = "nn.LSTM, whole", "nn.LSTM, in chunks"
RATIOS = [
    Ratio("nn.LSTM / ours, both in chunks", THEIR_CHUNKS, CHUNKS),
    Ratio("nn.LSTM / Stream, both in chunks", THEIR_CHUNKS, STREAM),
    # What the cutting costs; no bound is stated for it, so nothing counts as a loss.
    Ratio("whole / in chunks", WHOLE, CHUNKS, least=0.0),
    Ratio("whole / in chunks, Stream", WHOLE, STREAM, least=0.0),
    Ratio("whole / in chunks, nn.LSTM", THEIR_WHOLE, THEIR_CHUNKS, least=0.0),
]


def feed(module: nn.Module, x: Tensor, chunk: int) -> Callable[[], Tensor]:
    pieces = x.split(chunk)

    def run() -> Tensor:
        outputs, states = [], None
        with torch.no_grad():
            for piece in pieces:
                output, states = module(piece, states)
                outputs.append(output)
            return torch.cat(outputs)

    return run


def feed_stream(stream: customlstm.Stream, x: Tensor, chunk: int) -> Callable[[], Tensor]:
    pieces = x.split(chunk)

    def run() -> Tensor:
        stream.reset()
        return torch.cat([stream(piece) for piece in pieces])

    return run


@pytest.mark.usefixtures("tf32", "threads")
@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_streaming(benchmark: Any, setting: Setting, chunk: int) -> None:
    x = make_input(setting, "inference", DEVICE)
    ours, theirs = same_weights(setting, DEVICE, backend="fused"), standard(setting, DEVICE)
    runs = {
        CHUNKS: feed(ours, x, chunk),
        STREAM: feed_stream(customlstm.Stream(ours, setting.batch), x, chunk),
        WHOLE: feed(ours, x, setting.steps),
        THEIR_CHUNKS: feed(theirs, x, chunk),
        THEIR_WHOLE: feed(theirs, x, setting.steps),
    }
    check_outputs(runs, [(WHOLE, THEIR_WHOLE), (CHUNKS, WHOLE), (STREAM, WHOLE)], TOLERANCES[setting.dtype])
    if DEVICE == "cpu" and setting.dtype == "float32":
        for name in (CHUNKS, STREAM):
            assert torch.equal(runs[name](), runs[WHOLE]()), f"{name}: other bits in chunks of {chunk}"
    record(benchmark, runs, setting, f"chunks of {chunk}", suite=SUITE, ours=CHUNKS, ratios=RATIOS)
