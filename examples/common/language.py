"""What one does with a trained character model: measure it on unseen text, let it write.

A model here is any module with `model(characters [T, B], state) -> (scores [T, B, symbols], state)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from .progress import track
from .text import UNKNOWN, Corpus, Vocabulary


@torch.no_grad()
def held_out_bits(model: nn.Module, corpus: Corpus, device: torch.device, limit: int | None = None) -> float:
    """Bits per character on the held-out text, each of its characters predicted once from those before it.

    The text is read in up to 32 rows side by side; each row first reads the 256 characters before it,
    unscored, so that its state is that of a reader who came from the beginning.
    """
    count = len(corpus.held_out) if limit is None else min(limit, len(corpus.held_out))
    warm_up = min(256, len(corpus.train) - 1)
    text = torch.cat([corpus.train[len(corpus.train) - warm_up - 1 :], corpus.held_out[:count]])
    rows = max(1, min(32, count // 1024))
    length = math.ceil(count / rows)
    position = torch.arange(-warm_up, length).unsqueeze(1) + length * torch.arange(rows)
    scored = (position >= length * torch.arange(rows)) & (position < count)
    targets = (position + warm_up + 1).clamp(max=len(text) - 1)
    was_training, state, total = model.training, None, 0.0
    model.eval()
    parts = (targets.split(64), text[targets].split(64), scored.split(64))
    # A bar for long texts only: it would flicker among those of the training.
    bar = track(zip(*parts, strict=True), total=len(parts[0]), desc="measuring", delay=3, leave=False)
    for chunk, target, wanted in bar:
        scores, state = model(text[chunk - 1].to(device), state)
        loss = F.cross_entropy(scores.flatten(0, 1), target.to(device).flatten(), reduction="none")
        total += loss.double()[wanted.to(device).flatten()].sum().item()
    model.train(was_training)
    unknown = (corpus.held_out[:count] == UNKNOWN).sum().item()
    return (total / math.log(2) + unknown * corpus.vocabulary.bits_per_unknown) / count


@torch.no_grad()
def write_text(
    model: nn.Module, vocabulary: Vocabulary, count: int, temperature: float, seed: int, prompt: str
) -> Iterator[str]:
    """Draws `count` characters one by one after `prompt`, never <unk>, with a random generator of its own."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    characters, state = vocabulary.encode(prompt or "\n").unsqueeze(1), None
    for _ in range(count):
        scores, state = model(characters.to(device), state)
        last = scores[-1, 0].double().cpu()
        last[UNKNOWN] = -math.inf
        if temperature > 0:
            number = torch.multinomial(torch.softmax(last / temperature, 0), 1, generator=generator)
        else:
            number = last.argmax().unsqueeze(0)
        characters = number.unsqueeze(1)
        yield vocabulary.decode(number.tolist())
