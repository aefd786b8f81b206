"""Source archives and installations for the packaging tests, each made once a session, in temporary folders.

Nothing is fetched: pip installs into a folder of its own (``--target``) beside the torch of this environment,
and the tests run that copy from elsewhere, so that the checkout cannot stand in for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "_C.*"
)
# A developer's switches, and what a make that runs these tests hands down to the makes that they run.
SWITCHES = {"DEBUG", "SANITIZE", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CXX", "PYTHONPATH"}
SWITCHES |= {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS", "VENV", "PYTHON", "TORCH"}

Run = Callable[..., subprocess.CompletedProcess]


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without the switches that may be set in it, and with these."""
    kept = {k: v for k, v in os.environ.items() if k not in SWITCHES and not k.startswith("CUSTOMLSTM_")}
    return kept | extra


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a command, given word by word; "python" as the first word is this Python.

    Fails the test if it does not exit with ``code`` (None: any). More keywords are environment variables.
    """

    def run(*command: str | Path, cwd: Path, code: int | None = 0, **extra: str):
        first, *rest = map(str, command)
        words = [sys.executable if first == "python" else first, *rest]
        environment = clean_environment(**extra)
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
        said = f"{words} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert code in (None, done.returncode), said
        return done

    return run


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, nothing built."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("sources") / "customlstm", ignore=NOT_SOURCE))


@pytest.fixture(scope="session")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH under which torch cannot be imported."""
    folder = tmp_path_factory.mktemp("no_torch")
    (folder / "torch.py").write_text("raise ImportError('no torch here')\n")
    return str(folder)


@pytest.fixture(scope="session")
def sdist(checkout: Path, no_torch: str, run: Run) -> Path:
    """The source archive, made where torch cannot be imported."""
    run("python", "-c", "import build_backend as b; b.build_sdist('dist')", cwd=checkout, PYTHONPATH=no_torch)
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive's contents."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Callable[..., Path]:
    """Installs an archive into a new folder, which it returns."""
    pytest.importorskip("pip")

    def install(archive: Path, **environment: str) -> Path:
        target = tmp_path_factory.mktemp("installed")
        flags = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        run("python", "-m", "pip", "install", *flags, "--target", target, archive, cwd=target, **environment)
        return target

    return install


@pytest.fixture(scope="session")
def pure(sdist: Path, no_torch: str, install: Callable[..., Path]) -> Path:
    """The source archive installed with CUSTOMLSTM_NO_EXTENSION=1, where torch cannot be imported either."""
    return install(sdist, CUSTOMLSTM_NO_EXTENSION="1", PYTHONPATH=no_torch)
