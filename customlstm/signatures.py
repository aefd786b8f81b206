"""What tells one operator from another: its reference, its argument checks and the sizes of its results.

:mod:`customlstm.ops` registers fake kernels, autograd, autocast and the reference kernel of every family from
this.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import reference, schemas
from .cells import AnyCell, decode, own_parameters

NAMED = 3  # input, h_0 and c_0 come first in every operator, then the list of weights


@dataclass(frozen=True)
class Family:
    """What tells one forward operator and its backward from another.

    Attributes:
        schema: of the forward operator.
        specify: the reference, called with the arguments of the forward operator but ``save``; its results
            are the operator's results up to and with c_all.
        check: raises RuntimeError for arguments that do not fit together; called as ``specify`` is.
        check_values: the same for the values of index tensors, which a fake tensor does not have.
        layout: number of directions, leading sizes of c_all, and sizes of h and c results, called as
            ``specify`` is.
        indices: how many optional index tensors follow the weights.
        differentiable: how many of the results have a gradient; they come first.
        states: how many results precede c_all.
        saved: values a unit that ``gates`` holds, called as ``specify`` is.
        cell: where ``cell`` and ``cell_args`` stand among the arguments.
        wide_state: whether autocast leaves a float32 cell state as it is, as ``nn.LSTMCell`` does.
    """

    schema: str
    specify: Callable[..., tuple[Tensor, ...]]
    check: Callable[..., None]
    check_values: Callable[..., None]
    layout: Callable[..., tuple[int, Sequence[int], list[list[int]]]]
    indices: int
    differentiable: int
    states: int
    saved: Callable[..., int]
    cell: int
    wide_state: bool = False


def _specify_layer(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    recurrent_mask: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
    cell: str,
    cell_args: list[float],
    bias: bool,
    projection: bool,
    bidirectional: bool,
    recurrent_scale: float,
    zoneout_h_rate: float,
    zoneout_c_rate: float,
) -> tuple[Tensor, ...]:
    decoded = decode(cell, cell_args)
    return reference.layer(
        input, h_0, c_0, weights, batch_sizes, lengths, resets, recurrent_mask, decoded, bias, projection,
        bidirectional, recurrent_scale, (zoneout_h, zoneout_c), (zoneout_h_rate, zoneout_c_rate),
    )  # fmt: skip


def _specify_cell(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    cell: str,
    cell_args: list[float],
    bias: bool,
    projection: bool,
) -> tuple[Tensor, ...]:
    return reference.step(input, h_0, c_0, weights, decode(cell, cell_args), bias, projection)


def _layout_layer(
    input: Tensor, h_0: Tensor | None, c_0: Any, weights: list[Tensor], batch_sizes: Tensor | None, *rest: Any
) -> tuple[int, Sequence[int], list[list[int]]]:
    directions = 2 if rest[-4] else 1
    cell = decode(rest[-8], rest[-7])
    hidden, state = weights[1].size(0) // cell.gates, weights[1].size(1)
    rows = input.shape[:-1]
    batch = input.size(1) if batch_sizes is None else h_0.size(1)
    return (
        directions,
        rows,
        [[*rows, directions * state], [directions, batch, state], [directions, batch, cell.states * hidden]],
    )


def _layout_cell(
    input: Tensor, h_0: Tensor, c_0: Tensor, weights: list[Tensor], *rest: Any
) -> tuple[int, Sequence[int], list[list[int]]]:
    return 1, input.shape[:-1], [list(h_0.shape), list(c_0.shape)]


def _require(condition: Any, text: Callable[[], str]) -> None:
    torch._check(condition, lambda: f"customlstm: {text()}")


def _check_tensor(name: str, tensor: Tensor, shape: Sequence[Any], like: Tensor) -> None:
    _require(
        tensor.dim() == len(shape), lambda: f"{name} must have {len(shape)} dimensions, got {tensor.dim()}"
    )
    for size, expected in zip(tensor.shape, shape, strict=True):
        _require(size == expected, lambda: f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    _require(
        tensor.dtype == like.dtype and tensor.device == like.device,
        lambda: (
            f"{name} must be {like.dtype} on {like.device} as input is, got {tensor.dtype} on {tensor.device}"
        ),
    )


def _check_rate(name: str, rate: float) -> None:
    _require(0 <= rate <= 1, lambda: f"{name} must be a number from 0 to 1, got {rate}")


def _check_rows(name: str, mask: Tensor, shape: Sequence[Any]) -> None:
    def text() -> str:
        return f"{name} must be bool {list(shape)}, got {mask.dtype} {list(mask.shape)}"

    _require(mask.dtype == torch.bool and mask.dim() == len(shape), text)
    for size, expected in zip(mask.shape, shape, strict=True):
        _require(size == expected, text)


def _check_weights(
    input: Tensor, weights: list[Tensor], cell: AnyCell, bias: bool, projection: bool, directions: int
) -> None:
    added = own_parameters(cell)
    per_direction = 2 + 2 * bias + projection + len(added)
    _require(
        len(weights) == directions * per_direction,
        lambda: (
            f"weights must hold {directions * per_direction} tensors ({directions} direction(s), "
            f"bias={bias}, projection={projection}, {cell}), got {len(weights)}"
        ),
    )
    _require(input.is_floating_point(), lambda: f"input must be of a floating dtype, got {input.dtype}")
    _require(weights[1].dim() == 2, lambda: f"w_hh must have 2 dimensions, got {weights[1].dim()}")
    rows, state = weights[1].shape
    hidden = rows // cell.gates
    _require(
        rows % cell.gates == 0 and (projection or state == hidden),
        lambda: (
            f"w_hh must be [{cell.gates} * hidden_size, {'proj_size' if projection else 'hidden_size'}], "
            f"got [{rows}, {state}]"
        ),
    )
    names, shapes = ["w_ih", "w_hh"], [[rows, input.size(-1)], [rows, state]]
    if bias:
        names, shapes = [*names, "b_ih", "b_hh"], [*shapes, [rows], [rows]]
    if projection:
        names, shapes = [*names, "w_hr"], [*shapes, [state, hidden]]
    names, shapes = [*names, *added], [*shapes, *[[size * hidden] for size in added.values()]]
    for k, weight in enumerate(weights):
        _check_tensor(f"{names[k % per_direction]} (weights[{k}])", weight, shapes[k % per_direction], input)


def _check_layer(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    recurrent_mask: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
    cell: str,
    cell_args: list[float],
    bias: bool,
    projection: bool,
    bidirectional: bool,
    recurrent_scale: float,
    zoneout_h_rate: float,
    zoneout_c_rate: float,
) -> None:
    packed = batch_sizes is not None
    _require(
        input.dim() == (2 if packed else 3),
        lambda: (
            f"input must be {'[N, L] with batch_sizes' if packed else '[T, B, L]'}, "
            f"got {input.dim()} dimensions"
        ),
    )
    directions = 2 if bidirectional else 1
    decoded = decode(cell, cell_args)
    _check_weights(input, weights, decoded, bias, projection, directions)
    hidden = weights[1].size(0) // decoded.gates
    _require((h_0 is None) == (c_0 is None), lambda: "h_0 and c_0 must both be given or both be None")
    _require(not packed or h_0 is not None, lambda: "batch_sizes needs h_0 and c_0")
    _require(not packed or h_0.dim() == 3, lambda: f"h_0 must have 3 dimensions, got {h_0.dim()}")
    steps, batch = (batch_sizes.numel(), h_0.size(1)) if packed else (input.size(0), input.size(1))
    if h_0 is not None:
        _check_tensor("h_0", h_0, [directions, batch, weights[1].size(1)], input)
        _check_tensor("c_0", c_0, [directions, batch, decoded.states * hidden], input)
    if packed:
        _require(lengths is None, lambda: "lengths and batch_sizes exclude each other")
        _require(
            batch_sizes.dtype == torch.int64
            and batch_sizes.dim() == 1
            and batch_sizes.device.type in ("cpu", "meta"),
            lambda: (
                f"batch_sizes must be int64 [T] on the CPU, got {batch_sizes.dtype} {list(batch_sizes.shape)}"
            ),
        )
    if lengths is not None:
        _require(
            lengths.dtype == torch.int64 and lengths.dim() == 1 and lengths.size(0) == batch,
            lambda: f"lengths must be int64 [{batch}], got {lengths.dtype} {list(lengths.shape)}",
        )
    if resets is not None:
        _require(
            resets.dtype == torch.bool
            and resets.dim() == 2
            and resets.size(0) == steps
            and resets.size(1) == batch,
            lambda: f"resets must be bool [{steps}, {batch}], got {resets.dtype} {list(resets.shape)}",
        )
    if recurrent_mask is not None:
        state = weights[1].size(1)
        _require(
            recurrent_mask.dtype == torch.bool
            and recurrent_mask.dim() == 3
            and recurrent_mask.size(0) == directions
            and recurrent_mask.size(1) == batch
            and recurrent_mask.size(2) == state,
            lambda: (
                f"recurrent_mask must be bool [{directions}, {batch}, {state}], got {recurrent_mask.dtype} "
                f"{list(recurrent_mask.shape)}"
            ),
        )
        _require(
            0 < recurrent_scale < float("inf"),
            lambda: f"recurrent_scale must be a positive number, got {recurrent_scale}",
        )
    sizes = (weights[1].size(1), hidden)
    for name, mask, size in zip(("zoneout_h", "zoneout_c"), (zoneout_h, zoneout_c), sizes, strict=True):
        if mask is not None:
            _check_rows(name, mask, [*input.shape[:-1], directions * size])
    _check_rate("zoneout_h_rate", zoneout_h_rate)
    _check_rate("zoneout_c_rate", zoneout_c_rate)


def _check_layer_values(input: Tensor, h_0: Tensor | None, *rest: Any) -> None:
    _, _, batch_sizes, lengths, *_ = rest
    if batch_sizes is not None:
        sizes = batch_sizes.tolist()
        pairs = zip([h_0.size(1), *sizes], [*sizes, 1], strict=True)
        falling = not sizes or all(a >= b for a, b in pairs)
        _require(
            falling and sum(sizes) == input.size(0),
            lambda: (
                f"batch_sizes must fall from at most {h_0.size(1)} (the batch of h_0) to at least 1 and "
                f"add up to the {input.size(0)} rows of input, got {sizes}"
            ),
        )
    if lengths is not None and lengths.numel():
        low, high = int(lengths.min()), int(lengths.max())
        _require(
            low >= 0 and high <= input.size(0),
            lambda: f"lengths must be between 0 and {input.size(0)}, got values from {low} to {high}",
        )


def _check_cell(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    cell: str,
    cell_args: list[float],
    bias: bool,
    projection: bool,
) -> None:
    _require(input.dim() == 2, lambda: f"input must be [B, L], got {input.dim()} dimensions")
    decoded = decode(cell, cell_args)
    _check_weights(input, weights, decoded, bias, projection, 1)
    _check_tensor("h_0", h_0, [input.size(0), weights[1].size(1)], input)
    width = decoded.states * (weights[1].size(0) // decoded.gates)
    _check_tensor("c_0", c_0, [input.size(0), width], input)


def _saved_layer(*args: Any) -> int:
    """The gates, and where zoneout mixes cell states the one that it mixes the old one with."""
    zoneout_c, rate = args[9], args[-1]
    cell = decode(args[10], args[11])
    return cell.saved + (cell.states if zoneout_c is not None or rate > 0 else 0)


def _saved_cell(*args: Any) -> int:
    return decode(args[4], args[5]).saved


def _check_no_values(*_: Any) -> None:
    """A step has no index tensors."""


FAMILIES = {
    "lstm_layer": Family(
        schemas.LSTM_LAYER,
        _specify_layer,
        _check_layer,
        _check_layer_values,
        _layout_layer,
        indices=6,
        differentiable=4,
        states=3,
        saved=_saved_layer,
        cell=10,
    ),
    "lstm_cell": Family(
        schemas.LSTM_CELL,
        _specify_cell,
        _check_cell,
        _check_no_values,
        _layout_cell,
        indices=0,
        differentiable=2,
        states=2,
        saved=_saved_cell,
        cell=4,
        wide_state=True,
    ),
}
