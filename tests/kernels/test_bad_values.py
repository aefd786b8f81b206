"""NaN and infinity come out where the reference has them, and reach nothing else. And every bit pattern.

A NaN in one sequence must not touch another one, nor cross a reset, nor come in from the padding.
"""

from __future__ import annotations

import pytest
import torch
from support_compare import assert_close, assert_same_bits
from support_ops import (
    ACTIVATIONS,
    CELLS,
    Case,
    LayerCall,
    make_call,
    ops,
    output_activation_call,
    run_layer,
    run_reference,
)
from torch import Tensor

from customlstm import Cell

PER_SEQUENCE = ("output", "h_n", "c_n", "c_all", "gradient of input", "gradient of h_0", "gradient of c_0")


def select(
    found: dict[str, Tensor], names: tuple[str, ...], sequences: list[int] | slice = slice(None)
) -> dict[str, Tensor]:
    """Some tensors, and of these some sequences."""
    return {name: found[name][:, sequences] for name in names}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_bad_values_in_one_sequence(cell: str, value: float) -> None:
    """NaN and infinity come out where the reference has them, and no other sequence changes by a bit.

    The gradient through an infinity is not compared but for the standard cell: whether inf times a
    derivative of 0 is 0 or NaN depends on whether the formula multiplies or masks.
    """
    call = make_call(Case(6, 7, 5, 17, 4, bidirectional=True, cell=cell, gain=0.3))
    bad = call.input.clone()
    bad[3, 2, 1] = value
    call, clean = call.replace(input=bad), call
    actual, expected, before = run_layer(call), run_reference(call), run_layer(clean)
    others = [b for b in range(7) if b != 2]
    compared = PER_SEQUENCE if value != value or cell == "standard" else PER_SEQUENCE[:4]
    # relative: a piecewise-linear function of an infinity is of the order of the largest number there is
    assert_close(select(actual, compared), select(expected, compared), relative=1e-13)
    assert_same_bits(select(actual, PER_SEQUENCE, others), select(before, PER_SEQUENCE, others))


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_a_mask_stops_bad_values(value: float) -> None:
    """What a recurrent mask drops is zero, whatever it was."""
    call = make_call(Case(4, 3, 5, 17, given=True, dropout=1.0))
    bad = call.h_0.clone()
    bad[0, 1] = value
    actual, clean = run_layer(call.replace(h_0=bad)), run_layer(call)
    assert_same_bits(actual, clean)
    assert_close(run_reference(call.replace(h_0=bad)), clean)


@pytest.mark.parametrize("zoneout", ["none", "both rates"])
@pytest.mark.parametrize(("hidden", "projection"), [(5, 0), (7, 3), (5, 4), (17, 0)])
def test_what_grows_beyond_the_last_unit_reaches_nothing(hidden: int, projection: int, zoneout: str) -> None:
    """Vectors go on beyond the last unit. There the weights and biases are zero, and a forget gate of 2
    doubles the cell state at every step; of bfloat16 that is the other half of the last pair.
    """
    call = make_call(Case(400, 2, 3, hidden, projection, zoneout=zoneout, gain=0.1, dtype=torch.bfloat16))
    cell = Cell(("affine", {"alpha": 1.0, "beta": 2.0}), "softplus", "identity")
    weights = [w * 0 - 0.95 if w.shape == (4 * hidden,) else w for w in call.weights]
    name, cell_args = cell.encode()
    call = call.replace(weights=weights, cell=name, cell_args=cell_args)
    actual, expected = ops.lstm_layer(*call.arguments(), 0), ops.lstm_layer_reference(*call.arguments(), 0)
    for found, reference in zip(actual[:3], expected[:3], strict=True):
        assert reference.isfinite().all() and found.isfinite().all()


@pytest.mark.parametrize("zoneout", ["both masks", "both rates"])
def test_bad_values_meet_zoneout(zoneout: str) -> None:
    call = make_call(Case(6, 3, 5, 17, 4, bidirectional=True, zoneout=zoneout))
    bad = call.input.clone()
    bad[3, 1, 2] = torch.nan
    call = call.replace(input=bad)
    if zoneout == "both rates":
        call = call.replace(zoneout_h_rate=1.0, zoneout_c_rate=1.0)
    assert_close(run_layer(call), run_reference(call))


