"""Which implementation runs: the fused operator, or the reference, and why.

One predicate, :func:`why_not_fused`, serves the silent choice of ``backend="auto"``, the refusal of
``backend="fused"``, the warning and :func:`customlstm.explain`.
"""

import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import _C, Tensor

from . import _binary, cells, gpu, ops
from .kernels import AUTOCAST_KEYS
from .signatures import FAMILIES

BACKENDS = ("auto", "fused", "reference")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_TRANSFORMED = "a torch.func transform (vmap, grad, jvp) is active, and no fused kernel has rules for it"
_PLAIN = {Tensor, torch.nn.Parameter}
_override: ContextVar[str | None] = ContextVar("customlstm_backend", default=None)
# The contexts open now, in every thread. Compiled graphs are guarded by it, so that one made inside a context
# is not used outside, and it spares every other call the look at the context variable.
_open: tuple[str, ...] = ()
_lock = threading.Lock()
_warned: set[str] = set()
_compiled_reasons: dict[tuple[torch.device, torch.dtype, str], str | None] = {}


class FallbackWarning(UserWarning):
    """``backend="auto"`` runs the reference; given once per process and reason."""


class Kernels(NamedTuple):
    """One way to run a layer and a step; both are called with the arguments of the operators."""

    layer: Callable[..., tuple[Tensor, ...]]
    step: Callable[..., tuple[Tensor, ...]]


def check_backend(backend: str) -> str:
    """``backend``, if it is one.

    Raises:
        ValueError: it is not.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    return backend


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within this context every module runs on ``backend``, whatever its own says.

    The choice belongs to the current thread or task (it is a context variable), and holds for what is run or
    traced inside; a graph compiled or scripted before keeps its own.

    Raises:
        ValueError: ``backend`` is not "auto", "fused" or "reference".
    """
    global _open
    token = _override.set(check_backend(backend))
    with _lock:
        _open = (*_open, backend)
    try:
        yield
    finally:
        _override.reset(token)
        with _lock:
            last = len(_open) - 1 - _open[::-1].index(backend)
            _open = _open[:last] + _open[last + 1 :]


@torch.compiler.assume_constant_result
def _overriding() -> str | None:
    return _override.get()


def effective_backend(backend: str) -> str:
    """The backend that :func:`use_backend` asks for, else ``backend``."""
    return (_overriding() or backend) if _open else backend


def why_not_fused(
    device: torch.device, dtype: torch.dtype, cell: str = "lstm", tensors: Sequence[Tensor] = ()
) -> str | None:
    """Why no fused kernel can run on ``tensors`` of this device and dtype; None if one can.

    Args:
        device: of the input.
        dtype: that the operator computes in, see :func:`customlstm.ops.computed_dtype`.
        cell: the registered name of the cell.
        tensors: the tensors of the call; empty for a question about the device and dtype only.
    """
    reason = _why_not_compiled(device, dtype, cell)
    if reason is None and tensors:
        reason = _why_not_these(tensors)
    return reason


def _why_not_compiled(device: torch.device, dtype: torch.dtype, cell: str) -> str | None:
    # Not functools.cache: Dynamo looks through it and warns.
    key = (device, dtype, cell)
    if key in _compiled_reasons:
        return _compiled_reasons[key]
    reason = _find_why_not_compiled(device, dtype, cell)
    if reason is None or cell == cells.NAME:  # a compiler can be mended; jit/cache.py knows what has failed
        _compiled_reasons[key] = reason
    return reason


def _find_why_not_compiled(device: torch.device, dtype: torch.dtype, cell: str) -> str | None:
    status = _binary.status()
    if not status.loaded:
        return f"the compiled library is not loaded: {status.reason}"
    if device.type == "meta":
        return "tensors on the meta device have no data to compute with"
    if device.type == "cuda":
        reason = _why_not_on_gpu(device)
        if reason is not None:
            return reason
    key = _C._dispatch_key_for_device(device.type)
    if not _C._dispatch_has_kernel_for_dispatch_key("customlstm::lstm_layer", key):
        return f"this build has no fused kernel for device '{device.type}'"
    if dtype not in DTYPES:
        return f"no fused kernel for {dtype}; there are kernels for {', '.join(map(str, DTYPES))}"
    return None if cell == cells.NAME else _why_not_written(device, dtype, cell)


def _why_not_written(device: torch.device, dtype: torch.dtype, name: str) -> str | None:
    """Why a cell that a user wrote has no kernel; builds it."""
    try:
        cell = cells.find(name)
    except ValueError as error:
        return f"no fused kernel for cell '{name}': {error}"
    from .jit import BuildError, register  # not needed by who writes no cell

    if cell.why_not_fused is not None:
        return f"the cell {cell} cannot be fused: {cell.why_not_fused}"
    try:
        register(cell, dtype, device)
    except BuildError as error:
        return f"the kernel of the cell {cell} cannot be built: {error}"
    return None


def _why_not_on_gpu(device: torch.device) -> str | None:
    reason = gpu.why_not_built()
    if reason is not None:
        return reason
    reason = gpu.why_no_gpu()
    if reason is not None:
        return f"torch can use no GPU: {reason}"
    return gpu.why_not_device(torch.cuda.current_device() if device.index is None else device.index)


@torch.compiler.assume_constant_result
def _why_not_in_graph(device: torch.device, dtype: torch.dtype, cell: str) -> str | None:
    return _why_not_compiled(device, dtype, cell)


@torch.compiler.assume_constant_result
def _warn_in_graph(reason: str) -> None:
    _warn_once(reason)


