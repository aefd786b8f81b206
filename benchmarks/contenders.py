"""Who takes part: functions that build one contender of a setting from nothing.

They are found by name and need nothing else, so that a fresh process can build a contender too and measure
its memory (:mod:`benchmarks.memory`). All contenders of a setting get equal weights and equal inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import customlstm

from .grid import Setting
from .loop import PythonLoop, scripted

Run = Callable[[], Any]
Contenders = Mapping[str, Callable[[], Run]]  # name: builds it

OURS, THEIRS, LOOP, REFERENCE = "customlstm", "nn.LSTM", "TorchScript loop", "reference"
PYTHON_LOOP, EXACT = "Python loop", "float64"
CELLS = ("hard", "piecewise")
# Of the cell, then of the module; the clips hold for a few of the values.
OPTIONS: dict[str, dict[str, Any]] = {
    "peephole": {"peephole": True},
    "coupled gates": {"coupled_gates": True},
    "gate clip": {"gate_clip": 2.0},
    "cell clip": {"cell_clip": 1.0},
    "layer norm": {"layer_norm": ("input", "recurrent", "cell")},
    "all of the cell": {"peephole": True, "coupled_gates": True, "gate_clip": 2.0, "cell_clip": 1.0},
}
# Rows of products that are small by chance are divided by their deviation.
ILL_CONDITIONED = ("layer norm",)
MODULE_OPTIONS: dict[str, dict[str, Any]] = {
    "recurrent dropout": {"recurrent_dropout": 0.3},
    "weight dropout": {"weight_dropout": 0.3},
    "zoneout": {"zoneout": 0.1},
}


# Of customlstm.cells, by name: the cell of nn.LSTM as a user would write it, and one that nn.LSTM cannot be.
WRITTEN = ("standard", "slstm")


@lru_cache
def cell_of(name: str | None) -> customlstm.cells.AnyCell | None:
    """One of CELLS, OPTIONS or WRITTEN, or None for the plain one. Made when asked for: few need a fit."""
    if name is None:
        return None
    if name in OPTIONS:
        return customlstm.Cell(**OPTIONS[name])
    if name in WRITTEN:
        return getattr(customlstm.cells, name)
    if name == "hard":
        return customlstm.Cell("hard_sigmoid", "hard_tanh", "hard_tanh")
    tanh = customlstm.PiecewiseLinear.fit("tanh", knots=16)
    return customlstm.Cell(
        customlstm.PiecewiseLinear.fit("sigmoid", knots=16, bounds=(-7.0, 7.0)), tanh, tanh
    )


def inference(module: nn.Module, call: Callable[[], Tensor], *inputs: Tensor) -> Run:
    def run() -> Tensor:
        with torch.no_grad():
            return call()

    return run


def training_forward(module: nn.Module, call: Callable[[], Tensor], *inputs: Tensor) -> Run:
    """With what a backward would need, which is dropped."""

    def run() -> Tensor:
        return call().detach()

    return run


def training(module: nn.Module, call: Callable[[], Tensor], *inputs: Tensor) -> Run:
    """Forward and backward, down to every weight and input."""
    gradient = torch.randn_like(call())
    leaves = [*module.parameters(), *(x for x in inputs if x.is_leaf)]

    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        output = call()
        output.backward(gradient)
        return output.detach()

    return run


MODES = {mode.__name__: mode for mode in (inference, training, training_forward)}


def place(setting: Setting, device: str) -> dict[str, Any]:
    return {"device": device, "dtype": setting.torch_dtype}


def make_input(setting: Setting, mode: str, device: str) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(setting.steps, setting.batch, setting.features, **place(setting, device))
    return x.requires_grad_(mode != "inference")


def standard(setting: Setting, device: str) -> nn.LSTM:
    torch.manual_seed(0)
    shape = {"num_layers": setting.layers, "bidirectional": setting.bidirectional}
    return nn.LSTM(setting.features, setting.hidden, **shape, **place(setting, device))


def same_weights(setting: Setting, device: str, cell: str | None = None, **options: Any) -> customlstm.LSTM:
    """As :func:`standard`, with this one of CELLS or OPTIONS, whose own weights are the same each time."""
    options["cell"] = cell_of(cell)
    torch.manual_seed(3)
    shape = {"num_layers": setting.layers, "bidirectional": setting.bidirectional}
    module = customlstm.LSTM(setting.features, setting.hidden, **shape, **place(setting, device), **options)
    has_own = bool(customlstm.cells.own_parameters(module.cell))
    module.load_state_dict(standard(setting, device).state_dict(), strict=not has_own)
    return module


def whole(
    setting: Setting, mode: str, device: str, make: Callable[..., nn.Module], **options: Any
) -> Callable[[], Run]:
    """``make(setting, device, **options)``, given the whole sequence at once."""

    def build() -> Run:
        module, x = make(setting, device, **options), make_input(setting, mode, device)
        module.train(mode != "inference")
        return MODES[mode](module, lambda: module(x)[0], x)

    return build


def loop(setting: Setting, device: str, cell: str | None = None) -> nn.Module:
    return scripted(standard(setting, device), cell_of(cell))


def layer(setting: Setting, mode: str, device: str) -> dict[str, Callable[[], Run]]:
    """The plain cell; on a GPU the changed ones as well."""

    def add(name: str, make: Callable[..., nn.Module], **options: Any) -> None:
        found[name] = whole(setting, mode, device, make, **options)

    found: dict[str, Callable[[], Run]] = {}
    add(OURS, same_weights, backend="fused")
    add(THEIRS, standard)
    if setting.cells and device == "cuda":
        for name in CELLS:
            add(name, same_weights, backend="fused", cell=name)
    if setting.loop and device == "cpu":
        add(REFERENCE, same_weights, backend="reference")
    if setting.loop and setting.layers == 1 and not setting.bidirectional:
        add(LOOP, loop)
    return found


def cells(setting: Setting, mode: str, device: str) -> dict[str, Callable[[], Run]]:
    """Changed cells against the plain one, and each in TorchScript and in plain PyTorch."""
    found = {OURS: whole(setting, mode, device, same_weights, backend="fused")}
    for name in CELLS:
        found[name] = whole(setting, mode, device, same_weights, backend="fused", cell=name)
        if setting.loop:
            found[f"{name}, {LOOP}"] = whole(setting, mode, device, loop, cell=name)
            found[f"{name}, {REFERENCE}"] = whole(
                setting, mode, device, same_weights, backend="reference", cell=name
            )
    return found


def options(setting: Setting, mode: str, device: str) -> dict[str, Callable[[], Run]]:
    """Every option against the plain cell; in training masks are drawn anew at every call."""
    found = {OURS: whole(setting, mode, device, same_weights, backend="fused")}
    for name in OPTIONS:
        found[name] = whole(setting, mode, device, same_weights, backend="fused", cell=name)
    for name, arguments in MODULE_OPTIONS.items():
        found[name] = whole(setting, mode, device, same_weights, backend="fused", **arguments)
    return found


def in_float64(setting: Setting, mode: str, device: str, cell: str) -> Callable[[], Run]:
    """What this one of OPTIONS computes from the same weights and input, as exactly as plain PyTorch can."""

    def build() -> Run:
        module = same_weights(setting, device, cell=cell, backend="reference").double()
        x = make_input(setting, mode, device).double()
        return inference(module, lambda: module(x)[0])

    return build


def option_references(setting: Setting, mode: str, device: str) -> dict[str, Callable[[], Run]]:
    """The same cells in plain PyTorch, for comparison of the results; some in float64 as well."""
    found = {
        f"{name}, {REFERENCE}": whole(setting, mode, device, same_weights, backend="reference", cell=name)
        for name in OPTIONS
    }
    for name in ILL_CONDITIONED:
        found[f"{name}, {EXACT}"] = in_float64(setting, mode, device, name)
    return found


def python_loop(setting: Setting, device: str, cell: str) -> nn.Module:
    return PythonLoop(same_weights(setting, device, cell=cell, backend="reference"))


def written(setting: Setting, mode: str, device: str) -> dict[str, Callable[[], Run]]:
    """Cells that users write against the plain one, and those of several states against loops."""
    found = {OURS: whole(setting, mode, device, same_weights, backend="fused")}
    for name in WRITTEN:
        found[name] = whole(setting, mode, device, same_weights, backend="fused", cell=name)
    if setting.loop:
        name = WRITTEN[-1]
        found[f"{name}, {PYTHON_LOOP}"] = whole(setting, mode, device, python_loop, cell=name)
        found[f"{name}, {LOOP}"] = whole(setting, mode, device, loop, cell=name)
    return found


def random_lengths(setting: Setting) -> Tensor:
    """Uniform in 3/10 T to T, the first one T."""
    generator = torch.Generator().manual_seed(2)
    shortest = max(1, 3 * setting.steps // 10)
    lengths = torch.randint(shortest, setting.steps + 1, (setting.batch,), generator=generator)
    lengths[0] = setting.steps
    return lengths


def lengths(setting: Setting, mode: str, device: str) -> dict[str, Callable[[], Run]]:
    """Padded with and without ``lengths``, and packed; the packing itself is not timed."""

    def packed(make: Callable[..., nn.Module], **options: Any) -> Callable[[], Run]:
        def build() -> Run:
            module, x = make(setting, device, **options), make_input(setting, mode, device)
            sequence = pack_padded_sequence(x, random_lengths(setting), enforce_sorted=False)
            data = sequence.data.detach().requires_grad_(x.requires_grad)
            sequence = PackedSequence(data, *sequence[1:])
            return MODES[mode](module, lambda: module(sequence)[0].data, data)

        return build

    def ragged() -> Run:
        module = same_weights(setting, device, backend="fused")
        x, chosen = make_input(setting, mode, device), random_lengths(setting).to(device)
        return MODES[mode](module, lambda: module(x, lengths=chosen)[0], x)

    return {
        "padded": whole(setting, mode, device, same_weights, backend="fused"),
        "packed": packed(same_weights, backend="fused"),
        "lengths": ragged,
        "nn.LSTM, padded": whole(setting, mode, device, standard),
        "nn.LSTM, packed": packed(standard),
    }


@dataclass(frozen=True)
class Product:
    """Matrix products with so many operations."""

    operations: int
    run: Run


def operations(setting: Setting, mode: str) -> int:
    """Floating-point operations in the products of a layer: 8 T B H (I + H) forward, twice that backward."""
    directions = 2 if setting.bidirectional else 1
    total = 0
    for number in range(setting.layers):
        features = setting.features if number == 0 else directions * setting.hidden
        width = features + setting.hidden
        total += 8 * setting.steps * setting.batch * setting.hidden * width * directions
    return total * (3 if mode == "training" else 1)


BLOCK = 2048  # rows: the result stays in the cache and costs no fresh pages, on either side


def products(setting: Setting, mode: str, device: str) -> dict[str, Product]:
    """This machine's rate of matrix products, of the first layer's sizes: the bar that no LSTM gets over.

    "torch.mm": [T B, I + H] x [I + H, 4 H], in blocks of rows on a CPU, and in training the two products of
    the backward as well: as many operations as the layer's own. "oneDNN", which on a CPU may be faster than
    the library that torch.mm calls for float32: the first of these only.
    """
    rows, width, gates = setting.steps * setting.batch, setting.features + setting.hidden, 4 * setting.hidden
    rows = min(rows, BLOCK) if device == "cpu" else rows
    count = -(-setting.steps * setting.batch // rows)
    x = torch.randn(rows, width, **place(setting, device))
    w = torch.randn(gates, width, **place(setting, device))
    y, x_out, w_out = x.new_empty(rows, gates), torch.empty_like(x), torch.empty_like(w)
    one = 2 * rows * width * gates * count

    def mm() -> None:
        for _ in range(count):
            torch.mm(x, w.t(), out=y)
            if mode == "training":
                torch.mm(y, w, out=x_out)
                torch.mm(y.t(), x, out=w_out)

    found = {"torch.mm": Product(one * (3 if mode == "training" else 1), mm)}
    if device == "cpu" and setting.dtype == "float32" and torch.backends.mkldnn.is_available():
        x_onednn, w_onednn = x.to_mkldnn(), w.to_mkldnn()

        def linear() -> None:
            for _ in range(count):
                nn.functional.linear(x_onednn, w_onednn)

        found["oneDNN"] = Product(one, linear)
    return found
