"""Cells from the literature, written as a user writes them. Read them as examples, import them as parts.

Every one is a function of gate pre-activations a = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, one for each gate
in the order of the arguments, and of its states; it returns h_t and the new states.

    >>> lstm = customlstm.LSTM(8, 16, cell=customlstm.cells.slstm)
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .written import cell

__all__ = ["coupled", "hard", "janet", "leaky", "minimal_gated", "peephole", "slstm", "standard"]


@cell
def standard(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The cell of ``nn.LSTM`` (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@cell
def hard(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Straight lines for both non-linearities, for fixed-point hardware (compare Chang et al. 2015: FPGAs).

    clamp(x / 4 + 1/2, 0, 1), whose slope is a shift and that of the sigmoid at 0, and clamp(x, -1, 1).
    """

    def gate(a: Tensor) -> Tensor:
        return torch.clamp(0.25 * a + 0.5, 0.0, 1.0)

    c = gate(f) * c + gate(i) * torch.clamp(g, -1.0, 1.0)
    return gate(o) * torch.clamp(c, -1.0, 1.0), c


@cell
def peephole(
    i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor, *, peephole_i: Tensor, peephole_f: Tensor,
    peephole_o: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gates that see the cell state (Gers and Schmidhuber 2000); equal to ``Cell(peephole=True)``."""
    f, i = torch.sigmoid(f + peephole_f * c), torch.sigmoid(i + peephole_i * c)
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(o + peephole_o * c) * torch.tanh(c), c


@cell
def coupled(i: Tensor, g: Tensor, o: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Forgets as much as it takes in: f = 1 - i (CIFG of Greff et al. 2017).

    Three gates, so a quarter fewer weights than ``Cell(coupled_gates=True)``, which keeps the rows of f.
    """
    i = torch.sigmoid(i)
    c = (1.0 - i) * c + i * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@cell
def slstm(
    i: Tensor, f: Tensor, z: Tensor, o: Tensor, c: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sLSTM of xLSTM (Beck et al. 2024, equations 8 to 17), with the sigmoid forget gate.

    The input gate is exponential; n is the normaliser and m the stabiliser, which keeps the exponentials at
    most 1 and changes no h. All states begin at 0.
    """
    forget = F.logsigmoid(f)
    new_m = torch.maximum(forget + m, i)
    i, f = torch.exp(i - new_m), torch.exp(forget + m - new_m)
    c = f * c + i * torch.tanh(z)
    n = f * n + i
    return torch.sigmoid(o) * (c / n), c, n, new_m


@cell
def janet(f: Tensor, g: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Just a forget gate (van der Westhuizen and Lasenby 2018): half of the weights, and h is c.

    The input is taken in at 1 - sigmoid(f - beta), with their beta = 1.
    """
    c = torch.sigmoid(f) * c + (1.0 - torch.sigmoid(f - 1.0)) * torch.tanh(g)
    return c, c


@cell
def leaky(a: Tensor, c: Tensor, *, rate: Tensor) -> tuple[Tensor, Tensor]:
    """A leaky integrator with a learned rate for every unit (Jaeger et al. 2007): one gate, and h is c."""
    keep = torch.sigmoid(rate)
    c = keep * c + (1.0 - keep) * torch.tanh(a)
    return c, c


@cell
def minimal_gated(f: Tensor, g: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One gate for both what is kept and what comes in (after the minimal gated unit of Zhou et al. 2016).

    Theirs also multiplies h_{t-1} by the gate before W_hh, which no function of pre-activations can.
    """
    f = torch.sigmoid(f)
    c = (1.0 - f) * c + f * torch.tanh(g)
    return c, c
