"""The cell: what happens to the four gate pre-activations of one step, as an immutable value.

With a_k = W_ik x_t + b_ik + W_hk h_{t-1} + b_hk for the gates k = i, f, g, o (in this order in every weight):

    i = s_g(a_i)    f = s_g(a_f)    g = s_c(a_g)    o = s_g(a_o)
    c_t = f c_{t-1} + i g
    h_t = o s_h(c_t)        and with a projection  h_t = W_hr h_t

s_g, s_c and s_h are ``gate_activation``, ``cell_activation`` and ``output_activation``. The defaults,
sigmoid, tanh and tanh, are the cell of ``nn.LSTM`` (Hochreiter and Schmidhuber 1997, with the forget gate of
Gers et al. 2000).

The options change this as follows, in the order of the computation:

* ``peephole`` (Gers and Schmidhuber 2000): a_i += p_i c_{t-1} and a_f += p_f c_{t-1}, then, with the new cell
  state, a_o += p_o c_t. p_i, p_f and p_o have one value a unit: ``peephole_i``, ``peephole_f`` and
  ``peephole_o`` [hidden_size] in every layer and direction.
* ``gate_clip``: every a_k is clamped to +-gate_clip before its activation, after the peepholes (the ONNX LSTM
  operator's ``clip``).
* ``coupled_gates`` (Greff et al. 2017): f = 1 - i, whatever a_f is. The weights keep their rows for it, whose
  gradient is 0; there is no ``peephole_f`` then.
* ``cell_clip``: c_t is clamped to +-cell_clip (Sak et al. 2014), before the peephole of o and s_h.
* ``layer_norm`` (Ba et al. 2016) names places. "input" and "recurrent": the products W_i x_t and
  W_h h_{t-1} are normalised before they are added, each over the rows of all four gates together (of one
  sequence at one step). "cell": h_t = o s_h(LN(c_t)), over the units, while the state c_t itself stays as it
  is. Each place has a gain, which begins at 1, and a bias, which begins at 0, in every layer and direction:
  ``weight_ln_ih`` and ``bias_ln_ih``, ``weight_ln_hh`` and ``bias_ln_hh`` [4 * hidden_size], ``weight_ln_c``
  and ``bias_ln_c`` [hidden_size].

Where a clamp holds, its gradient is 0; on its bounds it is 1, as that of ``torch.clamp``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..activations import KINDS, PIECEWISE_LINEAR, Activation, ActivationSpec, PiecewiseLinear, activation
from ..piecewise import finite_number
from . import layer_norm as norms
from .pointwise import Pointwise

__all__ = ["NAME", "STANDARD", "Cell"]

_FIELDS = {"gate_activation": "sigmoid", "cell_activation": "tanh", "output_activation": "tanh"}
_OPTIONS = {"peephole": False, "coupled_gates": False, "gate_clip": None, "cell_clip": None, "layer_norm": ()}
_ENCODED_ALWAYS = 4  # options in cell_args wherever one is on; layer_norm follows where it is
NAME = "lstm"  # the registered name under which operators know this cell


@dataclass(frozen=True, init=False, repr=False)
class Cell:
    """The activations and options of an LSTM cell. Immutable, hashable, picklable.

    Args:
        gate_activation: s_g, applied to the input, forget and output gates.
        cell_activation: s_c, applied to the cell input g.
        output_activation: s_h, applied to the cell state on its way to h.
        peephole: whether the gates see the cell state; adds parameters, see :attr:`unit_parameters`.
        coupled_gates: whether the forget gate is 1 - i.
        gate_clip: clamps the pre-activations to +-gate_clip; None for no clamp.
        cell_clip: clamps the cell state to +-cell_clip; None for no clamp.
        layer_norm: where to normalise, any of "input", "recurrent" and "cell"; adds parameters, see
            :attr:`norm_parameters`. The attribute is a tuple in this order.

    The text at the top of this module has the equations. Each activation is a name (see
    :data:`customlstm.activations.KINDS`), ``(name, {"alpha": ..., "beta": ...})``, an ``Activation`` or a
    ``PiecewiseLinear``; the attributes hold ``Activation`` or ``PiecewiseLinear``.

    Raises:
        TypeError, ValueError: an activation that is not known, a clip that is no positive number, an
            option that is no bool, or a place that is not known, named by its argument.
    """

    gate_activation: Activation | PiecewiseLinear
    cell_activation: Activation | PiecewiseLinear
    output_activation: Activation | PiecewiseLinear
    peephole: bool
    coupled_gates: bool
    gate_clip: float | None
    cell_clip: float | None
    layer_norm: tuple[str, ...]

    gates: ClassVar[int] = 4
    states: ClassVar[int] = 1  # besides h
    initial: ClassVar[dict[str, float]] = norms.INITIAL  # parameters that do not begin with random numbers

    def __init__(
        self,
        gate_activation: ActivationSpec = "sigmoid",
        cell_activation: ActivationSpec = "tanh",
        output_activation: ActivationSpec = "tanh",
        *,
        peephole: bool = False,
        coupled_gates: bool = False,
        gate_clip: float | None = None,
        cell_clip: float | None = None,
        layer_norm: str | Iterable[str] = (),
    ) -> None:
        parts = (
            activation(gate_activation, "gate_activation"),
            activation(cell_activation, "cell_activation"),
            activation(output_activation, "output_activation"),
        )
        options = (
            _flag(peephole, "peephole"),
            _flag(coupled_gates, "coupled_gates"),
            _limit(gate_clip, "gate_clip"),
            _limit(cell_clip, "cell_clip"),
            norms.places(layer_norm),
        )
        for name, value in zip([*_FIELDS, *_OPTIONS], [*parts, *options], strict=True):
            object.__setattr__(self, name, value)
        arguments = [number for part in parts for number in part.encode()]
        if self.has_options:
            arguments += [float(option or 0.0) for option in options[:_ENCODED_ALWAYS]]
        if self.layer_norm:
            arguments.append(norms.encode_places(self.layer_norm))
        # Kept beside the fields: hashing 256 knots on every forward call costs more than the call's other
        # checks.
        object.__setattr__(self, "_arguments", tuple(arguments))

    @property
    def is_standard(self) -> bool:
        """Whether this is the cell of ``nn.LSTM``: sigmoid gates, tanh elsewhere."""
        return self == STANDARD

    def encode(self) -> tuple[str, list[float]]:
        """The ``cell`` and ``cell_args`` arguments of the operators.

        ``cell_args`` holds, for the gate, cell and output activation one after the other,
        ``[kind, alpha, beta, n, x_1..x_n, y_1..y_n]``; n is 0 except for a PiecewiseLinear. Where an option
        is on, ``[peephole, coupled_gates, gate_clip, cell_clip]`` follow, 0 for what is off, and where
        layer_norm is, the sum of 1 for "input", 2 for "recurrent" and 4 for "cell".
        """
        return NAME, list(self._arguments)  # type: ignore[attr-defined]

    @classmethod
    def decode(cls, cell: str, cell_args: Sequence[float]) -> Cell:
        """The Cell of which :meth:`encode` gave ``cell`` and ``cell_args``.

        Raises:
            ValueError: an unknown cell name, or arguments that no Cell encodes to.
        """
        return _decode(cell, tuple(cell_args))

    @property
    def has_options(self) -> bool:
        """Whether anything but the activations is changed."""
        return bool(self._options())

    @property
    def forget_gate(self) -> int | None:
        """Which gate ``forget_bias`` is for; none where the forget gate is 1 - i."""
        return None if self.coupled_gates else 1

    @property
    def unit_parameters(self) -> tuple[str, ...]:
        """Names of the parameters [hidden_size] that this cell adds to every layer and direction."""
        if not self.peephole:
            return ()
        gates = "io" if self.coupled_gates else "ifo"
        return tuple(f"peephole_{gate}" for gate in gates)

    @property
    def norm_parameters(self) -> dict[str, int]:
        """Names of the parameters of ``layer_norm``, with their sizes as multiples of hidden_size.

        Every layer and direction has them, after the :attr:`unit_parameters`.
        """
        return norms.norm_parameters(self.layer_norm)

    @property
    def saved(self) -> int:
        """Values a unit and step that the kernels keep for backward.

        The pre-activations, of a product that is normalised its own values, too; of two these are enough.
        """
        return 8 if {"input", "recurrent"}.intersection(self.layer_norm) else 4

    def bind(self, like: Tensor) -> tuple[Callable[[Tensor], Tensor], ...]:
        """(s_g, s_c, s_h), made ready for many calls on tensors of ``like``'s dtype and device."""
        return tuple(part.bind(like) for part in self._parts())

    def pointwise(self, like: Tensor) -> Pointwise:
        """The cell as a function of tensors: the equations at the top of this module, but for the projection.

        Its arguments are the pre-activations (a_i, a_f, a_g, a_o), a sequence of the cell state, and the
        parameters of :attr:`unit_parameters`, after which with layer normalisation of the cell state its gain
        and bias come; it returns h and a tuple of the new cell state. Made ready for many calls on tensors of
        ``like``'s dtype and device.
        """
        own = len(self.unit_parameters)
        s_g, s_c, s_h = self.bind(like)
        largest = torch.finfo(
            like.dtype
        ).max  # a clip that the dtype cannot hold would be an error, not a clip
        gate, limit = (
            None if clip is None else min(clip, largest) for clip in (self.gate_clip, self.cell_clip)
        )

        def clip(a: Tensor) -> Tensor:
            return a if gate is None else a.clamp(-gate, gate)

        def function(
            a: Sequence[Tensor], states: Sequence[Tensor], p: Sequence[Tensor]
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            a_i, a_f, a_g, a_o = a
            (c,) = states
            if self.peephole:
                a_i = a_i + p[0] * c
                a_f = a_f if self.coupled_gates else a_f + p[1] * c
            i = s_g(clip(a_i))
            f = 1.0 - i if self.coupled_gates else s_g(clip(a_f))
            c = f * c + i * s_c(clip(a_g))
            c = c if limit is None else c.clamp(-limit, limit)
            if self.peephole:
                a_o = a_o + p[own - 1] * c
            shown = norms.normalise(c, *p[own:]) if "cell" in self.layer_norm else c
            return s_g(clip(a_o)) * s_h(shown), (c,)

        return function

    def _parts(self) -> tuple[Activation | PiecewiseLinear, ...]:
        return self.gate_activation, self.cell_activation, self.output_activation

    def _options(self) -> dict[str, bool | float | tuple[str, ...]]:
        """The options that are on."""
        values = {name: getattr(self, name) for name in _OPTIONS}
        return {name: value for name, value in values.items() if value != _OPTIONS[name]}

    def __reduce__(self) -> tuple[Any, ...]:
        if self.has_options:  # the plain form is that of older pickles
            return (_with_options, (self._parts(), self._options()))
        return (Cell, self._parts())

    def _text(self, show: Callable[[object], str]) -> str:
        given = [
            (name, part.spec if isinstance(part, Activation) else part)
            for name, part in zip(_FIELDS, self._parts(), strict=True)
        ]
        shown = [f"{name}={show(spec)}" for name, spec in given if spec != _FIELDS[name]]
        return f"Cell({', '.join([*shown, *(f'{name}={value}' for name, value in self._options().items())])})"

    def __repr__(self) -> str:
        """What differs from the standard cell, as Python that makes this Cell again."""
        return self._text(repr)

    def __str__(self) -> str:
        """Like repr, but for a PiecewiseLinear the number and range of its knots only."""
        return self._text(lambda spec: str(spec) if isinstance(spec, PiecewiseLinear) else repr(spec))


def _flag(value: object, argument: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def _limit(value: object, argument: str) -> float | None:
    if value is None:
        return None
    limit = finite_number(value, argument)
    if limit <= 0:
        raise ValueError(
            f"{argument} clamps to [-{argument}, {argument}] and must be greater than 0, got {value!r}; "
            "None is for no clamp"
        )
    return limit


def _with_options(parts: Sequence[ActivationSpec], options: Mapping[str, Any]) -> Cell:
    """What pickles of a Cell with options call."""
    return Cell(*parts, **options)


STANDARD = Cell()

# So that torch.load reads a checkpoint that holds a cell. What it then calls are these constructors, which
# check what they are given.
torch.serialization.add_safe_globals([Cell, _with_options, Activation, PiecewiseLinear])


@lru_cache(maxsize=256)
def _decode(cell: str, cell_args: tuple[float, ...]) -> Cell:
    if cell != NAME:
        raise ValueError(f"unknown cell {cell!r}, expected {NAME!r}")
    names = {kind.id: name for name, kind in KINDS.items()}
    parts: list[ActivationSpec] = []
    position = 0
    for field in _FIELDS:
        header = cell_args[position : position + 4]
        count = int(header[3]) if len(header) == 4 else -1
        end = position + 4 + 2 * count
        if count < 0 or count != header[3] or end > len(cell_args):
            raise ValueError(
                f"cell_args ends within {field}: {len(cell_args)} numbers; expected "
                "[kind, alpha, beta, n, x_1..x_n, y_1..y_n] for each of " + ", ".join(_FIELDS)
            )
        kind, alpha, beta = header[:3]
        knots = cell_args[position + 4 : end]
        if kind == PIECEWISE_LINEAR:
            parts.append(PiecewiseLinear(knots[:count], knots[count:]))
        elif kind in names and count == 0:
            name = names[int(kind)]
            parts.append(Activation(name, *(alpha, beta)[: len(KINDS[name].defaults)]))
        else:
            raise ValueError(
                f"cell_args: {field} has kind {kind} with {count} knots; expected 0 to "
                f"{PIECEWISE_LINEAR - 1} without knots, or {PIECEWISE_LINEAR} with knots"
            )
        position = end
    options = cell_args[position:]
    if not options:
        return Cell(*parts)
    if len(options) not in (_ENCODED_ALWAYS, len(_OPTIONS)):
        raise ValueError(
            f"cell_args has {len(cell_args)} numbers, the three activations take {position}; expected none "
            f"or {_ENCODED_ALWAYS} more: {', '.join(list(_OPTIONS)[:_ENCODED_ALWAYS])}, or also layer_norm"
        )
    peephole, coupled_gates, gate_clip, cell_clip, *layer_norm = options
    for name, value in (("peephole", peephole), ("coupled_gates", coupled_gates)):
        if value not in (0, 1):
            raise ValueError(f"cell_args: {name} is {value}, expected 0 or 1")
    return Cell(
        *parts,
        peephole=bool(peephole),
        coupled_gates=bool(coupled_gates),
        gate_clip=gate_clip or None,
        cell_clip=cell_clip or None,
        layer_norm=norms.decode_places(layer_norm[0]) if layer_norm else (),
    )
