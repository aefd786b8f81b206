"""examples/imdb.py on made-up archives: whole tiny runs, damaged data, and what lengths mean to the model."""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import tarfile
from pathlib import Path

import imdb
import pytest
import torch
from common import cli, reviews

COUNT = 40  # reviews of each label in each split of the made-up data set

SMALL = "--hidden 8 --embedding 8 --epochs 4 --batch 4 --lr 0.03 --dropout 0.1".split()


@pytest.fixture(autouse=True)
def small_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviews, "PER_CLASS", COUNT)


def run(*arguments: object) -> int:
    return cli.run(lambda: imdb.main([str(argument) for argument in arguments]), "imdb.py")


def made_up(count: int = COUNT) -> dict[str, bytes]:
    """Files as in aclImdb: a review has a few words of its label among many that say nothing."""
    draw = random.Random(0)
    files = {"aclImdb/README": b"Large Movie Review Dataset", "aclImdb/train/unsup/0_0.txt": b"never read"}
    for split in ("train", "test"):
        for label, telling in (("neg", ["awful", "dull"]), ("pos", ["superb", "moving"])):
            for number in range(count):
                words = draw.choices(
                    ["the", "film", "it's", "plot", "<br /><br />", "an"], k=draw.randint(3, 40)
                )
                words += draw.choices(telling, k=3)
                draw.shuffle(words)
                files[f"aclImdb/{split}/{label}/{number}_{draw.randint(1, 10)}.txt"] = " ".join(
                    words
                ).encode()
    return files


def write_archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("data") / "aclImdb_v1.tar.gz", made_up())


# --- whole runs ---


