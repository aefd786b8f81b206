"""A layer as a loop over a cell in TorchScript, as in fastrnns, PyTorch's own benchmark of custom LSTMs.

One function a cell: TorchScript takes no function as an argument.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import customlstm


def plain(x: Tensor, w_ih: Tensor, w_hh: Tensor, b: Tensor) -> Tensor:
    h = torch.zeros([x.size(1), w_hh.size(1)], dtype=x.dtype, device=x.device)
    c = h
    outputs: list[Tensor] = []
    for x_t in x.unbind(0):
        i, f, g, o = torch.addmm(torch.addmm(b, x_t, w_ih.t()), h, w_hh.t()).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def hard(x: Tensor, w_ih: Tensor, w_hh: Tensor, b: Tensor) -> Tensor:
    """hard_sigmoid and hard_tanh."""
    h = torch.zeros([x.size(1), w_hh.size(1)], dtype=x.dtype, device=x.device)
    c = h
    outputs: list[Tensor] = []
    for x_t in x.unbind(0):
        i, f, g, o = torch.addmm(torch.addmm(b, x_t, w_ih.t()), h, w_hh.t()).chunk(4, 1)
        c = F.hardsigmoid(f) * c + F.hardsigmoid(i) * F.hardtanh(g)
        h = F.hardsigmoid(o) * F.hardtanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def slstm(x: Tensor, w_ih: Tensor, w_hh: Tensor, b: Tensor) -> Tensor:
    """customlstm.cells.slstm."""
    h = torch.zeros([x.size(1), w_hh.size(1)], dtype=x.dtype, device=x.device)
    c, n, m = h, h, h
    outputs: list[Tensor] = []
    for x_t in x.unbind(0):
        i, f, z, o = torch.addmm(torch.addmm(b, x_t, w_ih.t()), h, w_hh.t()).chunk(4, 1)
        forget = F.logsigmoid(f)
        new_m = torch.maximum(forget + m, i)
        i, f = torch.exp(i - new_m), torch.exp(forget + m - new_m)
        c = f * c + i * torch.tanh(z)
        n = f * n + i
        h, m = torch.sigmoid(o) * (c / n), new_m
        outputs.append(h)
    return torch.stack(outputs)


def _segments(t: Tensor, table: Tensor) -> Tensor:
    """Piecewise linear; the rows of ``table``: where segments start, their value there, their slope."""
    starts, values, slopes = table.unbind(0)
    k = torch.bucketize(t.detach().contiguous(), starts[1:], right=True)
    return torch.take(values, k) + torch.take(slopes, k) * (t - torch.take(starts, k))


def piecewise(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b: Tensor, gate: Tensor, cell: Tensor, output: Tensor
) -> Tensor:
    h = torch.zeros([x.size(1), w_hh.size(1)], dtype=x.dtype, device=x.device)
    c = h
    outputs: list[Tensor] = []
    for x_t in x.unbind(0):
        i, f, g, o = torch.addmm(torch.addmm(b, x_t, w_ih.t()), h, w_hh.t()).chunk(4, 1)
        c = _segments(f, gate) * c + _segments(i, gate) * _segments(g, cell)
        h = _segments(o, gate) * _segments(c, output)
        outputs.append(h)
    return torch.stack(outputs)


def _table(function: object, like: Tensor) -> Tensor:
    """What :func:`_segments` reads, [3, knots - 1]."""
    assert isinstance(function, customlstm.PiecewiseLinear), function
    x, y = torch.tensor(function.x, dtype=torch.float64), torch.tensor(function.y, dtype=torch.float64)
    return torch.stack([x[:-1], y[:-1], y.diff() / x.diff()]).to(like)


class LoopLSTM(nn.Module):
    """One direction, one layer, the weights of an ``nn.LSTM``; ``function``: one of the loops above."""

    def __init__(self, lstm: nn.LSTM, function: Callable[..., Tensor], *tables: Tensor) -> None:
        super().__init__()
        self.lstm = lstm
        self.function = function
        self.tables = tables

    def forward(self, x: Tensor) -> tuple[Tensor]:
        w_ih, w_hh, b_ih, b_hh = self.lstm.all_weights[0]
        return (self.function(x, w_ih, w_hh, b_ih + b_hh, *self.tables),)


class PythonLoop(nn.Module):
    """One direction, one layer of a cell that a user wrote: its function, step after step, in eager mode."""

    def __init__(self, lstm: customlstm.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> tuple[Tensor]:
        lstm = self.lstm
        cell, (w_ih, w_hh, b_ih, b_hh) = lstm.cell, lstm.all_weights[0]
        gates_x = F.linear(x, w_ih, b_ih + b_hh)
        h = x.new_zeros(x.size(1), lstm.hidden_size)
        states = [h] * cell.states
        outputs = []
        for gates in gates_x.unbind(0):
            h, *states = cell(*torch.addmm(gates, h, w_hh.t()).chunk(cell.gates, 1), *states)
            outputs.append(h)
        return (torch.stack(outputs),)


def scripted(lstm: nn.LSTM, cell: customlstm.cells.AnyCell | None = None) -> LoopLSTM:
    """``cell``: None for the plain one, ``cells.slstm``, or one of hard or piecewise-linear functions."""
    if cell is None:
        return LoopLSTM(lstm, torch.jit.script(plain))
    if cell == customlstm.cells.slstm:
        return LoopLSTM(lstm, torch.jit.script(slstm))
    functions = cell.gate_activation, cell.cell_activation, cell.output_activation
    if all(isinstance(f, customlstm.PiecewiseLinear) for f in functions):
        tables = [_table(f, lstm.weight_ih_l0.detach()) for f in functions]
        return LoopLSTM(lstm, torch.jit.script(piecewise), *tables)
    return LoopLSTM(lstm, torch.jit.script(hard))
