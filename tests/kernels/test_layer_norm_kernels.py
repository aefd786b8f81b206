"""The compiled kernels with layer norm, where its sums over whole rows meet sizes, threads and storage types.

Every option cell of ``support_ops`` goes through the other files' tables as well. Here the bound is 1e-12 of
the largest element: from a state of zeros W_hh h has no variance, and gradients come to hundreds.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from support_compare import assert_close, assert_same_bits
from support_ops import (
    NORMALISED,
    SAVE_FOR_BACKWARD,
    ZONEOUTS,
    Case,
    gradients_given,
    make_call,
    ops,
    run_cell,
    run_layer,
    run_reference,
)
from torch import Tensor

from customlstm import thread_plan

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
layouts = pytest.mark.parametrize("layout", ["padded", "packed", "lengths", "no lengths"])


def scaled(results: dict[str, Tensor], by: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor over the largest element of the one of that name in ``by``, if that is more than 1."""
    return {
        name: x / max(1.0, by[name].abs().max().item() if by[name].numel() else 0.0)
        for name, x in results.items()
    }


def check(case: Case) -> None:
    call = make_call(case)
    expected = run_reference(call)
    assert_close(scaled(run_layer(call), expected), scaled(expected, expected), case)


@pytest.mark.parametrize("hidden", [1, 3, 8, 15, 16, 17, 33, 64, 65, 130])
@pytest.mark.parametrize("batch", [1, 2, 5, 13, 97, 150])
def test_sizes(hidden: int, batch: int) -> None:
    for turn, (steps, cell) in enumerate(itertools.product([1, 3], NORMALISED), hidden + batch):
        both, projection = turn % 2 == 1, (hidden + 1) // 2 if turn % 3 == 0 else 0
        check(Case(steps, batch, [1, 3, 65][turn % 3], hidden, projection, bidirectional=both, cell=cell))


@layouts
@pytest.mark.parametrize("cell", NORMALISED)
def test_every_option_with_every_other(layout: str, cell: str) -> None:
    sizes = [(7, 5, 3, 9), (3, 150, 2, 5)]
    for size, projection, bias, resets, given in itertools.product(
        sizes, [0, 3], [False, True], ["none", "some"], [False, True]
    ):
        check(Case(*size, projection, bias, bias == given, layout, resets, given, cell))


@layouts
@pytest.mark.parametrize("zoneout", ["none", *ZONEOUTS])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_masks(layout: str, zoneout: str, dropout: float) -> None:
    for (steps, batch, hidden), projection, cell in itertools.product(
        [(7, 5, 9), (5, 1, 130), (3, 97, 33)], [0, 5], ["layer norm", "layer norm and all options"]
    ):
        case = Case(steps, batch, 3, hidden, projection, True, hidden % 2 == 1, layout, "some", cell=cell)
        check(dataclasses.replace(case, dropout=dropout, zoneout=zoneout))


@pytest.mark.parametrize("projection", [0, 3])
def test_long_ragged_sequences(projection: int) -> None:
    """Several chunks of steps and passes of the weight gradients; sequences join and leave in between."""
    for (steps, batch), layout in itertools.product([(60, 7), (20, 110), (300, 2)], ["lengths", "packed"]):
        check(Case(steps, batch, 3, 9, projection, bidirectional=True, layout=layout, cell="layer norm"))


@pytest.mark.parametrize(("hidden", "projection"), [(1030, 0), (900, 771)])
def test_one_wide_sequence(hidden: int, projection: int, any_threads: None) -> None:
    """W_hh is read where it lies, in forward by the longest rows in an order of their own."""
    torch.set_num_threads(1)
    check(Case(2, 1, 5, hidden, projection, cell="layer norm"))


@pytest.mark.parametrize("cell", NORMALISED)
def test_single_step(cell: str) -> None:
    for batch, hidden, projection in itertools.product([1, 6, 13, 97], [6, 17, 65], [0, 5]):
        call = make_call(Case(1, batch, 3, hidden, projection, cell=cell))
        expected = run_cell(call, ops.lstm_cell_reference)
        assert_close(scaled(run_cell(call), expected), scaled(expected, expected), f"B{batch} H{hidden}")


THREADED = [
    Case(7, 1, 65, 257),
    Case(7, 2, 65, 130, bidirectional=True),
    Case(5, 4, 33, 200, 65, layout="lengths", resets="some"),
    Case(9, 41, 30, 64, 17, bidirectional=True, layout="lengths", resets="some"),
    Case(60, 12, 20, 64, bias=False, given=False),
    Case(9, 97, 17, 33, bidirectional=True, layout="packed", zoneout="both masks"),
    Case(9, 1, 70, 193, 97, bidirectional=True, resets="some"),
    Case(1, 5, 257, 512, 257),
    # Threads that share the units, with more sequences than are projected at a time.
    Case(3, 97, 17, 241, layout="lengths", zoneout="both rates"),
]


@pytest.mark.parametrize("cell", ["layer norm", "layer norm of the state and peephole"])
@pytest.mark.parametrize("case", THREADED, ids=str)
def test_threads_change_no_bit(case: Case, cell: str, any_threads: None) -> None:
    for dtype in DTYPES:
        call = make_call(dataclasses.replace(case, dtype=dtype, cell=cell))
        torch.set_num_threads(1)
        expected = run_layer(call)
        for threads in (2, 2, 2, 3):
            torch.set_num_threads(threads)
            assert_same_bits(run_layer(call), expected, f"{threads} threads, {dtype}")


