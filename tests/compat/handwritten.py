"""The hand-written LSTM as tutorials have it: two matrix products a gate, one step at a time."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from customlstm import Cell


class HandwrittenCell(nn.Module):
    def __init__(self, input_size, hidden_size, cell=None):
        super().__init__()
        for gate in "cfio":
            for source, width in (("x", input_size), ("h", hidden_size)):
                setattr(self, f"weight_{gate}{source}", nn.Parameter(torch.empty(hidden_size, width)))
        for gate in "cfio":
            setattr(self, f"bias_{gate}", nn.Parameter(torch.empty(hidden_size)))
        self.activations = cell or Cell()
        stdv = 1.0 / math.sqrt(hidden_size)
        for weight in self.parameters():
            weight.data.uniform_(-stdv, stdv)

    def forward(self, x, state):
        h, c = state
        act = self.activations
        f = act.gate_activation(F.linear(x, self.weight_fx, self.bias_f) + F.linear(h, self.weight_fh))
        i = act.gate_activation(F.linear(x, self.weight_ix, self.bias_i) + F.linear(h, self.weight_ih))
        o = act.gate_activation(F.linear(x, self.weight_ox, self.bias_o) + F.linear(h, self.weight_oh))
        g = act.cell_activation(F.linear(x, self.weight_cx, self.bias_c) + F.linear(h, self.weight_ch))
        c = f * c + i * g
        return o * act.output_activation(c), c


class Handwritten(nn.Module):
    def __init__(self, input_size, hidden_size, layers=1, sequences=True, cell=None):
        super().__init__()
        self.hidden_size, self.layers, self.sequences = hidden_size, layers, sequences
        for k in range(layers):
            setattr(self, f"lay{k}", HandwrittenCell(hidden_size if k else input_size, hidden_size, cell))

    def forward(self, x, initial_states=None):
        if initial_states is None:
            zeros = x.new_zeros(x.size(0), self.hidden_size)
            initial_states = [(zeros, zeros)] * self.layers
        states = list(initial_states)
        tops = []
        for t in range(x.size(1)):
            below = x[:, t]
            for k in range(self.layers):
                states[k] = getattr(self, f"lay{k}")(below, states[k])
                below = states[k][0]
            tops.append(states[-1])
        if not self.sequences:
            return tops[-1]
        h, c = zip(*tops, strict=True)
        return torch.stack(h).transpose(0, 1), torch.stack(c).transpose(0, 1)
