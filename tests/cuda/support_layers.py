"""Random layers, their tilings, and the comparison of the recurrences with the float64 reference."""

import random

import torch
from support_host_kernels import DEPTHS, DTYPES, HostKernels, Layer, Tiling, tile
from torch import Tensor

from customlstm import Cell, PiecewiseLinear, reference
from customlstm.cells import AnyCell, own_parameters

CELLS = [
    Cell(),
    Cell(),
    Cell("hard_sigmoid", PiecewiseLinear.fit("tanh", knots=5), "hard_tanh"),
    Cell("softsign", "elu", "leaky_relu"),
    Cell(PiecewiseLinear([-2.0, 0.5, 3.0], [0.0, 0.75, 1.0]), "softplus", "identity"),
    Cell(peephole=True),
    Cell("hard_sigmoid", peephole=True, coupled_gates=True, gate_clip=1.0),
    Cell(gate_clip=0.5, cell_clip=0.3),
    Cell("sigmoid", "softsign", peephole=True, gate_clip=1.5, cell_clip=0.4),
]
# For the arithmetic that rounds: where an activation has a kink, a rounding more or less may change the
# derivative.
SMOOTH_CELLS = [
    Cell(),
    Cell(),
    Cell("softsign", "softplus", "scaled_tanh"),
    Cell("sigmoid", PiecewiseLinear.fit("tanh", knots=128), "elu"),
    Cell(peephole=True),
    Cell("sigmoid", "softsign", peephole=True, coupled_gates=True),
]
NORMALISED_CELLS = [
    Cell(layer_norm=("input", "recurrent", "cell")),
    Cell(layer_norm=("input", "recurrent")),
    Cell("softsign", "softplus", "scaled_tanh", layer_norm=("recurrent", "cell")),
    Cell(peephole=True, layer_norm="input"),
    Cell("sigmoid", PiecewiseLinear.fit("tanh", knots=128), "elu", layer_norm="recurrent"),
    Cell(layer_norm="cell"),
    Cell("sigmoid", "softsign", peephole=True, coupled_gates=True, layer_norm=("input", "cell")),
    Cell(peephole=True, coupled_gates=True, layer_norm=("input", "recurrent", "cell")),
]
NORMALISED_KINKED_CELLS = [
    *NORMALISED_CELLS,
    Cell("hard_sigmoid", peephole=True, gate_clip=1.5, cell_clip=0.4, layer_norm=("input", "cell")),
    Cell(gate_clip=0.5, cell_clip=0.3, layer_norm=("recurrent", "cell")),
]
# Largest error of a value of size 1: the rounding of the operands, times some growth over the few steps.
TOLERANCES = {"fma64": 1e-12, "fma32": 5e-6, "tf32": 6e-3, "f16": 6e-3, "bf16": 5e-2}


LARGER = 10  # one seed of so many draws a layer of several blocks, chunks of columns and turns of the operand


