"""Memory: none lost over 10,000 calls, none kept without a backward to come, none spent on frozen weights."""

from __future__ import annotations

import ctypes
import gc
import itertools
import mmap
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support_ops import Case, LayerCall, make_call, ops, run_layer
from torch import Tensor

import customlstm
from customlstm import Cell

CALLS = 10_000
FEWER_CALLS = 3_000  # for variants
# The process itself may take a few pages more, by fragmentation.
ALLOWED_RESIDENT = 4 * 1024 * 1024
# Putting in order what earlier tests left may cost megabytes, once; a leak grows every time.
MEASUREMENTS = 3


class Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33 and later."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def allocated() -> int:
    """Bytes that are allocated now and not freed, by any native code of this process."""
    function = ctypes.CDLL(None).mallinfo2
    function.restype = Mallinfo
    info = function()
    return info.uordblks + info.hblkhd


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def growth(call: Callable[[], object], calls: int) -> tuple[int, int, int]:
    """What so many calls leave behind: native bytes, bytes in memory, blocks of Python's own."""
    for _ in range(1000):
        call()
    gc.collect()
    before = allocated(), resident(), sys.getallocatedblocks()
    for _ in range(calls):
        call()
    gc.collect()
    after = allocated(), resident(), sys.getallocatedblocks()
    native, process, blocks = (y - x for x, y in zip(before, after, strict=True))
    return native, process, blocks


def assert_no_growth(call: Callable[[], object], calls: int = CALLS) -> None:
    """Not one block of memory lost in ten calls. (``nn.LSTM`` gains up to 1 KiB in all.)"""
    smallest = 32  # what glibc makes of an allocation of one byte
    seen = []
    for _ in range(MEASUREMENTS):
        native, process, blocks = growth(call, calls)
        if native <= calls * smallest // 10 and process <= ALLOWED_RESIDENT and blocks <= calls // 10:
            return
        seen.append(f"{native} bytes allocated, {process} more in memory, {blocks} Python objects")
    raise AssertionError(f"{calls} calls left, time after time: " + "; ".join(seen))


def can_measure() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")


CASES = {
    "layer": Case(3, 2, 3, 8, dtype=torch.float32),
    "all options": Case(3, 2, 3, 9, 4, True, True, "lengths", "some", cell="piecewise linear",
                        dtype=torch.bfloat16),
    "packed": Case(3, 2, 3, 8, layout="packed", dtype=torch.float32),
}  # fmt: skip


@pytest.mark.skipif(not can_measure(), reason="needs the mallinfo2 of glibc 2.33")
@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer has a malloc of its own"
)
class TestGrowth:
    @pytest.mark.parametrize("case", CASES)
    def test_inference(self, case: str) -> None:
        arguments = make_call(CASES[case]).arguments()
        assert_no_growth(lambda: ops.lstm_layer(*arguments, 0), CALLS if case == "layer" else FEWER_CALLS)

    @pytest.mark.parametrize("case", CASES)
    def test_training(self, case: str) -> None:
        call = make_call(CASES[case])
        leaves = [x.requires_grad_() for x in call.leaves().values()]
        arguments = call.arguments()

        def train() -> None:
            torch.autograd.grad(ops.lstm_layer(*arguments, 2)[0].sum(), leaves)

        assert_no_growth(train, CALLS if case == "layer" else FEWER_CALLS)

    def test_single_step(self) -> None:
        cell = customlstm.LSTMCell(3, 8, backend="fused")
        x = torch.randn(2, 3)
        assert_no_growth(lambda: torch.autograd.grad(cell(x)[0].sum(), cell.weight_hh), FEWER_CALLS)

    def test_forward_whose_backward_never_comes(self) -> None:
        lstm = customlstm.LSTM(3, 8, backend="fused")
        x = torch.randn(3, 2, 3)
        assert_no_growth(lambda: lstm(x), FEWER_CALLS)

    def test_refused_calls(self) -> None:
        """What was allocated before the error is freed."""
        call = make_call(CASES["layer"])
        arguments = call.replace(lengths=torch.tensor([3, 4])).arguments()

        def refused() -> None:
            try:
                ops.lstm_layer(*arguments, 2)
            except RuntimeError:
                return
            raise AssertionError("lengths beyond the input were accepted")

        assert_no_growth(refused, FEWER_CALLS)

    def test_the_measurement_sees_a_leak(self) -> None:
        """One small tensor in five calls."""
        kept: list[Tensor] = []
        turn = itertools.count()
        with pytest.raises(AssertionError, match="3000 calls left"):
            assert_no_growth(
                lambda: kept.append(torch.empty(1)) if next(turn) % 5 == 0 else None, FEWER_CALLS
            )

    def test_the_measurement_sees_memory_that_no_allocator_knows(self) -> None:
        kept: list[mmap.mmap] = []

        def page() -> None:
            kept.append(mmap.mmap(-1, mmap.PAGESIZE))
            kept[-1][0] = 1

        with pytest.raises(AssertionError, match="3000 calls left"):
            assert_no_growth(page, FEWER_CALLS)


