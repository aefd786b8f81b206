"""Recurrent dropout, weight dropout and zoneout: their masks, what these do, every way to run a module."""

from collections.abc import Callable

import pytest
import torch
from support import assert_all_near, assert_near, weighted_sum
from support_options import HIDDEN, INPUT, B, T, backends, layer_by_layer, make, random_input, shapes
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import customlstm
from customlstm import Cell, convert, masks

PEEPHOLE, CLIPPED = Cell(peephole=True), Cell(peephole=True, gate_clip=0.5, cell_clip=0.2)

# --- masks ---


def drawn(rate: float, *sizes: int) -> Tensor:
    """The next mask that torch's generator gives: which numbers it takes is the package's own affair."""
    return masks.drawn(list(sizes), rate, torch.empty(0))


@pytest.mark.parametrize("rate", [0.0, 1e-5, 0.1, 0.5, 0.999, 1.0])
def test_share_and_independence_of_masks(rate: float) -> None:
    torch.manual_seed(0)
    mask = drawn(rate, 7, 1001, 300).double()
    deviation = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(mask.mean().item() - rate) <= 5 * deviation
    if not 0.05 < rate < 0.95:
        return
    assert (mask.mean((1, 2)) - rate).abs().max() < 6 * deviation * 7**0.5
    assert (mask.mean((0, 1)) - rate).abs().max() < 6 * deviation * 300**0.5
    flat = mask.flatten() - rate
    for distance in (1, 2, 3, 4, 5, 8, 300):
        correlation = (flat[distance:] * flat[:-distance]).mean().item() / (rate * (1 - rate))
        assert abs(correlation) < 6 / flat.numel() ** 0.5


@pytest.mark.parametrize("sizes", [(0,), (1,), (3, 0), (5,), (2, 3), (8,)], ids=str)
def test_masks_of_any_size(sizes: tuple[int, ...]) -> None:
    assert drawn(0.5, *sizes).shape == sizes and drawn(1.0, *sizes).all() and not drawn(0.0, *sizes).any()


# --- dropout of recurrent weights ---


def expected_mask(lstm: customlstm.LSTM, seed: int) -> Tensor:
    torch.manual_seed(seed)
    kept = drawn(1 - lstm.weight_dropout, *lstm.weight_hh_l0.shape)
    return kept.to(lstm.weight_hh_l0.dtype) / (1 - lstm.weight_dropout)


@backends
def test_weight_dropout_is_one_mask_a_call(backend: str) -> None:
    lstm, x = make(PEEPHOLE, backend, weight_dropout=0.4), random_input()
    mask = expected_mask(lstm, 11)
    dropped = make(PEEPHOLE, backend)
    with torch.no_grad():
        dropped.weight_hh_l0.mul_(mask)
    torch.manual_seed(11)
    output = lstm(x)[0]
    assert torch.equal(output, dropped(x)[0])
    gradient, expected = (
        torch.autograd.grad(y.sum(), m.weight_hh_l0)[0] for y, m in ((output, lstm), (dropped(x)[0], dropped))
    )
    assert_near(gradient, expected * mask, "gradient of weight_hh_l0")
    assert not torch.equal(lstm(x)[0], output), "the next call has another mask"
    lstm.eval()
    assert torch.equal(lstm(x)[0], make(PEEPHOLE, backend)(x)[0])


def test_weight_dropout_of_every_layer_and_direction() -> None:
    lstm = make(None, num_layers=2, bidirectional=True, weight_dropout=1.0)
    without = make(None, num_layers=2, bidirectional=True)
    with torch.no_grad():
        for name, weight in without.named_parameters():
            if "weight_hh" in name:
                weight.zero_()
    assert_near(lstm(random_input())[0], without(random_input())[0], "output")


def test_share_of_dropped_weights() -> None:
    """With gates of 1 and h_0 one unit at a time, h_n is a column of what is left of W_hh."""
    one = ("affine", {"alpha": 0.0, "beta": 1.0})
    lstm = customlstm.LSTM(1, 64, bias=False, weight_dropout=0.3, cell=Cell(one, "identity", "identity"))
    with torch.no_grad():
        lstm.weight_ih_l0.zero_()
        lstm.weight_hh_l0.fill_(1.0)
    torch.manual_seed(0)
    h = torch.eye(64).unsqueeze(0)
    left = lstm(torch.zeros(1, 64, 1), (h, torch.zeros(1, 64, 64)))[0][0]
    share = (left == 0).double().mean().item()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / left.numel()) ** 0.5
    assert left.unique().tolist() == pytest.approx([0.0, 1 / 0.7])


