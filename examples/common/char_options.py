"""The command line of char_lm.py, and the settings that one run keeps from its first step to its last."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from . import cli

DEFAULT_CELL = "hard_sigmoid,pwl:16"


@dataclass(frozen=True)
class Settings:
    """All that decides what a run computes. A checkpoint holds it, so `--resume` needs no option again."""

    model: str = "customlstm"
    cell: str = DEFAULT_CELL
    hidden: int = 256
    embedding: int = 64
    layers: int = 1
    dropout: float = 0.0
    batch: int = 32
    bptt: int = 64
    lr: float = 0.008
    weight_decay: float = 0.01
    clip: float = 1.0
    minutes: float = 2.0
    steps: int = 0
    """0: train for `minutes`."""
    min_count: int = 2
    held_out: float = 0.1
    seed: int = 1

    @classmethod
    def from_options(cls, options: argparse.Namespace, stored: dict[str, Any] | None = None) -> Settings:
        """The options that were given, else the `stored` settings of a checkpoint, else the defaults.

        Raises:
            UsageError: a cell that cannot be, or an option that differs from the checkpoint's and is not the
                length of training.
        """
        names = [field.name for field in fields(cls)]
        given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        if stored is None:
            given["model"], given["cell"] = cli.choose_cell(options.model, options.cell, DEFAULT_CELL)
            return cls(**given)
        different = [
            name for name in given if given[name] != stored[name] and name not in ("minutes", "steps")
        ]
        if different:
            trained = ", ".join(f"--{name.replace('_', '-')} {stored[name]}" for name in different)
            raise cli.UsageError(
                f"--resume: the checkpoint was trained with {trained}; leave that out or start anew"
            )
        if "minutes" in given and "steps" not in given:
            given["steps"] = 0
        return cls(**{**stored, **given})


DESCRIPTION = """\
Trains a character language model with customlstm.LSTM, measures it on the end of the text, which it never
trains on, and lets it write.

  char_lm.py --demo                                       the reference manual inside CPython, 2 minutes
  char_lm.py --text poems.txt.gz --minutes 30 \\
             --checkpoint poems.pt --out runs/poems       any text file; Ctrl-C stops it early, and
  char_lm.py --text poems.txt.gz --checkpoint poems.pt --resume          goes on exactly there
  char_lm.py --demo --cell softsign,hard_tanh             another cell (see --cell)
  char_lm.py --demo --model nn.LSTM                       PyTorch's layer, same sizes, same start
"""

EPILOG = """\
Bits per character (bpc): what the model needs to encode one character of the text. Every character counts:
one without a symbol of its own costs its <unk> and then a choice among all other characters of Unicode.
Exit code: 0; 2 where something given cannot be used (nothing is then overwritten); 130 after Ctrl-C.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line. Options that are settings are None unless given (see `Settings.from_options`)."""
    parser = argparse.ArgumentParser(
        "char_lm.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=cli.HelpFormatter
    )
    whole, real = cli.at_least(1), cli.positive

    group = parser.add_argument_group("the text")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--demo", action="store_true", help="the manual inside CPython; with --compare and --out runs/char_lm"
    )
    source.add_argument("--text", type=Path, metavar="FILE", help="a text file, gzip-compressed or not")
    group.add_argument("--encoding", default="utf-8", help="of FILE (default: utf-8)")
    _add(group, "held_out", cli.rate, "fraction at the end of the text to measure on")
    _add(group, "min_count", whole, "a character seen fewer times in training is <unk>")

    cli.add_layer_options(parser, DEFAULT_CELL)

    group = parser.add_argument_group("sizes")
    _add(group, "hidden", whole, "hidden size")
    _add(group, "embedding", whole, "size of the vector for a character")
    _add(group, "layers", whole, "LSTM layers")

    group = parser.add_argument_group("training")
    _add(group, "minutes", real, "time to train; the schedule follows it")
    _add(group, "steps", whole, "train so many steps instead, whatever time they take: reproducible")
    _add(group, "batch", whole, "places of the text read side by side")
    _add(group, "bptt", whole, "characters read in a step, and the length of the gradient")
    _add(group, "lr", real, "highest learning rate")
    _add(group, "weight_decay", cli.rate, "of AdamW")
    _add(group, "clip", real, "longest gradient")
    _add(group, "dropout", cli.rate, "around the LSTM and between its layers")
    _add(group, "seed", int, "of weights, dropout and the sample")

    group = parser.add_argument_group("results")
    group.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="save the run here, every minute and at the end"
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --checkpoint; --minutes or --steps extend it",
    )
    group.add_argument(
        "--sample", type=cli.at_least(0), default=600, metavar="N", help="characters to write (default: 600)"
    )
    group.add_argument(
        "--temperature",
        type=cli.not_negative,
        default=0.7,
        metavar="X",
        help="of the sample; 0: always the likeliest character (default: 0.7)",
    )
    group.add_argument(
        "--prompt", default="\n", metavar="TEXT", help="what the sample begins with (default: a line break)"
    )
    group.add_argument(
        "--out", type=Path, metavar="DIR", help="write loss.png and result.json into this folder"
    )
    group.add_argument(
        "--compare",
        action="store_true",
        help="half a minute more: train the same cell fused and in plain PyTorch, and nn.LSTM",
    )

    cli.add_machine_options(parser)
    return parser


def _add(group: Any, name: str, kind: Any, text: str) -> None:
    default = asdict(Settings())[name]
    suffix = "" if name == "steps" else f" (default: {default:g})"
    option = "--" + name.replace("_", "-")
    group.add_argument(
        option, type=kind, metavar="N" if isinstance(default, int) else "X", help=text + suffix
    )
