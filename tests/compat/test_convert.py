"""Converters: the same function in every form, exact round trips, and what cannot be expressed."""

import pytest
import torch
from handwritten import Handwritten, HandwrittenCell
from torch import nn

import customlstm
from customlstm import Cell, compat
from customlstm.convert import to_compat, to_customlstm, to_torch, torch_to_tutorial, tutorial_to_torch

X = torch.randn(4, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
CUSTOM = Cell("hard_sigmoid", "hard_tanh")


def check(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def equal(found, expected):
    assert list(found) == list(expected)
    for key in expected:
        assert torch.equal(found[key], expected[key]), key
        assert found[key].dtype == expected[key].dtype


def no_shared_memory(found, given):
    storages = {tensor.untyped_storage().data_ptr() for tensor in given.values()}
    assert not storages & {tensor.untyped_storage().data_ptr() for tensor in found.values()}
    for tensor in found.values():
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.nbytes  # a file of it holds no more than it


@pytest.mark.parametrize("layers", [1, 3])
def test_checkpoints_of_the_handwritten_lstm(layers):
    theirs = Handwritten(3, 5, layers).double()
    converted = tutorial_to_torch(theirs.state_dict())
    no_shared_memory(converted, theirs.state_dict())
    expected = theirs(X)
    for lstm in (nn.LSTM(3, 5, layers, batch_first=True), customlstm.LSTM(3, 5, layers, batch_first=True)):
        lstm.double().load_state_dict(converted)
        output, (h_n, c_n) = lstm(X)
        check(output, expected[0])
        check((h_n[-1], c_n[-1]), (expected[0][:, -1], expected[1][:, -1]))
    back = torch_to_tutorial(converted)
    no_shared_memory(back, converted)
    equal(back, theirs.state_dict())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_checkpoints_of_nn_lstm(layers, bias):
    theirs = nn.LSTM(3, 5, layers, bias, batch_first=True, dtype=torch.float64)
    converted = torch_to_tutorial(theirs.state_dict())
    no_shared_memory(converted, theirs.state_dict())
    expected = theirs(X)[0]
    handwritten = Handwritten(3, 5, layers).double()
    handwritten.load_state_dict(converted)
    check(handwritten(X)[0], expected)
    again = nn.LSTM(3, 5, layers, batch_first=True, dtype=torch.float64)
    again.load_state_dict(tutorial_to_torch(converted))
    check(again(X)[0], expected)


def test_checkpoints_of_a_cell():
    theirs, state = HandwrittenCell(3, 5).double(), [torch.randn(4, 5, dtype=torch.float64) for _ in range(2)]
    converted = tutorial_to_torch(theirs.state_dict())
    cell = nn.LSTMCell(3, 5, dtype=torch.float64)
    cell.load_state_dict(converted)
    check(cell(X[:, 0], state), theirs(X[:, 0], state))
    equal(torch_to_tutorial(converted), theirs.state_dict())


def test_a_checkpoint_of_a_model():
    model = nn.ModuleDict({"embed": nn.Linear(2, 3), "lstm": Handwritten(3, 5, 2), "out": nn.Linear(5, 2)})
    state = model.state_dict()
    converted = tutorial_to_torch(state, prefix="lstm.")
    target = nn.ModuleDict({"embed": nn.Linear(2, 3), "lstm": nn.LSTM(3, 5, 2), "out": nn.Linear(5, 2)})
    assert list(converted)[:3] == ["embed.weight", "embed.bias", "lstm.weight_ih_l0"]
    target.load_state_dict(converted)
    assert converted["out.weight"] is state["out.weight"]
    equal(torch_to_tutorial(converted, prefix="lstm."), state)


def test_dtype_is_kept():
    for dtype in (torch.bfloat16, torch.float64):
        converted = tutorial_to_torch(Handwritten(3, 5).to(dtype).state_dict())
        assert {tensor.dtype for tensor in converted.values()} == {dtype}


def without(state, key):
    return {name: tensor for name, tensor in state.items() if name != key}


HAND = Handwritten(3, 5, 2).state_dict()
TORCH = nn.LSTM(3, 5, 2).state_dict()


@pytest.mark.parametrize(
    ("convert", "state", "keywords", "text"),
    [
        (tutorial_to_torch, without(HAND, "lay1.bias_c"), {}, "lacks lay1.bias_c$"),
        (tutorial_to_torch, {**HAND, "out.bias": X}, {}, "not those of the .*: out.bias; give prefix="),
        (tutorial_to_torch, {**HAND, "lay2.weight_zx": X}, {}, "lay2.weight_zx"),
        (tutorial_to_torch, TORCH, {}, "weight_ih_l0, weight_hh_l0"),
        (tutorial_to_torch, HAND, {"prefix": "lstm."}, "no keys under prefix 'lstm.'; .* has lay0.weight_cx"),
        (tutorial_to_torch, HAND, {"prefix": "lay0"}, "prefix must end with a dot, got 'lay0'"),
        (tutorial_to_torch, {}, {}, "it has none"),
        (tutorial_to_torch, {k: v for k, v in HAND.items() if "lay0" not in k}, {}, "it has layer 1$"),
        (tutorial_to_torch, {**HAND, "bias_i": X}, {}, "has a cell without a layer number, layer 0"),
        (tutorial_to_torch, {**HAND, "lay1.weight_fx": torch.zeros(5, 3)}, {},
         r"lay1.weight_fx has shape \(5, 3\), expected \(5, 5\)"),
        (tutorial_to_torch, {**HAND, "lay0.bias_f": torch.zeros(4)}, {},
         r"lay0.bias_f has shape \(4,\), expected \(5,\)"),
        (tutorial_to_torch, {**HAND, "lay0.bias_f": torch.zeros(5).double()}, {},
         "lay0.bias_f is torch.float64 on cpu, its neighbours are torch.float32 on cpu"),
        (torch_to_tutorial, HAND, {}, "lay0.weight_cx"),
        (torch_to_tutorial, without(TORCH, "weight_hh_l1"), {}, "lacks weight_hh_l1$"),
        (torch_to_tutorial, without(TORCH, "bias_hh_l0"), {}, "lacks bias_hh_l0$"),
        (torch_to_tutorial, nn.LSTM(3, 5, bidirectional=True).state_dict(), {},
         "weight_ih_l0_reverse, .*; the hand-written LSTM has no reverse direction"),
        (torch_to_tutorial, nn.LSTM(3, 5, proj_size=2).state_dict(), {},
         "weight_hr_l0; the hand-written LSTM has no projection"),
        (torch_to_tutorial, nn.GRU(3, 5).state_dict(), {}, r"weight_ih_l0 has shape \(15, 3\), expected"),
    ],
)  # fmt: skip
def test_checkpoint_errors(convert, state, keywords, text):
    with pytest.raises(ValueError, match=text):
        convert(state, **keywords)


def lstm_of(kind, layers=2, **options):
    if kind == "compat":
        return compat.LSTM(3, 5, layers, dtype=torch.float64, **options)
    return {"torch": nn, "customlstm": customlstm}[kind].LSTM(
        3, 5, layers, batch_first=True, dtype=torch.float64, **options
    )


CONVERT = {"torch": to_torch, "customlstm": to_customlstm, "compat": to_compat}
KINDS = {
    "torch": (nn.LSTM, nn.LSTMCell),
    "customlstm": (customlstm.LSTM, customlstm.LSTMCell),
    "compat": (compat.LSTM, compat.LSTMCell),
}


@pytest.mark.parametrize("target", CONVERT)
@pytest.mark.parametrize("source", CONVERT)
def test_modules(source, target):
    module = lstm_of(source).eval()
    frozen = "lay1.weight_fx" if source == "compat" else "weight_ih_l1"
    module.get_parameter(frozen).requires_grad_(False)
    converted = CONVERT[target](module)
    assert type(converted) is KINDS[target][0]
    check(converted(X)[0], module(X)[0])
    assert not converted.training
    no_shared_memory(converted.state_dict(), module.state_dict())
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.float64}
    # a joined weight is trained where any of its parts is, a part where the joined one is
    expected = {frozen} if (source == "compat") == (target == "compat") else set()
    if target == "compat" != source:
        expected = {f"lay1.weight_{gate}x" for gate in "ifco"}
    assert {name for name, p in converted.named_parameters() if not p.requires_grad} == expected


@pytest.mark.parametrize("target", CONVERT)
@pytest.mark.parametrize("source", CONVERT)
def test_cells(source, target):
    module = KINDS[source][1](3, 5, dtype=torch.float64)
    state = [torch.randn(4, 5, dtype=torch.float64) for _ in range(2)]
    converted = CONVERT[target](module)
    assert type(converted) is KINDS[target][1]
    check(converted(X[:, 0], state), module(X[:, 0], state))


@pytest.mark.parametrize("kind", ["torch", "customlstm"])
def test_every_option_of_nn_lstm(kind):
    options = {"bidirectional": True, "proj_size": 2, "bias": False, "dropout": 0.5}
    module = lstm_of(kind, **options)
    for convert in (to_torch, to_customlstm):
        converted = convert(module)
        for name, value in {"batch_first": True, "num_layers": 2, **options}.items():
            assert getattr(converted, name) == value
        equal(converted.state_dict(), module.state_dict())


def test_cells_are_kept_or_given():
    module = lstm_of("compat", cell=CUSTOM)
    ours = to_customlstm(module, backend="reference")
    assert (ours.cell, ours.backend) == (CUSTOM, "reference")
    check(ours(X)[0], module(X)[0])
    assert to_compat(ours).cell == CUSTOM
    assert to_customlstm(ours, cell=Cell()).cell.is_standard
    assert to_customlstm(lstm_of("torch"), cell=CUSTOM).cell == CUSTOM
    assert to_compat(lstm_of("torch"), sequences=False).sequences is False


def test_gates_in_another_order():
    """Their weights would go to other gates, and nothing would show it but the numbers."""

    @customlstm.cell
    def forget_first(f, i, g, o, c):
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    with pytest.raises(ValueError) as caught:
        to_customlstm(nn.LSTM(3, 4), cell=forget_first)
    assert str(caught.value) == (
        "cell=forget_first(f, i, g, o, c) has its gates in the order f, i, g, o, the weights of module have "
        "them in the order i, f, g, o; write the cell's arguments in that order"
    )
    own = customlstm.LSTM(3, 4, cell=forget_first)
    assert torch.equal(to_customlstm(own).weight_hh_l0, own.weight_hh_l0)
    to_customlstm(nn.LSTM(3, 4), cell=customlstm.cells.standard)


def test_joined_biases_train_alike():
    module = lstm_of("compat", 1)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith("lay0.bias"))
    trained = {name: parameter.requires_grad for name, parameter in to_torch(module).named_parameters()}
    assert trained == {"weight_ih_l0": True, "weight_hh_l0": True, "bias_ih_l0": False, "bias_hh_l0": False}
    assert all(parameter.requires_grad for parameter in to_torch(lstm_of("compat", 1)).parameters())


