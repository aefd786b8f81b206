"""The examples as modules, and small data for them."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

# The examples are scripts that import `common` from beside themselves, as Python does for a script.
sys.path.insert(0, str(EXAMPLES))

pytest.importorskip("tqdm", reason="the examples need tqdm")
pytest.importorskip("matplotlib", reason="the examples need matplotlib")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger data sets beside the repository; skips where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def text() -> str:
    """6,000 characters that a small model learns quickly."""
    words = random.Random(0).choices(["kernel", "gate", "cell", "state", "of", "the", "a"], k=2000)
    return " ".join(words)[:6000]


@pytest.fixture
def text_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    return path
