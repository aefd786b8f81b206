"""The options of a Cell in modules: parameters, initialisation, and every way to run a module."""

import copy
import itertools
import pickle
from collections.abc import Callable

import pytest
import torch
from support import BACKENDS, assert_all_near, assert_near, weighted_sum
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import customlstm
from customlstm import Cell, compat, convert, functional

T, B, INPUT, HIDDEN = 6, 4, 3, 5
CELLS = [
    Cell(peephole=True),
    Cell(peephole=True, coupled_gates=True, gate_clip=0.4),
    Cell("hard_sigmoid", "softsign", coupled_gates=True, cell_clip=0.3),
    Cell(peephole=True, gate_clip=0.5, cell_clip=0.2),
]
SHAPES = [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}, {"bias": False, "batch_first": True}]

backends = pytest.mark.parametrize("backend", BACKENDS)
cells = pytest.mark.parametrize("cell", CELLS, ids=str)
shapes = pytest.mark.parametrize("options", SHAPES, ids=["simple", "deep both ways", "batch first"])


def make(cell: Cell | None, backend: str = "auto", **options: object) -> customlstm.LSTM:
    torch.manual_seed(3)
    return customlstm.LSTM(INPUT, HIDDEN, cell=cell, dtype=torch.float64, backend=backend, **options)


def random_input() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(T, B, INPUT, dtype=torch.float64, generator=generator)


# --- parameters ---


@shapes
@cells
def test_parameters_are_those_of_nn_lstm_and_the_cells_own(cell: Cell, options: dict) -> None:
    ours = make(cell, **options)
    torch.manual_seed(3)
    theirs = nn.LSTM(INPUT, HIDDEN, dtype=torch.float64, **options).state_dict()
    found = ours.state_dict()
    added = {
        f"{name}_l{layer}{suffix}"
        for name in cell.unit_parameters
        for layer in range(ours.num_layers)
        for suffix in (["", "_reverse"] if ours.bidirectional else [""])
    }
    assert set(found) == set(theirs) | added
    for name, value in theirs.items():
        assert torch.equal(found[name], value), f"{name}: another random number than nn.LSTM's"
    for name in added:
        assert found[name].shape == (HIDDEN,) and found[name].abs().max() <= HIDDEN**-0.5
        assert found[name].count_nonzero() == HIDDEN
    assert ours.load_state_dict(theirs, strict=False).missing_keys == [n for n in found if n in added]


def test_parameters_of_lstm_cell() -> None:
    step = customlstm.LSTMCell(INPUT, HIDDEN, proj_size=2, cell=CELLS[0])
    assert list(step.state_dict())[4:] == ["weight_hr", "peephole_i", "peephole_f", "peephole_o"]
    step = customlstm.LSTMCell(INPUT, HIDDEN, bias=False, cell=CELLS[1])
    assert list(step.state_dict()) == ["weight_ih", "weight_hh", "peephole_i", "peephole_o"]
    assert step.peephole_i.shape == (HIDDEN,)


def test_all_weights_and_repr() -> None:
    lstm = make(CELLS[0], num_layers=2)
    assert [len(weights) for weights in lstm.all_weights] == [7, 7]
    assert repr(lstm) == "LSTM(3, 5, num_layers=2, cell=Cell(peephole=True))"


@pytest.mark.parametrize("module", [customlstm.LSTM, customlstm.LSTMCell])
def test_a_cell_with_other_parameters_cannot_be_assigned(module: type) -> None:
    plain, peepholes = module(INPUT, HIDDEN), module(INPUT, HIDDEN, cell=CELLS[0])
    with pytest.raises(
        ValueError, match=r"has the parameters \['peephole_i', .*made for \[\].*to_customlstm"
    ):
        plain.cell = CELLS[0]
    with pytest.raises(ValueError, match=r"has the parameters \[\], this module was made for"):
        peepholes.cell = None
    with pytest.raises(ValueError, match="made for"):
        peepholes.cell = CELLS[1]
    assert plain.cell.is_standard and peepholes.cell == CELLS[0]
    plain.cell = CELLS[2]
    peepholes.cell = CELLS[3]
    x = torch.randn(B, INPUT)
    assert plain(x)[0].isfinite().all() and peepholes(x)[0].isfinite().all()


