"""Builds csrc/ops around the CUDA recurrences on CPU tensors and the host executor: native/torch_side.cpp.

Together with kernels of the cells in support_written_kernels.py, so that all is compiled once.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support_host_kernels import sources
from support_written_kernels import REGISTER, written_sources
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
COMPILER = shlex.split(os.environ.get("CXX", "")) or ["g++"]


def load_torch_side(folder: Path) -> None:
    """Compiles in ``folder``, loads the operators of ``torch.ops.customlstm_host``, registers the cells."""
    if shutil.which(COMPILER[0]) is None:
        pytest.fail(f"needs a C++ compiler: {COMPILER[0]} is not on the PATH; install it or set CXX")
    torch_flags = [
        *FLAGS, "-std=c++20",
        "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA",
        *[f"-isystem{path}" for path in cpp_extension.include_paths()],
    ]  # fmt: skip
    ops = [ROOT / "csrc" / "ops" / f"{name}.cpp" for name in
           ("checks", "cell_args", "cell_registry", "sequences", "layer_arguments", "matrices",
            "cuda_norm")]  # fmt: skip
    work: list[tuple[Path, list[str]]] = [
        (ROOT / "tests" / "cuda" / "native" / "torch_side.cpp", torch_flags),
        *[(path, torch_flags) for path in ops],
        (ROOT / "csrc" / "cuda" / "plan.cpp", FLAGS),
        *[(path, [*FLAGS, *flags]) for path, flags in sources() if path.name != "recurrences.cpp"],
        *[(path, [*FLAGS, f"-I{ROOT}"]) for path in written_sources(folder)],
    ]

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"

    def compile_one(item: tuple[int, tuple[Path, list[str]]]) -> str:
        number, (path, flags) = item
        run([*COMPILER, *flags, "-c", str(path), "-o", str(folder / f"{number}.o")])
        return str(folder / f"{number}.o")

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, enumerate(work)))
    library = folder / "libtorch_side.so"
    link = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    run([*COMPILER, "-shared", "-Wl,-Bsymbolic", *objects, *link, "-o", str(library)])
    torch.ops.load_library(library)
    loaded = ctypes.CDLL(str(library))
    for function in REGISTER:
        getattr(loaded, function)()
