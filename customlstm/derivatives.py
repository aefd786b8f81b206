"""Derivatives of the operators.

The first is the backward operator, told which gradients are needed, so that frozen weights cost nothing. The
second and all further ones are those of the reference, whichever kernel computed the first.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import _C, Tensor

from .kernels import AUTOCAST_KEYS, SAVE_FOR_BACKWARD, gradients, vjp
from .signatures import NAMED, Family


def gradient_of(family: Family, forward: Any, backward: Any) -> type[torch.autograd.Function]:
    """The first derivative: the backward operator, told which gradients are needed."""

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, weights: int, *flat: Any) -> tuple[Tensor, ...]:
            end = NAMED + weights
            args = (*flat[:NAMED], list(flat[NAMED:end]), *flat[end:])
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
            tensors, end = ctx.saved_tensors, NAMED + ctx.weights
            needs = [int(need) for need in ctx.needs_input_grad[2 : 2 + end]]
            args = (
                *grads[: family.differentiable],
                *tensors[:NAMED],
                list(tensors[NAMED:end]),
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


def autograd_forward(forward: Any, gradient: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The operator's kernel for autograd's dispatch keys."""

    def kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and _C._any_requires_grad(*args):
            weights = args[NAMED]
            return gradient.apply(keyset, len(weights), *args[:NAMED], *weights, *args[NAMED + 1 :])
        return forward.redispatch(keyset & _C._after_autograd_keyset, *args)

    return kernel


def eager(forward: Any, gradient: type[torch.autograd.Function]) -> Callable[..., tuple[Tensor, ...]]:
    """The operator without the way back from the dispatcher into Python for autograd.

    That way takes as long as a short kernel. For eager mode only: a tracer would not see the operator.
    ``save`` tells whether autograd records the call.
    """

    def run(*args: Any) -> tuple[Tensor, ...]:
        if args[-1] != SAVE_FOR_BACKWARD:
            with _C._AutoDispatchBelowAutograd():
                return forward(*args)
        if _C._is_any_autocast_enabled():
            return forward(*args)  # casts come before autograd, in the dispatcher
        weights = args[NAMED]
        return gradient.apply(None, len(weights), *args[:NAMED], *weights, *args[NAMED + 1 :])

    return run


def autograd_backward(family: Family, backward: Any) -> Callable[..., Any]:
    """Second and higher derivatives: those of the reference, whichever kernel computed the first."""
    grads_end = family.differentiable

    class SecondGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, weights: int, *flat: Any) -> tuple[Tensor, ...]:
            start, end = grads_end + NAMED, grads_end + NAMED + weights
            *named, grad_weights = backward.redispatch(
                keyset & _C._after_autograd_keyset, *flat[:start], list(flat[start:end]), *flat[end:]
            )
            results = (*named, *grad_weights)
            needs = flat[-1]
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*[g for g, need in zip(results, needs, strict=True) if not need])
            ctx.save_for_backward(*flat[: end + family.indices])
            ctx.end, ctx.needs, ctx.options = end, needs, flat[end + family.indices : -5]
            ctx.arguments = len(flat)
            return results

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            create_graph = torch.is_grad_enabled()
            tensors, end = ctx.saved_tensors, ctx.end
            with torch.enable_grad(), _C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
                # Views: where h_0 was computed from input, the path through h_0 is not this operator's.
                flat = [t.view_as(t) if t is not None else None for t in tensors[:end]]
                rest = (*tensors[end:], *ctx.options)
                first = gradients(
                    family, flat[:grads_end], flat[grads_end:], rest, ctx.needs, create_graph=True
                )
                found = vjp(first, grads, flat, ctx.needs_input_grad[2 : 2 + end], create_graph)
            return (None, None, *found, *[None] * (ctx.arguments - end))

    def kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and _C._any_requires_grad(*args):
            weights = args[grads_end + NAMED]
            flat = SecondGradient.apply(
                keyset, len(weights), *args[: grads_end + NAMED], *weights, *args[grads_end + NAMED + 1 :]
            )
            return (*flat[:NAMED], list(flat[NAMED:]))
        return backward.redispatch(keyset & _C._after_autograd_keyset, *args)

    return kernel
