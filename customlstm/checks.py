"""What the modules and :mod:`customlstm.functional` accept; the texts say what came, what was expected and
the way out.

The error classes are those of ``torch.nn.LSTM`` for the same mistake. What TorchScript compiles is annotated
for it.
"""

import numbers
import warnings
from typing import Any

import torch
from torch import Tensor

from . import dispatch


def check_type(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(value).__name__} ({value!r})")


def check_proj_size(proj_size: int, hidden_size: int) -> None:
    check_type("proj_size", proj_size, int)
    if proj_size < 0:
        raise ValueError(
            f"proj_size should be a positive integer or zero to disable projections, got {proj_size}"
        )
    if proj_size > 0 and proj_size >= hidden_size:
        raise ValueError(f"proj_size has to be smaller than hidden_size ({hidden_size}), got {proj_size}")


def check_dropout(dropout: Any, num_layers: Any) -> None:
    if not isinstance(dropout, numbers.Number) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being "
            f"zeroed, got {dropout!r}"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
            f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=3,
        )


def check_rate(name: str, rate: Any) -> None:
    """Raises ValueError for what is no probability."""
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool) or not 0 <= rate <= 1:
        raise ValueError(f"{name} must be a number in the range [0, 1], got {rate!r}")


def check_arguments(input: Any, hx: Any, lengths: Any, resets: Any) -> None:
    """Types that TorchScript checks by itself."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a tensor or a PackedSequence, got {type(input).__name__}")
    if hx is not None:
        if isinstance(hx, Tensor):
            raise RuntimeError(
                f"hx must be a pair (h_0, c_0) of tensors, got one tensor of shape {list(hx.shape)}; "
                "for a zero cell state pass hx=(h_0, c_0) with c_0 made by torch.zeros"
            )
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            count = f" of {len(hx)}" if isinstance(hx, (tuple, list)) else ""
            raise RuntimeError(f"hx must be a pair (h_0, c_0) of tensors, got a {type(hx).__name__}{count}")
        for index, value in enumerate(hx):
            if not isinstance(value, Tensor):
                raise TypeError(f"hx[{index}] must be a tensor, got {type(value).__name__}")
    for name, value in (("lengths", lengths), ("resets", resets)):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(value).__name__}; write torch.tensor({name})"
            )


def check_states(
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    gates: int,
    cell_states: int,
    rows: int,
    batch: int,
    batch_first: bool,
) -> None:
    """Shapes of batched initial states of ``rows`` = K layers times directions.

    Raises:
        RuntimeError: they are not [K, B, P] and [K, B, S*H], S being the number of the cell's states.
    """
    hidden, state = weights[1].size(0) // gates, weights[1].size(1)
    for index, (value, size) in enumerate([(h_0, state), (c_0, cell_states * hidden)]):
        if value.dim() != 3 or value.size(0) != rows or value.size(1) != batch or value.size(2) != size:
            hint = ""
            if batch_first and value.dim() == 3 and value.size(0) == batch and value.size(1) == rows:
                hint = "; batch_first holds for input and output only, so transpose hx: hx[i].transpose(0, 1)"
            elif value.dim() == 3 and value.size(0) == rows and value.size(2) == size:
                hint = (
                    f"; input has a batch of {batch} "
                    f"(batch_first={batch_first}), so check batch_first and the batch of hx"
                )
            name = "state size"
            if index == 1:
                name = (
                    "hidden_size" if cell_states == 1 else f"{cell_states} states of the cell * hidden_size"
                )
            raise RuntimeError(
                f"Expected hidden[{index}] size {[rows, batch, size]}, got {list(value.shape)} "
                f"([num_layers * num_directions, batch, {name}]){hint}"
            )


def check_step_states(h_0: Tensor, c_0: Tensor, input: Tensor, cell_width: int, state: int) -> None:
    """Shapes of the states of one step for input [B, L] or [L].

    Raises:
        ValueError: their number of dimensions is neither 1 nor 2.
        RuntimeError: they are not [B, P] and [B, ``cell_width``], or the same without B.
    """
    for index, value, size in ((0, h_0, state), (1, c_0, cell_width)):
        if value.dim() != 1 and value.dim() != 2:
            raise ValueError(f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {value.dim()}D instead")
        same = value.dim() == input.dim() and value.size(-1) == size
        if not same or (input.dim() == 2 and value.size(0) != input.size(0)):
            expected = [input.size(0), size] if input.dim() == 2 else [size]
            raise RuntimeError(
                f"hx[{index}] must have shape {expected} for input of shape {list(input.shape)}, got "
                f"{list(value.shape)}"
            )


def check_lengths(lengths: Tensor, x: Tensor, batched: bool) -> Tensor:
    """``lengths`` as int64 [B], on the CPU for CPU input, for x [T, B, L].

    Raises:
        TypeError, RuntimeError, ValueError: its dtype, its shape, its values.
    """
    steps, batch = x.size(0), x.size(1)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError("lengths must hold integers; convert it: lengths.to(torch.int64)")
    if not batched and lengths.dim() == 0:
        lengths = lengths.unsqueeze(0)
    if lengths.dim() != 1 or lengths.size(0) != batch:
        raise RuntimeError(
            f"lengths must have shape [{batch}], one entry a sequence of the batch, got {list(lengths.shape)}"
        )
    lengths = lengths.to(torch.int64)
    if x.device.type == "cpu":
        lengths = lengths.to(x.device)
    known = lengths.device.type == "cpu" and batch > 0
    if not torch.jit.is_scripting():
        known = known and dispatch.has_values(lengths)
    if known:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            raise ValueError(
                f"lengths must be between 0 and the {steps} steps of input, got values from {low} to {high}"
            )
    return lengths


def check_resets(
    resets: Tensor, steps: int, batch: int, device: torch.device, batched: bool, batch_first: bool
) -> Tensor:
    """``resets`` as bool [T, B] on the device of the input.

    Raises:
        TypeError, RuntimeError: its dtype, its shape.
    """
    if resets.dtype != torch.bool:
        raise TypeError("resets must be a bool tensor; convert it: resets.to(torch.bool)")
    if not batched:
        expected = [steps]
        turned = resets.unsqueeze(1) if resets.dim() == 1 else resets
    elif batch_first:
        expected = [batch, steps]
        turned = resets.transpose(0, 1) if resets.dim() == 2 else resets
    else:
        expected = [steps, batch]
        turned = resets
    if turned.dim() != 2 or turned.size(0) != steps or turned.size(1) != batch:
        raise RuntimeError(f"resets must have shape {expected} as input has, got {list(resets.shape)}")
    return turned.to(device)


@torch.jit.unused
def check_dtype_and_device(
    input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: list[Tensor], value_error: bool
) -> None:
    """Dtype and device of input and states against the weights'; eager mode only, the operators check again.

    Raises:
        ValueError: dtype of ``input``, if ``value_error`` (``nn.LSTM`` with padded input), else RuntimeError.
        RuntimeError: the device of anything, the dtype of ``hx``.
    """
    weight = weights[0]
    dtype, device = weight.dtype, weight.device
    checked = [("input", input)]
    if hx is not None:
        checked += [("hx[0]", hx[0]), ("hx[1]", hx[1])]
    for name, value in checked:
        if value.device != device:
            raise RuntimeError(
                f"{name} is on {value.device}, the weights are on {device}; move one: "
                f"{name}.to('{device}') or module.to('{value.device}')"
            )
        if value.dtype != dtype and not torch._C._is_any_autocast_enabled():
            kind = ValueError if value_error and name == "input" else RuntimeError
            way_out = f"convert it: {name}.to({dtype})"
            if value.is_floating_point():
                way_out = f"convert one: {name}.to({dtype}) or module.to({value.dtype})"
            raise kind(f"{name} has dtype {value.dtype}, the weights have {dtype}; {way_out}")
