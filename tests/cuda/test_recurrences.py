"""The CUDA recurrences on the host executor against the float64 reference, under random schedules.

Every seed draws a layer (odd sizes, directions, projection, lengths or packed or neither, resets, initial
states, cell), a tiling and a schedule; the executor fails on races, deadlocks and accesses out of bounds.
"""

import ctypes
from collections.abc import Callable

import pytest
import torch
from support_host_kernels import HostKernels, Layer, sources, tile
from support_layers import LARGER, assert_close, compare, draw_layer, draw_tilings, specification

from customlstm import Cell

COMBINATIONS = [
    (variant, math)
    for variant in ("step", "grid", "cluster")
    for math in ("fma64", "fma32", "tf32", "f16", "bf16")
    if not (math == "fma64" and variant != "step")
]
SEEDS = 100


@pytest.fixture(scope="session")
def host_kernels(native_library: Callable[..., ctypes.CDLL]) -> HostKernels:
    return HostKernels(native_library("recurrences", sources()))


@pytest.mark.parametrize("variant, math", COMBINATIONS)
def test_against_reference(host_kernels: HostKernels, variant: str, math: str) -> None:
    for seed in range(SEEDS):
        try:
            compare(host_kernels, seed, variant, math)
        except (AssertionError, RuntimeError) as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("variant, math", [("step", "fma64"), ("grid", "bf16"), ("cluster", "tf32")])
def test_schedules_give_the_same_bits(host_kernels: HostKernels, variant: str, math: str) -> None:
    layer = draw_layer(5, math)
    tiling, _ = draw_tilings(5, layer, variant, math)
    first = host_kernels.forward(layer, math, tiling, 1)
    for seed in range(2, 12):
        again = host_kernels.forward(layer, math, tiling, seed)
        for name, value in first.items():
            if value is not None:
                assert torch.equal(value, again[name]), name


@pytest.mark.parametrize("math", ["fma64", "fma32", "tf32", "f16", "bf16"])
def test_layer_norm_against_reference(host_kernels: HostKernels, math: str) -> None:
    for seed in range(20):
        try:
            compare(host_kernels, seed, "step", math, normalised=True)
        except (AssertionError, RuntimeError) as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_layer_norm_gives_the_same_bits_again(host_kernels: HostKernels) -> None:
    layer = draw_layer(LARGER, "fma32", normalised=True)
    forward, backward = draw_tilings(LARGER, layer, "step", "fma32")
    runs = []
    for seed in (1, 3, 5):
        saved = host_kernels.forward(layer, "fma32", forward, seed)
        grads = {"c_all": None, **{name: torch.ones_like(saved[name]) for name in ("output", "h_n", "c_n")}}
        runs.append(saved | host_kernels.backward(layer, "fma32", backward, seed, saved, grads))
    for name, value in runs[0].items():
        if value is not None:
            assert torch.equal(value, runs[1][name]) and torch.equal(value, runs[2][name]), name


def test_layer_norm_of_rows_far_from_zero(host_kernels: HostKernels) -> None:
    """A difference of sums of squares would leave nothing of a deviation of 1 beside a mean of 1000."""
    steps, batch, hidden = 2, 3, 40
    weights = [1000 + torch.randn(4 * hidden, 1), torch.randn(4 * hidden, hidden)]
    weights += [torch.randn(4 * hidden), torch.randn(4 * hidden)]
    x = torch.ones(steps, batch, 1)
    layer = Layer(x, weights, Cell(layer_norm="input"), bias=False, projection=False, bidirectional=False)
    expected, _, _ = specification(layer, save_states=False)
    saved = host_kernels.forward(layer, "fma32", tile("step", hidden, hidden, batch, 16, 1, 4, 1), 0)
    assert_close("output", saved["output"], expected["output"], 1e-4)


@pytest.mark.parametrize("given", [False, True])
def test_layer_norm_of_a_zero_state_in_16_bits(host_kernels: HostKernels, given: bool) -> None:
    """A product without variance makes gradients hundreds of times larger: not an infinity times 0."""
    batch, hidden = 3, 8
    shapes = [(4 * hidden, 2), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    weights = [torch.randn(shape).half() for shape in shapes]
    layer = Layer(torch.randn(1, batch, 2).half(), weights, Cell(layer_norm="recurrent"), False, False, False)
    if given:  # as packed data and single steps have it
        layer.h_0 = layer.c_0 = torch.zeros(1, batch, hidden).half()
    tiling = tile("step", hidden, hidden, batch, 16, 1, 4, 1)
    saved = host_kernels.forward(layer, "f16", tiling, 0)
    grads = {"output": torch.full([1, batch, hidden], 2e4).half(), "h_n": None, "c_n": None, "c_all": None}
    found = host_kernels.backward(layer, "f16", tiling, 0, saved, grads, wants_initial=False)
    assert torch.equal(found["w1"], torch.zeros_like(found["w1"]))
    assert found["w0"].isfinite().all() and found["w0"].abs().max() > 100


@pytest.mark.parametrize("variant", ["step", "grid", "cluster"])
def test_inference_saves_nothing(host_kernels: HostKernels, variant: str) -> None:
    layer = draw_layer(3, "fma32")
    tiling, _ = draw_tilings(3, layer, variant, "fma32")
    kept = host_kernels.forward(layer, "fma32", tiling, 0)
    light = host_kernels.forward(layer, "fma32", tiling, 0, save=0)
    assert light["c_all"] is None and light["gates"] is None and light["hidden"] is None
    for name in ("output", "h_n", "c_n"):
        assert torch.equal(light[name], kept[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_padding(host_kernels: HostKernels, dtype: torch.dtype) -> None:
    layer = next(one for one in (draw_layer(seed, "fma32") for seed in range(50)) if one.lengths is not None)
    steps, batch = layer.sizes[:2]
    rows = torch.randn(steps, batch, 5).to(dtype)
    expected = rows.masked_fill(torch.arange(steps)[:, None, None] >= layer.lengths[:, None], 0.0)
    host_kernels.zero_padding(layer, rows, seed=1)
    assert torch.equal(rows, expected)
