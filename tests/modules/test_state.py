"""Parameters as values: seeds, state_dict, copies, pickles, texts, and other tensors put in their place."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from support import assert_near
from torch import nn

import customlstm

OPTIONS = [
    {},
    {"num_layers": 2, "bias": False, "batch_first": True},
    {"num_layers": 3, "bidirectional": True, "proj_size": 2, "dropout": 0.3},
]
CELL = customlstm.Cell(
    "hard_sigmoid", customlstm.PiecewiseLinear([-1.0, 0.0, 1.0], [-1.0, 0.0, 0.5]), "softsign"
)

options = pytest.mark.parametrize("options", OPTIONS, ids=["simple", "no bias", "everything"])


@options
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_weights_from_an_equal_seed(options: dict, dtype: torch.dtype) -> None:
    made = []
    for kind in (nn.LSTM, customlstm.LSTM):
        torch.manual_seed(5)
        module = kind(4, 6, dtype=dtype, **options)
        made.append(
            (dict(module.named_parameters()), torch.rand(1))
        )  # and the generator is where it would be
    (theirs, next_theirs), (ours, next_ours) = made
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[name], ours[name]) and type(ours[name]) is nn.Parameter for name in theirs)
    assert torch.equal(next_theirs, next_ours)


def test_equal_cell_weights_from_an_equal_seed() -> None:
    for bias in (True, False):
        torch.manual_seed(5)
        theirs = nn.LSTMCell(4, 6, bias).state_dict()
        torch.manual_seed(5)
        ours = customlstm.LSTMCell(4, 6, bias).state_dict()
        assert list(theirs) == list(ours) and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert list(customlstm.LSTMCell(4, 6, proj_size=2).state_dict())[-1] == "weight_hr"


@options
def test_state_dict_loads_both_ways(options: dict) -> None:
    theirs, ours = nn.LSTM(4, 6, **options), customlstm.LSTM(4, 6, cell=CELL, **options)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    fresh = nn.LSTM(4, 6, **options)
    assert str(fresh.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), fresh.parameters(), strict=True))


@options
def test_all_weights_and_mode(options: dict) -> None:
    theirs, ours = nn.LSTM(4, 6, **options), customlstm.LSTM(4, 6, **options)
    assert ours.mode == theirs.mode == "LSTM"
    assert [[tuple(w.shape) for w in ws] for ws in ours.all_weights] == [
        [tuple(w.shape) for w in ws] for ws in theirs.all_weights
    ]
    own = {id(p) for p in ours.parameters()}
    assert {id(w) for ws in ours.all_weights for w in ws} == own
    assert ours.flatten_parameters() is None
    for name in (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "proj_size",
    ):
        assert getattr(ours, name) == getattr(theirs, name)


@options
def test_copies_and_pickles(options: dict) -> None:
    module = customlstm.LSTM(4, 6, cell=CELL, backend="reference", **options).eval()
    x = torch.randn(5, 3, 4)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert type(other) is customlstm.LSTM and repr(other) == repr(module)
        assert other.cell == CELL and not other.training
        assert torch.equal(other(x)[0], module(x)[0])
        with torch.no_grad():
            other.weight_hh_l0.zero_()  # it has its own memory
        assert module.weight_hh_l0.count_nonzero()


def test_cell_copies_and_pickles() -> None:
    module = customlstm.LSTMCell(4, 6, proj_size=2, cell=CELL)
    x = torch.randn(3, 4)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module) and torch.equal(other(x)[1], module(x)[1])


def test_state_dict_loads_with_weights_only() -> None:
    module, file = customlstm.LSTM(4, 6, cell=CELL), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    assert list(torch.load(file, weights_only=True)) == list(module.state_dict())


def test_a_cell_in_a_checkpoint_loads_with_weights_only() -> None:
    module, file = customlstm.LSTM(4, 6, cell=CELL), io.BytesIO()
    part = customlstm.activations.Activation("elu", 0.5)
    torch.save({"cell": module.cell, "part": part, "weights": module.state_dict()}, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    assert found["cell"] == CELL and found["part"] == part
    other = customlstm.LSTM(4, 6, cell=found["cell"])
    other.load_state_dict(found["weights"])
    x = torch.randn(5, 3, 4)
    assert torch.equal(other(x)[0], module(x)[0])


def test_a_stored_activation_is_checked() -> None:
    stored = pickle.dumps(customlstm.activations.Activation("elu", 0.5))
    assert pickle.loads(stored) == customlstm.activations.Activation("elu", 0.5)
    with pytest.raises(ValueError, match="unknown activation 'evl'"):
        pickle.loads(stored.replace(b"elu", b"evl"))


@options
def test_repr_is_that_of_nn_lstm(options: dict) -> None:
    assert repr(customlstm.LSTM(4, 6, **options)) == repr(nn.LSTM(4, 6, **options))
    text = repr(customlstm.LSTM(4, 6, cell=CELL, backend="fused", **options))
    assert text.startswith(repr(nn.LSTM(4, 6, **options))[:-1])
    assert "cell=Cell(gate_activation='hard_sigmoid'" in text and text.endswith("backend='fused')")


def test_cell_repr_is_that_of_nn_lstm_cell() -> None:
    for bias in (True, False):
        assert repr(customlstm.LSTMCell(4, 6, bias)) == repr(nn.LSTMCell(4, 6, bias))
    assert repr(customlstm.LSTMCell(4, 6, proj_size=2)) == "LSTMCell(4, 6, proj_size=2)"


def test_dropout_on_one_layer_warns_as_nn_lstm_does() -> None:
    texts = []
    for kind in (nn.LSTM, customlstm.LSTM):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind(4, 6, dropout=0.5)
        assert [w.category for w in caught] == [UserWarning]
        texts.append(str(caught[0].message))
    assert caught[0].filename == __file__
    assert texts[0] == texts[1]


def test_cell_can_be_changed() -> None:
    module, x = customlstm.LSTM(4, 6), torch.randn(5, 3, 4)
    standard = module(x)[0]
    module.cell = CELL
    changed = module(x)[0]
    assert not torch.allclose(standard, changed)
    assert torch.equal(changed, _with_weights_of(module, customlstm.LSTM(4, 6, cell=CELL))(x)[0])
    module.cell = None
    assert module.cell.is_standard and torch.equal(module(x)[0], standard)


def _with_weights_of(source: nn.Module, target: nn.Module) -> nn.Module:
    target.load_state_dict(source.state_dict())
    return target


def test_replaced_parameters_are_used() -> None:
    """functional_call, weight norm and parametrisations put other tensors in a parameter's place."""
    module, x = customlstm.LSTM(4, 6), torch.randn(5, 3, 4)
    doubled = _with_weights_of(module, customlstm.LSTM(4, 6))
    with torch.no_grad():
        doubled.weight_hh_l0.mul_(2)
    expected = doubled(x)[0]
    replaced = {"weight_hh_l0": module.weight_hh_l0 * 2}
    assert torch.equal(torch.func.functional_call(module, replaced, (x,))[0], expected)

    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    nn.utils.parametrize.register_parametrization(module, "weight_hh_l0", Double())
    assert torch.equal(module(x)[0], expected)
    module(x)[0].sum().backward()
    assert module.parametrizations.weight_hh_l0.original.grad.count_nonzero()

    normed = nn.utils.parametrizations.weight_norm(
        _with_weights_of(doubled, customlstm.LSTM(4, 6)), "weight_hh_l0"
    )
    assert_near(normed(x)[0], expected, tolerance=1e-6)
    nn.utils.parametrize.remove_parametrizations(
        normed, "weight_hh_l0"
    )  # registers the parameter anew, at the end
    assert list(dict(normed.named_parameters()))[-1] == "weight_hh_l0"
    assert_near(normed(x)[0], expected, tolerance=1e-6)
    doubled.weight_hh_l0 = nn.Parameter(torch.zeros_like(doubled.weight_hh_l0))
    assert not torch.allclose(doubled(x)[0], expected)


