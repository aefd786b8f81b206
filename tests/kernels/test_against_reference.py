"""The operators in float64 against the reference operators: every result and every gradient.

The bound is 1e-12 in absolute terms, also for weight gradients, which are sums over up to 1050 rows of
magnitude 100 here: rounding leaves 2e-13 of them. The compiled kernels work in vectors of up to 8 doubles
(16 floats), tiles of up to 6 rows, panels of 4 vectors, chunks of 48 and blocks of 96 rows, 256 rows a pass
of the weight gradients; the sizes lie around these numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from support_compare import assert_close
from support_ops import (
    ACTIVATIONS,
    CELLS,
    OPTIONS,
    ZONEOUTS,
    Case,
    make_call,
    ops,
    output_activation_call,
    run_cell,
    run_layer,
    run_reference,
)

HIDDEN = [1, 3, 8, 15, 16, 17, 33, 64, 65, 100, 130]
BATCH = [1, 2, 5, 6, 7, 13, 97, 150]
STEPS = [1, 2, 7]
FEATURES = [1, 3, 64, 65]


def check(case: Case) -> None:
    call = make_call(case)
    assert_close(run_layer(call), run_reference(call), case)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("batch", BATCH)
def test_sizes(hidden: int, batch: int) -> None:
    # Every size meets every other; directions and cells take turns.
    for index, steps in enumerate(STEPS):
        turn = HIDDEN.index(hidden) + BATCH.index(batch) + index
        cell = "standard" if turn // 2 % 2 else "piecewise linear"
        check(Case(steps, batch, FEATURES[turn % 4], hidden, bidirectional=turn % 2 == 1, cell=cell))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize(
    ("hidden", "projection"), [(3, 1), (17, 16), (33, 15), (65, 17), (130, 64), (130, 65)]
)
def test_projection_sizes(hidden: int, projection: int, features: int) -> None:
    for steps, batch, bidirectional in [(1, 1, True), (2, 7, False), (7, 97, True)]:
        check(Case(steps, batch, features, hidden, projection, bidirectional=bidirectional))


@pytest.mark.parametrize("layout", ["padded", "packed", "lengths"])
@pytest.mark.parametrize("resets", ["none", "first", "every", "some"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
def test_every_option_with_every_other(layout: str, resets: str, bidirectional: bool) -> None:
    sizes = [(7, 5, 3, 8), (9, 13, 10, 17), (3, 150, 2, 5)]
    for (steps, batch, features, hidden), projection, bias, given, cell in itertools.product(
        sizes, [0, 4], [False, True], [False, True], ["standard", "piecewise linear"]
    ):
        check(
            Case(steps, batch, features, hidden, projection, bias, bidirectional, layout, resets, given, cell)
        )


@pytest.mark.parametrize("resets", ["none", "some"])
@pytest.mark.parametrize("projection", [0, 3])
@pytest.mark.parametrize("layout", ["lengths", "packed"])
def test_long_ragged_sequences(layout: str, projection: int, resets: str) -> None:
    """Several chunks of steps and passes of the weight gradients; sequences join and leave in between."""
    for steps, batch in [(60, 7), (20, 110), (300, 2)]:
        check(Case(steps, batch, 3, 9, projection, bidirectional=True, layout=layout, resets=resets))


@pytest.mark.parametrize("layout", ["padded", "packed", "lengths", "no lengths"])
@pytest.mark.parametrize("projection", [0, 5])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_recurrent_masks(layout: str, projection: int, rate: float) -> None:
    """Few and many sequences, in groups and sharing units; one that is read where it lies."""
    for (steps, batch, hidden), resets, given in itertools.product(
        [(7, 5, 9), (5, 1, 300), (9, 13, 130), (3, 150, 17)], ["none", "some"], [False, True]
    ):
        case = Case(
            steps, batch, 3, hidden, projection, True, hidden % 2 == 1, layout, resets, given, "peephole"
        )
        check(dataclasses.replace(case, dropout=rate))


@pytest.mark.parametrize("layout", ["padded", "packed", "lengths", "no lengths"])
@pytest.mark.parametrize("projection", [0, 5])
@pytest.mark.parametrize("zoneout", ZONEOUTS)
def test_zoneout(layout: str, projection: int, zoneout: str) -> None:
    for (steps, batch, hidden), resets, dropout in itertools.product(
        [(7, 5, 9), (5, 1, 300), (9, 13, 130), (3, 150, 17)], ["none", "some"], [0.0, 0.4]
    ):
        case = Case(steps, batch, 3, hidden, projection, True, hidden % 2 == 1, layout, resets)
        cell = "peephole and clips" if dropout else "standard"
        check(dataclasses.replace(case, dropout=dropout, zoneout=zoneout, cell=cell))


@pytest.mark.parametrize(("hidden", "projection"), [(1030, 0), (1024, 0), (1100, 1027)])
def test_one_wide_sequence(hidden: int, projection: int, any_threads: None) -> None:
    """Backward reads W_hh where it lies, at every step, 1024 columns of the result at a time.

    On one thread: several would have fewer each.
    """
    torch.set_num_threads(1)
    for bidirectional in (False, True):
        check(Case(3, 1, 5, hidden, projection, bidirectional=bidirectional))


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("resets", ["none", "every"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_no_sequence_has_a_step(bidirectional: bool, resets: str, given: bool) -> None:
    for projection in (0, 4):
        check(Case(4, 6, 3, 9, projection, True, bidirectional, "no lengths", resets, given))


def test_batch_sizes_may_leave_sequences_out() -> None:
    """Fewer sequences in the first step than states: the others' states are handed through."""
    call = make_call(Case(3, 5, 2, 9, bidirectional=True, layout="packed"))
    call = call.replace(batch_sizes=torch.tensor([3, 2]), input=call.input[:5], resets=None)
    actual = run_layer(call)
    assert_close(actual, run_reference(call))
    assert torch.equal(actual["h_n"][:, 3:], call.h_0[:, 3:])


