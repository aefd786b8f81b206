"""Values under construction: constants are folded, equal values are one, and nothing changes a bit of a
result.

An identity is used only where it holds for every number, infinities, NaN and the sign of zero included: x + 0
stays, because of -0 + 0 = 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from .primitives import COMMUTATIVE, apply
from .program import Code, Instruction

__all__ = ["INPUT", "Builder", "Node"]

INPUT = "input"


@dataclass
class Node:
    """One value: an instruction whose arguments are positions in the builder, or an input."""

    op: str
    arguments: tuple[int, ...] = ()
    value: float | None = None
    hint: str = ""  # the user's name for it


class Builder:
    """A growing list of values; each is known by its position."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[tuple[object, ...], int] = {}

    def input(self, hint: str = "") -> int:
        self.nodes.append(Node(INPUT, hint=hint))
        return len(self.nodes) - 1

    def constant(self, value: float) -> int:
        return self._add(Node("constant", value=float(value)), ("constant", float(value).hex()))

    def constant_of(self, index: int) -> float | None:
        """The number, if the value is a constant."""
        return self.nodes[index].value

    def emit(self, op: str, *arguments: int) -> int:
        """The value of ``op``, which may be an older one."""
        numbers = [self.constant_of(x) for x in arguments]
        if None not in numbers:
            double = torch.zeros((), dtype=torch.float64)
            return self.constant(apply(op, list(numbers), double).item())
        simpler = self._simpler(op, arguments, numbers)
        if simpler is not None:
            return simpler
        key = tuple(sorted(arguments)) if op in COMMUTATIVE else arguments
        return self._add(Node(op, arguments), (op, *key))

    def _add(self, node: Node, key: tuple[object, ...]) -> int:
        if key not in self._known:
            self.nodes.append(node)
            self._known[key] = len(self.nodes) - 1
        return self._known[key]

    def _negated(self, index: int) -> int | None:
        """x, if the value is -x."""
        node = self.nodes[index]
        return node.arguments[0] if node.op == "neg" else None

    def _simpler(self, op: str, arguments: tuple[int, ...], numbers: list[float | None]) -> int | None:
        if op.startswith("select_"):
            a, b, x, y = arguments
            if x == y or (op == "select_gt" and a == b):
                return y
            if numbers[0] is None or numbers[1] is None:
                return None
            first, second = numbers[0], numbers[1]
            holds = {"gt": first > second, "ge": first >= second, "eq": first == second}[op[-2:]]
            return x if holds else y
        if op in ("neg", "abs"):
            inner = self._negated(arguments[0])
            if inner is not None:
                return inner if op == "neg" else self.emit("abs", inner)
            return arguments[0] if op == "abs" and self.nodes[arguments[0]].op == "abs" else None
        rule = {
            "add": self._add_rule,
            "sub": self._sub_rule,
            "mul": self._mul_rule,
            "div": self._div_rule,
        }.get(op)
        return rule(*arguments, *numbers) if rule else None

    def _add_rule(self, x: int, y: int, x_number: float | None, y_number: float | None) -> int | None:
        for value, other, number in ((x, y, y_number), (y, x, x_number)):
            if number == 0 and math.copysign(1.0, number) < 0:
                return value
            negated = self._negated(other)
            if negated is not None:
                return self.emit("sub", value, negated)
        return None

    def _sub_rule(self, x: int, y: int, x_number: float | None, y_number: float | None) -> int | None:
        if y_number == 0 and math.copysign(1.0, y_number) > 0:
            return x
        if x_number == 0 and math.copysign(1.0, x_number) < 0:
            return self.emit("neg", y)
        negated = self._negated(y)
        return None if negated is None else self.emit("add", x, negated)

    def _mul_rule(self, x: int, y: int, x_number: float | None, y_number: float | None) -> int | None:
        for value, number in ((x, y_number), (y, x_number)):
            if number == 1:
                return value
            if number == -1:
                return self.emit("neg", value)
        first, second = self._negated(x), self._negated(y)
        if first is not None and second is not None:
            return self.emit("mul", first, second)
        return None

    def _div_rule(self, x: int, y: int, _: float | None, divisor: float | None) -> int | None:
        # The reciprocal of a power of two is exact, as long as no accumulation type makes it subnormal.
        if divisor is None or divisor == 0 or math.isinf(divisor) or math.isnan(divisor):
            return None
        mantissa, exponent = math.frexp(divisor)
        if abs(mantissa) == 0.5 and abs(exponent) < 100:
            return self.emit("mul", x, self.constant(1.0 / divisor))
        return None

    def code(self, inputs: Sequence[int], results: Sequence[int]) -> tuple[Code, tuple[str, ...]]:
        """What ``results`` need, in the order in which it was built, and the instructions' hints."""
        needed = self.reachable(results, stop=inputs)
        place = {index: number for number, index in enumerate(inputs)}
        instructions, hints = [], []
        for index in sorted(needed - set(inputs)):
            node = self.nodes[index]
            place[index] = len(place)
            instructions.append(Instruction(node.op, tuple(place[x] for x in node.arguments), node.value))
            hints.append(node.hint)
        return Code(len(inputs), tuple(instructions), tuple(place[x] for x in results)), tuple(hints)

    def reachable(self, roots: Iterable[int], stop: Iterable[int] = ()) -> set[int]:
        """``roots`` and all values that they are computed from; nothing behind those of ``stop``."""
        end, found, open_ends = set(stop), set(), list(roots)
        while open_ends:
            index = open_ends.pop()
            if index not in found:
                found.add(index)
                if index not in end:
                    open_ends.extend(self.nodes[index].arguments)
        return found
