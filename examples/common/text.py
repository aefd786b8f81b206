"""Text as training data: files of any alphabet, characters as numbers, batches for truncated BPTT."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .cli import UsageError

UNKNOWN = 0
"""The number that stands for every character that has none of its own."""

_UNICODE_CHARACTERS = 0x110000 - 0x800  # all code points but the surrogates, which no text contains


def python_manual() -> str:
    """The reference manual inside CPython (what `help("topics")` shows), about half a million characters."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UsageError(
            "this Python comes without pydoc_data (some distributions split it off); give --text"
        ) from None
    return "".join(topics[name] for name in sorted(topics))


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Reads a text file, gzip-compressed or not, whatever its name ends in."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(
            f"--text {path}: a damaged or incomplete gzip file ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise UsageError(f"--text {path}: cannot be read ({error.strerror})") from error
    try:
        return content.decode(encoding).removeprefix("\ufeff")  # a byte order mark is no part of the text
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--text {path}: not {encoding} at byte {error.start:,}; name its encoding, as --encoding latin-1"
        ) from error
    except LookupError:
        raise UsageError(f"--encoding {encoding}: Python knows no such encoding") from None


class Vocabulary:
    """The characters that have a number of their own, 1, 2, ...; 0 stands for all others."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._numbers = {character: number for number, character in enumerate(characters, start=1)}

    @classmethod
    def of(cls, text: str, min_count: int) -> Vocabulary:
        """Every character that occurs at least `min_count` times in `text`, the most frequent first."""
        counts = sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))
        return cls("".join(character for character, count in counts if count >= min_count))

    def __len__(self) -> int:
        return len(self.characters) + 1

    def encode(self, text: str) -> Tensor:
        """`text` as int64 [len(text)]."""
        numbers = array("q", (self._numbers.get(character, UNKNOWN) for character in text))
        return torch.frombuffer(numbers, dtype=torch.int64) if numbers else torch.empty(0, dtype=torch.int64)

    def decode(self, numbers: list[int]) -> str:
        """The text of `numbers`; an unknown character shows as U+FFFD."""
        return "".join(
            "\N{REPLACEMENT CHARACTER}" if number == UNKNOWN else self.characters[number - 1]
            for number in numbers
        )

    @property
    def bits_per_unknown(self) -> float:
        """What naming one unknown character costs on top of saying that it is unknown.

        <unk> stands for many characters, so predicting it predicts none of them. Charging a choice among all
        other characters of Unicode makes bits per character a true code length, whatever the vocabulary.
        """
        return math.log2(_UNICODE_CHARACTERS - len(self.characters))


@dataclass(frozen=True)
class Corpus:
    """A text in two parts. The vocabulary knows only the first."""

    train: Tensor
    held_out: Tensor
    vocabulary: Vocabulary
    digest: str

    @classmethod
    def split(cls, text: str, held_out: float, min_count: int) -> Corpus:
        """Holds out the last `held_out` (a fraction) of `text`."""
        size = len(text) - int(len(text) * held_out)
        vocabulary = Vocabulary.of(text[:size], min_count)
        if len(vocabulary) == 1:
            raise UsageError(
                f"no character occurs --min-count {min_count} times in the {size:,} characters to train on"
            )
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return cls(vocabulary.encode(text[:size]), vocabulary.encode(text[size:]), vocabulary, digest)


class Stream:
    """Truncated BPTT: `batch` readers, each in its stretch of a text, read on `steps` characters a time.

    Args:
        data: int64 [N].
        position: chunks read before; a stream that begins at n gives what another gives after n.
    """

    def __init__(self, data: Tensor, batch: int, steps: int, position: int = 0) -> None:
        # One chunk less than fits: each pass over the text starts a little later than the one before.
        self.chunks = (len(data) - 1) // batch // steps - 1
        if self.chunks < 1:
            raise UsageError(
                f"the text is too short: {len(data):,} characters to train on; {batch} readers (--batch) of "
                f"{steps} characters (--bptt) need {2 * batch * steps + 1:,}; lower --batch or --bptt"
            )
        self.data, self.batch, self.steps, self.position = data, batch, steps, position

    def __next__(self) -> tuple[Tensor, Tensor, bool]:
        """Inputs and targets, both [steps, batch], and whether the readers start anew (with no state)."""
        passes, chunk = divmod(self.position, self.chunks)
        # Each pass starts elsewhere, and so the chunk borders, where the gradient is cut, fall elsewhere.
        shift = passes * 37 % self.steps
        stretch = (len(self.data) - 1 - shift) // self.batch
        first = shift + chunk * self.steps + stretch * torch.arange(self.batch)
        index = first + torch.arange(self.steps).unsqueeze(1)
        self.position += 1
        return self.data[index], self.data[index + 1], chunk == 0

    @property
    def passes(self) -> float:
        """How often the text has been read."""
        return self.position / self.chunks
