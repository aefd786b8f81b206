"""Compiles customlstm/_C, the kernels and operators; everything else about the package is in pyproject.toml.

Switches, environment variables that are on when set to anything but "" and "0":
  CUSTOMLSTM_NO_EXTENSION  compile nothing: the package computes on the reference
  CUSTOMLSTM_NO_CUDA       CPU kernels only
  FORCE_CUDA               CUDA kernels also where no GPU is present; an error where they cannot be built
  DEBUG                    no optimisation, debug information, assertions, bounds checks in the CUDA kernels
  SANITIZE                 AddressSanitizer and UndefinedBehaviorSanitizer; `make sanitize` sets it
torch's own hold as well: CXX, MAX_JOBS, CUDA_HOME, TORCH_CUDA_ARCH_LIST. Without the last, CUDA kernels are
built for the GPUs of this machine, and where there is none for all from Ampere to Blackwell.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

MODULE = "customlstm._C"
CXX_SOURCES = sorted(glob.glob("csrc/ops/*.cpp") + glob.glob("csrc/cpu/*.cpp") + glob.glob("csrc/cuda/*.cpp"))
CUDA_SOURCES = sorted(glob.glob("csrc/cuda/*.cu"))
# What a cell compiled on the user's machine includes: headers, and the kernels of each instruction set.
CELL_SOURCES = (
    "types.h", "cells/*.h", "cells/*.inl", "cpu/**/*.h", "cpu/*.inl", "cpu/*.cpp", "cuda/**/*.h",
    "cuda/**/*.cuh",
)  # fmt: skip
WHY_NOT_BUILT = "pure Python, as asked for with CUSTOMLSTM_NO_EXTENSION"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # 2.10, the oldest torch that the library loads into


def switch(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def why_no_cuda() -> str:
    """Why this build leaves the CUDA kernels out; empty if it compiles them.

    customlstm.gpu.how_to_build has a remedy for each of these.
    """
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if not CUDA_SOURCES:
        return "this version of customlstm has no CUDA kernels"
    if switch("CUSTOMLSTM_NO_CUDA"):
        return "CUSTOMLSTM_NO_CUDA was set"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if CUDA_HOME is None:
        return "no CUDA toolkit: nvcc is not on the PATH and CUDA_HOME is not set"
    if not torch.cuda.is_available() and not switch("FORCE_CUDA"):
        return "torch saw no GPU, and FORCE_CUDA was not set"
    return ""


def default_archs() -> str:
    """TORCH_CUDA_ARCH_LIST for a machine without a GPU: all GPUs from Ampere to Blackwell.

    Code runs on later GPUs of the same major number: 8.6 serves 8.7 and 8.9, 10.0 serves 10.3, 12.0 serves
    12.1. The kernels need no instruction of 9.0a (matrix products are mma.sync; clusters are in plain 9.0),
    and what is built for 9.0a cannot be translated for any other GPU. So 9.0 comes with PTX, which the driver
    translates for whatever is not listed, clusters included: 11.0, and GPUs to come.
    """
    import torch

    toolkit = tuple(int(number) for number in torch.version.cuda.split(".")[:2])
    blackwell = ";10.0;12.0" if toolkit >= (12, 8) else ""  # older toolkits do not know it
    return f"8.0;8.6;9.0+PTX{blackwell}"


@contextlib.contextmanager
def naming_arch_list() -> Iterator[None]:
    """torch's error for an architecture that it does not know, with the variable that holds it."""
    try:
        yield
    except ValueError as error:
        if "CUDA arch" not in str(error):
            raise
        given = os.environ.get("TORCH_CUDA_ARCH_LIST")
        raise SystemExit(
            f"TORCH_CUDA_ARCH_LIST is {given!r}, which this torch cannot read: {error}. "
            f"It is a list such as {default_archs()!r}; unset, it is chosen for this machine."
        ) from error


