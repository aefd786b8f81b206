"""examples/activation_gallery.py, and what docs/cells.md shows of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import activation_gallery
import pytest
import torch
from common import cli

from customlstm import PiecewiseLinear
from customlstm.activations import KINDS, activation

DOCS = Path(__file__).resolve().parents[2] / "docs"
PICTURES = ("activations.svg", "activation-errors.svg")
PIECEWISE_LINEAR = {"relu": 3, "affine": 2, "leaky_relu": 3, "hard_sigmoid": 4, "hard_tanh": 4, "identity": 2}


def draw(folder: Path) -> dict[str, bytes]:
    program = "activation_gallery.py"
    assert cli.run(lambda: activation_gallery.main(["--out", str(folder)]), program) == 0
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def few_knots(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(activation_gallery, "COUNTS", (2, 4, 6, 8))
    monkeypatch.setattr(activation_gallery, "IN_TABLE", (4, 8))
    yield


@pytest.mark.slow
def test_the_script_draws_the_same_pictures_every_time(
    few_knots: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = draw(tmp_path / "a")
    assert activation_gallery.table() in capsys.readouterr().out
    assert draw(tmp_path / "b") == pictures
    assert sorted(pictures) == sorted(PICTURES)


def test_a_folder_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "pictures"
    arguments = ["--out", str(folder)]
    assert cli.run(lambda: activation_gallery.main(arguments), "activation_gallery.py") == 2
    assert capsys.readouterr().err == (
        f"activation_gallery.py: error: --out: cannot create the folder {folder} (Not a directory)\n"
    )


@pytest.mark.slow
def test_the_document_has_the_table() -> None:
    text = (DOCS / "cells.md").read_text(encoding="utf-8")
    assert activation_gallery.table() in text


def test_the_committed_pictures_show_every_activation() -> None:
    document = (DOCS / "cells.md").read_text(encoding="utf-8")
    shown = {name: (DOCS / "plots" / name).read_text(encoding="utf-8") for name in PICTURES}
    for name, picture in shown.items():
        assert f"](plots/{name})" in document
        assert len(picture) < 100_000
        assert picture.count("fill: #ffffff") > 0  # a white card: black text stays readable on a dark page
    titles = re.findall(r">([a-z_]+)</text>", shown["activations.svg"])
    assert titles == list(KINDS)
    for name in KINDS:
        exact = name in PIECEWISE_LINEAR or name == "scaled_tanh"
        assert (f">{name}</text>" in shown["activation-errors.svg"]) is not exact


def test_fits_that_are_exact() -> None:
    assert {name: activation_gallery.exact_from(name) for name in KINDS} == {
        name: PIECEWISE_LINEAR.get(name) for name in KINDS
    }


def test_the_largest_error_is_that_of_a_dense_grid() -> None:
    x = torch.linspace(-4, 4, 400_001, dtype=torch.float64)
    for name in ("tanh", "sigmoid", "elu", "thresholded_relu"):
        fitted = PiecewiseLinear.fit(name, knots=8)
        error = float((fitted(x) - activation(name)(x)).abs().max())
        assert activation_gallery.largest_error(name, 8) == pytest.approx(error, rel=1e-3), name


def test_what_the_document_says_of_more_knots() -> None:
    for bound in (4.0, 8.0):
        ends = activation_gallery.largest_error("sigmoid", 64, (-bound, bound))
        assert ends == pytest.approx(1 / (1 + math.exp(bound)), rel=0.02)
    for knots in (4, 64):
        assert activation_gallery.largest_error("thresholded_relu", knots) == pytest.approx(0.5, rel=1e-3)
    assert activation_gallery.largest_error("tanh", 8) > 4 * activation_gallery.largest_error("tanh", 16)
