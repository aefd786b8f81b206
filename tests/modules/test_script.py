"""torch.jit.script of the modules themselves, alone and inside others; torch.jit.trace."""

import copy
import io
import pickle

import pytest
import torch
from support import BACKENDS, assert_all_near, assert_near
from torch import Tensor, nn

import customlstm

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning"
)

T, B, INPUT, HIDDEN = 5, 3, 4, 6
OPTIONS = [
    {},
    {"num_layers": 2, "bias": False, "batch_first": True},
    {"num_layers": 3, "bidirectional": True, "proj_size": 2},
]
CELL = customlstm.Cell(
    "hard_sigmoid", "softsign", customlstm.PiecewiseLinear([-1.0, 0.0, 1.0], [-1.0, 0.0, 0.5])
)

options = pytest.mark.parametrize("options", OPTIONS, ids=["simple", "no bias", "everything"])
backends = pytest.mark.parametrize("backend", BACKENDS)


def make(options: dict, backend: str) -> customlstm.LSTM:
    return customlstm.LSTM(INPUT, HIDDEN, cell=CELL, dtype=torch.float64, backend=backend, **options)


def through_a_file(scripted: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


@backends
@options
def test_forward_and_backward(options: dict, backend: str) -> None:
    module = make(options, backend)
    scripted = torch.jit.script(module)
    for candidate in (scripted, through_a_file(scripted)):
        names = list(dict(module.named_parameters()))
        assert list(dict(candidate.named_parameters())) == names
        for _ in range(3):  # the profiling executor runs other code from the second and third call on
            x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
            output, states = module(x)
            actual, actual_states = candidate(x)
            assert_all_near([actual, *actual_states], [output, *states], ["output", "h_n", "c_n"])
            expected = torch.autograd.grad(output.sin().sum(), [x, *module.parameters()])
            gradients = torch.autograd.grad(actual.sin().sum(), [x, *candidate.parameters()])
            assert_all_near(gradients, expected, ["input", *names])


@backends
@options
def test_every_argument_and_layout(options: dict, backend: str) -> None:
    module = make(options, backend).eval()
    scripted = torch.jit.script(module)
    turn = (lambda t: t.transpose(0, 1)) if module.batch_first else (lambda t: t)
    x, resets = turn(torch.randn(T, B, INPUT, dtype=torch.float64)), turn(torch.rand(T, B) < 0.4)
    rows, state = module.num_layers * (1 + module.bidirectional), module.proj_size or HIDDEN
    hx = (torch.randn(rows, B, state, dtype=torch.float64), torch.randn(rows, B, HIDDEN, dtype=torch.float64))
    lengths = torch.tensor([3, 0, 5])
    for training in (True, False):
        with torch.set_grad_enabled(training):
            expected, actual = module(x, hx, lengths=lengths, resets=resets), scripted(x, hx, lengths, resets)
            assert_all_near([actual[0], *actual[1]], [expected[0], *expected[1]], ["output", "h_n", "c_n"])
            assert actual[0].requires_grad == training
            expected_states = module.states(x, hx, lengths=lengths, resets=resets)
            assert_all_near(scripted.states(x, hx, lengths, resets), expected_states, ["h_all", "c_all"])
    one = turn(x)[:, 0]
    assert_near(scripted(one)[0], module(one)[0])
    assert_near(scripted.states(one)[1], module.states(one)[1])


def test_dropout_and_mode() -> None:
    module = customlstm.LSTM(INPUT, HIDDEN, 2, dropout=0.5)
    scripted, x = torch.jit.script(module), torch.randn(T, B, INPUT)
    torch.manual_seed(1)
    expected = module(x)[0]
    torch.manual_seed(1)
    assert torch.equal(scripted(x)[0], expected)
    scripted.eval()
    assert torch.equal(scripted(x)[0], module.eval()(x)[0])


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = customlstm.LSTM(INPUT, HIDDEN, 2, bidirectional=True, cell=CELL)
        self.step = customlstm.LSTMCell(2 * HIDDEN, HIDDEN, bias=False, proj_size=2)

    def forward(self, x: Tensor) -> Tensor:
        output, (h, c) = self.lstm(x)
        return self.step(output[-1], (h[0, :, :2], c[0]))[0]


def test_as_submodules() -> None:
    parent, x = Parent(), torch.randn(T, B, INPUT)
    expected = parent(x)
    scripted = torch.jit.script(parent)
    assert torch.equal(scripted(x), expected)
    assert torch.equal(through_a_file(scripted)(x), expected)
    assert list(scripted.state_dict()) == list(parent.state_dict())


def test_a_scripted_parent_keeps_working_in_eager_mode() -> None:
    """torch.jit.script leaves its twin of a submodule inside the original parent; it must be a full LSTM."""
    parent, x = Parent(), torch.randn(T, B, INPUT)
    text, expected = repr(parent), parent(x)
    torch.jit.script(parent)
    assert repr(parent) == text and isinstance(parent.lstm, customlstm.LSTM)
    assert torch.equal(parent(x), expected)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 1]))
    lengths = torch.tensor([5, 3, 1])
    assert_near(parent.lstm(packed)[1][0], parent.lstm(x, lengths=lengths)[1][0])
    assert_near(parent.lstm.states(packed)[1].data[-1], parent.lstm.states(x, lengths=lengths)[1][-1, 0])
    for other in (copy.deepcopy(parent), pickle.loads(pickle.dumps(parent))):
        assert type(other.lstm) is customlstm.LSTM and torch.equal(other(x), expected)
    assert torch.equal(torch.jit.script(parent)(x), expected)  # and once more
    with torch.no_grad():
        parent.lstm.weight_hh_l0.zero_()
    assert not torch.allclose(parent(x), expected)


