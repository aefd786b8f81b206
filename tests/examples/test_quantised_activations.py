"""examples/quantised_activations.py: tiny runs, what is compared with what, and options that cannot be."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imdb
import pytest
import quantised_activations
import torch
from common import cli, made_up, replacing, replacing_report, reviews

import customlstm

ROOT = Path(__file__).resolve().parents[2]
TINY = "--demo --seeds 2 --epochs 4 --test-reviews 120 --rounds 2".split()
CELLS = ["plain", "hard", "pwl:4,hard_tanh", "pwl:3", "pwl:4", "pwl:32"]


def run(*arguments: object) -> int:
    texts = [str(argument) for argument in arguments]
    return cli.run(lambda: quantised_activations.main(texts), "quantised_activations.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    assert run(*TINY, "--knots", 32, 3, 4, "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def result(finished: Path) -> dict[str, Any]:
    return json.loads((finished / "result.json").read_text())


# --- whole runs ---


def test_every_cell_is_measured_before_and_after(result: dict[str, Any]) -> None:
    assert list(result["cells"]) == CELLS
    assert result["reviews"] == {"training": 720, "validation": 80, "test": 120}
    assert result["seeds"] == [1, 2] and len(result["validation_accuracy"]) == 2
    assert not result["interrupted"]
    for cell, found in result["cells"].items():
        for stage in ("replaced", "tuned"):
            assert 0.8 < found[stage]["accuracy"] <= 1, (cell, stage)
            gained = found[stage]["accuracy"] - result["cells"]["plain"][stage]["accuracy"]
            assert found[stage]["mean"] == pytest.approx(gained, abs=1e-12)
            assert len(found[stage]["seeds"]) == 2
        assert all(found["milliseconds"][mode] > 0 for mode in ("training", "inference"))
    assert list(result["places"]) == ["hard", "pwl:3", "pwl:4"]
    assert all(list(places) == ["gates", "cell input", "output"] for places in result["places"].values())


def test_many_knots_are_as_accurate_as_the_exact_activations(result: dict[str, Any]) -> None:
    many = result["cells"]["pwl:32"]
    assert many["replaced"]["seeds"] == [0, 0] and many["replaced"]["standard_error"] == 0
    assert many["tuned"]["seeds"] == [0, 0]


def test_the_table_is_complete(finished: Path, result: dict[str, Any]) -> None:
    text = (finished / "table.md").read_text(encoding="utf-8")
    assert text == replacing_report.report(result)
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| --")]
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    titles = ["exact", "hard_sigmoid, hard_tanh", "4 knots, hard_tanh", "3 knots", "4 knots", "32 knots"]
    assert [row[0] for row in rows] == ["cell", *titles, "cell", titles[1], *titles[3:5]]
    exact = rows.pop(1)
    assert exact[1] == "0" and exact[2].endswith("%") and exact[3] == exact[5] == ""
    assert all(part for row in rows for part in row)


def test_the_picture(finished: Path) -> None:
    picture = (finished / "picture.svg").read_text(encoding="utf-8")
    assert picture.startswith("<?xml")
    for text in ("3 knots", "4 knots", "32 knots", "hard_tanh", "gates", "cell input", "accuracy gained"):
        assert text in picture


def test_equal_seeds_give_equal_results(finished: Path, result: dict[str, Any], tmp_path: Path) -> None:
    assert run(*TINY, "--seeds", 1, "--knots", 4, "--out", tmp_path) == 0
    again = json.loads((tmp_path / "result.json").read_text())
    for stage in ("replaced", "tuned"):
        assert again["cells"]["pwl:4"][stage]["seeds"] == result["cells"]["pwl:4"][stage]["seeds"][:1]
    assert again["validation_accuracy"] == result["validation_accuracy"][:1]


def test_reads_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviews, "PER_CLASS", 40)
    for split, seed in (("train", 1), ("test", 2)):
        made = made_up.made_up_reviews(80, seed)
        for number, (text, label) in enumerate(zip(made.texts, made.labels, strict=True)):
            path = tmp_path / "aclImdb" / split / ("neg", "pos")[label] / f"{number // 2}_5.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    sizes = (
        "--hidden 4 --embedding 4 --batch 8 --epochs 1 --tune-steps 2 --seeds 1 --rounds 1 --test-reviews 40"
    )
    assert run("--data", tmp_path, *sizes.split(), "--knots", 8, "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["reviews"] == {"training": 72, "validation": 8, "test": 40}
    assert list(found["cells"]) == ["plain", "hard", "pwl:4,hard_tanh", "pwl:8"]


# --- Ctrl-C, and a loss that is no number ---


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where the suite was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Ctrl-C when the reviews are tested under `name` for the first time."""
    original = imdb.verdicts
    names: list[object] = []

    def verdicts(*arguments: object) -> torch.Tensor:
        names.append(arguments[-1])
        if names.count(name) == 1 and names[-1] == name:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(imdb, "verdicts", verdicts)


