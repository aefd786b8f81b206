"""The options of a Cell in modules: parameters, initialisation, and every way to run a module."""

import copy
import itertools
import pickle

import pytest
import torch
from support import BACKENDS, assert_all_near, assert_near, weighted_sum
from support_options import HIDDEN, INPUT, B, T, backends, make, random_input, shapes
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import customlstm
from customlstm import Cell, compat, convert

CELLS = [
    Cell(peephole=True),
    Cell(peephole=True, coupled_gates=True, gate_clip=0.4),
    Cell("hard_sigmoid", "softsign", coupled_gates=True, cell_clip=0.3),
    Cell(peephole=True, gate_clip=0.5, cell_clip=0.2),
]
cells = pytest.mark.parametrize("cell", CELLS, ids=str)


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


@backends
def test_clips_wider_than_the_dtype(backend: str) -> None:
    lstm = customlstm.LSTM(INPUT, HIDDEN, cell=Cell(gate_clip=1e300, cell_clip=1e300), backend=backend)
    plain = customlstm.LSTM(INPUT, HIDDEN, backend=backend)
    plain.load_state_dict(lstm.state_dict())
    x = random_input().float()
    torch.testing.assert_close(lstm(x)[0], plain(x)[0])