def _why_not_these(tensors: Sequence[Tensor]) -> str | None:
    if not _PLAIN.issuperset(map(type, tensors)):
        name = next(type(t).__name__ for t in tensors if type(t) not in _PLAIN)
        return f"the tensors are of the subclass {name}, whose operations a fused kernel would bypass"
    if _is_transformed():
        return _TRANSFORMED
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active, and the fused kernels have reverse mode only"
    return None


@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    """Whether a ``torch.func`` transform is active; Dynamo enters them for real while it traces."""
    return _C._functorch.peek_interpreter_stack() is not None


def choose(backend: str, cell: str, tensors: Sequence[Tensor], c_0: Tensor | None = None) -> Kernels:
    """The kernels to call in eager mode and while tracing; ``tensors[0]`` is the input.

    Args:
        c_0: the cell state of a single step, whose dtype counts under autocast; None for a layer.

    Raises:
        RuntimeError: ``backend`` is "fused" and no fused kernel can run; the text gives the reason.
    """
    backend = effective_backend(backend)
    device = tensors[0].device
    dtype = ops.computed_dtype(device, tensors[0].dtype, None if c_0 is None else c_0.dtype)
    if torch.compiler.is_compiling():
        # A graph never unrolls time: the dispatcher picks the operator's kernel when the graph runs. Only
        # under a torch.func transform, for which operators have no rules, is it the reference that is traced.
        transformed = _is_transformed()
        if backend == "fused":
            _refuse(_TRANSFORMED if transformed else _why_not_in_graph(device, dtype, cell))
        if transformed:
            return _REFERENCE
        if backend == "auto" and cell != cells.NAME:
            # Built now: when the graph runs, no Python does.
            reason = _why_not_in_graph(device, dtype, cell)
            if reason is not None:
                _warn_in_graph(reason)
                return _REFERENCE_OPERATORS
        return _REFERENCE_OPERATORS if backend == "reference" else _FUSED_OPERATORS
    if backend != "reference":
        reason = why_not_fused(device, dtype, cell, tensors)
        if reason is None and not torch.jit.is_tracing():
            return _FUSED
        if backend == "fused" and not any(map(_has_no_data, tensors)):
            _refuse(reason)
        if is_traced(tensors):
            return _FUSED_OPERATORS
        _warn_once(reason)
        return _REFERENCE
    return _REFERENCE_OPERATORS if is_traced(tensors) else _REFERENCE


def is_traced(tensors: Sequence[Tensor]) -> bool:
    """Whether the call is recorded or has no data, so that it must stay one operator."""
    return torch.jit.is_tracing() or any(map(_has_no_data, tensors))


def _has_no_data(tensor: Tensor) -> bool:
    if tensor.is_meta:
        return True
    if type(tensor) in _PLAIN:
        return False
    # Not at the top of the file: importing the second prints a warning where numpy is not installed.
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(tensor, (FakeTensor, FunctionalTensor))


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise RuntimeError(
            f"backend='fused' cannot run: {reason}. Use backend='auto' or 'reference' to run the reference"
        )


def for_scripting(backend: str, device: torch.device, dtype: torch.dtype, cell: str) -> str:
    """The backend that a module scripted here and now keeps.

    Raises:
        RuntimeError: it is "fused" and no fused kernel fits; scripted code could not say so.
    """
    backend = effective_backend(backend)
    if backend != "reference" and (backend == "fused" or cell != cells.NAME):
        # Both: what is scripted under autocast may run without it, and builds nothing then.
        reason = why_not_fused(device, dtype, cell)
        reason = reason or why_not_fused(device, ops.computed_dtype(device, dtype), cell)
        if backend == "fused":
            _refuse(reason)
        if reason is not None:
            _warn_once(reason)
            return "reference"
    return backend


def warn_of_fallback(device: torch.device, dtype: torch.dtype, cell: str) -> None:
    """Says once why a fused operator runs the reference on such tensors."""
    reason = why_not_fused(device, dtype, cell)
    if reason is not None:
        _warn_once(reason)


def _warn_once(reason: str) -> None:
    if reason in _warned:
        return
    _warned.add(reason)
    # Names the line that called the module, however many frames of this package and of torch.nn lie between.
    frame, level = sys._getframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("customlstm.", "torch.")):
        frame, level = frame.f_back, level + 1
    text = f"customlstm runs its plain PyTorch reference, which is slow: {reason}"
    warnings.warn(text, FallbackWarning, level)


def _differentiable(operator_name: str) -> Callable[..., tuple[Tensor, ...]]:
    """The reference called as the operator is, but directly, so that autograd sees its operations."""
    family = FAMILIES[operator_name]

    def run(*args: Any) -> tuple[Tensor, ...]:
        arguments, device_type = args[:-1], args[0].device.type
        if device_type in ops.AUTOCAST_DEVICES and torch.is_autocast_enabled(device_type):
            arguments = ops.cast_for_autocast(family, arguments, device_type)
            with _C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
                return family.specify(*arguments)
        return family.specify(*arguments)

    return run


_FUSED_OPERATORS = Kernels(ops.lstm_layer, ops.lstm_cell)
_FUSED = Kernels(ops.lstm_layer_eager, ops.lstm_cell_eager)
_REFERENCE_OPERATORS = Kernels(ops.lstm_layer_reference, ops.lstm_cell_reference)
_REFERENCE = Kernels(_differentiable("lstm_layer"), _differentiable("lstm_cell"))


def has_values(tensor: Tensor) -> bool:
    """Whether a value check can read ``tensor``: not while tracing or under a ``torch.func`` transform."""
    return not (torch.compiler.is_compiling() or _is_transformed() or is_traced((tensor,)))
