"""A builder without a compiler, a compiler that can be held up, and processes that start in no time."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import customlstm
from customlstm import _binary
from customlstm.jit import cache, folders, toolchain
from customlstm.jit.entries import MANIFEST, Entry, Recipe

PACKAGE = Path(customlstm.__file__).parent
RECIPE = Recipe("text", "some cell", "some_cell.txt", {"sources": "1"})
CONTENT = "written by a builder"

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)


class Writer:
    """A :class:`cache.Builder` that writes a file, and counts how often it is asked to."""

    def __init__(
        self, error: Exception | None = None, tool: str = "pen", before: Callable[[], object] = int
    ) -> None:
        self.error, self.tool, self.before, self.builds = error, tool, before, 0

    def identity(self) -> Mapping[str, Any]:
        return {"tool": self.tool}

    def build(self, folder: Path, kept: Path) -> Mapping[str, Any]:
        self.builds += 1
        self.before()
        (folder / "log").write_text(f"{kept}\n")
        if self.error is not None:
            raise self.error
        (folder / RECIPE.product).write_text(CONTENT)
        return {"ink": "blue"}


def set_up(monkeypatch: Any, tmp_path: Path) -> Path:
    """Returns a cache folder of the test's own; no switches are set, nothing is remembered of others."""
    for name in ("CUSTOMLSTM_JIT", "CXX", "MAX_JOBS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache, "_failures", {})
    monkeypatch.setattr(folders, "_temporary", None)
    monkeypatch.setattr(folders, "_warned", set())
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    folder = tmp_path / "cache"
    monkeypatch.setenv("CUSTOMLSTM_CACHE_DIR", str(folder))
    return folder


def contents(folder: Path) -> list[str]:
    """Names of what lies in a folder of the cache, digests left out: "some_cell", "some_cell.lock"."""
    names = []
    for path in folder.iterdir():
        name, _, rest = path.name.partition("-")
        names.append(name + rest[25:])  # 16 and 8 digits and a hyphen
    return sorted(names)


def edit_manifest(entry: Entry, **changes: object) -> None:
    """Changes the manifest of an entry; None takes a value out."""
    file = entry.folder / MANIFEST
    manifest = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def includes(folder: Path) -> Path:
    """A folder of headers: one, that says what `number` is."""
    (folder / "cells").mkdir(parents=True)
    (folder / "cells/number.h").write_text("#define NUMBER 1\n")
    return folder


def sources(number: str = "NUMBER") -> dict[str, str]:
    """Two translation units and a header of their own. The library has a function `number`."""
    return {
        "number.cpp": '#include "cells/number.h"\n#include "other.h"\n'
        'extern "C" __attribute__((visibility("default"))) int number() { return other() + '
        + number
        + "; }\n",
        "other.cpp": '#include "other.h"\nint other() { return 100; }\n',
        "other.h": "int other();\n",
    }


def number(library: Path) -> int:
    """What the library's function says. Of a copy: the loader takes a known path for a known library."""
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(shutil.copy(library, folder)).number()


def compiled(runs: list[str]) -> list[str]:
    """Of each run of a compiler, the file that it made."""
    return sorted(run.split()[-1] for run in runs)


#: What is made of :func:`sources`, for a library named number.
ALL_COMPILED = ["number.cpp.o", "number.so", "other.cpp.o"]


class CompilerScript:
    """A compiler that notes its runs, and can be held up: a script that calls the real one.

    Attributes:
        path: for CXX.
        hold: while this file exists, the compiler does not go on.
    """

    def __init__(self, folder: Path, name: str = "compiler") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.hold, self.log = folder / name, folder / "hold", folder / "runs"
        real = Path(toolchain.find_compiler().command[0])
        self.log.write_text("")
        self.path.write_text(
            f'#!/bin/sh\ncase "$*" in *--version*|*-dumpmachine*) exec {real} "$@";; esac\n'
            f"echo \"$*\" >> '{self.log}'\n"
            f"while [ -e '{self.hold}' ]; do sleep 0.02; done\n"
            f'exec {real} "$@"\n'
        )
        self.path.chmod(0o755)

    def runs(self) -> list[str]:
        """The arguments of every run so far."""
        return self.log.read_text().splitlines()


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Returns once the condition holds; fails if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# The package's __init__ would import torch, which takes seconds; nothing in customlstm.jit.build needs it.
PRELUDE = """
import json, os, sys, time, types
from pathlib import Path
package, version, interface = json.loads(sys.argv[1])
sys.modules["customlstm"] = types.ModuleType("customlstm")
sys.modules["customlstm"].__path__ = [package]
sys.modules["customlstm"].__version__ = version
sys.modules["customlstm._binary"] = types.ModuleType("customlstm._binary")
sys.modules["customlstm._binary"].INTERFACE = interface
from customlstm.jit import cache, folders, locks
from customlstm.jit.build import build_library
"""

BUILD = """
arguments = json.loads(sys.argv[2])
while arguments.get("go") and not Path(arguments["go"]).exists():
    time.sleep(0.005)
built = build_library("number", arguments["sources"], includes=Path(arguments["includes"]))
print(json.dumps([str(built.path), built.from_cache, built.seconds]))
"""


def start(code: str, argument: object = None, **environment: str) -> subprocess.Popen[str]:
    """Runs code after PRELUDE in a process of its own; sys.argv[2] is ``argument`` as JSON."""
    package = json.dumps([str(PACKAGE), customlstm.__version__, _binary.INTERFACE])
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, package, json.dumps(argument)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Any:
    """What the process printed, JSON; fails if it failed."""
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(said)