@pytest.mark.parametrize("where", ["h_0", "c_0"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_bad_values_in_one_initial_state(where: str, value: float) -> None:
    call = make_call(Case(4, 7, 5, 17, 4, bidirectional=True))
    bad = getattr(call, where).clone()
    bad[0, 3, 2] = value
    clean, call = run_layer(call), call.replace(**{where: bad})
    actual, expected = run_layer(call), run_reference(call)
    others = [b for b in range(7) if b != 3]
    assert_close(select(actual, PER_SEQUENCE), select(expected, PER_SEQUENCE))
    assert_same_bits(select(actual, PER_SEQUENCE, others), select(clean, PER_SEQUENCE, others))


def test_bad_values_in_the_padding_are_never_read() -> None:
    for projection in (0, 4):
        call = make_call(Case(6, 7, 5, 17, projection, bidirectional=True, layout="lengths", resets="some"))
        beyond = torch.arange(6).unsqueeze(1) >= call.lengths
        bad = call.replace(input=call.input.masked_fill(beyond.unsqueeze(-1), torch.nan))
        assert_same_bits(run_layer(bad), run_layer(call))


def test_bad_values_do_not_cross_a_reset() -> None:
    call = make_call(Case(6, 3, 5, 17, bidirectional=True))
    resets = torch.zeros(6, 3, dtype=torch.bool)
    resets[3] = True
    bad = call.input.clone()
    bad[1] = torch.nan
    results = run_layer(call.replace(input=bad, resets=resets))
    clean = run_layer(call.replace(resets=resets))
    assert results["output"][:3].isnan().any() and results["gradient of input"][:3].isnan().any()
    for name in ("output", "gradient of input"):
        assert_same_bits({name: results[name][3:]}, {name: clean[name][3:]})


def test_bad_gradients_stay_in_their_sequence() -> None:
    call = make_call(Case(6, 7, 5, 17, 4, bidirectional=True))
    results = ops.lstm_layer(*call.arguments(), 2)
    saved = (results[0], *results[3:])
    needs = [1] * (3 + len(call.weights))
    grad = torch.ones_like(results[0])
    clean = ops.lstm_layer_backward(grad, None, None, None, *call.arguments(), *saved, needs)
    grad[2, 4] = torch.nan
    found = ops.lstm_layer_backward(grad, None, None, None, *call.arguments(), *saved, needs)
    others = [b for b in range(7) if b != 4]
    for a, b in zip(found[:3], clean[:3], strict=True):
        assert a[:, 4].isnan().any()
        assert torch.equal(a[:, others], b[:, others])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_nan_and_infinity(name: str, dtype: torch.dtype) -> None:
    """Values as the reference has them. NaN gives NaN."""
    limit = torch.finfo(dtype).max
    values = torch.tensor([[torch.nan, torch.inf, -torch.inf, limit, -limit, 0.0, -0.0]], dtype=dtype)
    call = output_activation_call(ACTIVATIONS[name].encode(), values)
    actual = ops.lstm_layer(*call.arguments(), 0)[1].flatten()
    expected = ops.lstm_layer_reference(*call.arguments(), 0)[1].flatten()
    assert actual[0].isnan(), name
    text = f"{name} of {values.flatten().tolist()} is {actual.tolist()}, expected {expected.tolist()}"
    assert torch.equal(actual.isnan(), expected.isnan()), text
    assert torch.equal(actual.isinf(), expected.isinf()), text
    finite = expected.isfinite()
    torch.testing.assert_close(actual[finite], expected[finite], msg=text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_bit_pattern_is_read_and_rounded_right(dtype: torch.dtype) -> None:
    """The identity as output activation: what is stored is what PyTorch makes of the same float32 number."""
    identity = [12.0, 0.0, 0.0, 0.0]
    if dtype == torch.float32:
        pattern = torch.arange(-(2**31), 2**31, 65521, dtype=torch.int64)
        values = pattern.to(torch.int32).view(dtype)
    else:
        values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[: len(values) // 64 * 64].view(-1, 64)
    results = ops.lstm_layer(*output_activation_call(identity, values).arguments(), 2)
    numbers = values.isfinite()
    # c_1 = 1 * c_0 + 1 * 0 keeps every number, NaN and infinity; only -0 + 0 is 0.
    assert_same_bits({"c_n": results[2][0][numbers] + 0.0}, {"c_n": values[numbers] + 0.0})
    assert torch.equal(results[2][0].isnan(), values.isnan()) and torch.equal(
        results[2][0].isinf(), values.isinf()
    )
    assert_same_bits({"c_all": results[3][0][numbers]}, {"c_all": values.float()[numbers] + 0.0})
    if dtype != torch.float32:
        check_rounding(dtype, identity)


def check_rounding(dtype: torch.dtype, identity: list[float]) -> None:
    """c_n = c_0 + g, exact in float32, then rounded to 16 bits: ties, carries, overflow and subnormals."""
    one = [3.0, 0.0, 1.0, 0.0]
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randint(-(2**15), 2**15, (2, 256, 64), generator=generator).to(torch.int16)
    small, large = pattern[0].view(dtype), pattern[1].view(dtype)
    small, large = (torch.where(x.isfinite(), x, 0.0) for x in (small, large))
    if dtype == torch.bfloat16 and torch.ops.customlstm.cpu_isa() == "avx512_bf16":
        # The instruction that multiplies bfloat16 with itself takes subnormal factors for zero.
        small = torch.where(small.abs() < torch.finfo(dtype).tiny, 0.0, small)
    hidden = small.size(1)
    # the cell input is the input itself: its weights are the identity matrix
    w_ih = torch.zeros(4, hidden, hidden, dtype=dtype)
    w_ih[2] = torch.eye(hidden, dtype=dtype)
    call = LayerCall(
        small.unsqueeze(0), torch.zeros(1, 256, hidden, dtype=dtype), large.unsqueeze(0),
        [w_ih.view(-1, hidden), torch.zeros(4 * hidden, hidden, dtype=dtype)], *[None] * 6,
        "lstm", [*one, *identity, *identity], False, False, False, 1.0, 0.0, 0.0,
    )  # fmt: skip
    c_n = ops.lstm_layer(*call.arguments(), 0)[2][0]
    expected = (large.float() + small.float()).to(dtype)
    assert_same_bits({"c_n": c_n + 0.0}, {"c_n": expected + 0.0}, dtype)