# --- dropout of the hidden state ---


@backends
@shapes
def test_recurrent_dropout_is_one_mask_a_sequence(options: dict, backend: str) -> None:
    """What comes out is the operator with these masks: drawn layer by layer, the same at every step."""
    rate, lstm = 0.4, make(PEEPHOLE, backend, recurrent_dropout=0.4, **options)
    x, weights = random_input().requires_grad_(), lstm._weight_list()

    def masks(_: int, batch: int, directions: int, state: int) -> list[Tensor | None]:
        return [~drawn(rate, directions, batch, state), None, None]

    torch.manual_seed(11)
    expected, h, c = layer_by_layer(lstm, x, masks, scale=1 / (1 - rate))
    torch.manual_seed(11)
    output, (h_n, c_n) = lstm(x)
    assert_all_near([output, h_n, c_n], [expected, h, c], ["output", "h_n", "c_n"])
    gradients, expected_gradients = (
        torch.autograd.grad(weighted_sum([y]), [x, *weights]) for y in (output, expected)
    )
    assert_all_near(gradients, expected_gradients, ["input", *lstm.state_dict()])
    assert not torch.equal(lstm(x)[0], output), "the next call has other masks"
    lstm.eval()
    assert torch.equal(lstm(x)[0], make(PEEPHOLE, backend, **options)(x)[0])


@backends
def test_recurrent_dropout_against_a_loop_with_the_same_mask(backend: str) -> None:
    """Gal and Ghahramani 2016, written with nn.LSTMCell: h_{t-1} is masked, c_{t-1} and outputs are not."""
    lstm, x = make(None, backend, recurrent_dropout=0.3), random_input()
    step = nn.LSTMCell(INPUT, HIDDEN, dtype=torch.float64)
    step.load_state_dict({name.removesuffix("_l0"): value for name, value in lstm.state_dict().items()})
    torch.manual_seed(4)
    mask = ~drawn(0.3, 1, B, HIDDEN)[0] / torch.tensor(0.7, dtype=torch.float64)
    h = c = torch.zeros(B, HIDDEN, dtype=torch.float64)
    outputs = []
    for row in x:
        h, c = step(row, (h * mask, c))
        outputs.append(h)
    torch.manual_seed(4)
    output, (h_n, c_n) = lstm(x)
    assert_all_near([output, h_n[0], c_n[0]], [torch.stack(outputs), h, c], ["output", "h_n", "c_n"])
    assert_all_near(
        torch.autograd.grad(output.sin().sum(), list(lstm.parameters())),
        torch.autograd.grad(torch.stack(outputs).sin().sum(), list(step.parameters())),
        list(lstm.state_dict()),
    )


@backends
def test_packed_sequences_have_masks_of_their_own(backend: str) -> None:
    lstm, x = make(None, backend, recurrent_dropout=1.0), random_input()
    lengths = torch.tensor([3, 6, 1, 4])
    packed, _ = lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
    rows = nn.utils.rnn.pad_packed_sequence(packed)[0]
    # All is dropped: the hidden state counts for nothing, as with recurrent weights of zero.
    without = make(None, backend)
    with torch.no_grad():
        without.weight_hh_l0.zero_()
    assert_near(rows, without(x, lengths=lengths)[0], "output")
    torch.manual_seed(6)
    lstm.recurrent_dropout = 0.5
    output = lstm(torch.ones(T, 200, INPUT, dtype=torch.float64))[0]
    assert len(output[-1].unique(dim=0)) > 20, "equal sequences have masks of their own"


