"""CUDA C++ to cubins by NVRTC, through cuda.core: without nvcc, a C++ compiler, CUDA headers or a GPU.

cuda.core and NVRTC are optional (``customlstm[cuda]``), and imported when something is to be compiled. NVRTC
compiles in the process; it lets other threads run meanwhile, so programs are compiled side by side.
"""

from __future__ import annotations

import functools
import io
import os
import re
import shlex
import sys
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile, ZipInfo

from . import cache
from .build_error import BuildError, NoCompilerError
from .compiling import LOG, around_first_error, first_error, jobs
from .locks import within_process

#: All that is not NVRTC's default. The other defaults are those of nvcc, which compiles the package's own
#: kernels: contraction to fused multiply-adds, denormals kept, exact division and square root. -v: registers
#: and spills, for the log.
FLAGS = {"std": "c++17", "ptxas_options": "-v"}

#: Compute capability of the oldest GPU that there are kernels for.
OLDEST = 80

#: Major version of the first cuda.core that has its classes where :func:`compile_file` looks for them: those
#: of 0.x are in cuda.core.experimental.
OLDEST_CORE = 1

_ARCHITECTURE = re.compile(r"sm_(\d{2,3})")


@dataclass(frozen=True)
class Nvrtc:
    """The NVRTC that this process has loaded.

    Attributes:
        version: "13.0", for example.
        core: the version of cuda.core.
        architectures: compute capabilities that it compiles for, 90 for 9.0.
        size: of the library, in bytes: an update may leave the version as it is. Not its time of change,
            which is another one on each machine: a cache that is moved to it would be of no use there.
    """

    version: str
    core: str
    architectures: tuple[int, ...]
    size: int

    def __str__(self) -> str:
        return f"NVRTC {self.version}, by cuda.core {self.core}"

    def identity(self) -> dict[str, object]:
        """All that tells it from others, but for where it lies; JSON."""
        return {"nvrtc": self.version, "cuda.core": self.core, "size": self.size}


@dataclass(frozen=True)
class Images:
    """Cubins to be made of CUDA sources, for one architecture.

    Attributes:
        subject: what they are, for errors.
        file: the archive of them all, a zip file that is not compressed: ``name.cu`` becomes ``name.cubin``.
        sources: file name -> text. Those that end in .cu are compiled, others are for them to include.
        includes: a folder to include from.
        arch: "sm_90", for example.
    """

    subject: str
    file: str
    sources: Mapping[str, str]
    includes: Path
    arch: str


def capability_of(arch: str) -> int:
    """90 for "sm_90".

    Raises:
        TypeError, ValueError: ``arch`` is no architecture that there are kernels for.
    """
    if not isinstance(arch, str):
        raise TypeError(f"arch must be a str such as 'sm_90', got {arch!r}")
    found = _ARCHITECTURE.fullmatch(arch)
    if found is None:
        raise ValueError(f"arch must be sm_ and a compute capability, 'sm_90' for 9.0, got {arch!r}")
    capability = int(found[1])
    if capability < OLDEST:
        raise ValueError(f"arch is {arch!r}, expected 'sm_80' (Ampere) or later")
    return capability


def how_to_install() -> str:
    """The command that brings cuda.core and an NVRTC for the CUDA of this torch: a driver loads no cubin of a
    later major version."""
    import torch

    major = int((torch.version.cuda or "13").partition(".")[0])
    library = f"'nvidia-cuda-nvrtc=={major}.*'" if major >= 13 else f"nvidia-cuda-nvrtc-cu{major}"
    return f"pip install 'cuda-core>={OLDEST_CORE}.0' 'cuda-bindings=={major}.*' {library}"


def find_nvrtc() -> Nvrtc:
    """The NVRTC of this process.

    Of cuda.core only the version is looked up: its import takes half a second, and a cell that the cache
    holds does not need it.

    Raises:
        NoCompilerError: cuda.core or NVRTC is not there, is too old, or cannot be loaded. That is remembered
            until :func:`customlstm.jit.cache.forget_failures`: a search costs milliseconds, and calls ask.
    """
    found = _search()
    if isinstance(found, NoCompilerError):
        raise found.again() from found.__cause__
    return found


@functools.cache
def _search() -> Nvrtc | NoCompilerError:
    try:
        core = metadata.version("cuda-core")
        if int(core.partition(".")[0]) < OLDEST_CORE:
            return _too_old(core)
        from cuda.bindings import nvrtc
        from cuda.pathfinder import load_nvidia_dynamic_lib

        library = load_nvidia_dynamic_lib("nvrtc").abs_path
        _, major, minor = nvrtc.nvrtcVersion()
        _, architectures = nvrtc.nvrtcGetSupportedArchs()
        size = os.stat(library).st_size
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        missing = _not_there(str(error).partition("\n")[0])
        missing.__cause__ = error
        return missing
    return Nvrtc(f"{major}.{minor}", core, tuple(architectures), size)


cache.forget_too(_search.cache_clear)


def _not_there(what: str) -> NoCompilerError:
    return NoCompilerError(
        f"cells are compiled for GPUs by NVRTC, through cuda.core, which cannot be used here: {what}. "
        f"To install both: {how_to_install()}"
    )


