"""What csrc/ops does around the CUDA recurrences: its very source, on CPU tensors and the host executor.

Compared with the CPU kernels, which tests/kernels compares with the reference.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from support_compare import assert_close, assert_same_bits
from support_ops import CELLS, NORMALISED, ZONEOUTS, Case, LayerCall, make_call
from torch import Tensor

from customlstm import _binary

pytestmark = pytest.mark.skipif(not _binary.status().loaded, reason="no compiled library to compare with")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 5e-2}
RESULTS = ("output", "h_n", "c_n", "c_all")


def run_layer(ops: Any, call: LayerCall, save: int = 2) -> dict[str, Tensor]:
    """Results and, with save=2, all gradients."""
    results = ops.lstm_layer(*call.arguments(), save)
    found = dict(zip(RESULTS, results[: 4 if save else 3], strict=False))
    if save < 2:
        return found
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in results[:4]]
    needs = [1, int(call.h_0 is not None), int(call.c_0 is not None)] + [1] * len(call.weights)
    saved = (results[0], *results[3:])
    *named, weights = ops.lstm_layer_backward(*grads, *call.arguments(), *saved, needs)
    names = ["input", "h_0", "c_0", *call.weight_names()]
    return found | {f"gradient of {n}": g for n, g in zip(names, [*named, *weights], strict=True)}


def compare(host: Any, call: LayerCall, what: object, save: int = 2, tolerance: float | None = None) -> None:
    tolerance = TOLERANCE[call.input.dtype] if tolerance is None else tolerance
    ours, theirs = run_layer(host, call, save), run_layer(torch.ops.customlstm, call, save)
    assert_close(ours, theirs, what, tolerance, tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("layout", ["padded", "packed", "lengths", "no lengths"])
def test_every_option(host: Any, layout: str, dtype: torch.dtype) -> None:
    cells = ["standard", "peephole"] + ([] if dtype == torch.bfloat16 else ["piecewise linear"])
    options = itertools.product(["none", "some"], [False, True], [0, 5], cells, [True, False])
    for resets, bidirectional, projection, cell, bias in options:
        case = Case(
            6, 5, 3, 9, projection, bias, bidirectional, layout=layout, resets=resets, cell=cell, dtype=dtype
        )
        for save in (0, 1, 2):
            compare(host, make_call(case), f"{case} save={save}", save)
    masked = Case(6, 5, 3, 9, 5, True, True, layout=layout, resets="some", dropout=0.4, dtype=dtype)
    for projection in (0, 5):
        case = dataclasses.replace(masked, projection=projection)
        compare(host, make_call(case), f"{case}")
        for zoneout in ZONEOUTS:
            case = dataclasses.replace(masked, projection=projection, zoneout=zoneout, bidirectional=False)
            compare(host, make_call(case), f"{case}")


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("layout", ["padded", "packed", "lengths", "no lengths"])
def test_layer_norm(host: Any, layout: str, dtype: torch.dtype) -> None:
    for cell, projection in itertools.product(NORMALISED, [0, 5]):
        clipped = CELLS[cell].gate_clip is not None or CELLS[cell].cell_clip is not None
        if dtype == torch.bfloat16 and clipped:  # a rounding may fall on the other side of a kink
            continue
        case = Case(6, 5, 3, 9, projection, layout=layout, resets="some", cell=cell, dtype=dtype)
        for save in (0, 1, 2):
            compare(host, make_call(case), f"{case} save={save}", save)
        case = dataclasses.replace(case, bidirectional=True, bias=False, dropout=0.4, given=False)
        compare(host, make_call(case), f"{case}")
        for zoneout in ("both masks", "c rates"):
            case = dataclasses.replace(case, zoneout=zoneout, bias=True)
            compare(host, make_call(case), f"{case}")


@pytest.mark.parametrize("variant", ["grid", "cluster"])
def test_layer_norm_runs_with_step_only(host: Any, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", variant)
    why = "layer norm runs with step only: its sums over a row would cost an exchange each"
    with pytest.raises(RuntimeError) as caught:
        run_layer(host, make_call(Case(cell="layer norm", dtype=torch.float32)))
    assert f"asks for {variant}, which does not fit: {variant}: {why}; unset it" in str(caught.value)


@pytest.mark.parametrize("variant", ["step", "grid", "cluster"])
def test_every_variant(host: Any, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", variant)
    for case in (
        Case(6, 5, 3, 9, dtype=torch.float32),
        Case(6, 5, 3, 9, 5, bidirectional=True, layout="packed", dtype=torch.float32),
    ):
        compare(host, make_call(case), case)
        monkeypatch.setenv("CUSTOMLSTM_HOST_TF32", "1")
        compare(host, make_call(case), f"{case} TF32", tolerance=2e-2)
        monkeypatch.delenv("CUSTOMLSTM_HOST_TF32")


def test_tf32_is_what_the_cublas_handle_says(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = make_call(Case(6, 5, 3, 9, dtype=torch.float32))
    full = run_layer(host, call)
    monkeypatch.setenv("CUSTOMLSTM_HOST_TF32", "1")
    assert not torch.equal(run_layer(host, call)["output"], full["output"])


def test_a_variant_that_does_not_fit_is_refused(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "grid")
    with pytest.raises(RuntimeError, match=r"asks for grid, which does not fit: .*float64"):
        run_layer(host, make_call(Case()))
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "fast")
    with pytest.raises(RuntimeError, match='"fast", expected step, grid or cluster'):
        run_layer(host, make_call(Case()))


def pieces(case: Case, limit: int) -> int:
    """Into how many pieces inference cuts this case: at most ``limit`` bytes of gates each, or one step."""
    ragged_or_both = case.layout != "padded" or case.bidirectional
    if ragged_or_both or case.dtype == torch.bfloat16:  # 16 bits would round the cell state in between
        return 1
    step_bytes = case.batch * 4 * case.hidden * case.dtype.itemsize
    return -(-case.steps // min(case.steps, max(1, limit // step_bytes)))


@pytest.mark.parametrize("limit", [1, 3000, 6000])
def test_inference_in_pieces(host: Any, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps at a time give the bits of all at once."""
    for case in (
        Case(7, 5, 3, 9),
        Case(7, 5, 3, 9, 5, resets="some"),
        Case(7, 5, 3, 9, given=False, dtype=torch.float32),
        Case(7, 5, 3, 9, bidirectional=True),
        Case(7, 5, 3, 9, layout="lengths"),
        Case(7, 5, 3, 9, dtype=torch.bfloat16),
        Case(7, 5, 3, 9, dropout=0.4, zoneout="both masks", resets="some"),
        Case(7, 5, 3, 9, 5, dropout=0.4, zoneout="both masks"),
        Case(7, 5, 3, 9, zoneout="both rates"),
        Case(7, 5, 3, 9, 5, zoneout="h rates"),
        Case(7, 5, 3, 9, 5, zoneout="both masks", cell="layer norm"),
    ):
        for save in (0, 1, 2):
            whole = run_layer(host, make_call(case), save)
            monkeypatch.setenv("CUSTOMLSTM_HOST_CHUNK_BYTES", str(limit))
            before = host.forwards()
            found = run_layer(host, make_call(case), save)
            assert host.forwards() - before == (pieces(case, limit) if save < 2 else 1), case
            assert_close(found, whole, case, 1e-15, 1e-6)
            monkeypatch.delenv("CUSTOMLSTM_HOST_CHUNK_BYTES")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_nothing_to_do(host: Any, bidirectional: bool) -> None:
    for steps, batch, projection in itertools.product((0, 3), (0, 3), (0, 2)):
        if steps * batch == 0:
            case = Case(steps, batch, 4, 6, projection, bidirectional=bidirectional)
            compare(host, make_call(case), case)
    call = make_call(Case(3, 2, 4, 6, bidirectional=bidirectional))
    without = [w[:, :0] if w.dim() == 2 and w.size(1) == 4 else w for w in call.weights]
    compare(host, call.replace(input=call.input[..., :0], weights=without), "no features")


