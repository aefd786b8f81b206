"""The thread plan as a table: what must be chosen at landmarks, and rules that hold for all sizes."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from customlstm import _binary
from customlstm.thread_plan import ACCESS, ThreadPlan, plan

ROOT = Path(__file__).resolve().parents[2]
SHARED, OWN, ONE = "units shared", "own sequences", "one thread"
TURNED, IN_TURN, PACKED, ALONG = "turned", "packed in turn", "packed", "along rows"
THREADS = [*range(1, 13), 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64, 65, 96, 100, 128, 200, 255, 256]


def named(steps: int, batch: int, input_size: int, hidden_size: int, proj_size: int = 0) -> dict[str, int]:
    sizes = {"steps": steps, "batch": batch, "input_size": input_size, "hidden_size": hidden_size}
    return sizes | {"proj_size": proj_size}


def work(found: ThreadPlan) -> str:
    return ONE if found.threads == 1 else SHARED if found.share_units else OWN


# --- the choice ---


FORWARD = {
    SHARED: [
        (100, 1, 512, 512),
        (100, 1, 128, 128),
        (100, 16, 256, 256),
        (100, 32, 1024, 1024),
        (70, 20, 400, 1150),
    ],
    OWN: [
        (100, 64, 128, 128),
        (256, 128, 256, 256),
        (50, 256, 64, 64),
        (1000, 32, 64, 128),
        (128, 64, 100, 100),
    ],
    ONE: [(1, 1, 32, 32), (1, 1, 128, 128), (3, 2, 5, 8)],
}
BACKWARD = {
    SHARED: [(70, 20, 400, 1150), (100, 1, 512, 512), (100, 1, 1024, 1024)],
    OWN: [
        (256, 128, 256, 256),
        (100, 64, 512, 512),
        (50, 256, 64, 64),
        (1000, 32, 64, 128),
        (128, 64, 100, 100),
    ],
    ONE: [(1, 1, 32, 32), (3, 2, 5, 8)],
}


@pytest.mark.parametrize(
    ("shape", "backward", "expected"),
    [
        (shape, backward, expected)
        for backward, table in ((False, FORWARD), (True, BACKWARD))
        for expected, shapes in table.items()
        for shape in shapes
    ],
    ids=str,
)
def test_landmarks_on_two_threads(shape: tuple[int, ...], backward: bool, expected: str) -> None:
    found = plan(**named(*shape), threads=2, backward=backward)
    assert work(found) == expected, found


def test_two_directions_are_work_for_two_threads() -> None:
    """One sequence cannot be dealt out, its directions can: then nobody waits at any step."""
    found = plan(**named(100, 1, 128, 128), directions=2, threads=2)
    assert (found.threads, found.groups, found.share_units) == (2, 1, False)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # A single step: where the weights lie for a register tile of sequences, panel by panel for one block.
        ((1, 1, 128, 128), (TURNED, TURNED, TURNED, TURNED)),
        ((1, 6, 128, 128), (TURNED, TURNED, TURNED, TURNED)),
        ((1, 6, 512, 512), (TURNED, TURNED, TURNED, TURNED)),
        ((1, 7, 128, 128), (IN_TURN, IN_TURN, IN_TURN, IN_TURN)),
        ((1, 96, 128, 128), (IN_TURN, IN_TURN, IN_TURN, IN_TURN)),
        ((1, 97, 128, 128), (PACKED, PACKED, PACKED, PACKED)),
        # Rows of an odd length could end in the middle of an element of two 16-bit values.
        ((1, 1, 127, 128), (IN_TURN, TURNED, TURNED, TURNED)),
        ((1, 1, 128, 127), (TURNED, IN_TURN, TURNED, TURNED)),
        ((1, 1, 513, 513), (IN_TURN, IN_TURN, TURNED, TURNED)),
        # One sequence with long rows, however many steps. Backward sums along the other side of the matrix.
        ((1, 1, 256, 512), (ALONG, ALONG, TURNED, TURNED)),
        ((1, 1, 254, 512), (TURNED, ALONG, TURNED, TURNED)),
        ((100, 1, 512, 254), (ALONG, PACKED, PACKED, TURNED)),
        ((100, 1, 512, 512), (ALONG, ALONG, PACKED, TURNED)),
        ((100, 2, 512, 512), (PACKED, PACKED, PACKED, PACKED)),
        # Of several steps W_ih may still be for one block of rows; W_hh is used again.
        ((2, 1, 128, 128), (IN_TURN, PACKED, IN_TURN, TURNED)),
        ((12, 8, 64, 64), (IN_TURN, PACKED, IN_TURN, PACKED)),
        ((97, 1, 128, 128), (PACKED, PACKED, PACKED, TURNED)),
        # With a projection the rows of W_hh are as long as that.
        ((100, 1, 512, 512, 128), (ALONG, PACKED, PACKED, TURNED)),
        ((100, 1, 128, 512, 256), (PACKED, ALONG, PACKED, TURNED)),
        ((1, 1, 64, 512, 127), (TURNED, IN_TURN, TURNED, TURNED)),
    ],
    ids=str,
)
def test_how_weights_are_read(shape: tuple[int, ...], expected: tuple[str, str, str, str]) -> None:
    for directions in (1, 2):
        found = plan(**named(*shape), directions=directions, threads=2)
        access = (found.weight_ih, found.weight_hh, found.backward_ih, found.backward_hh)
        assert access == expected


# --- rules ---


def random_call(source: random.Random, **given: Any) -> dict[str, Any]:
    hidden = given.get("hidden_size") or source.randint(1, 2000)
    call = {
        "steps": source.choice([0, 1, 1, 2, 7, 100, source.randint(0, 2000)]),
        "batch": source.choice([1, 1, 2, 6, 7, 96, 97, source.randint(0, 300), source.randint(0, 300)]),
        "input_size": source.choice([1, hidden, source.randint(0, 2000)]),
        "hidden_size": hidden,
        "proj_size": source.choice([0, 0, 0, 1, max(1, hidden // 2), max(1, hidden - 1)]),
        "directions": source.choice([1, 2]),
        "backward": source.random() < 0.5,
    }
    return call | given


def broken_rules(found: ThreadPlan, threads: int, call: dict[str, Any]) -> Iterator[str]:
    """Every rule that this plan breaks."""
    rules = {
        "no more threads than there are": 1 <= found.threads <= threads,
        "groups of at least one sequence": 1 <= found.groups <= max(call["batch"], 1),
        "a job for every thread": found.share_units or call["directions"] * found.groups >= found.threads,
        "who shares units has all sequences": not found.share_units or found.groups == 1,
        "one thread shares with nobody": found.threads > 1 or not found.share_units,
        "what one thread does is not dealt out": found.threads > 1 or found.groups == 1,
        "nothing to do is for one thread": found.threads == 1 or call["batch"] * call["steps"] > 0,
        "a time": 0 <= found.cycles < math.inf,
        "a way to read W_ih in backward": found.backward_ih in (PACKED, TURNED, IN_TURN),
        "a way to read W_hh in backward": found.backward_hh in (PACKED, TURNED, IN_TURN),
    }
    return (rule for rule, holds in rules.items() if not holds)


def check(call: dict[str, Any], counts: list[int] | range) -> None:
    """The rules for each of these numbers of threads, ascending, and between them."""
    before: ThreadPlan | None = None
    for threads in counts:
        found = plan(**call, threads=threads)
        broken = list(broken_rules(found, threads, call))
        assert not broken, f"{call} on {threads} threads: {found}\nbreaks: {broken}"
        if before is not None:
            worse = f"{call}: {threads} threads make {before} slower: {found}"
            assert found.cycles <= before.cycles, worse
            # Or the order of sums would depend on the number of threads.
            read = [(p.weight_ih, p.weight_hh, p.backward_ih, p.backward_hh) for p in (before, found)]
            assert read[0] == read[1], f"{call} on {threads} threads: {read[1]}, on fewer {read[0]}"
        before = found


def test_rules_for_every_hidden_size() -> None:
    source = random.Random(0)
    for hidden in range(1, 2001):
        check(random_call(source, hidden_size=hidden), sorted(source.sample(THREADS, 6)))


def test_rules_for_every_batch() -> None:
    source = random.Random(1)
    for batch in range(301):
        for directions in (1, 2):
            for backward in (False, True):
                call = random_call(source, batch=batch, directions=directions, backward=backward)
                check(call, sorted(source.sample(THREADS, 8)))


def test_rules_for_every_number_of_threads() -> None:
    source = random.Random(2)
    for batch in (1, 2, 9, 64, 200, 300, *(source.randint(1, 300) for _ in range(14))):
        check(random_call(source, batch=batch), range(1, 257))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        (0, 0, 0, 1),
        (0, 5, 3, 8),
        (5, 0, 3, 8),
        (5, 3, 0, 8),
        (2**40, 1, 1, 8),
        (1, 2**40, 8, 8),
        (7, 3, 2**40, 2**40),
    ],
    ids=str,
)
def test_rules_for_empty_and_huge(sizes: tuple[int, ...], backward: bool) -> None:
    for directions in (1, 2):
        check(named(*sizes) | {"directions": directions, "backward": backward}, [*THREADS, 1 << 20])


def test_pieces_of_a_sequence_are_summed_like_the_whole() -> None:
    """Along rows is another order of sums than in panels, so the number of steps must not choose it."""
    source = random.Random(3)
    for _ in range(1000):
        call = random_call(source, batch=source.choice([1, 1, 2, 7]))
        plans = [plan(**call | {"steps": steps}, threads=2) for steps in (0, 1, 2, 7, 96, 97, 2000)]
        assert len({(p.weight_ih == ALONG, p.weight_hh == ALONG) for p in plans}) == 1, call
        if call["batch"] > 1:
            assert ALONG not in (plans[0].weight_ih, plans[0].weight_hh), call


def test_time_grows_with_steps() -> None:
    source = random.Random(4)
    for _ in range(300):
        call = random_call(source, batch=source.randint(1, 300))
        times = [plan(**call | {"steps": steps}, threads=8).cycles for steps in (1, 10, 100, 1000)]
        assert times == sorted(times) and times[0] < times[-1], call


# --- its face ---


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((1, 1, False), "1 thread"),
        ((2, 1, True), "2 threads, which share the units of every step"),
        ((4, 4, False), "4 threads, each with sequences of its own"),
        ((4, 2, False), "4 threads, each with sequences of its own"),
        ((2, 1, False), "2 threads, each with a direction of its own"),
    ],
)
def test_text(parts: tuple[int, int, bool], text: str) -> None:
    assert str(ThreadPlan(*parts, PACKED, PACKED, PACKED, PACKED, 1.0)) == text


def test_the_threads_of_torch_are_the_default(threads: int) -> None:
    sizes = named(100, 64, 128, 128)
    assert plan(**sizes) == plan(**sizes, threads=threads) and plan(**sizes).threads == threads


def test_access_has_the_numbers_of_the_library() -> None:
    """One of each: the names are matched by hand with WeightAccess in csrc/cpu/kernels.h."""
    assert ACCESS == (PACKED, TURNED, ALONG, IN_TURN)
    shapes = [(100, 2, 8, 8), (1, 2, 8, 8), (1, 1, 256, 8), (1, 7, 8, 8)]
    for number, (steps, batch, features, hidden) in enumerate(shapes):
        op = torch.ops.customlstm.cpu_plan
        assert op([steps, batch, features, hidden, hidden, 1, 4], 1, False)[0][3] == number


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"batch": -1}, "batch must be at least 0, got -1"),
        ({"input_size": -1}, "input_size must be at least 0, got -1"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"proj_size": -1}, "proj_size must be at least 0, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"directions": 3}, "directions must be 1 or 2, got 3"),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        plan(**named(1, 1, 8, 8) | wrong)


def test_the_operator_checks_its_numbers() -> None:
    op = torch.ops.customlstm.cpu_plan
    for sizes, threads, text in [
        ([1] * 6, 1, "sizes has 6 numbers, expected 7"),
        ([1] * 8, 1, "sizes has 8 numbers, expected 7"),
        ([-1, 1, 8, 8, 8, 1, 4], 1, "steps is -1, expected 0 to"),
        ([1, -1, 8, 8, 8, 1, 4], 1, "batch is -1, expected 0 to"),
        ([1, 1, -1, 8, 8, 1, 4], 1, "input_size is -1, expected 0 to"),
        ([1, 1, 8, 0, 8, 1, 4], 1, "hidden_size is 0, expected 1 to"),
        ([1, 1, 8, 8, 0, 1, 4], 1, "output_size is 0, expected 1 to"),
        ([1, 1, 8, 8, 8, 0, 4], 1, "directions is 0, expected 1 to 2"),
        ([1, 1, 8, 8, 8, 3, 4], 1, "directions is 3, expected 1 to 2"),
        ([1, 1, 8, 8, 8, 1, 0], 1, "gates is 0, expected 1 to 8"),
        ([1, 1, 8, 8, 8, 1, 9], 1, "gates is 9, expected 1 to 8"),
        ([1, 1, 8, 2**41, 8, 1, 4], 1, f"hidden_size is {2**41}, expected 1 to {2**40}"),
        ([2**40, 2**40, 8, 8, 8, 1, 4], 1, f"no thread plan for {2**40} steps of {2**40} sequences"),
        ([1, 1, 8, 8, 8, 1, 4], 0, "threads is 0, expected 1 to"),
        ([1, 1, 8, 8, 8, 1, 4], 2**31, f"threads is {2**31}, expected 1 to"),
    ]:
        for backward in (False, True):
            with pytest.raises(RuntimeError, match=text):
                op(sizes, threads, backward)


def test_without_the_library_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_binary, "_status", _binary.Status(False, None, "it was not compiled"))
    with pytest.raises(RuntimeError, match="computed by the compiled library: it was not compiled"):
        plan(**named(1, 1, 8, 8))


# --- how many threads there are ---

ONE_CPU = """
import os, torch, customlstm
from customlstm import thread_plan
sizes = dict(steps=100, batch=1, input_size=512, hidden_size=512)
cpus = os.sched_getaffinity(0)
torch.set_num_threads(len(cpus) + 3)
assert torch.ops.customlstm.cpu_threads() == len(cpus), torch.ops.customlstm.cpu_threads()
os.sched_setaffinity(0, {min(cpus)})
assert torch.ops.customlstm.cpu_threads() == 1, torch.ops.customlstm.cpu_threads()
assert str(thread_plan.plan(**sizes)) == "1 thread"
"""

MORE_THAN_CPUS = """
import os, torch, customlstm
torch.set_num_threads(os.cpu_count() + 3)
assert torch.ops.customlstm.cpu_threads() == os.cpu_count() + 3
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux lets a process choose its CPUs")
def test_no_more_threads_than_cpus() -> None:
    """Threads that meet at every step, one of them not running, took 8 times as long on two CPUs."""
    others = ("CUSTOMLSTM_OVERSUBSCRIBE", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")
    environment = {name: value for name, value in os.environ.items() if name not in others}
    for code, more in ((ONE_CPU, {}), (MORE_THAN_CPUS, {"CUSTOMLSTM_OVERSUBSCRIBE": "1"})):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment | more, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
