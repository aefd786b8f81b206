"""The formulas of device/fast_math.h with a GPU's approximate instructions at their worst; needs no GPU."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "native" / "fast_math.cpp"
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
STRIDE = 2003  # of the floats; prime, so that no bit pattern is favoured

pytestmark = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"no {COMPILER[0]}")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    program = tmp_path_factory.mktemp("fast_math") / "fast_math"
    subprocess.run([*COMPILER, "-O2", "-std=c++17", str(SOURCE), "-o", str(program)], check=True)
    lines = subprocess.check_output([str(program), str(STRIDE)], text=True).splitlines()
    return [[float(word) for word in line.split()] for line in lines]


def test_errors_are_those_that_the_header_states(said: list[list[float]]) -> None:
    sigmoid, tanh, tanh_ulps = said[0]
    assert 0 < sigmoid <= 1.9e-7
    assert 0 < tanh <= 2.0e-7
    assert tanh_ulps <= 3.3


def test_limits_and_nan(said: list[list[float]]) -> None:
    assert said[1:-1] == [
        [-float("inf"), 0, -1],
        [-200, 0, -1],
        [0, 0.5, 0],
        [200, 1, 1],
        [float("inf"), 1, 1],
    ]
    assert all(value != value for value in said[-1])
