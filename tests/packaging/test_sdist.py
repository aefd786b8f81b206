"""Metadata, the source archive, and the pure-Python installation from it."""

from __future__ import annotations

import re
import shutil
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import customlstm
from customlstm import _binary

ROOT = Path(__file__).resolve().parents[2]
REQUIRES_TORCH = "torch>=2.10"


def test_metadata(unpacked: Path) -> None:
    metadata = message_from_string((unpacked / "PKG-INFO").read_text())
    assert metadata["Name"] == "customlstm"
    assert metadata["Version"] == customlstm.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.10"
    required = [each for each in metadata.get_all("Requires-Dist") if "extra ==" not in each]
    assert required == [REQUIRES_TORCH]


def test_what_the_build_requires(checkout: Path, no_torch: str, run) -> None:
    """torch and ninja where something is compiled, nothing more than setuptools where not."""

    def ask(kind: str, **switches: str) -> str:
        code = f"import build_backend as b; print(b.get_requires_for_build_{kind}())"
        done = run("python", "-c", code, cwd=checkout, PYTHONPATH=no_torch, **switches)
        return done.stdout.splitlines()[-1]

    for kind in ("wheel", "editable"):
        assert ask(kind) == str(["ninja", REQUIRES_TORCH])
        assert ask(kind, CUSTOMLSTM_NO_EXTENSION="1") == "[]"


def test_facts_that_have_to_be_stated_twice(checkout: Path) -> None:
    header = (checkout / "csrc/ops/interface.h").read_text()
    assert f"#define CUSTOMLSTM_INTERFACE {_binary.INTERFACE}\n" in header
    major, minor = REQUIRES_TORCH.removeprefix("torch>=").split(".")
    target = re.search(r"TORCH_TARGET_VERSION=0x(\w{2})(\w{2})0{12}\b", (checkout / "setup.py").read_text())
    assert target is not None
    assert (int(target[1], 16), int(target[2], 16)) == (int(major), int(minor))


def test_archive_holds_all_that_is_needed_and_nothing_built(unpacked: Path, run) -> None:
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "setup.py", "build_backend.py"):
        assert (unpacked / name).is_file(), name
    assert (unpacked / "csrc/ops/interface.h").is_file()
    built = [path for pattern in ("*.so", "*.o", "_C.json", "*.pyc") for path in unpacked.rglob(pattern)]
    assert not built


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_archive_holds_every_source_file(unpacked: Path, run) -> None:
    """What git tracks in these folders: a file with an ending unknown to MANIFEST.in would be missed."""
    folders = ("customlstm", "csrc", "tests", "examples", "benchmarks", "docs")
    tracked = run("git", "ls-files", *folders, cwd=ROOT).stdout.splitlines()
    present = [name for name in tracked if (ROOT / name).exists()]
    assert [name for name in present if not (unpacked / name).exists()] == []


def test_compiling_without_torch_says_what_to_do(checkout: Path, no_torch: str, run) -> None:
    done = run("python", "setup.py", "build_ext", cwd=checkout, code=1, PYTHONPATH=no_torch)
    assert "no torch here" in done.stderr
    assert "--no-build-isolation" in done.stderr
    assert "CUSTOMLSTM_NO_EXTENSION=1" in done.stderr


def test_pure_python_installation(pure: Path, tmp_path: Path, run) -> None:
    (info,) = pure.glob("customlstm-*.dist-info")
    assert "Tag: py3-none-any" in (info / "WHEEL").read_text()
    assert (pure / "customlstm/py.typed").is_file()
    assert [path.name for path in (pure / "customlstm").glob("_C*")] == ["_C.json"]
    code = (
        "import torch, customlstm; lstm = customlstm.LSTM(3, 4, bidirectional=True)\n"
        "output, _ = lstm(torch.randn(5, 2, 3)); output.sum().backward()\n"
        "print(customlstm.__file__, tuple(output.shape), lstm.weight_hh_l0.grad.isfinite().all().item())"
    )
    done = run("python", "-c", code, cwd=tmp_path, PYTHONPATH=str(pure))
    assert done.stdout.strip() == f"{pure / 'customlstm/__init__.py'} (5, 2, 8) True"


def test_pure_python_installation_warns_once_and_says_why(pure: Path, tmp_path: Path, run) -> None:
    code = "import torch, customlstm; m = customlstm.LSTM(3, 4); [m(torch.zeros(5, 2, 3)) for _ in 'abc']"
    said = run("python", "-c", code, cwd=tmp_path, PYTHONPATH=str(pure)).stderr
    assert said.count("FallbackWarning") == 1
    assert "pure Python, as asked for with CUSTOMLSTM_NO_EXTENSION" in said


def test_report_names_another_installation(pure: Path, checkout: Path, tmp_path: Path, run) -> None:
    """In the clone the report is that of the clone."""
    another = f"another customlstm is installed at {pure / 'customlstm'}; run this from another folder"
    assert another in run("python", "-m", "customlstm", cwd=checkout, PYTHONPATH=str(pure)).stdout
    assert "another" not in run("python", "-m", "customlstm", cwd=tmp_path, PYTHONPATH=str(pure)).stdout


def test_report_usage(pure: Path, tmp_path: Path, run) -> None:
    help_of = {"cwd": tmp_path, "PYTHONPATH": str(pure)}
    assert run("python", "-m", "customlstm", "--help", **help_of).stdout.startswith(
        "usage: python -m customlstm"
    )
    assert (
        "unrecognized arguments: more" in run("python", "-m", "customlstm", "more", code=2, **help_of).stderr
    )


def test_pure_python_report(pure: Path, sdist: Path, tmp_path: Path, run) -> None:
    text = run("python", "-m", "customlstm", cwd=tmp_path, PYTHONPATH=str(pure)).stdout
    asked_for = "pure Python, as asked for with CUSTOMLSTM_NO_EXTENSION"
    assert f"\nCompiled library: none, {asked_for}\n" in text
    assert "NOT LOADED" not in text and "to mend it" not in text
    assert f"-m pip install --force-reinstall --no-deps --no-build-isolation {sdist}\n" in text


def test_editable_install_is_a_folder_on_the_path(checkout: Path, tmp_path: Path, run) -> None:
    """Not a finder: that comes too late where the folder above the clone is the current one."""
    project = Path(shutil.copytree(checkout, tmp_path / "customlstm"))
    code = "import build_backend as b; b.build_editable('dist')"
    run("python", "-c", code, cwd=project, CUSTOMLSTM_NO_EXTENSION="1")
    (wheel,) = (project / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (pth,) = [name for name in archive.namelist() if "/" not in name]
        assert archive.read(pth).decode().strip() == str(project)
    code = "import sys; sys.path.append(sys.argv[1]); import customlstm; print(customlstm.Cell())"
    assert run("python", "-c", code, project, cwd=tmp_path).stdout.strip() == "Cell()"
    assert not (project / "customlstm/_C.json").exists()  # make would take it for a library that was built
    assert not (project / "customlstm/include").exists()  # what is edited is csrc


def test_every_switch_of_the_build_is_documented_and_no_other(checkout: Path) -> None:
    _, description, code = (checkout / "setup.py").read_text().split('"""', 2)
    documented = re.findall(r"^  ([A-Z_]+)  ", description, re.MULTILINE)
    assert sorted(documented) == sorted(set(re.findall(r'switch\("([A-Z_]+)"\)', code)))
