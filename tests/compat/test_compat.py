"""customlstm.compat against the hand-written formula, in float64."""

import copy
import io
import pickle

import pytest
import torch
from handwritten import Handwritten, HandwrittenCell
from torch import nn

from customlstm import Cell, PiecewiseLinear, compat, explain

CELLS = [
    None,
    Cell("hard_sigmoid", PiecewiseLinear.fit("tanh", 8), "softsign"),
    Cell(output_activation="relu"),
]


def pair(layers, sequences=True, cell=None, sizes=(3, 5)):
    """The hand-written module and ours with its checkpoint."""
    theirs = Handwritten(*sizes, layers, sequences, cell).double()
    ours = compat.LSTM(*sizes, layers, sequences, cell=cell, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def states(layers, batch=4, hidden=5):
    def one():
        return torch.randn(batch, hidden, dtype=torch.float64, requires_grad=True)

    return [(one(), one()) for _ in range(layers)]


def check(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_values_and_gradients(layers, sequences, given, cell):
    theirs, ours = pair(layers, sequences, cell)
    x = torch.randn(4, 7, 3, dtype=torch.float64, requires_grad=True)
    initial = states(layers) if given else None
    found, expected = ours(x, initial), theirs(x, initial)
    check(found, expected)
    assert found[0].shape == ((4, 7, 5) if sequences else (4, 5))
    seed = [torch.randn_like(result) for result in expected]
    inputs = [x, *(tensor for state in initial or [] for tensor in state)]
    with torch.no_grad():
        weights = (
            list(theirs.state_dict(keep_vars=True).values()),
            list(ours.state_dict(keep_vars=True).values()),
        )
    check(
        torch.autograd.grad(found, [*inputs, *weights[1]], seed),
        torch.autograd.grad(expected, [*inputs, *weights[0]], seed),
    )


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_one_step(cell):
    theirs = HandwrittenCell(3, 5, cell).double()
    ours = compat.LSTMCell(3, 5, cell=cell, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    (state,) = states(1)
    found, expected = ours(x, state), theirs(x, state)
    check(found, expected)
    total = sum(result.sum() for result in found), sum(result.sum() for result in expected)
    check(
        torch.autograd.grad(total[0], [x, *state, *ours.parameters()]),
        torch.autograd.grad(total[1], [x, *state, *theirs.parameters()]),
    )
    zeros = torch.zeros(4, 5, dtype=torch.float64)
    check(ours(x), theirs(x, (zeros, zeros)))


def test_the_last_step_of_the_sequence():
    ours = pair(2)[1]
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    h, c = ours(x)
    ours.sequences = False
    check(ours(x), (h[:, -1], c[:, -1]))


def test_a_sequence_in_two_pieces():
    _, whole = pair(1)
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    h, c = whole(x)
    whole.sequences = False
    state = whole(x[:, :3])
    check(whole(x[:, 3:], [state]), (h[:, -1], c[:, -1]))
    for t in range(7):
        state = whole.lay0(x[:, t], state if t else None)
        check(state, (h[:, t], c[:, t]))


def test_initial_states_are_not_written_to():
    _, ours = pair(2)
    initial = states(2)
    before = [(h.clone(), c.clone()) for h, c in initial]
    same = list(initial)
    ours(torch.randn(4, 7, 3, dtype=torch.float64), initial)
    assert all(a is b for a, b in zip(initial, same, strict=True))
    assert all(
        torch.equal(a, b) for p, q in zip(initial, before, strict=True) for a, b in zip(p, q, strict=True)
    )
    ours(torch.randn(4, 7, 3, dtype=torch.float64), tuple(initial))


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (0, 4), (3, 1)])
def test_small_shapes(batch, steps):
    theirs, ours = pair(2)
    x = torch.randn(batch, steps, 3, dtype=torch.float64)
    check(ours(x), theirs(x))


def test_an_empty_sequence():
    _, ours = pair(2)
    initial = states(2)
    h, c = ours(torch.empty(4, 0, 3, dtype=torch.float64), initial)
    assert h.shape == c.shape == (4, 0, 5)
    ours.sequences = False
    check(ours(torch.empty(4, 0, 3, dtype=torch.float64), initial), initial[-1])


def test_strided_input():
    theirs, ours = pair(1)
    x = torch.randn(3, 14, 4, dtype=torch.float64)[:, ::2].transpose(0, 2)
    check(ours(x), theirs(x))


@pytest.mark.parametrize("layers", [1, 3])
def test_the_same_seed_gives_the_same_weights(layers):
    torch.manual_seed(7)
    theirs = Handwritten(3, 5, layers).state_dict()
    torch.manual_seed(7)
    ours = compat.LSTM(3, 5, layers).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_names_and_shapes_of_the_parameters():
    shapes = {
        name: tuple(parameter.shape) for name, parameter in compat.LSTM(3, 5, layers=2).named_parameters()
    }
    for k, width in ((0, 3), (1, 5)):
        for gate in "cfio":
            assert shapes.pop(f"lay{k}.weight_{gate}x") == (5, width)
            assert shapes.pop(f"lay{k}.weight_{gate}h") == (5, 5)
            assert shapes.pop(f"lay{k}.bias_{gate}") == (5,)
    assert not shapes


def test_checkpoints_go_both_ways():
    theirs, ours = pair(2)
    assert not theirs.load_state_dict(ours.state_dict()).missing_keys
    with pytest.raises(RuntimeError, match=r"lay1\.weight_cx"):
        compat.LSTM(3, 5, layers=1).load_state_dict(theirs.state_dict())


def test_copies_and_files():
    _, ours = pair(2, cell=CELLS[1])
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for other in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(file, weights_only=False),
    ):
        check(other(x), ours(x))
        assert other.cell == ours.cell