@pytest.mark.parametrize("model", ["customlstm", "nn.LSTM"])
def test_learns_and_reports(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    assert run("--data", archive, "--model", model, *SMALL, "--out", tmp_path / "out") == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["test_accuracy"] > 0.9
    assert len(result["validated"]) == 4 and not result["interrupted"]
    assert f"Accuracy on {2 * COUNT} test reviews: {result['test_accuracy']:.2%}" in capsys.readouterr().out
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_equal_seeds_give_equal_runs(archive: Path, tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert run("--data", archive, "--limit", 40, *SMALL, "--epochs", 2, "--out", folder) == 0
        result = json.loads((folder / "result.json").read_text())
        found.append([result[key] for key in ("losses", "validated", "test_accuracy")])
    assert found[0] == found[1]


def test_a_run_of_five_steps(archive: Path, tmp_path: Path) -> None:
    short = ["--limit", 40, *SMALL, "--batch", 8, "--epochs", 1]  # 36 reviews to train on
    assert run("--data", archive, *short, "--out", tmp_path) == 0
    assert json.loads((tmp_path / "result.json").read_text())["test_accuracy"] >= 0


def test_interrupt_measures_what_is_there(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = imdb.accuracy, []

    def accuracy(*arguments: object) -> float:
        calls.append(arguments[-1])
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(imdb, "accuracy", accuracy)
    assert run("--data", archive, *SMALL, "--epochs", 50, "--out", tmp_path) == 130
    assert calls == ["validation", "validation", "test"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["interrupted"] and len(result["validated"]) == 2


def test_help_is_complete() -> None:
    shown = imdb.build_parser().format_help()
    for option in ("--data", "--limit", "--cell", "--model", "--tokens", "--out", "ai.stanford.edu/~amaas"):
        assert option in shown


# --- the data set ---


def test_archive_and_folder_are_one_data_set(archive: Path, tmp_path: Path) -> None:
    files = made_up()
    folder = write_folder(tmp_path, files)
    plain = write_archive(tmp_path / "plain.tar", {f"./{name}": files[name] for name in reversed(files)})
    found = reviews.read_reviews(archive)
    for source in (folder, folder / "aclImdb", plain):
        assert reviews.read_reviews(source) == found
    train, test = found
    assert len(train) == len(test) == 2 * COUNT
    assert train.labels == [0, 1] * COUNT
    first = next(files[name] for name in files if name.startswith("aclImdb/train/pos/0_"))
    assert train.texts[1] == first.decode().replace("<br />", " ")


def test_nothing_outside_the_layout_is_read_or_written(tmp_path: Path) -> None:
    strange = {
        "../../aclImdb/train/pos/7_7.txt": b"outside",
        "/aclImdb/train/pos/8_8.txt": b"absolute",
        "aclImdb/train/pos/9_9.txt.exe": b"not a review",
    }
    links = {"aclImdb/train/pos/6_6.txt": "/etc/hostname"}
    path = write_archive(tmp_path / "data.tar.gz", made_up() | strange, links)
    assert reviews.read_reviews(path) == reviews.read_reviews(write_folder(tmp_path / "folder", made_up()))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.tar.gz", "folder"]


def test_damaged_and_partial_data_say_what_to_fetch(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = made_up()
    whole = archive.read_bytes()
    without_positive = {name: content for name, content in files.items() if "test/pos" not in name}
    one_less = {name: content for name, content in files.items() if "train/neg/3_" not in name}
    names = ("cut.tar.gz", "flipped.tar.gz", "checksum.tar.gz", "page.html", "empty")
    cut, flipped, checksum, text, empty = (tmp_path / name for name in names)
    cut.write_bytes(whole[: len(whole) // 2])
    flipped.write_bytes(whole[:3000] + bytes(64) + whole[3064:])
    checksum.write_bytes(whole[:-8] + bytes(4) + whole[-4:])
    text.write_bytes(b"<html>Not found</html>")
    empty.write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    for path, message in [
        (tmp_path / "absent.tar.gz", "no such file or folder"),
        (cut, "damaged or no tar archive"),
        (flipped, "damaged or no tar archive"),
        (checksum, "damaged or no tar archive"),
        (text, "damaged or no tar archive"),
        (empty, "damaged or no tar archive"),
        (tmp_path / "nothing", "incomplete, 0 reviews in train/neg where 40 belong"),
        (write_archive(tmp_path / "half.tar.gz", without_positive), "0 reviews in test/pos"),
        (write_folder(tmp_path / "half", without_positive), "0 reviews in test/pos"),
        (write_archive(tmp_path / "less.tar.gz", one_less), "39 reviews in train/neg where 40 belong"),
        (write_archive(tmp_path / "bytes.tar", files | {"aclImdb/test/neg/0_1.txt": b"\xff"}), "damaged"),
    ]:
        assert run("--data", path, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert message in error and str(path) in error
        assert "https://ai.stanford.edu/~amaas/data/sentiment/" in error and "aclImdb_v1.tar.gz" in error


def test_bad_options_end_before_the_data_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, message in [
        (["--cell", "tanhh"], "--cell tanhh: "),
        (["--model", "nn.LSTM", "--cell", "hard"], "one fixed cell"),
        (["--device", "abacus"], "expected auto, cpu, cuda"),
    ]:
        assert run("--data", tmp_path / "absent", *arguments) == 2
        assert message in capsys.readouterr().err
    for arguments in (["--epochs", "0"], ["--limit", "3"], ["--lr", "nan"], ["--dropout", "1"], []):
        with pytest.raises(SystemExit) as stopped:
            run(*(["--data", tmp_path] if arguments else []), *arguments)
        assert stopped.value.code == 2


def test_parts_of_the_data_set() -> None:
    everything = reviews.Reviews([f"{i // 2}" for i in range(100)], [0, 1] * 50)
    some = everything.some(20)
    assert some.labels == [0, 1] * 10 and some.texts[:4] == ["0", "0", "5", "5"]
    assert everything.some(1000) is everything
    training, validation = everything.split(0.1)
    assert training.texts + validation.texts == everything.texts and len(validation) == 10


def test_tokens_and_words() -> None:
    assert reviews.tokenise("It's GREAT!! Don't miss <br /> Amélie (2001)...?") == (
        ["it's", "great", "!", "!", "don't", "miss", "br", "amélie", "2001", "?"]
    )
    words = reviews.Words([["b", "a", "b"], ["c", "a"]], 2)
    assert len(words) == 3
    assert words.encode(["a", "b", "c"], 9).tolist() == [1, 2, 0]
    assert words.encode([], 9).tolist() == [0]  # an LSTM needs something to read
    long = reviews.Words([[str(i) for i in range(10)]], 10)
    assert long.encode([str(i) for i in range(10)], 5).tolist() == [1, 2, 8, 9, 10]
    assert long.encode([str(i) for i in range(10)], 1).tolist() == [10]


def test_batches_hold_every_review_once() -> None:
    documents = [torch.full((1 + (7 * i) % 30,), i) for i in range(50)]
    data = reviews.Dataset(documents, torch.arange(50.0))
    generator = torch.Generator().manual_seed(0)
    orders = []
    for _ in range(3):
        seen = []
        for words, lengths, labels in data.batches(8, generator):
            for column, (length, label) in enumerate(zip(lengths.tolist(), labels.tolist(), strict=True)):
                assert words[:length, column].tolist() == documents[int(label)].tolist()
                seen.append(int(label))
        assert sorted(seen) == list(range(50))
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]
    padding = sum(words.numel() - int(lengths.sum()) for words, lengths, _ in data.batches(8, generator))
    assert padding < 0.25 * sum(map(len, documents))


# --- the model ---


def options(model: str, cell: str) -> argparse.Namespace:
    return argparse.Namespace(model=model, cell=cell, backend="auto", embedding=5, hidden=4, dropout=0.3)


@pytest.mark.parametrize(("model", "cell"), [("customlstm", "hard_sigmoid,pwl:16"), ("nn.LSTM", "plain")])
def test_padding_does_not_change_a_score(model: str, cell: str) -> None:
    torch.manual_seed(0)
    classifier = imdb.Classifier(20, options(model, cell)).eval()
    lengths = torch.tensor([3, 9, 1, 5])
    words = torch.randint(0, 20, (9, 4))
    together = classifier(words, lengths)
    for column, length in enumerate(lengths.tolist()):
        alone = classifier(words[:length, column : column + 1], lengths[column : column + 1])
        torch.testing.assert_close(alone[0], together[column])
    words[3:, 0] = 19
    assert torch.equal(classifier(words, lengths)[0], together[0])


def test_both_models_are_one_with_the_plain_cell() -> None:
    torch.manual_seed(0)
    ours = imdb.Classifier(20, options("customlstm", "plain")).eval()
    torch.manual_seed(0)
    theirs = imdb.Classifier(20, options("nn.LSTM", "plain")).eval()
    words, lengths = torch.randint(0, 20, (9, 4)), torch.tensor([3, 9, 1, 5])
    torch.testing.assert_close(ours(words, lengths), theirs(words, lengths))
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.slow
def test_reads_the_real_archive(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared_data / "aclImdb_labeled.tar.gz"
    if not path.exists():
        pytest.skip(f"no {path.name} in ../shared/data")
    monkeypatch.setattr(reviews, "PER_CLASS", 12_500)
    training, test = reviews.read_reviews(path)
    assert len(training) == len(test) == 25_000
    assert training.labels == test.labels == [0, 1] * 12_500
    assert "<br />" not in training.texts[0] and len(training.texts[0]) > 100
