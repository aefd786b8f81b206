"""setuptools' own build backend, but torch and ninja are required only where something is compiled.

Listed in pyproject.toml they would be downloaded, gigabytes of them, for a pure-Python installation too.
"""

from __future__ import annotations

import os

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 -- every other hook is setuptools' own

COMPILER_REQUIREMENTS = ["ninja", "torch>=2.10"]


def _compiler_requirements() -> list[str]:
    pure_python = os.environ.get("CUSTOMLSTM_NO_EXTENSION", "0") not in ("", "0")
    return [] if pure_python else COMPILER_REQUIREMENTS


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _compiler_requirements()


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _compiler_requirements()
