"""Cells that users write: ``@customlstm.cell`` makes a :class:`UserCell` of a function of gates and states.

The function is traced once, when a module is made with it, and compiled once for every dtype, when a call
first needs it (:mod:`customlstm.jit`). Nothing is traced or compiled by importing the module that has it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import secrets
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .pointwise import Pointwise

if TYPE_CHECKING:
    from ..jit.program import Program

__all__ = ["UserCell", "cell", "find"]

#: Under the names by which the operators know them.
_known: dict[str, UserCell] = {}
_lock = threading.RLock()


def cell(function: Callable[..., Any] | None = None) -> UserCell:
    """Makes a cell of a function of gate pre-activations and states; a decorator.

    Args:
        function: takes 1 to 8 gates, then 1 to 4 states besides h, by position, and at most 8 per-unit
            parameters as keyword-only arguments; returns h and the new states. All are tensors of one shape,
            and every element is a hidden unit by itself: any of PyTorch's pointwise functions, comparisons
            and ``torch.where`` may be used, nothing that mixes elements. The number of results tells how many
            of the positional arguments are states. A parameter's default is the number that it begins with;
            without one it begins as ``nn.LSTM``'s weights do.

    Returns:
        What ``LSTM`` and ``LSTMCell`` take as ``cell``. It can still be called as the function.

    Raises:
        TypeError: ``function`` is not a function. What it computes is looked at when a module is made with
            it.

    Example:
        >>> @customlstm.cell
        ... def coupled(f, g, o, c, *, peephole=0.0):
        ...     f = torch.sigmoid(f + peephole * c)
        ...     c = f * c + (1 - f) * torch.tanh(g)
        ...     return torch.sigmoid(o) * torch.tanh(c), c
        >>> lstm = customlstm.LSTM(8, 16, cell=coupled)  # weight_ih_l0 is [3 * 16, 8], peephole_l0 is [16]
    """
    if isinstance(function, UserCell):
        return function
    if function is None:
        raise TypeError("function is missing: write @customlstm.cell above the def, without parentheses")
    if not callable(function) or inspect.isclass(function):
        raise TypeError(
            f"function must be a function of gates and states, got {function!r} ({type(function).__name__}); "
            "write @customlstm.cell above a def"
        )
    return UserCell(function)


@dataclass(frozen=True)
class _Meaning:
    """What a function was found to be when it was looked at.

    Attributes:
        gates, states, parameters: names of its arguments.
        initial: what parameters with a default begin with.
        operator: the name by which the operators know the cell.
        program: what was traced, or None.
        why_not: why nothing could be traced, and the function runs on the reference alone; or None.
    """

    gates: tuple[str, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    initial: Mapping[str, float]
    operator: str
    program: Program | None = None
    why_not: str | None = None


class UserCell:
    """A cell that is a function; made by :func:`cell`. Immutable, hashable, and picklable.

    It pickles with what was traced, so that it loads where its module cannot be imported. Equal cells compute
    the same under the same names.

    Attributes:
        name: of the function.
    """

    name: str

    def __init__(
        self, function: Callable[..., Any] | None, program: Program | None = None, source: str = ""
    ) -> None:
        """Of a function that nobody has looked at yet, or of what was traced of it, or of both."""
        self._function = function
        self._source = source
        self._meaning: _Meaning | None = None
        if function is not None:
            functools.update_wrapper(self, function, updated=())  # not its attributes, over those of the cell
            self.name = getattr(function, "__name__", type(function).__name__)
        elif program is not None:
            self.name = program.name
        if program is not None:
            self._meaning = _meaning_of(program)
            _known.setdefault(self._meaning.operator, self)

    def __call__(self, *args: Tensor, **parameters: Tensor) -> Any:
        """The function itself."""
        if self._function is not None:
            return self._function(*args, **parameters)
        gates = self.gates
        own = [parameters[name] for name in self.unit_parameters]
        h, new = self.program.forward(args[:gates], args[gates:], own)
        return (h, *new)

    def check(self) -> None:
        """Looks at what the function computes, unless that was done.

        Raises:
            CellError: it is no cell; the text names the line and the way out. A function that is one but
                cannot be fused raises nothing here: see :attr:`why_not_fused`.
        """
        self._found()

    def _found(self) -> _Meaning:
        if self._meaning is not None:
            return self._meaning
        from .. import jit  # loads torch.fx, which takes its time

        with _lock:
            if self._meaning is None:
                try:
                    found = _meaning_of(jit.trace(self._function))
                    _known.setdefault(found.operator, self)
                except jit.CellError as error:
                    found = _meaning_untraced(self._function, error)
                    _known[found.operator] = self
                self._meaning = found
            return self._meaning

    @property
    def program(self) -> Program | None:
        """The traced :class:`customlstm.jit.Program`, or None where :attr:`why_not_fused` says why.

        Raises:
            CellError: as :meth:`check`.
        """
        return self._found().program

    @property
    def why_not_fused(self) -> str | None:
        """Why no kernel can be made of the function, which then runs on the reference; None if one can.

        Raises:
            CellError: as :meth:`check`.
        """
        return self._found().why_not

    @property
    def digest(self) -> str | None:
        """sha256 of what is computed and of the names of the arguments; None where it could not be traced."""
        return None if self.program is None else self.program.digest

    @property
    def source(self) -> str:
        """The text of the function, where it can be read."""
        if not self._source and self._function is not None:
            try:
                self._source = textwrap.dedent(inspect.getsource(self._function))
            except (OSError, TypeError):
                return ""
        return self._source

    @property
    def gate_names(self) -> tuple[str, ...]:
        """Names of the gates, in the order of their rows in the weights."""
        return self._found().gates

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states besides h, in their order within c."""
        return self._found().states

    @property
    def unit_parameters(self) -> tuple[str, ...]:
        """Names of the parameters [hidden_size] that this cell adds to every layer and direction."""
        return self._found().parameters

    @property
    def initial(self) -> Mapping[str, float]:
        """What the parameters that have a default begin with."""
        return self._found().initial

    @property
    def gates(self) -> int:
        """Number of gates: W_ih, W_hh and the biases have this many times hidden_size rows."""
        return len(self.gate_names)

    @property
    def states(self) -> int:
        """Number of states besides h: c has this many times hidden_size features."""
        return len(self.state_names)

    @property
    def saved(self) -> int:
        """Values a unit and step that a kernel keeps for backward."""
        return 1 if self.program is None else self.program.saved_count

    @property
    def forget_gate(self) -> int | None:
        """Which gate ``forget_bias`` is for: the one named f."""
        return self.gate_names.index("f") if "f" in self.gate_names else None

    @property
    def is_standard(self) -> bool:
        """False: what a function computes is not compared with the cell of ``nn.LSTM``."""
        return False

    def encode(self) -> tuple[str, list[float]]:
        """The ``cell`` and ``cell_args`` arguments of the operators."""
        return self._found().operator, []

    def pointwise(self, like: Tensor) -> Pointwise:
        """The function in the form in which the reference calls it; see :meth:`Cell.pointwise`."""
        found = self._found()
        if found.program is not None:
            return found.program.forward
        function, names = self._function, found.parameters

        def run(
            a: Sequence[Tensor], states: Sequence[Tensor], p: Sequence[Tensor]
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            own = [x.clone() for x in (*a, *states)]  # a function may write into its arguments
            h, *new = function(*own, **dict(zip(names, p, strict=True)))
            return h, tuple(new)

        return run

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UserCell):
            return NotImplemented
        return self is other or (self.program is not None and self.encode() == other.encode())

    def __hash__(self) -> int:
        return hash(self.encode()[0])

    def __copy__(self) -> UserCell:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> UserCell:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.program is not None:
            return _restored, (self.program.to_data(), self.source)
        module, name = getattr(self, "__module__", None), getattr(self, "__qualname__", "")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, TypeError):
            found = None
        if found is not self:
            raise TypeError(
                f"{self!r} cannot be pickled: it cannot be fused, so its function is all there is, and that "
                f"is not {module}.{name}; define it at the top of a module. It cannot be fused because: "
                f"{self.why_not_fused}"
            )
        return _imported, (module, name)

    def __repr__(self) -> str:
        return self.name if self._meaning is None else f"<cell {self}>"

    def __str__(self) -> str:
        found = self._meaning
        if found is None:
            return self.name
        own = f", *, {', '.join(found.parameters)}" if found.parameters else ""
        return f"{self.name}({', '.join((*found.gates, *found.states))}{own})"


