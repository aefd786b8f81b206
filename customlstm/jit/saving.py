"""Which values of forward backward reads from memory, and which it computes again: a minimum cut.

Previous states, new states and parameters are at hand in backward and cost nothing. Any other value that
depends on no gradient is either saved, for :data:`~customlstm.jit.primitives.SAVE_PRICE`, or computed again
from values that are at hand. The cheapest choice is the minimum cut of a graph with two vertices a value, "at
hand" and "computed", whose edges are paid where they lead from a vertex on the source's side to one on the
sink's:

* source -> at hand, for what the gradients need: infinite;
* at hand -> computed: the price of saving;
* computed -> sink: the price of the operation;
* computed -> at hand, for each argument: infinite.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..limits import MAX_SAVED
from .primitives import PRIMITIVES, SAVE_PRICE
from .program import Code
from .simplify import INPUT, Builder

__all__ = ["Joint", "split"]

_INFINITE = 1 << 40
_SOURCE, _SINK = (-1, 0), (-1, 1)


@dataclass(frozen=True)
class Joint:
    """Forward and backward in one builder; every field holds positions there."""

    gates: tuple[int, ...]
    states: tuple[int, ...]
    parameters: tuple[int, ...]
    dh: int
    dstates: tuple[int, ...]
    results: tuple[int, ...]  # h and the new states
    gradients: tuple[int, ...]  # of states, gates and parameters


def split(
    builder: Builder, joint: Joint
) -> tuple[tuple[Code, tuple[str, ...]], tuple[Code, tuple[str, ...]]]:
    """Forward and backward, each as code and the hints of its instructions."""
    saved = choose_saved(builder, joint)
    forward = builder.code([*joint.gates, *joint.states, *joint.parameters], [*joint.results, *saved])
    return forward, _backward(builder, joint, saved)


def choose_saved(builder: Builder, joint: Joint) -> list[int]:
    """The values to save, at least one and at most MAX_SAVED, in order."""
    needed = _needed(builder, joint)
    price = SAVE_PRICE
    while True:
        saved = _minimum_cut(builder, joint, needed, price)
        if len(saved) <= MAX_SAVED:
            return saved or [joint.gates[0]]  # C++ has no empty arrays
        price *= 2  # where saving costs the most, there are no more than gates


def _at_hand(joint: Joint) -> set[int]:
    return {*joint.states, *joint.parameters, *joint.results[1:]}


def _gradient_values(builder: Builder, joint: Joint) -> set[int]:
    """All values that depend on a gradient."""
    found = {joint.dh, *joint.dstates}
    for index, node in enumerate(builder.nodes):
        if any(x in found for x in node.arguments):
            found.add(index)
    return found


def _needed(builder: Builder, joint: Joint) -> list[int]:
    """Values without gradients that are arguments of needed values with them, or are gradients themselves."""
    with_gradients = _gradient_values(builder, joint)
    border = set(joint.gradients) - with_gradients
    for index in builder.reachable(set(joint.gradients) & with_gradients):
        if index in with_gradients:
            border |= set(builder.nodes[index].arguments) - with_gradients
    return sorted(border)


def _minimum_cut(builder: Builder, joint: Joint, needed: Sequence[int], save_price: int) -> list[int]:
    at_hand = _at_hand(joint)
    forward = builder.reachable(joint.results)
    network = _Network()
    reachable = builder.reachable(needed, stop=at_hand)
    for index in sorted(reachable):
        node = builder.nodes[index]
        if index in at_hand or node.op == "constant":
            continue
        extra = 0
        if index not in forward:
            # Saved, it would be one more thing to compute in forward, with all that leads to it.
            behind = builder.reachable([index], stop=forward) - forward
            extra = 1 + sum(_price(builder, x) for x in behind)
        network.edge((index, 0), (index, 1), save_price + extra)
        network.edge((index, 1), _SINK, _INFINITE if node.op == INPUT else _price(builder, index))
        for argument in node.arguments:
            if argument not in at_hand and builder.nodes[argument].op != "constant":
                network.edge((index, 1), (argument, 0), _INFINITE)
    for index in needed:
        if index in reachable and index not in at_hand and builder.nodes[index].op != "constant":
            network.edge(_SOURCE, (index, 0), _INFINITE)
    side = network.source_side()
    return sorted(index for index, part in side if part == 0 and (index, 1) not in side)


def _price(builder: Builder, index: int) -> int:
    op = builder.nodes[index].op
    return PRIMITIVES[op].price if op in PRIMITIVES else 0


def _backward(builder: Builder, joint: Joint, saved: Sequence[int]) -> tuple[Code, tuple[str, ...]]:
    """The gradients' code: values at hand are its inputs, so it is written over into a builder of its own."""
    own = Builder()
    place: dict[int, int] = {}
    inputs = []

    def take(indices: Sequence[int]) -> None:
        for index in indices:
            inputs.append(own.input(builder.nodes[index].hint))
            place.setdefault(index, inputs[-1])

    # The first of two that are the same value is read; a new state last, since it may be rounded to be
    # stored.
    take(saved)
    take(joint.parameters)
    take(joint.states)
    take(joint.results[1:])
    take([joint.dh, *joint.dstates])
    for index in sorted(builder.reachable(joint.gradients, stop=place)):
        node = builder.nodes[index]
        if index in place:
            continue
        if node.value is not None:
            place[index] = own.constant(node.value)
        else:
            place[index] = own.emit(node.op, *(place[x] for x in node.arguments))
        own.nodes[place[index]].hint = own.nodes[place[index]].hint or node.hint
    return own.code(inputs, [place[x] for x in joint.gradients])


class _Network:
    """Maximum flow by shortest augmenting paths (Edmonds and Karp 1972): a cell's graph is small."""

    def __init__(self) -> None:
        self._capacity: dict[tuple[int, int], dict[tuple[int, int], int]] = {_SOURCE: {}, _SINK: {}}

    def edge(self, start: tuple[int, int], end: tuple[int, int], capacity: int) -> None:
        edges = self._capacity.setdefault(start, {})
        edges[end] = edges.get(end, 0) + capacity
        self._capacity.setdefault(end, {}).setdefault(start, 0)

    def source_side(self) -> set[tuple[int, int]]:
        """The vertices on the source's side of the minimum cut that is nearest to the source."""
        while True:
            came_from = self._search()
            if _SINK not in came_from:
                return set(came_from) - {_SOURCE}
            path = [_SINK]
            while path[-1] != _SOURCE:
                path.append(came_from[path[-1]])
            steps = list(zip(path[1:], path, strict=False))
            flow = min(self._capacity[start][end] for start, end in steps)
            for start, end in steps:
                self._capacity[start][end] -= flow
                self._capacity[end][start] += flow

    def _search(self) -> dict[tuple[int, int], tuple[int, int]]:
        came_from = {_SOURCE: _SOURCE}
        queue = deque([_SOURCE])
        while queue:
            vertex = queue.popleft()
            for end, capacity in self._capacity[vertex].items():
                if capacity > 0 and end not in came_from:
                    came_from[end] = vertex
                    queue.append(end)
        return came_from