def test_replaced_parameters_of_a_cell_are_used() -> None:
    module, x = customlstm.LSTMCell(4, 6, proj_size=2), torch.randn(3, 4)
    hx = (torch.randn(3, 2), torch.randn(3, 6))
    expected = module(x, hx)[0]
    normed = nn.utils.parametrizations.weight_norm(copy.deepcopy(module), "weight_hh")
    assert_near(normed(x, hx)[0], expected, tolerance=1e-6)
    nn.utils.parametrize.remove_parametrizations(normed, "weight_hh")
    assert_near(normed(x, hx)[0], expected, tolerance=1e-6)
    replaced = {"weight_hr": torch.zeros_like(module.weight_hr)}
    assert torch.func.functional_call(module, replaced, (x, hx))[0].count_nonzero() == 0


def test_device_and_dtype_moves() -> None:
    module = customlstm.LSTM(4, 6, device="meta")
    output, (h_n, c_n) = module(torch.empty(5, 3, 4, device="meta"))
    assert output.is_meta and output.shape == (5, 3, 6) and h_n.shape == c_n.shape == (1, 3, 6)
    h, c = customlstm.LSTMCell(4, 6, device="meta", proj_size=2)(torch.empty(3, 4, device="meta"))
    assert h.is_meta and h.shape == (3, 2) and c.shape == (3, 6)
    real = module.to_empty(device="cpu").double()
    real.reset_parameters()
    assert real(torch.randn(5, 3, 4, dtype=torch.float64))[0].dtype == torch.float64


def test_reset_parameters_restarts_from_the_seed() -> None:
    torch.manual_seed(5)
    module = customlstm.LSTM(4, 6)
    first = [p.clone() for p in module.parameters()]
    module.reset_parameters()
    assert not torch.equal(first[0], module.weight_ih_l0)
    torch.manual_seed(5)
    module.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(first, module.parameters(), strict=True))
    assert all(p.abs().max() <= 6**-0.5 for p in module.parameters())
