"""``torch.nn.LSTM = customlstm.LSTM``, and then code that has never heard of it.

What each test expects is what ``torch.nn`` gives: every one runs twice, unpatched first.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
)

import customlstm


@pytest.fixture(autouse=True, params=["torch.nn", "customlstm"])
def _patched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "customlstm":
        monkeypatch.setattr(nn, "LSTM", customlstm.LSTM)
        monkeypatch.setattr(nn, "LSTMCell", customlstm.LSTMCell)


def test_the_examples_of_the_documentation() -> None:
    rnn = nn.LSTM(10, 20, 2)
    output, (hn, cn) = rnn(torch.randn(5, 3, 10), (torch.randn(2, 3, 20), torch.randn(2, 3, 20)))
    assert output.shape == (5, 3, 20) and hn.shape == cn.shape == (2, 3, 20)
    cell = nn.LSTMCell(10, 20)
    hx, cx = torch.randn(3, 20), torch.randn(3, 20)
    outputs = []
    for step in torch.randn(2, 3, 10):
        hx, cx = cell(step, (hx, cx))
        outputs.append(hx)
    assert torch.stack(outputs, dim=0).shape == (2, 3, 20)


def test_the_last_output_is_the_last_state() -> None:
    lstm = nn.LSTM(3, 4, 2, bidirectional=True)
    output, (h_n, _) = lstm(torch.randn(5, 2, 3))
    h_n = h_n.view(2, 2, 2, 4)
    assert torch.equal(output[-1, :, :4], h_n[1, 0]) and torch.equal(output[0, :, 4:], h_n[1, 1])


def test_batch_first_is_a_transposition() -> None:
    first, second = nn.LSTM(3, 4), nn.LSTM(3, 4, batch_first=True)
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(first(x)[0], second(x.transpose(0, 1))[0].transpose(0, 1), rtol=0, atol=1e-13)


def test_unbatched_is_a_batch_of_one() -> None:
    lstm = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    x, h, c = torch.randn(5, 3), torch.randn(4, 2), torch.randn(4, 4)
    output, (h_n, c_n) = lstm(x, (h, c))
    wide, (h_wide, c_wide) = lstm(x.unsqueeze(1), (h.unsqueeze(1), c.unsqueeze(1)))
    assert output.shape == (5, 4) and h_n.shape == (4, 2) and c_n.shape == (4, 4)
    for a, b in ((output, wide), (h_n, h_wide), (c_n, c_wide)):
        torch.testing.assert_close(a, b.squeeze(1), rtol=0, atol=1e-13)


def test_packing_is_running_each_sequence_alone() -> None:
    lstm = nn.LSTM(3, 4, bidirectional=True)
    sequences = [torch.randn(n, 3) for n in (2, 5, 3)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    output, (h_n, c_n) = lstm(packed)
    assert isinstance(output, PackedSequence)
    padded, lengths = pad_packed_sequence(output)
    assert lengths.tolist() == [2, 5, 3]
    for b, x in enumerate(sequences):
        alone, (h, c) = lstm(x)
        torch.testing.assert_close(padded[: len(x), b], alone, rtol=0, atol=1e-13)
        assert not padded[len(x) :, b].any()
        torch.testing.assert_close(h_n[:, b], h, rtol=0, atol=1e-13)
        torch.testing.assert_close(c_n[:, b], c, rtol=0, atol=1e-13)


def test_packed_states_are_in_the_order_of_the_sequences() -> None:
    lstm = nn.LSTM(3, 4)
    x, lengths = pad_sequence([torch.randn(n, 3) for n in (2, 5, 3)]), torch.tensor([2, 5, 3])
    hx = (torch.randn(1, 3, 4), torch.randn(1, 3, 4))
    _, (h_n, _) = lstm(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    for b, n in enumerate(lengths.tolist()):
        _, (h, _) = lstm(x[:n, b : b + 1], (hx[0][:, b : b + 1], hx[1][:, b : b + 1]))
        torch.testing.assert_close(h_n[:, b : b + 1], h, rtol=0, atol=1e-13)


def test_a_cell_is_a_step_of_the_layer() -> None:
    lstm, cell = nn.LSTM(3, 4), nn.LSTMCell(3, 4)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in lstm.state_dict().items()})
    x = torch.randn(5, 2, 3)
    output, _ = lstm(x)
    states = None
    for t in range(5):
        states = cell(x[t], states)
        torch.testing.assert_close(states[0], output[t], rtol=0, atol=1e-13)


def test_dropout_acts_between_layers_and_in_training_only() -> None:
    lstm = nn.LSTM(3, 4, 2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    assert not torch.equal(lstm(x)[0], lstm(x)[0])
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        nn.LSTM(3, 4, dropout=0.5)


def test_dropout_of_1_leaves_the_first_layer_without_gradient() -> None:
    lstm = nn.LSTM(3, 4, 2, dropout=1.0)
    lstm(torch.randn(5, 2, 3))[0].sum().backward()
    assert (
        not lstm.weight_ih_l0.grad.any() and not lstm.weight_ih_l1.grad.any() and lstm.bias_ih_l1.grad.any()
    )


def test_initial_weights_are_uniform() -> None:
    lstm = nn.LSTM(30, 400)
    for p in lstm.parameters():
        assert p.abs().max() <= 0.05 and p.abs().max() > 0.0499 and p.mean().abs() < 0.005


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((0, 4), {}, ValueError),
        ((3, 0), {}, ValueError),
        ((3, 4), {"num_layers": 0}, ValueError),
        ((3, 4), {"dropout": 1.5}, ValueError),
        ((3, 4), {"dropout": True}, ValueError),
        ((3, 4), {"proj_size": -1}, ValueError),
        ((3, 4), {"proj_size": 4}, ValueError),
        ((3.5, 4), {}, TypeError),
        (("3", 4), {}, TypeError),
        ((3, 4), {"nonlinearity": "tanh"}, TypeError),
    ],
    ids=str,
)
def test_constructor_errors(arguments: tuple, options: dict, error: type[Exception]) -> None:
    with pytest.raises(error), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.LSTM(*arguments, **options)


@pytest.mark.parametrize(
    ("x", "hx", "error"),
    [
        ((5, 2, 4), None, RuntimeError),
        ((5, 2, 3, 1), None, ValueError),
        ((3,), None, ValueError),
        ((5, 2, 3), [(1, 3, 4), (1, 3, 4)], RuntimeError),
        ((5, 2, 3), [(2, 2, 4), (2, 2, 4)], RuntimeError),
        ((5, 2, 3), [(1, 2, 4), (1, 2, 3)], RuntimeError),
        ((5, 2, 3), [(1, 4), (1, 4)], RuntimeError),
        ((5, 3), [(1, 1, 4), (1, 1, 4)], RuntimeError),
    ],
    ids=str,
)
def test_call_errors(x: tuple, hx: list | None, error: type[Exception]) -> None:
    lstm = nn.LSTM(3, 4)
    with pytest.raises(error):
        lstm(torch.randn(x), None if hx is None else tuple(torch.randn(size) for size in hx))


def test_dtype_errors() -> None:
    lstm = nn.LSTM(3, 4)  # float64 here
    with pytest.raises(ValueError):
        lstm(torch.randn(5, 2, 3, dtype=torch.float32))
    with pytest.raises(RuntimeError):
        hx = (torch.randn(1, 2, 4, dtype=torch.float32), torch.randn(1, 2, 4, dtype=torch.float32))
        lstm(torch.randn(5, 2, 3), hx)


def test_isinstance_and_names() -> None:
    """Code that looks for its LSTMs, and for their parameters by name."""
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4, 2, bidirectional=True))
    (found,) = [m for m in model.modules() if isinstance(m, nn.LSTM)]
    names = [
        f"{kind}_l{layer}{suffix}"
        for layer in range(2)
        for suffix in ("", "_reverse")
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    assert [name for name, _ in found.named_parameters()] == names
    assert found._flat_weights_names == names
    assert [p.shape for row in found.all_weights for p in row] == [p.shape for p in found.parameters()]
    assert type(found).__name__ == "LSTM" and repr(found) == "LSTM(3, 4, num_layers=2, bidirectional=True)"
