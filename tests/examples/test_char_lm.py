"""examples/char_lm.py: whole tiny runs, and the claims that its text, checkpoint and measuring code makes."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import char_lm
import pytest
import torch
from common import cli, compare, language, text
from common.char_options import Settings

import customlstm

SMALL = "--hidden 12 --embedding 6 --batch 8 --bptt 8 --sample 30".split()


def run(*arguments: object) -> int:
    return cli.run(lambda: char_lm.main([str(argument) for argument in arguments]), "char_lm.py")


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Sends the process a Ctrl-C in the middle of a training step."""
    original = char_lm.Trainer.step

    def step(self: char_lm.Trainer, fraction: float | None = None) -> float:
        if self.steps == steps:
            signal.raise_signal(signal.SIGINT)
        return original(self, fraction)

    monkeypatch.setattr(char_lm.Trainer, "step", step)


# --- whole runs ---


def test_trains_measures_writes(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--text", text_file, "--steps", 100, *SMALL, "--out", tmp_path / "out", "--lr", 0.02) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["steps"] == 100 and not result["interrupted"]
    assert result["training"][0][2] > 3 and result["held_out_bpc"] < 2.5  # it learned
    assert len(result["sample"]) == 31 and result["sample"] in printed
    assert f"{result['held_out_bpc']:.3f} bits per character" in printed
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["loss.png", "result.json"]


def test_equal_steps_give_equal_runs(text_file: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("--text", text_file, "--steps", 12, *SMALL, "--checkpoint", tmp_path / name) == 0
    assert_equal(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))


def test_minutes_end_the_run(text_file: Path, tmp_path: Path) -> None:
    assert run("--text", text_file, "--minutes", 0.01, *SMALL, "--out", tmp_path / "out") == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["steps"] > 1 and 0.6 <= result["seconds"] < 3


@pytest.mark.parametrize(
    "options",
    [["--cell", "plain"], ["--cell", "hard"], ["--cell", "pwl:5", "--layers", "2"], ["--model", "nn.LSTM"]],
    ids=" ".join,
)
def test_every_kind_of_model_runs(text_file: Path, options: list[str]) -> None:
    assert run("--text", text_file, "--steps", 3, *SMALL, *options) == 0


def test_nn_lstm_and_the_plain_cell_are_one_model(text_file: Path, tmp_path: Path) -> None:
    common = ["--text", text_file, "--steps", 20, *SMALL]
    assert run(*common, "--model", "nn.LSTM", "--checkpoint", tmp_path / "nn") == 0
    assert run(*common, "--cell", "plain", "--checkpoint", tmp_path / "custom") == 0
    ours, theirs = checkpoint(tmp_path / "custom"), checkpoint(tmp_path / "nn")
    assert list(ours["model"]) == list(theirs["model"])
    losses = [[bits for _, _, bits in content["progress"][2]] for content in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_compares_on_whatever_there_is(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(hidden=12, embedding=6, batch=4, bptt=8)
    corpus = text.Corpus.split(text_file.read_text(), 0.1, 1)

    def make(settings: Settings, backend: str) -> char_lm.Trainer:
        if backend == "fused":
            raise RuntimeError("no kernel in this test")
        return char_lm.Trainer(settings, corpus, torch.device("cpu"), backend)

    found = compare.compare(make, settings, 0.01)
    assert [row["cell"] for row in found["rows"]] == [
        "hard_sigmoid,pwl:16, plain PyTorch",
        "sigmoid and tanh, nn.LSTM",
    ]
    assert found["steps"] >= 2 + 3
    shown = compare.comparison_table(found, settings)
    assert "1.00x" in shown and "No fused kernel here: no kernel in this test" in shown

    fused = compare.compare(lambda s, b: make(s, "reference"), settings, 0.01)
    assert len(fused["rows"]) == 3 and not fused["missing"]
    # Equal start, equal data, equal steps: the same cell has learned the same, whatever ran it.
    assert fused["rows"][0]["held_out_bpc"] == fused["rows"][1]["held_out_bpc"]


@pytest.mark.slow
def test_help_is_complete() -> None:
    shown = subprocess.run(
        [sys.executable, char_lm.__file__, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(customlstm.__file__).parents[1])},
    ).stdout
    for option in ("--demo", "--text", "--cell", "--resume", "--minutes", "--steps", "--temperature"):
        assert option in shown
    assert f"(default: {Settings().cell})" in " ".join(shown.split())


# --- checkpoints ---


@pytest.mark.parametrize("model", ["customlstm", "nn.LSTM"])
def test_interrupted_and_resumed_equals_uninterrupted(
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
) -> None:
    # A pass through the text is 83 steps; dropout draws from the generator in every one.
    options = ["--text", text_file, *SMALL, "--model", model, "--layers", 2, "--dropout", 0.2]
    assert run(*options, "--steps", 90, "--checkpoint", tmp_path / "whole.pt") == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 43)
        assert run(*options, "--steps", 90, "--checkpoint", tmp_path / "parts.pt") == 130
    assert "Interrupted after 44 steps" in capsys.readouterr().out
    assert checkpoint(tmp_path / "parts.pt")["progress"][0] == 44
    torch.manual_seed(999)  # what another process would have
    assert (
        run(
            "--text",
            text_file,
            "--sample",
            5,
            "--resume",
            "--checkpoint",
            tmp_path / "parts.pt",
        )
        == 0
    )
    assert_equal(checkpoint(tmp_path / "whole.pt"), checkpoint(tmp_path / "parts.pt"))


def assert_equal(one: Any, other: Any, where: str = "checkpoint") -> None:
    """Bit for bit, but for the seconds that the steps took."""
    assert type(one) is type(other), where
    if where.endswith(".progress"):
        one, other = ([c[0], *([p[1:] for p in points] for points in c[2:4]), c[4]] for c in (one, other))
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def test_a_finished_run_resumes_to_sample_or_to_train_longer(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.pt"
    assert run("--text", text_file, "--steps", 5, *SMALL, "--checkpoint", path) == 0
    again = ["--text", text_file, "--checkpoint", path, "--resume", "--sample", 0]
    before = checkpoint(path)
    assert run(*again, "--sample", 10) == 0
    assert "Trained 5 steps" in capsys.readouterr().out
    assert_equal(before, checkpoint(path))
    assert run(*again, "--steps", 8) == 0
    assert checkpoint(path)["progress"][0] == 8
    assert run(*again, "--minutes", 0.005) == 0
    assert checkpoint(path)["settings"]["steps"] == 0


def test_what_does_not_fit_the_checkpoint_is_refused(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = tmp_path / "run.pt", tmp_path / "other.txt"
    other.write_text("another text " * 400)
    assert run("--text", text_file, "--steps", 2, *SMALL, "--checkpoint", path) == 0
    before = path.read_bytes()
    for arguments, message in [
        (["--text", text_file], "exists: go on with --resume"),
        (["--text", other, "--resume"], "trained on another text"),
        (["--text", text_file, "--resume", "--hidden", 13], "was trained with --hidden 12"),
        (["--text", text_file, "--resume", "--cell", "plain"], "was trained with --cell hard_sigmoid"),
    ]:
        assert run(*arguments, "--checkpoint", path) == 2
        assert message in capsys.readouterr().err
    assert run("--text", text_file, "--resume") == 2
    assert "--checkpoint FILE" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["absent", "empty", "garbage", "cut", "foreign", "folder"])
def test_a_bad_checkpoint_is_named(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = tmp_path / "run.pt"
    if damage == "folder":
        path.mkdir()
    elif damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif damage != "absent":
        assert run("--text", text_file, "--steps", 2, *SMALL, "--checkpoint", path) == 0
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "garbage": b"PK not really", "cut": whole[: len(whole) // 2]}[damage])
    before = path.read_bytes() if path.is_file() else None
    assert run("--text", text_file, "--checkpoint", path, "--resume") == 2
    error = capsys.readouterr().err
    assert "char_lm.py: error: " in error and str(path) in error
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    from common.files import write_atomically

    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_divergence_ends_with_advice_and_keeps_the_checkpoint(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.pt"
    wild = ["--cell", "identity", "--lr", 1e18, "--steps", 50]
    assert run("--text", text_file, *SMALL, *wild, "--checkpoint", path) == 2
    assert "lower --lr" in capsys.readouterr().err
    assert not path.exists()


# --- bad input ---


def test_bad_files_and_options(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = gzip.compress(b"some text " * 5000)
    files = {
        "binary": (b"text\xff\xfe\x00", "not utf-8 at byte 4"),
        "cut.gz": (whole[:-20], "damaged or incomplete gzip"),
        "flipped.gz": (whole[:60] + b"\x00\x00" + whole[62:], "damaged or incomplete gzip"),
        "empty": (b"", "no character occurs"),
        "short": (b"abcabcabc" * 4, "too short"),
    }
    for name, (content, message) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert (
            run("--text", path, "--out", tmp_path / "out", "--checkpoint", tmp_path / "new" / "run.pt") == 2
        )
        assert message in capsys.readouterr().err
        assert path.read_bytes() == content
    for arguments, message in [
        (["--text", tmp_path / "nowhere"], "cannot be read (No such file"),
        (["--text", tmp_path], "cannot be read (Is a directory)"),
        (["--text", text_file, "--encoding", "utf-88"], "knows no such encoding"),
        (["--text", text_file, "--cell", "sigmoid,tnh"], "--cell sigmoid,tnh: "),
        (["--text", text_file, "--cell", "pwl:x"], "whole number of knots"),
        (["--text", text_file, "--cell", "a,b,c,d"], "at most GATE,CELL,OUTPUT"),
        (["--text", text_file, "--model", "nn.LSTM", "--cell", "hard"], "one fixed cell"),
        (["--text", text_file, "--device", "abacus"], "expected auto, cpu, cuda"),
        (["--text", text_file, "--device", "cuda:99"], "CUDA devices here"),
    ]:
        assert run(*arguments, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert run("--text", text_file, "--out", text_file) == 2
    assert "--out: cannot create" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "new").exists()


# --- text ---


def test_reads_gzip_byte_order_marks_and_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for content, encoding in [
        (gzip.compress("秦川雄帝宅".encode()), "utf-8"),
        ("秦川雄帝宅".encode("utf-8-sig"), "utf-8"),
        ("秦川雄帝宅".encode("utf-16"), "utf-16"),
        ("秦川雄帝宅".encode("gb18030"), "gb18030"),
    ]:
        path.write_bytes(content)
        assert text.read_text(path, encoding) == "秦川雄帝宅"


def test_an_alphabet_of_thousands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    characters = [chr(0x4E00 + 37 * i * i % 5000) for i in range(6000)]
    (tmp_path / "poems").write_text("".join(characters) * 2, encoding="utf-8")
    assert run("--text", tmp_path / "poems", "--steps", 2, *SMALL, "--min-count", 1) == 0
    assert " symbols." in capsys.readouterr().out


def test_vocabulary_round_trip_and_unknown_characters() -> None:
    vocabulary = text.Vocabulary.of("aabbbc\n\n", 2)
    assert len(vocabulary) == 4 and vocabulary.characters == "b\na"
    numbers = vocabulary.encode("cab\n🙂")
    assert numbers.tolist() == [0, 3, 1, 2, 0]
    assert vocabulary.decode(numbers.tolist()) == "\N{REPLACEMENT CHARACTER}ab\n\N{REPLACEMENT CHARACTER}"
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.bits_per_unknown == math.log2(0x110000 - 0x800 - 3)


class Uniform(torch.nn.Module):
    """Knows nothing: equal scores for all symbols."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.symbols = symbols

    def forward(self, characters: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        return torch.zeros(*characters.shape, self.symbols), state


@pytest.mark.parametrize("length", [1, 7, 1023, 2048, 40_000])
def test_held_out_bits_count_every_character_once(length: int) -> None:
    held_out = ("ab" * length)[: length - 1] + "ж"
    vocabulary = text.Vocabulary("ab")
    corpus = text.Corpus(vocabulary.encode("abab"), vocabulary.encode(held_out), vocabulary, "")
    expected = math.log2(3) + vocabulary.bits_per_unknown / length
    bits = language.held_out_bits(Uniform(3), corpus, torch.device("cpu"))
    assert bits == pytest.approx(expected, rel=1e-5)


def test_held_out_bits_equal_one_reading_from_the_start(text: str) -> None:
    from common.text import Corpus

    corpus = Corpus.split(text, 0.5, 1)
    torch.manual_seed(0)
    model = char_lm.CharacterModel(len(corpus.vocabulary), Settings(hidden=8, embedding=4), "reference")
    everything = torch.cat([corpus.train, corpus.held_out]).unsqueeze(1)
    with torch.no_grad():
        scores, _ = model(everything[:-1])
        losses = torch.nn.functional.cross_entropy(scores[:, 0], everything[1:, 0], reduction="none")
    expected = losses[len(corpus.train) - 1 :].mean().item() / math.log(2)
    # Two rows here: the second starts from 256 characters before it instead of all of them.
    assert language.held_out_bits(model, corpus, torch.device("cpu")) == pytest.approx(expected, abs=1e-4)


def test_stream_reads_everything_and_continues_anywhere() -> None:
    data = torch.arange(1000)
    stream = text.Stream(data, batch=4, steps=10)
    chunks = [next(stream) for _ in range(3 * stream.chunks)]
    seen: set[int] = set()
    for index, (inputs, targets, anew) in enumerate(chunks):
        assert torch.equal(targets, inputs + 1)
        assert anew == (index % stream.chunks == 0)
        if not anew:
            assert torch.equal(inputs[0], chunks[index - 1][0][-1] + 1)
        seen.update(inputs.flatten().tolist())
    assert len(seen) > 930
    assert not torch.equal(chunks[0][0], chunks[stream.chunks][0])  # another shift in the next pass
    for position in (1, stream.chunks, 2 * stream.chunks + 3):
        inputs, _, anew = next(text.Stream(data, 4, 10, position))
        assert torch.equal(inputs, chunks[position][0]) and anew == chunks[position][2]
    assert stream.passes == 3


# --- the sample ---


def test_sample_depends_on_its_seed_only_and_has_no_unknown(text: str) -> None:
    from common.text import Corpus

    corpus = Corpus.split(text, 0.1, 1)
    model = char_lm.CharacterModel(len(corpus.vocabulary), Settings(hidden=8, embedding=4), "reference")
    with torch.no_grad():
        model.head.bias[0] = 50.0  # would always write <unk> if it could

    def sample(seed: int, temperature: float = 1.0, prompt: str = "the ") -> str:
        return "".join(language.write_text(model, corpus.vocabulary, 60, temperature, seed, prompt))

    state = torch.get_rng_state()
    first = sample(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    assert sample(3) == first != sample(4)
    assert sample(1, 0.0) == sample(2, 0.0) == sample(1, 1e-6)
    assert "\N{REPLACEMENT CHARACTER}" not in first and len(first) == 60
    assert len(sample(3, prompt="")) == 60 and len(sample(3, prompt="🙂")) == 60


# --- cells ---


def test_cell_texts() -> None:
    from common.recurrent import parse_cell

    fit = customlstm.PiecewiseLinear.fit
    for spec, expected in {
        "plain": customlstm.Cell(),
        "hard": customlstm.Cell("hard_sigmoid", "hard_tanh", "hard_tanh"),
        "relu": customlstm.Cell("relu", "tanh", "tanh"),
        "sigmoid,softsign": customlstm.Cell("sigmoid", "softsign", "softsign"),
        "hard_sigmoid:0.2:0.5,tanh,identity": customlstm.Cell(
            ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}), "tanh", "identity"
        ),
        "sigmoid,leaky_relu:0.1": customlstm.Cell(
            "sigmoid", ("leaky_relu", {"alpha": 0.1}), ("leaky_relu", {"alpha": 0.1})
        ),
        "hard_sigmoid,pwl:6": customlstm.Cell("hard_sigmoid", fit("tanh", knots=6), fit("tanh", knots=6)),
        "pwl:6": customlstm.Cell(
            fit("sigmoid", knots=6, bounds=(-7.0, 7.0)), fit("tanh", knots=6), fit("tanh", knots=6)
        ),
    }.items():
        assert parse_cell(spec) == expected
    for wrong in (
        "",
        "tanhh",
        "relu,",
        "pwl",
        "pwl:1",
        "pwl:4:4",
        "relu:x",
        "relu:1:2:3",
        "relu:1",
        "a,b,c,d",
    ):
        with pytest.raises(ValueError):
            parse_cell(wrong)


def test_learns_shakespeare(shared_data: Path, tmp_path: Path) -> None:
    sizes = "--hidden 32 --embedding 16 --batch 16 --bptt 16 --steps 60 --sample 0".split()
    assert run("--text", shared_data / "tinyshakespeare.txt", *sizes, "--out", tmp_path) == 0
    assert json.loads((tmp_path / "result.json").read_text())["held_out_bpc"] < 4.6
