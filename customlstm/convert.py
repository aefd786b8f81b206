"""Converters between the hand-written LSTM, that of ``torch.nn`` and that of this package, all ways.

``torch.nn`` and this package name and shape parameters alike, so a ``state_dict`` of one loads into the other
as it is. The hand-written form (:mod:`customlstm.compat`) keeps every gate apart and has one bias a gate::

    lay0.weight_ix (H, I)  lay0.weight_fx  lay0.weight_cx  lay0.weight_ox  ->  weight_ih_l0 (4H, I)
    lay0.weight_ih (H, H)  lay0.weight_fh  lay0.weight_ch  lay0.weight_oh  ->  weight_hh_l0 (4H, H)
    lay0.bias_i (H)        lay0.bias_f     lay0.bias_c     lay0.bias_o     ->  bias_ih_l0 (4H)
    0                                                                      ->  bias_hh_l0 (4H)

(a single cell without ``lay0.`` and ``_l0``). The way back adds the two biases, which rounds once. Everything
is copied: no result shares memory with what was given, except entries of a checkpoint outside the prefix.
Dtype and device stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import compat, modules
from .cells import AnyCell, Cell, as_cell, own_parameters
from .recurrent import base_name

__all__ = ["to_compat", "to_customlstm", "to_torch", "torch_to_tutorial", "tutorial_to_torch"]

_TUTORIAL_KEY = re.compile(r"(?:lay(?P<layer>0|[1-9]\d*)\.)?(?P<name>weight_[ifco][xh]|bias_[ifco])")
_TORCH_KEY = re.compile(r"(?P<name>(?:weight|bias)_(?:ih|hh))(?:_l(?P<layer>0|[1-9]\d*))?")
_TUTORIAL_NAMES = compat.PARAMETER_NAMES
_TORCH_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def tutorial_to_torch(state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A checkpoint of the hand-written form as one of ``nn.LSTM``, ``nn.LSTMCell``, or this package's.

    Args:
        state_dict: of a hand-written LSTM (``lay0.weight_ix``, ...) or of its LSTMCell (``weight_ix``, ...).
        prefix: for a checkpoint of a whole model, where the LSTM is in it, with the dot (``"encoder."``).
            What is not under the prefix comes back as it is.

    Returns:
        A new dict; the converted entries stand where the first of those they come from stood.

    Raises:
        ValueError: under ``prefix`` a key is missing or unexpected, or a tensor has another shape or dtype
            than its neighbours say; the text names the key.
    """
    layers, rest = _layers(state_dict, prefix, _TUTORIAL_KEY, _TUTORIAL_NAMES, "the hand-written LSTM")
    converted: dict[str, Tensor] = {}
    width: int | None = None  # of this layer's input
    for layer, found in layers.items():
        place = prefix if layer is None else f"{prefix}lay{layer}."
        _complete(found, place, "", _TUTORIAL_NAMES)
        hidden = found["bias_i"].numel()
        width = _columns(found["weight_ix"]) if width is None else width
        for name, tensor in found.items():
            expected = (
                (hidden,) if name.startswith("bias") else (hidden, width if name[-1] == "x" else hidden)
            )
            _check(place + name, tensor, expected, found["bias_i"])
        suffix = "" if layer is None else f"_l{layer}"
        for name, parts in compat.LAYOUT.items():
            converted[f"{prefix}{name}{suffix}"] = torch.cat([found[part] for part in parts])
        bias = converted[f"{prefix}bias_ih{suffix}"]
        converted[f"{prefix}bias_hh{suffix}"] = torch.zeros_like(bias)
        width = hidden
    return _merged(rest, converted)


