"""``Stream``: an LSTM that is fed piece by piece, as sound, sensor values or observations arrive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _binary, dispatch, ops
from .modules import LSTM, States


class Stream:
    """Runs an LSTM over pieces of a sequence, and keeps the state and the packed weights from piece to piece.

    In float32 and float64 the outputs are the bits of ``lstm`` on the whole sequence, in whatever pieces it
    comes; bfloat16 and float16 round the cell state at the end of a piece. Nothing is differentiated; with
    dropout of any kind or zoneout, ``lstm`` must be in eval mode. Not for several threads at once.

    Making a stream is what asks for the packed copy: of every weight once more, in float32 for the 16-bit
    types (``nbytes``). It is made at the first piece, and again at the next piece after a weight was changed
    in place, by an optimiser, by ``load_state_dict``, ``to``, an assigned parameter, a parametrisation or
    another ``lstm.cell``. Writes that PyTorch does not count, through ``weight.data`` or a NumPy array on the
    same memory, it cannot see: call :meth:`refresh` after them.

    Under autocast it computes in autocast's dtype, as ``lstm`` does; the weights are packed anew where that
    changes.

    On a device or with a backend without the CPU kernels, and with zoneout or layer norm, ``lstm`` itself is
    called with the state.

    Args:
        lstm: one direction, any number of layers, with or without projection. It is not copied.
        batch: the number B of sequences, or None for unbatched pieces.
        hx: the state to begin with, as in a call of ``lstm``; None means zeros.

    Raises:
        TypeError: ``lstm`` is no :class:`customlstm.LSTM`, or ``batch`` is no int.
        ValueError: ``lstm`` is bidirectional (the reverse direction begins at the end of the sequence), or
            ``batch`` is less than 1.
        RuntimeError: ``hx`` has another shape, dtype or device than the state.
    """

    def __init__(self, lstm: LSTM, batch: int | None = None, hx: States | None = None) -> None:
        if not isinstance(lstm, LSTM):
            raise TypeError(
                f"lstm must be a customlstm.LSTM, got {type(lstm).__name__}; "
                "customlstm.convert.to_customlstm turns a torch.nn.LSTM into one"
            )
        if lstm.bidirectional:
            raise ValueError(
                "lstm is bidirectional, and its reverse direction begins at the end of the sequence: "
                "a stream needs bidirectional=False"
            )
        if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool)):
            raise TypeError(f"batch must be an int or None, got {type(batch).__name__}")
        if batch is not None and batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}; leave it out for unbatched pieces")
        self.lstm = lstm
        self.batch = batch
        self._packed: list[Tensor] = []
        self._packed_from: list[tuple[Tensor, int, int]] = []
        self._packed_args: Any = None
        self._h, self._c = self._zeros()
        if hx is not None:
            self.state = hx

    def __call__(self, input: Tensor) -> Tensor:
        """The outputs of the next piece.

        Args:
            input: [T, B, L], [B, T, L] with ``batch_first``; [T, L] for an unbatched stream. Any T.

        Returns:
            As ``input`` with proj_size or hidden_size features.

        Raises:
            ValueError: another number of dimensions; ``lstm`` is in training mode and draws masks.
            RuntimeError: any other shape, dtype or device.
        """
        unbatched = self.batch is None
        if input.dim() != (2 if unbatched else 3):
            raise ValueError(
                f"input must have {'2 dimensions [T, L]' if unbatched else '3 dimensions'}, got "
                f"{list(input.shape)}; a stream made with batch={self.batch} takes no other, and step() "
                "takes single steps"
            )
        if unbatched:
            return self._run(input.unsqueeze(1)).squeeze(1)
        if self.lstm.batch_first:
            return self._run(input.transpose(0, 1)).transpose(0, 1)
        return self._run(input)

    def step(self, input: Tensor) -> Tensor:
        """The output of a single step: [B, L] gives [B, P], for an unbatched stream [L] gives [P].

        Raises:
            ValueError, RuntimeError: as in a call.
        """
        if self.batch is None:
            if input.dim() != 1:
                raise ValueError(f"input of an unbatched step must have shape [L], got {list(input.shape)}")
            return self._run(input.view(1, 1, -1)).view(-1)
        if input.dim() != 2:
            raise ValueError(f"input of a step must have shape [B, L], got {list(input.shape)}")
        return self._run(input.unsqueeze(0)).squeeze(0)

    @property
    def state(self) -> States:
        """A copy of (h [K, B, P], c [K, B, H]) after the last piece, without B for an unbatched stream.

        In the dtype that a piece would be computed in now, so that it may be put back.
        """
        self._follow(self.lstm._weight_list()[0])
        if self.batch is None:
            return self._h.squeeze(1).clone(), self._c.squeeze(1).clone()
        return self._h.clone(), self._c.clone()

    @state.setter
    def state(self, hx: States) -> None:
        first = self.lstm._weight_list()[0]
        dtype = ops.computed_dtype(first.device, first.dtype)
        for name, value, own in zip(("h", "c"), hx, (self._h, self._c), strict=True):
            expected = own.squeeze(1) if self.batch is None else own
            right_dtype = value.dtype in (dtype, first.dtype)  # under autocast both, as in a call of lstm
            if value.shape != expected.shape or not right_dtype or value.device != first.device:
                raise RuntimeError(
                    f"{name} must have shape {list(expected.shape)}, {dtype} on {first.device}, got "
                    f"{list(value.shape)}, {value.dtype} on {value.device}"
                )
        self._follow(first)  # not before: a refused state changes nothing
        with torch.no_grad():
            self._h.copy_(hx[0].view_as(self._h) if self.batch is None else hx[0])
            self._c.copy_(hx[1].view_as(self._c) if self.batch is None else hx[1])

    def reset(self, sequences: Tensor | None = None) -> None:
        """Sets the state to zero, of all sequences or of those where ``sequences``, bool [B], is True.

        Raises:
            TypeError: ``sequences`` is not bool.
            RuntimeError: it has another shape than [B].
        """
        if sequences is None:
            self._h.zero_()
            self._c.zero_()
            return
        if sequences.dtype != torch.bool:
            raise TypeError(f"sequences must be a bool tensor, got {sequences.dtype}")
        if sequences.shape != (self._h.size(1),):
            raise RuntimeError(f"sequences must have shape [{self._h.size(1)}], got {list(sequences.shape)}")
        self._h[:, sequences] = 0
        self._c[:, sequences] = 0

    def refresh(self) -> None:
        """Packs the weights anew at the next piece: after writes that PyTorch does not count."""
        self._packed_from = []

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights, 0 before the first piece and where none are kept."""
        return sum(packed.numel() for packed in self._packed)

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights are good for one instruction set: whoever loads this packs its own.
        return self.__dict__ | {"_packed": [], "_packed_from": [], "_packed_args": None}

    def __repr__(self) -> str:
        return f"Stream({self.lstm}, batch={self.batch})"

    @torch.compiler.disable
    def _run(self, x: Tensor) -> Tensor:
        lstm = self.lstm
        weights = lstm._weight_list()
        if lstm.training:
            _check_nothing_random(lstm)
        dtype = self._follow(weights[0])
        if not self._is_current(weights, dtype):
            self._pack(weights, dtype)
        if not self._packed:
            return self._call(x)
        if x.requires_grad:
            x = x.detach()
        if x.dtype != dtype and ops.computed_dtype(x.device, x.dtype) == dtype:
            x = x.to(dtype)  # autocast does not know the packed step
        run = torch.ops.customlstm.lstm_stream
        for k, packed in enumerate(self._packed):
            x = run(packed, x, self._h[k], self._c[k])
        return x

    def _follow(self, weight: Tensor) -> torch.dtype:
        """The dtype that is computed in here and now, to which the state goes."""
        dtype = ops.computed_dtype(weight.device, weight.dtype)
        if self._h.dtype != dtype or self._h.device != weight.device:
            # The module was moved or cast, or autocast has begun or ended.
            with torch.inference_mode(False):  # see _zeros
                self._h, self._c = (state.to(weight.device, dtype) for state in (self._h, self._c))
        return dtype

    def _is_current(self, weights: list[Tensor], dtype: torch.dtype) -> bool:
        known = self._packed_from
        if len(known) != len(weights) or self._packed_args != self._arguments(dtype):
            return False
        for weight, (tensor, version, address) in zip(weights, known, strict=True):
            if weight is not tensor or weight._version != version or weight.data_ptr() != address:
                return False
        return True

    def _arguments(self, dtype: torch.dtype) -> Any:
        """What the packed weights depend on besides the weights; zoneout has no packed step at all."""
        return self.lstm._cell_args, self.lstm.zoneout, dtype

    def _pack(self, weights: list[Tensor], dtype: torch.dtype) -> None:
        lstm = self.lstm
        self._packed = []
        if self._has_kernel(weights, dtype):
            per_layer, projection = len(weights) // lstm.num_layers, lstm.proj_size > 0
            for k in range(lstm.num_layers):
                own = [weight.detach().to(dtype) for weight in weights[k * per_layer : (k + 1) * per_layer]]
                self._packed.append(
                    torch.ops.customlstm.lstm_pack(
                        own, lstm._cell_name, lstm._cell_args, lstm.bias, projection, self._h.size(1)
                    )
                )
        # Tensors without a version counter are packed at every piece.
        counted = not any(weight.is_inference() for weight in weights)
        self._packed_from = [(w, w._version, w.data_ptr()) for w in weights] if counted else []
        self._packed_args = self._arguments(dtype)

    def _has_kernel(self, weights: list[Tensor], dtype: torch.dtype) -> bool:
        lstm, first = self.lstm, weights[0]
        backend = dispatch.effective_backend(lstm.backend)
        if any(lstm.zoneout) or getattr(lstm.cell, "layer_norm", ()):
            return False  # the packed step does not know them
        if first.device.type != "cpu" or backend == "reference" or not _binary.status().loaded:
            return False
        return dispatch.why_not_fused(first.device, dtype, lstm._cell_name, weights) is None

    def _call(self, x: Tensor) -> Tensor:
        if self.lstm.batch_first:
            x = x.transpose(0, 1)
        with torch.no_grad():
            output, (h, c) = self.lstm(x, (self._h, self._c))
        with torch.inference_mode(False):  # see _zeros
            self._h, self._c = (state.clone() if state.is_inference() else state for state in (h, c))
        return output.transpose(0, 1) if self.lstm.batch_first else output

    def _zeros(self) -> States:
        lstm, batch = self.lstm, 1 if self.batch is None else self.batch
        first = lstm._weight_list()[0]
        sizes = (lstm.proj_size or lstm.hidden_size, lstm._cell_states * lstm.hidden_size)
        with torch.inference_mode(False):  # what that mode makes cannot be written to outside of it
            h, c = (
                torch.zeros(lstm.num_layers, batch, size, device=first.device, dtype=first.dtype)
                for size in sizes
            )
        return h, c


def _check_nothing_random(lstm: LSTM) -> None:
    rates = {"recurrent_dropout": lstm.recurrent_dropout, "weight_dropout": lstm.weight_dropout}
    rates["dropout"] = lstm.dropout if lstm.num_layers > 1 else 0.0
    rates["zoneout"] = max(lstm.zoneout)
    for name, rate in rates.items():
        if rate > 0:
            raise ValueError(
                f"lstm has {name}={getattr(lstm, name)} and is in training mode: call lstm.eval() before "
                "streaming"
            )
