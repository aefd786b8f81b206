"""A character language model on `customlstm.LSTM`: train, measure, continue, write.

`python char_lm.py --help` lists the options. Reading order: `CharacterModel` (how the layer is used),
`Trainer.step` (truncated BPTT with carried state), `train`; the rest is bookkeeping. Options, text handling,
measuring, writing, checkpoints, progress bar and plots are in `common/`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import checkpoints, cli
from common.char_options import Settings, build_parser
from common.compare import compare, comparison_table
from common.files import write_json
from common.language import held_out_bits, write_text
from common.plots import save_curves
from common.progress import Bar, thousands
from common.recurrent import build_layer, kernel
from common.text import UNKNOWN, Corpus, Stream, python_manual, read_text
from torch import Tensor, nn
from torch.nn import functional as F

KIND = "char_lm checkpoint 1"
SAVE_EVERY = 60.0  # seconds of training between two checkpoints
MEASURE_TIMES = 8  # held-out points on the curve; nothing is chosen by them
COMPARE_SECONDS = 25.0

State = tuple[Tensor, Tensor]


class CharacterModel(nn.Module):
    """Embedding, LSTM, linear layer: from the characters so far to scores for the next one."""

    def __init__(self, symbols: int, settings: Settings, backend: str = "auto") -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, settings.embedding)
        self.lstm = build_layer(
            settings.model,
            settings.embedding,
            settings.hidden,
            cell=settings.cell,
            backend=backend,
            num_layers=settings.layers,
            dropout=settings.dropout if settings.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(settings.hidden, symbols)
        with torch.no_grad():
            for layer in range(settings.layers):
                # Remember by default (Jozefowicz et al. 2015). The order of the gates is i, f, g, o.
                getattr(self.lstm, f"bias_ih_l{layer}")[settings.hidden : 2 * settings.hidden] += 1.0

    def forward(self, characters: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """characters [T, B], state after those before -> scores [T, B, symbols], state after these."""
        output, state = self.lstm(self.dropout(self.embedding(characters)), state)
        return self.head(self.dropout(output)), state


class Trainer:
    """One run: model, optimiser, place in the text, carried state and what has been measured so far."""

    def __init__(
        self, settings: Settings, corpus: Corpus, device: torch.device, backend: str = "auto"
    ) -> None:
        cli.seed_everything(settings.seed)
        self.settings, self.corpus, self.device = settings, corpus, device
        self.model = CharacterModel(len(corpus.vocabulary), settings, backend).to(device)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay
        )
        self.stream = Stream(corpus.train, settings.batch, settings.bptt)
        self.state: State | None = None
        self.steps, self.seconds = 0, 0.0
        # Points of the curves, [seconds, steps, bits per character]; training has one for ten steps.
        self.losses: list[list[float]] = []
        self.held_out: list[list[float]] = []
        self._recent: list[float] = []

    @property
    def fraction(self) -> float:
        """How much of the training is over, from 0 to 1 (or beyond)."""
        settings = self.settings
        return self.steps / settings.steps if settings.steps else self.seconds / (60 * settings.minutes)

    @property
    def characters_per_second(self) -> float:
        return self.steps * self.settings.batch * self.settings.bptt / max(self.seconds, 1e-9)

    def step(self, fraction: float | None = None) -> float:
        """Reads the next chunk, updates the weights, returns the chunk's bits per character.

        `fraction` takes the place of `self.fraction` in the schedule.
        """
        start = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * schedule(self.fraction if fraction is None else fraction)
        inputs, targets, anew = next(self.stream)
        # The state goes on from chunk to chunk, the gradient does not: detach() cuts it.
        state = None if anew or self.state is None else (self.state[0].detach(), self.state[1].detach())
        scores, self.state = self.model(inputs.to(self.device), state)
        loss = F.cross_entropy(scores.flatten(0, 1), targets.to(self.device).flatten())
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        value = loss.item()
        if not math.isfinite(value):
            raise cli.UsageError(
                f"the loss became {value} at step {self.steps}; lower --lr, or change --cell"
            )
        self.optimiser.step()
        unknown = (targets == UNKNOWN).float().mean().item()
        bits = value / math.log(2) + unknown * self.corpus.vocabulary.bits_per_unknown
        self.steps += 1
        self.seconds += time.perf_counter() - start
        self._recent.append(bits)
        if len(self._recent) == 10:
            self.losses.append([self.seconds, self.steps, sum(self._recent) / 10])
            self._recent.clear()
        return bits

    def measure(self, limit: int | None = None) -> float:
        """Bits per character of the held-out text, or of its first `limit` characters; kept for the curve."""
        bits = held_out_bits(self.model, self.corpus, self.device, limit)
        self.held_out.append([self.seconds, self.steps, bits])
        return bits

    def save(self, path: Path) -> None:
        """Writes everything that decides how the run goes on."""
        content = {
            "settings": asdict(self.settings),
            "digest": self.corpus.digest,
            "characters": self.corpus.vocabulary.characters,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "position": self.stream.position,
            "state": None if self.state is None else [part.detach() for part in self.state],
            "random": checkpoints.random_state(self.device),
            "progress": [self.steps, self.seconds, self.losses, self.held_out, self._recent],
        }
        checkpoints.save(path, KIND, content)

    def load(self, content: dict[str, Any]) -> None:
        """Puts back what `save` wrote."""
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.stream.position = content["position"]
        if content["state"] is not None:
            self.state = (content["state"][0].to(self.device), content["state"][1].to(self.device))
        checkpoints.restore_random_state(content["random"], self.device)
        self.steps, self.seconds, self.losses, self.held_out, self._recent = content["progress"]


def schedule(fraction: float) -> float:
    """The learning rate over its highest: up in a line for 3 % of the training, down a cosine to 2 %."""
    return min(1.0, 0.02 + fraction / 0.03) * (0.51 + 0.49 * math.cos(math.pi * min(fraction, 1.0)))


def train(trainer: Trainer, checkpoint: Path | None) -> bool:
    """Trains to the end or to Ctrl-C, saving on the way and then. Returns whether it was Ctrl-C."""
    by_steps = trainer.settings.steps > 0
    total = trainer.settings.steps if by_steps else 60 * trainer.settings.minutes
    saved, average = trainer.seconds, 0.0
    with cli.StopRequest() as stop, Bar(total, "training", "steps" if by_steps else "s") as bar:
        while trainer.fraction < 1 and not stop.asked:
            measured = int(MEASURE_TIMES * trainer.fraction)
            bits = trainer.step()
            average = 0.98 * average + 0.02 * bits if average else bits
            bar.update(
                trainer.steps if by_steps else trainer.seconds,
                f"{average:.3f} bits per character, {thousands(trainer.characters_per_second)} characters/s",
            )
            if measured < int(MEASURE_TIMES * trainer.fraction) < MEASURE_TIMES:
                trainer.measure(limit=50_000)
            if checkpoint and trainer.seconds - saved >= SAVE_EVERY:
                trainer.save(checkpoint)
                saved = trainer.seconds
        if checkpoint:
            trainer.save(checkpoint)
    return stop.asked


def start(options: argparse.Namespace) -> Trainer:
    """The run that the command line describes: a new one, or the one in the checkpoint."""
    checkpoint = options.checkpoint
    if options.resume and not checkpoint:
        raise cli.UsageError("--resume continues the run of a checkpoint: give it as --checkpoint FILE")
    stored = checkpoints.load(checkpoint, KIND) if options.resume else None
    if not stored and checkpoint and checkpoint.exists():
        raise cli.UsageError(f"{checkpoint} exists: go on with --resume, or give another --checkpoint")
    settings = Settings.from_options(options, stored["settings"] if stored else None)
    device = cli.choose_device(options.device, options.threads)
    text = python_manual() if options.demo else read_text(options.text, options.encoding)
    corpus = Corpus.split(text, settings.held_out, settings.min_count)
    if stored and stored["digest"] != corpus.digest:
        raise cli.UsageError(f"--resume: {checkpoint} was trained on another text")
    trainer = Trainer(settings, corpus, device, options.backend)
    if stored:
        trainer.load(stored)
    if checkpoint:
        cli.make_folder(checkpoint.parent, "--checkpoint")
    if options.out:
        cli.make_folder(options.out, "--out")
    return trainer


def save_results(folder: Path, trainer: Trainer, result: dict[str, Any]) -> None:
    """Writes loss.png and result.json."""
    settings = trainer.settings
    curves = {
        "training": [(steps, bits) for _, steps, bits in trainer.losses],
        "held out": [(steps, bits) for _, steps, bits in trainer.held_out],
    }
    title = f"{settings.model}, cell {settings.cell}, H={settings.hidden}"
    save_curves(folder / "loss.png", title, "training step", "bits per character", curves)
    points = {"points": ["seconds", "steps", "bpc"], "training": trainer.losses, "held_out": trainer.held_out}
    write_json(folder / "result.json", {"settings": asdict(settings), **result, **points})
    print(f"\nWrote {folder / 'loss.png'} and {folder / 'result.json'}.")


def main(arguments: list[str] | None = None) -> int | None:
    options = build_parser().parse_args(arguments)
    if options.demo:
        options.out, options.compare = options.out or Path("runs/char_lm"), True
    trainer = start(options)
    settings, corpus, model = trainer.settings, trainer.corpus, trainer.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    unknown = (corpus.held_out == UNKNOWN).float().mean().item() if len(corpus.held_out) else 0.0
    print(
        f"Text: {len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out "
        f"({unknown:.2%} of them unknown), {len(corpus.vocabulary):,} symbols.\n"
        f"Model: {model.lstm}, {parameters:,} parameters.\n"
        f"Runs on: {kernel(model.lstm)}, {torch.get_num_threads()} threads."
    )
    interrupted = train(trainer, options.checkpoint)
    speed = trainer.characters_per_second
    result: dict[str, Any] = {
        "steps": trainer.steps,
        "seconds": trainer.seconds,
        "characters_per_second": speed,
        "kernel": kernel(model.lstm),
        "interrupted": interrupted,
    }
    print(
        f"\n{'Interrupted after' if interrupted else 'Trained'} {trainer.steps:,} steps, "
        f"{trainer.seconds:.0f} s, {trainer.stream.passes:.1f} times through the text, "
        f"{thousands(speed)} characters/s."
    )
    if len(corpus.held_out):
        result["held_out_bpc"] = trainer.measure()
        print(f"Held-out text: {result['held_out_bpc']:.3f} bits per character.")
    if options.sample:
        characters = write_text(
            model, corpus.vocabulary, options.sample, options.temperature, settings.seed, options.prompt
        )
        result["sample"] = options.prompt + "".join(characters)
        print(f"\n--- a sample, temperature {options.temperature:g} ---\n{result['sample']}\n---")
    if options.compare and not interrupted:

        def contender(settings: Settings, backend: str) -> Trainer:
            return Trainer(settings, corpus, trainer.device, backend)

        result["comparison"] = compare(contender, settings, COMPARE_SECONDS)
        print("\n" + comparison_table(result["comparison"], settings))
    if options.out:
        save_results(options.out, trainer, result)
    return 130 if interrupted else None


if __name__ == "__main__":
    sys.exit(cli.run(main, "char_lm.py"))
