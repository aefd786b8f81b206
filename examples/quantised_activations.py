"""What cheap activations cost: a trained LSTM whose sigmoid and tanh become tables of a few straight lines.

`python quantised_activations.py --help` lists the options. Reading order: `one_model` (train, replace,
measure, train on), `summarise`, `main`. `common/replacing.py` has the cells and what is compared with what,
`common/replacing_report.py` the tables and the picture; model and training are those of `imdb.py`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imdb
import torch
from common import cli
from common.files import write_atomically, write_json
from common.made_up import made_up_reviews
from common.plots import save_svg
from common.progress import track
from common.quantised_options import parse
from common.recurrent import kernel, parse_cell
from common.replacing import (
    EXACT,
    PLACES,
    difference,
    in_one_place,
    is_coarse,
    largest_errors,
    replacements,
    title,
)
from common.replacing_report import picture, report
from common.reviews import Dataset, Words, read_reviews, tokenise
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Data:
    words: int
    training: Dataset
    validation: Dataset
    test: Dataset


@dataclass
class Runs:
    """For each cell, or (cell, place), the verdicts on the test reviews of every model that is complete."""

    replaced: dict[str, list[Tensor]] = field(default_factory=dict)
    tuned: dict[str, list[Tensor | None]] = field(default_factory=dict)
    """None for a model whose loss was no number any more."""
    places: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)


def prepare(options: argparse.Namespace) -> Data:
    if options.demo:
        training, test = made_up_reviews(800, seed=1), made_up_reviews(800, seed=2)
    else:
        training, test = read_reviews(options.data)
    training, validation = training.split(0.1)
    needed = options.tune_steps * options.batch
    if needed > len(training):
        raise cli.UsageError(
            f"--tune-steps {options.tune_steps} with --batch {options.batch} takes {needed:,} "
            f"training reviews, there are {len(training):,}; lower one of them"
        )
    words = Words(map(tokenise, training.texts), options.vocabulary)
    parts = (
        imdb.encode(part, words, options) for part in (training, validation, test.some(options.test_reviews))
    )
    return Data(len(words), *parts)


def settings_of(options: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    """The options as those of imdb.py, some of them changed."""
    return argparse.Namespace(**{**vars(options), "model": "customlstm", "cell": EXACT, **changes})


def train(
    model: imdb.Classifier, training: Dataset, data: Data, options: argparse.Namespace, device: torch.device
) -> float:
    """Trains with imdb.py's loop; returns the accuracy on the validation reviews."""
    result = imdb.train(model, training, data.validation, options, device)
    if result["interrupted"]:
        raise KeyboardInterrupt
    return max(accuracy for _, accuracy in result["validated"])


def one_model(
    data: Data, cells: list[str], seed: int, options: argparse.Namespace, device: torch.device, runs: Runs
) -> imdb.Classifier:
    """Trains one model, replaces its activations by every cell's, and adds to `runs` what came of it."""
    cli.seed_everything(seed)
    model = imdb.Classifier(data.words, settings_of(options)).to(device)
    print(f"\nModel {seed} of {options.seeds}: training with sigmoid and tanh.")
    try:
        validation = train(model, data.training, data, settings_of(options, seed=seed), device)
    except imdb.Diverged as error:
        raise cli.UsageError(f"{error.what}, with nothing replaced; lower --lr") from error
    exact = copy.deepcopy(model.state_dict())

    def measure(cell: str, name: str) -> Tensor:
        model.lstm.cell = parse_cell(cell)
        right = imdb.verdicts(model, data.test, device, f"testing {name}")
        print(f"  {name}: {right.double().mean():.2%} of the test reviews")
        return right

    chosen = torch.randperm(len(data.training), generator=torch.Generator().manual_seed(seed))
    chosen = chosen[: options.tune_steps * options.batch]
    more = Dataset([data.training.documents[i] for i in chosen.tolist()], data.training.labels[chosen])
    replaced, places, tuned = {}, {}, {}
    for cell in cells:
        model.load_state_dict(exact)
        replaced[cell] = measure(cell, f"{title(cell)}, {'as trained' if cell == EXACT else 'replaced'}")
        if is_coarse(cell):
            for place in PLACES:
                places[cell, place] = measure(in_one_place(cell, place), f"{title(cell)}, {place} only")
            model.lstm.cell = parse_cell(cell)
        cli.seed_everything(seed)  # the same dropout for every cell
        try:
            train(model, more, data, settings_of(options, seed=seed, epochs=1, lr=options.tune_lr), device)
            tuned[cell] = measure(cell, f"{title(cell)}, {options.tune_steps} steps more")
        except imdb.Diverged as error:
            print(f"  {title(cell)}: {error.what}")
            tuned[cell] = None
    # All at once: a model that Ctrl-C ends half-way leaves nothing behind.
    for kept, found in ((runs.replaced, replaced), (runs.places, places), (runs.tuned, tuned)):
        for key, right in found.items():
            kept.setdefault(key, []).append(right)
    runs.seeds.append(seed)
    runs.validation.append(validation)
    return model


