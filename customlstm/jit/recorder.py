"""Records what a function does to tensors, below autograd, as values of a builder.

A dispatch mode sees every ATen operation of the function and of autograd's derivative of it. Each tensor
stands for one value a unit; tensors that share memory share a box, so that an operation in place is a new
value in the box. The tensors themselves are real and small: what is not an operation on the cell's tensors
(Python numbers, 0-dimensional tensors from a closure) has its value, which becomes a constant.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import refusals
from .errors import CellError, Place, cell_error, user_frame
from .lowering import LOWERINGS, Condition, Symbol, Unsupported, number
from .names import assignments
from .program import MAX_INSTRUCTIONS
from .simplify import Builder

__all__ = ["Recorder"]

#: Results that are their first argument in the same memory.
_ALIASES = frozenset(
    {"detach", "alias", "view", "_unsafe_view", "_reshape_alias", "expand", "lift", "lift_fresh"}
)
#: Results with the value of their first argument in memory of their own.
_COPIES = frozenset({"clone", "_to_copy", "lift_fresh_copy", "contiguous"})
#: Results whose value depends on no tensor: the real one has it.
_FILLED = frozenset(
    "_efficientzerotensor zeros ones full scalar_tensor zeros_like ones_like full_like new_zeros new_ones "
    "new_full fill zero".split()
)
#: Options of operations that change what they compute and are no values.
_OPTIONS = {"add": "alpha", "sub": "alpha", "rsub": "alpha", "div": "rounding_mode", "round": "decimals"}
#: Options that say where and as what a tensor is made.
_PLACES = frozenset({"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking"})


class _Box:
    """The value that a piece of memory has at the moment."""

    def __init__(self, value: Symbol) -> None:
        self.value = value


class Recorder(TorchDispatchMode):
    """Active as a context manager.

    Args:
        name: the cell function's name, for errors.
        dtype: of all inputs.
    """

    def __init__(self, name: str, place: Place | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.builder = Builder()
        self.calling = ""  # the public function of torch that the user has called and that runs now
        self._name, self._place, self._dtype = name, place, dtype
        self._shape: torch.Size | None = None
        self._boxes: dict[int, _Box] = {}
        self._kept: list[Tensor] = []  # ids are unique among living objects only
        self._table: dict[Any, Callable[..., Any]] | None = None
        self._decomposing = 0
        self._lines: list[tuple[CodeType, int, int]] = []

    # --- what trace() asks and says

    def input(self, tensor: Tensor, hint: str) -> int:
        """Makes ``tensor`` an input; its position in the builder."""
        self._shape = tensor.shape
        index = self.builder.input(hint)
        self._remember(tensor, _Box(index))
        return index

    def value(self, tensor: Tensor) -> int:
        """The position of what ``tensor`` holds now."""
        return number(self.builder, self._symbol(tensor))

    def depends_on_units(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` holds something else than one number that was known before."""
        box = self._boxes.get(id(tensor))
        if box is None:
            return tensor.numel() != 1
        return not isinstance(box.value, int) or self.builder.constant_of(box.value) is None

    def error(self, text: str, frame: FrameType | None = None) -> CellError:
        """An error at the line of ``frame``, else the user's that runs now, else the function's first."""
        return cell_error(self._name, text, place=self._place, frame=frame or user_frame())

    def name_values(self, function: Callable[..., Any]) -> None:
        """Gives values the names of the variables that ``function`` assigns them to."""
        code = getattr(inspect.unwrap(function), "__code__", None)
        for first, last, name in assignments(function):
            made = [index for where, line, index in self._lines if where is code and first <= line <= last]
            if made and not self.builder.nodes[made[-1]].hint:
                self.builder.nodes[made[-1]].hint = name

    # --- recording

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            raise self.error(refusals.unknown(self.calling or str(func)))
        # Where both have a name, a primitive of torch._prims means what the ATen operation does.
        name = func._schema.name.removeprefix("aten::").removeprefix("prims::")
        written = [
            value
            for argument, (_, value) in zip(func._schema.arguments, _named(func, args, kwargs), strict=True)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if written:
            return self._in_place(func, name, written, args, kwargs)
        if name in ("_local_scalar_dense", "item"):
            if self.depends_on_units(args[0]):
                raise self.error(refusals.CONVERSIONS["item"].format(call="Tensor.item()"))
            return func(*args, **kwargs)
        return self._functional(func, name, args, kwargs)

    def _functional(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise self.error(refusals.random(self._called(name)))
        if not any(isinstance(x, Tensor) and self._is_ours(x) for x in _flat(args, kwargs)):
            if name not in _FILLED and name not in ("lift_fresh", "arange", "empty", "empty_strided"):
                return func(*args, **kwargs)  # on numbers that were known before: its result is one, too
        if name in _ALIASES or name in _COPIES:
            return self._moved(func, name, args, kwargs)
        if name in _FILLED:
            return self._filled(func, name, args, kwargs)
        if name in LOWERINGS:
            return self._lowered(func, name, args, kwargs)
        if self._decomposing == 0 and refusals.family(name) is not None:
            raise self._refusal(name)
        # Without an entry there may be a composite kernel, which is made of other operations.
        decomposition = self._decompositions().get(func, func.decompose)
        self._decomposing += 1
        try:
            with self:
                result = decomposition(*args, **kwargs)
        finally:
            self._decomposing -= 1
        if result is NotImplemented:
            raise self._refusal(name)
        return result

    def _lowered(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        result = func(*args, **kwargs)
        operands, options = [], {}
        for argument, given in _named(func, args, kwargs):
            if argument == _OPTIONS.get(name):
                options |= {} if given is None else {argument: given}
            elif argument not in _PLACES:
                operands.append(self._operand(given))
        try:
            symbol = LOWERINGS[name](self.builder, *operands, **options)
        except Unsupported as reason:
            raise self.error(f"{self._called(name)}: {reason}") from None
        return self._made(result, symbol, name)

    def _operand(self, x: Any) -> Symbol | None:
        if x is None:
            return None
        return self._symbol(x) if isinstance(x, Tensor) else self.builder.constant(float(x))

    def _moved(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        source, result = args[0], func(*args, **kwargs)
        if result.dtype != source.dtype and self.depends_on_units(source):
            if result.dtype == torch.bool:
                zero = self.builder.constant(0.0)
                return self._made(result, LOWERINGS["ne"](self.builder, self._symbol(source), zero), name)
            made_of_conditions = source.dtype == torch.bool and result.dtype.is_floating_point
            if not made_of_conditions and result.dtype != self._dtype and user_frame() is not None:
                raise self.error(refusals.dtype(self._called(name), result.dtype))
        if result.shape != source.shape and self.depends_on_units(source):
            raise self._refusal(name)
        if name in _ALIASES and id(source) in self._boxes:
            return self._remember(result, self._boxes[id(source)])
        return self._remember(result, _Box(self._in_dtype(self._symbol(source), result)))

    def _filled(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        result = func(*args, **kwargs)
        shaped = self._shape is not None and result.shape != self._shape and result.numel() != 1
        if shaped:
            raise self.error(refusals.shape(self._called(name)))
        if result.numel() and self._is_fill_by_unit(args, kwargs):
            return self._made(result, self._symbol(args[1]), name)
        if name == "_efficientzerotensor":  # has no memory to look into
            return self._remember(result, _Box(self.builder.constant(0.0)))
        # The number as it was written, not as the dtype of this tensor rounds it.
        written = [x for at, x in _named(func, args, kwargs) if at in ("fill_value", "s", "value")]
        value = written[0] if written and isinstance(written[0], (int, float)) else result.flatten()[0]
        return self._remember(result, _Box(self._in_dtype(self.builder.constant(float(value)), result)))

    def _is_fill_by_unit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return len(args) > 1 and isinstance(args[1], Tensor) and self.depends_on_units(args[1])

    def _in_place(
        self, func: Any, name: str, written: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The operation as its functional twin, whose result is then the value of the memory."""
        target = written[0]
        functional = _functional_twin(func, name)
        if functional is None or len(written) > 1 or target is not args[0]:
            tail = name.rstrip("_")
            if refusals.family(tail) is not None:
                raise self._refusal(tail)
            raise self.error(
                f"{self._called(name)} writes to a tensor that it is given; assign its result to a name in "
                "its place"
            )
        if id(target) not in self._boxes and self._is_in_place_call():
            raise self.error(
                f"{self._called(name)} changes a tensor that is not the cell's own, which a kernel cannot; "
                "keep what lasts from step to step in a state, or make it a keyword-only parameter"
            )
        if name == "copy_":
            symbol = self._symbol(args[1])
            whole = not (target.dtype.is_floating_point or target.dtype == torch.bool)
            if whole and not self._is_constant(symbol):
                raise self.error(refusals.dtype(self._called(name), target.dtype))
        else:
            with self:
                symbol = self._symbol(functional(*args, **kwargs))
        result = func(*args, **kwargs)
        symbol = self._in_dtype(symbol, target)
        if id(target) in self._boxes:
            self._boxes[id(target)].value = symbol
        else:
            self._remember(target, _Box(symbol))
        return result

    def _is_in_place_call(self) -> bool:
        """Whether the user has called what ends in _, or an operator such as +=: torch itself does, too."""
        last = self.calling.rpartition(".")[2]
        return last.startswith("__i") if last.startswith("__") else last.endswith("_")

    def _made(self, result: Any, symbol: Symbol, name: str) -> Tensor:
        """Takes ``symbol`` for the value of ``result``, if that may be one of a cell's."""
        if isinstance(symbol, Condition) and symbol.is_known(self.builder):
            symbol = number(self.builder, symbol)
        symbol = self._in_dtype(symbol, result)
        if not self._is_constant(symbol):
            if result.shape != self._shape:
                raise self.error(refusals.shape(self._called(name)))
            # Of two Python numbers torch.where makes int64 or the default dtype; the next operation promotes
            # them.
            number_of_where = name == "where" or self._decomposing > 0
            if not (result.dtype.is_floating_point or result.dtype == torch.bool or number_of_where):
                raise self.error(refusals.dtype(self._called(name), result.dtype))
        if len(self.builder.nodes) > MAX_INSTRUCTIONS:
            raise self.error(
                f"it and its derivative need more than {MAX_INSTRUCTIONS} operations, but a kernel has at "
                "most that many; shorten its loops"
            )
        frame = user_frame()
        if frame is not None and isinstance(symbol, int):
            self._lines.append((frame.f_code, frame.f_lineno, symbol))
        return self._remember(result, _Box(symbol))

    def _is_constant(self, symbol: Symbol) -> bool:
        return isinstance(symbol, int) and self.builder.constant_of(symbol) is not None

    def _in_dtype(self, symbol: Symbol, tensor: Tensor) -> Symbol:
        """``symbol`` as ``tensor`` holds it, if that is no floating-point one: rounded, or a condition."""
        if tensor.dtype.is_floating_point or isinstance(symbol, Condition):
            return symbol
        if self._is_constant(symbol):
            return self.builder.constant(float(tensor.flatten()[0]))
        if tensor.dtype == torch.bool:
            return LOWERINGS["ne"](self.builder, symbol, self.builder.constant(0.0))
        return symbol

    def _remember(self, tensor: Tensor, box: _Box) -> Tensor:
        self._kept.append(tensor)
        self._boxes[id(tensor)] = box
        return tensor

    def _is_ours(self, tensor: Tensor) -> bool:
        """Whether it has a box, or ought to have one: many numbers from elsewhere."""
        return id(tensor) in self._boxes or tensor.numel() != 1

    def _symbol(self, tensor: Tensor) -> Symbol:
        if id(tensor) in self._boxes:
            return self._boxes[id(tensor)].value
        if tensor.numel() != 1:
            raise self.error(
                f"it uses a tensor of shape {list(tensor.shape)} that is none of its arguments, but a "
                "kernel knows only what is passed; make it a keyword-only parameter, which has one value a "
                "unit, or use a Python number"
            )
        if tensor.requires_grad:
            raise self.error(
                "it uses a tensor with requires_grad=True that is none of its arguments, which would get no "
                "gradient; make it a keyword-only parameter, or detach it to use the value that it has now"
            )
        if tensor.dtype.is_complex:
            raise self.error(refusals.dtype("a tensor from outside", tensor.dtype))
        return self.builder.constant(float(tensor))

    def _decompositions(self) -> dict[Any, Callable[..., Any]]:
        if self._table is None:
            from torch._decomp import core_aten_decompositions, decomposition_table

            self._table = {**decomposition_table, **core_aten_decompositions()}
        return self._table

    def _called(self, name: str) -> str:
        return self.calling or f"torch.{name}"

    def _refusal(self, name: str) -> CellError:
        return self.error(refusals.text(self._called(name), name))


def _named(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """The name and value of every argument in the schema's order; None for one that is not given."""
    names = [x.name for x in func._schema.arguments]
    return [(x, args[at] if at < len(args) else kwargs.get(x)) for at, x in enumerate(names)]


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    flat = []
    for x in [*args, *kwargs.values()]:
        flat.extend(x if isinstance(x, (list, tuple)) else [x])
    return flat


def _functional_twin(func: Any, name: str) -> Any:
    """``aten.mul.Tensor`` of ``aten.mul_.Tensor``; None where there is none."""
    if not name.endswith("_") or name.startswith("__"):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, func._overloadname, None) if name != "copy_" else torch.ops.aten.copy.default