def test_share_of_dropped_states() -> None:
    """The cell input is 1 and decays no further: h is what the mask lets through of the step before."""
    lstm = customlstm.LSTM(
        1, 64, bias=False, recurrent_dropout=0.3, cell=Cell("identity", "identity", "identity")
    )
    with torch.no_grad():
        lstm.weight_ih_l0.zero_()
        lstm.weight_hh_l0.zero_()
        lstm.weight_hh_l0[2 * 64 : 3 * 64] = torch.eye(64)  # g = m h_{t-1}
        lstm.weight_ih_l0[:64] = 1.0  # i = 1
        lstm.weight_ih_l0[3 * 64 :] = 1.0  # o = 1
    torch.manual_seed(0)
    h = torch.ones(1, 500, 64)
    output, _ = lstm(torch.ones(3, 500, 1), (h, torch.zeros(1, 500, 64)))
    kept = output[0] > 0
    share = 1 - kept.double().mean().item()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / kept.numel()) ** 0.5
    for t, value in enumerate(output):  # the same units at every step, scaled each time
        torch.testing.assert_close(value, torch.where(kept, (1 / 0.7) ** (t + 1), 0.0))


@backends
@pytest.mark.parametrize("name", ["recurrent_dropout", "weight_dropout", "zoneout"])
def test_dropout_under_checkpoint(name: str, backend: str) -> None:
    """The forward that a checkpoint repeats draws the masks of the first one."""
    lstm, x = make(CLIPPED, backend, num_layers=2, **{name: 0.5}), random_input().requires_grad_()

    def gradients(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        torch.manual_seed(2)
        return list(torch.autograd.grad(run(x).sin().sum(), [x, *lstm.parameters()]))

    def repeated(x: Tensor) -> Tensor:
        return checkpoint(lambda x: lstm(x)[0], x, use_reentrant=False)

    names = ["input", *lstm.state_dict()]
    assert_all_near(gradients(repeated), gradients(lambda x: lstm(x)[0]), names, 0.0)


@pytest.mark.parametrize("name", ["recurrent_dropout", "weight_dropout", "zoneout"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_dropout_in_torchscript_and_compile(name: str) -> None:
    torch._dynamo.reset()
    lstm, x = make(PEEPHOLE, num_layers=2, bidirectional=True, **{name: 0.5}), random_input()
    for run in (torch.jit.script(lstm), torch.compile(lstm, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(8)
        output = run(x)[0]
        torch.manual_seed(8)
        assert_near(output, lstm(x)[0], "output")
    lstm.eval()
    assert_near(torch.jit.script(lstm)(x)[0], lstm(x)[0], "output in eval mode")


@pytest.mark.parametrize("name", ["recurrent_dropout", "weight_dropout", "zoneout"])
def test_one_compiled_graph_for_every_length_and_batch(name: str) -> None:
    torch._dynamo.reset()
    lstm = make(PEEPHOLE, **{name: 0.5})
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lstm, fullgraph=True, dynamic=True, backend=counter)
    for steps, batch in [(8, 6), (33, 7), (2, 9)]:  # no size equal to INPUT or HIDDEN
        x = torch.randn(steps, batch, INPUT, dtype=torch.float64)
        torch.manual_seed(3)
        output = compiled(x)[0]
        torch.manual_seed(3)
        assert_near(output, lstm(x)[0], "output")
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["recurrent_dropout", "weight_dropout"])
def test_rates_that_cannot_be(name: str) -> None:
    lstm = customlstm.LSTM(INPUT, HIDDEN)
    for rate in (-0.1, 1.5, True, "0.5", None):
        text = rf"{name} must be a number in the range \[0, 1\]"
        with pytest.raises(ValueError, match=text):
            customlstm.LSTM(INPUT, HIDDEN, **{name: rate})
        with pytest.raises(ValueError, match=text):
            setattr(lstm, name, rate)
    setattr(lstm, name, 0.25)
    assert getattr(lstm, name) == 0.25


@pytest.mark.parametrize("name", ["recurrent_dropout", "weight_dropout"])
def test_dropout_elsewhere(name: str) -> None:
    lstm = customlstm.LSTM(INPUT, HIDDEN, **{name: 0.5})
    assert repr(lstm) == f"LSTM(3, 5, {name}=0.5)"
    assert getattr(convert.to_customlstm(lstm), name) == 0.5
    for function in (convert.to_torch, convert.to_compat):
        with pytest.raises(ValueError, match=rf"{name}=0.5, which .* has not; set module.{name} = 0"):
            function(lstm)
    with pytest.raises(ValueError, match=rf"lstm has {name}=0.5 and is in training mode: call lstm.eval\(\)"):
        customlstm.Stream(lstm)(torch.randn(4, INPUT))
    assert customlstm.Stream(lstm.eval())(torch.randn(4, INPUT)).shape == (4, HIDDEN)


# --- zoneout ---


def zoneout_loop(
    lstm: customlstm.LSTM, x: Tensor, mix: Callable[[int, int, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Krueger et al. 2016 around nn.LSTMCell, with ``mix(state, step, old, new)``; h comes of the new c."""
    step = nn.LSTMCell(INPUT, HIDDEN, dtype=torch.float64)
    step.load_state_dict({name.removesuffix("_l0"): value for name, value in lstm.state_dict().items()})
    h = c = torch.zeros(B, HIDDEN, dtype=torch.float64)
    outputs = []
    for t, row in enumerate(x):
        new_h, new_c = step(row, (h, c))
        h, c = mix(0, t, h, new_h), mix(1, t, c, new_c)
        outputs.append(h)
    gradients = torch.autograd.grad(torch.stack(outputs).sin().sum() + c.sum(), list(step.parameters()))
    return torch.stack(outputs), h, c, list(gradients)


@backends
@pytest.mark.parametrize("rates", [(0.3, 0.6), (0.5, 0.0), (0.0, 0.5)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_zoneout_against_a_loop(training: bool, rates: tuple[float, float], backend: str) -> None:
    lstm, x = make(None, backend, zoneout=rates).train(training), random_input()
    torch.manual_seed(9)
    masks = [drawn(rate, T, B, HIDDEN) if rate else torch.zeros(T, B, HIDDEN).bool() for rate in rates]

    def mix(state: int, t: int, old: Tensor, new: Tensor) -> Tensor:
        if training:
            return torch.where(masks[state][t], old, new)
        return rates[state] * old + (1 - rates[state]) * new

    *expected, expected_gradients = zoneout_loop(lstm, x, mix)
    torch.manual_seed(9)
    output, (h_n, c_n) = lstm(x)
    assert_all_near([output, h_n[0], c_n[0]], expected, ["output", "h_n", "c_n"])
    gradients = torch.autograd.grad(output.sin().sum() + c_n.sum(), list(lstm.parameters()))
    assert_all_near(gradients, expected_gradients, list(lstm.state_dict()))
    assert torch.equal(lstm(x)[0], output) != training, "masks are new at every call, the expectation is not"


@backends
@shapes
def test_zoneout_is_the_operator_with_these_masks(options: dict, backend: str) -> None:
    """Drawn layer by layer, of h and then of c, for every step."""
    lstm, x = make(CLIPPED, backend, zoneout=(0.25, 0.5), **options), random_input().requires_grad_()
    weights = lstm._weight_list()
    lengths = torch.tensor([3, 4, 0, 2, 1, 4] if lstm.batch_first else [4, 6, 0, 3])

    def masks(steps: int, batch: int, directions: int, state: int) -> list[Tensor | None]:
        zoneout = ((0.25, state), (0.5, HIDDEN))
        return [None, *(drawn(rate, steps, batch, directions * size) for rate, size in zoneout)]

    torch.manual_seed(1)
    expected, h, c = layer_by_layer(lstm, x, masks, lengths)
    torch.manual_seed(1)
    output, (h_n, c_n) = lstm(x, lengths=lengths)
    assert_all_near([output, h_n, c_n], [expected, h, c], ["output", "h_n", "c_n"])
    gradients, expected_gradients = (
        torch.autograd.grad(weighted_sum([y, b]), [x, *weights]) for y, b in ((output, c_n), (expected, c))
    )
    assert_all_near(gradients, expected_gradients, ["input", *lstm.state_dict()])


@backends
def test_share_of_kept_states(backend: str) -> None:
    lstm = customlstm.LSTM(3, 64, zoneout=(0.2, 0.7), backend=backend)
    torch.manual_seed(0)
    h, c = lstm.states(torch.randn(20, 50, 3))
    for state, rate in ((h, 0.2), (c, 0.7)):
        kept = state[1:] == state[:-1]
        share, count = kept.double().mean().item(), kept.numel()
        assert abs(share - rate) < 5 * (rate * (1 - rate) / count) ** 0.5
    lstm.eval()
    h, c = lstm.states(torch.randn(20, 50, 3))
    assert not (h[1:] == h[:-1]).any() and not (c[1:] == c[:-1]).any()


@backends
def test_zoneout_of_one_keeps_everything(backend: str) -> None:
    lstm, x = make(PEEPHOLE, backend, zoneout=1.0), random_input()
    hx = tuple(torch.randn(1, B, HIDDEN, dtype=torch.float64) for _ in range(2))
    for module in (lstm, lstm.eval()):
        output, (h_n, c_n) = module(x, hx)
        assert torch.equal(output, hx[0].expand_as(output))
        assert torch.equal(h_n, hx[0]) and torch.equal(c_n, hx[1])


def test_zoneout_rates() -> None:
    assert customlstm.LSTM(INPUT, HIDDEN, zoneout=0.25).zoneout == (0.25, 0.25)
    lstm = customlstm.LSTM(INPUT, HIDDEN, zoneout=(0.125, 0))
    assert lstm.zoneout == (0.125, 0.0) and repr(lstm) == "LSTM(3, 5, zoneout=(0.125, 0.0))"
    assert convert.to_customlstm(lstm).zoneout == (0.125, 0.0)
    for bad in (-0.1, 1.5, (0.5, 2), "0.1", True, None):
        with pytest.raises(ValueError, match=r"zoneout must be a number in the range \[0, 1\]"):
            lstm.zoneout = bad
    with pytest.raises(ValueError, match="zoneout must be one rate, or two for h and c, got"):
        lstm.zoneout = (0.1, 0.1, 0.1)
    for function in (convert.to_torch, convert.to_compat):
        with pytest.raises(
            ValueError, match=r"zoneout=\(0.125, 0.0\), which .* has not; set module.zoneout = 0"
        ):
            function(lstm)
    lstm.zoneout = 0
    assert lstm.zoneout == (0.0, 0.0) and repr(lstm) == "LSTM(3, 5)"


def test_stream_with_zoneout_runs_the_layer() -> None:
    lstm, x = customlstm.LSTM(INPUT, HIDDEN, zoneout=0.25), torch.randn(6, INPUT)
    with pytest.raises(ValueError, match=r"call lstm.eval\(\) before streaming"):
        customlstm.Stream(lstm)(x)
    stream = customlstm.Stream(lstm.eval())
    with torch.no_grad():
        assert torch.equal(torch.cat([stream(piece) for piece in x.split([1, 3, 2])]), lstm(x)[0])
    assert stream.nbytes == 0


def test_stream_notices_zoneout() -> None:
    lstm, x = customlstm.LSTM(INPUT, HIDDEN).eval(), torch.randn(6, INPUT)
    stream = customlstm.Stream(lstm)
    for rate in (0.0, 0.5, 0.25, 0.0):
        lstm.zoneout = rate
        stream.reset()
        with torch.no_grad():
            assert torch.equal(torch.cat([stream(piece) for piece in x.split([2, 4])]), lstm(x)[0])


@pytest.mark.parametrize("name", ["recurrent_dropout", "zoneout", "weight_dropout"])
def test_masks_under_vmap(name: str) -> None:
    lstm, x = make(None, "auto", **{name: 0.5}), torch.stack([random_input()] * 3)
    found = torch.func.vmap(lambda x: lstm(x)[0], randomness="different")(x)
    assert found.shape == (3, T, B, HIDDEN) and not torch.equal(found[0], found[1])
    same = torch.func.vmap(lambda x: lstm(x)[0], randomness="same")(x)
    assert torch.equal(same[0], same[1])
    empty = torch.func.vmap(lambda x: lstm(x)[0], randomness="different")(x[:0])
    assert empty.shape == (0, T, B, HIDDEN)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_masks_do_not_depend_on_the_default_dtype(dtype: torch.dtype) -> None:
    lstm, x = make(None, recurrent_dropout=0.3, zoneout=0.3), random_input()
    torch.manual_seed(0)
    expected = lstm(x)[0]
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        assert torch.equal(lstm(x)[0], expected)
    finally:
        torch.set_default_dtype(torch.float32)
