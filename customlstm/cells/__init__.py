"""What happens to the gates of one step: the options of :class:`Cell`, functions of one's own (:func:`cell`).

The cell is pointwise: it sees one hidden unit at one step. Time, batch, matrix products, masks, lengths and
projection belong to the recurrence around it, so every cell gets them.
"""

from collections.abc import Sequence

from ..activations import Activation, PiecewiseLinear
from . import gallery
from .gallery import coupled, hard, janet, leaky, minimal_gated, peephole, slstm, standard
from .layer_norm import own_parameters
from .options import NAME, STANDARD, Cell
from .options import _with_options as _with_options  # by this name pickles call it
from .pointwise import Pointwise
from .written import UserCell, cell, find

__all__ = [
    "NAME", "AnyCell", "Cell", "Pointwise", "UserCell", "as_cell", "cell", "coupled", "decode", "find",
    "gallery", "hard", "janet", "leaky", "minimal_gated", "own_parameters", "peephole", "slstm", "standard",
]  # fmt: skip

#: What the modules take as ``cell``.
AnyCell = Cell | UserCell


def as_cell(cell: AnyCell | None, argument: str = "cell") -> AnyCell:
    """``cell`` itself, or the standard cell for None.

    Raises:
        TypeError: anything else; the text says how to write the cell that was probably meant.
        CellError: a user's function that is no cell.
    """
    if cell is None:
        return STANDARD
    if isinstance(cell, Cell):
        return cell
    if isinstance(cell, UserCell):
        cell.check()
        return cell
    hint = ""
    if isinstance(cell, str):
        hint = f"; for this activation on the cell input write Cell(cell_activation={cell!r})"
    elif isinstance(cell, (Activation, PiecewiseLinear)):
        hint = "; for this activation on the cell input write Cell(cell_activation=...)"
    elif cell is Cell:
        hint = "; write Cell() with parentheses"
    elif callable(cell):
        hint = (
            "; to make a cell of a function write @customlstm.cell above it, and to change an activation "
            "Cell(cell_activation=PiecewiseLinear.fit(fn)), or name one"
        )
    raise TypeError(
        f"{argument} must be a customlstm.Cell, a @customlstm.cell or None, got {cell!r} "
        f"({type(cell).__name__}){hint}"
    )


def decode(cell: str, cell_args: Sequence[float]) -> AnyCell:
    """The cell of which ``encode()`` gave ``cell`` and ``cell_args``.

    Raises:
        ValueError: a name that no cell in this process has, or arguments that no Cell encodes to.
    """
    if cell == NAME:
        return Cell.decode(cell, cell_args)
    if cell_args:
        raise ValueError(f"cell_args has {len(cell_args)} numbers, expected none for the cell {cell!r}")
    return find(cell)
