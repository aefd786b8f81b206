"""Sequences of different lengths, packed or with ``lengths=``, against the padded run and nn.LSTM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from .contenders import lengths, make_input, random_lengths
from .grid import Setting
from .measure import DEVICE, TOLERANCES, Ratio, build, check_outputs, record

SUITE = "lengths"
RATIOS = [
    Ratio("nn.LSTM / ours, packed", "nn.LSTM, packed", "packed"),
    Ratio("nn.LSTM / ours, padded", "nn.LSTM, padded", "padded"),
    Ratio("padded / packed, ours", "padded", "packed"),
    Ratio("padded / lengths, ours", "padded", "lengths"),
]


@pytest.mark.usefixtures("tf32", "threads")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_lengths(benchmark: Any, setting: Setting, mode: str) -> None:
    runs = build(lengths(setting, mode, DEVICE))
    tolerance = TOLERANCES[setting.dtype]
    check_outputs(runs, [("packed", "nn.LSTM, packed"), ("padded", "nn.LSTM, padded")], tolerance)
    chosen = random_lengths(setting)
    repacked = pack_padded_sequence(runs["lengths"](), chosen, enforce_sorted=False).data
    torch.testing.assert_close(repacked, runs["packed"](), atol=tolerance, rtol=0.0)
    # The padded run computes all steps of all sequences: T is the longest one's length.
    assert make_input(setting, mode, DEVICE).shape[0] == int(chosen.max())
    record(benchmark, runs, setting, mode, suite=SUITE, ours="packed", ratios=RATIOS, memory_of=lengths)
