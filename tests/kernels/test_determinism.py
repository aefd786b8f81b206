"""The same bits at every run, on any number of threads, and for every sequence whatever batch it comes in."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support_compare import assert_same_bits
from support_ops import SAVE_FOR_BACKWARD, Case, LayerCall, make_call, ops, run_cell, run_layer

from customlstm import thread_plan

ROOT = Path(__file__).resolve().parents[2]
RUNS = 10

# Threads share the units of every step where the batch is small and the weights are large; they split the
# directions, or the rows, in the other cases. Ragged batches are dealt out unevenly. All are large enough
# for a team.
CASES = [
    Case(7, 1, 65, 257),
    Case(7, 2, 65, 130, bidirectional=True),
    Case(5, 4, 33, 200, 65, layout="lengths", resets="some"),
    Case(9, 40, 30, 64),
    Case(9, 41, 30, 64, 17, bidirectional=True, layout="lengths", resets="some"),
    Case(9, 97, 17, 33, bidirectional=True, layout="packed", cell="piecewise linear"),
    Case(3, 160, 64, 100, layout="lengths", cell="softplus cell"),
    Case(60, 12, 20, 64, bias=False, given=False),
    # One sequence, for which backward reads W_hh where it lies.
    Case(9, 1, 70, 193, 97, bidirectional=True, resets="some"),
    Case(5, 1, 30, 300, cell="piecewise linear"),
    # A single step, whose weights are used where they lie, or packed in turn.
    Case(1, 1, 130, 514),
    Case(1, 6, 65, 257, bidirectional=True),
    Case(1, 5, 257, 512, 257),
    Case(1, 40, 65, 257),
    # Threads that share the units, with more sequences than are projected at a time.
    Case(3, 97, 17, 241, layout="lengths"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_runs_and_threads(case: Case, any_threads: None) -> None:
    for dtype in (torch.float32, torch.float64):
        call = make_call(dataclasses.replace(case, dtype=dtype))
        torch.set_num_threads(1)
        expected = run_layer(call)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for _ in range(RUNS if threads == 2 else 1):
                assert_same_bits(run_layer(call), expected, f"{threads} threads, {dtype}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases_need_a_team(case: Case) -> None:
    """What the plan gives to one thread would show nothing above."""
    sizes = {"steps": case.steps, "batch": case.batch, "input_size": case.features}
    sizes |= {"hidden_size": case.hidden, "proj_size": case.projection}
    sizes["directions"] = 2 if case.bidirectional else 1
    for backward in (False, True):
        assert thread_plan.plan(**sizes, threads=2, backward=backward).threads == 2
    if case.batch == 97 and not case.bidirectional:
        assert thread_plan.plan(**sizes, threads=2).share_units


FEWER = """
import torch, customlstm
from customlstm import thread_plan
module, x = customlstm.LSTM(65, 257, backend="fused"), torch.randn(40, 1, 65, requires_grad=True)
def run(threads):
    torch.set_num_threads(threads)
    output = module(x)[0]
    return [output, *torch.autograd.grad(output.sum(), [x, *module.parameters()])]
expected = run(1)
plan = thread_plan.plan(steps=40, batch=1, input_size=65, hidden_size=257, threads=5)
assert plan.threads == 5 and plan.share_units
for _ in range(20):
    assert all(torch.equal(a, b) for a, b in zip(run(5), expected))