@pytest.mark.usefixtures("ctrl_c")
def test_interrupt_reports_the_models_that_are_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, begun = quantised_activations.one_model, []

    def one_model(*arguments: Any) -> imdb.Classifier:
        begun.append(arguments[2])
        if len(begun) == 2:
            interrupt_at(monkeypatch, "testing 4 knots, replaced")
        return original(*arguments)

    monkeypatch.setattr(quantised_activations, "one_model", one_model)
    assert run(*TINY, "--knots", 4, "--out", tmp_path) == 130
    result = json.loads((tmp_path / "result.json").read_text())
    assert begun == [1, 2] and result["interrupted"] and result["seeds"] == [1]
    assert all(len(found["replaced"]["seeds"]) == 1 for found in result["cells"].values())
    assert "mean of 1 trained model" in (tmp_path / "table.md").read_text()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("name", ["validation", "testing exact, as trained"])
def test_interrupt_before_there_is_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    interrupt_at(monkeypatch, name)
    assert run(*TINY, "--knots", 4, "--out", tmp_path) == 130
    assert (
        "Interrupted before the first model was complete: there is nothing to report."
        in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_cell_that_diverges_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = imdb.train

    def train(model: imdb.Classifier, *arguments: Any) -> dict[str, Any]:
        if len(getattr(model.lstm.cell.gate_activation, "x", ())) == 3 and arguments[2].seed == 2:
            raise imdb.Diverged(math.nan, 1)
        return original(model, *arguments)

    monkeypatch.setattr(imdb, "train", train)
    assert run(*TINY, "--knots", 3, 4, "--out", tmp_path) == 0
    cells = json.loads((tmp_path / "result.json").read_text())["cells"]
    assert cells["pwl:3"]["tuned"] is None and cells["pwl:4"]["tuned"]["accuracy"] > 0.8
    (row,) = (
        line
        for line in (tmp_path / "table.md").read_text().split("Where")[0].splitlines()
        if "3 knots" in line
    )
    assert row.split("|")[5].strip() == "diverged" and row.split("|")[6].strip() == ""
    assert (tmp_path / "picture.svg").is_file()


def test_a_first_training_that_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imdb.math, "isfinite", lambda loss: False)
    assert run(*TINY, "--out", tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("quantised_activations.py: error: the loss became 0.")
    assert error.endswith(" in epoch 1, with nothing replaced; lower --lr")


# --- options ---


def test_options_that_cannot_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, message in [
        (["--demo", "--knots", "1"], "argument --knots: expected at least 2, got 1"),
        (["--demo", "--knots", "many"], "argument --knots: invalid whole number value: 'many'"),
        (["--demo", "--data", "aclImdb"], "argument --data: not allowed with argument --demo"),
        ([], "one of the arguments --data --demo is required"),
        (["--demo", "--tune-lr", "0"], "argument --tune-lr: expected a number above 0, got 0"),
        (
            ["--demo", "--dropout", "1"],
            "argument --dropout: expected a rate of at least 0 and below 1, got 1",
        ),
        (["--demo", "--test-reviews", "3"], "argument --test-reviews: expected at least 20, got 3"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            run(*arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    for arguments, message in [
        (
            ["--data", tmp_path / "absent"],
            f"--data {tmp_path / 'absent'}: no such file or folder. Fetch aclImdb_v1",
        ),
        (
            ["--demo", "--tune-steps", "50"],
            "--tune-steps 50 with --batch 16 takes 800 training reviews, there are 720; lower one of them",
        ),
        (["--demo", "--device", "abacus"], "--device: expected auto, cpu, cuda or cuda:N, got 'abacus'"),
        (["--demo", "--out", tmp_path / "file" / "out"], "--out: cannot create the folder"),
    ]:
        (tmp_path / "file").touch()
        assert run("--out", tmp_path / "out", *arguments) == 2
        assert message in capsys.readouterr().err


def test_help_is_complete() -> None:
    from common.quantised_options import build_parser

    shown = build_parser().format_help()
    for text in ("--data", "--demo", "--knots", "--tune-steps", "(10000, 200)", "ai.stanford.edu/~amaas"):
        assert text in shown


# --- what is compared with what ---


def test_cells_that_replace_everything_and_one_place() -> None:
    assert replacing.replacements([8, 3, 8]) == ["hard", "pwl:4,hard_tanh", "pwl:3", "pwl:8"]
    assert [replacing.is_coarse(cell) for cell in CELLS] == [False, True, False, True, True, False]
    assert replacing.in_one_place("pwl:4", "gates") == "pwl:4,tanh,tanh"
    assert replacing.in_one_place("pwl:4", "cell input") == "sigmoid,pwl:4,tanh"
    assert replacing.in_one_place("hard", "output") == "sigmoid,tanh,hard_tanh"
    assert replacing.in_one_place("hard", "gates") == "hard_sigmoid,tanh,tanh"


def test_largest_errors() -> None:
    # The slope of sigmoid is hard_sigmoid's, 1/6, at arcosh(2); tanh has a way to go where hard_tanh is at 1.
    x = math.acosh(2)
    assert replacing.largest_errors("hard") == {
        "sigmoid": pytest.approx(1 / (1 + math.exp(-x)) - (x / 6 + 1 / 2), abs=1e-6),
        "tanh": pytest.approx(1 - math.tanh(1), abs=1e-6),
    }
    assert replacing.largest_errors("plain") == {"sigmoid": 0, "tanh": 0}
    fitted = customlstm.PiecewiseLinear.fit("tanh", knots=8)
    x = torch.linspace(-4, 4, 100_001, dtype=torch.float64)
    at_least = float((fitted(x) - x.tanh()).abs().max())
    assert at_least <= replacing.largest_errors("pwl:8")["tanh"] < at_least + 1e-4


def test_a_difference_and_its_standard_error() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.rand(10_000, generator=generator) < 0.9 for _ in range(2)]
    assert replacing.difference(exact, exact) == {"mean": 0, "standard_error": 0, "seeds": [0, 0]}
    worse = [right & (torch.rand(10_000, generator=generator) < 0.95) for right in exact]
    found = replacing.difference(worse, exact)
    lost = [
        float(right.double().mean()) - float(was.double().mean())
        for right, was in zip(worse, exact, strict=True)
    ]
    assert found["seeds"] == pytest.approx(lost)
    assert found["mean"] == pytest.approx(sum(lost) / 2)
    # Each review is lost with probability 0.045 in each of two independent runs.
    assert found["standard_error"] == pytest.approx(math.sqrt(0.045 * 0.955 / 2 / 10_000), rel=0.1)


def test_made_up_reviews() -> None:
    made = made_up.made_up_reviews(50, seed=1)
    assert made == made_up.made_up_reviews(50, seed=1) != made_up.made_up_reviews(50, seed=2)
    assert made.labels == [0, 1] * 25
    for text, label in zip(made.texts, made.labels, strict=True):
        words = text.split()
        good = [
            (word in ("superb", "moving", "funny")) != (before == "not")
            for before, word in zip(["", *words], words, strict=False)
            if word in ("superb", "moving", "funny", "awful", "dull", "clumsy")
        ]
        assert good == [bool(label)] * 3


# --- the committed result ---


def test_the_document_shows_the_committed_result() -> None:
    stored = ROOT / "benchmarks" / "results" / "2026-11-22-epyc-zen4-quantised.json"
    result = json.loads(stored.read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "quantised.md").read_text(encoding="utf-8")
    for line in replacing_report.report(result).splitlines():
        assert line in text
    assert stored.name in text and "plots/quantised-activations.svg" in text
    assert not result["interrupted"]


@pytest.mark.slow
def test_a_short_run_on_the_real_reviews(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "aclImdb_labeled.tar.gz"
    if not path.exists():
        pytest.skip(f"no {path.name} in ../shared/data")
    short = "--hidden 8 --embedding 16 --tokens 40 --epochs 1 --seeds 1 --tune-steps 5 --rounds 1"
    assert run("--data", path, *short.split(), "--test-reviews", 2000, "--knots", 8, "--out", tmp_path) == 0
    cells = json.loads((tmp_path / "result.json").read_text())["cells"]
    assert cells["plain"]["replaced"]["accuracy"] > 0.65
    assert abs(cells["pwl:8"]["replaced"]["mean"]) < 0.02
