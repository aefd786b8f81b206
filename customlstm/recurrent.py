"""What ``LSTM`` and ``LSTMCell`` share, and the rates at which an ``LSTM`` draws masks."""

import math
import re
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import init

from . import checks
from .cells import AnyCell, Cell, as_cell, own_parameters
from .dispatch import check_backend
from .piecewise import finite_number

_LAYER = re.compile(r"_l\d+(_reverse)?$")


def base_name(name: str) -> str:
    """Name of a parameter without layer and direction: ``"weight_ih_l0_reverse"`` gives ``"weight_ih"``."""
    return _LAYER.sub("", name)


class Recurrent(nn.Module):
    """The cell, the backend, the initialisation."""

    _forget_bias: float | None = None

    def _set_options(self, cell: AnyCell | None, forget_bias: float | None, bias: bool, backend: str) -> None:
        self.cell = cell  # the property
        self.backend = check_backend(backend)
        if forget_bias is None:
            return
        self._forget_bias = finite_number(forget_bias, "forget_bias")
        if not bias or self.cell.forget_gate is None:
            without = "bias=False" if not bias else f"cell={self.cell}"
            if isinstance(self.cell, Cell) and bias:
                without = "coupled_gates"
            named = "" if isinstance(self.cell, Cell) else ", or name that gate f"
            raise ValueError(
                f"forget_bias={forget_bias} sets the bias of the forget gate, which has none with {without}; "
                f"leave it out{named}"
            )

    @property
    def cell(self) -> AnyCell:
        """The cell of every layer; assign another one, or None for the standard cell."""
        return self._cell

    @cell.setter
    def cell(self, cell: AnyCell | None) -> None:
        new = as_cell(cell)
        old = getattr(self, "_cell", new)
        if (new.gates, new.states) != (old.gates, old.states):
            raise ValueError(
                f"cell has {_sizes(new)}, this module was made for {_sizes(old)}; make a new module with it"
            )
        own, added = list(own_parameters(old)), list(own_parameters(new))
        if added != own:
            raise ValueError(
                f"cell has the parameters {added}, this module was made for {own}; "
                f"customlstm.convert.to_customlstm(module, cell={new}) makes a new one, where new parameters "
                "begin at 0 or where the cell says, and gains of layer norm at 1"
            )
        self._cell = new
        # What the operators take; encoded once, not at every call. The text is for _arguments.
        self._cell_name, self._cell_args = self._cell.encode()
        self._cell_text = " ".join(map(repr, self._cell_args))
        self._gates, self._cell_states = new.gates, new.states

    def _arguments(self) -> list[float]:
        """The operators' cell_args.

        Dynamo gets them by way of a text: of every float in a list it makes a symbolic number and guards.
        """
        if not torch.jit.is_scripting():
            if torch.compiler.is_compiling():
                return _floats(self._cell_text)
        return self._cell_args

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(hidden_size), drawn from torch's generator in the order of ``nn.LSTM``.

        The cell's own parameters are drawn after all others, but for those that begin with a number that the
        cell gives; then the forget gate's bias is set, if asked
        for.
        """
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        # The cell's own parameters come last, so that they leave the numbers of the others as they are.
        own: list[tuple[str, nn.Parameter]] = []
        added = own_parameters(self._cell)
        for name, weight in self.named_parameters():
            base = base_name(name)
            if base in added:
                own.append((base, weight))
            else:
                init.uniform_(weight, -bound, bound)
        for name, weight in own:
            if name in self._cell.initial:
                init.constant_(weight, self._cell.initial[name])
            else:
                init.uniform_(weight, -bound, bound)
        if self._forget_bias is None:
            return
        # b_ih + b_hh is what counts: all of it in b_ih.
        first = (self._cell.forget_gate or 0) * self.hidden_size
        rows = slice(first, first + self.hidden_size)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if "bias_ih" in name or "bias_hh" in name:
                    weight[rows] = self._forget_bias if "bias_ih" in name else 0.0

    def __prepare_scriptable__(self) -> nn.Module:
        from .scripting import prepare  # imports this module

        return prepare(self)

    def _options_repr(self) -> str:
        text = "" if self.cell.is_standard else f", cell={self.cell}"
        return text if self.backend == "auto" else f"{text}, backend={self.backend!r}"


class Masked(nn.Module):
    """Recurrent dropout, weight dropout and zoneout. A rate may be assigned at any time."""

    @property
    def recurrent_dropout(self) -> float:
        """Rate of dropout on h_{t-1}; assign another one at any time."""
        return self._rates[0]

    @recurrent_dropout.setter
    def recurrent_dropout(self, rate: float) -> None:
        self._set_rates(0, "recurrent_dropout", [rate])

    @property
    def weight_dropout(self) -> float:
        """Rate of dropout on the recurrent weights; assign another one at any time."""
        return self._rates[1]

    @weight_dropout.setter
    def weight_dropout(self, rate: float) -> None:
        self._set_rates(1, "weight_dropout", [rate])

    @property
    def zoneout(self) -> tuple[float, float]:
        """Rates of zoneout on h and on c; assign a pair or one number for both at any time."""
        return self._rates[2], self._rates[3]

    @zoneout.setter
    def zoneout(self, rates: float | tuple[float, float]) -> None:
        if not isinstance(rates, (tuple, list)):
            rates = (rates, rates)
        elif len(rates) != 2:
            raise ValueError(f"zoneout must be one rate, or two for h and c, got {rates!r}")
        self._set_rates(2, "zoneout", rates)

    def _set_rates(self, first: int, name: str, given: Sequence[float]) -> None:
        """All of ``given``, from place ``first`` on, or where one of them is none, nothing."""
        for rate in given:
            checks.check_rate(name, rate)
        rates = list(getattr(self, "_rates", [0.0] * 4))
        rates[first : first + len(given)] = map(float, given)
        self._rates = rates
        self._rates_text = " ".join(map(repr, rates))  # as _cell_text

    def _rate(self, index: int) -> float:
        if not torch.jit.is_scripting():
            if torch.compiler.is_compiling():
                return _floats(self._rates_text)[index]
        return self._rates[index]

    def _recurrent_dropout(self) -> float:
        return self._rate(0) if self.training else 0.0

    def _weight_dropout(self) -> float:
        return self._rate(1) if self.training else 0.0

    def _zoneout(self, state: int) -> float:
        return self._rate(2 + state)


@torch.compiler.assume_constant_result
def _floats(text: str) -> list[float]:
    return [float(number) for number in text.split()]


def parameter_shapes(
    input_size: int, hidden_size: int, bias: bool, proj_size: int, cell: AnyCell
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one direction's parameters, in the order of ``nn.LSTM`` and of the operators."""
    rows = cell.gates * hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (rows, input_size),
        "weight_hh": (rows, proj_size or hidden_size),
    }
    if bias:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if proj_size:
        shapes |= {"weight_hr": (proj_size, hidden_size)}
    added = own_parameters(cell)
    for name in added:
        if base_name(name) != name:
            raise ValueError(
                f"cell={cell} has a parameter named {name}, which reads like one of a layer; give it a name "
                "that does not end with _l and a number"
            )
        if name in _RESERVED:
            raise ValueError(
                f"cell={cell} has a parameter named {name}, as the layer has; give it another name"
            )
    return shapes | {name: (size * hidden_size,) for name, size in added.items()}


_RESERVED = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def _sizes(cell: AnyCell) -> str:
    return f"{cell.gates} gates and {cell.states} state{'s' if cell.states > 1 else ''} besides h"