def test_strides(host: Any) -> None:
    call = make_call(Case(4, 3, 5, 6, bidirectional=True))

    def turned(x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    other = call.replace(
        input=turned(call.input), weights=[turned(w) if w.dim() == 2 else w for w in call.weights]
    )
    assert_close(run_layer(host, other), run_layer(host, call), "transposed", 1e-14)
    wide = torch.cat([call.input, call.input], -1)[..., 1:6]
    compare(host, call.replace(input=wide), "a slice of the features")


def test_what_lies_in_the_padding_reaches_nothing(host: Any) -> None:
    call = make_call(Case(6, 5, 3, 9, 5, bidirectional=True, layout="lengths"))
    beyond = torch.arange(6).unsqueeze(1) >= call.lengths
    bad = call.replace(input=call.input.masked_fill(beyond.unsqueeze(-1), torch.nan))
    assert_same_bits(run_layer(host, bad), run_layer(host, call), "NaN beyond the lengths")


@pytest.mark.parametrize("cell", ["peephole", "layer norm and all options", "layer norm of the input"])
def test_gradients_not_needed_are_empty(host: Any, cell: str) -> None:
    call = make_call(Case(4, 3, 5, 6, 2, bidirectional=True, cell=cell))
    results = host.lstm_layer(*call.arguments(), 2)
    grads = [torch.randn_like(x) for x in results[:4]]
    count = 3 + len(call.weights)
    for wanted in range(count):
        needs = [int(k == wanted) for k in range(count)]
        saved = (results[0], *results[3:])
        *named, weights = host.lstm_layer_backward(*grads, *call.arguments(), *saved, needs)
        assert [g.numel() > 0 for g in (*named, *weights)] == [need == 1 for need in needs]
        full_named = host.lstm_layer_backward(*grads, *call.arguments(), *saved, [1] * count)
        full = [*full_named[:3], *full_named[3]]
        assert torch.equal([*named, *weights][wanted], full[wanted])