def test_old_form_has_no_place_for_peepholes() -> None:
    with pytest.raises(ValueError, match=r"cell=Cell\(peephole=True\) has parameters of its own"):
        compat.LSTM(INPUT, HIDDEN, 1, cell=CELLS[0])
    assert compat.LSTM(INPUT, HIDDEN, 1, cell=CELLS[2]).cell == CELLS[2]


# --- initialisation ---


@pytest.mark.parametrize("module", [customlstm.LSTM, customlstm.LSTMCell])
def test_forget_bias(module: type) -> None:
    torch.manual_seed(5)
    plain = module(INPUT, HIDDEN).state_dict()
    torch.manual_seed(5)
    changed = module(INPUT, HIDDEN, forget_bias=1.5)
    rows = slice(HIDDEN, 2 * HIDDEN)
    for name, value in changed.state_dict().items():
        if not name.startswith("bias"):
            assert torch.equal(value, plain[name])
            continue
        assert (value[rows] == (1.5 if "ih" in name else 0.0)).all()
        rest = torch.ones(4 * HIDDEN, dtype=torch.bool).index_fill(0, torch.arange(HIDDEN, 2 * HIDDEN), False)
        assert torch.equal(value[rest], plain[name][rest])
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.fill_(7.0)
    changed.reset_parameters()
    bias = changed.bias_ih if module is customlstm.LSTMCell else changed.bias_ih_l0
    assert (bias[rows] == 1.5).all() and bias.abs().max() == 1.5


def test_forget_bias_of_every_layer_and_direction() -> None:
    lstm = customlstm.LSTM(INPUT, HIDDEN, 2, bidirectional=True, forget_bias=-0.5)
    biases = [value for name, value in lstm.named_parameters() if name.startswith("bias_ih")]
    assert len(biases) == 4 and all((bias[HIDDEN : 2 * HIDDEN] == -0.5).all() for bias in biases)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"bias": False}, ValueError, "forget_bias=1.0 sets .* none with bias=False"),
        ({"cell": Cell(coupled_gates=True)}, ValueError, "none with coupled_gates"),
        ({"forget_bias": "1"}, TypeError, "forget_bias must be a number"),
        ({"forget_bias": float("nan")}, ValueError, "forget_bias must be finite"),
    ],
)
def test_forget_bias_that_cannot_be(options: dict, error: type, text: str) -> None:
    for module in (customlstm.LSTM, customlstm.LSTMCell):
        with pytest.raises(error, match=text):
            module(INPUT, HIDDEN, **{"forget_bias": 1.0, **options})


def test_converted_peepholes_begin_at_zero() -> None:
    theirs = nn.LSTM(INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64)
    theirs.weight_hh_l0.requires_grad_(False)
    ours = convert.to_customlstm(theirs, cell=Cell(peephole=True))
    for name, value in ours.named_parameters():
        if name.startswith("peephole"):
            assert value.requires_grad and not value.any()
    assert not ours.weight_hh_l0.requires_grad
    assert_near(ours(random_input())[0], theirs(random_input())[0], "output")
    with pytest.raises(
        ValueError, match=r"the parameters peephole_f, .*for which cell=Cell\(\) has no place"
    ):
        convert.to_customlstm(make(CELLS[0]), cell=Cell())
    again = convert.to_customlstm(make(CELLS[0]))
    assert torch.equal(again.peephole_o_l0, make(CELLS[0]).peephole_o_l0)


# --- what the options mean ---


@backends
def test_options_that_change_nothing(backend: str) -> None:
    """Peephole weights of zero and clips far out give the results of the cell without them."""
    x = random_input()
    plain = make(None, backend)
    changed = make(Cell(peephole=True, gate_clip=1e6, cell_clip=1e6), backend)
    with torch.no_grad():
        for name, value in changed.named_parameters():
            if name.startswith("peephole"):
                value.zero_()
    expected, actual = plain(x), changed(x)
    assert_all_near([actual[0], *actual[1]], [expected[0], *expected[1]], ["output", "h_n", "c_n"])
    for name, gradient in zip(
        ["weight_ih", "weight_hh"],
        torch.autograd.grad(weighted_sum([actual[0]]), [changed.weight_ih_l0, changed.weight_hh_l0]),
        strict=True,
    ):
        expected_gradient = torch.autograd.grad(
            weighted_sum([expected[0]]), getattr(plain, f"{name}_l0"), retain_graph=True
        )[0]
        assert_near(gradient, expected_gradient, name)


