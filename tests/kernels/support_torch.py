"""What the kernels are measured against: ``nn.LSTM``, and the equations in plain PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from support_ops import LayerCall, differentiate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from customlstm import Cell
from customlstm.cells import own_parameters


def run_nn_lstm(call: LayerCall) -> dict[str, Tensor]:
    """output, h_n and c_n of ``nn.LSTM`` with the call's weights, and the gradient of every argument.

    The call has padded or packed input, no lengths, no resets, and the standard cell.
    """
    assert call.lengths is None and call.resets is None and call.cell_args == Cell().encode()[1]
    state = call.weights[1].size(1)
    module = nn.LSTM(
        call.input.size(-1),
        call.weights[1].size(0) // 4,
        bias=call.bias,
        bidirectional=call.bidirectional,
        proj_size=state if call.projection else 0,
        dtype=call.input.dtype,
    )
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for parameter, weight in zip(parameters.values(), call.weights, strict=True):
            parameter.copy_(weight)
    leaves = {"input": call.input, "h_0": call.h_0, "c_0": call.c_0}
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items() if x is not None}
    input = leaves["input"]
    hx = (leaves["h_0"], leaves["c_0"]) if "h_0" in leaves else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        if call.batch_sizes is not None:
            output, (h_n, c_n) = module(PackedSequence(input, call.batch_sizes), hx)
            output = output.data
        else:
            output, (h_n, c_n) = module(input, hx)
    names = call.weight_names()
    leaves |= dict(zip(names, parameters.values(), strict=True))
    return differentiate({"output": output, "h_n": h_n, "c_n": c_n}, leaves)


def formula(*arguments: object) -> Sequence[Tensor]:
    """The equations in the dtype of the tensors, one rounding an operation; called as the operators are.

    Padded input with states; no lengths, no resets. For float64 it is a second specification, for the
    others what anybody who writes the cell in plain PyTorch gets.
    """
    call = LayerCall(*arguments[:-1])  # type: ignore[arg-type]
    assert call.batch_sizes is None and call.lengths is None and call.resets is None and call.h_0 is not None
    cell = Cell.decode(call.cell, call.cell_args)
    s_g, s_c, s_h = cell.bind(call.input)
    zero = call.input.new_zeros(())

    def bounded(x: Tensor, limit: float | None) -> Tensor:
        return x if limit is None else F.hardtanh(x, -limit, limit)

    def normalised(x: Tensor, added: dict[str, Tensor], name: str) -> Tensor:
        gain = added.get(f"weight_ln_{name}")
        return x if gain is None else F.layer_norm(x, gain.shape, gain, added[f"bias_ln_{name}"])

    def linear_and_norm(
        x: Tensor, weight: Tensor, bias: Tensor | None, added: dict[str, Tensor], name: str
    ) -> Tensor:
        if f"weight_ln_{name}" not in added:
            return F.linear(x, weight, bias)
        y = normalised(F.linear(x, weight), added, name)
        return y if bias is None else y + bias

    directions = 2 if call.bidirectional else 1
    per_direction = len(call.weights) // directions
    outputs, cells, last = [], [], []
    for d in range(directions):
        w_ih, w_hh, *others = call.weights[d * per_direction : (d + 1) * per_direction]
        b_ih, b_hh = others[:2] if call.bias else (None, None)
        added = dict(zip(own_parameters(cell), others[2 * call.bias + call.projection :], strict=True))
        p_i, p_f, p_o = (added.get(f"peephole_{gate}", zero) for gate in "ifo")
        h, c = call.h_0[d], call.c_0[d]
        steps = list(range(call.input.size(0)))
        h_all, c_all = list(steps), list(steps)
        for t in reversed(steps) if d == 1 else steps:
            from_x = linear_and_norm(call.input[t], w_ih, b_ih, added, "ih")
            i, f, g, o = (from_x + linear_and_norm(h, w_hh, b_hh, added, "hh")).chunk(4, -1)
            i, f = i + p_i * c, f + p_f * c
            i = s_g(bounded(i, cell.gate_clip))
            f = 1 - i if cell.coupled_gates else s_g(bounded(f, cell.gate_clip))
            c = bounded(f * c + i * s_c(bounded(g, cell.gate_clip)), cell.cell_clip)
            h = s_g(bounded(o + p_o * c, cell.gate_clip)) * s_h(normalised(c, added, "c"))
            if call.projection:
                h = F.linear(h, others[2 * call.bias])
            h_all[t], c_all[t] = h, c
        outputs.append(torch.stack(h_all))
        cells.append(torch.stack(c_all))
        last.append((h, c))
    h_n, c_n = (torch.stack(states) for states in zip(*last, strict=True))
    return torch.cat(outputs, -1), h_n, c_n, torch.cat(cells, -1)
