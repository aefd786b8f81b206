"""The Large Movie Review Dataset (Maas et al. 2011): read from its archive or folder, checked, as numbers.

The archive is read in one pass and nothing of it is unpacked to disk.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from .cli import UsageError
from .progress import track

PER_CLASS = 12_500
"""Reviews in each of train/neg, train/pos, test/neg and test/pos."""

WHERE = (
    "Fetch aclImdb_v1.tar.gz (84,125,825 bytes) from the data set's page, "
    "https://ai.stanford.edu/~amaas/data/sentiment/, and give its path, or that of the folder aclImdb "
    "unpacked from it, as --data"
)

_LONGEST = 1 << 20  # bytes; the longest review has 14 kB, so anything above is no review
_REVIEW = re.compile(r"(?:\./)?(?:aclImdb/)?(train|test)/(neg|pos)/(\d+)_\d+\.txt")
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W\d_]+)?|[!?]")

UNKNOWN = 0
"""The number of every word outside the vocabulary. Padding has none: lengths say where reviews end."""


@dataclass(frozen=True)
class Reviews:
    """Texts and labels (0 negative, 1 positive), sorted by number, the two labels in turn."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def some(self, count: int) -> Reviews:
        """`count` of them, as many of either label, spread evenly: neighbours are often about one film."""
        if count >= len(self):
            return self
        pairs = [pair * (len(self) // 2) // (count // 2) for pair in range(count // 2)]
        chosen = [position for pair in pairs for position in (2 * pair, 2 * pair + 1)]
        return Reviews([self.texts[i] for i in chosen], [self.labels[i] for i in chosen])

    def split(self, fraction: float) -> tuple[Reviews, Reviews]:
        """All but the last `fraction`, and that. In one piece, so that few films are in both parts."""
        size = len(self) - int(len(self) * fraction)
        return Reviews(self.texts[:size], self.labels[:size]), Reviews(self.texts[size:], self.labels[size:])


def read_reviews(path: Path) -> tuple[Reviews, Reviews]:
    """Reads all training and test reviews from the archive or the unpacked folder `path`.

    Raises:
        UsageError: nothing there, damaged or incomplete; the text says which, and what to fetch from where.
    """
    found: dict[tuple[str, str], dict[int, str]] = {}
    try:
        for name, content in _folder(path) if path.is_dir() else _archive(path):
            if match := _REVIEW.fullmatch(name):
                split, label, number = match.groups()
                text = content.decode("utf-8").replace("<br />", " ")
                found.setdefault((split, label), {})[int(number)] = text
    except FileNotFoundError:
        raise UsageError(f"--data {path}: no such file or folder. {WHERE}") from None
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"--data {path}: damaged or no tar archive ({reason}). {WHERE}") from error
    except OSError as error:
        raise UsageError(f"--data {path}: cannot be read ({error}). {WHERE}") from error
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            count = len(found.get((split, label), ()))
            if count != PER_CLASS:
                raise UsageError(
                    f"--data {path}: incomplete, {count:,} reviews in {split}/{label} where {PER_CLASS:,} "
                    f"belong. {WHERE}"
                )
    return _in_order(found, "train"), _in_order(found, "test")


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        stream = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(b"\x1f\x8b") else file
        # "r|" reads on and never goes back: a compressed archive is decompressed once.
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in track(archive, desc=f"reading {path.name}", unit=" files"):
                if member.isfile() and member.size <= _LONGEST and _REVIEW.fullmatch(member.name):
                    content = archive.extractfile(member)
                    if content is not None:
                        yield member.name, content.read()
        # tarfile takes a damaged header for the end of the archive; gzip's checksum comes at the very end.
        while stream.read(1 << 20):
            pass


def _folder(path: Path) -> Iterator[tuple[str, bytes]]:
    root = path / "aclImdb" if (path / "aclImdb").is_dir() else path
    files = [
        file
        for split in ("train", "test")
        for label in ("neg", "pos")
        for file in (root / split / label).glob("*.txt")
    ]
    for file in track(files, desc=f"reading {root.name}", unit=" files"):
        yield PurePosixPath(*file.parts[-3:]).as_posix(), file.read_bytes()


def _in_order(found: dict[tuple[str, str], dict[int, str]], split: str) -> Reviews:
    texts, labels = [], []
    for number in range(1 + max(max(found[split, label]) for label in ("neg", "pos"))):
        for value, label in enumerate(("neg", "pos")):
            if number in found[split, label]:
                texts.append(found[split, label][number])
                labels.append(value)
    return Reviews(texts, labels)


def tokenise(text: str) -> list[str]:
    """Lower-case words (with what follows their apostrophe) and the marks ! and ?."""
    return _TOKEN.findall(text.lower())


class Words:
    """The most frequent words of the training reviews, numbered from 1."""

    def __init__(self, documents: Iterable[list[str]], size: int) -> None:
        counts: Counter[str] = Counter()
        for document in documents:
            counts.update(document)
        # Ties in alphabetical order: most_common alone would depend on the order of the documents.
        words = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]
        self._numbers = {word: number for number, (word, _) in enumerate(words, start=1)}

    def __len__(self) -> int:
        return len(self._numbers) + 1

    def encode(self, document: list[str], longest: int) -> Tensor:
        """int64 [n], 1 <= n <= `longest`: of a longer review its beginning and its end."""
        numbers = [self._numbers.get(word, UNKNOWN) for word in document] or [UNKNOWN]
        if len(numbers) > longest:
            end = longest - longest // 2
            numbers = numbers[: longest // 2] + numbers[-end:]
        return torch.tensor(numbers)


@dataclass(frozen=True)
class Dataset:
    """Encoded reviews and their labels."""

    documents: list[Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.documents)

    def batches(
        self, size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields (words [T, B], lengths [B], labels [B]), reviews of like length together: little padding.

        With a generator the batches come in random order, and which reviews are together changes.
        """
        lengths = torch.tensor([len(document) for document in self.documents])
        if generator is None:
            order = torch.argsort(lengths, stable=True)
        else:
            noise = 0.9 + 0.2 * torch.rand(len(self), generator=generator)
            order = torch.argsort(lengths * noise)
        groups = order.split(size)
        visits = (
            range(len(groups))
            if generator is None
            else torch.randperm(len(groups), generator=generator).tolist()
        )
        for number in visits:
            group = groups[number]
            words = torch.nn.utils.rnn.pad_sequence([self.documents[i] for i in group.tolist()])
            yield words, lengths[group], self.labels[group]
