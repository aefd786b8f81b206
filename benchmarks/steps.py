"""Contenders that take one step at a time: :mod:`benchmarks.contenders` has those of whole sequences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import customlstm

from .contenders import OURS, THEIRS, place, same_weights, standard
from .grid import Setting

OUR_CELL, THEIR_CELL, STREAM = "customlstm.LSTMCell", "nn.LSTMCell", "customlstm.Stream"


def modules(setting: Setting, device: str) -> dict[str, nn.Module]:
    """All four with equal weights."""
    theirs = standard(setting, device)
    weights = {name.removesuffix("_l0"): weight for name, weight in theirs.state_dict().items()}
    found = {THEIRS: theirs, OURS: same_weights(setting, device, backend="fused")}
    for name, make, options in (
        (OUR_CELL, customlstm.LSTMCell, {"backend": "fused"}),
        (THEIR_CELL, nn.LSTMCell, {}),
    ):
        found[name] = make(setting.features, setting.hidden, **place(setting, device), **options)
        found[name].load_state_dict(weights)
    return found


def steps(module: nn.Module, x: Tensor, calls: int, mode: str) -> Callable[[], Tensor]:
    """The last h of so many calls. In training each call is followed by its own backward."""
    sequence = isinstance(module, nn.LSTM | customlstm.LSTM)
    first = x if sequence else x[0].detach().requires_grad_(x.requires_grad)
    zero = x.new_zeros(
        (1, *x.shape[1:2], module.hidden_size) if sequence else (x.shape[1], module.hidden_size)
    )

    def one(states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return module(first, states)[1] if sequence else module(first, states)

    def inference() -> Tensor:
        states = zero, zero
        with torch.no_grad():
            for _ in range(calls):
                states = one(states)
        return states[0].view(-1, module.hidden_size)

    def training() -> Tensor:
        states = zero, zero
        for _ in range(calls):
            for parameter in module.parameters():
                parameter.grad = None
            h, c = one(states)
            torch.autograd.backward((h, c), (ones, ones))
            states = h.detach(), c.detach()
        return states[0].view(-1, module.hidden_size)

    ones = torch.ones_like(zero)
    return {"inference": inference, "training": training}[mode]


def stream_steps(setting: Setting, x: Tensor, calls: int, device: str) -> Callable[[], Tensor]:
    """As :func:`steps` in inference; the first run packs the weights, and the others find them packed."""
    stream = customlstm.Stream(same_weights(setting, device, backend="fused"), setting.batch)

    def run() -> Tensor:
        stream.reset()
        for _ in range(calls):
            output = stream.step(x[0])
        return output

    return run
