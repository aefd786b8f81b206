"""What the tests on a GPU share: whether there is one, calls moved to it, comparisons with the reference."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
import torch
from support_compare import assert_close
from support_ops import (
    RESULTS,
    Case,
    LayerCall,
    gradients_given,
    make_call,
    run_layer,
    run_reference,
)
from torch import Tensor

from customlstm import _binary, dispatch
from customlstm.launch_plan import DeviceLimits, plan

CUDA = torch.device("cuda")


def _why_skip() -> str:
    if not torch.cuda.is_available():
        return "torch can use no GPU here"
    if not _binary.status().loaded:
        return f"no compiled library: {_binary.status().reason}"
    return dispatch.why_not_fused(torch.device("cuda", 0), torch.float32) or ""


_WHY_SKIP = _why_skip()
if _WHY_SKIP and os.environ.get("CUSTOMLSTM_REQUIRE_GPU", "0") != "0":
    raise RuntimeError(f"CUSTOMLSTM_REQUIRE_GPU is set, but {_WHY_SKIP}")
needs_gpu = [
    pytest.mark.skipif(bool(_WHY_SKIP), reason=_WHY_SKIP),
    pytest.mark.usefixtures("full_precision"),
]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Of results of size 1. The reference gets the same rounded numbers, so this is the kernels' own error.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}


def on_gpu(call: LayerCall, device: torch.device = CUDA, lengths_there: bool = False) -> LayerCall:
    def move(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device)

    return call.replace(
        input=move(call.input),
        h_0=move(call.h_0),
        c_0=move(call.c_0),
        weights=[w.to(device) for w in call.weights],
        resets=move(call.resets),
        recurrent_mask=move(call.recurrent_mask),
        zoneout_h=move(call.zoneout_h),
        zoneout_c=move(call.zoneout_c),
        lengths=move(call.lengths) if lengths_there else call.lengths,
    )


def to_cpu(results: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    return {name: x.cpu() if dtype is None else x.cpu().to(dtype) for name, x in results.items()}


def compare(case: Case, tolerance: float | None = None, lengths_there: bool = False) -> None:
    """Results and all gradients of one call against the reference in float64."""
    call = make_call(case)
    expected = run_reference(call.to(torch.float64))
    found = to_cpu(run_layer(on_gpu(call, lengths_there=lengths_there)), torch.float64)
    tolerance = TOLERANCE[case.dtype] if tolerance is None else tolerance
    scale = max(1.0, *(float(x.abs().max()) for x in expected.values() if x.numel()))
    assert_close(found, expected, case, tolerance * scale, tolerance)


def fits(variant: str, dtype: torch.dtype) -> bool:
    if variant == "step":
        return True
    newest = torch.cuda.get_device_capability()[0] >= 9
    return dtype != torch.float64 and (variant == "grid" or newest)


def forward_and_backward(call: LayerCall, gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """All results and gradients by the operators themselves; nothing is copied from the host.

    ``call`` has states, and ``gradients`` are those of the results.
    """
    results = torch.ops.customlstm.lstm_layer(*call.arguments(), 2)
    saved, needs = (results[0], *results[3:]), [1] * (3 + len(call.weights))
    *named, weights = torch.ops.customlstm.lstm_layer_backward(*gradients, *call.arguments(), *saved, needs)
    names = ["input", "h_0", "c_0", *call.weight_names()]
    found = dict(zip(RESULTS, results, strict=False))
    return found | {f"gradient of {n}": g for n, g in zip(names, [*named, *weights], strict=True)}


def case_that_fills(limits: DeviceLimits, steps: int) -> Case:
    """A layer whose grid recurrence takes more than half of the multiprocessors, forward and backward."""
    for hidden in range(128, 2049, 128):
        case = Case(steps, 16, 32, hidden, dtype=torch.bfloat16)
        sizes = {"steps": steps, "batch": case.batch, "hidden_size": hidden, "math": "bfloat16"}
        tilings = [plan(limits, **sizes, backward=back, variant="grid").tiling for back in (False, True)]
        blocks = [0 if t is None else t.unit_blocks * t.column_blocks for t in tilings]
        if 2 * min(blocks) > limits.multiprocessors:
            return case
    raise AssertionError(f"no layer fills more than half of {limits}")


def slice_of(call: LayerCall, batch: int, device: torch.device) -> tuple[LayerCall, Tensor]:
    """A call of ``batch`` sequences, and which of them are those of ``call``: the first and the last."""
    count = call.input.size(1)
    where = torch.arange(count)
    where[count // 2 :] += batch - count

    def widen(x: Tensor) -> Tensor:
        wide = torch.randn(x.size(0), batch, x.size(2), device=device, dtype=x.dtype)
        wide[:, where.to(device)] = x.to(device)
        return wide

    whole = call.replace(
        input=widen(call.input),
        h_0=widen(call.h_0),
        c_0=widen(call.c_0),
        weights=[w.to(device) for w in call.weights],
    )
    return whole, where


def compare_slice(case: Case, batch: int, device: torch.device) -> None:
    """``batch`` sequences against the reference of a few: those of ``case``.

    The others are random, and their results get no gradient: those of the weights are of the few alone.
    """
    call, wanted = make_call(case), ("output", "h_n", "c_n")
    expected = run_layer(call.to(torch.float64), torch.ops.customlstm.lstm_layer_reference, wanted)
    whole, where = slice_of(call, batch, device)
    there = where.to(device)
    given = gradients_given({name: expected[name] for name in wanted})
    gradients = []
    for gradient in given:
        wide = torch.zeros(gradient.size(0), batch, gradient.size(2), device=device, dtype=case.dtype)
        wide[:, there] = gradient.to(device, case.dtype)
        gradients.append(wide)
    found = forward_and_backward(whole, [*gradients, None])
    own = {n: (x[:, there] if x.dim() == 3 else x).cpu().double() for n, x in found.items() if n != "c_all"}
    scale = max(1.0, *(float(x.abs().max()) for x in expected.values()))
    assert_close(own, expected, case, TOLERANCE[case.dtype] * scale, TOLERANCE[case.dtype])
