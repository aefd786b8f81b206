"""The CUDA recurrences on the host executor against the float64 reference, under random schedules.

Every seed draws a layer (odd sizes, directions, projection, lengths or packed or neither, resets, initial
states, cell), a tiling and a schedule; the executor fails on races, deadlocks and accesses out of bounds.
"""

import ctypes
from collections.abc import Callable

import pytest
import torch
from support_host_kernels import HostKernels, sources
from support_layers import compare, draw_layer, draw_tilings

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
