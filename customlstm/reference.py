"""The specification: one LSTM layer and one LSTM step in plain PyTorch.

Runs on every device and in every floating dtype, and is differentiable any number of times by autograd. Every
compiled kernel is tested against it. The equations are those of ``torch.nn.LSTM`` (Hochreiter & Schmidhuber
1997, with the forget gate of Gers et al. 2000 and the projection of Sak et al. 2014); what happens to the
gates is the cell's own, see :mod:`customlstm.cells`::

    i, f, g, o = W_ih x_t + b_ih + b_hh + W_hh h_{t-1}        (rows of the weights in this order)
    h_t, c_t = cell(i, f, g, o, c_{t-1})                      (then W_hr h_t with a projection)

With layer normalisation (Ba et al. 2016) W_ih x_t and W_hh h_{t-1} are normalised first, each over all its
rows; that of the cell state is in the cell.

Sizes: T steps, B sequences, N packed rows, L input features, H hidden size, P state size (``proj_size`` or
H), D directions (1 or 2), G gates and S states of the cell (4 and 1 but for cells that users wrote). The S
states lie side by side in the last dimension of c, which is written S*H.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .cells import AnyCell, Pointwise, own_parameters
from .cells.layer_norm import normalise


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which state and sums are kept: float32 for 16-bit types, else ``dtype`` itself."""
    return dtype if dtype == torch.float64 or dtype.is_complex else torch.float32


