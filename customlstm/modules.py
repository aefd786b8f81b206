"""``LSTM`` and ``LSTMCell``: parameters, options and calls of ``torch.nn``'s, with a cell of one's own."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, functional
from .cells import AnyCell, own_parameters
from .recurrent import Masked, Recurrent, parameter_shapes

States = tuple[Tensor, Tensor]


class LSTM(Masked, Recurrent):
    r"""``torch.nn.LSTM`` whose cell can be changed, on a fused kernel.

    Constructor, call, parameter names and shapes, initialisation and ``state_dict`` are those of
    ``torch.nn.LSTM``.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype: as in ``torch.nn.LSTM``.
        cell: a :class:`customlstm.Cell`, a function of one's own (:func:`customlstm.cell`), or None for the
            cell of ``torch.nn.LSTM``. Its ``unit_parameters`` become parameters of every layer and direction,
            ``peephole_i_l0`` [hidden_size] and so on, as do the gains and biases of its layer norms.
        recurrent_dropout: rate of dropout on h_{t-1} before the recurrent weights, in training mode (Gal and
            Ghahramani 2016): one mask for every sequence, layer and direction, the same at all steps, what is
            left scaled by 1 / (1 - rate). Outputs and h_n are not masked.
        zoneout: rate, or rates for (h, c), at which a state stays what it was (Krueger et al. 2016). In
            training mode every unit of every sequence and step has a mask of its own; in eval mode the new
            state is the expectation, rate times the old one plus 1 - rate times what the cell computed.
        weight_dropout: rate of dropout on the recurrent weights, in training mode (Merity et al. 2018): one
            mask a call for every layer and direction, what is left scaled by 1 / (1 - rate). Masks come from
            torch's generator of the weights' device.
        forget_bias: what the bias of the forget gates, b_ih + b_hh, begins with, if not with random numbers;
            1.0 is usual (Gers et al. 2000, Jozefowicz et al. 2015).
        backend: "auto" (fused where a fused kernel fits, else the reference, with one warning), "fused"
            (raise where none fits) or "reference".

    Call: ``output, (h_n, c_n) = lstm(input, hx=None, *, lengths=None, resets=None)``, with D directions,
    state size P = proj_size or hidden_size, and K = num_layers * D:

    * input: [T, B, input_size], [B, T, input_size] with ``batch_first``, [T, input_size], or a
      ``PackedSequence``.
    * hx: (h_0 [K, B, P], c_0 [K, B, hidden_size]), without B for unbatched input; None means zeros. A cell
      with S states besides h has them side by side: c_0, c_n and the cell states of :meth:`states` have
      S * hidden_size features, and ``c_n.unflatten(-1, (S, hidden_size))`` takes them apart.
    * lengths: integers [B], any device, any order, zeros allowed. Outputs beyond a length are 0, h_n and c_n
      are each sequence's own last state, and the reverse direction starts at each sequence's own end.
    * resets: bool [T, B] ([B, T] with ``batch_first``; for a ``PackedSequence`` in the order of its sequences
      before sorting). Where True the state is zero before that step, and no gradient crosses. The edge
      between steps t-1 and t is cut in both directions.

    Raises:
        TypeError, ValueError, RuntimeError: what ``torch.nn.LSTM`` raises for the same mistake.
    """

    _flat_weights_names: list[str]
    _all_weights: list[list[str]]

    __constants__: ClassVar[list[str]] = [
        "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
        "proj_size", "backend",
    ]  # fmt: skip
    __jit_unused_properties__: ClassVar[list[str]] = [
        "all_weights", "cell", "recurrent_dropout", "weight_dropout", "zoneout",
    ]  # fmt: skip

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        cell: AnyCell | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        forget_bias: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        checks.check_dropout(dropout, num_layers)
        checks.check_type("bias", bias, bool)
        checks.check_type("batch_first", batch_first, bool)
        for name, value in [
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ]:
            checks.check_type(name, value, int)
            if value <= 0:
                raise ValueError(f"{name} must be greater than zero, got {value}")
        checks.check_proj_size(proj_size, hidden_size)
        self.mode = "LSTM"
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.recurrent_dropout, self.weight_dropout = recurrent_dropout, weight_dropout  # the properties
        self.zoneout = zoneout
        self.bidirectional = bool(bidirectional)
        self.proj_size = proj_size
        self._set_options(cell, forget_bias, self.bias, backend)

        state = proj_size or hidden_size
        self._flat_weights_names = []
        self._all_weights = []
        for layer in range(num_layers):
            for suffix in ("", "_reverse") if bidirectional else ("",):
                features = input_size if layer == 0 else state * (2 if bidirectional else 1)
                shapes = parameter_shapes(features, hidden_size, bias, proj_size, self.cell)
                names = [f"{name}_l{layer}{suffix}" for name in shapes]
                for name, shape in zip(names, shapes.values(), strict=True):
                    setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
                self._flat_weights_names += names
                self._all_weights.append(names)
        self.reset_parameters()

    def forward(
        self,
        input: Any,
        hx: States | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, States]:
        """Output of the top layer at every step, and the last states of every layer; see the class."""
        if isinstance(input, PackedSequence):
            output, h_n, c_n, _ = self._run_packed(input, hx, lengths, resets, False)
        else:
            checks.check_arguments(input, hx, lengths, resets)
            output, h_n, c_n, _ = self._run(input, hx, lengths, resets, False)
        return output, (h_n, c_n)

    def states(
        self,
        input: Any,
        hx: States | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Hidden and cell state of the top layer at every step; arguments as in a call of the module.

        Returns:
            h_all, equal to the output, and c_all, the same with D * hidden_size features; two
            ``PackedSequence`` for a ``PackedSequence``. Both are differentiable.
        """
        if isinstance(input, PackedSequence):
            h_all, _, _, c_all = self._run_packed(input, hx, lengths, resets, True)
        else:
            checks.check_arguments(input, hx, lengths, resets)
            h_all, _, _, c_all = self._run(input, hx, lengths, resets, True)
        return h_all, c_all

    def _run(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        states: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Padded or unbatched input; compiled by TorchScript as it stands."""
        return functional.lstm(
            input,
            hx,
            self._weight_list(),
            lengths,
            resets,
            self._cell_name,
            self._arguments(),
            self._gates,
            self._cell_states,
            self.bias,
            self.num_layers,
            self.bidirectional,
            self.batch_first,
            self._dropout(),
            self._recurrent_dropout(),
            self._zoneout(0),
            self._zoneout(1),
            self._weight_dropout(),
            self.training,
            states,
            self.backend,
        )

    def _run_packed(
        self,
        input: PackedSequence,
        hx: States | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        states: bool,
    ) -> tuple[PackedSequence, Tensor, Tensor, PackedSequence]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        weights = self._weight_list()
        batch, resets = self._check_packed(input, hx, weights, lengths, resets)
        if hx is None:
            rows = self.num_layers * (2 if self.bidirectional else 1)
            h_0 = data.new_zeros(rows, batch, self.proj_size or self.hidden_size)
            c_0 = data.new_zeros(rows, batch, self._cell_states * self.hidden_size)
        else:
            h_0, c_0 = _reorder(hx[0], sorted_indices), _reorder(hx[1], sorted_indices)
        if resets is not None:
            resets = _reorder(resets, sorted_indices)
        output, h_n, c_n, c_all = functional.lstm_packed(
            data,
            batch_sizes,
            h_0,
            c_0,
            weights,
            resets,
            self._cell_name,
            self._arguments(),
            self._gates,
            self._cell_states,
            self.bias,
            self.num_layers,
            self.bidirectional,
            self._dropout(),
            self._recurrent_dropout(),
            self._zoneout(0),
            self._zoneout(1),
            self._weight_dropout(),
            self.training,
            states,
            self.backend,
        )
        output, c_all = (
            PackedSequence(rows, batch_sizes, sorted_indices, unsorted_indices) for rows in (output, c_all)
        )
        return output, _reorder(h_n, unsorted_indices), _reorder(c_n, unsorted_indices), c_all

    def _check_packed(
        self,
        input: PackedSequence,
        hx: States | None,
        weights: list[Tensor],
        lengths: Tensor | None,
        resets: Tensor | None,
    ) -> tuple[int, Tensor | None]:
        """The batch, and resets as [T, B] in the order before sorting; raises what the call does."""
        if lengths is not None:
            raise ValueError(
                "lengths cannot be given with a PackedSequence, which has its own; leave lengths out"
            )
        data, batch_sizes, sorted_indices, _ = input
        checks.check_arguments(data, hx, lengths, resets)
        batch = int(batch_sizes[0]) if sorted_indices is None else sorted_indices.size(0)
        if hx is not None:
            rows = self.num_layers * (2 if self.bidirectional else 1)
            checks.check_states(*hx, weights, self._gates, self._cell_states, rows, batch, False)
        if resets is not None:
            resets = checks.check_resets(
                resets, batch_sizes.size(0), batch, data.device, True, self.batch_first
            )
        return batch, resets

    def _check(self, input: Any, hx: States | None, lengths: Tensor | None, resets: Tensor | None) -> None:
        """Raises what a call with these arguments does; computes nothing."""
        weights = self._weight_list()
        if isinstance(input, PackedSequence):
            self._check_packed(input, hx, weights, lengths, resets)
            functional.check_packed(input.data, hx, weights)
        else:
            checks.check_arguments(input, hx, lengths, resets)
            functional.check_padded(
                input,
                hx,
                weights,
                lengths,
                resets,
                self._gates,
                self._cell_states,
                self.num_layers,
                self.bidirectional,
                self.batch_first,
            )

    def _dropout(self) -> float:
        # Read only where it counts: a float attribute that Dynamo sees costs it a second pass.
        return self.dropout if self.training and self.num_layers > 1 else 0.0

    def _weight_list(self) -> list[Tensor]:
        """The weights in the order of the operators.

        Looked up at every call, so that whoever puts another tensor in a parameter's place is obeyed:
        ``functional_call``, parametrisations, weight norm, data parallel replicas.
        """
        try:
            parameters = self._parameters
            return [parameters[name] for name in self._flat_weights_names]  # nn.Module's getattr is slow
        except KeyError:
            return [getattr(self, name) for name in self._flat_weights_names]

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of every layer and direction, as in ``torch.nn.LSTM``."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self) -> None:
        """Does nothing, for code written for ``torch.nn.LSTM``: weights are taken where they are."""

    def extra_repr(self) -> str:
        s = "{input_size}, {hidden_size}"
        if self.proj_size != 0:
            s += ", proj_size={proj_size}"
        if self.num_layers != 1:
            s += ", num_layers={num_layers}"
        if self.bias is not True:
            s += ", bias={bias}"
        if self.batch_first is not False:
            s += ", batch_first={batch_first}"
        if self.dropout != 0:
            s += ", dropout={dropout}"
        if self.bidirectional is not False:
            s += ", bidirectional={bidirectional}"
        for name in ("recurrent_dropout", "weight_dropout", "zoneout"):
            if getattr(self, name) not in (0, (0, 0)):
                s += f", {name}={getattr(self, name)}"
        return s.format(**self.__dict__) + self._options_repr()


# As the operators want them, before the cell's own. What a module does not have is None, so that TorchScript
# finds every name.
_STEP_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class LSTMCell(Recurrent):
    r"""``torch.nn.LSTMCell`` whose cell can be changed: one step, for loops and streaming.

    Args:
        input_size, hidden_size, bias, device, dtype: as in ``torch.nn.LSTMCell``.
        proj_size: if > 0, h is projected to this size by ``weight_hr`` [proj_size, hidden_size].
        cell, forget_bias, backend: as in :class:`LSTM`.

    Call: ``h_1, c_1 = cell(input, hx=None)`` with input [B, input_size] or [input_size] and hx (h_0 [B, P],
    c_0 [B, S * hidden_size]) or the same without B, P = proj_size or hidden_size, S the number of the cell's
    states (1, but for cells of one's own); None means zeros.

    Raises:
        TypeError, ValueError, RuntimeError: what ``torch.nn.LSTMCell`` raises for the same mistake.
    """

    __constants__: ClassVar[list[str]] = ["input_size", "hidden_size", "bias", "proj_size", "backend"]
    __jit_unused_properties__: ClassVar[list[str]] = ["cell"]

    _weight_names: list[str]
    _cell_args: list[float]  # for TorchScript, which cannot tell from an empty one

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        cell: AnyCell | None = None,
        forget_bias: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for name, value in [("input_size", input_size), ("hidden_size", hidden_size)]:
            checks.check_type(name, value, int)
            if value < 0:
                raise RuntimeError(f"{name} must not be negative, got {value}")
        if hidden_size == 0:
            raise ValueError("hidden_size must be greater than zero, got 0")
        checks.check_proj_size(proj_size, hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bool(bias)
        self.proj_size = proj_size
        self._set_options(cell, forget_bias, self.bias, backend)
        shapes = parameter_shapes(input_size, hidden_size, self.bias, proj_size, self.cell)
        added = own_parameters(self.cell)
        self._weight_names = [*_STEP_WEIGHTS, *added]
        for name in self._weight_names:
            if name in added and hasattr(self, name):
                raise ValueError(
                    f"cell={self.cell} has a parameter named {name}, which LSTMCell uses for itself"
                )
            shape = shapes.get(name)
            weight = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, weight)
        self.reset_parameters()

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The states after one step; see the class."""
        if not torch.jit.is_scripting():
            checks.check_arguments(input, hx, None, None)
        return functional.lstm_cell(
            input,
            hx,
            self._weight_list(),
            self._cell_name,
            self._arguments(),
            self._gates,
            self._cell_states,
            self.bias,
            self.backend,
        )

    def _weight_list(self) -> list[Tensor]:
        if not torch.jit.is_scripting():
            return self._find_weights()
        weights = [self.weight_ih, self.weight_hh]
        if self.bias_ih is not None and self.bias_hh is not None:
            weights += [self.bias_ih, self.bias_hh]
        if self.weight_hr is not None:
            weights += [self.weight_hr]
        return weights  # scripting.py compiles a twin that has the cell's own, too

    @torch.jit.unused
    def _check(self, input: Any, hx: tuple[Tensor, Tensor] | None) -> None:
        """Raises what a call with these arguments does; computes nothing."""
        checks.check_arguments(input, hx, None, None)
        functional.check_step(input, hx, self._weight_list(), self._gates, self._cell_states)

    @torch.jit.unused
    def _find_weights(self) -> list[Tensor]:
        try:
            found = [self._parameters[name] for name in self._weight_names]
        except KeyError:  # something else was put in a parameter's place
            found = [getattr(self, name) for name in self._weight_names]
        return [weight for weight in found if weight is not None]

    def extra_repr(self) -> str:
        s = "{input_size}, {hidden_size}"
        if self.proj_size != 0:
            s += ", proj_size={proj_size}"
        if self.bias is not True:
            s += ", bias={bias}"
        return s.format(**self.__dict__) + self._options_repr()


def _reorder(tensor: Tensor, indices: Tensor | None) -> Tensor:
    return tensor if indices is None else tensor.index_select(1, indices)