def test_threads_share_units_somewhere_above() -> None:
    shared = []
    for case, backward in itertools.product(THREADED, (False, True)):
        sizes = {"steps": case.steps, "batch": case.batch, "input_size": case.features}
        sizes |= {"hidden_size": case.hidden, "proj_size": case.projection}
        sizes["directions"] = 2 if case.bidirectional else 1
        shared.append(thread_plan.plan(**sizes, threads=2, backward=backward).share_units)
    assert any(shared[0::2]) and any(shared[1::2]) and not all(shared[0::2]) and shared[-2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [2, 7, 97])
def test_a_sequence_does_not_see_its_batch(batch: int, dtype: torch.dtype) -> None:
    """Alone or among others, whichever row stands beside it: the sums over a row are its own."""
    case = Case(5, batch, 9, 17, bidirectional=True, resets="some", cell="layer norm", dtype=dtype)
    call = make_call(case)
    whole = state_gradients(call)
    for b in (0, batch // 2, batch - 1):
        one = slice(b, b + 1)
        alone = call.replace(
            input=call.input[:, one], h_0=call.h_0[:, one], c_0=call.c_0[:, one], resets=call.resets[:, one]
        )
        assert_same_bits(state_gradients(alone), {name: x[:, one] for name, x in whole.items()}, f"{b}")


def state_gradients(call: object) -> dict[str, Tensor]:
    """output, h_n and c_n, and gradients of what each sequence has of its own."""
    leaves = {name: getattr(call, name).detach().requires_grad_() for name in ("input", "h_0", "c_0")}
    results = ops.lstm_layer(*call.replace(**leaves).arguments(), SAVE_FOR_BACKWARD)[:3]
    gradients = torch.autograd.grad(results, list(leaves.values()), [torch.ones_like(y) for y in results])
    return {str(k): x.detach() for k, x in enumerate((*results, *gradients))}


@pytest.mark.parametrize("cell", NORMALISED)
def test_what_is_kept(cell: str) -> None:
    """Eight values a unit where a product is normalised, four elsewhere; it changes no bit of the results."""
    call = make_call(Case(5, 6, 3, 9, 4, bidirectional=True, cell=cell, zoneout="c rates"))
    kept = [ops.lstm_layer(*call.arguments(), save) for save in (0, 1, 2)]
    values = 4 if cell == "layer norm of the cell and clips" else 8
    assert [y[4].shape for y in kept] == [(0,), (0,), (5, 6, 2, values + 1, 9)]
    names = ("output", "h_n", "c_n")
    for results in kept[1:]:
        assert_same_bits(dict(zip(names, results, strict=False)), dict(zip(names, kept[0], strict=False)))


@pytest.mark.parametrize("cell", ["standard", "peephole"])
def test_other_cells_keep_what_they_kept(cell: str) -> None:
    call = make_call(Case(5, 6, 3, 9, cell=cell))
    assert ops.lstm_layer(*call.arguments(), 2)[4].shape == (5, 6, 1, 4, 9)


@pytest.mark.parametrize("place", range(6))
def test_each_parameter_alone(place: int) -> None:
    """Asked for by itself, a gradient has the bits that it has among all."""
    call = make_call(Case(5, 6, 3, 9, bidirectional=True, cell="layer norm"))
    found = run_layer(call)
    names = call.weight_names(bidirectional=False)
    alone = len(names) - 6 + place
    weights = [w.detach().requires_grad_(k == alone) for k, w in enumerate(call.weights)]
    results = ops.lstm_layer(*call.replace(weights=weights).arguments(), SAVE_FOR_BACKWARD)[:4]
    everything = dict(zip(("output", "h_n", "c_n", "c_all"), results, strict=True))
    (gradient,) = torch.autograd.grad(results, [weights[alone]], gradients_given(everything))
    name = f"gradient of {names[alone]}"
    assert_same_bits({name: gradient}, {name: found[name]})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_values_stay_in_their_row(value: float) -> None:
    call = make_call(Case(4, 5, 3, 9, cell="layer norm"))
    x = call.input.clone()
    x[1, 2, 0] = value
    output = ops.lstm_layer(*call.replace(input=x).arguments(), 0)[0]
    expected = ops.lstm_layer_reference(*call.replace(input=x).arguments(), 0)[0]
    assert output[1:, 2].isnan().all() and torch.equal(output.isnan(), expected.isnan())
    rest = torch.arange(5) != 2
    assert_same_bits(
        {"output": output[:, rest]}, {"output": ops.lstm_layer(*call.arguments(), 0)[0][:, rest]}
    )


def test_there_is_no_packed_step() -> None:
    call = make_call(Case(1, 2, 3, 4, cell="layer norm", dtype=torch.float32))
    with pytest.raises(RuntimeError) as caught:
        ops.lstm_pack(call.weights, call.cell, call.cell_args, True, False, 2)
    assert str(caught.value).splitlines()[0] == (
        "customlstm: layer norm has no packed step; call lstm_layer with the state instead"
    )