@pytest.mark.parametrize("cell", CELLS)
def test_activations(cell: str) -> None:
    gain = 0.3 if cell.endswith("gate") else 1.0
    check(Case(7, 13, 3, 17, bidirectional=True, cell=cell, gain=gain))
    check(Case(2, 1, 3, 8, 3, layout="packed", cell=cell, gain=gain))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_their_kinks(name: str) -> None:
    """Value and derivative exactly where the formula changes, at zero of either sign, and far out."""
    kinks = [
        0.0,
        -0.0,
        0.3,
        -0.6,
        0.9,
        -1.5,
        -0.5,
        0.4,
        2.0,
        -2.0,
        1.0,
        -1.0,
        40.0,
        -40.0,
        800.0,
        -800.0,
        1e15,
        -1e15,
    ]
    edges = torch.tensor(kinks, dtype=torch.float64)
    up, down = torch.full_like(edges, torch.inf), torch.full_like(edges, -torch.inf)
    values = torch.stack([edges, edges.nextafter(up), edges.nextafter(down)])
    call = output_activation_call(ACTIVATIONS[name].encode(), values)
    actual, expected = run_layer(call), run_reference(call)
    far = values.abs() > 1e12  # there one rounding is more than the bound
    for found in (actual, expected):
        found["h_n"], found["output"] = (
            torch.where(far, x / values, x) for x in (found["h_n"], found["output"])
        )
    assert_close(actual, expected, name)


@pytest.mark.parametrize("projection", [0, 5])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("cell", ["standard", "piecewise linear"])
def test_single_step(projection: int, bias: bool, cell: str) -> None:
    for batch, hidden in itertools.product(BATCH, [6, 8, 17, 33, 65, 130]):
        call = make_call(Case(1, batch, 3, hidden, projection, bias, cell=cell))
        actual, expected = run_cell(call), run_cell(call, ops.lstm_cell_reference)
        assert_close(actual, expected, f"B{batch} H{hidden}")


@pytest.mark.parametrize("name", [*(name for name in CELLS if name.endswith(" gate")), *OPTIONS])
def test_activations_in_a_single_step(name: str) -> None:
    call = make_call(Case(1, 7, 3, 17, cell=name))
    assert_close(run_cell(call), run_cell(call, ops.lstm_cell_reference), name)


def cases_for_threads() -> Iterator[Case]:
    """Large enough for a team of threads, which share units, rows or directions."""
    for batch, hidden, features in [(2, 130, 65), (1, 257, 3), (13, 65, 65), (40, 100, 3), (150, 33, 64)]:
        for bidirectional in (False, True):
            yield Case(7, batch, features, hidden, bidirectional=bidirectional)
        yield Case(7, batch, features, hidden, 17, bidirectional=True, layout="lengths", resets="some")
        yield Case(7, batch, features, hidden, bidirectional=True, layout="packed", cell="piecewise linear")


@pytest.mark.parametrize("case", list(cases_for_threads()), ids=str)
def test_on_threads(case: Case, threads: int) -> None:
    check(case)


@pytest.mark.parametrize("result", ["output", "h_n", "c_n", "c_all"])
def test_gradient_of_one_result_alone(result: str) -> None:
    """The kernel takes an absent gradient as zero."""
    call = make_call(Case(4, 7, 3, 9, 4, bidirectional=True, layout="lengths", resets="some"))
    index = ("output", "h_n", "c_n", "c_all").index(result)
    found = {}
    for operator in (ops.lstm_layer, ops.lstm_layer_reference):
        leaves = {name: x.detach().requires_grad_() for name, x in call.leaves().items()}
        weights = list(leaves.values())[3:]
        fresh = call.replace(input=leaves["input"], h_0=leaves["h_0"], c_0=leaves["c_0"], weights=weights)
        y = operator(*fresh.arguments(), 2)[index]
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        gradients = torch.autograd.grad((y * weight).sum(), list(leaves.values()), allow_unused=True)
        # Zero where the result does not depend on an argument: the last weights do not reach c_n, say.
        found[operator] = {
            name: torch.zeros_like(x) if g is None else g
            for (name, x), g in zip(leaves.items(), gradients, strict=True)
        }
    assert_close(found[ops.lstm_layer], found[ops.lstm_layer_reference], result)
