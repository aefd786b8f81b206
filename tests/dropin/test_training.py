"""customlstm.LSTM in place of nn.LSTM in whole training runs: same seed, same data, same losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import customlstm

STEPS = 200
Make = Callable[..., nn.Module]


class PackedClassifier(nn.Module):
    """Embedding, two bidirectional layers with dropout over sequences of any length, linear layer."""

    def __init__(self, lstm: Make) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6, dtype=torch.float64)
        options = {"num_layers": 2, "bidirectional": True, "dropout": 0.2, "batch_first": True}
        self.lstm = lstm(6, 9, dtype=torch.float64, **options)
        self.head = nn.Linear(18, 3, dtype=torch.float64)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        output, (h_n, _) = self.lstm(packed)
        padded, _ = pad_packed_sequence(output, batch_first=True)
        return self.head(padded.mean(1) + torch.cat([h_n[-2], h_n[-1]], -1))


def classify(make: Make) -> list[float]:
    torch.manual_seed(0)
    model = PackedClassifier(make)
    words, labels = torch.randint(0, 20, (16, 11)), torch.randint(0, 3, (16,))
    lengths = torch.randint(1, 12, (16,))
    return train(model, lambda _: nn.functional.cross_entropy(model(words, lengths), labels))


def language_model(make: Make) -> list[float]:
    """Truncated backpropagation: the state goes on from chunk to chunk."""
    torch.manual_seed(1)
    lstm = make(5, 12, num_layers=3, proj_size=4, dtype=torch.float64)
    head = nn.Linear(4, 5, dtype=torch.float64)
    data = torch.randn(STEPS + 1, 7, 4, 5, dtype=torch.float64)
    model = nn.ModuleList([lstm, head])
    state: Any = None

    def loss(step: int) -> Tensor:
        nonlocal state
        output, state = lstm(data[step], state)
        state = tuple(part.detach() for part in state)
        return (head(output) - data[step + 1]).square().mean()

    return train(model, loss)


def decoder(make: Make) -> list[float]:
    """A cell in a loop that is fed its own output."""
    torch.manual_seed(2)
    cell_class = nn.LSTMCell if make is nn.LSTM else customlstm.LSTMCell
    cell, head = cell_class(3, 8, dtype=torch.float64), nn.Linear(8, 3, dtype=torch.float64)
    target = torch.randn(6, 4, 3, dtype=torch.float64)

    def loss(_: int) -> Tensor:
        x, state, outputs = torch.zeros(4, 3, dtype=torch.float64), None, []
        for _ in range(len(target)):
            state = cell(x, state)
            x = head(state[0])
            outputs.append(x)
        return (torch.stack(outputs) - target).square().mean()

    return train(nn.ModuleList([cell, head]), loss)


def train(model: nn.Module, loss_of: Callable[[int], Tensor]) -> list[float]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(STEPS):
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("task", [classify, language_model, decoder])
def test_same_losses_as_nn_lstm(task: Callable[[Make], list[float]]) -> None:
    expected, actual = task(nn.LSTM), task(customlstm.LSTM)
    assert expected[-1] < expected[0]  # it does learn
    worst = max(range(STEPS), key=lambda step: abs(actual[step] - expected[step]))
    assert abs(actual[worst] - expected[worst]) < 1e-4, (worst, actual[worst], expected[worst])


def test_replaces_the_class_in_code_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 5), nn.LSTM(5, 6, 2, batch_first=True))

    x = torch.randn(2, 7, 4)
    expected = build()(x)[0]
    monkeypatch.setattr(nn, "LSTM", customlstm.LSTM)
    model = build()
    assert isinstance(model[1], customlstm.LSTM)
    model[1].flatten_parameters()
    torch.testing.assert_close(model(x)[0], expected)


def test_averaged_and_copied_models_are_their_own() -> None:
    model = customlstm.LSTM(3, 4)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.weight_hh_l0.add_(1.0)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    assert not torch.equal(twin.weight_hh_l0, model.weight_hh_l0)
    x = torch.randn(5, 2, 3)
    assert not torch.equal(twin(x)[0], model(x)[0])


def test_weight_norm_and_checkpoint() -> None:
    torch.manual_seed(4)
    ours, theirs = customlstm.LSTM(3, 4, dtype=torch.float64), nn.LSTM(3, 4, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(theirs(x)[0].square().sum(), [x, theirs.weight_hh_l0])
    nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
    output = torch.utils.checkpoint.checkpoint(lambda y: ours(y)[0], x, use_reentrant=False)
    (grad_x,) = torch.autograd.grad(output.square().sum(), [x], retain_graph=True)
    torch.testing.assert_close(grad_x, expected[0], atol=1e-12, rtol=0)
    output.square().sum().backward()
    magnitude = ours.parametrizations.weight_hh_l0.original0
    row_norms = theirs.weight_hh_l0.norm(dim=1, keepdim=True)
    direction = theirs.weight_hh_l0 / row_norms
    torch.testing.assert_close(
        magnitude.grad, (expected[1] * direction).sum(1, keepdim=True), atol=1e-12, rtol=0
    )


def test_functional_call_takes_other_weights() -> None:
    module = customlstm.LSTM(3, 4)
    others = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}
    output, _ = torch.func.functional_call(module, others, (torch.randn(5, 2, 3),))
    assert torch.equal(output, torch.zeros(5, 2, 4))