@pytest.mark.parametrize(
    ("convert", "module", "error", "text"),
    [
        (to_torch, lambda: customlstm.LSTM(3, 5, cell=CUSTOM), ValueError,
         r"module has cell Cell\(gate_activation='hard_sigmoid', .*\); torch.nn has only the standard one"),
        (to_torch, lambda: compat.LSTMCell(3, 5, cell=CUSTOM), ValueError, "module has cell"),
        (to_torch, lambda: customlstm.LSTMCell(3, 5, proj_size=2), ValueError, "module has proj_size=2"),
        (to_torch, lambda: nn.GRU(3, 5), TypeError, r"module must be .* got torch.nn.modules.rnn.GRU"),
        (to_compat, lambda: nn.LSTM(3, 5, bidirectional=True), ValueError, "module is bidirectional=True"),
        (to_compat, lambda: customlstm.LSTM(3, 5, proj_size=2), ValueError, "module has proj_size=2"),
        (to_compat, lambda: nn.LSTM(3, 5, 2, dropout=0.5), ValueError,
         "module has dropout=0.5 between layers; .* set module.dropout = 0"),
        (to_compat, lambda: nn.LSTM(3, 5).state_dict(), TypeError, "got collections.OrderedDict"),
        (to_customlstm, lambda: None, TypeError, "got builtins.NoneType"),
    ],
)  # fmt: skip
def test_module_errors(convert, module, error, text):
    with pytest.raises(error, match=text):
        convert(module())
