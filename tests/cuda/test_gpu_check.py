"""``make gpu-check`` without a GPU: how it runs and records its parts, and what they will run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import support_gpu
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support_ops import Case

from benchmarks import gpu_check, grid, parts, runs, small_shapes
from customlstm import _binary, gpu
from customlstm.launch_plan import A100, B200, H200, RTX_3090, RTX_5090, DeviceLimits, Tiling, plan

PYTHON, ROOT = sys.executable, gpu_check.ROOT


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> parts.Check:
    monkeypatch.setattr(parts, "GRACE", 2.0)
    return parts.Check(tmp_path / "results", "now", {"device": "none"})


def test_a_passed_part_keeps_the_end_of_its_log(
    check: parts.Check, capfd: pytest.CaptureFixture[str]
) -> None:
    assert check.run("A part", [PYTHON, "-c", "for i in range(500): print(i)"], 60)
    assert "\n0\n" in capfd.readouterr().out
    log = (check.results / "now-a-part.log").read_text().split()
    assert log == [str(i) for i in range(300, 500)]
    assert check.report() == 0


def test_a_failed_part_is_recorded_at_once(check: parts.Check) -> None:
    assert not check.run("a", [PYTHON, "-c", "import sys; print('why'); sys.exit(3)"], 60)
    assert not check.run("b", ["/no/such/program"], 60)
    written = json.loads((check.results / "now-outcomes.json").read_text())
    assert written["machine"] == {"device": "none"}
    (a, b) = written["parts"]
    assert (a["state"], a["remark"], b["state"]) == ("failed", "exit code 3", "failed")
    assert (check.results / "now-a.log").read_text() == "why\n"
    assert check.report() == 1


def test_a_part_over_its_limit_leaves_no_process(check: parts.Check, tmp_path: Path) -> None:
    """Its children are gone as well, and what it printed before is in the log, unfinished lines too."""
    pid = tmp_path / "pid"
    program = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        f"child = subprocess.Popen(['sleep', '600']); open({str(pid)!r}, 'w').write(str(child.pid));"
        "sys.stdout.write('begun ...'); time.sleep(600)"
    )
    begin = time.monotonic()
    assert not check.run("hangs", [PYTHON, "-c", program], 6)
    assert time.monotonic() - begin < 30
    assert check.outcomes[-1].state == "cut short"
    assert (check.results / "now-hangs.log").read_text() == "begun ..."
    stat = Path(f"/proc/{pid.read_text()}/stat")
    # Killed is not yet gone: on a busy machine the process gets its turn to die later.
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _is_alive(stat):
        time.sleep(0.1)
    assert not _is_alive(stat)


def _is_alive(stat: Path) -> bool:
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_part_starts_without_time(check: parts.Check) -> None:
    check.start -= parts.BUDGET
    assert not check.run("late", [PYTHON, "-c", ""], 60)
    assert check.outcomes[-1].state == "not run"


@pytest.mark.parametrize("capability", [80, 86, 90, 120])
def test_clusters_are_left_out_before_hopper(
    check: parts.Check,
    capability: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And only they; that is no failure, but a check of which all is left out is one."""
    monkeypatch.setattr(parts, "supervise", passes)
    monkeypatch.setattr(parts, "last_line", lambda log: "3 passed")
    gpu_check.run_tests(check, capability)
    left_out = {o.part: o.remark for o in check.outcomes if o.state == "left out"}
    remark = f"needs compute capability 9.0, this is {capability / 10}"
    assert left_out == ({"tests, cluster": remark} if capability < 90 else {})
    assert len(check.outcomes) == len(gpu_check.GPU_TESTS) and check.report() == 0
    assert ("left out" in capsys.readouterr().out) == (capability < 90)
    check.outcomes = [o for o in check.outcomes if o.state == "left out"]
    assert check.report() == 1