def torch_to_tutorial(state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A checkpoint of ``nn.LSTM``, ``nn.LSTMCell``, or this package's as one of the hand-written form.

    The two biases are added; without biases (``bias=False``) the result has zeros.

    Args:
        state_dict: of the LSTM or cell, or of a model that has it under ``prefix``.
        prefix: as in :func:`tutorial_to_torch`.

    Raises:
        ValueError: what the hand-written form has no place for (a reverse direction, a projection), or a
            missing or unexpected key, or a tensor of another shape or dtype than its neighbours say; the text
            names the key.
    """
    layers, rest = _layers(
        state_dict, prefix, _TORCH_KEY, _TORCH_NAMES, "a one-directional LSTM without projection"
    )
    converted: dict[str, Tensor] = {}
    width: int | None = None
    for layer, found in layers.items():
        suffix = "" if layer is None else f"_l{layer}"
        if "bias_ih" in found or "bias_hh" in found:
            _complete(found, prefix, suffix, _TORCH_NAMES)
        else:
            _complete(found, prefix, suffix, _TORCH_NAMES[:2])
            rows = found["weight_hh"].new_zeros(found["weight_hh"].size(0))
            found = {**found, "bias_ih": rows, "bias_hh": rows}
        hidden = _columns(found["weight_hh"])
        width = _columns(found["weight_ih"]) if width is None else width
        for name, columns in zip(_TORCH_NAMES, ((width,), (hidden,), (), ()), strict=True):
            _check(f"{prefix}{name}{suffix}", found[name], (4 * hidden, *columns), found["weight_hh"])
        joined = {
            "weight_ih": found["weight_ih"],
            "weight_hh": found["weight_hh"],
            "bias_ih": found["bias_ih"] + found["bias_hh"],
        }
        parts = {
            part: rows
            for name, names in compat.LAYOUT.items()
            for part, rows in zip(names, joined[name].chunk(4), strict=True)
        }
        place = prefix if layer is None else f"{prefix}lay{layer}."
        for name in _TUTORIAL_NAMES:
            converted[place + name] = parts[name].clone()  # a slice would keep, and save, the whole
        width = hidden
    return _merged(rest, converted)


def _layers(
    state_dict: Mapping[str, Tensor], prefix: str, pattern: re.Pattern[str], names: tuple[str, ...], form: str
) -> tuple[dict[int | None, dict[str, Tensor]], dict[str, Tensor | None]]:
    """The tensors under prefix by layer (None for a single cell) and name, and the entries elsewhere in their
    order, with one None for where the others stood."""
    if prefix and not prefix.endswith("."):
        raise ValueError(f"prefix must end with a dot, got {prefix!r}; write {prefix + '.'!r}")
    layers: dict[int | None, dict[str, Tensor]] = {}
    rest: dict[str, Tensor | None] = {}
    unexpected = []
    for key, tensor in state_dict.items():
        if not key.startswith(prefix):
            rest[key] = tensor
            continue
        rest.setdefault("", None)
        match = pattern.fullmatch(key[len(prefix) :])
        if match is None:
            unexpected.append(key)
        else:
            layer = match["layer"]
            layers.setdefault(None if layer is None else int(layer), {})[match["name"]] = tensor.detach()
    if unexpected:
        reason = ""
        if any(key.endswith("_reverse") for key in unexpected):
            reason = "; the hand-written LSTM has no reverse direction"
        elif any("weight_hr" in key for key in unexpected):
            reason = "; the hand-written LSTM has no projection"
        elif not prefix:
            reason = "; give prefix= if this is the checkpoint of a larger model"
        raise ValueError(f"state_dict has keys that are not those of {form}: {', '.join(unexpected)}{reason}")
    if not layers:
        raise ValueError(
            f"state_dict has no keys under prefix {prefix!r}; expected those of {form}: "
            f"{', '.join(names)}; it has {', '.join(list(state_dict)[:8]) or 'none'}"
        )
    numbers = sorted(-1 if layer is None else layer for layer in layers)
    if numbers not in ([-1], list(range(len(numbers)))):
        have = ["a cell without a layer number" if number < 0 else f"layer {number}" for number in numbers]
        raise ValueError(
            f"state_dict must have either one cell or layers 0 to {len(numbers) - 1}, it has "
            f"{', '.join(have)}"
        )
    return {layer: layers[layer] for layer in sorted(layers, key=lambda layer: layer or 0)}, rest


def _columns(weight: Tensor) -> int:
    return weight.size(-1) if weight.dim() else 0


def _complete(found: Mapping[str, Tensor], before: str, after: str, names: tuple[str, ...]) -> None:
    missing = [f"{before}{name}{after}" for name in names if name not in found]
    if missing:
        raise ValueError(f"state_dict lacks {', '.join(missing)}")


def _check(key: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{key} has shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{key} is {tensor.dtype} on {tensor.device}, its neighbours are {like.dtype} on "
            f"{like.device}; convert them to one dtype and device first"
        )


def _merged(rest: Mapping[str, Tensor | None], converted: dict[str, Tensor]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for key, tensor in rest.items():
        if tensor is None:
            merged.update(converted)
        else:
            merged[key] = tensor
    return merged


def to_torch(module: nn.Module) -> nn.LSTM | nn.LSTMCell:
    """``module`` as the ``nn.LSTM`` or ``nn.LSTMCell`` that computes the same.

    Args:
        module: a ``customlstm.LSTM`` or ``LSTMCell``, or one of :mod:`customlstm.compat` (which becomes an
            ``nn.LSTM`` with ``batch_first=True``), with the standard cell; ``nn.LSTM`` and ``nn.LSTMCell``
            are copied.

    Returns:
        A new module with copied weights, in the same mode (training or not), with the same ``requires_grad``
        (for the hand-written form: where any of the parts has it).

    Raises:
        TypeError: another kind of module.
        ValueError: a cell that is not the standard one, recurrent or weight dropout, zoneout, or a projecting
            ``LSTMCell``: ``torch.nn`` has none of them.
    """
    _supported(module)
    _without_dropouts(module, "torch.nn")
    cell = getattr(module, "cell", None)
    if cell is not None and not cell.is_standard:
        raise ValueError(f"module has cell {cell}; torch.nn has only the standard one, Cell()")
    if _is_cell(module):
        if getattr(module, "proj_size", 0):
            raise ValueError(f"module has proj_size={module.proj_size}; nn.LSTMCell has no projection")
        return _filled(nn.LSTMCell(module.input_size, module.hidden_size, **_cell_arguments(module)), module)
    return _filled(nn.LSTM(**_arguments(module)), module)


def to_customlstm(
    module: nn.Module, *, cell: AnyCell | None = None, backend: str = "auto"
) -> modules.LSTM | modules.LSTMCell:
    """``module`` as a ``customlstm.LSTM`` or ``LSTMCell`` with the same weights.

    Args:
        module: an ``nn.LSTM``, ``nn.LSTMCell``, or one of :mod:`customlstm.compat` or of this package.
        cell: of the result; that of ``module`` if None. Parameters that only this cell has, such as peephole
            weights, begin at 0, where they change nothing, gains of layer norm at 1, or where a cell of one's
            own says.
        backend: of the result.

    Returns:
        A new module with copied weights, mode and ``requires_grad``, as in :func:`to_torch`. The hand-written
        form becomes one with ``batch_first=True``.

    Raises:
        TypeError: another kind of module.
        ValueError: ``cell`` has no place for parameters of the module's own cell, another number of gates, or
            gates of the same names in another order.
    """
    _supported(module)
    if cell is not None:
        cell, own = as_cell(cell), getattr(module, "cell", Cell())
        if cell.gates != own.gates:
            raise ValueError(
                f"cell={cell} has {cell.gates} gates, the weights of module are for {own.gates}; make a new "
                "module with this cell"
            )
        here, there = (getattr(each, "gate_names", _GATES) for each in (own, cell))
        if sorted(here) == sorted(there) and here != there:
            raise ValueError(
                f"cell={cell} has its gates in the order {', '.join(there)}, the weights of module have them "
                f"in the order {', '.join(here)}; write the cell's arguments in that order"
            )
        lost = set(own_parameters(own)) - set(own_parameters(cell))
        if lost:
            raise ValueError(
                f"module has cell {module.cell} with the parameters {', '.join(sorted(lost))}, for which "
                f"cell={cell} has no place; leave cell out, or take one with the same parameters"
            )
    options: dict[str, Any] = {
        "cell": getattr(module, "cell", None) if cell is None else cell,
        "backend": backend,
    }
    if _is_cell(module):
        options["proj_size"] = getattr(module, "proj_size", 0)
        return _filled(
            modules.LSTMCell(module.input_size, module.hidden_size, **_cell_arguments(module), **options),
            module,
        )
    options |= {name: getattr(module, name, 0.0) for name in _DROPOUTS}
    return _filled(modules.LSTM(**_arguments(module), **options), module)


def to_compat(module: nn.Module, *, sequences: bool = True) -> compat.LSTM | compat.LSTMCell:
    """``module`` in the hand-written form, :class:`compat.LSTM` or :class:`compat.LSTMCell`.

    The result takes batch-first input whatever ``module`` took, and has its cell.

    Args:
        module: an ``nn.LSTM``, ``nn.LSTMCell``, or one of this package.
        sequences: as in :class:`compat.LSTM`.

    Raises:
        TypeError: another kind of module.
        ValueError: what the hand-written form has not: a second direction, a projection, dropout of any kind,
            zoneout, a cell with parameters of its own.
    """
    _supported(module)
    if getattr(module, "bidirectional", False):
        raise ValueError("module is bidirectional=True; the hand-written LSTM has one direction")
    if getattr(module, "proj_size", 0):
        raise ValueError(f"module has proj_size={module.proj_size}; the hand-written LSTM has no projection")
    if getattr(module, "dropout", 0) and module.num_layers > 1:
        raise ValueError(
            f"module has dropout={module.dropout} between layers; the hand-written LSTM has none: set "
            "module.dropout = 0 first"
        )
    _without_dropouts(module, "the hand-written LSTM")
    weight = next(module.parameters())
    options: dict[str, Any] = {
        "cell": getattr(module, "cell", None),
        "device": weight.device,
        "dtype": weight.dtype,
    }
    if _is_cell(module):
        return _filled(compat.LSTMCell(module.input_size, module.hidden_size, **options), module)
    return _filled(
        compat.LSTM(module.input_size, module.hidden_size, module.num_layers, sequences, **options), module
    )


_LSTMS = (nn.LSTM, modules.LSTM, compat.LSTM)
_CELLS = (nn.LSTMCell, modules.LSTMCell, compat.LSTMCell)
_COMPAT = (compat.LSTM, compat.LSTMCell)


def _supported(module: object) -> None:
    if not isinstance(module, (*_LSTMS, *_CELLS)):
        raise TypeError(
            "module must be an LSTM or LSTMCell of torch.nn, customlstm or customlstm.compat, got "
            f"{type(module).__module__}.{type(module).__qualname__}"
        )


_GATES = ("i", "f", "g", "o")
_DROPOUTS = ("recurrent_dropout", "weight_dropout", "zoneout")


def _without_dropouts(module: nn.Module, where: str) -> None:
    for name in _DROPOUTS:
        rate = getattr(module, name, 0.0)
        if rate not in (0, (0, 0)):
            raise ValueError(f"module has {name}={rate}, which {where} has not; set module.{name} = 0 first")


def _is_cell(module: nn.Module) -> bool:
    return isinstance(module, _CELLS)


def _cell_arguments(module: nn.Module) -> dict[str, Any]:
    weight = next(module.parameters())
    return {"bias": bool(getattr(module, "bias", True)), "device": weight.device, "dtype": weight.dtype}


def _arguments(module: Any) -> dict[str, Any]:
    """Keyword arguments of nn.LSTM and modules.LSTM alike."""
    arguments = {
        "input_size": module.input_size,
        "hidden_size": module.hidden_size,
        **_cell_arguments(module),
    }
    if isinstance(module, compat.LSTM):
        return {**arguments, "num_layers": module.num_layers, "batch_first": True}
    return {
        **arguments,
        **{
            name: getattr(module, name)
            for name in ("num_layers", "batch_first", "dropout", "bidirectional", "proj_size")
        },
    }


def _added(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of its cell, which ``torch.nn`` has not."""
    names = own_parameters(getattr(module, "cell", Cell()))
    return {name: value for name, value in module.named_parameters() if base_name(name) in names}


def _filled(target: Any, source: nn.Module) -> Any:
    """target with the weights, requires_grad and mode of source."""
    values: Mapping[str, Tensor] = dict(source.named_parameters())
    trained: Mapping[str, Tensor] = {
        name: torch.full(value.shape, int(value.requires_grad), dtype=torch.uint8)
        for name, value in values.items()
    }
    if isinstance(source, _COMPAT) != isinstance(target, _COMPAT):
        convert = torch_to_tutorial if isinstance(target, _COMPAT) else tutorial_to_torch
        values, trained = convert(values), convert(trained)
    added = {
        name: torch.full_like(value, target.cell.initial.get(base_name(name), 0.0))
        for name, value in _added(target).items()
        if name not in values
    }
    target.load_state_dict({**values, **added})
    trained = {**trained, **{name: torch.ones(1) for name in added}}
    for name, parameter in target.named_parameters():
        # the one bias a gate of the hand-written form becomes two, trained alike
        origin = name.replace("bias_hh", "bias_ih") if isinstance(source, _COMPAT) else name
        parameter.requires_grad_(bool(trained[origin].any()))
    return target.train(source.training)