@backends
def test_clips_hold(backend: str) -> None:
    lstm = make(Cell("identity", "identity", "identity", gate_clip=0.25, cell_clip=0.0625), backend)
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.mul_(50)
    x = random_input().requires_grad_()
    h_all, c_all = lstm.states(x)
    # The gates saturate at 1/4: c stays within its clip and reaches it, and h = o c within a quarter of that.
    assert c_all.abs().max() == 0.0625 and h_all.abs().max() == 0.25 * 0.0625
    (gradient,) = torch.autograd.grad(h_all.sum(), x)
    assert gradient.isfinite().all()


@backends
def test_no_gradient_crosses_a_clip(backend: str) -> None:
    lstm = make(Cell(gate_clip=1e-9), backend)
    gradients = torch.autograd.grad(weighted_sum(lstm.states(random_input())), list(lstm.parameters()))
    assert all(not gradient.any() for gradient in gradients)


@backends
def test_coupled_gates_have_no_use_for_the_forget_gates_rows(backend: str) -> None:
    lstm = make(Cell(coupled_gates=True), backend)
    gradients = torch.autograd.grad(lstm(random_input())[0].sum(), list(lstm.parameters()))
    for gradient in gradients:
        i, f, g, o = gradient.chunk(4)
        assert not f.any() and all(part.count_nonzero() == part.numel() for part in (i, g, o))


# --- every way to run a module ---


def results(module: nn.Module, x: Tensor, **arguments: object) -> list[Tensor]:
    output, (h, c) = module(x, **arguments)
    return [output, h, c]


@cells
@shapes
def test_fused_is_the_reference(cell: Cell, options: dict) -> None:
    found = []
    for backend in BACKENDS:
        module, x = make(cell, backend, **options), random_input().requires_grad_()
        lengths = torch.tensor([4, 6, 0, 3])
        if options.get("batch_first"):
            lengths = torch.tensor([4, 2, 0, 3, 1, 4])
        all_results = [*results(module, x), *results(module, x, lengths=lengths), *module.states(x)]
        gradients = torch.autograd.grad(weighted_sum(all_results), [x, *module.parameters()])
        found.append([*all_results, *gradients])
        assert customlstm.explain(module, x).backend == backend
    names = [str(k) for k in range(len(found[0]))]
    for other in found[1:]:
        assert_all_near(other, found[0], names)


@backends
@cells
def test_a_loop_of_steps_is_the_layer(cell: Cell, backend: str) -> None:
    layer = make(cell, backend)
    step = customlstm.LSTMCell(INPUT, HIDDEN, cell=cell, dtype=torch.float64, backend=backend)
    step.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    x, state, steps = random_input(), None, []
    for row in x:
        state = step(row, state)
        steps.append(state[0])
    output = layer(x)[0]
    assert_near(torch.stack(steps), output, "output")
    expected = torch.autograd.grad(output.sin().sum(), list(layer.parameters()))
    actual = torch.autograd.grad(torch.stack(steps).sin().sum(), list(step.parameters()))
    assert_all_near(actual, expected, list(step.state_dict()))


@backends
@cells
def test_packed(cell: Cell, backend: str) -> None:
    lstm, x = make(cell, backend, bidirectional=True), random_input()
    lengths = torch.tensor([3, 6, 1, 4])
    packed, (h_n, c_n) = lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
    padded, (h, c) = lstm(x, lengths=lengths)
    rows = nn.utils.rnn.pad_packed_sequence(packed)[0]
    assert_all_near([rows, h_n, c_n], [padded, h, c], ["output", "h_n", "c_n"])


