"""tests/native/cuda_check.py: what it reads in nvcc's reports, and that it fails when it should.

A stand-in for nvcc prints prepared reports; with an nvcc at hand a planted fault goes through the real one.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

GOOD = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_80'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 416 bytes cmem[0]
ptxas info    : Compile time = 97.200 ms
"""
SPILLS = """\
ptxas info    : Compiling entry function '_Z6spillsPf' for 'sm_80'
ptxas info    : Function properties for _Z6spillsPf
    16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 416 bytes cmem[0]
"""
CALLS = """\
ptxas info    : Compiling entry function '_Z5callsPf' for 'sm_90a'
ptxas info    : Function properties for _Z5callsPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 32 bytes cumulative stack size
ptxas info    : Function properties for _Z6calleev
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_check", ROOT / "tests" / "native" / "cuda_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def with_nvcc(check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a toolkit of which nvcc prints this report, and returns the file that notes its compilations."""
    monkeypatch.setattr(check, "BUILD", tmp_path / "build")
    monkeypatch.chdir(ROOT)

    def make(report: str, code: int = 0) -> Path:
        (tmp_path / "report").write_text(report)
        nvcc, log = tmp_path / "bin" / "nvcc", tmp_path / "log"
        nvcc.parent.mkdir(exist_ok=True)
        log.write_text("")
        nvcc.write_text(
            f'#!/bin/sh\ncase "$1" in --version) echo 13.0; exit;; esac\n'
            f'echo "$@" >> {log}; cat {tmp_path}/report >&2; exit {code}\n'
        )
        nvcc.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        return log

    return make


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "kernels_test.cu"
    file.write_text("// one\n")
    return file


def test_reports_are_read(check: ModuleType) -> None:
    good, spills = check.parse("nothing of interest\n" + GOOD + SPILLS, "a.cu", "80")
    assert (good.name, good.registers, good.shared, good.local_memory) == ("_Z4goodPf", 40, 1024, False)
    assert (spills.registers, spills.stack, spills.spill_stores, spills.spill_loads) == (255, 16, 20, 24)
    assert (spills.file, spills.arch) == ("a.cu", "80")


def test_functions_that_were_not_inlined_count(check: ModuleType) -> None:
    calls, callee = check.parse(CALLS)
    assert calls.stack == 32 and calls.registers == 12
    assert callee.stack == 32 and callee.registers == 0
    assert len(check.complaints([calls, callee])) == 2


def test_only_a_stated_reason_excuses_local_memory(check: ModuleType) -> None:
    kernels = check.parse(GOOD + SPILLS, "a.cu", "80")
    (line,) = check.complaints(kernels)
    assert "_Z6spillsPf" in line and "a.cu" in line and "sm_80" in line and "16 bytes of stack" in line
    assert check.complaints(kernels, {"spills": "a test"}) == []


def test_table(check: ModuleType) -> None:
    head, rule, good, spills = check.table(check.parse(GOOD + SPILLS, "a.cu", "80")).splitlines()
    assert head.split() == ["kernel", "file", "arch", "registers", "shared", "stack", "spills"]
    assert set(rule) == {"-"}
    assert good.split() == ["_Z4goodPf", "a.cu", "sm_80", "40", "1024", "0", "0"]
    assert spills.split()[-4:] == ["255", "0", "16", "20+24"]


@pytest.mark.parametrize(
    "demangled, short",
    [
        (
            "void customlstm::cuda::launching::entry<customlstm::cuda::ForwardKernel<customlstm::cuda::Math<"
            "(customlstm::cuda::MathKind)2>, customlstm::cuda::StandardCell, (int)4> >(customlstm::cuda::"
            "ForwardKernel<customlstm::cuda::Math<(customlstm::cuda::MathKind)2>, (int)4>::Params)",
            "ForwardKernel<Math<2>, StandardCell, 4>",
        ),
        ("customlstm::cuda::(anonymous namespace)::probe()", "probe"),
        ("void f<float>(float*)", "f<float>"),
        ("_Z3abc", "_Z3abc"),
    ],
)
def test_short_names(check: ModuleType, demangled: str, short: str) -> None:
    assert check.shorten(demangled) == short


