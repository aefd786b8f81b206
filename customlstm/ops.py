"""The operators: schema, fake kernel, autograd, autocast and reference kernel of every one, registered once.

The compiled library, where there is one, brings the schemas and the fused kernels; everything else comes from
here. Every operator has a twin whose name contains ``_reference`` and whose kernel is always the reference
(:mod:`customlstm.reference`): ``backend="reference"`` under ``torch.compile`` and TorchScript.

The loop at the end registers them all. An operator differs from another only in its
:class:`customlstm.signatures.Family`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _C, Tensor

from . import _binary, schemas
from .derivatives import autograd_backward, autograd_forward, eager, gradient_of
from .kernels import AUTOCAST_KEYS, fake_backward, fake_forward, reference_backward, reference_forward
from .signatures import FAMILIES, NAMED, Family

AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def computed_dtype(
    device: torch.device, dtype: torch.dtype, state_dtype: torch.dtype | None = None
) -> torch.dtype:
    """The dtype that an operator computes in when it is called here and now: autocast may change ``dtype``.

    Args:
        device: of the input.
        dtype: of the input.
        state_dtype: of the cell state of a single step; None for a layer.
    """
    kind = device.type
    if kind not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
        return dtype
    if not dtype.is_floating_point or dtype == torch.float64:
        return dtype
    if state_dtype == torch.float32:
        return torch.float32  # as in cast_for_autocast
    return torch.get_autocast_dtype(kind)


def cast_for_autocast(family: Family, args: Sequence[Any], device_type: str) -> list[Any]:
    """``args`` of an operator with every floating tensor on that device but float64 in the autocast dtype.

    A step with a float32 cell state is computed in float32 from what was rounded so and gives float32 states:
    as in ``nn.LSTMCell`` the cell state of a loop is never rounded.
    """
    dtype = torch.get_autocast_dtype(device_type)
    c_0 = args[NAMED - 1]
    wide = family.wide_state and c_0.dtype == torch.float32 and c_0.device.type == device_type

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            eligible = (
                value.is_floating_point()
                and value.dtype != torch.float64
                and value.device.type == device_type
            )
            if not eligible or (wide and value is c_0):
                return value
            return value.to(dtype).to(torch.float32) if wide else value.to(dtype)
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return [cast(item) for item in value]
        return value

    return [cast(value) for value in args]


def _autocast(family: Family, operator: Any, device_type: str) -> Callable[..., Any]:
    def rule(*args: Any) -> Any:
        cast = cast_for_autocast(family, args, device_type)
        with _C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
            return operator(*cast)

    return rule


def _without_autocast(operator: Any) -> Callable[..., Any]:
    """The gradient is computed in the dtypes of the forward; its kernel multiplies through the dispatcher."""

    def rule(*args: Any) -> Any:
        with _C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
            return operator(*args)

    return rule


_library = torch.library.Library(schemas.NAMESPACE, "FRAGMENT")


def _operator(schema: str) -> Any:
    return getattr(torch.ops.customlstm, schemas.name_of(schema)).default


def _warn_of_fallback(family: Family, *args: Any) -> None:
    from . import dispatch  # imports this module

    dispatch.warn_of_fallback(args[0].device, args[0].dtype, args[family.cell])


def _register(
    family: Family, schema: str, backward_schema: str, fused: bool
) -> Callable[..., tuple[Tensor, ...]]:
    for text in (schema, backward_schema):
        if not hasattr(torch.ops.customlstm, schemas.name_of(text)):
            _library.define(text)
    name, backward_name = schemas.name_of(schema), schemas.name_of(backward_schema)
    forward, backward = _operator(schema), _operator(backward_schema)
    qualified = f"{schemas.NAMESPACE}::"
    torch.library.register_fake(qualified + name, fake_forward(family), lib=_library)
    torch.library.register_fake(qualified + backward_name, fake_backward(family), lib=_library)
    instead_of_fused = functools.partial(_warn_of_fallback, family) if fused else None
    _library.impl(name, reference_forward(family, instead_of_fused), "CompositeExplicitAutograd")
    _library.impl(backward_name, reference_backward(family), "CompositeExplicitAutograd")
    gradient = gradient_of(family, forward, backward)
    _library.impl(name, autograd_forward(forward, gradient), "Autograd", with_keyset=True)
    _library.impl(backward_name, autograd_backward(family, backward), "Autograd", with_keyset=True)
    for device_type, key in AUTOCAST_DEVICES.items():
        _library.impl(name, _autocast(family, forward, device_type), key)
    _library.impl(backward_name, _without_autocast(backward), AUTOCAST_DEVICES["cuda"])
    return eager(forward, gradient)


_binary.load()
_run_eagerly = {}
for _name, _family in FAMILIES.items():
    _backward = next(s for s in schemas.SCHEMAS if schemas.name_of(s) == f"{_name}_backward")
    _run_eagerly[_name] = _register(_family, _family.schema, _backward, fused=True)
    _register(_family, schemas.reference_of(_family.schema), schemas.reference_of(_backward), fused=False)

lstm_layer = _operator(schemas.LSTM_LAYER)
lstm_cell = _operator(schemas.LSTM_CELL)
lstm_layer_reference = _operator(schemas.reference_of(schemas.LSTM_LAYER))
lstm_cell_reference = _operator(schemas.reference_of(schemas.LSTM_CELL))
lstm_layer_eager = _run_eagerly["lstm_layer"]
lstm_cell_eager = _run_eagerly["lstm_cell"]
