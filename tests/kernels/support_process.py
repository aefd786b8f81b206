"""Runs Python in a process of its own, with the package that these tests import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import customlstm

HERE = Path(__file__).parent


def run_python(*arguments: str, timeout: float = 600, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python *arguments`` in this folder, with these environment variables besides."""
    package = str(Path(customlstm.__file__).parents[1])
    path = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH")) if p)
    environment = os.environ | {"PYTHONPATH": path} | variables
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
