"""The Makefile: what its targets set up, and that they do it once.

A stand-in for Python notes the commands that it is given.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")

# Says whether it has torch, does what a command would leave behind, and notes the rest in the file `log`.
STAND_IN = """#!/bin/sh
if [ "$1" = -c ] && [ "$2" = "import torch" ]; then test -f {has_torch}; exit; fi
echo "$@" >> {log}
case "$*" in
  *"-m venv"*) for last; do :; done; mkdir -p $last/bin; cp "$0" $last/bin/python;;
  *torch==*) touch {has_torch};;
  "setup.py build_ext --inplace") touch customlstm/_C.json;;
esac
"""


class Project:
    """A folder with the Makefile and files for its rules to look at."""

    def __init__(self, folder: Path, run) -> None:
        self.folder, self.run = folder, run
        self.log, self.torch = folder / "log", folder / "has_torch"
        for name in ("Makefile", "pyproject.toml", "setup.py"):
            shutil.copy(ROOT / name, folder)
        for name in ("customlstm", "csrc/ops"):
            (folder / name).mkdir(parents=True)
        for name in ("csrc/ops/a.cpp", "csrc/ops/a.h"):
            (folder / name).touch()
        self.python = folder / "python3"
        self.python.write_text(STAND_IN.format(log=self.log, has_torch=self.torch))
        self.python.chmod(0o755)

    def make(self, *words: str, **extra: str) -> list[str]:
        """The commands that ``make`` gave to Python."""
        self.log.write_text("")
        self.run("make", *words, f"PYTHON={self.python}", cwd=self.folder, **extra)
        return self.log.read_text().splitlines()


@pytest.fixture
def project(tmp_path: Path, run) -> Project:
    return Project(tmp_path, run)


BUILD, TEST = "setup.py build_ext --inplace", "-m pytest tests -q -n auto --dist loadscope"
TOOLS = ["-m pip install setuptools>=77 torch", "-m pip install --no-build-isolation --editable .[dev]"]


def test_help_names_every_target(run) -> None:
    text = run("make", "help", cwd=ROOT).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    listed = re.findall(r"^  make ([\w-]+) +\S", text, re.MULTILINE)
    assert sorted(listed) == sorted(set(phony[1].split()) - {"force"})


def test_first_run_sets_everything_up(project: Project) -> None:
    expected = ["-m venv .venv", "-m pip install torch==2.13.0", *TOOLS, BUILD, TEST]
    assert project.make("test") == expected
    assert project.make("test") == [TEST]
    assert project.make("demo") == ["examples/char_lm.py --demo"]


def test_a_python_with_torch_lends_it(project: Project) -> None:
    project.torch.touch()
    assert project.make("test") == ["-m venv --system-site-packages .venv", *TOOLS, BUILD, TEST]


def test_other_torch_and_other_environment(project: Project) -> None:
    made = project.make("install", "TORCH=torch==2.99.0", "VENV=there/environment")
    environment = ["-m venv there/environment", "-m pip install torch==2.99.0", *TOOLS]
    assert made == [*environment, BUILD, "-m customlstm"]


def test_edited_sources_rebuild_the_library_and_nothing_else(project: Project) -> None:
    project.make("test")
    for change in (
        lambda: (project.folder / "csrc/ops/a.h").write_text("// edited"),
        lambda: (project.folder / "csrc/ops/b.cpp").touch(),
        lambda: (project.folder / "csrc/ops/b.cpp").unlink(),
    ):
        change()
        assert project.make("test") == [BUILD, TEST]
        assert project.make("test") == [TEST]


def test_other_switches_rebuild_the_library(project: Project) -> None:
    project.make("test")
    assert project.make("test", DEBUG="1") == [BUILD, TEST]
    assert project.make("test", DEBUG="1") == [TEST]
    assert project.make("test") == [BUILD, TEST]


def test_other_requirements_redo_the_installation_only(project: Project) -> None:
    project.make("test")
    os.utime(project.folder / "pyproject.toml")
    assert project.make("test") == [*TOOLS, TEST]


def test_bench_writes_its_results_and_shows_them(project: Project) -> None:
    project.make("install")
    for file, words in (
        ("runs/bench.json", []),
        ("there/a.json", ["RESULTS=there/a.json", "ARGS=-k training"]),
    ):
        arguments = " -k training" if words else ""
        assert project.make("bench", *words) == [
            f"-m pytest benchmarks -q --keep={file}{arguments}",
            f"-m benchmarks.report {file}",
        ]


def test_instructions_are_of_the_built_library(project: Project) -> None:
    made = project.make("instructions", "ARGS=--compare a.json")
    assert made[-2:] == [BUILD, "-m benchmarks.instructions --compare a.json"]


def test_a_failed_build_is_tried_again(project: Project) -> None:
    project.make("install")
    (project.folder / "csrc/ops/a.cpp").write_text("// edited")
    broken = project.folder / ".venv/bin/python"
    working = broken.read_text()
    broken.write_text(working + 'test "$1" != setup.py || { rm -f customlstm/_C.json; exit 1; }\n')
    project.run("make", "test", cwd=project.folder, code=2)
    broken.write_text(working)
    assert project.make("test") == [BUILD, TEST]
