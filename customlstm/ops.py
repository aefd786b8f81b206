"""The operators: schema, fake kernel, autograd, autocast and reference kernel of every one, registered once.

The compiled library, where there is one, brings the schemas and the fused kernels; everything else comes from
here. Every operator has a twin whose name contains ``_reference`` and whose kernel is always the reference
(:mod:`customlstm.reference`): ``backend="reference"`` under ``torch.compile`` and TorchScript.

The loop at the end registers them all. An operator differs from another only in its
:class:`customlstm.signatures.Family`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _C, Tensor

from . import _binary, reference, schemas
from .signatures import FAMILIES, Family

# What a forward operator keeps for later, the argument ``save``.
SAVE_NOTHING, SAVE_STATES, SAVE_FOR_BACKWARD = 0, 1, 2

AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
AUTOCAST_KEYS = _C.DispatchKeySet(_C.DispatchKey.AutocastCPU) | _C.DispatchKeySet(_C.DispatchKey.AutocastCUDA)
_NAMED = 3  # input, h_0 and c_0 come first in every operator, then the list of weights


# --- kernels
# ---------------------------------------------------------------------------------------------------------


def _fake_forward(family: Family) -> Callable[..., tuple[Tensor, ...]]:
    """Shapes and dtypes of the results, from shapes and dtypes alone."""

    def fake(*args: Any) -> tuple[Tensor, ...]:
        _check(family, args)
        _, _, sizes = family.layout(*args[:-1])
        return (*[args[0].new_empty(size) for size in sizes], *_kept(family, args, Tensor.new_empty))

    return fake


def _check(family: Family, args: Sequence[Any]) -> None:
    if args[-1] not in (SAVE_NOTHING, SAVE_STATES, SAVE_FOR_BACKWARD):
        raise RuntimeError(
            f"customlstm: save must be 0 (nothing), 1 (states) or 2 (all for backward), got {args[-1]}"
        )
    family.check(*args[:-1])


def _kept(family: Family, args: Sequence[Any], allocate: Callable[..., Tensor]) -> list[Tensor]:
    """c_all, gates and hidden as ``save`` asks for them; what is not kept is of shape [0]."""
    input, weights, save = args[0], args[_NAMED], args[-1]
    projection = weights[1].size(0) != 4 * weights[1].size(1)
    directions, rows, _ = family.layout(*args[:-1])
    hidden = weights[1].size(0) // 4
    every_step = [*rows, directions * hidden]
    gates = [*rows, directions, 4, hidden] if family.indices else [*rows, 4, hidden]
    sizes = [
        every_step if save >= SAVE_STATES else [0],
        gates if save >= SAVE_FOR_BACKWARD else [0],
        every_step if save >= SAVE_FOR_BACKWARD and projection else [0],
    ]
    return [allocate(input, size, dtype=reference.accumulation_dtype(input.dtype)) for size in sizes]


def _fake_backward(family: Family) -> Callable[..., tuple[Any, ...]]:
    """Gradients are contiguous; those that nobody asked for are of shape [0]."""

    def fake(*args: Any) -> tuple[Any, ...]:
        inputs, needs = args[family.differentiable :], args[-1]
        flat = (*inputs[:_NAMED], *inputs[_NAMED])
        grads = [inputs[0].new_empty(x.shape if need else [0]) for x, need in zip(flat, needs, strict=True)]
        return (*grads[:_NAMED], grads[_NAMED:])

    return fake


def _reference_forward(family: Family) -> Callable[..., tuple[Tensor, ...]]:
    """The reference as a kernel. It keeps nothing for backward, which runs it again; the kept tensors are
    zeros."""

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        _check(family, args)
        family.check_values(*args[:-1])
        with _C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
            results = family.specify(*args[:-1])
        kept = _kept(family, args, Tensor.new_zeros)
        if args[-1] >= SAVE_STATES:
            kept[0].copy_(results[family.states])  # a copy: results of an operator must not share memory
        return (*results[: family.states], *kept)

    return kernel


def _reference_backward(family: Family) -> Callable[..., tuple[Any, ...]]:
    """Autograd of the reference as a kernel."""

    def kernel(*args: Any) -> tuple[Any, ...]:
        grads, inputs, needs = _split_backward(family, args)
        # A kernel runs with autograd switched off below it: switch it on for the recomputation.
        with (
            torch.enable_grad(),
            _C._SetExcludeDispatchKeyGuard(_C.DispatchKey.AutogradFunctionality, False),
            _C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS),
        ):
            flat = [*inputs[:_NAMED], *inputs[_NAMED]]
            leaves = [
                x.detach().requires_grad_(bool(n)) if x is not None else None for x, n in zip(flat, needs)
            ]
            results = _gradients(family, grads, leaves, inputs[_NAMED + 1 :], needs, create_graph=False)
        # Contiguous copies, as the fake kernel says; and with no step grad_h_0 would be grad_h_n itself.
        copies = [
            inputs[0].new_empty(0) if not need else torch.zeros_like(x, memory_format=torch.contiguous_format)
            for x, need in zip(flat, needs, strict=True)
        ]
        for copy, result in zip(copies, results, strict=True):
            if result is not None:
                copy.copy_(result)
        return (*copies[:_NAMED], copies[_NAMED:])

    return kernel


def _split_backward(
    family: Family, args: Sequence[Any]
) -> tuple[Sequence[Any], Sequence[Any], Sequence[int]]:
    """Gradients, forward arguments but ``save``, and needs, of a backward operator's arguments."""
    saved = 4
    return args[: family.differentiable], args[family.differentiable : -saved - 1], args[-1]