def time_batches(
    model: imdb.Classifier, data: Data, cells: list[str], options: argparse.Namespace, device: torch.device
) -> dict[str, dict[str, float]]:
    """Milliseconds that each cell takes for a batch, in training (forward and backward) and in inference."""
    batches = list(data.test.batches(options.batch))
    words, lengths, labels = batches[len(batches) // 2]
    words, labels = words.to(device), labels.to(device)

    def step(mode: str) -> None:
        if mode == "training":
            model.train().zero_grad()
            F.binary_cross_entropy_with_logits(model(words, lengths), labels).backward()
        else:
            with torch.no_grad():
                model.eval()(words, lengths)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    parsed = {cell: parse_cell(cell) for cell in cells}
    found: dict[str, dict[str, list[float]]] = {cell: {"training": [], "inference": []} for cell in cells}
    # In turn, so that a slow moment of the machine hits all; the first round settles memory and caches.
    for completed in track(range(1 + options.rounds), desc="timing", unit="round"):
        for cell in cells:
            model.lstm.cell = parsed[cell]
            for mode, times in found[cell].items():
                start = time.perf_counter()
                step(mode)
                if completed:
                    times.append(1000 * (time.perf_counter() - start))
    return {
        cell: {mode: statistics.median(times) for mode, times in modes.items()}
        for cell, modes in found.items()
    }


def summarise(runs: Runs) -> dict[str, Any]:
    """Accuracies of the cells and differences to the exact one, each in the same stage, for result.json."""

    def compare(right: list[Tensor | None], exact: list[Tensor | None]) -> dict[str, Any] | None:
        both = [*right, *exact]
        if any(one is None for one in both):
            return None
        return {"accuracy": float(torch.stack(right).double().mean()), **difference(right, exact)}

    cells = {
        cell: {
            "largest_errors": largest_errors(cell),
            "replaced": compare(runs.replaced[cell], runs.replaced[EXACT]),
            "tuned": compare(runs.tuned[cell], runs.tuned[EXACT]),
        }
        for cell in runs.replaced
    }
    places: dict[str, Any] = {}
    for (cell, place), right in runs.places.items():
        places.setdefault(cell, {})[place] = compare(right, runs.replaced[EXACT])
    return {"seeds": runs.seeds, "validation_accuracy": runs.validation, "cells": cells, "places": places}


def main(arguments: list[str] | None = None) -> int | None:
    options = parse(arguments)
    device = cli.choose_device(options.device, options.threads)
    cli.make_folder(options.out, "--out")
    began = time.perf_counter()
    cells = [EXACT, *replacements(options.knots)]
    data = prepare(options)
    print(
        f"Reviews: {len(data.training):,} to train on, {len(data.validation):,} to validate, "
        f"{len(data.test):,} to test; {data.words:,} words."
    )

    runs, model, interrupted = Runs(), None, False
    try:
        for seed in range(1, options.seeds + 1):
            model = one_model(data, cells, seed, options, device, runs)
    except KeyboardInterrupt:
        interrupted = True
    if model is None:
        print(
            "\nInterrupted before the first model was complete: there is nothing to report.", file=sys.stderr
        )
        return 130
    times = time_batches(model, data, cells, options, device)
    result = {
        "settings": {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
        },
        "kernel": kernel(model.lstm),
        "threads": torch.get_num_threads(),
        "reviews": {
            "training": len(data.training),
            "validation": len(data.validation),
            "test": len(data.test),
        },
        **summarise(runs),
        "interrupted": interrupted,
    }
    for cell, found in result["cells"].items():
        found["milliseconds"] = times[cell]
    result["total_seconds"] = time.perf_counter() - began
    text = report(result)
    print(f"\n{text}")
    write_atomically(options.out / "table.md", lambda file: file.write(text.encode()))
    save_svg(options.out / "picture.svg", lambda: picture(result))
    write_json(options.out / "result.json", result)
    print(
        f"Wrote table.md, picture.svg and result.json into {options.out} "
        f"({result['total_seconds']:.0f} s in all)."
    )
    return 130 if interrupted else None


if __name__ == "__main__":
    sys.exit(cli.run(main, "quantised_activations.py"))