@backends
@cells
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_torchscript(cell: Cell, backend: str) -> None:
    lstm = make(cell, backend, num_layers=2, bidirectional=True)
    step = customlstm.LSTMCell(INPUT, HIDDEN, cell=cell, dtype=torch.float64, backend=backend)
    x = random_input()
    scripted = torch.jit.script(lstm)
    actual, expected = scripted(x), lstm(x)
    assert_all_near([actual[0], *actual[1]], [expected[0], *expected[1]], ["output", "h_n", "c_n"])
    gradients = torch.autograd.grad(actual[0].sum(), list(scripted.parameters()))
    assert_all_near(
        gradients, torch.autograd.grad(expected[0].sum(), list(lstm.parameters())), list(lstm.state_dict())
    )
    assert_all_near(torch.jit.script(step)(x[0]), step(x[0]), ["h", "c"])


@backends
@pytest.mark.parametrize("cell", [CELLS[1], CELLS[3]], ids=str)
def test_compile(cell: Cell, backend: str) -> None:
    torch._dynamo.reset()
    lstm = make(cell, backend, num_layers=2)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps, batch in [(T, B), (3, 2)]:
        x = random_input()[:steps, :batch]
        actual, expected = compiled(x), lstm(x)
        assert_all_near([actual[0], *actual[1]], [expected[0], *expected[1]], ["output", "h_n", "c_n"])
        gradients = torch.autograd.grad(actual[0].sum(), list(lstm.parameters()))
        assert_all_near(
            gradients,
            torch.autograd.grad(expected[0].sum(), list(lstm.parameters())),
            list(lstm.state_dict()),
        )


@cells
def test_stream_gives_the_bits_of_the_whole(cell: Cell) -> None:
    for sizes, batch in itertools.product([(INPUT, HIDDEN), (300, 40)], [1, 3]):
        lstm = customlstm.LSTM(*sizes, num_layers=2, cell=cell)
        x = torch.randn(9, batch, sizes[0])
        stream = customlstm.Stream(lstm, batch)
        with torch.no_grad():
            expected = lstm(x)[0]
        assert torch.equal(torch.cat([stream(piece) for piece in x.split([1, 5, 3])]), expected)
        names = [name for name in lstm.state_dict() if name.startswith("peephole")]
        if names:  # a changed peephole weight is noticed
            with torch.no_grad():
                getattr(lstm, names[-1]).add_(0.5)
                stream.reset()
                assert torch.equal(stream(x), lstm(x)[0]) and not torch.equal(lstm(x)[0], expected)


@cells
def test_copies(cell: Cell) -> None:
    lstm, x = make(cell), random_input()
    for other in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        assert other.cell == cell
        assert torch.equal(other(x)[0], lstm(x)[0])


@backends
def test_frozen_peepholes(backend: str) -> None:
    lstm = make(Cell(peephole=True), backend)
    lstm.peephole_f_l0.requires_grad_(False)
    lstm(random_input())[0].sum().backward()
    assert lstm.peephole_f_l0.grad is None and lstm.peephole_i_l0.grad.any() and lstm.peephole_o_l0.grad.any()


@backends
def test_all_but_the_peepholes_frozen(backend: str) -> None:
    lstm, x = make(Cell(peephole=True), backend), random_input()
    expected = torch.autograd.grad(lstm(x)[0].sum(), [lstm.peephole_i_l0, lstm.peephole_o_l0])
    for name, weight in lstm.named_parameters():
        weight.requires_grad_(name.startswith("peephole"))
    lstm(x)[0].sum().backward()
    assert torch.equal(lstm.peephole_i_l0.grad, expected[0])
    assert torch.equal(lstm.peephole_o_l0.grad, expected[1])


# --- masks ---


def drawn(rate: float, *sizes: int) -> Tensor:
    """The next mask that torch's generator gives: which numbers it takes is the package's own affair."""
    return functional._drawn(list(sizes), rate, torch.empty(0))


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
    return nn.functional.dropout(torch.ones_like(lstm.weight_hh_l0), lstm.weight_dropout, True)


