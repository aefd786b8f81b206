"""The cell: what happens to the four gate pre-activations of one step, as an immutable value.

With a_k = W_ik x_t + b_ik + W_hk h_{t-1} + b_hk for the gates k = i, f, g, o (in this order in every weight):

    i = s_g(a_i)    f = s_g(a_f)    g = s_c(a_g)    o = s_g(a_o)
    c_t = f c_{t-1} + i g
    h_t = o s_h(c_t)        and with a projection  h_t = W_hr h_t

s_g, s_c and s_h are ``gate_activation``, ``cell_activation`` and ``output_activation``. The defaults,
sigmoid, tanh and tanh, are the cell of ``nn.LSTM`` (Hochreiter and Schmidhuber 1997, with the forget gate of
Gers et al. 2000).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .activations import KINDS, PIECEWISE_LINEAR, Activation, ActivationSpec, PiecewiseLinear, activation

__all__ = ["Cell", "as_cell"]

_FIELDS = {"gate_activation": "sigmoid", "cell_activation": "tanh", "output_activation": "tanh"}
_NAME = "lstm"  # the registered name under which operators know this cell


@dataclass(frozen=True, init=False, repr=False)
class Cell:
    """The activations of an LSTM cell. Immutable, hashable, picklable.

    Args:
        gate_activation: s_g, applied to the input, forget and output gates.
        cell_activation: s_c, applied to the cell input g.
        output_activation: s_h, applied to the cell state on its way to h.

    Each is a name (see :data:`customlstm.activations.KINDS`), ``(name, {"alpha": ..., "beta": ...})``, an
    ``Activation`` or a ``PiecewiseLinear``; the attributes hold ``Activation`` or ``PiecewiseLinear``.

    Raises:
        TypeError, ValueError: an activation that is not known, named by its argument.
    """

    gate_activation: Activation | PiecewiseLinear
    cell_activation: Activation | PiecewiseLinear
    output_activation: Activation | PiecewiseLinear

    def __init__(
        self,
        gate_activation: ActivationSpec = "sigmoid",
        cell_activation: ActivationSpec = "tanh",
        output_activation: ActivationSpec = "tanh",
    ) -> None:
        parts = (
            activation(gate_activation, "gate_activation"),
            activation(cell_activation, "cell_activation"),
            activation(output_activation, "output_activation"),
        )
        for name, part in zip(_FIELDS, parts, strict=True):
            object.__setattr__(self, name, part)
        # Kept beside the fields: hashing 256 knots on every forward call costs more than the call's other
        # checks.
        object.__setattr__(self, "_arguments", tuple(number for part in parts for number in part.encode()))

    @property
    def is_standard(self) -> bool:
        """Whether this is the cell of ``nn.LSTM``: sigmoid gates, tanh elsewhere."""
        return self == _STANDARD

    def encode(self) -> tuple[str, list[float]]:
        """The ``cell`` and ``cell_args`` arguments of the operators.

        ``cell_args`` holds, for the gate, cell and output activation one after the other,
        ``[kind, alpha, beta, n, x_1..x_n, y_1..y_n]``; n is 0 except for a PiecewiseLinear.
        """
        return _NAME, list(self._arguments)  # type: ignore[attr-defined]

    @classmethod
    def decode(cls, cell: str, cell_args: Sequence[float]) -> Cell:
        """The Cell of which :meth:`encode` gave ``cell`` and ``cell_args``.

        Raises:
            ValueError: an unknown cell name, or arguments that no Cell encodes to.
        """
        return _decode(cell, tuple(cell_args))

    def bind(self, like: Tensor) -> tuple[Callable[[Tensor], Tensor], ...]:
        """(s_g, s_c, s_h), made ready for many calls on tensors of ``like``'s dtype and device."""
        return tuple(part.bind(like) for part in self._parts())

    def _parts(self) -> tuple[Activation | PiecewiseLinear, ...]:
        return self.gate_activation, self.cell_activation, self.output_activation

    def __reduce__(self) -> tuple[Any, ...]:
        return (Cell, self._parts())

    def _text(self, show: Callable[[object], str]) -> str:
        given = (
            (name, part.spec if isinstance(part, Activation) else part)
            for name, part in zip(_FIELDS, self._parts(), strict=True)
        )
        return f"Cell({', '.join(f'{name}={show(spec)}' for name, spec in given if spec != _FIELDS[name])})"

    def __repr__(self) -> str:
        """What differs from the standard cell, as Python that makes this Cell again."""
        return self._text(repr)

    def __str__(self) -> str:
        """Like repr, but for a PiecewiseLinear the number and range of its knots only."""
        return self._text(lambda spec: str(spec) if isinstance(spec, PiecewiseLinear) else repr(spec))


_STANDARD = Cell()

# So that torch.load reads a checkpoint that holds a cell. What it then calls are these constructors, which
# check what they are given.
torch.serialization.add_safe_globals([Cell, Activation, PiecewiseLinear])


@lru_cache(maxsize=256)
def _decode(cell: str, cell_args: tuple[float, ...]) -> Cell:
    if cell != _NAME:
        raise ValueError(f"unknown cell {cell!r}, expected {_NAME!r}")
    names = {kind.id: name for name, kind in KINDS.items()}
    parts: list[ActivationSpec] = []
    position = 0
    for field in _FIELDS:
        header = cell_args[position : position + 4]
        count = int(header[3]) if len(header) == 4 else -1
        end = position + 4 + 2 * count
        if count < 0 or count != header[3] or end > len(cell_args):
            raise ValueError(
                f"cell_args ends within {field}: {len(cell_args)} numbers; expected "
                "[kind, alpha, beta, n, x_1..x_n, y_1..y_n] for each of " + ", ".join(_FIELDS)
            )
        kind, alpha, beta = header[:3]
        knots = cell_args[position + 4 : end]
        if kind == PIECEWISE_LINEAR:
            parts.append(PiecewiseLinear(knots[:count], knots[count:]))
        elif kind in names and count == 0:
            name = names[int(kind)]
            parts.append(Activation(name, *(alpha, beta)[: len(KINDS[name].defaults)]))
        else:
            raise ValueError(
                f"cell_args: {field} has kind {kind} with {count} knots; expected 0 to "
                f"{PIECEWISE_LINEAR - 1} without knots, or {PIECEWISE_LINEAR} with knots"
            )
        position = end
    if position != len(cell_args):
        raise ValueError(f"cell_args has {len(cell_args)} numbers, the three activations take {position}")
    return Cell(*parts)


def as_cell(cell: Cell | None, argument: str = "cell") -> Cell:
    """``cell`` itself, or the standard cell for None.

    Raises:
        TypeError: anything else; the text says how to write the Cell that was probably meant.
    """
    if cell is None:
        return _STANDARD
    if isinstance(cell, Cell):
        return cell
    hint = ""
    if isinstance(cell, str):
        hint = f"; for this activation on the cell input write Cell(cell_activation={cell!r})"
    elif isinstance(cell, (Activation, PiecewiseLinear)):
        hint = "; for this activation on the cell input write Cell(cell_activation=...)"
    elif cell is Cell:
        hint = "; write Cell() with parentheses"
    elif callable(cell):
        hint = "; to change an activation write Cell(cell_activation=PiecewiseLinear.fit(fn)) or name one"
    raise TypeError(
        f"{argument} must be a customlstm.Cell or None, got {cell!r} ({type(cell).__name__}){hint}"
    )
