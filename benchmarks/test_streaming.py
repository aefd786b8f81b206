"""A sequence in chunks of 1, 8 or 64 steps, the states carried over, against the sequence as a whole.

On a CPU in float32 our output has the same bits however it is cut; this is checked before timing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .contenders import make_input, same_weights, standard
from .grid import Setting
from .measure import DEVICE, TOLERANCES, Ratio, check_outputs, record

SUITE = "streaming"
WHOLE, CHUNKS = "customlstm, whole", "customlstm, in chunks"
THEIR_WHOLE, THEIR_CHUNKS = "nn.LSTM, whole", "nn.LSTM, in chunks"
RATIOS = [
    Ratio("nn.LSTM / ours, both in chunks", THEIR_CHUNKS, CHUNKS),
    # What the cutting costs; no bound is stated for it, so nothing counts as a loss.
    Ratio("whole / in chunks", WHOLE, CHUNKS, least=0.0),
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


@pytest.mark.usefixtures("tf32", "threads")
@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_streaming(benchmark: Any, setting: Setting, chunk: int) -> None:
    x = make_input(setting, "inference", DEVICE)
    ours, theirs = same_weights(setting, DEVICE, backend="fused"), standard(setting, DEVICE)
    runs = {
        CHUNKS: feed(ours, x, chunk),
        WHOLE: feed(ours, x, setting.steps),
        THEIR_CHUNKS: feed(theirs, x, chunk),
        THEIR_WHOLE: feed(theirs, x, setting.steps),
    }
    check_outputs(runs, [(WHOLE, THEIR_WHOLE), (CHUNKS, WHOLE)], TOLERANCES[setting.dtype])
    if DEVICE == "cpu" and setting.dtype == "float32":
        assert torch.equal(runs[CHUNKS](), runs[WHOLE]()), f"other bits in chunks of {chunk}"
    record(benchmark, runs, setting, f"chunks of {chunk}", suite=SUITE, ours=CHUNKS, ratios=RATIOS)