def test_the_same_training():
    theirs, ours = pair(2, sequences=False)
    x, y = torch.randn(16, 9, 3, dtype=torch.float64), torch.randn(16, 5, dtype=torch.float64)
    losses = []
    for model in (theirs, ours):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        history = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(x)[0] - y).square().mean()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses.append(history)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[1][-1] < losses[1][0]


def test_frozen_parameters_and_no_grad():
    _, ours = pair(1)
    ours.lay0.weight_fx.requires_grad_(False)
    ours(torch.randn(4, 7, 3, dtype=torch.float64))[0].sum().backward()
    assert ours.lay0.weight_fx.grad is None
    assert ours.lay0.weight_ix.grad is not None
    with torch.no_grad():
        assert not ours(torch.randn(4, 7, 3, dtype=torch.float64))[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    theirs, ours = pair(2)
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    expected = theirs(x)
    for found, value in zip(ours.to(dtype)(x.to(dtype)), expected, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), value, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_the_cell_of_all_layers():
    lstm = compat.LSTM(3, 5, layers=2)
    assert lstm.cell.is_standard
    lstm.cell = CELLS[2]
    assert lstm.lay0.cell == lstm.lay1.cell == lstm.cell == CELLS[2]
    lstm.cell = None
    assert lstm.lay1.cell.is_standard


def test_texts():
    assert repr(compat.LSTMCell(3, 5)) == "LSTMCell(3, 5)"
    lstm = compat.LSTM(3, 5, 2, False, cell=Cell("hard_sigmoid"), backend="reference")
    first = repr(lstm).splitlines()[1].strip()
    assert first == (
        "3, 5, layers=2, sequences=False, cell=Cell(gate_activation='hard_sigmoid'), backend='reference'"
    )


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "text"),
    [
        ((3.0, 5), {}, TypeError, r"input_size must be an int, got 3.0 \(float\)"),
        ((3, 0), {}, ValueError, "hidden_size must be positive, got 0"),
        ((3, 5, 0), {}, ValueError, "layers must be positive, got 0"),
        ((3, 5, True), {}, TypeError, "layers must be an int, got True"),
        ((3, 5), {"cell": "tanh"}, TypeError, "be a customlstm.Cell, a @customlstm.cell or None, got 'tanh'"),
        ((3, 5), {"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)
def test_constructor_errors(arguments, keywords, error, text):
    with pytest.raises(error, match=text):
        compat.LSTM(*arguments, **keywords)


X = torch.zeros(4, 7, 3)
H = torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((X[0],), ValueError, r"input must have 3 dimensions \[B, T, 3\], got shape \[7, 3\]"),
        ((X[..., :2],), RuntimeError, "input_size"),
        (([1.0],), TypeError, "input must be a tensor .* got list"),
        ((X, H), TypeError, r"initial_states must be a list of \(h, c\)"),
        (
            (X, (H, H)),
            TypeError,
            r"initial_states\[0\] must be a pair \(h, c\) of tensors, got Tensor shape \[4, 5\]",
        ),
        ((X, [(H, H)]), ValueError, r"one \(h, c\) for each of 2 layers, got 1 entries; .* \[\(h, c\)\]"),
        ((X, [(H, H), (H, None)]), TypeError, r"initial_states\[1\] must be a pair"),
        (
            (X, [(H, H), (H, H[:3])]),
            ValueError,
            r"c of initial_states\[1\] must have shape \[4, 5\], got \[3, 5\]",
        ),
        ((X, [(H[None], H), (H, H)]), ValueError, r"h of initial_states\[0\] must have shape \[4, 5\]"),
    ],
)
def test_call_errors(arguments, error, text):
    with pytest.raises(error, match=text):
        compat.LSTM(3, 5, layers=2)(*arguments)


def test_step_errors():
    cell = compat.LSTMCell(3, 5)
    with pytest.raises(TypeError, match=r"hx must be a pair \(h, c\) of tensors, got Tensor shape \[4, 5\]"):
        cell(X[:, 0], H)
    with pytest.raises(RuntimeError, match=r"hx\[1\] must have shape \[4, 5\]"):
        cell(X[:, 0], (H, H[:, :4]))


def test_within_a_model():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = compat.LSTM(3, 5)
            self.out = nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.lstm(x)[0])

    model = Tagger()
    assert model(torch.randn(4, 7, 3)).shape == (4, 7, 2)
    assert "lstm.lay0.weight_cx" in model.state_dict()


