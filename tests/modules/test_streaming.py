"""customlstm.Stream: the bits of the whole sequence in any pieces, and weights that are never stale."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import customlstm
from customlstm import Stream, dispatch

PIECES = [[1] * 23, [23], [8, 8, 7], [1, 15, 7], [0, 20, 0, 3]]
# Input and hidden size: rows that are packed, rows that are read where they lie (256 on), and some of each.
SIZES = [(5, 7), (33, 16), (300, 40), (20, 260), (256, 272)]
HARD = customlstm.Cell("hard_sigmoid", customlstm.PiecewiseLinear.fit("tanh", knots=8), "hard_tanh")


def whole(lstm: customlstm.LSTM, x: Tensor, hx: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return lstm(x, hx)


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_pieces_give_the_bits_of_the_whole(
    sizes: tuple[int, int], batch: int, pieces: list[int], threads: Callable[[int], None]
) -> None:
    lstm, x = customlstm.LSTM(*sizes), torch.randn(23, batch, sizes[0])
    expected, (h, c) = whole(lstm, x)
    for count in (1, 2):
        threads(count)
        stream = Stream(lstm, batch)
        assert torch.equal(torch.cat([stream(piece) for piece in x.split(pieces)]), expected)
        assert torch.equal(stream.state[0], h) and torch.equal(stream.state[1], c)
        assert stream.nbytes > 0


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 3},
        {"bias": False},
        {"proj_size": 5},
        {"proj_size": 4, "num_layers": 2, "batch_first": True},
        {"dtype": torch.float64},
        {"cell": HARD, "num_layers": 2},
        {"backend": "reference"},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    lstm = customlstm.LSTM(9, 24, **options)
    x = torch.randn(4, 11, 9, dtype=options.get("dtype")).transpose(0, 1)
    if options.get("batch_first"):
        x = x.transpose(0, 1)
    dim = 1 if options.get("batch_first") else 0
    expected, (h, c) = whole(lstm, x)
    stream = Stream(lstm, 4)
    found = torch.cat([stream(piece) for piece in x.split([3, 1, 7], dim)], dim)
    if options.get("backend") == "reference":
        torch.testing.assert_close(found, expected)
        assert stream.nbytes == 0
    else:
        assert torch.equal(found, expected) and torch.equal(stream.state[1], c)
    torch.testing.assert_close(stream.state, (h, c))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_types_differ_by_the_rounding_of_the_cell_state_only(dtype: torch.dtype) -> None:
    lstm, x = customlstm.LSTM(8, 20, dtype=dtype), torch.randn(12, 2, 8, dtype=dtype)
    expected, _ = whole(lstm, x)
    one, many = Stream(lstm, 2), Stream(lstm, 2)
    assert torch.equal(one(x), expected)
    found = torch.cat([many(piece) for piece in x.split(3)])
    torch.testing.assert_close(found, expected, atol=8 * torch.finfo(dtype).eps, rtol=0.0)


def test_unbatched_and_single_steps() -> None:
    lstm, x = customlstm.LSTM(6, 10, num_layers=2), torch.randn(9, 6)
    expected, (h, c) = whole(lstm, x)
    stream = Stream(lstm)
    first = torch.stack([stream.step(x_t) for x_t in x[:4]])
    assert torch.equal(torch.cat([first, stream(x[4:])]), expected)
    assert torch.equal(stream.state[0], h) and torch.equal(stream.state[1], c)
    batched = Stream(lstm, 3)
    assert batched.step(torch.randn(3, 6)).shape == (3, 10)


def test_state_is_given_read_and_reset() -> None:
    lstm, x = customlstm.LSTM(4, 6), torch.randn(5, 3, 4)
    hx = torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    stream = Stream(lstm, 3, hx)
    output, (h, c) = whole(lstm, x, hx)
    assert torch.equal(stream(x), output)
    kept = stream.state
    stream(x)
    assert torch.equal(kept[0], h) and torch.equal(kept[1], c)  # a copy: later pieces leave it alone
    stream.state = kept
    assert torch.equal(stream(x), whole(lstm, x, (h, c))[0])
    stream.reset()
    assert torch.equal(stream(x), whole(lstm, x)[0])
    before = stream.state
    stream.reset(torch.tensor([False, True, False]))
    assert not stream.state[0][:, 1].any() and not stream.state[1][:, 1].any()
    assert torch.equal(stream.state[0][:, 0], before[0][:, 0])


# --- never stale ---


def _in_place(lstm: customlstm.LSTM) -> None:
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(0.5)


def _optimizer(lstm: customlstm.LSTM) -> None:
    optimizer = torch.optim.SGD(lstm.parameters(), lr=1.0)
    lstm(torch.randn(3, 2, 5))[0].sum().backward()
    optimizer.step()


def _load(lstm: customlstm.LSTM) -> None:
    lstm.load_state_dict(customlstm.LSTM(5, 8, num_layers=2).state_dict())


def _load_assigning(lstm: customlstm.LSTM) -> None:
    lstm.load_state_dict(customlstm.LSTM(5, 8, num_layers=2).state_dict(), assign=True)


def _other_parameter(lstm: customlstm.LSTM) -> None:
    lstm.bias_ih_l1 = nn.Parameter(torch.randn(32))


def _other_cell(lstm: customlstm.LSTM) -> None:
    lstm.cell = HARD


def _weight_norm(lstm: customlstm.LSTM) -> None:
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    with torch.no_grad():
        lstm.parametrizations.weight_hh_l0.original0.mul_(2.0)


def _data_assigned(lstm: customlstm.LSTM) -> None:
    lstm.weight_ih_l0.data = torch.randn(32, 5)


def _initialised(lstm: customlstm.LSTM) -> None:
    lstm.reset_parameters()


CHANGES = [
    _in_place, _optimizer, _load, _load_assigning, _other_parameter, _other_cell, _weight_norm,
    _data_assigned, _initialised,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_change_of_the_weights_is_seen(change: Callable[[customlstm.LSTM], None]) -> None:
    lstm, x = customlstm.LSTM(5, 8, num_layers=2), torch.randn(6, 2, 5)
    stream = Stream(lstm, 2)
    before = stream(x)
    change(lstm)
    stream.reset()
    found = stream(x)
    assert not torch.equal(found, before)
    assert torch.equal(found, whole(lstm, x)[0])


def test_a_module_that_is_cast_takes_its_stream_along() -> None:
    lstm, x = customlstm.LSTM(5, 8), torch.randn(6, 2, 5)
    stream = Stream(lstm, 2)
    stream(x)
    lstm.double()
    stream.reset()
    assert torch.equal(stream(x.double()), whole(lstm, x.double())[0])


def test_writes_past_the_version_counter_need_refresh() -> None:
    """As the class says: making the stream asked for the copy, and such writes are the one exception."""
    lstm, x = customlstm.LSTM(5, 8), torch.randn(6, 2, 5)
    stream = Stream(lstm, 2)
    before = stream(x)
    lstm.weight_hh_l0.data.mul_(0.5)
    assert not torch.equal(whole(lstm, x)[0], before)  # a call of the module keeps nothing
    stream.reset()
    assert torch.equal(stream(x), before)
    stream.refresh()
    stream.reset()
    assert torch.equal(stream(x), whole(lstm, x)[0])


def test_weights_without_version_counter_are_packed_at_every_piece() -> None:
    with torch.inference_mode():
        lstm, x = customlstm.LSTM(5, 8), torch.randn(6, 2, 5)
        stream = Stream(lstm, 2)
        stream(x)
        lstm.weight_hh_l0.mul_(0.5)
        stream.reset()
        assert torch.equal(stream(x), lstm(x)[0])


def test_weights_are_packed_once_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = customlstm.LSTM(5, 8, num_layers=2)
    stream = Stream(lstm, 2)
    packings = []
    pack = stream._pack
    monkeypatch.setattr(stream, "_pack", lambda *args: (packings.append(1), pack(*args))[1])
    for _ in range(5):
        stream(torch.randn(3, 2, 5))
    assert len(packings) == 1


# --- autocast ---


@pytest.mark.parametrize("options", [{}, {"zoneout": 0.1}], ids=["packed weights", "calls of the module"])
def test_autocast_computes_as_the_module_does(options: dict[str, Any]) -> None:
    lstm, x = customlstm.LSTM(8, 20, num_layers=2, **options).eval(), torch.randn(12, 2, 8)
    for piece in (x, x.bfloat16()):  # bfloat16 is what a layer before it would hand over
        stream = Stream(lstm, 2)
        with torch.autocast("cpu", torch.bfloat16):
            expected, (h, c) = whole(lstm, piece)
            found = torch.cat([stream(part) for part in piece.split(5)])
            assert [state.dtype for state in stream.state] == [h.dtype, c.dtype]
        assert found.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, atol=8 * torch.finfo(torch.bfloat16).eps, rtol=0.0)
        # Outside of it in float32 again, from the state that it left or another.
        hx = stream.state
        assert torch.equal(stream(x), whole(lstm, x, hx)[0])
        with torch.autocast("cpu", torch.bfloat16):
            stream.state = hx
            stream(piece)
        stream.state = hx
        assert torch.equal(stream.state[1], hx[1]) and torch.equal(stream(x), whole(lstm, x, hx)[0])
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="float64"):
        stream(x.double())


def test_autocast_asks_for_the_kernel_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    why_not = dispatch.why_not_fused
    monkeypatch.setattr(dispatch, "why_not_fused", lambda *args: (asked.append(args[1]), why_not(*args))[1])
    lstm, x = customlstm.LSTM(5, 8), torch.randn(3, 2, 5)
    stream = Stream(lstm, 2)
    stream(x)
    with torch.autocast("cpu", torch.bfloat16):
        stream(x)
        stream(x)
    stream(x)
    assert asked == [torch.float32, torch.bfloat16, torch.float32]


def test_autocast_in_inference_mode_leaves_a_state_to_go_on_from() -> None:
    lstm, x = customlstm.LSTM(5, 8), torch.randn(3, 2, 5)
    stream = Stream(lstm, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            first = stream(x)
        stream.reset()
        assert torch.equal(stream(x), first)


def test_state_goes_back_across_the_borders_of_autocast() -> None:
    lstm, x = customlstm.LSTM(5, 8).eval(), torch.randn(3, 2, 5)
    stream = Stream(lstm, 2)
    with torch.autocast("cpu", torch.bfloat16):
        stream(x)
        stream.state = stream.state
        assert stream.state[0].dtype == torch.bfloat16
    stream.state = stream.state
    assert stream.state[0].dtype == torch.float32
    before = stream._h
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="h must have shape"):
        stream.state = (torch.zeros(3), torch.zeros(3))
    assert stream._h is before, "a refused state changes nothing"


@pytest.mark.parametrize("options", [{}, {"zoneout": 0.1}], ids=["packed weights", "calls of the module"])
def test_inference_mode_leaves_a_state_that_can_be_written(options: dict[str, Any]) -> None:
    lstm, x = customlstm.LSTM(5, 8, **options).eval(), torch.randn(3, 2, 5)
    with torch.inference_mode():
        stream = Stream(lstm, 2)
        first = stream(x)
    stream.reset()
    assert torch.equal(stream(x), first)
    stream.state = stream.state


# --- the rest of its life ---


def test_copies_and_pickles_go_on_from_the_same_state() -> None:
    lstm, x = customlstm.LSTM(5, 8), torch.randn(6, 2, 5)
    stream = Stream(lstm, 2)
    stream(x)
    others = copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))
    expected = stream(x)
    for other in others:
        assert torch.equal(other(x), expected)


def test_nothing_is_differentiated() -> None:
    lstm, x = customlstm.LSTM(5, 8), torch.randn(6, 2, 5, requires_grad=True)
    for backend in ("auto", "reference"):
        lstm.backend = backend
        assert not Stream(lstm, 2)(x).requires_grad


def test_errors_name_what_came_and_the_way_out() -> None:
    lstm = customlstm.LSTM(5, 8)
    with pytest.raises(TypeError, match=r"must be a customlstm\.LSTM, got LSTM; customlstm\.convert"):
        Stream(nn.LSTM(5, 8))
    with pytest.raises(ValueError, match="bidirectional=False"):
        Stream(customlstm.LSTM(5, 8, bidirectional=True))
    with pytest.raises(TypeError, match="batch must be an int or None, got float"):
        Stream(lstm, 2.0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Stream(lstm, 0)
    with pytest.raises(RuntimeError, match=r"h must have shape \[1, 2, 8\].*got \[1, 3, 8\]"):
        Stream(lstm, 2, (torch.zeros(1, 3, 8), torch.zeros(1, 2, 8)))
    stream = Stream(lstm, 2)
    with pytest.raises(ValueError, match="3 dimensions"):
        stream(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"\[B, L\]"):
        stream.step(torch.zeros(1, 2, 5))
    for wrong in (torch.zeros(3, 3, 5), torch.zeros(3, 2, 6), torch.zeros(3, 2, 5, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="input has"):
            stream(wrong)
    with pytest.raises(TypeError, match="bool"):
        stream.reset(torch.tensor([1, 0]))
    with pytest.raises(RuntimeError, match=r"shape \[2\], got \[3\]"):
        stream.reset(torch.zeros(3, dtype=torch.bool))
    with_dropout = Stream(customlstm.LSTM(5, 8, 2, dropout=0.5), 2)
    with pytest.raises(ValueError, match="eval"):
        with_dropout(torch.zeros(3, 2, 5))
    with_dropout.lstm.eval()
    assert with_dropout(torch.zeros(3, 2, 5)).shape == (3, 2, 8)


def test_the_operator_refuses_bytes_that_lstm_pack_did_not_make() -> None:
    ops, lstm = torch.ops.customlstm, customlstm.LSTM(5, 8)
    weights = [w.detach() for w in lstm.parameters()]
    packed = ops.lstm_pack(weights, *lstm.cell.encode(), True, False, 2)
    x, h, c = torch.randn(3, 2, 5), torch.zeros(2, 8), torch.zeros(2, 8)
    assert ops.lstm_stream(packed, x, h, c).shape == (3, 2, 8)
    damaged = packed.clone()
    # Sizes in the header that would reach beyond the bytes: every 8 bytes of it raised in turn.
    for at in range(0, 184, 8):
        damaged.copy_(packed)
        damaged[at : at + 8].view(torch.int64).add_(1 << 20)
        try:
            ops.lstm_stream(damaged, x, h, c)
        except RuntimeError as error:
            assert "customlstm" in str(error)
    for wrong in (packed[:64], packed.float(), torch.zeros(4096, dtype=torch.uint8), packed[:-1], packed[8:]):
        with pytest.raises(RuntimeError, match="packed"):
            ops.lstm_stream(wrong, x, h, c)
    with pytest.raises(RuntimeError, match="contiguous"):
        ops.lstm_stream(packed, x, torch.zeros(8, 2).t(), c)
    with pytest.raises(RuntimeError, match="c has"):
        ops.lstm_stream(packed, x, h, torch.zeros(2, 9))
    with pytest.raises(RuntimeError, match="weights has 3 tensors, expected 4"):
        ops.lstm_pack(weights[:3], *lstm.cell.encode(), True, False, 2)
    with pytest.raises(RuntimeError, match="batch is 0"):
        ops.lstm_pack(weights, *lstm.cell.encode(), True, False, 0)
