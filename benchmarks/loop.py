"""A layer as a loop over a cell in TorchScript, as in fastrnns, PyTorch's own benchmark of custom LSTMs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.jit.script
def _loop(x: Tensor, w_ih: Tensor, w_hh: Tensor, b: Tensor) -> Tensor:
    h = torch.zeros([x.size(1), w_hh.size(1)], dtype=x.dtype, device=x.device)
    c = h
    outputs: list[Tensor] = []
    for x_t in x.unbind(0):
        i, f, g, o = torch.addmm(torch.addmm(b, x_t, w_ih.t()), h, w_hh.t()).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


class ScriptedLSTM(nn.Module):
    """One direction, one layer, with the weights of an ``nn.LSTM``."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> tuple[Tensor]:
        w_ih, w_hh, b_ih, b_hh = self.lstm.all_weights[0]
        return (_loop(x, w_ih, w_hh, b_ih + b_hh),)