@pytest.mark.parametrize(("spent", "limit"), [(0, 300), (300, 176), (500, 120)])
def test_what_cells_of_your_own_leave_for_the_benchmarks(
    check: parts.Check, spent: float, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute; :meth:`parts.Check.run` sees to it that there is as much time at all."""
    limits = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(check, "run", lambda part, command, limit, **environment: limits.append(limit))
    monkeypatch.setattr(time, "monotonic", lambda: check.start + spent)
    gpu_check.run_tests_of_written_cells(check)
    assert limits == [limit]


def passes(command: object, limit: float, log: Path, environment: object) -> tuple[str, str]:
    log.write_bytes(b"")
    return "passed", ""


@pytest.mark.parametrize(
    ("body", "state", "remark"),
    [
        ("def test_a(): pass\n@pytest.mark.skip\ndef test_b(): pass", "passed", "1 passed, 1 skipped"),
        ("@pytest.mark.skip\ndef test_a(): pass", "failed", "1 skipped"),
        ("def test_a(): assert False", "failed", "exit code 1, 1 failed"),
    ],
)
def test_skipped_tests_are_counted(
    check: parts.Check, tmp_path: Path, body: str, state: str, remark: str
) -> None:
    (tmp_path / "test_it.py").write_text(f"import pytest\n{body}\n")
    check.run("tests", [*gpu_check.PYTEST, "-p", "no:cacheprovider", str(tmp_path / "test_it.py")], 60)
    assert (check.outcomes[-1].state, check.outcomes[-1].remark) == (state, remark)


def test_results_of_benchmarks(
    check: parts.Check, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is shown is of this call, however much of it ran."""
    times = {name: {"median_ms": ms, "min_ms": ms} for name, ms in (("a", 2.0), ("b", 1.0))}
    info = {
        "suite": "layer", "ours": "a", "setting": vars(grid.Setting(*grid.TINY)), "mode": "inference",
        "threads": 1, "times": times,
        "ratios": [{"title": "b / a", "of": "b", "to": "a", "least": 1.0}],
    }  # fmt: skip

    def one_run(part: str, command: list[str], limit: float, **environment: str) -> bool:
        file = Path(command[command.index("--keep") + 1])
        assert not file.exists()
        runs.add(file, runs.Run(info, runs.Source({}, {})))
        return False

    for replaced, shown in (
        (one_run, "(3, 2, 5, 8): b / a 0.50 (0.50)"),
        (lambda *words, **environment: False, "no benchmark ran"),
    ):
        monkeypatch.setattr(check, "run", replaced)
        gpu_check.run_benchmarks(check)
        assert shown in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_tests_fail_where_a_gpu_is_required() -> None:
    files = ["tests/cuda/test_gpu.py", "tests/cuda/test_gpu_behaviour.py"]
    command = [PYTHON, "-m", "pytest", "-q", *files, "-p", "no:cacheprovider"]
    environment = {**os.environ, "CUSTOMLSTM_REQUIRE_GPU": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "CUSTOMLSTM_REQUIRE_GPU is set, but torch can use no GPU" in done.stdout
    done = subprocess.run(
        [PYTHON, "-c", gpu_check.KERNELS_ARE_LOADED], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "no CUDA kernels: " in done.stderr


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if there were a GPU and every tool; results go to the temporary folder."""
    for name in ("nvcc", "ninja", "compute-sanitizer"):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    for name in ("CUDA_HOME", "CUDA_PATH", "CUSTOMLSTM_BENCHMARK_DTYPES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda: {"date": "today", "device": "A GPU"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu_check, "run_all", lambda check, capability: check.run("part", ["true"], 60))


def test_without_torch(tmp_path: Path) -> None:
    """A Python without it, and all else: here one that sees nothing of its environment."""
    command = [PYTHON, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r});"
               "from benchmarks import gpu_check; sys.exit(gpu_check.main())"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "has no torch (" in done.stderr
    assert done.stderr.count("\n") == 1 and "make gpu-check VENV=" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main() == 2
    said = capsys.readouterr().err
    assert str(gpu.why_no_gpu()) in said and "make cuda-check" in said and said.count("\n") == 1


@pytest.mark.usefixtures("with_gpu")
def test_all_that_is_missing_is_one_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name, path=None: None)
    here = importlib.util.find_spec
    gone = "pytest_benchmark"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == gone else here(name))
    monkeypatch.setattr(gpu_check.metadata, "version", lambda name: "68.1.2")
    assert gpu_check.main() == 2
    said = capsys.readouterr().err
    for name in ("pytest-benchmark (", "setuptools (", "ninja (", "nvcc (", "compute-sanitizer is not"):
        assert name in said
    assert said.count("\n") == 1 and "pip install pytest)" not in said
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("CUSTOMLSTM_BENCHMARK_DTYPES", "float8", "holds 'float8', expected some of bfloat16"),
        ("RESULTS_DIR", "/dev/null/results", "RESULTS_DIR, /dev/null/results, cannot be written"),
        ("CUDA_HOME", "/nonexistent", "CUDA_HOME is /nonexistent, which has no bin/nvcc"),
    ],
)
def test_wrong_settings_are_one_sentence(
    variable: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    assert gpu_check.main() == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


@pytest.mark.usefixtures("with_gpu")
def test_goes_on_without_compute_sanitizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bin" / "compute-sanitizer").unlink()
    (tmp_path / "bin" / "true").symlink_to("/bin/true")
    assert gpu_check.main() == 0
    assert "compute-sanitizer is not on the PATH" in capsys.readouterr().err
    assert (tmp_path / "results" / "today-a-gpu-outcomes.json").is_file()


def test_dtypes_of_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUSTOMLSTM_BENCHMARK_DTYPES", raising=False)
    everything = grid.settings("cuda")
    assert list(dict.fromkeys(s.dtype for s in everything)) == list(grid.DTYPES)
    assert sum(s.cells for s in everything) == 8 * len(grid.DTYPES)
    assert all(s.cells for s in grid.settings("cpu"))
    monkeypatch.setenv("CUSTOMLSTM_BENCHMARK_DTYPES", "float32, tf32")
    assert {s.dtype for s in grid.settings("cuda")} == {"float32", "tf32"}
    monkeypatch.setenv("CUSTOMLSTM_BENCHMARK_DTYPES", "float8")
    with pytest.raises(ValueError, match="'float8', expected some of bfloat16"):
        grid.settings("cuda")


@pytest.mark.skipif(not _binary.status().loaded, reason=_binary.status().reason)
def test_cases_of_the_gpu_tests() -> None:
    """What the GPU tests build, on the CPU: a layer that fills any GPU, few sequences among many."""
    for limits in (A100, RTX_3090, H200, B200, RTX_5090):
        assert support_gpu.case_that_fills(limits, 40).hidden <= 2048
    for dtype in (torch.float64, torch.bfloat16):
        case = Case(6, 4, 3, 16, bidirectional=True, dtype=dtype)
        support_gpu.compare_slice(case, 100, torch.device("cpu"))


@pytest.mark.skipif(not _binary.status().loaded, reason=_binary.status().reason)
def test_small_shapes() -> None:
    """All of them run on the CPU, and on an H200 their plans hold what they are there for."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for layer in [*small_shapes.SMALL, *small_shapes.MANY_COLUMNS]:
            small_shapes.run(layer, "float32", "cpu")
    finally:
        matmul.fp32_precision = before
    cases = list(small_shapes.runs(90))
    assert len(cases) <= 64 and all(v == "step" for _, math, v in cases if math == "float64")
    assert {variant for _, _, variant in small_shapes.runs(80)} == {"step", "grid"}
    tiles, chunks = set(), set()
    for layer, math, variant in cases:
        for tiling in tilings(H200, layer, math, variant):
            assert tiling is not None, (layer, math, variant)
            tiles |= {variant} if tiling.column_tiles > 1 else set()
            chunks |= {variant} if tiling.columns > 8 * tiling.column_tiles else set()
    assert {"step", "grid"} <= tiles and "grid" in chunks


def tilings(limits: DeviceLimits, layer: small_shapes.Layer, math: str, variant: str) -> list[Tiling | None]:
    """Of forward and backward; None where the variant does not fit."""
    return [
        plan(
            limits, steps=layer.steps, batch=layer.batch, hidden_size=layer.hidden, directions=2, math=math,
            proj_size=layer.projection, backward=backward, ragged=layer.layout != "padded", variant=variant,
        ).tiling
        for backward in (False, True)
    ]  # fmt: skip


@pytest.mark.skipif(not _binary.status().loaded, reason=_binary.status().reason)
def test_small_shapes_on_a_small_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What does not fit its blocks is left out by name; any other error, or nothing left, ends the run."""
    why = "asks for {}, which does not fit: {}: too large; unset it\nmore"

    def run(layer: small_shapes.Layer, math: str) -> None:
        variant = os.environ["CUSTOMLSTM_CUDA_VARIANT"]
        if None in tilings(RTX_5090, layer, math, variant):
            raise RuntimeError(why.format(variant, variant))

    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "")
    monkeypatch.setattr(small_shapes, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    small_shapes.main()
    cases = len(list(small_shapes.runs(120)))
    *left_out, total = capsys.readouterr().out.splitlines()
    assert left_out and all("hidden=200" in line and "cluster: too large" in line for line in left_out)
    assert any(", float32: " in line for line in left_out)
    assert total == f"{cases - len(left_out)} layers, forward and backward; {len(left_out)} left out"
    why = "out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        small_shapes.main()
    monkeypatch.setattr(small_shapes, "runs", lambda capability: iter(()))
    with pytest.raises(SystemExit, match="nothing ran"):
        small_shapes.main()
