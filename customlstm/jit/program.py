"""A cell as data: straight-line code for forward and for backward, which can be run, stored and written out.

Values are numbered, the inputs of a code first, then one for each instruction. Inputs and results:

===========  ==========================================================================================
forward      gates [G], previous states [S], parameters [P]
             -> h, new states [S], saved [K]
backward     saved [K], parameters [P], previous states [S], new states [S], gradient of h, gradients of
             the new states [S]
             -> gradients of the previous states [S], of the gates [G], of the parameters [P]
===========  ==========================================================================================

Data may come from a pickle or a TorchScript archive, so a :class:`Program` checks all of it when it is made.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..limits import MAX_GATES, MAX_PARAMETERS, MAX_SAVED, MAX_STATES
from .primitives import PRIMITIVES, apply, constant

__all__ = [
    "MAX_INSTRUCTIONS",
    "Code",
    "Instruction",
    "Program",
]

#: Of one code. Far beyond any cell; compilers get slow there.
MAX_INSTRUCTIONS = 2000

_FORMAT = 1  # of the data; raise it with every change of what an instruction means
_HINT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}\Z")


@dataclass(frozen=True)
class Instruction:
    """One value: ``op`` of :data:`~customlstm.jit.primitives.PRIMITIVES` or "constant", and its arguments."""

    op: str
    arguments: tuple[int, ...] = ()
    value: float | None = None  # of a constant


@dataclass(frozen=True)
class Code:
    """Instructions in order; arguments and results are numbers of values."""

    inputs: int
    instructions: tuple[Instruction, ...]
    results: tuple[int, ...]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results. Those that depend on no input are 0-dimensional."""
        like = inputs[0]
        values: list[Tensor | float] = list(inputs)
        for instruction in self.instructions:
            if instruction.value is not None:
                values.append(instruction.value)
            else:
                values.append(apply(instruction.op, [values[x] for x in instruction.arguments], like))
        results = [values[x] for x in self.results]
        return [x if isinstance(x, Tensor) else constant(x, like) for x in results]


