"""The hand-written LSTM of PyTorch tutorials, with its interface and checkpoints, on this package's kernels.

In that form every gate has parameters of its own: ``weight_ix`` (H, I), ``weight_ih`` (H, H) and ``bias_i``
(H) for the input gate, likewise f and o, and c for the cell input. A step is::

    i = sigmoid(W_ix x + b_i + W_ih h)
    f = sigmoid(W_fx x + b_f + W_fh h)
    o = sigmoid(W_ox x + b_o + W_oh h)
    c = f c + i tanh(W_cx x + b_c + W_ch h)
    h = o tanh(c)

Parameter names, their order, initialisation, arguments and results stay as they were, so that code and
checkpoints go on working; ``cell=`` gives the activations that one edited by hand before. Differences:
initial states are made where the input is, the list of initial states is not written to, and an empty
sequence works. :mod:`customlstm.convert` leads to and from the other forms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .cells import AnyCell, as_cell, own_parameters
from .dispatch import check_backend

__all__ = ["LSTM", "LSTMCell"]

#: The parameters of a cell in their order.
PARAMETER_NAMES = (
    "weight_cx", "weight_ch", "weight_fx", "weight_fh", "weight_ix", "weight_ih", "weight_ox", "weight_oh",
    "bias_c", "bias_f", "bias_i", "bias_o",
)  # fmt: skip

#: Which of them, one below the other, make up a weight of ``torch.nn`` (whose gate g is c here).
LAYOUT = {
    "weight_ih": ("weight_ix", "weight_fx", "weight_cx", "weight_ox"),
    "weight_hh": ("weight_ih", "weight_fh", "weight_ch", "weight_oh"),
    "bias_ih": ("bias_i", "bias_f", "bias_c", "bias_o"),
}


class LSTMCell(nn.Module):
    """One step of the hand-written LSTM.

    Args:
        input_size, hidden_size: I and H.
        cell: the activations, or None for sigmoid and tanh.
        backend: as in :class:`customlstm.LSTM`.
        device, dtype: of the parameters.

    Call: ``h, c = cell(input, (h, c))`` with input [B, I], states [B, H]; without states they are zero.

    Raises:
        TypeError, ValueError: sizes that are not positive integers, a ``cell`` or ``backend`` that is none, a
            cell with parameters of its own (peepholes, layer norm).
        ValueError, RuntimeError: on call, tensors that do not fit; the text names the argument and its shape.
    """

    proj_size = 0  # as the other modules of this package have it, for explain()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        cell: AnyCell | None = None,
        backend: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = _positive("input_size", input_size)
        self.hidden_size = _positive("hidden_size", hidden_size)
        self.cell = cell  # the property
        self.backend = check_backend(backend)
        for name in PARAMETER_NAMES:
            shape = [hidden_size]
            if not name.startswith("bias"):
                shape.append(input_size if name.endswith("x") else hidden_size)
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    def cell(self) -> AnyCell:
        """The activations; assign another :class:`customlstm.Cell`, or None for the standard one."""
        return self._cell

    @cell.setter
    def cell(self, cell: AnyCell | None) -> None:
        new = as_cell(cell)
        if (new.gates, new.states) != (4, 1):
            raise ValueError(
                f"cell={new} has {new.gates} gates and {new.states} states, the hand-written form has four "
                "gates and one state; use customlstm.LSTMCell or customlstm.LSTM"
            )
        if own_parameters(new):
            raise ValueError(
                f"cell={new} has parameters of its own, for which the hand-written form has no place; use "
                "customlstm.LSTMCell or customlstm.LSTM"
            )
        self._cell = new
        self._cell_name, self._cell_args = self._cell.encode()

    def reset_parameters(self) -> None:
        """All parameters uniform in +-1/sqrt(hidden_size), in their order."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _weight_list(self) -> list[Tensor]:
        """w_ih (4H, I), w_hh (4H, H), b_ih (4H) and b_hh = 0 (4H) as operators take them: gates i, f, g, o.

        Joined anew at every call, through which gradients reach the separate parameters.
        """
        weights = [torch.cat([getattr(self, name) for name in names]) for names in LAYOUT.values()]
        return [*weights, torch.zeros_like(weights[-1], requires_grad=False)]

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The states after one step; see the class."""
        pair = None if hx is None else _pair(hx, "hx")
        return functional.lstm_cell(
            input, pair, self._weight_list(), self._cell_name, self._cell_args, 4, 1, True, self.backend
        )

    def _check(self, input: Tensor, hx: tuple[Tensor, Tensor] | None) -> None:
        """Raises what a call with these arguments does; computes no step."""
        functional.check_step(input, None if hx is None else _pair(hx, "hx"), self._weight_list(), 4, 1)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + _options(self)


class LSTM(nn.Module):
    """The hand-written LSTM over whole sequences, batch first.

    Args:
        input_size, hidden_size: I and H.
        layers: how many, one upon the other; they are the submodules ``lay0``, ``lay1``, ...
        sequences: what a call returns.
        cell, backend, device, dtype: as in :class:`LSTMCell`, for every layer.

    Call: ``h, c = lstm(input, initial_states=None)``, with input [B, T, I], and initial_states a list of one
    (h, c) a layer, each [B, H]; None means zeros. With ``sequences=True`` h and c are the states of the top
    layer at every step, [B, T, H]; with ``False`` those after the last step, [B, H].

    Raises:
        TypeError, ValueError: sizes that are not positive integers, a ``cell`` or ``backend`` that is none, a
            cell with parameters of its own (peepholes, layer norm).
        TypeError, ValueError, RuntimeError: on call, what does not fit; the text names the argument and its
            shape.
    """

    proj_size = 0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        layers: int = 1,
        sequences: bool = True,
        *,
        cell: AnyCell | None = None,
        backend: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = _positive("input_size", input_size)
        self.hidden_size = _positive("hidden_size", hidden_size)
        self.layers = _positive("layers", layers)
        self.sequences = bool(sequences)
        self.backend = check_backend(backend)
        for k in range(layers):
            size = input_size if k == 0 else hidden_size
            layer = LSTMCell(size, hidden_size, cell=cell, backend=backend, device=device, dtype=dtype)
            self.add_module(f"lay{k}", layer)

    @property
    def cell(self) -> AnyCell:
        """The activations; assigning a :class:`customlstm.Cell` changes every layer."""
        return self.lay0.cell

    @cell.setter
    def cell(self, cell: AnyCell | None) -> None:
        for layer in self._layers():
            layer.cell = cell

    @property
    def num_layers(self) -> int:
        """The number of layers under the name that ``nn.LSTM`` has for it."""
        return self.layers

    @property
    def _cell_name(self) -> str:
        return self.lay0._cell_name

    def _layers(self) -> list[LSTMCell]:
        return [getattr(self, f"lay{k}") for k in range(self.layers)]

    def _weight_list(self) -> list[Tensor]:
        return [weight for layer in self._layers() for weight in layer._weight_list()]

    def forward(
        self, input: Tensor, initial_states: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states of the top layer; see the class."""
        hx = self._checked_states(input, initial_states)
        cell_name, cell_args = self.cell.encode()
        h, h_n, c_n, c = functional.lstm(
            input, hx, self._weight_list(), None, None, cell_name, cell_args, 4, 1, True, self.layers, False,
            True, 0.0, 0.0, 0.0, 0.0, 0.0, self.training, self.sequences, self.backend,
        )  # fmt: skip
        return (h, c) if self.sequences else (h_n[-1], c_n[-1])

    def _check(self, input: Tensor, initial_states: Sequence[tuple[Tensor, Tensor]] | None) -> None:
        """Raises what a call with these arguments does; computes no step."""
        hx = self._checked_states(input, initial_states)
        functional.check_padded(input, hx, self._weight_list(), None, None, 4, 1, self.layers, False, True)

    def _checked_states(
        self, input: Tensor, initial_states: Sequence[tuple[Tensor, Tensor]] | None
    ) -> tuple[Tensor, Tensor] | None:
        """The initial states stacked, if ``input`` is of the right kind and all layers are of one cell."""
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a tensor [B, T, {self.input_size}], got {type(input).__name__}")
        if input.dim() != 3:
            raise ValueError(
                f"input must have 3 dimensions [B, T, {self.input_size}], got shape {list(input.shape)}"
            )
        hx = None if initial_states is None else self._stacked(initial_states, input.size(0))
        if any(layer.cell != self.cell or layer.backend != self.lay0.backend for layer in self._layers()):
            raise ValueError(
                "all layers must have one cell and one backend: assign lstm.cell, which changes every layer"
            )
        return hx

    def _stacked(self, states: Sequence[tuple[Tensor, Tensor]], batch: int) -> tuple[Tensor, Tensor]:
        """The list of (h, c) as (h [layers, B, H], c [layers, B, H])."""
        if not isinstance(states, (list, tuple)):
            raise TypeError(f"initial_states must be a list of (h, c), not {type(states).__name__}")
        if len(states) != self.layers:
            raise ValueError(
                f"initial_states must have one (h, c) for each of {self.layers} layers, got {len(states)} "
                "entries; a single pair goes into a list: [(h, c)]"
            )
        pairs = [_pair(state, f"initial_states[{k}]") for k, state in enumerate(states)]
        shape = [batch, self.hidden_size]
        for k, pair in enumerate(pairs):
            for name, tensor in zip("hc", pair, strict=True):
                if list(tensor.shape) != shape:
                    raise ValueError(
                        f"{name} of initial_states[{k}] must have shape {shape}, got {list(tensor.shape)}"
                    )
        return torch.stack([h for h, _ in pairs]), torch.stack([c for _, c in pairs])

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, layers={self.layers}, sequences={self.sequences}"
            + _options(self)
        )


def _positive(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def _pair(value: object, name: str) -> tuple[Tensor, Tensor]:
    if (
        not isinstance(value, (tuple, list))
        or len(value) != 2
        or not all(isinstance(v, Tensor) for v in value)
    ):
        shown = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{name} must be a pair (h, c) of tensors, got {type(value).__name__} {shown}")
    return value[0], value[1]


def _options(module: LSTMCell | LSTM) -> str:
    text = "" if module.cell.is_standard else f", cell={module.cell}"
    return text if module.backend == "auto" else f"{text}, backend={module.backend!r}"