def saved_bytes(module: torch.nn.Module, *args: object) -> tuple[int, int]:
    """Number and bytes of the tensors that autograd keeps for the backward of one call."""
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        module(*args)
    return len(sizes), sum(sizes)


@pytest.mark.parametrize("kind", ["no_grad", "inference_mode", "nothing requires a gradient"])
def test_nothing_is_kept_without_a_backward_to_come(kind: str) -> None:
    lstm = customlstm.LSTM(3, 8, 2, bidirectional=True, proj_size=4, backend="fused")
    cell = customlstm.LSTMCell(3, 8, backend="fused")
    if kind == "nothing requires a gradient":
        lstm.requires_grad_(False), cell.requires_grad_(False)
    mode = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(kind, torch.enable_grad)
    with mode():
        for module, shape in ((lstm, (5, 2, 3)), (cell, (2, 3))):
            assert saved_bytes(module, torch.randn(shape)) == (0, 0)
            assert module(torch.randn(shape))[0].grad_fn is None


def test_what_is_asked_for_is_what_is_kept() -> None:
    call = make_call(Case(6, 7, 5, 9, 4, bidirectional=True, dtype=torch.bfloat16))
    shapes = {}
    for save in (0, 1, 2):
        results = ops.lstm_layer(*call.arguments(), save)
        shapes[save] = [list(y.shape) for y in results[3:]]
        assert all(y.dtype == torch.float32 for y in results[3:])
    assert shapes == {
        0: [[0], [0], [0]],
        1: [[6, 7, 18], [0], [0]],
        2: [[6, 7, 18], [6, 7, 2, 4, 9], [6, 7, 18]],
    }
    without = make_call(Case(6, 7, 5, 9))
    assert [list(y.shape) for y in ops.lstm_layer(*without.arguments(), 2)[3:]] == [
        [6, 7, 9],
        [6, 7, 1, 4, 9],
        [0],
    ]


