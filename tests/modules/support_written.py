"""Cells written as a user writes them, and small modules with them."""

import torch
from support import assert_all_near, weighted_sum
from torch import Tensor

import customlstm
from customlstm.cells import gallery

T, B, INPUT, HIDDEN = 6, 4, 3, 21  # more units than a vector has lanes, and a part of one


@customlstm.cell
def eight_gates(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor, g: Tensor, h: Tensor, s: Tensor, *,
    scale: float = 0.5,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A tree of activations in the manner of NAS cells (Zoph and Le 2017)."""
    first = torch.tanh(torch.sigmoid(a) * torch.relu(b) + torch.sigmoid(c) * torch.nn.functional.silu(d))
    second = torch.where(e > f, torch.tanh(e), torch.sigmoid(f)) * torch.nn.functional.softplus(g)
    s = torch.sigmoid(h) * s + first * second
    return torch.tanh(scale * s), s


CELLS = [getattr(gallery, name) for name in gallery.__all__] + [eight_gates]
#: One gate with a parameter, three gates, four gates and three states, eight gates.
VARIED = [gallery.leaky, gallery.coupled, gallery.slstm, eight_gates]


def make(
    cell: customlstm.cells.AnyCell,
    backend: str = "fused",
    dtype: torch.dtype = torch.float64,
    **options: object,
) -> customlstm.LSTM:
    torch.manual_seed(3)
    return customlstm.LSTM(INPUT, HIDDEN, cell=cell, dtype=dtype, backend=backend, **options)


def arguments(
    lstm: customlstm.LSTM, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """input and hx, leaves that require a gradient; the first state of a cell is never negative."""
    generator = torch.Generator().manual_seed(4)
    rows = lstm.num_layers * (2 if lstm.bidirectional else 1)
    sizes = [(T, B, INPUT), (rows, B, lstm.proj_size or HIDDEN), (rows, B, lstm.cell.states * HIDDEN)]
    x, h, c = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    if lstm.cell.states == 3:  # a normaliser is positive
        c = c.unflatten(-1, (3, HIDDEN)).clone()
        c[..., 1, :] = c[..., 1, :].abs() + 0.5
        c = c.flatten(-2)
    if lstm.batch_first:
        x = x.transpose(0, 1).contiguous()
    return x.requires_grad_(), (h.requires_grad_(), c.requires_grad_())


def assert_same(
    ours: customlstm.LSTM, reference: customlstm.LSTM, tolerance: float = 1e-12, **call: object
) -> None:
    """Both modules give the same results and gradients for the arguments of :func:`arguments`."""
    reference.load_state_dict(ours.state_dict())
    found = []
    for lstm in (ours, reference):
        x, hx = arguments(lstm)
        torch.manual_seed(9)  # masks
        output, (h_n, c_n) = lstm(x, hx, **call)
        torch.manual_seed(9)
        h_all, c_all = lstm.states(x, hx, **call)
        leaves = {"input": x, "h_0": hx[0], "c_0": hx[1], **dict(lstm.named_parameters())}
        results = {"output": output, "h_n": h_n, "c_n": c_n, "h_all": h_all, "c_all": c_all}
        gradients = torch.autograd.grad(weighted_sum(list(results.values())), list(leaves.values()))
        found.append(results | {f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)})
    assert_all_near(list(found[0].values()), list(found[1].values()), list(found[1]), tolerance)