def _gradients(
    family: Family,
    grads: Sequence[Tensor | None],
    flat: Sequence[Tensor | None],
    rest: Sequence[Any],
    needs: Sequence[int],
    create_graph: bool,
) -> list[Tensor | None]:
    """Gradients of the reference for input, h_0, c_0 and every weight (``flat``); None for none."""
    results = family.specify(*flat[:_NAMED], list(flat[_NAMED:]), *rest)
    pairs = [(y, g) for y, g in zip(results, grads) if g is not None and y.requires_grad]
    wanted = [k for k, need in enumerate(needs) if need]
    gradients: list[Tensor | None] = [None] * len(flat)
    if pairs and wanted:
        found = torch.autograd.grad(
            [y for y, _ in pairs],
            [flat[k] for k in wanted],
            [g for _, g in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
        for k, gradient in zip(wanted, found, strict=True):
            gradients[k] = gradient
    return gradients


# --- autograd
# --------------------------------------------------------------------------------------------------------


def _gradient(family: Family, forward: Any, backward: Any) -> type[torch.autograd.Function]:
    """The first derivative: the backward operator, told which gradients are needed."""

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, weights: int, *flat: Any) -> tuple[Tensor, ...]:
            end = _NAMED + weights
            args = (*flat[:_NAMED], list(flat[_NAMED:end]), *flat[end:])
            if keyset is None:
                with _C._AutoDispatchBelowAutograd():
                    results = forward(*args)
            else:
                results = forward.redispatch(keyset & _C._after_autograd_keyset, *args)
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*results[family.differentiable :])
            ctx.save_for_backward(*flat[: end + family.indices], results[0], *results[family.states :])
            ctx.options = flat[end + family.indices : -1]
            ctx.weights, ctx.save, ctx.arguments = weights, flat[-1], len(flat)
            return results

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            if ctx.save != SAVE_FOR_BACKWARD:
                raise RuntimeError(
                    f"customlstm::{forward._opname} was called with save={ctx.save}, which keeps nothing for "
                    f"backward; call it with save={SAVE_FOR_BACKWARD} where a gradient is wanted"
                )
            tensors, end = ctx.saved_tensors, _NAMED + ctx.weights
            needs = [int(need) for need in ctx.needs_input_grad[2 : 2 + end]]
            args = (
                *grads[: family.differentiable],
                *tensors[:_NAMED],
                list(tensors[_NAMED:end]),
                *tensors[end : end + family.indices],
                *ctx.options,
                *tensors[end + family.indices :],
                needs,
            )
            if torch.is_grad_enabled():
                *named, grad_weights = backward(*args)
            else:
                with _C._AutoDispatchBelowAutograd():
                    *named, grad_weights = backward(*args)
            found = [g if need else None for g, need in zip((*named, *grad_weights), needs, strict=True)]
            return (None, None, *found, *[None] * (ctx.arguments - end))

    return Gradient


