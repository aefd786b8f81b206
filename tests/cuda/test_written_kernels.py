"""Cells that users write, of one to seven gates and up to four states, on the CUDA kernels and the operators.

The host executor runs the kernels; what csrc/ops does around them is its very source. Compared with the
float64 reference on random layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support_host_kernels import Layer
from support_layers import TOLERANCES, assert_close, draw_layer, specification
from support_written_kernels import CELLS, EVERY_TILING
from torch import Tensor

from customlstm import _binary
from customlstm.launch_plan import H200, VARIANTS, plan

pytestmark = pytest.mark.skipif(not _binary.status().loaded, reason="no compiled library to plan with")
MATH_NAMES = {"fma32": "float32", "tf32": "tf32", "bf16": "bfloat16", "f16": "float16"}
RESULTS = ("output", "h_n", "c_n", "c_all")


def arguments(layer: Layer) -> list[Any]:
    """Of ``lstm_layer``, but ``save``."""
    return [
        layer.input, layer.h_0, layer.c_0, layer.weights, layer.batch_sizes, layer.lengths, layer.resets,
        layer.recurrent_mask, *layer.zoneout, *layer.cell.encode(), layer.bias, layer.projection,
        layer.bidirectional, layer.recurrent_scale, *layer.zoneout_rates,
    ]  # fmt: skip


def draw(name: str, seed: int, math: str, sizes: tuple[int, int, int] | None = None) -> Layer:
    layer = draw_layer(seed, math, CELLS[name], sizes)
    if name == "slstm" and layer.c_0 is not None:  # its second state is a sum of positive numbers
        _, n, _ = layer.c_0.chunk(3, -1)
        n.abs_().add_(0.5)
    return layer


def use(math: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This recurrence; and products of float32 as those of torch would be then."""
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", variant)
    if math == "tf32":
        monkeypatch.setenv("CUSTOMLSTM_HOST_TF32", "1")


def compare(host: Any, layer: Layer, math: str) -> None:
    """Results and gradients of one layer."""
    expected, grads, expected_grads = specification(layer, save_states=True)
    results = host.lstm_layer(*arguments(layer), 2)
    hidden, directions = layer.sizes[3], layer.sizes[5]
    kept = layer.cell.program.saved_count + (layer.cell.states if layer.mixes_cells else 0)
    assert results[4].shape == (*layer.input.shape[:-1], directions, kept, hidden)
    tolerance = TOLERANCES[math]
    for result, (key, value) in zip(results[:4], expected.items(), strict=True):
        assert result.shape == value.shape, key
        assert_close(key, result, value, tolerance)
    needs = [1, int(layer.h_0 is not None), int(layer.c_0 is not None)] + [1] * len(layer.weights)
    handed = [grads[key].to(result.dtype) for key, result in zip(RESULTS, results, strict=False)]
    *named, weights = host.lstm_layer_backward(*handed, *arguments(layer), results[0], *results[3:], needs)
    actual = dict(zip(("input", "h_0", "c_0"), named, strict=True))
    actual |= {f"w{k}": grad for k, grad in enumerate(weights)}
    for key, value in expected_grads.items():
        assert actual[key].shape == value.shape, key
        assert_close(f"gradient of {key}", actual[key], value, 2 * tolerance)


def compare_all(host: Any, name: str, seeds: range, math: str) -> None:
    for seed in seeds:
        try:
            compare(host, draw(name, seed, math), math)
        except (AssertionError, RuntimeError) as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("name", CELLS)
