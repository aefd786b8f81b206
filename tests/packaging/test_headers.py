"""The C++ headers in an installation, without which no cell of a user's own could be compiled."""

from __future__ import annotations

import filecmp
import re
from pathlib import Path

import pytest

SUFFIXES = {"cells": {".h", ".inl"}, "cpu": {".h", ".inl", ".cpp"}, "cuda": {".h", ".cuh"}}


def expected(csrc: Path) -> set[str]:
    files = [path.relative_to(csrc) for path in csrc.rglob("*") if path.is_file()]
    found = {file.as_posix() for file in files if file.suffix in SUFFIXES.get(file.parts[0], ())}
    return found | {"types.h"}


@pytest.fixture(scope="module")
def include(pure: Path) -> Path:
    return pure / "customlstm/include"


def test_an_installation_has_them_as_they_are(include: Path, checkout: Path) -> None:
    """A wheel with kernels gets them from the same command; test_wheel.py looks."""
    installed = {path.relative_to(include).as_posix() for path in include.rglob("*") if path.is_file()}
    assert installed == expected(checkout / "csrc")
    assert {"types.h", "cells/standard.inl", "cpu/kernels.inl", "cuda/device/device.h"} <= installed
    differing = filecmp.cmpfiles(include, checkout / "csrc", installed, shallow=False)[1:]
    assert differing == ([], [])


def test_what_they_include_is_there_too(include: Path) -> None:
    for file in (path for path in include.rglob("*") if path.is_file()):
        for name in re.findall(r'^ *#include "(.*)"', file.read_text(), re.MULTILINE):
            assert (file.parent / name).is_file(), f"{file} includes {name}"


def test_where_they_are_found(include: Path, pure: Path, checkout: Path, tmp_path: Path, run) -> None:
    code = "from customlstm.jit.headers import headers; print(headers())"
    for installation, folder in ((pure, include), (checkout, checkout / "csrc")):
        done = run("python", "-c", code, cwd=tmp_path, PYTHONPATH=str(installation))
        assert done.stdout.strip() == str(folder)


def test_a_clone_and_an_installation_share_a_cache(
    include: Path, pure: Path, checkout: Path, tmp_path: Path, run
):
    code = "from customlstm.jit.headers import *; "
    code += "print([sorted(digests(headers(), parts).items()) for parts in (CPU, CUDA)])"
    first, second = (
        run("python", "-c", code, cwd=tmp_path, PYTHONPATH=str(installation)).stdout
        for installation in (pure, checkout)
    )
    assert "cpu/kernels.inl" in first and "cuda/device/nvrtc.h" in first
    assert first == second