@dataclass(frozen=True, eq=False)
class Program:
    """A pointwise cell and its derivative. Immutable; equal programs have equal digests.

    Attributes:
        name: the function's name, for messages and comments; no part of the digest.
        gates, states, parameters: names, 1 to 8, 1 to 4 and 0 to 8 of them.
        defaults: for each parameter the number that it starts with, or None.
        forward_code, backward_code: see the top of this module.
        forward_hints, backward_hints: for each instruction the user's name for its value or ""; no part of
            the digest.

    Raises:
        ValueError: what is no program, with the reason.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    defaults: tuple[float | None, ...]
    forward_code: Code
    backward_code: Code
    forward_hints: tuple[str, ...] = ()
    backward_hints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(isinstance(self.name, str), f"name must be a str, got {type(self.name).__name__}")
        _check_names("gates", self.gates, 1, MAX_GATES)
        _check_names("states", self.states, 1, MAX_STATES)
        _check_names("parameters", self.parameters, 0, MAX_PARAMETERS)
        names = [*self.gates, *self.states, *self.parameters]
        _check(len(set(names)) == len(names), f"names must be distinct, got {names}")
        _check(
            len(self.defaults) == len(self.parameters)
            and all(x is None or type(x) is float for x in self.defaults),
            f"defaults must be a float or None for each of {len(self.parameters)} parameters, "
            f"got {self.defaults!r}",
        )
        g, s, p = len(self.gates), len(self.states), len(self.parameters)
        _check_code("forward", self.forward_code, g + s + p)
        saved = self.saved_count
        _check(1 <= saved <= MAX_SAVED, f"forward must save 1 to {MAX_SAVED} values, got {saved}")
        _check_code("backward", self.backward_code, saved + p + 3 * s + 1)
        results = len(self.backward_code.results)
        _check(results == s + g + p, f"backward must have {s + g + p} results, got {results}")
        for what, hints, code in (
            ("forward", self.forward_hints, self.forward_code),
            ("backward", self.backward_hints, self.backward_code),
        ):
            _check(len(hints) in (0, len(code.instructions)), f"{what}: a hint for each instruction, or none")
            for hint in hints:
                _check(
                    isinstance(hint, str) and (hint == "" or _HINT.match(hint) is not None),
                    f"{what}: {hint!r} is no name",
                )

    @property
    def saved_count(self) -> int:
        """How many values forward keeps for backward."""
        return len(self.forward_code.results) - 1 - len(self.states)

    def forward(
        self, gates: Sequence[Tensor], states: Sequence[Tensor], parameters: Sequence[Tensor] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """h and the new states. Its derivative is :meth:`backward`, under autograd and torch.func.

        Args:
            gates, states: pre-activations and previous states, of one shape, floating dtype and device.
            parameters: of a shape that broadcasts to theirs.
        """
        from .autograd import apply_program

        self._check_counts(gates, states, parameters)
        h, *new = apply_program(self, [*gates, *states, *parameters])
        return h, tuple(new)

    def forward_saving(
        self, gates: Sequence[Tensor], states: Sequence[Tensor], parameters: Sequence[Tensor] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """h, the new states, and what :meth:`backward` reads; arguments as for :meth:`forward`.

        Autograd sees the instructions here, whose derivatives at kinks, of ``torch.autograd.Function`` and
        behind ``detach()`` are not those of :meth:`backward`.
        """
        self._check_counts(gates, states, parameters)
        results = self.forward_code.run([*gates, *states, *parameters])
        # A result that does not depend on a gate or state has no shape of its own.
        h, *rest = [x.expand(gates[0].shape) for x in results]
        return h, tuple(rest[: len(self.states)]), tuple(rest[len(self.states) :])

    def backward(
        self,
        saved: Sequence[Tensor],
        parameters: Sequence[Tensor],
        previous: Sequence[Tensor],
        states: Sequence[Tensor],
        dh: Tensor,
        dstates: Sequence[Tensor],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Gradients of the previous states, of the gates and of the parameters, each of ``dh``'s shape.

        Args:
            saved, states: from :meth:`forward_saving`.
            parameters, previous: what forward got as parameters and states.
            dh, dstates: gradients of h and of the new states.
        """
        results = self.backward_code.run([*saved, *parameters, *previous, *states, dh, *dstates])
        results = [x.expand(dh.shape) for x in results]
        s, g = len(self.states), len(self.gates)
        return tuple(results[:s]), tuple(results[s : s + g]), tuple(results[s + g :])

    def _check_counts(
        self, gates: Sequence[Tensor], states: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> None:
        for what, values, names in (
            ("gates", gates, self.gates),
            ("states", states, self.states),
            ("parameters", parameters, self.parameters),
        ):
            if len(values) != len(names):
                expected = f"{len(names)} tensors ({', '.join(names)})" if names else "none"
                raise ValueError(f"{what}: expected {expected}, got {len(values)}")

    def to_data(self) -> dict[str, Any]:
        """The program as lists, strings and integers, which JSON keeps as they are; floats as their hex()."""
        return {
            "format": _FORMAT,
            "name": self.name,
            **self._content(),
            "forward_hints": list(self.forward_hints),
            "backward_hints": list(self.backward_hints),
        }

    @classmethod
    def from_data(cls, data: object) -> Program:
        """The program of which :meth:`to_data` gave ``data``.

        Raises:
            ValueError: any other data.
        """
        keys = {"format", "name", "gates", "states", "parameters", "defaults", "forward", "backward"}
        keys |= {"forward_hints", "backward_hints"}
        _check(
            isinstance(data, dict) and set(data) == keys,
            f"a program must be a dict with the keys {sorted(keys)}",
        )
        _check(
            type(data["format"]) is int and data["format"] == _FORMAT,
            f"format must be {_FORMAT}, got {data['format']!r}",
        )
        return cls(
            data["name"],
            _tuple("gates", data["gates"]),
            _tuple("states", data["states"]),
            _tuple("parameters", data["parameters"]),
            tuple(
                None if x is None else _number("defaults", x) for x in _tuple("defaults", data["defaults"])
            ),
            _code("forward", data["forward"]),
            _code("backward", data["backward"]),
            _tuple("forward_hints", data["forward_hints"]),
            _tuple("backward_hints", data["backward_hints"]),
        )

    def _content(self) -> dict[str, Any]:
        """What makes this program another than others."""
        return {
            "gates": list(self.gates),
            "states": list(self.states),
            "parameters": list(self.parameters),
            "defaults": [None if x is None else x.hex() for x in self.defaults],
            "forward": _code_data(self.forward_code),
            "backward": _code_data(self.backward_code),
        }

    @cached_property
    def digest(self) -> str:
        """sha256 of names of arguments, defaults and instructions, as 64 hexadecimal digits."""
        text = json.dumps([_FORMAT, self._content()], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Program.from_data, (self.to_data(),))


def _check(good: bool, text: str) -> None:
    if not good:
        raise ValueError(f"not a cell program: {text}")


def _check_names(what: str, names: tuple[str, ...], least: int, most: int) -> None:
    _check(least <= len(names) <= most, f"there must be {least} to {most} {what}, got {len(names)}")
    for name in names:
        good = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
        _check(good, f"{name!r} is no name of one of the {what}")


def _check_code(what: str, code: Code, inputs: int) -> None:
    good = type(code.inputs) is int and code.inputs == inputs
    _check(good, f"{what} must have {inputs} inputs, got {code.inputs!r}")
    count = len(code.instructions)
    _check(count <= MAX_INSTRUCTIONS, f"{what} has {count} instructions, at most {MAX_INSTRUCTIONS}")
    for number, instruction in enumerate(code.instructions):
        where, op, arguments = f"{what}, instruction {number}", instruction.op, instruction.arguments
        if op == "constant":
            good = type(instruction.value) is float and not arguments
            _check(good, f"{where}: a constant has a number and no arguments")
            continue
        _check(op in PRIMITIVES, f"{where}: unknown operation {op!r}")
        arity = PRIMITIVES[op].arity
        _check(len(arguments) == arity, f"{where}: {op} takes {arity} arguments, got {len(arguments)}")
        _check(instruction.value is None, f"{where}: {op} has no number of its own")
        _check_values(where, arguments, inputs + number)
    _check_values(f"{what}, results", code.results, inputs + count)


def _check_values(where: str, values: tuple[int, ...], known: int) -> None:
    for value in values:
        _check(
            type(value) is int and 0 <= value < known, f"{where}: there is no value {value!r}, only {known}"
        )


def _code_data(code: Code) -> dict[str, Any]:
    return {
        "inputs": code.inputs,
        "instructions": [
            [x.op, list(x.arguments)] if x.value is None else [x.op, x.value.hex()] for x in code.instructions
        ],
        "results": list(code.results),
    }


def _code(what: str, data: object) -> Code:
    good = isinstance(data, dict) and set(data) == {"inputs", "instructions", "results"}
    _check(good, f"{what} must be a dict with the keys inputs, instructions and results")
    instructions = []
    for item in _tuple(what, data["instructions"]):
        pair = _tuple(f"{what}: an instruction", item)
        _check(len(pair) == 2 and isinstance(pair[0], str), f"{what}: {item!r} is no instruction")
        if pair[0] == "constant":
            instructions.append(Instruction("constant", (), _number(what, pair[1])))
        else:
            instructions.append(Instruction(pair[0], _tuple(f"{what}: arguments", pair[1])))
    return Code(data["inputs"], tuple(instructions), _tuple(f"{what}: results", data["results"]))


def _tuple(what: str, value: object) -> tuple[Any, ...]:
    _check(isinstance(value, (list, tuple)), f"{what} must be a list, got {type(value).__name__}")
    return tuple(value)


def _number(what: str, text: object) -> float:
    _check(isinstance(text, str), f"{what}: a number must be a str in hex, got {type(text).__name__}")
    try:
        number = float.fromhex(text)
    except (ValueError, OverflowError):
        raise ValueError(f"not a cell program: {what}: {text!r} is no number") from None
    _check(number.hex() == text, f"{what}: {text!r} is not how float.hex() writes that number")
    return number