def draw_layer(
    seed: int,
    math: str,
    cell: AnyCell | None = None,
    sizes: tuple[int, int, int] | None = None,
    normalised: bool = False,
) -> Layer:
    """A layer of this cell and these steps, batch and hidden size, or of such as are drawn, too.

    Where it is drawn, the cell has layer norm if ``normalised``, and else has none.
    """
    draw, dtype = random.Random(seed), DTYPES[math]
    generator = torch.Generator().manual_seed(seed)
    steps, batch = draw.choice([1, 2, 3, 4]), draw.choice([1, 2, 3, 7, 9, 17])
    inputs, hidden = draw.choice([1, 3, 6]), draw.choice([1, 4, 7, 12, 17, 33])
    if normalised:  # with one feature, the norm of W_ih x and so the gradient of x is what roundings leave
        inputs = max(inputs, 3)
    if seed % LARGER == 0:
        steps, batch, hidden = draw.choice([(7, 9, 33), (3, 41, 33), (7, 41, 17), (7, 9, 61)])
        if normalised:  # rows of several warps, and of more units than a block has threads
            steps, batch, hidden = draw.choice([(3, 9, 100), (2, 2, 300)])
    steps, batch, hidden = sizes or (steps, batch, hidden)
    state = draw.choice([hidden, hidden, draw.randint(1, 2 * hidden)])
    projection = state != hidden
    bias, bidirectional = draw.random() < 0.7, draw.random() < 0.5
    directions = 2 if bidirectional else 1

    def uniform(*shape: int, scale: float = 1.0) -> Tensor:
        return ((torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * scale).to(dtype)

    if normalised:
        drawn = draw.choice(NORMALISED_KINKED_CELLS if math == "fma64" else NORMALISED_CELLS)
    else:
        drawn = draw.choice(CELLS if math.startswith("fma") else SMOOTH_CELLS)
    cell = drawn if cell is None else cell
    gate_rows = cell.gates * hidden
    weights: list[Tensor] = []
    for _ in range(directions):
        weights += [uniform(gate_rows, inputs), uniform(gate_rows, state, scale=hidden**-0.5)]
        weights += [uniform(gate_rows), uniform(gate_rows)] if bias else []
        weights += [uniform(state, hidden, scale=hidden**-0.5)] if projection else []
        weights += [uniform(size * hidden) for size in own_parameters(cell).values()]
    kind = draw.choice(["full", "lengths", "packed"])
    lengths = batch_sizes = None
    x = uniform(steps, batch, inputs)
    if kind == "lengths":
        lengths = torch.tensor([draw.randint(0, steps) for _ in range(batch)])
    elif kind == "packed":
        own = sorted((draw.randint(1, steps) for _ in range(batch)), reverse=True)
        steps = own[0]
        batch_sizes = torch.tensor([sum(n > t for n in own) for t in range(steps)])
        x = uniform(sum(own), inputs)
    h_0 = c_0 = None
    if kind == "packed" or draw.random() < 0.6:
        h_0, c_0 = uniform(directions, batch, state), uniform(directions, batch, cell.states * hidden)
    resets = None
    if draw.random() < 0.4:
        resets = torch.rand(steps, batch, generator=generator) < 0.3
    mask = None
    if draw.random() < 0.4:
        mask = torch.rand(directions, batch, state, generator=generator) < 0.7
    zoneout, rates = [None, None], [0.0, 0.0]
    for k, size in enumerate((state, hidden)):
        how = draw.choice(["none", "none", "mask", "rate"])
        if how == "mask":
            zoneout[k] = torch.rand(*x.shape[:-1], directions * size, generator=generator) < 0.3
        elif how == "rate":
            rates[k] = draw.choice([0.25, 0.5])
    return Layer(
        x, weights, cell, bias, projection, bidirectional, h_0, c_0, lengths, batch_sizes, resets, mask, 1.25,
        (zoneout[0], zoneout[1]), (rates[0], rates[1]),
    )  # fmt: skip


def draw_tilings(seed: int, layer: Layer, variant: str, math: str) -> tuple[Tiling, Tiling]:
    """For forward and backward: of what a plan may choose, 8 to 24 units forward and 16 to 48 backward."""
    draw = random.Random(1000 + seed)
    batch, hidden, state = layer.sizes[1], layer.sizes[3], layer.sizes[4]
    least = DEPTHS[math] if variant == "cluster" else 8
    column_tiles = [1] if math == "fma64" else [1, 4]
    forward, backward = (
        tile(
            variant, hidden, state, batch, max(least, smallest) * draw.choice([1, 2, 3]),
            draw.choice(column_tiles), draw.choice([1, 2, 4, 8]), draw.choice([1, 2]),
        )
        for smallest in (8, 16)
    )  # fmt: skip
    return forward, backward


def specification(
    layer: Layer, save_states: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Results, gradients handed in (random) and gradients that must come out, in float64."""
    wide = layer.to(torch.float64)
    leaves = {"input": wide.input, **{f"w{k}": w for k, w in enumerate(wide.weights)}}
    if wide.h_0 is not None:
        leaves |= {"h_0": wide.h_0, "c_0": wide.c_0}
    for leaf in leaves.values():
        leaf.requires_grad_()
    results = reference.layer(
        wide.input, wide.h_0, wide.c_0, wide.weights, wide.batch_sizes, wide.lengths, wide.resets,
        wide.recurrent_mask, wide.cell, wide.bias, wide.projection, wide.bidirectional, wide.recurrent_scale,
        wide.zoneout, wide.zoneout_rates,
    )  # fmt: skip
    named = dict(zip(("output", "h_n", "c_n", "c_all"), results, strict=True))
    generator = torch.Generator().manual_seed(layer.sizes[2])
    grads = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(layer.input.dtype)
        for name, value in named.items()
        if name != "c_all" or save_states
    }
    loss = sum((named[name] * grad.double()).sum() for name, grad in grads.items())
    expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    return {name: value.detach() for name, value in named.items()}, grads, expected


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.numel() == expected.numel(), name
    actual, expected = actual.reshape(expected.shape).double(), expected.detach()
    assert not actual.isnan().any(), f"{name} was not written everywhere"
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    error = float((actual - expected).abs().max()) if expected.numel() else 0.0
    assert error <= tolerance * scale, f"{name}: error {error:.2e} of {scale:.2e}"


def compare(
    kernels: HostKernels, seed: int, variant: str, math: str, normalised: bool = False
) -> dict[str, Tensor]:
    layer = draw_layer(seed, math, normalised=normalised)
    forward, backward = draw_tilings(seed, layer, variant, math)
    save_states = seed % 3 == 0
    expected, grads, expected_grads = specification(layer, save_states)
    saved = kernels.forward(layer, math, forward, seed)
    tolerance = TOLERANCES[math]
    for name, value in expected.items():
        assert_close(name, saved[name], value, tolerance)
    handed = {"c_all": None, **grads}
    if save_states:
        handed["c_all"] = grads["c_all"].to(saved["c_all"].dtype)
    actual = kernels.backward(layer, math, backward, seed, saved, handed)
    for name, value in expected_grads.items():
        assert_close(f"gradient of {name}", actual[name], value, 2 * tolerance)
    return {**saved, **actual}
