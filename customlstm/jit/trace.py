"""A cell function as a program: run it, let autograd differentiate it, and record both."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..limits import MAX_GATES, MAX_STATES
from .errors import CellError
from .program import Program
from .recorder import Recorder
from .refusals import CallNames
from .saving import Joint, split
from .signature import Signature, read_signature

__all__ = ["trace"]

#: Two runs that must record the same: whatever a function reads of a dtype or a size shows as a difference.
_RUNS = ((torch.float64, 5), (torch.float32, 3))

#: Names of what a cell does not get: gates called so are pre-activations of their own, which few will mean.
_NO_GATES = frozenset({"x", "input", "h", "hx", "h_prev", "hidden"})

#: What gates and states are called nearly everywhere.
_GATES, _STATES = frozenset("ifgoz"), frozenset("cnm")


def trace(function: Callable[..., Any]) -> Program:
    """The program of a cell function.

    Args:
        function: takes G gate pre-activations and then S previous states as positional arguments and
            parameters with one value a unit as keyword-only ones, all tensors of one shape, and returns h and
            the S new states. It may use whatever works element by element, in-place operations and
            ``torch.autograd.Function`` included. It is called a few times, with small tensors.

    Returns:
        The program, whose derivatives are those of autograd, at kinks and where gradients are cut, too.

    Raises:
        TypeError: ``function`` is not callable.
        CellError: it does what no kernel can; the text says what, where, and what to do.
    """
    signature = read_signature(function)
    with _disable_current_modes():  # a module may be made under FakeTensorMode, and what runs here is real
        first, second = (_record(function, signature, dtype, size) for dtype, size in _RUNS)
    if first != second:
        raise signature.error(
            "it computes something else for another dtype or size, or at every call, but one kernel serves "
            "them all; use numbers in place of what depends on dtype, shape, randomness or outer state",
        )
    _warn_of_no_gates(signature, len(first.gates))
    _warn_of_odd_split(signature, len(first.gates))
    return first


def _record(function: Callable[..., Any], signature: Signature, dtype: torch.dtype, size: int) -> Program:
    recorder = Recorder(signature.name, signature.place, dtype)
    names = [*signature.positional, *signature.parameters]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        # A copy of everything saved: an operation in place may follow, which autograd would refuse.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x))
        leaves = [_example(number, dtype, size).requires_grad_() for number in range(len(names))]
        inputs = [recorder.input(x, name) for x, name in zip(leaves, names, strict=True)]
        with recorder:
            results = _call(function, signature, recorder, leaves)
        states = len(results) - 1
        values = [recorder.value(x) for x in results]
        recorder.name_values(function)
        tangents = [_example(10 + number, x.dtype, size) for number, x in enumerate(results)]
        positions = [recorder.input(x, f"d_{number}") for number, x in enumerate(tangents)]
        with recorder:
            found = _gradients(recorder, results, leaves, tangents)
        gradients = [_position(recorder, x) for x in found]
    gates = len(signature.positional) - states
    _name_results(recorder, signature, values)
    positional = len(signature.positional)
    joint = Joint(
        gates=tuple(inputs[:gates]),
        states=tuple(inputs[gates:positional]),
        parameters=tuple(inputs[positional:]),
        dh=positions[0],
        dstates=tuple(positions[1:]),
        results=tuple(values),
        gradients=(*gradients[gates:positional], *gradients[:gates], *gradients[positional:]),
    )
    (forward, forward_hints), (backward, backward_hints) = split(recorder.builder, joint)
    program = Program(
        signature.name,
        signature.positional[:gates],
        signature.positional[gates:],
        signature.parameters,
        signature.defaults,
        forward,
        backward,
        forward_hints,
        backward_hints,
    )
    _check_program(signature, program, leaves, tangents, results, found)
    return program


def _check_program(
    signature: Signature,
    program: Program,
    inputs: Sequence[Tensor],
    tangents: Sequence[Tensor],
    results: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
) -> None:
    """Runs the program on what the function was run on.

    A torch whose operations mean something else than this package knows must not go unnoticed. Not every
    element has to agree: at a jump a rounding decides.
    """
    gates, positional = len(program.gates), len(program.gates) + len(program.states)
    with torch.no_grad():
        own, states, parameters = inputs[:gates], inputs[gates:positional], inputs[positional:]
        h, new, saved = program.forward_saving(own, states, parameters)
        of_states, of_gates, of_parameters = program.backward(
            saved, parameters, states, new, tangents[0], tangents[1:]
        )
        pairs = list(zip([h, *new], results, strict=True))
        for ours, theirs in zip([*of_gates, *of_states, *of_parameters], gradients, strict=True):
            pairs.append((ours, torch.zeros_like(ours) if theirs is None else theirs))
        for ours, theirs in pairs:
            near = torch.isclose(ours, theirs.to(ours.dtype), rtol=1e-3, atol=1e-3, equal_nan=True)
            if 2 * int(near.sum()) < near.numel():
                raise signature.error(
                    "its kernel would compute something else than it does, which is an error of customlstm "
                    f"with torch {torch.__version__}; please report it, with the function",
                )


def _example(number: int, dtype: torch.dtype, size: int) -> Tensor:
    """Distinct numbers of size one, others for each size; not from torch's generator, which is the user's."""
    numbers = [((7 * number + 3 * k + size) % 11 - 4.75) / 5 for k in range(size)]
    return torch.tensor(numbers, dtype=dtype, device="cpu")


def _call(
    function: Callable[..., Any], signature: Signature, recorder: Recorder, leaves: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """h and the new states, checked."""
    copies = [x.clone() for x in leaves]  # a leaf must not be changed in place
    positional = len(signature.positional)
    parameters = dict(zip(signature.parameters, copies[positional:], strict=True))
    try:
        with CallNames(recorder):
            results = function(*copies[:positional], **parameters)
    except CellError:
        raise
    except Exception as error:
        text = f"it raised {type(error).__name__}: {error}"
        if not isinstance(error, (AttributeError, NameError)):  # those say what is wrong themselves
            text += (
                "; a cell must run on tensors of any one shape and of any floating dtype, here "
                f"{copies[0].dtype} {list(copies[0].shape)}"
            )
        raise signature.error(text, raised=error) from error
    _check_results(signature, recorder, results, copies[0])
    return tuple(results)


def _check_results(signature: Signature, recorder: Recorder, results: Any, like: Tensor) -> None:
    wanted = "return h and the new states, as in: return h, c"
    if not isinstance(results, (tuple, list)):
        raise signature.error(f"it returns {_kind(results)}, but a cell must {wanted}")
    if not 2 <= len(results) <= 1 + MAX_STATES:
        raise signature.error(
            f"it returns {len(results)} values, but a cell returns h and then 1 to {MAX_STATES} new states; "
            f"{wanted}",
        )
    for number, result in enumerate(results):
        which = "h" if number == 0 else f"new state {number}"
        if isinstance(result, (tuple, list)):
            raise signature.error(
                f"{which} is {_kind(result)}, but h and each new state is a tensor of its own; {wanted}"
            )
        if not isinstance(result, Tensor):
            raise signature.error(
                f"{which} is {_kind(result)}, but a result must be a tensor; write torch.full_like(c, "
                "number) for a number",
            )
        if result.dtype == torch.bool:
            raise signature.error(
                f"{which} is a bool tensor, but a result must be numbers; write condition.to(c.dtype)"
            )
        if result.shape != like.shape:
            raise signature.error(
                f"{which} has shape {list(result.shape)} for arguments of shape {list(like.shape)}, but a "
                "result has one element for each of theirs; write torch.full_like(c, number) for a number",
            )
        if not result.dtype.is_floating_point:
            raise signature.error(
                f"{which} is {result.dtype}, but a cell computes with floating-point numbers; write "
                ".to(c.dtype)",
            )
    states = len(results) - 1
    gates = len(signature.positional) - states
    if not 1 <= gates <= MAX_GATES:
        raise signature.error(
            f"of its {len(signature.positional)} positional arguments the last {states} are states, because "
            f"it returns {len(results)} values, which leaves {max(gates, 0)} gates, but a cell has 1 to "
            f"{MAX_GATES}; "
            "take the gates first and then as many states as it returns after h",
        )


def _warn_of_no_gates(signature: Signature, gates: int) -> None:
    before = ""
    for name in signature.positional[:gates]:
        if name in _NO_GATES and not _next_letter(before, name):
            text = (
                f"the argument {name!r} is one of its {gates} gates, but looks like what a cell does not "
                "get: its gates are W_ih x + W_hh h and the biases, added up already; leave it out, or give "
                "the gate another name"
            )
            warnings.warn(str(signature.error(text)), UserWarning, stacklevel=3)
        before = name


def _warn_of_odd_split(signature: Signature, gates: int) -> None:
    """The number of results says how many arguments are states; a wrong number shows in their names."""
    states = len(signature.positional) - gates
    before = ""
    for number, name in enumerate(signature.positional):
        is_gate = number < gates
        if not _next_letter(before, name) and name in (_STATES if is_gate else _GATES):
            kind, other = ("gate", "state") if is_gate else ("state", "gate")
            text = (
                f"it returns {1 + states} values, h and {states} new state{'s' if states > 1 else ''}, so "
                f"its gates are {', '.join(signature.positional[:gates])} and its states "
                f"{', '.join(signature.positional[gates:])}; {name!r}, a {kind} of these, is named as a "
                f"{other}. Return h and one new value for each state, or give the argument another name"
            )
            warnings.warn(str(signature.error(text)), UserWarning, stacklevel=3)
            return
        before = name


def _next_letter(before: str, name: str) -> bool:
    """Whether arguments are called by letters here, as in a, b, c, d, where a name says nothing."""
    return len(name) == len(before) == 1 and ord(name) == ord(before) + 1


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _gradients(
    recorder: Recorder, results: Sequence[Tensor], leaves: Sequence[Tensor], tangents: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    pairs = [(x, d) for x, d in zip(results, tangents, strict=True) if x.requires_grad]
    if not pairs:
        return [None] * len(leaves)
    outputs, given = zip(*pairs, strict=True)
    try:
        return torch.autograd.grad(outputs, leaves, given, allow_unused=True)
    except CellError:
        raise
    except Exception as error:
        raise recorder.error(f"autograd cannot differentiate it: {type(error).__name__}: {error}") from error


def _position(recorder: Recorder, gradient: Tensor | None) -> int:
    return recorder.builder.constant(0.0) if gradient is None else recorder.value(gradient)


def _name_results(recorder: Recorder, signature: Signature, values: Sequence[int]) -> None:
    """Results that no variable has named get the names of what they are."""
    states = signature.positional[len(signature.positional) - len(values) + 1 :]
    for value, name in zip(values, ("h", *states), strict=True):
        node = recorder.builder.nodes[value]
        if not node.hint:
            node.hint = name
