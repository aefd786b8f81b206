"""What keeps a cell from being compiled for a GPU or registered there, and what is said of it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from support_cubins import TINY, use_sources

import customlstm
from customlstm import _binary, dispatch, gpu
from customlstm.cells import gallery
from customlstm.jit import build, cuda, headers, nvrtc
from customlstm.jit.build import BuildError, NoCompilerError

pytestmark = pytest.mark.usefixtures("root")
CUDA = torch.device("cuda", 0)


def compile_leaky(arch: str = "sm_90") -> customlstm.jit.build.Built:
    return customlstm.jit.compile_for_gpu(gallery.leaky, torch.float64, arch)


@pytest.fixture
def no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As if cuda.core and NVRTC were not installed; what is then said."""
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    build.forget_failures()
    yield (
        "cells are compiled for GPUs by NVRTC, through cuda.core, which cannot be used here: import of "
        f"cuda.bindings halted; None in sys.modules. To install both: {nvrtc.how_to_install()}"
    )
    build.forget_failures()


# --- compiling


def test_without_nvrtc(no_nvrtc: str) -> None:
    with pytest.raises(NoCompilerError) as caught:
        compile_leaky()
    assert str(caught.value) == no_nvrtc


def test_without_nvrtc_what_was_built_before_is_used(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    use_sources(monkeypatch)
    built = compile_leaky()
    request.getfixturevalue("no_nvrtc")
    found = compile_leaky()
    assert found.from_cache and found.path == built.path
    with pytest.raises(NoCompilerError):
        compile_leaky("sm_80")


def test_without_cuda_core_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is in the metadata, but it cannot be imported."""
    use_sources(monkeypatch)
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(NoCompilerError, match=r"which cannot be used here: import of cuda\.core halted"):
        compile_leaky()


@pytest.mark.usefixtures("no_nvrtc")
def test_nvrtc_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def version(name: str) -> str:
        searches.append(name)
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    for _ in range(2):
        with pytest.raises(NoCompilerError, match="No package metadata was found for cuda-core"):
            nvrtc.find_nvrtc()
    assert searches == ["cuda-core"]
    build.forget_failures()
    with pytest.raises(NoCompilerError, match="No package metadata was found for cuda-core"):
        nvrtc.find_nvrtc()
    assert len(searches) == 2


@pytest.mark.usefixtures("no_nvrtc")
def test_a_cuda_core_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.7.1")
    with pytest.raises(NoCompilerError) as caught:
        compile_leaky()
    assert str(caught.value) == (
        "cells are compiled for GPUs by NVRTC, through cuda.core, which cannot be used here: cuda.core is "
        f"0.7.1, and 1.0 or later is needed. To install both: {nvrtc.how_to_install()}"
    )


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        ({}, "module 'cuda.core' has no attribute 'Program'"),
        ({"Program": object}, "module 'cuda.core' has no attribute 'ProgramOptions'"),
        (
            {"Program": object, "ProgramOptions": lambda name: None},
            "<lambda>() got an unexpected keyword argument 'arch'",
        ),
    ],
)
def test_a_cuda_core_that_is_not_as_expected(
    contents: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_sources(monkeypatch)
    other = types.ModuleType("cuda.core")
    vars(other).update(contents)
    monkeypatch.setattr(nvrtc, "_cuda_core", lambda: other)
    with pytest.raises(NoCompilerError) as caught:
        compile_leaky()
    assert str(caught.value) == (
        "cells are compiled for GPUs by NVRTC, through cuda.core, which cannot be used here: cuda.core is "
        f"not as expected: {what}. To install both: {nvrtc.how_to_install()}"
    )


@pytest.mark.parametrize(
    ("version", "command"),
    [
        ("12.8", "pip install 'cuda-core>=1.0' 'cuda-bindings==12.*' nvidia-cuda-nvrtc-cu12"),
        ("13.0", "pip install 'cuda-core>=1.0' 'cuda-bindings==13.*' 'nvidia-cuda-nvrtc==13.*'"),
        (None, "pip install 'cuda-core>=1.0' 'cuda-bindings==13.*' 'nvidia-cuda-nvrtc==13.*'"),
    ],
)
def test_how_to_install(version: str | None, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    assert nvrtc.how_to_install() == command


def test_a_compile_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_sources(monkeypatch, cell__inl="constexpr int kNumber = 7;\nconstexpr int wrong = absent;\n")
    texts = []
    for _ in range(2):  # the second time it is remembered
        with pytest.raises(BuildError) as caught:
            compile_leaky()
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    (kept,) = (root / "cuda").glob("*.failed")
    first, *around, command, log, way_out = texts[0].splitlines()
    error = 'cell.inl(2): error: identifier "absent" is undefined'
    assert first == f"'leaky-float64-sm_90' does not compile for sm_90: {error}"
    assert f"    {error}" in around and "      constexpr int wrong = absent;" in around
    assert command.startswith(f"  command: cd {kept} && PYTHONPATH=")
    assert log == f"  log: {kept / 'build.log'}" and caught.value.log == kept / "build.log"
    assert way_out == (
        "  Mend it if the error is in code of yours; else install another NVRTC (this is "
        f"{nvrtc.find_nvrtc()}), or report this with the log"
    )
    assert error in (kept / "build.log").read_text()
    by_hand = subprocess.run(command.removeprefix("  command: "), shell=True, capture_output=True, text=True)
    assert by_hand.returncode == 1 and error in by_hand.stderr, by_hand.stderr


def test_the_command_of_a_build_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_sources(monkeypatch)
    built = compile_leaky()
    folder, elsewhere = built.path.parent, tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = sorted(folder.iterdir())
    done = subprocess.run(
        f"umask 002; {built.command}", shell=True, cwd=folder, capture_output=True, text=True,
        env=os.environ | {"TMPDIR": str(elsewhere)},
    )  # fmt: skip
    assert done.returncode == 0 and "customlstm_forward_step_1" in done.stdout, done.stderr
    ((_, image),) = nvrtc.read_images(built.path).items()
    cubin = Path(done.stdout.splitlines()[-1])
    assert cubin.read_bytes() == image
    assert cubin.parent.parent == elsewhere and cubin.name == "fma64_tiny.cubin"
    assert sorted(folder.iterdir()) == before and compile_leaky().from_cache


@pytest.mark.parametrize(
    ("arch", "error", "text"),
    [
        ("hopper", ValueError, "arch must be sm_ and a compute capability, 'sm_90' for 9.0, got 'hopper'"),
        ("sm_90a", ValueError, "arch must be sm_ and a compute capability, 'sm_90' for 9.0, got 'sm_90a'"),
        ("sm_75", ValueError, "arch is 'sm_75', expected 'sm_80' (Ampere) or later"),
        (90, TypeError, "arch must be a str such as 'sm_90', got 90"),
    ],
)
def test_no_architecture(arch: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        compile_leaky(arch)
    assert str(caught.value) == text


def test_a_gpu_that_is_newer_than_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(nvrtc.find_nvrtc(), version="12.0", architectures=(50, 80, 86, 90))
    monkeypatch.setattr(nvrtc, "find_nvrtc", lambda: old)
    with pytest.raises(BuildError) as caught:
        compile_leaky("sm_120")
    assert str(caught.value) == (
        f"'leaky-float64-sm_120' was not compiled: {old} does not know sm_120, but sm_80, sm_86, sm_90. A "
        f"newer one may, if the driver is not older: {nvrtc.how_to_install()} --upgrade"
    )


def test_what_cannot_be_a_cell() -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of torch\.float32, .*, got torch\.int32"):
        customlstm.jit.compile_for_gpu(gallery.leaky, torch.int32)

    @customlstm.cell
    def mixed(a, c):
        return torch.softmax(a, -1), c

    mixed.check()
    with pytest.raises(customlstm.jit.CellError, match="softmax"):
        customlstm.jit.compile_for_gpu(mixed, torch.float32)


def test_headers_that_change_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    use_sources(monkeypatch)
    seen = iter([{"types.h": "before"}, {"types.h": "after"}])
    monkeypatch.setattr(headers, "digests", lambda *args: next(seen))
    with pytest.raises(BuildError, match=r"changed while 'leaky-float64-sm_90' was compiled\. Call again"):
        compile_leaky()


# --- registering, with a library and a GPU that only answer


class Library:
    """In the place of the package's own; notes what is registered, and says why not."""

    def __init__(self, why_not: bytes | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.why_not = why_not
        self.customlstm_register_cuda_cell = self.Function(self)

    class Function:
        def __init__(self, library: Library) -> None:
            self.library = library

        def __call__(self, *arguments: Any) -> bytes | None:
            assert len(arguments) == len(self.argtypes)
            *plain, images, count = arguments
            pointers = ctypes.cast(images, ctypes.POINTER(ctypes.c_void_p))
            starts = [ctypes.string_at(pointers[k], 4) for k in range(count)]
            self.library.calls.append((*plain, starts))
            return self.library.why_not


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """As if there were one GPU of compute capability 9.0, and CUDA kernels."""
    if not _binary.status().loaded:
        pytest.skip("no compiled library; a damaged one fails elsewhere")
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda path: library)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    for question in ("why_not_built", "why_no_gpu"):
        monkeypatch.setattr(gpu, question, lambda: None)
    monkeypatch.setattr(gpu, "why_not_device", lambda index: None)
    monkeypatch.setattr(cuda, "_registered", set())
    build.forget_failures()
    yield library
    build.forget_failures()


def test_what_is_registered(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{math}_{part}.cu": "" for math in ("fma32", "tf32") for part in ("forward", "backward")}
    use_sources(monkeypatch, **{name.replace(".", "__"): text for name, text in files.items()})
    for _ in range(2):
        customlstm.jit.register(gallery.slstm, torch.float32, "cuda:1")
    name = gallery.slstm.encode()[0].encode()
    sizes = (4, 3, gallery.slstm.program.saved_count)
    images = [b"\x7fELF"] * 2
    # After the sizes: the arithmetic, the compute capability, the index of the device.
    assert library.calls == [(name, b"", *sizes, 0, 90, 1, images), (name, b"", *sizes, 4, 90, 1, images)]


@pytest.mark.parametrize(
    ("dtype", "math"), [(torch.float64, 1), (torch.bfloat16, 2), (torch.float16, 3)], ids=str
)
def test_arithmetic_by_its_number(
    dtype: torch.dtype, math: int, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own,) = cuda._MATHS[dtype]
    use_sources(monkeypatch, **{f"{own}_tiny__cu": ""})
    customlstm.jit.register(gallery.peephole, dtype, "cuda:0")
    ((_, parameters, *_, number, capability, index, images),) = library.calls
    assert (number, capability, index, len(images)) == (math, 90, 0, 1)
    assert parameters == b"peephole_i peephole_f peephole_o"


def test_an_older_nvrtc_compiles_for_an_earlier_gpu_of_the_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not for an integrated one, whose code others do not run."""
    old = replace(nvrtc.find_nvrtc(), architectures=(80, 87, 90, 100, 101, 120))
    monkeypatch.setattr(nvrtc, "find_nvrtc", lambda: old)
    given = (80, 86, 87, 89, 90, 101, 103, 110, 121)
    assert [cuda._archs_for(capability) for capability in given] == [
        ["sm_80"], ["sm_80"], ["sm_87"], ["sm_80"], ["sm_90"], ["sm_101"], ["sm_100"], ["sm_110"], ["sm_120"],
    ]  # fmt: skip


@pytest.mark.parametrize("missing", ["NVRTC", "permission"])
def test_where_nothing_compiles_the_cache_may_hold_an_earlier_gpu_of_the_generation(
    missing: str, library: Library, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 9))
    use_sources(monkeypatch)
    compile_leaky("sm_87")  # integrated: of no use to others
    with monkeypatch.context() as switched_off:
        switched_off.setenv("CUSTOMLSTM_JIT", "0")
        with pytest.raises(BuildError, match=r"^'leaky-float64-sm_89' needs to be built, but CUSTOMLSTM_JIT"):
            customlstm.jit.register(gallery.leaky, torch.float64, CUDA)
    compile_leaky("sm_86")
    build.forget_failures()
    if missing == "NVRTC":
        request.getfixturevalue("no_nvrtc")
    else:
        monkeypatch.setenv("CUSTOMLSTM_JIT", "0")
    customlstm.jit.register(gallery.leaky, torch.float64, CUDA)
    ((*_, capability, _, images),) = library.calls
    assert (capability, images) == (89, [b"\x7fELF"])


@pytest.mark.parametrize(
    ("driver", "advice"),
    [
        (13020, ""),
        (
            12080,
            ". It was compiled by NVRTC {version}, and the driver is for CUDA 12.8: install a newer "
            "driver, or an NVRTC of major version 12",
        ),
    ],
)
def test_a_driver_that_refuses(
    driver: int, advice: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_sources(monkeypatch)
    library.why_not = b"cudaLibraryLoadData: cudaErrorInvalidKernelImage, device kernel image is invalid"
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    with pytest.raises(BuildError) as caught:
        customlstm.jit.register(gallery.leaky, torch.float64, CUDA)
    assert str(caught.value) == (
        f"the kernel of 'leaky' was built, but is refused: {library.why_not.decode()}"
        f"{advice.format(version=nvrtc.find_nvrtc().version)}"
    )
    name, _ = gallery.leaky.encode()
    reason = dispatch._why_not_written(CUDA, torch.float64, name)
    assert reason == f"the kernel of the cell {gallery.leaky} cannot be built: {caught.value}"
    library.why_not = None
    assert dispatch._why_not_written(CUDA, torch.float64, name) == reason
    build.forget_failures()
    assert dispatch._why_not_written(CUDA, torch.float64, name) is None


@pytest.mark.usefixtures("library")
def test_what_failed_is_not_tried_again_at_every_call(
    no_nvrtc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def tiny(*arguments: object) -> dict[str, str]:
        attempts.append(arguments)
        return dict(TINY)

    def texts() -> list[str]:
        found = []
        for _ in range(2):
            with pytest.raises(BuildError) as caught:
                customlstm.jit.register(gallery.leaky, torch.float64, CUDA)
            found.append(str(caught.value))
        return found

    monkeypatch.setattr(cuda, "sources", tiny)
    assert texts() == [no_nvrtc] * 2 and len(attempts) == 1
    monkeypatch.setenv("CUSTOMLSTM_JIT", "0")  # another question, with an answer of its own
    first, second = texts()
    assert first == second and "CUSTOMLSTM_JIT is 0" in first and len(attempts) == 2
    build.forget_failures()
    texts()
    assert len(attempts) == 3


def test_headers_that_change_are_no_lasting_failure(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_sources(monkeypatch)
    seen = iter([{"types.h": "before"}, *[{"types.h": "after"}] * 3])
    monkeypatch.setattr(headers, "digests", lambda *args: next(seen))
    with pytest.raises(BuildError, match=r"changed while 'leaky-float64-sm_90' was compiled\. Call again"):
        customlstm.jit.register(gallery.leaky, torch.float64, CUDA)
    customlstm.jit.register(gallery.leaky, torch.float64, CUDA)
    assert len(library.calls) == 1


@pytest.mark.usefixtures("library")
def test_a_library_that_takes_no_kernels_is_told_before_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_build = {"toolkit": "12.6", "archs": "9.0"}
    old = replace(_binary.status(), build=_binary.status().build | {"cuda": cuda_build})
    monkeypatch.setattr(_binary, "status", lambda: old)
    monkeypatch.setattr(cuda, "sources", lambda *arguments: pytest.fail("it compiles"))
    with pytest.raises(BuildError) as caught:
        customlstm.jit.register(gallery.leaky, torch.float64, CUDA)
    assert str(caught.value) == (
        "the kernel of 'leaky' is not built: customlstm was built with CUDA 12.6, whose runtime loads no "
        "libraries; build it with CUDA 12.8 or later, and a torch that was"
    )


@pytest.mark.parametrize("of_cuda", [None, {}, {"toolkit": None}, {"toolkit": "12.8"}, {"toolkit": "13.0"}])
def test_libraries_that_take_kernels(of_cuda: dict[str, str | None] | None) -> None:
    assert cuda._why_too_old({"cuda": of_cuda}) is None


@pytest.mark.usefixtures("library")
def test_without_nvrtc_a_call_has_a_reason(no_nvrtc: str) -> None:
    name, _ = gallery.janet.encode()
    reason = dispatch._why_not_written(CUDA, torch.float32, name)
    assert reason == f"the kernel of the cell {gallery.janet} cannot be built: {no_nvrtc}"


def test_devices_that_are_none(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError) as caught:
        customlstm.jit.register(gallery.leaky, torch.float32, "meta")
    assert str(caught.value) == "device must be the CPU or a CUDA device, got meta"
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "it is lent out")
    with pytest.raises(RuntimeError) as caught:
        customlstm.jit.register(gallery.leaky, torch.float32, CUDA)
    assert str(caught.value) == f"the cell {gallery.leaky} cannot be registered for cuda:0: it is lent out"
