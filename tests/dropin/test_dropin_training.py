"""Whole models, trained once with ``torch.nn`` and once with ``customlstm`` in its place.

The same seed makes the same weights, draws the same data and the same dropout; after 200 steps the
losses must agree within 1e-4. (They agree far better in float64, but training amplifies every rounding,
and how much is the model's.)
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import customlstm

STEPS = 200
Library = ModuleType  # torch.nn, or customlstm


class Seq2Seq(nn.Module):
    """Reverses a sequence: the encoder's states start the decoder, which is fed the right answer."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.encoder = library.LSTM(6, 12, num_layers=2, batch_first=True)
        self.decoder = library.LSTM(6, 12, num_layers=2, batch_first=True)
        self.out = nn.Linear(12, 9)

    def loss(self, generator: torch.Generator) -> Tensor:
        source = torch.randint(1, 9, (4, 6), generator=generator)
        target = source.flip(1)
        _, states = self.encoder(self.embed(source))
        fed = torch.cat([torch.zeros(4, 1, dtype=torch.int64), target[:, :-1]], 1)
        output, _ = self.decoder(self.embed(fed), states)
        return F.cross_entropy(self.out(output).flatten(0, 1), target.flatten())


class PackedClassifier(nn.Module):
    """Which half of a sequence of any length is larger: bidirectional, packed, unsorted, last states only."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.lstm = library.LSTM(2, 8, bidirectional=True)
        self.out = nn.Linear(16, 2)

    def loss(self, generator: torch.Generator) -> Tensor:
        lengths = torch.randint(2, 9, (6,), generator=generator)
        x = torch.randn(8, 6, 2, generator=generator)
        label = (x[:2].sum((0, 2)) > 0).long()
        _, (h_n, _) = self.lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return F.cross_entropy(self.out(torch.cat([h_n[0], h_n[1]], 1)), label)


class PackedTagger(nn.Module):
    """One label a step, padded again and masked; three layers with dropout between them."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.lstm = library.LSTM(2, 8, 3, dropout=0.3, bidirectional=True, batch_first=True)
        self.out = nn.Linear(16, 1)

    def loss(self, generator: torch.Generator) -> Tensor:
        lengths = torch.randint(2, 8, (5,), generator=generator)
        x = torch.randn(5, int(lengths.max()), 2, generator=generator)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, back = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        assert torch.equal(back, lengths)
        mask = torch.arange(output.size(1)) < lengths.unsqueeze(1)
        wanted = (x.cumsum(1).sum(-1, keepdim=True) > 0).to(output.dtype)
        return F.binary_cross_entropy_with_logits(self.out(output)[mask], wanted[mask])


class TruncatedBackpropagation(nn.Module):
    """A stream in pieces; the detached states go on from one piece to the next."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.lstm = library.LSTM(1, 10, proj_size=4)
        self.out = nn.Linear(4, 1)
        self.states: tuple[Tensor, Tensor] | None = None

    def loss(self, generator: torch.Generator) -> Tensor:
        x = torch.randn(6, 3, 1, generator=generator)
        output, states = self.lstm(x, self.states)
        self.states = (states[0].detach(), states[1].detach())
        return F.mse_loss(self.out(output), torch.cat([torch.zeros(1, 3, 1), x[:-1]]))


class CellDecoder(nn.Module):
    """A loop over two stacked cells that feeds its own output back."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.first = library.LSTMCell(3, 8)
        self.second = library.LSTMCell(8, 8, bias=False)
        self.out = nn.Linear(8, 3)

    def loss(self, generator: torch.Generator) -> Tensor:
        target = torch.randn(5, 4, 3, generator=generator).tanh()
        y, first, second, total = target[0], None, None, torch.zeros(())
        for t in range(1, 5):
            first = self.first(y, first)
            second = self.second(first[0], second)
            y = self.out(second[0])
            total = total + F.mse_loss(y, target[t])
        return total


class TakeOutput(nn.Module):
    def forward(self, result: tuple[Tensor, tuple[Tensor, Tensor]]) -> Tensor:
        return result[0]


class Sequential(nn.Module):
    """In a container, between layers of other kinds."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 6), nn.ReLU(), library.LSTM(6, 8), TakeOutput(), nn.LayerNorm(8), nn.Dropout(0.1),
            library.LSTM(8, 4, bias=False), TakeOutput(), nn.Linear(4, 1),
        )  # fmt: skip

    def loss(self, generator: torch.Generator) -> Tensor:
        x = torch.randn(6, 4, 3, generator=generator)
        return F.mse_loss(self.net(x), x.cumsum(0).mean(-1, keepdim=True))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 0.01)


def clipped_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.3, momentum=0.9, nesterov=True)


MODELS: dict[str, tuple[Callable[[Library], nn.Module], Callable[[nn.Module], torch.optim.Optimizer]]] = {
    "sequence to sequence": (Seq2Seq, adam),
    "packed classifier": (PackedClassifier, clipped_sgd),
    "packed tagger with dropout": (PackedTagger, adam),
    "truncated backpropagation": (TruncatedBackpropagation, clipped_sgd),
    "decoder of cells": (CellDecoder, adam),
    "in a container": (Sequential, adam),
}


def train(name: str, library: Library) -> Tensor:
    """The losses of 200 steps, everything from fixed seeds."""
    build, optimise = MODELS[name]
    torch.manual_seed(5)
    model = build(library)
    optimizer = optimise(model)
    generator = torch.Generator().manual_seed(6)
    history = []
    for _ in range(STEPS):
        loss = model.loss(generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(loss.detach())
    return torch.stack(history)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_torch_nn(name: str) -> None:
    expected, actual = train(name, nn), train(name, customlstm)
    assert expected[-20:].mean() < expected[:20].mean(), "the model does not learn, so it shows nothing"
    difference = (actual - expected).abs()
    worst = int(difference.argmax())
    assert difference[worst] < 1e-4, f"step {worst}: {actual[worst]}, with torch.nn {expected[worst]}"
    # before training can amplify anything
    assert difference[:10].max() < 1e-12


def test_models_run_on_the_fused_kernel() -> None:
    """If there is one. Else this suite still holds, on the reference."""
    if not customlstm._binary.status().loaded:
        pytest.skip("no compiled library")
    with customlstm.use_backend("fused"):  # which raises where anything would fall back
        for build, _ in MODELS.values():
            build(customlstm).loss(torch.Generator().manual_seed(0)).backward()