def _meaning_of(program: Program) -> _Meaning:
    initial = _given(program.parameters, program.defaults)
    operator = _operator_name(program.name, program.digest[:32])
    return _Meaning(program.gates, program.states, program.parameters, initial, operator, program)


def _meaning_untraced(function: Callable[..., Any] | None, error: Exception) -> _Meaning:
    """For the reference alone, where the function at least returns h and states; else ``error`` is raised."""
    from ..jit.signature import read_signature

    signature = read_signature(function)
    states = max(_states_of(function, signature, dtype) for dtype in (torch.float64, torch.float32))
    if states == 0:
        raise error
    gates = len(signature.positional) - states
    initial = _given(signature.parameters, signature.defaults)
    # Known in this process only: in another one the same name must not mean another function.
    operator = _operator_name(signature.name, secrets.token_hex(16))
    names = (signature.positional[:gates], signature.positional[gates:], signature.parameters)
    return _Meaning(*names, initial, operator, why_not=str(error))


def _operator_name(name: str, identity: str) -> str:
    return f"user.{re.sub(r'[^A-Za-z0-9_]', '_', name)[:20]}.{identity}"


def _states_of(function: Callable[..., Any] | None, signature: Any, dtype: torch.dtype) -> int:
    """How many states it returns for tensors of this dtype; 0 where it fails or returns anything else."""
    shape = (2, 3)
    arguments = [torch.zeros(shape, dtype=dtype) for _ in signature.positional]
    parameters = {name: torch.zeros(shape[1:], dtype=dtype) for name in signature.parameters}
    try:
        with torch.no_grad():
            results = function(*arguments, **parameters)
    except Exception:
        return 0
    good = isinstance(results, (tuple, list)) and 1 < len(results) < len(arguments) + 1
    good = good and all(isinstance(x, Tensor) and x.shape == shape for x in results)
    return len(results) - 1 if good else 0


def _given(names: Sequence[str], numbers: Sequence[float | None]) -> dict[str, float]:
    return {name: number for name, number in zip(names, numbers, strict=True) if number is not None}


def find(name: str) -> UserCell:
    """The cell that the operators know by this name.

    Raises:
        ValueError: there is none in this process.
    """
    if name not in _known:
        raise ValueError(
            f"unknown cell {name!r}: this process has not met it; import the module that defines it and make "
            "a module with it, or load the cell from a pickle"
        )
    return _known[name]


def _restored(data: object, source: str) -> UserCell:
    """What pickles of a traced cell call."""
    from ..jit.program import Program

    if not isinstance(source, str):
        raise ValueError(f"source of a pickled cell must be a str, got {type(source).__name__}")
    loaded = UserCell(None, Program.from_data(data), source)
    return _known[loaded.encode()[0]]  # the one with its function, where this process has it


def _imported(module: str, name: str) -> UserCell:
    """What pickles of a cell that could not be traced call."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


# So that torch.load reads a checkpoint that holds a cell: what it calls checks what it is given, and runs no
# code of the file's.
torch.serialization.add_safe_globals([_restored])
