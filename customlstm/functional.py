"""The modules' computation without the modules: many layers over padded or packed input, and one step.

Everything here compiles under TorchScript, where the operators are called directly; in eager mode
:mod:`customlstm.dispatch` chooses once a call. Arguments are positional and annotated for TorchScript's sake.

Sizes: T steps, B sequences, N packed rows, L input features, H hidden size, P state size (``proj_size`` or
H), D directions (1 or 2), K layers times D, G gates and S states of the cell (4 and 1 but for cells that
users wrote). The S states lie side by side in the last dimension, which is written S*H.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from . import checks, dispatch
from .masks import drawn


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: list[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
    cell_args: list[float],
    gates: int,
    cell_states: int,
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    recurrent_dropout: float,
    zoneout_h: float,
    zoneout_c: float,
    weight_dropout: float,
    training: bool,
    states: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All layers over padded or unbatched input.

    Args:
        input: [T, B, L], [B, T, L] with ``batch_first``, or unbatched [T, L].
        hx: (h_0 [K, B, P], c_0 [K, B, S*H]), unbatched (h_0 [K, P], c_0 [K, S*H]), or None for zeros.
        weights: of every layer, and in it of every direction, one after the other: w_ih [G*H, L], w_hh
            [G*H, P], with ``bias`` b_ih [G*H] and b_hh [G*H], with a projection (P != H) w_hr [P, H], then
            the cell's ``unit_parameters`` [H] and the gains and biases of its layer norms.
        lengths: integers [B] (unbatched: one number), 0 to T, or None.
        resets: bool [T, B], [B, T] with ``batch_first``, unbatched [T], or None.
        cell, cell_args: what ``Cell.encode()`` gives.
        gates, cell_states: G and S.
        dropout: on the output of every layer but the last, if ``training``.
        recurrent_dropout: on h_{t-1} before w_hh, one mask a sequence, layer and direction, if ``training``.
        zoneout_h, zoneout_c: rates; masks if ``training``, else the expectation.
        weight_dropout: on every w_hh, one mask a call, if ``training``.
        states: whether the cell states of every step are wanted.
        backend: "auto", "fused" or "reference".

    Returns:
        output as ``input`` with D*P features, h_n [K, B, P], c_n [K, B, S*H], and c_all, the cell states of
        the last layer as ``input`` with D*S*H features (without ``states`` the output again).

    Raises:
        ValueError: number of dimensions or dtype of ``input``; values in ``lengths``.
        RuntimeError: any other shape, dtype or device; ``backend="fused"`` where no fused kernel can run.
        TypeError: dtype of ``lengths`` or ``resets``.
    """
    batched = input.dim() == 3
    x, h_0, c_0, lengths, resets = check_padded(
        input, hx, weights, lengths, resets, gates, cell_states, num_layers, bidirectional, batch_first
    )
    output, h_n, c_n, c_all = _layers(
        x, h_0, c_0, weights, None, lengths, resets, cell, cell_args, gates, cell_states, bias, num_layers,
        bidirectional, dropout, recurrent_dropout, zoneout_h, zoneout_c, weight_dropout, training, states,
        backend,
    )  # fmt: skip
    if not batched:
        output, h_n, c_n = output.squeeze(1), h_n.squeeze(1), c_n.squeeze(1)
    elif batch_first:
        output = output.transpose(0, 1)
    if not states:
        c_all = output
    elif not batched:
        c_all = c_all.squeeze(1)
    elif batch_first:
        c_all = c_all.transpose(0, 1)
    return output, h_n, c_n, c_all