def test_gates_are_kept_where_their_derivative_follows_from_them() -> None:
    """Else what they were computed from; a clip that holds nowhere changes nothing but that."""
    call = make_call(Case(6, 7, 5, 9, cell="peephole"))
    clipped = call.replace(cell_args=Cell(peephole=True, gate_clip=1e9).encode()[1])
    values, before = (ops.lstm_layer(*each.arguments(), 2)[4] for each in (call, clipped))
    i, f, g, o = before.unbind(-2)
    expected = torch.stack([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -2)
    torch.testing.assert_close(values, expected, atol=1e-14, rtol=0)


def test_what_training_keeps_is_what_backward_needs() -> None:
    """Input, weights and output are there anyway; besides them 5 float32 numbers a unit and step."""
    lstm = customlstm.LSTM(16, 32, backend="fused")
    x = torch.randn(20, 8, 16)
    parameters = sum(p.numel() for p in lstm.parameters())
    _, size = saved_bytes(lstm, x)
    rows = 20 * 8
    assert size == 4 * (parameters + rows * 16 + rows * 32 + 5 * rows * 32)


def profiled(run: Callable[[], object]) -> list[torch.autograd.profiler_util.FunctionEvent]:
    """What ran, with the memory that it took."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        run()
    return list(profile.events())


def test_states_without_a_gradient_keep_the_cell_states_only() -> None:
    lstm = customlstm.LSTM(3, 8, backend="fused").requires_grad_(False)
    x = torch.randn(50, 4, 3)
    (op,) = [event for event in profiled(lambda: lstm.states(x)) if event.name == "customlstm::lstm_layer"]
    # output, c_all, two last states: the workspace is freed again
    assert op.cpu_memory_usage == 4 * (2 * 50 * 4 * 8 + 2 * 4 * 8)


def needs_of(requires: list[bool]) -> list[int]:
    """The ``needs`` that the backward operator gets for a call whose arguments require gradients as said."""
    call = make_call(Case(3, 2, 3, 8, dtype=torch.float32))
    seen: list[list[int]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.customlstm.lstm_layer_backward.default:
                seen.append(list(args[-1]))
            return func(*args, **(kwargs or {}))

    leaves = call.leaves()
    for x, wanted in zip(leaves.values(), requires, strict=True):
        x.requires_grad_(wanted)
    with Watch():
        ops.lstm_layer(*call.arguments(), 2)[0].sum().backward()
    for x, wanted in zip(leaves.values(), requires, strict=True):
        assert (x.grad is not None) == wanted
    return seen[0]


@pytest.mark.parametrize("frozen", ["weights", "input", "all but one bias", "states"])
def test_backward_is_told_what_is_not_needed(frozen: str) -> None:
    """Arguments: input, h_0, c_0, w_ih, w_hh, b_ih, b_hh."""
    requires = {
        "weights": [True, True, True, False, False, False, False],
        "input": [False, True, True, True, True, True, True],
        "all but one bias": [False, False, False, False, False, False, True],
        "states": [True, False, False, True, True, True, True],
    }[frozen]
    assert needs_of(requires) == [int(r) for r in requires]


def backward_results(call: LayerCall, needs: list[int]) -> list[Tensor]:
    results = ops.lstm_layer(*call.arguments(), 2)
    grads = [torch.ones_like(y) for y in results[:4]]
    *named, weights = ops.lstm_layer_backward(*grads, *call.arguments(), results[0], *results[3:], needs)
    return [*named, *weights]


def test_what_is_not_needed_is_empty_and_changes_nothing_else() -> None:
    """Every gradient alone, and all but every one: the same bits as all together."""
    call = make_call(Case(6, 7, 5, 9, 4, bidirectional=True, layout="lengths", resets="some"))
    count = len(call.leaves())
    together = backward_results(call, [1] * count)
    for k in range(count):
        alone = [int(n == k) for n in range(count)]
        for needs in (alone, [1 - need for need in alone]):
            for n, (found, expected) in enumerate(zip(backward_results(call, needs), together, strict=True)):
                if needs[n]:
                    assert torch.equal(found, expected), f"argument {n} of {needs}"
                else:
                    assert list(found.shape) == [0], f"argument {n} of {needs}"


def test_frozen_weights_cost_nothing() -> None:
    """Backward asks for no byte of memory for weight gradients that nobody wants."""
    call = make_call(Case(40, 8, 64, 64, dtype=torch.float32))

    def allocated(requires: list[str]) -> int:
        for name, x in call.leaves().items():
            x.requires_grad_(name in requires)
        loss = ops.lstm_layer(*call.arguments(), 2)[0].sum()
        leaves = [x for name, x in call.leaves().items() if name in requires]
        events = profiled(lambda: torch.autograd.grad(loss, leaves))
        return sum(max(event.cpu_memory_usage, 0) for event in events if "empty" in event.name)

    everything = allocated(list(call.leaves()))
    frozen = allocated(["input"])
    weights = 4 * sum(w.numel() for w in call.weights)
    assert frozen <= everything - weights


def test_backward_in_eval_mode() -> None:
    lstm = customlstm.LSTM(3, 8, 2, dropout=0.5, backend="fused").eval()
    x = torch.randn(4, 2, 3, requires_grad=True)
    output, _ = lstm(x)
    output.sum().backward()
    assert x.grad.any() and all(p.grad.any() for p in lstm.parameters())
    assert torch.equal(lstm(x)[0], output)


def test_backward_of_one_forward_twice() -> None:
    """What was kept is not used up."""
    call = make_call(Case(6, 7, 5, 9, 4, bidirectional=True))
    leaves = [x.requires_grad_() for x in call.leaves().values()]
    loss = ops.lstm_layer(*call.arguments(), 2)[0].sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, leaves), strict=True):
        assert torch.equal(a, b)


def test_in_place_changes_are_noticed() -> None:
    """What backward needs must not be changed under it: autograd's own error, not a wrong gradient."""
    for changed in ("output", "input", "w_hh"):
        call = make_call(Case(3, 2, 3, 8))
        leaves = call.leaves()
        leaves["h_0"].requires_grad_()
        output = ops.lstm_layer(*call.arguments(), 2)[0]
        loss = output.sum()
        with torch.no_grad():
            (output if changed == "output" else leaves[changed]).add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_lost_call_frees_what_it_kept() -> None:
    lstm = customlstm.LSTM(3, 8, backend="fused")
    loss = lstm(torch.randn(4, 2, 3))[0].sum()
    kept = loss.grad_fn
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    assert kept is not None


def test_gradients_do_not_share_memory() -> None:
    """Both biases have equal gradients; an optimiser that works in place must not move the other one's."""
    results = run_layer(make_call(Case(3, 2, 3, 8)))
    b_ih, b_hh = results["gradient of b_ih"], results["gradient of b_hh"]
    assert torch.equal(b_ih, b_hh) and b_ih.data_ptr() != b_hh.data_ptr()