def test_every_cell(host: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_all(host, name, range(12), "fma64")
    if name not in EVERY_TILING["fma32"]:
        # The only kernels that these have in float32; a batch of one tile of columns has no other tiling.
        monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "step")
        small = [seed for seed in range(20) if draw(name, seed, "fma32").sizes[1] <= 8]
        for seed in small[:3]:
            compare_all(host, name, range(seed, seed + 1), "fma32")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "math, name", [(math, name) for math, names in EVERY_TILING.items() for name in names]
)
def test_every_tiling(host: Any, math: str, name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(math, variant, monkeypatch)
    compare_all(host, name, range(8), math)


@pytest.mark.parametrize("variant", ["step", "grid"])
@pytest.mark.parametrize("math", EVERY_TILING)
def test_four_tiles_of_columns(host: Any, math: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slice of a GPU, where blocks are few; no other test plans for this batch."""
    monkeypatch.setenv("CUSTOMLSTM_HOST_SLICE", "1")
    use(math, variant, monkeypatch)
    for seed, given in ((6, (3, 64, 33)), (11, (3, 64, 61))):
        layer = draw("seven_gates", seed, math, given)
        steps, batch, _, hidden, state, directions, _, projection = layer.sizes
        for backward in (False, True):
            found = plan(
                replace(H200, multiprocessors=2), steps=steps, batch=batch, hidden_size=hidden,
                proj_size=state if projection else 0, directions=directions, gates=7,
                math=MATH_NAMES[math], backward=backward, variant=variant,
            )  # fmt: skip
            assert found.tiling is not None and found.tiling.column_tiles == 4
        compare(host, layer, math)


@pytest.mark.parametrize("name", ["slstm", "seven_gates"])
def test_inference(host: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training; also a step at a time, where the states go from one piece to the next."""
    # One direction and one length; with masks and rates of zoneout, resets, projections, states or none.
    layers = [draw(name, seed, "fma64", (5, 3, 9)) for seed in (17, 22, 31, 46, 71, 83, 96)]
    assert any(x.zoneout[1] is not None for x in layers) and any(x.resets is not None for x in layers)
    assert any(x.zoneout_rates[1] > 0 for x in layers) and any(x.h_0 is None for x in layers)
    for layer in layers:
        trained = host.lstm_layer(*arguments(layer), 2)
        for save, chunk in ((0, None), (1, None), (0, "1"), (1, "1")):
            with monkeypatch.context() as patched:
                if chunk:
                    patched.setenv("CUSTOMLSTM_HOST_CHUNK_BYTES", chunk)
                before = host.forwards()
                found = host.lstm_layer(*arguments(layer), save)
                assert host.forwards() - before == (5 if chunk else 1)
            for key, ours, whole in zip(RESULTS[: 3 + save], found, trained, strict=False):
                # The rows of a part of the input's projection are summed in another order.
                assert_close(f"{key}, save={save}, chunk={chunk}", ours, whole, 1e-14 if chunk else 0.0)
            assert [x.numel() for x in found[3 + save :]] == [0] * (3 - save)


def test_nothing_to_do(host: Any) -> None:
    """Without a row states and their gradients pass through, all three of them."""
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    weights = [randn(16, 3), randn(16, 4), randn(16), randn(16)]
    for steps, batch in ((0, 3), (3, 0), (0, 0)):
        h, c, *grads = (randn(1, batch, size) for size in (4, 12, 4, 12))
        call = [
            randn(steps, batch, 3), h, c, weights, *[None] * 6, *CELLS["slstm"].encode(), True, False, False,
            1.0, 0.0, 0.0,
        ]  # fmt: skip
        results = host.lstm_layer(*call, 2)
        output, h_n, c_n, c_all, gates, hidden = results
        assert torch.equal(h_n, h) and torch.equal(c_n, c)
        assert [list(x.shape) for x in (output, c_all, gates, hidden)] == [
            [steps, batch, 4], [steps, batch, 12], [steps, batch, 1, 7, 4], [0],
        ]  # fmt: skip
        saved = (output, c_all, gates, hidden)
        *passed, of_weights = host.lstm_layer_backward(None, *grads, None, *call, *saved, [1] * 7)
        assert passed[0].shape == (steps, batch, 3)
        assert torch.equal(passed[1], grads[0]) and torch.equal(passed[2], grads[1])
        assert all(torch.equal(x, torch.zeros_like(w)) for x, w in zip(of_weights, weights, strict=True))


def test_what_is_saved_fits_in_place_or_not() -> None:
    """Both ways of run_at_once in csrc/ops/cuda_layer.cpp are tested above."""
    fits = {name: cell.program.saved_count == cell.gates for name, cell in CELLS.items()}
    assert set(fits.values()) == {True, False}


def test_kernels_that_are_not_there(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, math: str) -> list[Tensor]:
        return host.lstm_layer(*arguments(draw(name, 2, math, (3, 2, 4))), 0)

    registered = CELLS["slstm"].encode()[0]
    with pytest.raises(RuntimeError) as error:
        run("slstm", "f16")
    assert str(error.value).partition("\n")[0] == (
        f"customlstm: the cell {registered} has no CUDA kernel for float16 on compute capability 9.0 in this "
        "process; call customlstm.jit.register(cell, dtype, device) first, or use backend='reference'"
    )
    monkeypatch.setenv("CUSTOMLSTM_HOST_TF32", "1")
    with pytest.raises(
        RuntimeError, match=r"has no CUDA kernel for float32 in TF32 on compute capability 9\.0"
    ):
        run("slstm", "fma32")
    monkeypatch.delenv("CUSTOMLSTM_HOST_TF32")
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "grid")
    registered = CELLS["leaky"].encode()[0]
    with pytest.raises(RuntimeError) as error:
        run("leaky", "fma32")
    assert str(error.value).partition("\n")[0] == (
        f"customlstm forward of the cell {registered}: not compiled for grid with column tiles by 1; "
        "CUSTOMLSTM_CUDA_VARIANT chooses another variant"
    )