class Subclass(customlstm.LSTM):
    """Adds nothing that TorchScript would see."""

    note = "kept"


class Overriding(customlstm.LSTM):
    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return self.weight_hh_l0.sum() + input.sum()


def test_subclasses() -> None:
    module, x = nn.Sequential(Subclass(INPUT, HIDDEN)), torch.randn(T, B, INPUT)
    scripted = torch.jit.script(module)
    assert torch.equal(scripted(x)[0], module(x)[0])
    assert isinstance(module[0], Subclass) and type(copy.deepcopy(module)[0]) is Subclass
    own = Overriding(INPUT, HIDDEN)
    assert torch.equal(torch.jit.script(own)(x), own(x))


def test_two_architectures_in_one_process() -> None:
    x = torch.randn(T, B, INPUT)
    modules = [customlstm.LSTM(INPUT, HIDDEN, k) for k in (1, 2, 3)] + [customlstm.LSTM(INPUT, 3)]
    scripted = [torch.jit.script(m) for m in modules]
    assert all(torch.equal(s(x)[0], m(x)[0]) for s, m in zip(scripted, modules, strict=True))


@backends
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_cell(bias: bool, proj_size: int, backend: str) -> None:
    module = customlstm.LSTMCell(INPUT, HIDDEN, bias, proj_size=proj_size, cell=CELL, backend=backend)
    scripted = through_a_file(torch.jit.script(module))
    x = torch.randn(B, INPUT, requires_grad=True)
    hx = (torch.randn(B, proj_size or HIDDEN), torch.randn(B, HIDDEN))
    for arguments in [(x,), (x, hx), (x[0],), (x[0], (hx[0][0], hx[1][0]))]:
        for _ in range(3):
            assert_all_near(scripted(*arguments), module(*arguments), ["h", "c"], 0.0)
    expected = torch.autograd.grad(module(x, hx)[0].sum(), [x, *module.parameters()])
    gradients = torch.autograd.grad(scripted(x, hx)[0].sum(), [x, *scripted.parameters()])
    assert_all_near(gradients, expected, ["input", *dict(module.named_parameters())], 0.0)


def test_errors_say_what_is_wrong() -> None:
    scripted = torch.jit.script(customlstm.LSTM(INPUT, HIDDEN, 2))
    x, h = torch.zeros(T, B, INPUT), torch.zeros(2, B, HIDDEN)
    for arguments, text in [
        ((x[None],), "got 4D instead"),
        ((x[..., 1:],), "Expected 4, got 3"),
        ((x, (h[:1], h)), r"Expected hidden\[0\] size \[2, 3, 6\], got \[1, 3, 6\]"),
        ((x, None, torch.tensor([9, 1, 1])), "between 0 and the 5 steps"),
        ((x, None, None, torch.zeros(B, T).bool()), r"resets must have shape \[5, 3\]"),
        ((x.double(),), "float64"),
    ]:
        with pytest.raises(Exception, match=text):
            scripted(*arguments)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # nn.LSTM gives them too
@backends
def test_trace_does_not_unroll(backend: str) -> None:
    module = make({"bidirectional": True}, backend)
    traced = torch.jit.trace(module, (torch.randn(T, B, INPUT, dtype=torch.float64),))
    operators = [node.kind() for node in traced.graph.nodes() if node.kind().startswith("customlstm::")]
    assert len(operators) == 1
    x = torch.randn(2 * T, B + 1, INPUT, dtype=torch.float64)
    assert_near(traced(x)[0], module(x)[0])
