"""Small modules with options, and what their layers must give with masks that are known."""

from collections.abc import Callable

import pytest
import torch
from support import BACKENDS
from torch import Tensor

import customlstm
from customlstm import Cell

T, B, INPUT, HIDDEN = 6, 4, 3, 5
SHAPES = [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}, {"bias": False, "batch_first": True}]

backends = pytest.mark.parametrize("backend", BACKENDS)
shapes = pytest.mark.parametrize("options", SHAPES, ids=["simple", "deep both ways", "batch first"])


def make(cell: Cell | None, backend: str = "auto", **options: object) -> customlstm.LSTM:
    torch.manual_seed(3)
    return customlstm.LSTM(INPUT, HIDDEN, cell=cell, dtype=torch.float64, backend=backend, **options)


def random_input() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(T, B, INPUT, dtype=torch.float64, generator=generator)


def layer_by_layer(
    lstm: customlstm.LSTM,
    x: Tensor,
    masks: Callable[[int, int, int, int], list[Tensor | None]],
    lengths: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """output, h_n and c_n of the reference operator, called for one layer after the other.

    ``masks(steps, batch, directions, state size)`` draws those of a layer: recurrent, of h, of c.
    """
    output, weights, last = x.transpose(0, 1) if lstm.batch_first else x, lstm._weight_list(), []
    per_layer, state = len(weights) // lstm.num_layers, lstm.proj_size or lstm.hidden_size
    directions = 2 if lstm.bidirectional else 1
    for k in range(lstm.num_layers):
        output, h, c, *_ = torch.ops.customlstm.lstm_layer_reference(
            output, None, None, weights[k * per_layer : (k + 1) * per_layer], None, lengths, None,
            *masks(*output.shape[:2], directions, state), *lstm.cell.encode(), lstm.bias, lstm.proj_size > 0,
            lstm.bidirectional, scale, 0.0, 0.0, 2,
        )  # fmt: skip
        last.append((h, c))
    h_n, c_n = (torch.cat(states) for states in zip(*last, strict=True))
    return output.transpose(0, 1) if lstm.batch_first else output, h_n, c_n
