"""Laws that hold for every shape and option, on examples that hypothesis chooses (the same ones in
every run).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support_compare import assert_close, assert_same_bits
from support_ops import CELLS, RESULTS, ZONEOUTS, Case, LayerCall, make_call, ops, run_layer, run_reference
from support_torch import run_nn_lstm
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import customlstm

DTYPES = [torch.float32, torch.float64]


@st.composite
def cases(draw: st.DrawFn, layouts: str = "padded packed lengths", **fixed: Any) -> Case:
    """Sizes and options of one layer call; ``fixed`` are not drawn."""
    hidden = draw(st.integers(1, 40))
    cell = draw(st.sampled_from(sorted(CELLS)))
    drawn = {
        "steps": draw(st.integers(1, 9)),
        "batch": draw(st.integers(1, 20)),
        "features": draw(st.integers(1, 20)),
        "hidden": hidden,
        "projection": draw(st.integers(0, hidden - 1)),
        "bias": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
        "layout": draw(st.sampled_from(layouts.split())),
        "resets": draw(st.sampled_from(["none", "first", "every", "some"])),
        "given": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.4])),
        "zoneout": draw(st.sampled_from(["none", *ZONEOUTS])),
        "cell": cell,
        # gates that are not bounded make the states explode, and every rounding with them
        "gain": 0.3 if cell.endswith("gate") else 1.0,
        "seed": draw(st.integers(0, 1000)),
        "dtype": draw(st.sampled_from(DTYPES)),
    }
    return Case(**(drawn | fixed))


def forward(call: LayerCall) -> dict[str, Tensor]:
    return dict(zip(RESULTS, ops.lstm_layer(*call.arguments(), 1), strict=False))


def columns(call: LayerCall, index: Any) -> LayerCall:
    """Some sequences of a padded call, in some order."""
    return call.replace(
        input=call.input[:, index],
        h_0=None if call.h_0 is None else call.h_0[:, index],
        c_0=None if call.c_0 is None else call.c_0[:, index],
        lengths=None if call.lengths is None else call.lengths[index],
        resets=None if call.resets is None else call.resets[:, index],
        recurrent_mask=None if call.recurrent_mask is None else call.recurrent_mask[:, index],
        zoneout_h=None if call.zoneout_h is None else call.zoneout_h[:, index],
        zoneout_c=None if call.zoneout_c is None else call.zoneout_c[:, index],
    )


def cut_steps(call: LayerCall, begin: int, end: int) -> LayerCall:
    """Some steps of a padded call."""
    cut = {
        name: None if getattr(call, name) is None else getattr(call, name)[begin:end]
        for name in ("input", "resets", "zoneout_h", "zoneout_c")
    }
    return call.replace(**cut)


# --- three implementations ---


@given(cases(dtype=torch.float64))
@example(Case(9, 20, 20, 40, 39, layout="lengths", resets="some", bidirectional=True))
def test_fused_is_the_reference(case: Case) -> None:
    call = make_call(case)
    # Unbounded activations give large values: there the bound is relative.
    assert_close(run_layer(call), run_reference(call), case, tolerance=1e-12, relative=1e-12)


@given(
    cases(
        "padded packed",
        dtype=torch.float64,
        cell="standard",
        gain=1.0,
        resets="none",
        dropout=0.0,
        zoneout="none",
    )
)
def test_fused_is_nn_lstm(case: Case) -> None:
    call = make_call(case)
    assert_close(run_layer(call, results=RESULTS[:3]), run_nn_lstm(call), case)


@given(
    cases(dtype=torch.float64, resets="none", given=False, dropout=0.0, zoneout="none"),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["padded", "packed", "unbatched"]),
)
def test_modules(case: Case, layers: int, batch_first: bool, layout: str) -> None:
    """Fused, reference, and with the standard cell ``nn.LSTM``: what the modules add to one layer."""
    options: dict[str, Any] = dict(
        num_layers=layers, bias=case.bias, batch_first=batch_first, bidirectional=case.bidirectional,
        proj_size=case.projection, dtype=torch.float64,
    )  # fmt: skip
    torch.manual_seed(case.seed)
    modules = [customlstm.LSTM(case.features, case.hidden, **options, cell=CELLS[case.cell], backend="fused")]
    modules.append(
        customlstm.LSTM(case.features, case.hidden, **options, cell=CELLS[case.cell], backend="reference")
    )
    if CELLS[case.cell].is_standard:
        modules.append(nn.LSTM(case.features, case.hidden, **options))
    size = (case.batch, case.steps) if batch_first else (case.steps, case.batch)
    x = torch.randn(*size, case.features, dtype=torch.float64)
    if layout == "unbatched":
        x = x[0] if batch_first else x[:, 0]
    lengths = torch.randint(1, case.steps + 1, (case.batch,))
    found = []
    for module in modules:
        module.load_state_dict(modules[0].state_dict())
        leaf = x.clone().requires_grad_()
        given = (
            pack_padded_sequence(leaf, lengths, batch_first, enforce_sorted=False)
            if layout == "packed"
            else leaf
        )
        output, (h_n, c_n) = module(given)
        output = output.data if layout == "packed" else output
        loss = sum(
            (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() for y in (output, h_n, c_n)
        )
        names = ["input", *(name for name, _ in module.named_parameters())]
        gradients = torch.autograd.grad(loss, [leaf, *module.parameters()], allow_unused=True)
        found.append({"output": output, "h_n": h_n, "c_n": c_n} | dict(zip(names, gradients, strict=True)))
    for other in found[1:]:
        assert_close(found[0], other, f"{case} {layers} layers {layout}", relative=1e-12)


# --- laws ---


@given(cases("padded lengths"), st.randoms(use_true_random=False))
def test_the_order_of_the_batch_changes_no_bit(case: Case, random: Any) -> None:
    call = make_call(case)
    order = torch.tensor(random.sample(range(case.batch), case.batch))
    expected = {name: y[:, order] for name, y in forward(call).items()}
    assert_same_bits(forward(columns(call, order)), expected, case)


@given(cases("padded lengths"), st.data())
def test_a_sequence_alone_gives_the_same_bits(case: Case, data: st.DataObject) -> None:
    """Alone, and cut off at its own length."""
    call = make_call(case)
    b = data.draw(st.integers(0, case.batch - 1))
    alone = columns(call, slice(b, b + 1))
    expected = {name: y[:, b : b + 1] for name, y in forward(call).items()}
    if call.lengths is not None:
        n = int(call.lengths[b])
        alone = cut_steps(alone, 0, n).replace(lengths=None)
        for name in ("output", "c_all"):
            assert not expected[name][n:].any(), f"{name} is not zero beyond a length"
            expected[name] = expected[name][:n]
    assert_same_bits(forward(alone), expected, case)


@given(cases("padded", bidirectional=False), st.data())
def test_a_sequence_in_pieces_gives_the_same_bits(case: Case, data: st.DataObject) -> None:
    """Split anywhere, the state handed on: streaming is running the whole, to the last bit."""
    call = make_call(case)
    expected = forward(call)
    cuts = sorted(data.draw(st.lists(st.integers(0, case.steps), max_size=3)))
    pieces: list[dict[str, Tensor]] = []
    states = (call.h_0, call.c_0)
    for begin, end in zip([0, *cuts], [*cuts, case.steps], strict=True):
        pieces.append(forward(cut_steps(call, begin, end).replace(h_0=states[0], c_0=states[1])))
        states = (pieces[-1]["h_n"], pieces[-1]["c_n"])
    found = {
        "output": torch.cat([p["output"] for p in pieces]),
        "h_n": states[0],
        "c_n": states[1],
        "c_all": torch.cat([p["c_all"] for p in pieces]),
    }
    assert_same_bits(found, expected, case)


@given(cases("packed", given=True))
def test_lengths_are_packing(case: Case) -> None:
    packed = make_call(case)
    steps, sizes = packed.batch_sizes.numel(), packed.batch_sizes
    valid = torch.arange(case.batch) < sizes.unsqueeze(1)

    def pad(rows: Tensor) -> Tensor:
        return rows.new_zeros(steps, case.batch, rows.size(-1)).index_put((valid,), rows)

    masks = {
        name: None if getattr(packed, name) is None else pad(getattr(packed, name))
        for name in ("zoneout_h", "zoneout_c")
    }
    padded = packed.replace(input=pad(packed.input), batch_sizes=None, lengths=valid.sum(0), **masks)
    actual, expected = run_layer(padded, results=["h_n", "c_n"]), run_layer(packed, results=["h_n", "c_n"])
    expected["gradient of input"] = pad(expected["gradient of input"])
    assert_same_bits(actual, expected, case)
    whole = forward(packed)
    assert_same_bits(forward(padded), whole | {name: pad(whole[name]) for name in ("output", "c_all")}, case)


@given(cases("padded", resets="some"))
def test_resets_are_running_the_pieces(case: Case) -> None:
    """Each sequence cut at its own resets; in both directions, each piece from zero but for the outermost."""
    call = make_call(case)
    expected = forward(call)
    for b in range(min(case.batch, 3)):
        cuts = [t for t in range(1, case.steps) if call.resets[t, b]]
        found: list[dict[str, Tensor]] = []
        for begin, end in zip([0, *cuts], [*cuts, case.steps], strict=True):
            piece = cut_steps(columns(call, slice(b, b + 1)), begin, end).replace(resets=None)
            if piece.h_0 is not None:
                h_0, c_0 = piece.h_0.clone(), piece.c_0.clone()
                for state in (h_0, c_0):
                    if begin > 0 or call.resets[0, b]:
                        state[0] = 0.0
                    if end < case.steps and case.bidirectional:
                        state[1] = 0.0
                piece = piece.replace(h_0=h_0, c_0=c_0)
            found.append(forward(piece))
        joined = {name: torch.cat([piece[name] for piece in found]) for name in ("output", "c_all")}
        for name, first_row in (("h_n", 0), ("c_n", 0)):
            parts = [found[-1][name][first_row : first_row + 1]]
            joined[name] = torch.cat([*parts, found[0][name][1:]])
        one = {name: expected[name][:, b : b + 1] for name in joined}
        assert_same_bits(joined, one, f"{case} sequence {b} cut at {cuts}")


@given(cases("padded lengths", bidirectional=True))
def test_the_reverse_direction_is_the_forward_one_on_the_reversed_sequence(case: Case) -> None:
    call = make_call(case)
    count = len(call.weights) // 2
    steps = torch.arange(case.steps).unsqueeze(1)
    lengths = torch.full((case.batch,), case.steps) if call.lengths is None else call.lengths
    # step t of a reversed sequence is step length - 1 - t; the padding stays where it is
    turned = torch.where(steps < lengths, lengths - 1 - steps, steps)
    resets = call.resets
    if resets is not None:
        # a cut before step t lies, seen from the end, before step length - t
        before = torch.where((steps > 0) & (steps < lengths), lengths - steps, 0)
        resets = resets.gather(0, before) & (before > 0)

    def reverse(x: Tensor) -> Tensor:
        return x.gather(0, turned.unsqueeze(-1).expand_as(x))

    def second(masks: Tensor | None) -> Tensor | None:
        return None if masks is None else reverse(masks.chunk(2, -1)[1])

    single = call.replace(
        input=reverse(call.input),
        weights=call.weights[count:],
        h_0=None if call.h_0 is None else call.h_0[1:],
        c_0=None if call.c_0 is None else call.c_0[1:],
        resets=resets,
        recurrent_mask=None if call.recurrent_mask is None else call.recurrent_mask[1:],
        zoneout_h=second(call.zoneout_h),
        zoneout_c=second(call.zoneout_c),
        bidirectional=False,
    )
    both, found = forward(call), forward(single)
    expected = {
        "output": both["output"][..., both["output"].size(-1) // 2 :],
        "h_n": both["h_n"][1:],
        "c_n": both["c_n"][1:],
        "c_all": both["c_all"][..., case.hidden :],
    }
    found = {name: reverse(y) if name in ("output", "c_all") else y for name, y in found.items()}
    assert_same_bits(found, expected, case)


@given(cases("padded", steps=1, bidirectional=False, resets="none", given=True, dropout=0.0, zoneout="none"))
def test_a_single_step_is_a_layer_of_one_step(case: Case) -> None:
    call = make_call(case)
    h_1, c_1, c_all, _, _ = ops.lstm_cell(
        call.input[0],
        call.h_0[0],
        call.c_0[0],
        call.weights,
        call.cell,
        call.cell_args,
        call.bias,
        call.projection,
        1,
    )
    expected = forward(call)
    found = {
        "output": h_1.unsqueeze(0),
        "h_n": h_1.unsqueeze(0),
        "c_n": c_1.unsqueeze(0),
        "c_all": c_all.unsqueeze(0),
    }
    assert_same_bits(found, expected, case)


@given(cases(dtype=torch.float64), st.floats(-3, 3))
def test_gradients_are_linear_in_what_they_are_given(case: Case, factor: float) -> None:
    """Backward of a times the gradients is a times backward: nothing in it depends on anything else."""
    call = make_call(dataclasses.replace(case, dtype=torch.float64))
    results = ops.lstm_layer(*call.arguments(), 2)
    needs = [1, *[int(call.h_0 is not None)] * 2, *[1] * len(call.weights)]
    gradients = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) for y in results[:4]]

    def backward(scale: float) -> dict[str, Tensor]:
        given = [scale * g for g in gradients]
        *named, weights = ops.lstm_layer_backward(*given, *call.arguments(), results[0], *results[3:], needs)
        return {str(k): g for k, g in enumerate([*named, *weights])}

    expected = {name: factor * g for name, g in backward(1.0).items()}
    assert_close(backward(factor), expected, case, relative=1e-11)