def _too_old(core: str) -> NoCompilerError:
    return _not_there(f"cuda.core is {core}, and {OLDEST_CORE}.0 or later is needed")


def _cuda_core() -> ModuleType:
    try:
        # While one thread imports it for the first time another may find it without its contents.
        with within_process("import of cuda.core"):
            import cuda.core
    except ImportError as error:
        raise _not_there(str(error).partition("\n")[0]) from error
    return cuda.core


def compile_images(images: Images, folder: Path, kept: Path) -> str:
    """Compiles side by side in ``folder``, where it leaves the archive, the sources and the log.

    Args:
        kept: where the folder will be found if this fails, for the text of the error.

    Returns:
        The command that compiles the same, for a shell in the folder of the sources.

    Raises:
        BuildError: with NVRTC's first error, the command, and where the whole log is; or this NVRTC does not
            know the architecture.
        OSError: ``folder`` cannot be written, or is full.
    """
    nvrtc = find_nvrtc()
    if capability_of(images.arch) not in nvrtc.architectures:
        known = ", ".join(f"sm_{each}" for each in nvrtc.architectures if each >= OLDEST)
        raise BuildError(
            f"{images.subject} was not compiled: {nvrtc} does not know {images.arch}, but {known}. A newer "
            f"one may, if the driver is not older: {how_to_install()} --upgrade"
        )
    for name, text in images.sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    units = [name for name in images.sources if name.endswith(".cu")]
    _cuda_core()
    with ThreadPoolExecutor(jobs(), "customlstm-nvrtc") as pool:
        tasks = {
            name: pool.submit(compile_file, folder / name, images.includes, images.arch) for name in units
        }
        try:
            wait(tasks.values(), return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)  # those under way are waited for: NVRTC cannot be interrupted
    ended = {name: task for name, task in tasks.items() if not task.cancelled()}
    with (folder / LOG).open("w") as log:
        for name, task in ended.items():
            said = str(task.exception()) if task.exception() else task.result()[1]
            log.write(f"$ {_by_hand(images, name)}\n{_without(folder, said)}\n")
    for name, task in ended.items():
        error = task.exception()
        if isinstance(error, CompileFailure):
            raise _error(images, name, _without(folder, str(error)), kept, nvrtc)
        if error is not None:
            raise error
    with ZipFile(folder / images.file, "w") as archive:
        for name, task in ended.items():
            archive.writestr(ZipInfo(f"{Path(name).stem}.cubin"), task.result()[0])
    return _by_hand(images, *units)


class CompileFailure(Exception):
    """NVRTC's own text."""


def compile_file(source: Path, includes: Path, arch: str) -> tuple[bytes, str]:
    """One source to a cubin, and what the compiler said.

    Raises:
        CompileFailure: it does not compile.
        NoCompilerError: cuda.core cannot be imported, or is not like the one that this was written for.
    """
    core = _cuda_core()
    # With its folder: that of a bare name is the current one, where files would be taken for our headers.
    name, include_path = str(source), os.path.abspath(includes)
    try:
        make_program = core.Program
        options = core.ProgramOptions(name=name, arch=arch, include_path=include_path, **FLAGS)
    except (AttributeError, TypeError) as error:
        raise _not_there(f"cuda.core is not as expected: {error}") from error
    text, log = source.read_text(encoding="utf-8"), io.StringIO()
    try:
        compiled = make_program(text, "c++", options).compile("cubin", logs=log)
    except Exception as error:  # cuda.core exports no name of what it raises
        raise CompileFailure(str(error)) from error
    return bytes(compiled.code), log.getvalue()


def read_images(archive: Path) -> dict[str, bytes]:
    """The cubins of an archive, by their names without suffix."""
    with ZipFile(archive) as images:
        return {Path(name).stem: images.read(name) for name in images.namelist()}


def _by_hand(images: Images, *names: str) -> str:
    package = Path(__file__).resolve().parents[2]
    program = [sys.executable, "-m", "customlstm.jit.compile_by_hand"]
    command = [*program, images.arch, os.path.abspath(images.includes), *names]
    return f"PYTHONPATH={shlex.quote(str(package))} {shlex.join(command)}"


def _without(folder: Path, text: str) -> str:
    # NVRTC ends its text with a zero byte, with which grep takes the log for a binary file.
    return text.replace(f"{folder}{os.sep}", "").replace("\0", "").rstrip()


def _error(images: Images, name: str, text: str, kept: Path, nvrtc: Nvrtc) -> BuildError:
    first = first_error(text) or text.partition("\n")[0]
    around = "".join(f"\n    {line}" for line in around_first_error(text))
    log = kept / LOG
    return BuildError(
        f"{images.subject} does not compile for {images.arch}: {first}{around}\n"
        f"  command: cd {shlex.quote(str(kept))} && {_by_hand(images, name)}\n  log: {log}\n"
        f"  Mend it if the error is in code of yours; else install another NVRTC (this is {nvrtc}), or "
        "report this with the log",
        log,
    )