@backends
def test_weight_dropout_is_one_mask_a_call(backend: str) -> None:
    lstm, x = make(CELLS[0], backend, weight_dropout=0.4), random_input()
    mask = expected_mask(lstm, 11)
    dropped = make(CELLS[0], backend)
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
    assert torch.equal(lstm(x)[0], make(CELLS[0], backend)(x)[0])


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
    rate, lstm = 0.4, make(CELLS[0], backend, recurrent_dropout=0.4, **options)
    x, state = random_input().requires_grad_(), lstm.proj_size or HIDDEN
    directions = 2 if lstm.bidirectional else 1
    torch.manual_seed(11)
    batch = T if lstm.batch_first else B
    masks = [~drawn(rate, directions, batch, state) for _ in range(lstm.num_layers)]
    torch.manual_seed(11)
    output, (h_n, c_n) = lstm(x)
    weights, expected = lstm._weight_list(), x.transpose(0, 1) if lstm.batch_first else x
    per_layer, last = len(weights) // lstm.num_layers, []
    for k, mask in enumerate(masks):
        expected, h, c, *_ = torch.ops.customlstm.lstm_layer_reference(
            expected, None, None, weights[k * per_layer : (k + 1) * per_layer], None, None, None, mask, None,
            None, *lstm.cell.encode(), lstm.bias, state != HIDDEN, lstm.bidirectional, 1 / (1 - rate), 0.0,
            0.0, 2,
        )  # fmt: skip
        last.append((h, c))
    expected = expected.transpose(0, 1) if lstm.batch_first else expected
    h, c = (torch.cat(states) for states in zip(*last, strict=True))
    assert_all_near([output, h_n, c_n], [expected, h, c], ["output", "h_n", "c_n"])
    gradients, expected_gradients = (
        torch.autograd.grad(weighted_sum([y]), [x, *weights]) for y in (output, expected)
    )
    assert_all_near(gradients, expected_gradients, ["input", *lstm.state_dict()])
    assert not torch.equal(lstm(x)[0], output), "the next call has other masks"
    lstm.eval()
    assert torch.equal(lstm(x)[0], make(CELLS[0], backend, **options)(x)[0])


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
    lstm, x = make(CELLS[3], backend, num_layers=2, **{name: 0.5}), random_input().requires_grad_()

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
    lstm, x = make(CELLS[0], num_layers=2, bidirectional=True, **{name: 0.5}), random_input()
    for run in (torch.jit.script(lstm), torch.compile(lstm, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(8)
        output = run(x)[0]
        torch.manual_seed(8)
        assert_near(output, lstm(x)[0], "output")
    lstm.eval()
    assert_near(torch.jit.script(lstm)(x)[0], lstm(x)[0], "output in eval mode")


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
    lstm, x = make(CELLS[3], backend, zoneout=(0.25, 0.5), **options), random_input().requires_grad_()
    state, directions = lstm.proj_size or HIDDEN, 2 if lstm.bidirectional else 1
    lengths = torch.tensor([3, 4, 0, 2, 1, 4] if lstm.batch_first else [4, 6, 0, 3])
    expected = x.transpose(0, 1) if lstm.batch_first else x
    weights, last = lstm._weight_list(), []
    per_layer = len(weights) // lstm.num_layers
    torch.manual_seed(1)
    for k in range(lstm.num_layers):
        masks = [
            drawn(rate, *expected.shape[:2], directions * size)
            for size, rate in ((state, 0.25), (HIDDEN, 0.5))
        ]
        expected, h, c, *_ = torch.ops.customlstm.lstm_layer_reference(
            expected, None, None, weights[k * per_layer : (k + 1) * per_layer], None, lengths, None, None,
            *masks, *lstm.cell.encode(), lstm.bias, state != HIDDEN, lstm.bidirectional, 1.0, 0.0, 0.0, 2,
        )  # fmt: skip
        last.append((h, c))
    expected = expected.transpose(0, 1) if lstm.batch_first else expected
    h, c = (torch.cat(states) for states in zip(*last, strict=True))
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
    lstm, x = make(CELLS[0], backend, zoneout=1.0), random_input()
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


@backends
def test_clips_wider_than_the_dtype(backend: str) -> None:
    lstm = customlstm.LSTM(INPUT, HIDDEN, cell=Cell(gate_clip=1e300, cell_clip=1e300), backend=backend)
    plain = customlstm.LSTM(INPUT, HIDDEN, backend=backend)
    plain.load_state_dict(lstm.state_dict())
    x = random_input().float()
    torch.testing.assert_close(lstm(x)[0], plain(x)[0])
