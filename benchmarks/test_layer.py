"""One layer, whole sequence: the plain cell against nn.LSTM, a piecewise-linear one against plain PyTorch.

Results are checked before anything is timed. The interleaved times are in ``extra_info`` of the JSON of
pytest-benchmark (``--benchmark-json FILE``), which ``python -m benchmarks.table FILE`` shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import customlstm

from .interleaved import interleave, summary

# (steps, batch, input size, hidden size)
SHAPES = [
    (100, 1, 128, 128),
    (100, 1, 512, 512),
    (100, 16, 256, 256),
    (100, 64, 128, 128),
    (100, 64, 512, 512),
    (256, 128, 256, 256),
    (50, 256, 64, 64),
    (128, 64, 100, 100),
    (37, 7, 61, 97),
]
PIECEWISE = customlstm.Cell(
    gate_activation=customlstm.PiecewiseLinear.fit("sigmoid", knots=16, bounds=(-7.0, 7.0)),
    cell_activation=customlstm.PiecewiseLinear.fit("tanh", knots=16),
    output_activation=customlstm.PiecewiseLinear.fit("tanh", knots=16),
)
HARD = customlstm.Cell("hard_sigmoid", "hard_tanh", "hard_tanh")
OURS = "customlstm"


def inference(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return module(x)[0]

    return run


def training(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    gradient = torch.randn_like(module(x)[0])

    def run() -> Tensor:
        module.zero_grad(set_to_none=True)
        output = module(x)[0]
        output.backward(gradient)
        return output.detach()

    return run


@pytest.mark.parametrize("mode", [inference, training])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer(
    benchmark: Any, shape: tuple[int, int, int, int], mode: Callable[..., Callable[[], Tensor]]
) -> None:
    steps, batch, features, hidden = shape
    torch.manual_seed(0)
    x = torch.randn(steps, batch, features, requires_grad=mode is training)
    standard = nn.LSTM(features, hidden)

    def same_weights(**options: Any) -> customlstm.LSTM:
        module = customlstm.LSTM(features, hidden, **options)
        module.load_state_dict(standard.state_dict())
        return module

    contenders = {
        OURS: mode(same_weights(backend="fused"), x),
        "nn.LSTM": mode(standard, x),
        "hard": mode(same_weights(backend="fused", cell=HARD), x),
        "piecewise": mode(same_weights(backend="fused", cell=PIECEWISE), x),
        "piecewise, plain PyTorch": mode(same_weights(backend="reference", cell=PIECEWISE), x),
    }
    torch.testing.assert_close(contenders[OURS](), contenders["nn.LSTM"](), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        contenders["piecewise"](), contenders["piecewise, plain PyTorch"](), atol=1e-5, rtol=1e-4
    )

    times = interleave(contenders)
    benchmark.extra_info.update(
        shape=shape, mode=mode.__name__, threads=torch.get_num_threads(), times=summary(times, OURS)
    )
    benchmark.pedantic(contenders[OURS], rounds=3)
