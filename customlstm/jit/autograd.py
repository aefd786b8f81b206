"""A program as one differentiable function: its derivative is its own backward code, not that of its
instructions.

So a derivative is the traced one where instructions cannot know it: at the kinks of functions that they are
made of, in a branch not taken that overflows, behind ``detach()``, and for a ``torch.autograd.Function``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .program import Program

__all__ = ["apply_program"]


def apply_program(program: Program, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """h and the new states from gates, states and parameters, in a row."""
    return _Apply.apply(program, *inputs)


class _Apply(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
        h, states, _ = program.forward_saving(*_parts(program, inputs))
        # New memory for each: autograd takes no result that is an argument, or two that are one.
        return tuple(x.clone() for x in (h, *states))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.program = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        gradients = _gradients(ctx.program, inputs, given)
        return None, *(d.sum_to_size(x.shape) for d, x in zip(gradients, inputs, strict=True))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        # Pointwise, so a row of the Jacobian is the gradient for a one there and zeros elsewhere.
        inputs, program = ctx.saved_tensors, ctx.program
        count = 1 + len(program.states)
        results = []
        for row in range(count):
            one = [torch.full_like(inputs[0], float(row == column)) for column in range(count)]
            products = [
                d * t
                for d, t in zip(_gradients(program, inputs, one), tangents, strict=True)
                if t is not None
            ]
            results.append(sum(products, torch.zeros_like(inputs[0])))
        return tuple(results)


def _parts(program: Program, inputs: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    gates, positional = len(program.gates), len(program.gates) + len(program.states)
    return inputs[:gates], inputs[gates:positional], inputs[positional:]


def _gradients(program: Program, inputs: Sequence[Tensor], given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of gates, states and parameters; a parameter's has the shape of the gates."""
    gates, states, parameters = _parts(program, inputs)
    _, new, saved = program.forward_saving(gates, states, parameters)
    dh, *dstates = given
    of_states, of_gates, of_parameters = program.backward(saved, parameters, states, new, dh, dstates)
    return *of_gates, *of_states, *of_parameters