def layer(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    recurrent_mask: Tensor | None,
    cell: AnyCell,
    bias: bool,
    projection: bool,
    bidirectional: bool,
    recurrent_scale: float,
    zoneout: tuple[Tensor | None, Tensor | None],
    zoneout_rates: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer over the whole sequence, all directions.

    Args:
        input: [T, B, L], or [N, L] with ``batch_sizes`` (rows packed as in ``PackedSequence``).
        h_0, c_0: [D, B, P] and [D, B, S*H], or both None for zeros (``batch_sizes`` needs them: they tell B).
        weights: per direction w_ih [G*H, L], w_hh [G*H, P], then b_ih [G*H], b_hh [G*H] with ``bias``, then
            w_hr [P, H] with ``projection``, then the cell's ``unit_parameters`` [H] and gain and bias of each
            of its layer norms; the two directions one after the other.
        batch_sizes: int64 [T], sequences sorted by decreasing length.
        lengths: int64 [B], any order, zeros allowed; not together with ``batch_sizes``.
        resets: bool [T, B]; True cuts the edge between step t-1 and step t, in both directions.
        recurrent_mask: bool [D, B, P]; W_hh is multiplied by ``recurrent_scale`` h_{t-1} where True, by 0
            where False.
        zoneout: for h and c, bool [T, B, D*P] and [T, B, D*H] (or [N, ...]), or None; where True the state
            (all S of a unit) stays what it was (Krueger et al. 2016). Where None, the new state is ``rate``
            times the old one plus 1 - ``rate`` times what the cell computed. h_t is computed from the cell's
            c_t, before c_t is mixed.

    Returns:
        output [T, B, D*P] (or [N, D*P]), h_n [D, B, P] and c_n [D, B, S*H] in the dtype of ``input``, and
        c_all [T, B, D*S*H] (or [N, D*S*H]) in the accumulation dtype. Beyond a length, output and c_all are 0
        and the state does not change.
    """
    dtype, accumulate = input.dtype, accumulation_dtype(input.dtype)
    x = input.to(accumulate)
    directions = 2 if bidirectional else 1
    states: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * directions
    if h_0 is not None and c_0 is not None:
        states = list(zip(h_0.to(accumulate).unbind(0), c_0.to(accumulate).unbind(0), strict=True))

    if (
        batch_sizes is not None
    ):  # work on the padded form; row-major order of its valid entries is packed order
        steps, batch = batch_sizes.numel(), h_0.size(1)
        valid = torch.arange(batch, device=x.device) < batch_sizes.to(x.device).unsqueeze(1)
        x = x.new_zeros(steps, batch, x.size(-1)).index_put((valid,), x)
    elif lengths is not None:
        valid = torch.arange(x.size(0), device=x.device).unsqueeze(1) < lengths.to(x.device)
        # A NaN in the padding would reach the weight gradients as 0 * NaN.
        x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
    else:
        valid = None

    per_direction = len(weights) // directions
    results = [
        _direction(
            x,
            *states[d],
            [w.to(accumulate) for w in weights[d * per_direction : (d + 1) * per_direction]],
            valid,
            _cuts(resets, valid, reverse=d == 1),
            cell,
            bias,
            projection,
            None if recurrent_mask is None else recurrent_mask[d],
            recurrent_scale,
            [
                _Zoneout(m, rate, valid, batch_sizes, d, directions)
                for m, rate in zip(zoneout, zoneout_rates, strict=True)
            ],
            reverse=d == 1,
        )
        for d in range(directions)
    ]
    h_all, c_all, h_n, c_n = zip(*results, strict=True)
    output, cells = torch.cat(h_all, -1), torch.cat(c_all, -1)
    if batch_sizes is not None:
        output, cells = output[valid], cells[valid]
    return output.to(dtype), torch.stack(h_n).to(dtype), torch.stack(c_n).to(dtype), cells


def step(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    cell: AnyCell,
    bias: bool,
    projection: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step: input [B, L], h_0 [B, P], c_0 [B, S*H]; weights as one direction of :func:`layer`.

    Returns h_1 [B, P] and c_1 [B, S*H] in the dtype of ``input``, and c_1 in the accumulation dtype.
    """
    dtype, accumulate = input.dtype, accumulation_dtype(input.dtype)
    weights = [w.to(accumulate) for w in weights]
    x = input.to(accumulate)
    own = _CellWeights(cell, x, weights, bias, projection)
    gates = _project_input(x, weights, bias, own.norms)
    h, c = _step(gates, h_0.to(accumulate), c_0.to(accumulate), own)
    return h.to(dtype), c.to(dtype), c


def _direction(
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: list[Tensor],
    valid: Tensor | None,
    cuts: Tensor | None,
    cell: AnyCell,
    bias: bool,
    projection: bool,
    mask: Tensor | None,
    scale: float,
    zoneout: list["_Zoneout"],
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All steps of one direction; ``valid`` and ``cuts`` are bool [T, B]. Returns h_all, c_all, h_n, c_n."""
    steps, batch, hidden, state = x.size(0), x.size(1), weights[1].size(0) // cell.gates, weights[1].size(1)
    width = cell.states * hidden
    h = x.new_zeros(batch, state) if h is None else h
    c = x.new_zeros(batch, width) if c is None else c
    own = _CellWeights(cell, x, weights, bias, projection, mask, scale)
    # unbind, not indexing: the gradient of gates[t] would fill a whole zero tensor at every step.
    gates = _project_input(x, weights, bias, own.norms).unbind(0)
    h_all, c_all = [x.new_zeros(batch, state)] * steps, [x.new_zeros(batch, width)] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        h_before, c_before = h, c
        if cuts is not None:
            cut = cuts[t].unsqueeze(-1)
            h_before, c_before = h.masked_fill(cut, 0.0), c.masked_fill(cut, 0.0)
        h_new, c_new = _step(gates[t], h_before, c_before, own)
        h_new, c_new = zoneout[0].mix(h_before, h_new, t), zoneout[1].mix(c_before, c_new, t)
        if valid is None:
            h, c = h_all[t], c_all[t] = h_new, c_new
        else:
            keep = valid[t].unsqueeze(-1)
            h, c = torch.where(keep, h_new, h), torch.where(keep, c_new, c)
            h_all[t], c_all[t] = h_new.masked_fill(~keep, 0.0), c_new.masked_fill(~keep, 0.0)
    if steps == 0:
        return x.new_zeros(0, batch, state), x.new_zeros(0, batch, width), h, c
    return torch.stack(h_all), torch.stack(c_all), h, c


class _Zoneout:
    """Zoneout of one state in one direction: its masks at every step, or its rate."""

    def __init__(
        self,
        mask: Tensor | None,
        rate: float,
        valid: Tensor | None,
        batch_sizes: Tensor | None,
        direction: int,
        directions: int,
    ) -> None:
        self.rate, self.masks = rate, None
        if mask is None:
            return
        mask = mask.chunk(directions, -1)[direction]
        if batch_sizes is not None:
            mask = mask.new_zeros(*valid.shape, mask.size(-1)).index_put((valid,), mask)
        self.masks = mask.unbind(0)

    def mix(self, old: Tensor, new: Tensor, t: int) -> Tensor:
        if self.masks is not None:
            mask = self.masks[t]
            return torch.where(mask.repeat(1, old.size(-1) // mask.size(-1)), old, new)
        return new if self.rate == 0 else self.rate * old + (1.0 - self.rate) * new


def _cuts(resets: Tensor | None, valid: Tensor | None, reverse: bool) -> Tensor | None:
    """Where the state is zeroed before step t of this direction, bool [T, B].

    A reset at t cuts the edge between t-1 and t. The forward direction crosses it on its way to t, the
    reverse direction on its way to t-1, and there only if step t is no padding: the state before a sequence's
    last step is hx.
    """
    if resets is None or not reverse:
        return resets
    crossed = resets if valid is None else resets & valid
    return torch.cat([crossed[1:], torch.zeros_like(crossed[:1])])


def _project_input(x: Tensor, weights: list[Tensor], bias: bool, norms: dict[str, list[Tensor]]) -> Tensor:
    """W_ih x + b_ih + b_hh, the product normalised where the cell says so."""
    added = weights[2] + weights[3] if bias else None
    if "input" not in norms:
        return F.linear(x, weights[0], added)
    gates = normalise(F.linear(x, weights[0]), *norms["input"])
    return gates if added is None else gates + added


class _CellWeights:
    """What every step of one direction uses: the cell, all weights but the input's, the mask of h_{t-1}."""

    def __init__(
        self,
        cell: AnyCell,
        like: Tensor,
        weights: list[Tensor],
        bias: bool,
        projection: bool,
        mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        places = getattr(cell, "layer_norm", ())
        end = len(weights) - len(own_parameters(cell))
        first = end + len(cell.unit_parameters)
        self.w_hh = weights[1]
        self.w_hr = weights[4 if bias else 2] if projection else None
        # Gain and bias of each place that is normalised. The cell takes those of its state after its own.
        self.norms = {place: weights[first + 2 * k : first + 2 * k + 2] for k, place in enumerate(places)}
        self.parameters = [*weights[end:first], *self.norms.get("cell", [])]
        self.pointwise: Pointwise = cell.pointwise(like)
        self.gates, self.states = cell.gates, cell.states
        self.dropped = None if mask is None else ~mask
        self.scale = scale

    def operand(self, h: Tensor) -> Tensor:
        """What W_hh is multiplied by."""
        return h if self.dropped is None else (h * self.scale).masked_fill(self.dropped, 0.0)


def _step(gates: Tensor, h: Tensor, c: Tensor, own: _CellWeights) -> tuple[Tensor, Tensor]:
    """The equations; ``gates`` [B, G*H] is the input's part."""
    if "recurrent" in own.norms:
        a = gates + normalise(F.linear(own.operand(h), own.w_hh), *own.norms["recurrent"])
    else:
        a = torch.addmm(gates, own.operand(h), own.w_hh.t())
    h, states = own.pointwise(a.chunk(own.gates, -1), c.chunk(own.states, -1), own.parameters)
    c = states[0] if own.states == 1 else torch.cat(states, -1)
    return h if own.w_hr is None else F.linear(h, own.w_hr), c