def test_explain(backend):
    lstm = compat.LSTM(3, 5, layers=2)
    found = explain(lstm, X, [(H, H), (H, H)])
    assert found.backend == backend
    assert [line.split(", ")[1:] for line in found.layers] == [
        ["3 -> 5", "keeps what backward needs"],
        ["5 -> 5", "keeps what backward needs"],
    ]
    with torch.no_grad():
        kept = [line.split(", ")[-1] for line in explain(lstm, X).layers]
        assert kept == ["keeps nothing", "keeps the cell states"]
        lstm.sequences = False
        assert explain(lstm, X).layers[1].endswith("keeps nothing")
        step = explain(lstm.lay0, X[:, 0], (H, H))
    assert step.backend == backend
    assert "lstm_cell, 3 -> 5, keeps nothing" in step.layers[0]


def test_explain_raises_what_the_call_raises() -> None:
    lstm, cell = compat.LSTM(4, 6, layers=2), compat.LSTMCell(4, 6)
    x, state = torch.zeros(3, 5, 4), (torch.zeros(3, 6), torch.zeros(3, 6))
    calls = [(lstm, x[0]), (lstm, x[..., :3]), (lstm, x.double()), (lstm, x, [state]), (lstm, x, state)]
    for module, *given in [*calls, (cell, x), (cell, x[0].long()), (cell, x[:, 0], state[0])]:
        errors = []
        for call in (module, lambda *given, module=module: explain(module, *given)):
            with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
                call(*given)
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]
