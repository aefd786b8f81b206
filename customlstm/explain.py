"""``explain``: which kernel a call of a module would run, or why no fused one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, compat, dispatch, functional
from .modules import LSTM, LSTMCell

_KEPT = {0: "keeps nothing", 1: "keeps the cell states", 2: "keeps what backward needs"}


@dataclass(frozen=True)
class Explanation:
    """What a call would run; ``str()`` of it is for people.

    Attributes:
        backend: "fused" or "reference".
        kernel: the device and instruction set of the fused kernel ("cpu avx512"), or "plain PyTorch on cpu".
        layers: one line for every layer: the operator, its sizes, what it keeps for backward.
        reason: why no fused kernel runs; None if one does.
        refused: whether the call would raise, because ``backend="fused"`` was asked for.
    """

    backend: str
    kernel: str
    layers: tuple[str, ...]
    reason: str | None
    refused: bool = False

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.kernel}", *(f"  {line}" for line in self.layers)]
        if self.reason is not None:
            lines.append(f"not fused, because {self.reason}")
        if self.refused:
            lines.append("backend='fused' was asked for: the call raises RuntimeError")
        return "\n".join(lines)


def explain(
    module: nn.Module,
    input: Any,
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> Explanation:
    """What ``module(input, hx, lengths=..., resets=...)`` would run here and now. Computes nothing.

    Args:
        module: an :class:`customlstm.LSTM` or :class:`customlstm.LSTMCell`, or those of
            :mod:`customlstm.compat`.
        input, hx, lengths, resets: as in the call. Device, dtype and gradients needed are read, no values.

    Raises:
        TypeError: ``module`` is none of these.
    """
    if not isinstance(module, (LSTM, LSTMCell, compat.LSTM, compat.LSTMCell)):
        raise TypeError(
            f"module must be a customlstm.LSTM or customlstm.LSTMCell, got {type(module).__name__}"
        )
    data = input.data if isinstance(input, PackedSequence) else input
    if not isinstance(module, compat.LSTM):
        checks.check_arguments(data, hx, lengths, resets)
    weights, layers = module._weight_list(), getattr(module, "num_layers", 1)
    if hx is not None and isinstance(module, compat.LSTM):
        hx = module._stacked(hx, data.size(0))
    h, c = (None, None) if hx is None else hx
    tensors = [data, *weights] if hx is None else [data, h, c, *weights]
    wanted = dispatch.effective_backend(module.backend)
    reason = "backend='reference' was asked for"
    if wanted != "reference":
        reason = dispatch.why_not_fused(data.device, data.dtype, module._cell_name, tensors)
    fused = reason is None
    device = data.device.type
    return Explanation(
        backend="fused" if fused else "reference",
        kernel=_fused_kernel(device) if fused else f"plain PyTorch on {device}",
        layers=tuple(_layer_lines(module, data, h, c, weights, layers, fused)),
        reason=reason,
        refused=wanted == "fused" and not fused and not dispatch.is_traced(tensors),
    )


def _fused_kernel(device: str) -> str:
    return f"cpu {torch.ops.customlstm.cpu_isa()}" if device == "cpu" else device


def _layer_lines(
    module: Any,
    data: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: list[Tensor],
    layers: int,
    fused: bool,
) -> list[str]:
    operator = "lstm_cell" if isinstance(module, (LSTMCell, compat.LSTMCell)) else "lstm_layer"
    shown = f"customlstm::{operator}" if fused else f"reference of {operator}"
    directions = 2 if getattr(module, "bidirectional", False) else 1
    per_layer = len(weights) // layers
    lines, needs_gradient = [], data.requires_grad
    for k in range(layers):
        own = weights[k * per_layer : (k + 1) * per_layer]
        states = k == layers - 1 and getattr(module, "sequences", False)
        save = functional._what_to_save(data, h, c, own, states)
        needs_gradient = needs_gradient or save == 2
        if needs_gradient and torch.is_grad_enabled():
            save = 2  # the layer below hands a gradient on
        sizes = f"{own[0].size(1)} -> {module.hidden_size}"
        projected = f", projected to {module.proj_size}" if module.proj_size else ""
        both = ", both directions" if directions == 2 else ""
        lines.append(f"layer {k}: {shown}, {sizes}{projected}{both}, {_KEPT[save]}")
    return lines
