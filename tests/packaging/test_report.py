"""``python -m customlstm``, for the library that this environment has."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

import customlstm
from customlstm import _binary
from customlstm.jit.nvrtc import find_nvrtc

ROOT = Path(__file__).resolve().parents[2]
needs_library = pytest.mark.skipif(not _binary.status().loaded, reason=_binary.status().reason)


@pytest.fixture(scope="module")
def report(run) -> str:
    return run("python", "-m", "customlstm", cwd=ROOT).stdout


def test_says_what_is_installed(report: str) -> None:
    assert report.startswith(f"customlstm {customlstm.__version__}\n")
    for fact in (platform.python_version(), torch.__version__, ROOT / "customlstm", platform.machine()):
        assert str(fact) in report


def test_every_line_fits_the_layout(report: str) -> None:
    for line in report.splitlines():
        assert line == line.rstrip()
        assert not line or not line.startswith(" ") or len(line.split(maxsplit=1)) == 2, line


@needs_library
def test_says_what_is_built(report: str) -> None:
    build = _binary.status().build
    assert "Compiled library: loaded" in report
    for key in ("torch", "compiler", "flags"):
        assert build[key] in report
    assert f"{torch.ops.customlstm.cpu_isa()} in use" in report
    if build["cuda"] is None:
        assert f"none: {build['why_no_cuda']}" in report


def test_says_why_there_is_no_gpu(report: str) -> None:
    if torch.version.cuda is None:
        assert f"torch {torch.__version__} was built without CUDA" in report
    elif torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in report
    else:
        assert "  GPU          none: " in report


@needs_library
def test_says_what_compiles_cells(report: str) -> None:
    assert "\n  compiler     " in report
    assert f"\n  for GPUs     {find_nvrtc()}\n" in report


@needs_library
def test_lower_instruction_set(run) -> None:
    text = run("python", "-m", "customlstm", cwd=ROOT, CUSTOMLSTM_CPU_ISA="default").stdout
    assert "default in use" in text


@needs_library
def test_unknown_instruction_set_is_explained(run) -> None:
    text = run("python", "-m", "customlstm", cwd=ROOT, CUSTOMLSTM_CPU_ISA="mmx").stdout
    assert "none of:" in text
    assert "mmx" in text
    assert "unset CUSTOMLSTM_CPU_ISA" in text


def test_what_is_loaded_when_asked_for_is_listed() -> None:
    assert {"convert", "jit", "LSTM", "cells", "compat"} <= set(dir(customlstm))