"""


def test_fewer_threads_than_planned() -> None:
    """The system may grant a smaller team than the plan, and its scratch memory, are for."""
    environment = os.environ | {"OMP_THREAD_LIMIT": "2"}
    done = subprocess.run(
        [sys.executable, "-c", FEWER], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_runs_and_threads_in_16_bits(dtype: torch.dtype, any_threads: None) -> None:
    for case in [*CASES[::3], Case(1, 5, 257, 512, 257)]:
        call = make_call(dataclasses.replace(case, dtype=dtype))
        torch.set_num_threads(1)
        expected = run_layer(call)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_same_bits(run_layer(call), expected, f"{case} {threads} threads")


def test_ten_runs_on_one_thread() -> None:
    call = make_call(
        Case(7, 13, 5, 33, 9, bidirectional=True, layout="lengths", resets="some", dtype=torch.float32)
    )
    expected = run_layer(call)
    for _ in range(RUNS):
        assert_same_bits(run_layer(call), expected)


def test_single_step_on_any_number_of_threads(any_threads: None) -> None:
    call = make_call(Case(1, 64, 65, 257, 64, dtype=torch.float32))
    torch.set_num_threads(1)
    expected = run_cell(call)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for _ in range(RUNS):
            assert_same_bits(run_cell(call), expected, f"{threads} threads")


def results_of(call: LayerCall) -> dict[str, torch.Tensor]:
    return dict(zip(("output", "h_n", "c_n", "c_all"), ops.lstm_layer(*call.arguments(), 1), strict=False))


@pytest.mark.parametrize("batch", [2, 7, 13, 97, 150])
def test_a_sequence_does_not_see_its_batch(batch: int) -> None:
    """Alone or among others, a sequence gets the same bits, whatever tile it falls into."""
    case = Case(5, batch, 9, 17, bidirectional=True, layout="lengths", resets="some", dtype=torch.float32)
    call = make_call(case)
    whole = results_of(call)
    for b in sorted({0, 1, batch // 2, batch - 1}):
        one = slice(b, b + 1)
        alone = call.replace(
            input=call.input[:, one],
            h_0=call.h_0[:, one],
            c_0=call.c_0[:, one],
            lengths=call.lengths[one],
            resets=call.resets[:, one],
        )
        assert_same_bits(results_of(alone), {name: x[:, one] for name, x in whole.items()}, f"sequence {b}")


def state_gradients(call: LayerCall) -> dict[str, torch.Tensor]:
    """Of the sum of all results that a user sees, for what each sequence has of its own."""
    leaves = {name: getattr(call, name).detach().requires_grad_() for name in ("input", "h_0", "c_0")}
    results = ops.lstm_layer(*call.replace(**leaves).arguments(), SAVE_FOR_BACKWARD)[:3]
    ones = [torch.ones_like(y) for y in results]
    return dict(zip(leaves, torch.autograd.grad(results, list(leaves.values()), ones), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("hidden", "projection"), [(17, 0), (63, 0), (64, 0), (257, 0), (130, 71)])
def test_backward_of_a_sequence_does_not_see_its_batch(
    hidden: int, projection: int, dtype: torch.dtype
) -> None:
    """Alone, where W_hh is read as it lies, or among others, where it is packed."""
    call = make_call(Case(5, 7, 9, hidden, projection, bidirectional=True, resets="some", dtype=dtype))
    whole = state_gradients(call)
    for b in (0, 6):
        one = slice(b, b + 1)
        alone = call.replace(
            input=call.input[:, one],
            h_0=call.h_0[:, one],
            c_0=call.c_0[:, one],
            resets=call.resets[:, one],
        )
        expected = {name: x[:, one] for name, x in whole.items()}
        assert_same_bits(state_gradients(alone), expected, f"sequence {b}")


def test_what_is_kept_changes_no_bit() -> None:
    """Inference, states and training run the same arithmetic."""
    for case in (Case(7, 13, 5, 33, 9, layout="lengths"), Case(7, 6, 5, 16, bidirectional=True)):
        call = make_call(dataclasses.replace(case, dtype=torch.float32))
        kept = [ops.lstm_layer(*call.arguments(), save) for save in (0, 1, 2)]
        for results in kept[1:]:
            for name, a, b in zip(("output", "h_n", "c_n"), results, kept[0], strict=False):
                assert_same_bits({name: a}, {name: b}, case)
        assert_same_bits({"c_all": kept[1][3]}, {"c_all": kept[2][3]}, case)
