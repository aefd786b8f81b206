"""Why an operation has no place in a cell, and what to do: the texts of errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

if TYPE_CHECKING:
    from .recorder import Recorder

__all__ = ["CONVERSIONS", "CallNames", "dtype", "family", "random", "shape", "text", "unknown"]

_MIXES = (
    "{call} combines several elements, but a cell computes every unit of every sequence by itself; use "
    "functions that work element by element, and put what mixes units into a layer before or after the LSTM"
)
_RANDOM = (
    "{call} draws random numbers, but a kernel computes some values twice and must get the same; use the "
    "options recurrent_dropout and zoneout of customlstm.LSTM, or nn.Dropout on its output"
)
_SHAPE = (
    "{call} changes the shape, but everything in a cell has one shape, one element a unit of every "
    "sequence; use functions that work element by element"
)

_PLACE = (
    "{call} takes elements by their place, but a cell computes every unit of every sequence by itself; "
    "choose by value, with torch.where(condition, a, b)"
)

_FAMILIES = {
    _PLACE: (
        "__getitem__ __setitem__ unbind select slice narrow index index_select index_put index_fill "
        "index_copy index_add gather scatter scatter_add take take_along_dim masked_select masked_scatter "
        "nonzero argwhere"
    ),
    _MIXES: (
        "sum mean prod nansum nanmean std var std_mean var_mean norm linalg_vector_norm vector_norm max min "
        "amax amin aminmax argmax argmin median nanmedian mode kthvalue topk sort argsort msort unique any "
        "all count_nonzero logsumexp softmax log_softmax _softmax _log_softmax softmin gumbel_softmax "
        "cumsum cumprod cummax cummin logcumsumexp matmul mm bmm mv dot vdot inner outer addmm addmv addbmm "
        "baddbmm einsum tensordot linear bilinear _weight_norm layer_norm native_layer_norm batch_norm "
        "native_batch_norm group_norm instance_norm rms_norm _fused_rms_norm normalize cosine_similarity "
        "dist cdist conv1d conv2d convolution flip roll diff cov corrcoef trapezoid cumulative_trapezoid "
        "__matmul__ __rmatmul__ equal allclose quantile"
    ),
    _RANDOM: (
        "rand rand_like randn randn_like randint randint_like randperm bernoulli normal uniform exponential "
        "cauchy geometric log_normal multinomial poisson binomial random dropout native_dropout "
        "alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d dropout3d rrelu "
        "rrelu_with_noise"
    ),
    _SHAPE: (
        "view reshape unsqueeze squeeze transpose permute t T mT flatten unflatten expand repeat "
        "repeat_interleave tile stack cat concat concatenate hstack vstack dstack chunk split tensor_split "
        "unfold movedim glu expand_as view_as reshape_as diag diagonal"
    ),
}
_FAMILY = {name: family for family, names in _FAMILIES.items() for name in names.split()}

_VALUE = (
    "{call} needs the value of a tensor in Python, but a cell is written out once for all values; write "
    "torch.where(condition, a, b) in place of if, and & | ~ in place of and, or, not"
)
_NUMBER = (
    "{call} takes a tensor's values out of torch, but a cell is written out once for all values; keep to "
    "functions of torch, such as torch.exp in place of math.exp"
)
#: By the name of the method of Tensor.
CONVERSIONS = {
    "__bool__": _VALUE,
    "is_nonzero": _VALUE,
    "__contains__": _VALUE,
    **dict.fromkeys(["item", "tolist", "numpy", "__array__", "__float__", "__int__", "__index__"], _NUMBER),
    **dict.fromkeys(["__complex__", "__dlpack__", "data_ptr"], _NUMBER),
}
_SPOKEN = {"__bool__": "bool()", "__float__": "float()", "__int__": "int()", "__complex__": "complex()"}
_SPOKEN |= {"__array__": "numpy.asarray()", "__index__": "range() or an index", "__contains__": "in"}
_SHOWN = frozenset({"__repr__", "__str__", "__format__"})


def family(name: str) -> str | None:
    """The text about a kind of functions, by the name of one of them."""
    return _FAMILY.get(name)


def text(call: str, operation: str) -> str:
    """Why ``call``, in which the ATen ``operation`` was met, is refused."""
    found = family(call.rpartition(".")[2].rstrip("_")) or family(operation)
    return found.format(call=call) if found else unknown(call)


def unknown(call: str) -> str:
    return (
        f"{call} is not among the functions that kernels have; write it with + - * / **, comparisons and "
        "torch.where, sigmoid, tanh, exp, log, sqrt, sin, erf and the like (csrc/cells/README.md lists them)"
    )


def shape(call: str) -> str:
    return _SHAPE.format(call=call)


def random(call: str) -> str:
    return _RANDOM.format(call=call)


def dtype(call: str, found: torch.dtype) -> str:
    return (
        f"{call} gives {found}, but a cell computes in the dtype of its arguments; leave out the conversion, "
        "write conditions as .to(c.dtype), and torch.floor or torch.round for whole numbers"
    )


class CallNames(TorchFunctionMode):
    """Tells the recorder which function the user has called, and refuses what would leave torch."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, Tensor) and self._recorder.depends_on_units(first):
            if name in CONVERSIONS:
                call = _SPOKEN.get(name, f"Tensor.{name}()")
                raise self._recorder.error(CONVERSIONS[name].format(call=call))
            if name in _SHOWN:  # a print() in the function is not a reason to fail
                return f"<a tensor of the cell that is being traced, {first.dtype}>"
        before, self._recorder.calling = self._recorder.calling, _spoken(func, name)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._recorder.calling = before


def _spoken(func: Callable[..., Any], name: str) -> str:
    """The function as a user knows it: torch.sum, torch.Tensor.sum, torch.nn.functional.softmax."""
    if name in ("__getitem__", "__setitem__", "unbind"):
        return {"__getitem__": "[...]", "__setitem__": "[...] =", "unbind": "iteration or unbind()"}[name]
    full = resolve_name(func)
    if full is None or full.endswith("__get__"):
        return f"torch.{name}"
    return full