def check_padded(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: list[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    gates: int,
    cell_states: int,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """x [T, B, L], h_0, c_0, lengths and resets as :func:`_layers` takes them; raises what :func:`lstm` does.

    Nothing is computed: it serves :func:`customlstm.explain` too.
    """
    if input.dim() != 2 and input.dim() != 3:
        raise ValueError(
            f"LSTM: Expected input to be 2D [T, input_size] or 3D "
            f"{'[B, T, input_size]' if batch_first else '[T, B, input_size]'}, got {input.dim()}D instead"
        )
    batched = input.dim() == 3
    if not torch.jit.is_scripting():
        checks.check_dtype_and_device(input, hx, weights, True)
    if input.size(-1) != weights[0].size(1):
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {weights[0].size(1)}, got {input.size(-1)} (input has shape {list(input.shape)})"
        )
    x = input
    if not batched:
        x = input.unsqueeze(1)
    elif batch_first:
        x = input.transpose(0, 1)
    h_0: Tensor | None = None
    c_0: Tensor | None = None
    if hx is not None:
        h_0, c_0 = hx
        if batched:
            if h_0.dim() != 3 or c_0.dim() != 3:
                raise RuntimeError(
                    "For batched 3-D input, hx and cx should also be 3-D but got "
                    f"({h_0.dim()}-D, {c_0.dim()}-D) tensors: pass hx=(h_0, c_0), each of shape "
                    "[num_layers * num_directions, batch, size]"
                )
        else:
            if h_0.dim() != 2 or c_0.dim() != 2:
                raise RuntimeError(
                    "For unbatched 2-D input, hx and cx should also be 2-D but got "
                    f"({h_0.dim()}-D, {c_0.dim()}-D) tensors: pass hx=(h_0, c_0), each of shape "
                    "[num_layers * num_directions, size]"
                )
            h_0, c_0 = h_0.unsqueeze(1), c_0.unsqueeze(1)
        rows = num_layers * (2 if bidirectional else 1)
        checks.check_states(h_0, c_0, weights, gates, cell_states, rows, x.size(1), batch_first and batched)
    if lengths is not None:
        lengths = checks.check_lengths(lengths, x, batched)
    if resets is not None:
        resets = checks.check_resets(resets, x.size(0), x.size(1), x.device, batched, batch_first)
    return x, h_0, c_0, lengths, resets


def lstm_packed(
    data: Tensor,
    batch_sizes: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    cell: str,
    cell_args: list[float],
    gates: int,
    cell_states: int,
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    dropout: float,
    recurrent_dropout: float,
    zoneout_h: float,
    zoneout_c: float,
    weight_dropout: float,
    training: bool,
    states: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All layers over packed rows, everything in packed (sorted) order; otherwise as :func:`lstm`.

    Args:
        data, batch_sizes: [N, L] and int64 [T] on the CPU, as in a ``PackedSequence``.
        h_0, c_0: [K, B, P] and [K, B, S*H].
        resets: bool [T, B] or None.

    Returns:
        output [N, D*P], h_n [K, B, P], c_n [K, B, S*H], c_all [N, D*S*H] (without ``states`` the output
        again).
    """
    check_packed(data, (h_0, c_0), weights)
    return _layers(
        data, h_0, c_0, weights, batch_sizes, None, resets, cell, cell_args, gates, cell_states, bias,
        num_layers, bidirectional, dropout, recurrent_dropout, zoneout_h, zoneout_c, weight_dropout, training,
        states, backend,
    )  # fmt: skip


def check_packed(data: Tensor, hx: tuple[Tensor, Tensor] | None, weights: list[Tensor]) -> None:
    """Raises what :func:`lstm_packed` does for rows and states that do not fit the weights."""
    if data.dim() != 2:
        raise RuntimeError(
            f"data of a packed input must have 2 dimensions [N, input_size], got {list(data.shape)}"
        )
    if not torch.jit.is_scripting():
        checks.check_dtype_and_device(data, hx, weights, False)
    if data.size(-1) != weights[0].size(1):
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {weights[0].size(1)}, got {data.size(-1)} "
            f"(the packed data has shape {list(data.shape)})"
        )


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: list[Tensor],
    cell: str,
    cell_args: list[float],
    gates: int,
    cell_states: int,
    bias: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """One step: input [B, L] or [L], hx (h_0 [B, P], c_0 [B, S*H]) or without B, or None for zeros.

    Returns h_1 and c_1 of the shapes of h_0 and c_0. Weights as one direction of one layer in :func:`lstm`.

    Raises:
        ValueError: number of dimensions of ``input`` or ``hx``.
        RuntimeError: any other shape, dtype or device; ``backend="fused"`` where no fused kernel can run.
    """
    check_step(input, hx, weights, gates, cell_states)
    batched = input.dim() == 2
    hidden, state = weights[1].size(0) // gates, weights[1].size(1)
    x = input if batched else input.unsqueeze(0)
    if hx is None:
        h_0 = torch.zeros([x.size(0), state], dtype=x.dtype, device=x.device)
        c_0 = h_0
        if state != cell_states * hidden:
            c_0 = torch.zeros([x.size(0), cell_states * hidden], dtype=x.dtype, device=x.device)
    else:
        h_0, c_0 = hx
        if not batched:
            h_0, c_0 = h_0.unsqueeze(0), c_0.unsqueeze(0)
    save = _what_to_save(x, h_0, c_0, weights, False)
    projection = state != hidden
    if torch.jit.is_scripting():
        if backend == "reference":
            h_1, c_1, _, _, _ = torch.ops.customlstm.lstm_cell_reference(
                x, h_0, c_0, weights, cell, cell_args, bias, projection, save
            )
        else:
            h_1, c_1, _, _, _ = torch.ops.customlstm.lstm_cell(
                x, h_0, c_0, weights, cell, cell_args, bias, projection, save
            )
    else:
        step = dispatch.choose(backend, cell, [x, h_0, c_0, *weights], c_0).step
        h_1, c_1 = step(x, h_0, c_0, weights, cell, cell_args, bias, projection, save)[:2]
    if not batched:
        return h_1.squeeze(0), c_1.squeeze(0)
    return h_1, c_1


def check_step(
    input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: list[Tensor], gates: int, cell_states: int
) -> None:
    """Raises what :func:`lstm_cell` does for input and states that do not fit the weights."""
    if input.dim() != 1 and input.dim() != 2:
        raise ValueError(
            "LSTMCell: Expected input to be 1D [input_size] or 2D [B, input_size], "
            f"got {input.dim()}D instead; for a whole sequence use customlstm.LSTM"
        )
    if not torch.jit.is_scripting():
        checks.check_dtype_and_device(input, hx, weights, False)
    if input.size(-1) != weights[0].size(1):
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(-1)} expected {weights[0].size(1)}"
        )
    if hx is not None:
        hidden, state = weights[1].size(0) // gates, weights[1].size(1)
        checks.check_step_states(hx[0], hx[1], input, cell_states * hidden, state)


def _layers(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
    cell_args: list[float],
    gates: int,
    cell_states: int,
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    dropout: float,
    recurrent_dropout: float,
    zoneout_h: float,
    zoneout_c: float,
    weight_dropout: float,
    training: bool,
    states: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One operator call a layer over all its directions, dropout between them."""
    projection = weights[1].size(0) != gates * weights[1].size(1)
    directions = 2 if bidirectional else 1
    per_layer = len(weights) // num_layers
    state, hidden = directions * weights[1].size(1), directions * (weights[1].size(0) // gates)
    if not torch.jit.is_scripting():
        tensors = [x, *weights] if h_0 is None else [x, h_0, c_0, *weights]
        run = dispatch.choose(backend, cell, tensors).layer
    h_list: list[Tensor] = []
    c_list: list[Tensor] = []
    c_all = x
    for k in range(num_layers):
        own = weights if num_layers == 1 else weights[k * per_layer : (k + 1) * per_layer]
        if weight_dropout > 0.0 and training:
            own = _drop_recurrent_weights(own, directions, weight_dropout)
        h, c = h_0, c_0
        if h_0 is not None and c_0 is not None and num_layers > 1:
            h, c = h_0[k * directions : (k + 1) * directions], c_0[k * directions : (k + 1) * directions]
        mask: Tensor | None = None
        scale = 1.0
        if recurrent_dropout > 0.0 and training:
            batch = x.size(1)
            if batch_sizes is not None and h_0 is not None:
                batch = h_0.size(1)
            mask = ~drawn([directions, batch, weights[1].size(1)], recurrent_dropout, x)
            if recurrent_dropout < 1.0:
                scale = 1.0 / (1.0 - recurrent_dropout)
        kept_h, kept_c = (
            _zoneout_mask(x, zoneout_h, state, training),
            _zoneout_mask(x, zoneout_c, hidden, training),
        )
        rate_h, rate_c = (0.0, 0.0) if training else (zoneout_h, zoneout_c)
        save = _what_to_save(x, h, c, own, states and k == num_layers - 1)
        if torch.jit.is_scripting():
            if backend == "reference":
                x, h_n, c_n, c_all, _, _ = torch.ops.customlstm.lstm_layer_reference(
                    x,
                    h,
                    c,
                    own,
                    batch_sizes,
                    lengths,
                    resets,
                    mask,
                    kept_h,
                    kept_c,
                    cell,
                    cell_args,
                    bias,
                    projection,
                    bidirectional,
                    scale,
                    rate_h,
                    rate_c,
                    save,
                )
            else:
                x, h_n, c_n, c_all, _, _ = torch.ops.customlstm.lstm_layer(
                    x,
                    h,
                    c,
                    own,
                    batch_sizes,
                    lengths,
                    resets,
                    mask,
                    kept_h,
                    kept_c,
                    cell,
                    cell_args,
                    bias,
                    projection,
                    bidirectional,
                    scale,
                    rate_h,
                    rate_c,
                    save,
                )
        else:
            x, h_n, c_n, c_all = run(
                x,
                h,
                c,
                own,
                batch_sizes,
                lengths,
                resets,
                mask,
                kept_h,
                kept_c,
                cell,
                cell_args,
                bias,
                projection,
                bidirectional,
                scale,
                rate_h,
                rate_c,
                save,
            )[:4]
        h_list.append(h_n)
        c_list.append(c_n)
        if dropout > 0.0 and training and k < num_layers - 1:
            x = F.dropout(x, dropout, True)
    if num_layers == 1:
        h_n, c_n = h_list[0], c_list[0]
    else:
        h_n, c_n = torch.cat(h_list), torch.cat(c_list)
    return x, h_n, c_n, c_all.to(x.dtype) if states else x


def _zoneout_mask(x: Tensor, rate: float, size: int, training: bool) -> Tensor | None:
    """bool, the rows of ``x`` times ``size``: where the old state stays; None where nothing is drawn."""
    if rate == 0.0 or not training:
        return None
    sizes = list(x.shape[:-1])
    sizes.append(size)
    return drawn(sizes, rate, x)


def _drop_recurrent_weights(weights: list[Tensor], directions: int, rate: float) -> list[Tensor]:
    """The weights of one layer with dropout on w_hh of each direction (Merity et al. 2018)."""
    dropped = weights[:]
    for d in range(directions):
        at = d * (len(weights) // directions) + 1
        if weights[at].device.type == "cpu":
            # One product here and one in backward, and none of numbers with flags, which are the slower ones.
            kept = drawn(list(weights[at].shape), 1.0 - rate, weights[at]).to(weights[at].dtype)
            dropped[at] = weights[at] * (kept * (1.0 / (1.0 - rate) if rate < 1.0 else 1.0))
        else:  # one kernel, which a GPU is in no need to do without
            dropped[at] = F.dropout(weights[at], rate, True)
    return dropped


def _what_to_save(x: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor], states: bool) -> int:
    """The operators' ``save``: all for a backward that may come, else the states if wanted, else nothing."""
    recording = torch.is_grad_enabled()
    if not torch.jit.is_scripting():
        # A trace outlives the mode it is made in; torch.jit.trace itself repeats it under no_grad to compare.
        recording = recording or torch.jit.is_tracing()
    if recording:
        needed = x.requires_grad
        for weight in weights:
            needed = needed or weight.requires_grad
        if h is not None and c is not None:
            needed = needed or h.requires_grad or c.requires_grad
        if needed:
            return 2
    return 1 if states else 0