def test_passes(check: ModuleType, with_nvcc, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = with_nvcc(GOOD)
    assert check.main(["--archs", "80,90a", str(source)]) == 0
    said = capsys.readouterr().out
    assert "[2/2] kernels_test.cu" in said and "2 kernels compiled" in said and "good" in said
    compiled = log.read_text()
    assert "code=sm_80" in compiled and "code=sm_90a" in compiled
    assert "-Werror all-warnings" in compiled and "-O3" in compiled


def test_compiles_again_only_what_changed(check: ModuleType, with_nvcc, source: Path) -> None:
    log = with_nvcc(GOOD)
    words = ["--archs", "80", str(source)]
    assert check.main(words) == check.main(words) == 0
    assert len(log.read_text().splitlines()) == 1
    (source.parent / "header.h").write_text("// a header beside it\n")
    assert check.main(words) == 0
    source.write_text("// two\n")
    assert check.main(words) == 0
    assert len(log.read_text().splitlines()) == 3


def test_fails_on_a_spill_each_time(
    check: ModuleType, with_nvcc, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_nvcc(GOOD + SPILLS)
    for _ in range(2):  # the second result comes from the first
        assert check.main(["--archs", "80", str(source)]) == 1
        said = capsys.readouterr().out
        assert "FAILED" in said and "spills" in said.partition("FAILED")[2]


def test_fails_on_what_does_not_compile(
    check: ModuleType, with_nvcc, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = with_nvcc("kernels_test.cu(1): error: wrong\n", code=2)
    for _ in range(2):  # a failure is not kept
        assert check.main(["--archs", "80", str(source)]) == 1
        assert "error: wrong" in capsys.readouterr().out
    assert len(log.read_text().splitlines()) == 2


def test_without_nvcc(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(check, "USUAL_PLACE", str(tmp_path))
    assert check.main([]) == 2
    assert "Install a CUDA toolkit" in capsys.readouterr().out


def test_a_wrong_cuda_home_is_refused(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by setup.py, though there may be an nvcc on the PATH."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert check.main([]) == 2
    assert f"CUDA_HOME is {tmp_path}, which has no bin/nvcc" in capsys.readouterr().out


def test_a_python_that_does_not_exist(
    check: ModuleType, with_nvcc, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = with_nvcc(GOOD)
    assert check.main(["--python", "/nonexistent", str(source)]) == 2
    assert capsys.readouterr().out == "cuda-check: --python /nonexistent: there is no such program.\n"
    assert log.read_text() == ""


def test_jobs_follow_max_jobs(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "3")
    assert check.jobs_here() == 3
    for text in ("", "many"):
        monkeypatch.setenv("MAX_JOBS", text)
        assert check.jobs_here() >= 1


@pytest.mark.skipif(shutil.which("c++") is None or shutil.which("nm") is None, reason="no compiler")
def test_a_symbol_that_nobody_has_is_named(check: ModuleType, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source, library = tmp_path / "a.cpp", tmp_path / "a.so"
    source.write_text("void nobody_has_this(); void f() { nobody_has_this(); }\n")
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    with pytest.raises(check.Failed, match="nobody_has_this"):
        check.check_symbols(library, {"folder": torch.__path__[0]})


PLANTED = """
__global__ void planted(float* data, const int* where) {
  float local[64];
  for (int i = 0; i < 64; ++i) local[i] = data[i];
  for (int i = 0; i < 64; ++i) local[where[i] % 64] += 1.0f;
  for (int i = 0; i < 64; ++i) data[i] = local[where[i + 64] % 64];
}
__global__ void innocent(float* data) { data[threadIdx.x] += 1.0f; }
"""


@pytest.mark.slow
def test_a_planted_local_array_fails(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if check.find_nvcc() is None:
        pytest.skip("no nvcc")
    monkeypatch.setattr(check, "BUILD", tmp_path / "build")
    monkeypatch.chdir(ROOT)
    source = tmp_path / "planted.cu"
    source.write_text(PLANTED)
    assert check.main(["--archs", "80", str(source)]) == 1
    verdict = capsys.readouterr().out.partition("FAILED")[2]
    assert "planted" in verdict and "256 bytes of stack" in verdict and "innocent" not in verdict