def _autograd_forward(forward: Any, gradient: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The operator's kernel for autograd's dispatch keys."""

    def kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and _C._any_requires_grad(*args):
            weights = args[_NAMED]
            return gradient.apply(keyset, len(weights), *args[:_NAMED], *weights, *args[_NAMED + 1 :])
        return forward.redispatch(keyset & _C._after_autograd_keyset, *args)

    return kernel


def _eager(forward: Any, gradient: type[torch.autograd.Function]) -> Callable[..., tuple[Tensor, ...]]:
    """The operator without the way back from the dispatcher into Python for autograd, which takes as long as
    a short kernel. For eager mode only: a tracer would not see it. ``save`` says whether autograd records the
    call."""

    def run(*args: Any) -> tuple[Tensor, ...]:
        if args[-1] != SAVE_FOR_BACKWARD:
            with _C._AutoDispatchBelowAutograd():
                return forward(*args)
        if _C._is_any_autocast_enabled():
            return forward(*args)  # casts come before autograd, in the dispatcher
        weights = args[_NAMED]
        return gradient.apply(None, len(weights), *args[:_NAMED], *weights, *args[_NAMED + 1 :])

    return run


def _autograd_backward(family: Family, backward: Any) -> Callable[..., Any]:
    """Second and higher derivatives: those of the reference, whichever kernel computed the first."""
    grads_end = family.differentiable

    class SecondGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, weights: int, *flat: Any) -> tuple[Tensor, ...]:
            start, end = grads_end + _NAMED, grads_end + _NAMED + weights
            *named, grad_weights = backward.redispatch(
                keyset & _C._after_autograd_keyset, *flat[:start], list(flat[start:end]), *flat[end:]
            )
            results = (*named, *grad_weights)
            needs = flat[-1]
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*[g for g, need in zip(results, needs, strict=True) if not need])
            ctx.save_for_backward(*flat[: end + family.indices])
            ctx.end, ctx.needs, ctx.options, ctx.arguments = (
                end,
                needs,
                flat[end + family.indices : -5],
                len(flat),
            )
            return results

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            create_graph = torch.is_grad_enabled()
            tensors, end = ctx.saved_tensors, ctx.end
            with torch.enable_grad(), _C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
                # Views: where h_0 was computed from input, the path through h_0 is not this operator's.
                flat = [t.view_as(t) if t is not None else None for t in tensors[:end]]
                rest = (*tensors[end:], *ctx.options)
                first = _gradients(
                    family, flat[:grads_end], flat[grads_end:], rest, ctx.needs, create_graph=True
                )
                pairs = [
                    (y, g)
                    for y, g in zip(first, grads)
                    if y is not None and g is not None and y.requires_grad
                ]
                wanted = [k for k, t in enumerate(flat) if t is not None and ctx.needs_input_grad[2 + k]]
                found: list[Tensor | None] = [None] * ctx.arguments
                if pairs and wanted:
                    second = torch.autograd.grad(
                        [y for y, _ in pairs],
                        [flat[k] for k in wanted],
                        [g for _, g in pairs],
                        create_graph=create_graph,
                        allow_unused=True,
                    )
                    for k, gradient in zip(wanted, second, strict=True):
                        found[k] = gradient
            return (None, None, *found)

    def kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and _C._any_requires_grad(*args):
            weights = args[grads_end + _NAMED]
            flat = SecondGradient.apply(
                keyset, len(weights), *args[: grads_end + _NAMED], *weights, *args[grads_end + _NAMED + 1 :]
            )
            return (*flat[:_NAMED], list(flat[_NAMED:]))
        return backward.redispatch(keyset & _C._after_autograd_keyset, *args)

    return kernel


# --- autocast
# --------------------------------------------------------------------------------------------------------


def cast_for_autocast(args: Sequence[Any], device_type: str) -> list[Any]:
    """``args`` with every floating tensor on that device but float64 in the autocast dtype."""
    dtype = torch.get_autocast_dtype(device_type)

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            eligible = (
                value.is_floating_point()
                and value.dtype != torch.float64
                and value.device.type == device_type
            )
            return value.to(dtype) if eligible else value
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return [cast(item) for item in value]
        return value

    return [cast(value) for value in args]


def _autocast(operator: Any, device_type: str) -> Callable[..., Any]:
    def rule(*args: Any) -> Any:
        cast = cast_for_autocast(args, device_type)
        with _C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
            return operator(*cast)

    return rule


# --- registration
# ----------------------------------------------------------------------------------------------------

_library = torch.library.Library(schemas.NAMESPACE, "FRAGMENT")


def _operator(schema: str) -> Any:
    return getattr(torch.ops.customlstm, schemas.name_of(schema)).default


def _register(family: Family, schema: str, backward_schema: str) -> Callable[..., tuple[Tensor, ...]]:
    for text in (schema, backward_schema):
        if not hasattr(torch.ops.customlstm, schemas.name_of(text)):
            _library.define(text)
    name, backward_name = schemas.name_of(schema), schemas.name_of(backward_schema)
    forward, backward = _operator(schema), _operator(backward_schema)
    qualified = f"{schemas.NAMESPACE}::"
    torch.library.register_fake(qualified + name, _fake_forward(family), lib=_library)
    torch.library.register_fake(qualified + backward_name, _fake_backward(family), lib=_library)
    _library.impl(name, _reference_forward(family), "CompositeExplicitAutograd")
    _library.impl(backward_name, _reference_backward(family), "CompositeExplicitAutograd")
    gradient = _gradient(family, forward, backward)
    _library.impl(name, _autograd_forward(forward, gradient), "Autograd", with_keyset=True)
    _library.impl(backward_name, _autograd_backward(family, backward), "Autograd", with_keyset=True)
    for device_type, key in AUTOCAST_DEVICES.items():
        _library.impl(name, _autocast(forward, device_type), key)
    return _eager(forward, gradient)


_binary.load()
_run_eagerly = {}
for _name, _family in FAMILIES.items():
    _backward = next(s for s in schemas.SCHEMAS if schemas.name_of(s) == f"{_name}_backward")
    _run_eagerly[_name] = _register(_family, _family.schema, _backward)
    _register(_family, schemas.reference_of(_family.schema), schemas.reference_of(_backward))

lstm_layer = _operator(schemas.LSTM_LAYER)
lstm_cell = _operator(schemas.LSTM_CELL)
lstm_layer_reference = _operator(schemas.reference_of(schemas.LSTM_LAYER))
lstm_cell_reference = _operator(schemas.reference_of(schemas.LSTM_CELL))
lstm_layer_eager = _run_eagerly["lstm_layer"]
lstm_cell_eager = _run_eagerly["lstm_cell"]
