"""How the kernels behave on a GPU: same bits, streams, graphs, synchronisation, memory, huge sizes."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from support_compare import assert_close, assert_same_bits
from support_gpu import (
    CUDA,
    TOLERANCE,
    case_that_fills,
    compare_slice,
    fits,
    forward_and_backward,
    needs_gpu,
    on_gpu,
    to_cpu,
)
from support_ops import Case, make_call, run_layer, run_reference
from torch import Tensor

import customlstm
from customlstm.launch_plan import VARIANTS, DeviceLimits

pytestmark = needs_gpu
# Cycles that a stream sleeps while work is enqueued behind: a quarter of a second.
SLEEP = 500_000_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_runs_give_the_same_bits(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", variant)
    for dtype in (torch.float32, torch.bfloat16):
        if not fits(variant, dtype):
            pytest.skip(f"{variant} is not for this GPU")
        for cell in ["standard", "layer norm"] if variant == "step" else ["standard"]:
            call = on_gpu(make_call(Case(50, 16, 64, 128, bidirectional=True, cell=cell, dtype=dtype)))
            first = to_cpu(run_layer(call))
            for _ in range(5):
                assert_same_bits(to_cpu(run_layer(call)), first, (cell, dtype))


def test_no_synchronisation() -> None:
    case = Case(8, 5, 7, 24, bidirectional=True, layout="lengths", resets="some", dtype=torch.float32)
    calls = [
        on_gpu(make_call(case), lengths_there=True),
        on_gpu(make_call(case)),
        on_gpu(make_call(replace(case, cell="layer norm"))),
        on_gpu(
            make_call(Case(8, 5, 7, 24, 6, layout="packed", cell="piecewise linear", dtype=torch.bfloat16))
        ),
    ]
    module = customlstm.LSTM(7, 24, 2, batch_first=True, device=CUDA, backend="fused")
    x, lengths = torch.randn(5, 8, 7, device=CUDA), torch.tensor([8, 0, 3, 5, 1], device=CUDA)

    def everything() -> None:
        for call in calls:
            fresh = call.replace(weights=[w.detach().requires_grad_() for w in call.weights])
            results = torch.ops.customlstm.lstm_layer(*fresh.arguments(), 2)
            torch.autograd.grad(results[0].sum(), fresh.weights)
        module(x, lengths=lengths)[0].sum().backward()

    for _ in range(2):
        # cuBLAS makes its handle, the kernels read the device's limits, the allocator fills its pool.
        everything()
        torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP)
    awake = torch.cuda.Event()
    awake.record()
    # PyTorch's mode sees what PyTorch waits for, the event what our own code does.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
        try:
            torch.cuda.set_sync_debug_mode("error")
            everything()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not awake.query(), "something waited for the device"


@pytest.mark.parametrize(
    ("variant", "cell"), [*((variant, "standard") for variant in VARIANTS), ("step", "layer norm")]
)
@pytest.mark.parametrize("layout", ["padded", "packed", "lengths"])
def test_cuda_graph(layout: str, variant: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured once, replayed with other numbers in the same tensors."""
    if not fits(variant, torch.float32):
        pytest.skip(f"{variant} is not for this GPU")
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", variant)
    case = Case(8, 5, 7, 24, layout=layout, cell=cell, dtype=torch.float32)
    call = on_gpu(make_call(case), lengths_there=True)
    leaves = [call.input, *call.weights]
    ones = [torch.ones_like(x) for x in torch.ops.customlstm.lstm_layer(*call.arguments(), 2)[:4]]

    def step() -> list[Tensor]:
        return list(forward_and_backward(call, ones).values())

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        for leaf in leaves:
            leaf.copy_(torch.randn_like(leaf) * 0.3)
        graph.replay()
        found = [x.clone() for x in captured]
        for a, b in zip(found, step(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_streams_at_once(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is queued up behind a sleep on either stream, so that the launches meet.

    Those of grid take more than half of the GPU: they cannot both be resident.
    """
    if not fits(variant, torch.bfloat16):
        pytest.skip(f"{variant} is not for this GPU")
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", variant)
    case = Case(40, 16, 32, 128, dtype=torch.bfloat16)
    if variant == "grid":
        case = case_that_fills(DeviceLimits.from_device(), case.steps)
    calls = [on_gpu(make_call(replace(case, seed=k))) for k in range(2)]
    results = [torch.ops.customlstm.lstm_layer(*call.arguments(), 2)[:4] for call in calls]
    gradients = [[torch.randn_like(x) for x in of_one] for of_one in results]
    expected = [to_cpu(forward_and_backward(*one)) for one in zip(calls, gradients, strict=True)]
    streams = [torch.cuda.Stream() for _ in calls]

    def enqueue() -> list[list[dict[str, Tensor]]]:
        found: list[list[dict[str, Tensor]]] = [[], []]
        for _ in range(5):
            for k, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    found[k].append(forward_and_backward(calls[k], gradients[k]))
        return found

    torch.cuda.synchronize()
    enqueue()  # fills the allocator's pools of both streams, which may wait for the device
    torch.cuda.synchronize()
    awake = [torch.cuda.Event() for _ in streams]
    for stream, event in zip(streams, awake, strict=True):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP)
            event.record()
    found = enqueue()
    assert not any(event.query() for event in awake), "the streams ran one after the other"
    torch.cuda.synchronize()
    for runs, wanted in zip(found, expected, strict=True):
        for run in runs:
            assert_same_bits(to_cpu(run), wanted, "on a stream of its own")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two GPUs")
def test_another_device_than_the_current_one() -> None:
    call = make_call(Case(6, 5, 7, 24, dtype=torch.float32))
    first = to_cpu(run_layer(on_gpu(call)))
    second = run_layer(on_gpu(call, torch.device("cuda", 1)))
    assert {x.device.index for x in second.values()} == {1} and torch.cuda.current_device() == 0
    assert_close(to_cpu(second), first, "on cuda:1", 1e-5, 1e-5)
    mixed = on_gpu(call, torch.device("cuda", 1)).replace(weights=on_gpu(call).weights)
    with pytest.raises(RuntimeError, match="cuda:0, but input is on cuda:1"):
        torch.ops.customlstm.lstm_layer(*mixed.arguments(), 0)


def test_memory_does_not_grow() -> None:
    call = on_gpu(make_call(Case(20, 8, 16, 64, bidirectional=True, layout="packed", dtype=torch.bfloat16)))
    used, outside = [], []
    for _ in range(30):
        run_layer(call)
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        used.append(torch.cuda.memory_allocated())
        outside.append(total - free - torch.cuda.memory_reserved())
    assert used[-1] == used[5]
    # What PyTorch's allocator does not know of; the driver counts in pieces of 2 MB.
    assert outside[-1] <= outside[5] + (2 << 20)


def test_inference_keeps_nothing() -> None:
    module = customlstm.LSTM(64, 256, device=CUDA, backend="fused")
    x = torch.randn(400, 64, 64, device=CUDA)
    with torch.no_grad():
        module(x)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        output, states = module(x)
    kept = torch.cuda.memory_allocated() - before
    assert kept <= sum(t.untyped_storage().nbytes() for t in (output, *states)) + 4096


def test_inference_in_pieces_is_inference_at_once() -> None:
    """The gates of 6000 steps are three times the 256 MB that are computed at once."""
    steps, batch, hidden = 6000, 64, 128
    module = customlstm.LSTM(16, hidden, device=CUDA, backend="fused")
    x = torch.randn(steps, batch, 16, device=CUDA)
    with torch.no_grad():
        module(x[:1])  # cuBLAS takes its workspace
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        in_pieces, states = module(x)
        peak = torch.cuda.max_memory_allocated() - before
    assert peak < steps * batch * 4 * hidden * 4, "all gates were in memory at once"
    at_once, others = module(x)
    for a, b in zip((in_pieces, *states), (at_once, *others), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)


# --- huge sizes ---


def _why_too_small() -> str:
    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    return "" if memory >= 40e9 else f"needs 40 GB of GPU memory, here are {memory / 1e9:.0f}"


needs_40_gb = pytest.mark.skipif(bool(_why_too_small()), reason=_why_too_small())


@needs_40_gb
@pytest.mark.parametrize("layout", ["padded", "lengths"])
def test_batch_of_70000(layout: str) -> None:
    """More sequences than a grid has blocks in its second and third dimension."""
    case = Case(2, 70_000, 5, 16, bidirectional=True, layout=layout, dtype=torch.float32)
    call = make_call(case)
    expected = run_reference(call.to(torch.float64))
    found = to_cpu(run_layer(on_gpu(call)), torch.float64)
    for name, value in expected.items():
        # Those of weights and biases are sums over all sequences.
        is_sum = name.startswith(("gradient of w_", "gradient of b_"))
        allowed = TOLERANCE[case.dtype] * max(1.0, float(value.abs().max()) if is_sum else 1.0)
        assert_close({name: found[name]}, {name: value}, case, allowed)


@needs_40_gb
def test_more_than_2_to_the_31_gates() -> None:
    """A 32-bit index into the gates would wrap around, in either direction."""
    case, batch = Case(64, 8, 3, 64, bidirectional=True, dtype=torch.bfloat16), 131_200
    assert case.steps * batch * 4 * case.hidden > 2**31
    torch.cuda.empty_cache()
    compare_slice(case, batch, CUDA)
    torch.cuda.empty_cache()
