"""Builds the libraries of these tests: kernels in C++ for the host executor, and what is called around them.

They need a C++ compiler and nothing else, no CUDA. Where there is none the tests fail, unless the package
itself was installed without compiling anything.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from customlstm import _binary

sys.path.insert(
    0, str(Path(__file__).parents[1] / "kernels")
)  # the calls and comparisons of the kernels' tests

FLAGS = ["-std=c++17", "-O1", "-g", "-fPIC", "-Wall", "-Wextra"]

Source = Path | tuple[Path, Sequence[str]]
NativeLibrary = Callable[[str, Sequence[Source]], ctypes.CDLL]


def compiler() -> list[str]:
    """The compiler's command; skips or fails the test where there is none."""
    words = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(words[0]):
        return words
    message = (
        f"the host executor's tests need a C++ compiler: {words[0]} is not on the PATH; install it or set CXX"
    )
    if not _binary.status().loaded:
        pytest.skip(f"{message} (customlstm itself was not compiled either)")
    pytest.fail(message, pytrace=False)


@pytest.fixture(scope="session")
def native_library(tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    """``native_library(name, sources)``: compiles the sources, links them, loads the library; once a session.

    A source is a path or a pair of a path and flags of its own. An object that several libraries need is
    compiled once.
    """
    folder = tmp_path_factory.mktemp("native")
    objects: dict[tuple[str, ...], Path] = {}
    libraries: dict[str, ctypes.CDLL] = {}

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"{shlex.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)

    def native_library(name: str, sources: Sequence[Source]) -> ctypes.CDLL:
        if name in libraries:
            return libraries[name]
        command = compiler()
        # g++ makes one copy of an inline function's static for all libraries of a process: the kernels called
        # through a table would be those of the library loaded first. Other compilers do not know the flag.
        version = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
        own = ["-fno-gnu-unique"] if "Free Software Foundation" in version else []
        keys = [(str(s),) if isinstance(s, Path) else (str(s[0]), *s[1]) for s in sources]
        missing = {key: folder / f"{len(objects) + i}.o" for i, key in enumerate(set(keys) - objects.keys())}

        def compile_one(item: tuple[tuple[str, ...], Path]) -> None:
            (path, *flags), to = item
            run([*command, *FLAGS, *own, *flags, "-c", path, "-o", str(to)])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, missing.items()))
        objects.update(missing)
        library = folder / f"lib{name}.so"
        run([*command, "-shared", *(str(objects[key]) for key in keys), "-o", str(library)])
        libraries[name] = ctypes.CDLL(str(library))
        return libraries[name]

    return native_library


@pytest.fixture
def full_precision() -> Iterator[None]:
    """float32 products on a GPU are not rounded to TF32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    yield
    matmul.fp32_precision = before


@pytest.fixture(scope="session")
def torch_side(tmp_path_factory: pytest.TempPathFactory) -> None:
    """``torch.ops.customlstm_host``: the operators of native/torch_side.cpp, and cells that users wrote."""
    from support_torch_side import load_torch_side

    load_torch_side(tmp_path_factory.mktemp("torch_side"))


@pytest.fixture(scope="module")
def host(torch_side: None) -> Iterator[Any]:
    """Those operators."""
    with torch.library._scoped_library("aten", "IMPL") as aten:
        # cuBLAS sums 16-bit operands in float32; the CPU has no such product.
        aten.impl("mm.dtype_out", lambda a, b, dtype, *, out: out.copy_(a.float() @ b.float()), "CPU")
        yield torch.ops.customlstm_host
