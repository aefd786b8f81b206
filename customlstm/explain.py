"""``explain``: which kernel a call of a module would run, or why no fused one."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import compat, dispatch, functional, launch_plan, ops, thread_plan
from .modules import LSTM, LSTMCell

_KEPT = {0: "keeps nothing", 1: "keeps the cell states", 2: "keeps what backward needs"}


@dataclass(frozen=True)
class Explanation:
    """What a call would run; ``str()`` of it is for people.

    Attributes:
        backend: "fused" or "reference".
        kernel: the device and instruction set of the fused kernel ("cpu avx512", "cuda sm_90"), or "plain
            PyTorch on cpu".
        layers: one line for every layer: the operator, its sizes, what it keeps for backward.
        reason: why no fused kernel runs; None if one does.
        refused: whether the call or its backward would raise RuntimeError, because ``backend="fused"`` was
            asked for, or by CUSTOMLSTM_CUDA_VARIANT a variant that does not fit.
        plans: how every layer would be computed; forward, and backward where a gradient will be wanted. On a
            GPU the launch plan: the variant and its tiling, and why the others do not fit. On the CPU the
            thread plan: how many threads compute, and what each of them owns.
    """

    backend: str
    kernel: str
    layers: tuple[str, ...]
    reason: str | None
    refused: bool = False
    plans: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.kernel}"]
        for k, layer in enumerate(self.layers):
            lines.append(f"  {layer}")
            if k < len(self.plans):
                lines += [f"    {line}" for line in self.plans[k].splitlines()]
        if self.reason is not None:
            lines.append(f"not fused, because {self.reason}")
        if self.refused:
            asked = "backend='fused' was asked for: " if self.backend == "reference" else ""
            lines.append(f"{asked}the call raises RuntimeError")
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
        input, hx, lengths, resets: as in the call. Of values only those of ``lengths`` are read.

    Raises:
        TypeError: ``module`` is none of these.
        TypeError, ValueError, RuntimeError: what the call raises for these arguments.
    """
    _check(module, input, hx, lengths, resets)
    data = input.data if isinstance(input, PackedSequence) else input
    weights, layers = module._weight_list(), getattr(module, "num_layers", 1)
    if hx is not None and isinstance(module, compat.LSTM):
        hx = module._stacked(hx, data.size(0))
    h, c = (None, None) if hx is None else hx
    tensors = [data, *weights] if hx is None else [data, h, c, *weights]
    wanted = dispatch.effective_backend(module.backend)
    dtype = _computed_dtype(module, data, c)
    reason = "backend='reference' was asked for"
    if wanted != "reference":
        reason = dispatch.why_not_fused(data.device, dtype, module._cell_name, tensors)
    fused = reason is None
    kept = _what_is_kept(module, data, h, c, weights, layers)
    refused = wanted == "fused" and not fused and not dispatch.is_traced(tensors)
    plans: list[str] = []
    batch_sizes = input.batch_sizes if isinstance(input, PackedSequence) else None
    if fused and data.device.type == "cuda":
        for save in kept:
            found = _plans(module, data, dtype, batch_sizes, lengths, save)
            plans.append("\n".join(f"{name}, {plan}" for name, plan in found.items()))
            reason = reason or _why_forced_does_not_fit(found)
        refused = reason is not None
    elif fused:
        for k, save in enumerate(kept):
            input_size = weights[k * (len(weights) // layers)].size(1)
            plans.append(_thread_plans(module, data, input_size, batch_sizes, save))
    return Explanation(
        backend="fused" if fused else "reference",
        kernel=_fused_kernel(data.device) if fused else f"plain PyTorch on {data.device.type}",
        layers=tuple(_layer_lines(module, weights, layers, fused, kept)),
        reason=reason,
        refused=refused,
        plans=tuple(plans),
    )


def _check(module: Any, input: Any, hx: Any, lengths: Any, resets: Any) -> None:
    if isinstance(module, LSTM):
        module._check(input, hx, lengths, resets)
    elif isinstance(module, (LSTMCell, compat.LSTM, compat.LSTMCell)):
        for name, value in (("lengths", lengths), ("resets", resets)):
            if value is not None:
                raise TypeError(f"{type(module).__name__} takes no {name}; leave {name} out")
        module._check(input, hx)
    else:
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        inside = isinstance(module, nn.Module) and any(
            isinstance(each, (LSTM, LSTMCell, compat.LSTM, compat.LSTMCell)) for each in module.modules()
        )
        hint = "; pass the layer itself, with the input that it gets" if inside else ""
        if isinstance(module, (nn.LSTM, nn.LSTMCell)):
            hint = "; customlstm.convert.to_customlstm makes one of it"
        raise TypeError(f"module must be a customlstm.LSTM or customlstm.LSTMCell, got {name}{hint}")


def _fused_kernel(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu {torch.ops.customlstm.cpu_isa()}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{device.type} sm_{major}{minor}"


def _computed_dtype(module: Any, data: Tensor, c: Tensor | None) -> torch.dtype:
    state_dtype = None
    if isinstance(module, (LSTMCell, compat.LSTMCell)):
        state_dtype = (data if c is None else c).dtype
    return ops.computed_dtype(data.device, data.dtype, state_dtype)


def _forced_variant() -> str | None:
    """CUSTOMLSTM_CUDA_VARIANT; for a name that is none it raises what the call raises."""
    name = os.environ.get("CUSTOMLSTM_CUDA_VARIANT") or None
    if name is not None and name not in launch_plan.VARIANTS:
        raise RuntimeError(f'CUSTOMLSTM_CUDA_VARIANT is "{name}", expected step, grid or cluster')
    return name


def _why_forced_does_not_fit(plans: dict[str, launch_plan.LaunchPlan]) -> str | None:
    forced = _forced_variant()
    for name, plan in plans.items():
        if plan.tiling is None:
            why = plan.why_not[forced]
            return f"CUSTOMLSTM_CUDA_VARIANT asks for {forced}, which does not fit: {name}, {why}"
    return None


def _plans(
    module: Any,
    data: Tensor,
    dtype: torch.dtype,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    save: int,
) -> dict[str, launch_plan.LaunchPlan]:
    """The launch plans of one layer, by names like "forward float32".

    All layers of a call differ in what they keep at most.
    """
    steps, batch, ragged = _sizes(module, data, batch_sizes, lengths)
    math = str(dtype).removeprefix("torch.")
    if math == "float32" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        math = "tf32"
    index = torch.cuda.current_device() if data.device.index is None else data.device.index
    return {
        f"{'backward' if backward else 'forward'} {math}": launch_plan.plan(
            launch_plan.DeviceLimits.from_device(index),
            steps=steps,
            batch=batch,
            gates=module.cell.gates,
            **_layer_sizes(module),
            math=math,
            backward=backward,
            ragged=ragged,
            variant=_forced_variant(),
            layer_norm=bool(getattr(module.cell, "layer_norm", ())),
        )
        for backward in ((False, True) if save == 2 else (False,))
    }


def _thread_plans(module: Any, data: Tensor, input_size: int, batch_sizes: Tensor | None, save: int) -> str:
    """The thread plans of one layer, a line each."""
    steps, batch, _ = _sizes(module, data, batch_sizes, None)
    found = {
        "backward" if backward else "forward": thread_plan.plan(
            steps=steps,
            batch=batch,
            input_size=input_size,
            gates=module.cell.gates,
            **_layer_sizes(module),
            backward=backward,
        )
        for backward in ((False, True) if save == 2 else (False,))
    }
    return "\n".join(f"{name}, {plan}" for name, plan in found.items())


def _layer_sizes(module: Any) -> dict[str, int]:
    """What every layer of the module has, as both plans call it."""
    directions = 2 if getattr(module, "bidirectional", False) else 1
    return {"hidden_size": module.hidden_size, "proj_size": module.proj_size, "directions": directions}


def _sizes(
    module: Any, data: Tensor, batch_sizes: Tensor | None, lengths: Tensor | None
) -> tuple[int, int, bool]:
    """Steps, sequences, and whether these have lengths of their own."""
    if batch_sizes is not None:
        batch = int(batch_sizes[0]) if batch_sizes.numel() else 0
        return batch_sizes.numel(), batch, batch_sizes.numel() * batch != data.size(0)
    if isinstance(module, (LSTMCell, compat.LSTMCell)):
        return 1, data.size(0) if data.dim() == 2 else 1, False
    steps, batch = data.size(0), data.size(1) if data.dim() == 3 else 1
    if data.dim() == 3 and getattr(module, "batch_first", isinstance(module, compat.LSTM)):
        steps, batch = batch, steps
    ragged = lengths is not None
    if ragged and lengths.device.type == "cpu" and dispatch.has_values(lengths):
        ragged = bool((lengths != steps).any())
    return steps, batch, ragged


def _what_is_kept(
    module: Any, data: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor], layers: int
) -> list[int]:
    """``save`` of the operator for every layer."""
    per_layer = len(weights) // layers
    kept, needs_gradient = [], data.requires_grad
    for k in range(layers):
        own = weights[k * per_layer : (k + 1) * per_layer]
        states = k == layers - 1 and getattr(module, "sequences", False)
        save = functional._what_to_save(data, h, c, own, states)
        needs_gradient = needs_gradient or save == 2
        if needs_gradient and torch.is_grad_enabled():
            save = 2  # the layer below hands a gradient on
        kept.append(save)
    return kept


def _layer_lines(module: Any, weights: list[Tensor], layers: int, fused: bool, kept: list[int]) -> list[str]:
    operator = "lstm_cell" if isinstance(module, (LSTMCell, compat.LSTMCell)) else "lstm_layer"
    shown = f"customlstm::{operator}" if fused else f"reference of {operator}"
    projected = f", projected to {module.proj_size}" if module.proj_size else ""
    both = ", both directions" if getattr(module, "bidirectional", False) else ""
    lines = []
    for k, save in enumerate(kept):
        sizes = f"{weights[k * (len(weights) // layers)].size(1)} -> {module.hidden_size}"
        lines.append(f"layer {k}: {shown}, {sizes}{projected}{both}, {_KEPT[save]}")
    return lines
