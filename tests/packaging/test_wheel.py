"""Builds: in place from the source archive, then a wheel from the same objects, installed in its own folder.

All of it with DEBUG=1, which takes a quarter of the time of an optimised build.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from customlstm import _binary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler (c++)"),
]

BUILD = ("python", "setup.py", "build_ext", "--inplace")
DEBUG = {"DEBUG": "1", "CUSTOMLSTM_NO_CUDA": "1"}


def compiled_sources(done: subprocess.CompletedProcess) -> set[str]:
    return set(re.findall(r"-c \S*/(csrc/\S+\.cpp) ", done.stdout + done.stderr))


def sources(project: Path) -> set[str]:
    """What the library is made of: all but the host executor, which serves tests."""
    found = {str(path.relative_to(project)) for path in (project / "csrc").rglob("*.cpp")}
    return {source for source in found if not source.startswith("csrc/cuda/device/")}


@pytest.fixture(scope="module")
def project(unpacked: Path, tmp_path_factory: pytest.TempPathFactory, run) -> Path:
    """The source archive's contents, built in place."""
    project = Path(shutil.copytree(unpacked, tmp_path_factory.mktemp("project") / "customlstm"))
    done = run(*BUILD, cwd=project, **DEBUG)
    assert compiled_sources(done) == sources(project)
    return project


@pytest.fixture(scope="module")
def wheel(project: Path, run) -> Path:
    run("python", "-c", "import build_backend as b; b.build_wheel('dist')", cwd=project, **DEBUG)
    (wheel,) = (project / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, install) -> Path:
    return install(wheel)


def check_manifest(library: bytes, manifest: bytes) -> dict:
    build = json.loads(manifest)
    assert build["size"] == len(library)
    assert build["sha256"] == hashlib.sha256(library).hexdigest()
    assert build["interface"] == _binary.INTERFACE
    return build


def test_in_place_build(project: Path) -> None:
    package = project / "customlstm"
    build = check_manifest((package / "_C.abi3.so").read_bytes(), (package / "_C.json").read_bytes())
    assert "-O0" in build["flags"]
    assert build["cuda"] is None
    assert {"default", "avx2", "avx512"} <= set(build["cpu"])


def test_rebuilds_what_has_changed_and_no_more(project: Path, run) -> None:
    assert compiled_sources(run(*BUILD, cwd=project, **DEBUG)) == set()
    header = project / "csrc/ops/interface.h"
    header.write_text(header.read_text() + "\n// edited\n")
    again = compiled_sources(run(*BUILD, cwd=project, **DEBUG))
    assert again
    assert all(source.startswith("csrc/ops/") for source in again)


def test_other_flags_compile_everything_anew(project: Path, tmp_path: Path, run) -> None:
    """A ninja that shows its plan and gives up stands in for the real one, since the plan is the point."""
    folders = os.environ["PATH"]
    ninja = shutil.which("ninja", path=f"{folders}{os.pathsep}{Path(sys.executable).parent}")
    if ninja is None:
        pytest.skip("no ninja")
    (tmp_path / "ninja").write_text(f'#!/bin/sh\n{ninja} "$@" -n; test "$1" = --version\n')
    (tmp_path / "ninja").chmod(0o755)
    manifest = (project / "customlstm/_C.json").read_text()
    switches = {"SANITIZE": "1", "CUSTOMLSTM_NO_CUDA": "1", "PATH": f"{tmp_path}{os.pathsep}{folders}"}
    plan = run(*BUILD, cwd=project, code=1, **switches)
    assert compiled_sources(plan) == sources(project)
    assert "-fsanitize=address,undefined" in plan.stdout
    assert (project / "customlstm/_C.json").read_text() == manifest


def test_wheel(wheel: Path) -> None:
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        check_manifest(archive.read("customlstm/_C.abi3.so"), archive.read("customlstm/_C.json"))
    assert {"customlstm/py.typed", "customlstm/include/types.h", "customlstm/jit/build.py"} <= names
    assert [name for name in names if "/include/cpu/" in name]
    top = {name.split("/")[0] for name in names}
    assert top == {"customlstm", next(name for name in top if name.endswith(".dist-info"))}
    assert not [name for name in names if "__pycache__" in name]


RUN = """
import customlstm, torch
from customlstm import _binary
status = _binary.status()
assert status.loaded, status.reason
lstm = customlstm.LSTM(5, 7, bidirectional=True, cell=customlstm.Cell(cell_activation="softsign"))
input = torch.randn(6, 3, 5)
assert customlstm.explain(lstm, input)
output, _ = lstm(input)
output.sum().backward()
with customlstm.use_backend("reference"):
    torch.testing.assert_close(output, lstm(input)[0])
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "omp5" in line}
print(status.path, len(runtimes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_installed_wheel_runs_and_brings_no_second_openmp(installed: Path, tmp_path: Path, run) -> None:
    """One OpenMP runtime in the process: two of them would fight for the cores."""
    done = run("python", "-c", RUN, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.stdout.split() == [str(installed / "customlstm/_C.abi3.so"), "1"]


WRITTEN = """
import customlstm, torch
from customlstm import cells, jit
lstm = customlstm.LSTM(5, 7, cell=cells.janet, backend="fused")
output, _ = lstm(torch.randn(6, 3, 5))
output.sum().backward()
print(jit.headers.headers())
"""


def test_the_installed_wheel_compiles_cells_that_users_write(installed: Path, tmp_path: Path, run) -> None:
    done = run("python", "-c", WRITTEN, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.stdout.strip() == str(installed / "customlstm" / "include")


def test_report_of_the_installed_wheel(installed: Path, tmp_path: Path, run) -> None:
    text = run("python", "-m", "customlstm", cwd=tmp_path, PYTHONPATH=str(installed)).stdout
    assert "Compiled library: loaded" in text
    assert str(installed) in text