def nvcc_threads() -> int:
    """For how many GPUs one nvcc compiles at a time: the cores that ninja's one file a core leaves idle."""
    jobs = os.environ.get("MAX_JOBS", "")
    cores = int(jobs) if jobs.isdigit() else os.cpu_count() or 1
    return max(1, cores // max(1, len(CUDA_SOURCES)))


def compile_flags() -> tuple[list[str], list[str]]:
    """Flags for the C++ compiler and for nvcc."""
    if switch("SANITIZE"):
        optimise = ["-O1", "-g1", "-UNDEBUG", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
        # Checks as calls, not inline: half the time to compile.
        optimise += ["-fsanitize=address,undefined", "--param=asan-instrumentation-with-call-threshold=0"]
    elif switch("DEBUG"):
        optimise = ["-O0", "-g", "-UNDEBUG"]
    else:
        optimise = ["-O3", "-g0"]  # Python's own -g would make the library many times larger
        # Where the loops of the products fall by chance made 5 % of the time of a layer (Zen 3).
        optimise += ["-falign-functions=64", "-falign-loops=64"]
    # -fopenmp here and not at the link: so the symbols come from the OpenMP runtime that torch has loaded,
    # whatever its file is called. A second runtime in the process would fight with it for the same cores.
    # No contraction: the kernels spell out every fused multiply-add, so that no two instantiations round
    # differently.
    arithmetic = ["-fno-math-errno", "-ffp-contract=off"]
    cxx = [*optimise, *arithmetic, "-fvisibility=hidden", "-fopenmp", "-Wall", "-Wextra", STABLE_ABI]
    # No -gencode: torch reads TORCH_CUDA_ARCH_LIST. No -lineinfo but in a debug build: it costs size.
    nvcc = ["-O0", "-g", "-lineinfo", "-DCUSTOMLSTM_DEBUG"] if switch("DEBUG") else ["-O3"]
    nvcc += ["-Xcompiler=-fvisibility=hidden,-Wall", STABLE_ABI]
    return cxx, nvcc


def kernel_extension(cuda: bool) -> Extension:
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    cxx, nvcc = compile_flags()
    if cuda:
        extension = CUDAExtension(MODULE, CXX_SOURCES + CUDA_SOURCES, py_limited_api=True)
        extension.define_macros = [("USE_CUDA", None)]  # opens the CUDA part of torch's stable ABI
        extension.libraries.remove("cudart")  # torch's own, for the reason given at -fopenmp
    else:
        extension = CppExtension(MODULE, CXX_SOURCES, py_limited_api=True)
    system = [f"-isystem{folder}" for folder in extension.include_dirs]  # torch's warnings are not ours
    nvcc.append(f"--threads={nvcc_threads()}")
    extension.extra_compile_args = {"cxx": cxx + system, "nvcc": nvcc}
    extension.extra_link_args = [flag for flag in cxx if flag.startswith("-fsanitize")]
    return extension


def build_manifest(version: str, no_cuda: str) -> dict[str, Any]:
    """What customlstm._binary checks and shows, but for the library's size and digest."""
    import torch
    from torch.utils.cpp_extension import get_cxx_compiler

    interface = re.search(r"#define CUSTOMLSTM_INTERFACE (\d+)", Path("csrc/ops/interface.h").read_text())
    assert interface is not None, "csrc/ops/interface.h does not define CUSTOMLSTM_INTERFACE"
    compiler = subprocess.check_output([*get_cxx_compiler().split(), "--version"], text=True)
    kernels = [Path(source).stem for source in sorted(glob.glob("csrc/cpu/kernels_*.cpp"))]
    present = {torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())}
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or " ".join(f"{a}.{b}" for a, b in sorted(present))
    return {
        "interface": int(interface[1]),
        "version": version,
        "torch": str(torch.__version__),
        "compiler": compiler.partition("\n")[0],
        "flags": " ".join(compile_flags()[0]),
        "cpu": [name.removeprefix("kernels_") for name in kernels],
        "cuda": None if no_cuda else {"toolkit": torch.version.cuda, "archs": archs},
        "why_no_cuda": no_cuda,
    }


class BuildPackage(build_py):
    """Adds to the Python files a copy of the headers, for customlstm.jit.headers to find.

    To a pure-Python installation also a note that it was asked for, in place of a build manifest. An editable
    installation is the clone itself, to which nothing is added: it has csrc, and may have a library.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib, "customlstm")
        shutil.rmtree(package / "include", ignore_errors=True)  # an earlier build may have had more
        for header in (path for pattern in CELL_SOURCES for path in sorted(Path("csrc").glob(pattern))):
            copy = package / "include" / header.relative_to("csrc")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(header, copy)
        if switch("CUSTOMLSTM_NO_EXTENSION"):
            note = json.dumps({"why_not_built": WHY_NOT_BUILT})
            (package / "_C.json").write_text(f"{note}\n")


class BuildKernels(build_ext):
    """Hands over to torch's BuildExtension once something is compiled: metadata and sdist need no torch."""

    def run(self) -> None:
        try:
            import torch
            from torch.utils.cpp_extension import BuildExtension
        except ImportError as error:
            raise SystemExit(
                f"Compiling customlstm needs torch ({error}). Install torch, then use pip install "
                "--no-build-isolation; or set CUSTOMLSTM_NO_EXTENSION=1 for a pure-Python installation."
            ) from error
        no_cuda = why_no_cuda()
        if no_cuda and CUDA_SOURCES and switch("FORCE_CUDA"):
            raise SystemExit(f"FORCE_CUDA is set, but the CUDA kernels cannot be built: {no_cuda}.")
        if not no_cuda and not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_archs())
        manifest = build_manifest(self.distribution.get_version(), no_cuda)
        print("customlstm:", json.dumps(manifest, indent=2), flush=True)

        # pip's ninja lies beside this Python, not on the PATH if the environment was not activated.
        os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"
        self.distribution.ext_modules = [kernel_extension(cuda=not no_cuda)]
        build = BuildExtension(self.distribution)
        for option in ("build_lib", "build_temp", "inplace", "editable_mode"):
            setattr(build, option, getattr(self, option))
        build.ensure_finalized()
        build.force = True  # ninja knows what is out of date; where there is none, everything is
        with naming_arch_list():
            build.run()
        libraries = [Path(build.build_lib, build.get_ext_filename(MODULE))]
        libraries += [Path(build.get_ext_fullpath(MODULE))] if build.inplace else []  # a copy of it
        content = libraries[0].read_bytes()
        manifest |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for library in libraries:
            library.with_name("_C.json").write_text(json.dumps(manifest, indent=2) + "\n")


def main() -> None:
    if switch("CUSTOMLSTM_NO_EXTENSION"):
        print("customlstm: CUSTOMLSTM_NO_EXTENSION is set, a pure-Python build", flush=True)
        setup(cmdclass={"build_py": BuildPackage})
    else:
        setup(
            ext_modules=[Extension(MODULE, CXX_SOURCES, py_limited_api=True)],
            cmdclass={"build_py": BuildPackage, "build_ext": BuildKernels},
            # torch defines Py_LIMITED_API as that of 3.10
            options={"bdist_wheel": {"py_limited_api": "cp310"}},
        )


if __name__ == "__main__":  # tests/native/cuda_check.py takes the flags from here
    main()
