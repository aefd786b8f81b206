"""Kernels for every operator that need no compiler: the fake ones and the reference.

A fake kernel says shapes and dtypes of the results, for ``torch.compile``, ``torch.export`` and the meta
device. The reference kernel runs where the compiled library has none, and in the operators whose name
contains ``_reference``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _C, Tensor

from . import reference
from .cells import decode
from .signatures import NAMED, Family

# What a forward operator keeps for later, the argument ``save``.
SAVE_NOTHING, SAVE_STATES, SAVE_FOR_BACKWARD = 0, 1, 2

AUTOCAST_KEYS = _C.DispatchKeySet(_C.DispatchKey.AutocastCPU) | _C.DispatchKeySet(_C.DispatchKey.AutocastCUDA)


def fake_forward(family: Family) -> Callable[..., tuple[Tensor, ...]]:
    """Shapes and dtypes of the results, from shapes and dtypes alone."""

    def fake(*args: Any) -> tuple[Tensor, ...]:
        _check(family, args)
        _check_devices(args[0], args)
        _, _, sizes = family.layout(*args[:-1])
        return (*[args[0].new_empty(size) for size in sizes], *_kept(family, args, Tensor.new_empty))

    return fake


def _check_devices(input: Tensor, args: Sequence[Any]) -> None:
    """One meta tensor makes torch call the fake kernel for all. Only lengths may be on another device."""
    for value in args:
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(tensor, Tensor) or tensor.device.type == input.device.type:
                continue
            if tensor.is_floating_point() or tensor.device.type == "meta":
                raise RuntimeError(
                    f"customlstm: all tensors of a call must be on one device, got one on {tensor.device} "
                    f"besides input on {input.device}; move it there"
                )


def _check(family: Family, args: Sequence[Any]) -> None:
    if args[-1] not in (SAVE_NOTHING, SAVE_STATES, SAVE_FOR_BACKWARD):
        raise RuntimeError(
            f"customlstm: save must be 0 (nothing), 1 (states) or 2 (all for backward), got {args[-1]}"
        )
    family.check(*args[:-1])


def _kept(family: Family, args: Sequence[Any], allocate: Callable[..., Tensor]) -> list[Tensor]:
    """c_all, gates and hidden as ``save`` asks for them; what is not kept is of shape [0]."""
    input, weights, save = args[0], args[NAMED], args[-1]
    cell = decode(*args[family.cell : family.cell + 2])
    directions, rows, _ = family.layout(*args[:-1])
    hidden = weights[1].size(0) // cell.gates
    projection = hidden != weights[1].size(1)
    width = directions * hidden
    saved = family.saved(*args[:-1])
    gates = [*rows, directions, saved, hidden] if family.indices else [*rows, saved, hidden]
    sizes = [
        [*rows, cell.states * width] if save >= SAVE_STATES else [0],
        gates if save >= SAVE_FOR_BACKWARD else [0],
        [*rows, width] if save >= SAVE_FOR_BACKWARD and projection else [0],
    ]
    return [allocate(input, size, dtype=reference.accumulation_dtype(input.dtype)) for size in sizes]


def fake_backward(family: Family) -> Callable[..., tuple[Any, ...]]:
    """Gradients are contiguous; those that nobody asked for are of shape [0]."""

    def fake(*args: Any) -> tuple[Any, ...]:
        _check_devices(args[family.differentiable], args)
        inputs, needs = args[family.differentiable :], args[-1]
        flat = (*inputs[:NAMED], *inputs[NAMED])
        grads = [inputs[0].new_empty(x.shape if need else [0]) for x, need in zip(flat, needs, strict=True)]
        return (*grads[:NAMED], grads[NAMED:])

    return fake


def reference_forward(
    family: Family, instead_of_fused: Callable[..., None] | None = None
) -> Callable[..., tuple[Tensor, ...]]:
    """The reference as a kernel. It keeps no gates for backward, which runs it again; theirs are 0.

    ``instead_of_fused`` is called first, where this is a fused operator's kernel: compiled,
    exported and scripted programs learn only here that none was compiled for them.
    """

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        if instead_of_fused is not None:
            instead_of_fused(*args)
        _check(family, args)
        family.check_values(*args[:-1])
        with _C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
            results = family.specify(*args[:-1])
        kept = _kept(family, args, Tensor.new_zeros)
        if args[-1] >= SAVE_STATES:
            kept[0].copy_(results[family.states])  # a copy: results of an operator must not share memory
        return (*results[: family.states], *kept)

    return kernel


def reference_backward(family: Family) -> Callable[..., tuple[Any, ...]]:
    """Autograd of the reference as a kernel."""

    def kernel(*args: Any) -> tuple[Any, ...]:
        grads, inputs, needs = args[: family.differentiable], args[family.differentiable : -5], args[-1]
        # A kernel runs with autograd switched off below it: switch it on for the recomputation.
        with (
            torch.enable_grad(),
            _C._SetExcludeDispatchKeyGuard(_C.DispatchKey.AutogradFunctionality, False),
            _C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS),
        ):
            flat = [*inputs[:NAMED], *inputs[NAMED]]
            leaves = [None if x is None else x.detach() for x in flat]
            for k in wanted(needs):
                leaves[k].requires_grad_()
            results = gradients(family, grads, leaves, inputs[NAMED + 1 :], needs, create_graph=False)
        # Contiguous copies, as the fake kernel says; and with no step grad_h_0 would be grad_h_n itself.
        copies = [
            inputs[0].new_empty(0) if not need else torch.zeros_like(x, memory_format=torch.contiguous_format)
            for x, need in zip(flat, needs, strict=True)
        ]
        for copy, result in zip(copies, results, strict=True):
            if result is not None:
                copy.copy_(result)
        return (*copies[:NAMED], copies[NAMED:])

    return kernel


def gradients(
    family: Family,
    grads: Sequence[Tensor | None],
    flat: Sequence[Tensor | None],
    rest: Sequence[Any],
    needs: Sequence[int],
    create_graph: bool,
) -> list[Tensor | None]:
    """Gradients of the reference for input, h_0, c_0 and every weight (``flat``); None for none."""
    results = family.specify(*flat[:NAMED], list(flat[NAMED:]), *rest)
    return vjp(results[: len(grads)], grads, flat, needs, create_graph)


def vjp(
    results: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    needs: Sequence[int],
    create_graph: bool,
) -> list[Tensor | None]:
    """``torch.autograd.grad`` that takes None for what is not there and gives None for what is not needed."""
    found: list[Tensor | None] = [None] * len(inputs)
    pairs = [
        (result, grad)
        for result, grad in zip(results, grads, strict=True)
        if result is not None and grad is not None and result.requires_grad
    ]
    positions = wanted(needs)
    if pairs and positions:
        of, by = zip(*pairs, strict=True)
        given = [inputs[k] for k in positions]
        computed = torch.autograd.grad(of, given, by, create_graph=create_graph, allow_unused=True)
        for k, gradient in zip(positions, computed, strict=True):
            found[k] = gradient
    return found


def wanted(needs: Sequence[int]) -> list[int]:
    """Where ``needs`` is true."""
    return [k for k, need in enumerate(needs) if need]
