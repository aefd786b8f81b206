"""The command line of quantised_activations.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import cli

DESCRIPTION = """\
Trains a standard LSTM to tell good film reviews from bad ones, replaces sigmoid and tanh by piecewise-linear
functions of a few knots, measures the accuracy, trains a few steps more with them, and measures again. For
small devices, where exp is slow or missing: a value from such a table is a look-up, a multiplication and an
addition.

  quantised_activations.py --data aclImdb_v1.tar.gz  the Large Movie Review Dataset (84 MB): 5 to 10 minutes,
                                                     two cores; https://ai.stanford.edu/~amaas/data/sentiment/
  quantised_activations.py --demo                    made-up reviews, one to two minutes, nothing to fetch
"""

EPILOG = """\
Every cell starts from the same weights, sees the same reviews in the same order, and is compared with the
exact activations after as many steps. The test reviews choose nothing. Ctrl-C ends the run and reports the
models that are complete.
Exit code: 0; 2 where something given cannot be used; 130 after Ctrl-C.
"""

_WHOLE, _REAL = cli.at_least(1), cli.positive

# Name, type, default, default with --demo, help.
_NUMBERS = (
    ("test-reviews", cli.at_least(20), 10_000, 200, "reviews to test on, spread evenly over all 25,000"),
    ("vocabulary", _WHOLE, 10_000, 50, "most frequent words kept"),
    ("tokens", _WHOLE, 200, 40, "words kept of a longer review, half from each end"),
    ("hidden", _WHOLE, 64, 12, "hidden size a direction"),
    ("embedding", _WHOLE, 64, 12, "numbers a word"),
    ("seeds", _WHOLE, 2, 2, "models trained, each from a start of its own"),
    ("epochs", _WHOLE, 2, 6, "times through the data before anything is replaced"),
    ("batch", _WHOLE, 128, 16, "reviews a step"),
    ("lr", _REAL, 0.005, 0.02, "highest learning rate"),
    ("dropout", cli.rate, 0.5, 0.1, "of the embedding, and of what the head reads"),
    ("tune-steps", _WHOLE, 50, 10, "steps that a model with replaced activations is trained more"),
    ("tune-lr", _REAL, 0.001, 0.002, "highest learning rate of these steps"),
    ("rounds", _WHOLE, 15, 5, "times that a batch is timed"),
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "quantised_activations.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=cli.HelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data", type=Path, metavar="PATH", help="aclImdb_v1.tar.gz, or the folder unpacked from it"
    )
    source.add_argument("--demo", action="store_true", help="made-up reviews and a small model instead")
    parser.add_argument(
        "--knots",
        type=cli.at_least(2),
        nargs="+",
        default=[3, 4, 8, 16, 32],
        metavar="K",
        help="knots of the tables that are tried (default: 3 4 8 16 32)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/quantised"),
        metavar="DIR",
        help="folder for table.md, picture.svg and result.json (default: runs/quantised)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "fused", "reference"),
        default="auto",
        help="as in imdb.py (default: auto)",
    )
    group = parser.add_argument_group("sizes and training (in brackets the default, and that of --demo)")
    for name, kind, full, demo, text in _NUMBERS:
        group.add_argument(
            f"--{name}",
            type=kind,
            metavar="X" if isinstance(full, float) else "N",
            help=f"{text} ({full}, {demo})",
        )
    cli.add_machine_options(parser)
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with the defaults of --demo where it is given."""
    options = build_parser().parse_args(arguments)
    for name, _, full, demo, _ in _NUMBERS:
        name = name.replace("-", "_")
        if getattr(options, name) is None:
            setattr(options, name, demo if options.demo else full)
    return options
