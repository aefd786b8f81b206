"""Named options and activations against the LSTM operator of ONNX, as onnxruntime computes it, in float32."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_near
from torch import Tensor

import customlstm
from customlstm import Cell

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

# ours: the name there, and its alpha and beta, which are always written out: ONNX's defaults are others.
# ScaledTanh and Affine are left out where onnxruntime has no kernel for LSTM.
ACTIVATIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "sigmoid": ("Sigmoid", ()),
    "tanh": ("Tanh", ()),
    "relu": ("Relu", ()),
    "affine": ("Affine", (0.5, 0.25)),
    "leaky_relu": ("LeakyRelu", (0.125,)),
    "thresholded_relu": ("ThresholdedRelu", (0.125,)),
    "scaled_tanh": ("ScaledTanh", (0.75, 0.5)),
    "hard_sigmoid": ("HardSigmoid", (0.25, 0.5)),
    "elu": ("Elu", (0.75,)),
    "softsign": ("Softsign", ()),
    "softplus": ("Softplus", ()),
}


def onnx_order(weight: Tensor) -> Tensor:
    """Rows i, f, g, o as ONNX has them: i, o, f, c."""
    i, f, g, o = weight.detach().chunk(4)
    return torch.cat([i, o, f, g])


def of_directions(lstm: customlstm.LSTM, *names: str) -> list[np.ndarray]:
    """W, R, B or P: of both directions, one after the other."""
    suffixes = ["_l0", "_l0_reverse"] if lstm.bidirectional else ["_l0"]
    return [torch.cat([onnx_order(getattr(lstm, n + s)) for n in names]).numpy() for s in suffixes]


def peepholes(lstm: customlstm.LSTM) -> np.ndarray:
    parts = []
    for suffix in ["_l0", "_l0_reverse"] if lstm.bidirectional else ["_l0"]:
        zero = torch.zeros(lstm.hidden_size)
        order = [getattr(lstm, f"peephole_{gate}{suffix}", zero).detach() for gate in "iof"]
        parts.append(torch.cat(order).numpy())
    return np.stack(parts)


def run_onnx(lstm: customlstm.LSTM, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor) -> list[Tensor]:
    """Y as [T, B, D*H], Y_h and Y_c of an ONNX LSTM node with the module's weights and options."""
    cell, directions = lstm.cell, 2 if lstm.bidirectional else 1
    attributes: dict[str, Any] = {
        "hidden_size": lstm.hidden_size,
        "direction": "bidirectional" if lstm.bidirectional else "forward",
        "input_forget": int(cell.coupled_gates),
    }
    roles = [cell.gate_activation, cell.cell_activation, cell.output_activation]
    attributes["activations"] = [ACTIVATIONS[role.name][0] for role in roles] * directions
    for index, name in enumerate(("activation_alpha", "activation_beta")):
        values = [role.coefficients[index] for role in roles if len(ACTIVATIONS[role.name][1]) > index]
        if values:
            attributes[name] = values * directions
    if cell.gate_clip is not None:
        attributes["clip"] = cell.gate_clip
    inputs = {
        "X": x.numpy(),
        "W": np.stack(of_directions(lstm, "weight_ih")),
        "R": np.stack(of_directions(lstm, "weight_hh")),
        "B": np.stack(of_directions(lstm, "bias_ih", "bias_hh")),
        "sequence_lens": lengths.to(torch.int32).numpy(),
        "initial_h": h.numpy(),
        "initial_c": c.numpy(),
    }
    if cell.peephole:
        inputs["P"] = peepholes(lstm)
    node = onnx.helper.make_node("LSTM", list(inputs), ["Y", "Y_h", "Y_c"], **attributes)
    of = onnx.helper.np_dtype_to_tensor_dtype
    graph = onnx.helper.make_graph(
        [node],
        "lstm",
        [onnx.helper.make_tensor_value_info(k, of(v.dtype), v.shape) for k, v in inputs.items()],
        [
            onnx.helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, [None] * rank)
            for k, rank in (("Y", 4), ("Y_h", 3), ("Y_c", 3))
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    y, y_h, y_c = (torch.from_numpy(value) for value in session.run(None, inputs))
    return [y.permute(0, 2, 1, 3).flatten(2), y_h, y_c]


def compare(cell: Cell, seed: int, bidirectional: bool, backend: str) -> None:
    torch.manual_seed(seed)
    lstm = customlstm.LSTM(5, 7, cell=cell, bidirectional=bidirectional, backend=backend)
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.mul_(2.0)
    directions = 2 if bidirectional else 1
    x, (h, c) = torch.randn(6, 3, 5), torch.randn(2, directions, 3, 7)
    lengths = torch.tensor([6, 2, 4])
    with torch.no_grad():
        output, states = lstm(x, (h, c), lengths=lengths)
    expected = run_onnx(lstm, x, h, c, lengths)
    # Gates without bounds let the states grow; then the bound is relative.
    for actual, y, name in zip([output, *states], expected, ["output", "h_n", "c_n"], strict=True):
        assert_near(actual, y, name, 1e-5 * max(1.0, float(y.abs().max())))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize(
    "cell",
    [
        Cell(),
        Cell(peephole=True),
        Cell(coupled_gates=True),
        Cell(gate_clip=0.5),
        Cell(peephole=True, coupled_gates=True),
        Cell(peephole=True, gate_clip=0.75),
        Cell(peephole=True, coupled_gates=True, gate_clip=0.75),
    ],
    ids=str,
)
def test_options(cell: Cell, bidirectional: bool, backend: str) -> None:
    for seed in range(3):
        compare(cell, seed, bidirectional, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, backend: str) -> None:
    _, coefficients = ACTIVATIONS[name]
    spec = (name, dict(zip(("alpha", "beta"), coefficients, strict=False)))
    for role in ("gate", "cell", "output"):
        compare(Cell(**{f"{role}_activation": spec}), 0, True, backend)


@pytest.mark.parametrize("seed", range(30))
def test_random_combinations(seed: int) -> None:
    draw = random.Random(seed)
    # Gates that are not bounded let the states grow, and every rounding with them.
    gate = draw.choice(["sigmoid", "hard_sigmoid", "tanh", "softsign"])
    specs = []
    for name in (gate, draw.choice(list(ACTIVATIONS)), draw.choice(list(ACTIVATIONS))):
        coefficients = dict(zip(("alpha", "beta"), ACTIVATIONS[name][1], strict=False))
        specs.append((name, coefficients))
    cell = Cell(
        *specs,
        peephole=draw.random() < 0.6,
        coupled_gates=draw.random() < 0.5,
        gate_clip=draw.choice([None, 0.4, 1.5]),
    )
    compare(cell, seed, draw.random() < 0.5, draw.choice(BACKENDS))
