"""The suites themselves at a tiny shape, and what they are made of: grids, timing, memory, contenders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import contenders, grid, interleaved, machine, measure, memory, report, runs
from customlstm import _binary

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("layer", "step", "streaming", "lengths", "cells", "options", "written", "compiled")
needs_library = pytest.mark.skipif(not _binary.status().loaded, reason=_binary.status().reason)
needs_marks = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the system has no mark of memory to reset"
)


def test_small_grid_is_that_of_the_targets() -> None:
    small = grid.settings("cpu")
    assert len(small) == 15 and len(set(small)) == 15
    assert [s for s in small if s.bidirectional] == [s for s in small if "bidirectional" in str(s)]
    assert {(s.steps, s.batch, s.features, s.hidden) for s in small if s.layers > 1} == {(100, 16, 256, 256)}
    assert not any(s.loop for s in grid.settings("cpu", dtypes=["bfloat16"]))


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_grids_contain_one_another(suite: str, device: str) -> None:
    tiny, small, full = (grid.suite_settings(suite, device, name, ["float32"]) for name in grid.GRIDS)
    assert tiny and small and set(small) <= set(full)
    assert len(set(map(str, full))) == len(full), "two settings of one name"
    assert all(s.steps <= 100 and s.hidden <= 8 for s in tiny)
    if suite == "compiled":
        assert all(s.steps <= 16 for s in full)


def test_full_grid_has_series() -> None:
    from_full = grid.settings("cpu", "full")
    for axis in ("steps", "batch", "hidden"):
        sizes: dict[str, set[int]] = {}
        for s in from_full:
            sizes.setdefault(str({**vars(s), axis: 0, "loop": 0, "cells": 0}), set()).add(getattr(s, axis))
        assert max(map(len, sizes.values())) >= 4, axis


def test_unknown_grid_and_dtype() -> None:
    with pytest.raises(ValueError, match="--grid is 'large', expected one of tiny, small, full"):
        grid.suite_settings("step", "cpu", "large", None)
    with pytest.raises(ValueError, match="--dtype holds 'tf32', expected some of bfloat16, float16, float32"):
        grid.suite_settings("layer", "cpu", "small", ["tf32"])


def test_turns_and_summary() -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ABC"}
    times = interleaved.interleave(runs, rounds=20)
    assert {name: len(values) for name, values in times.items()} == {"A": 20, "B": 20, "C": 20}
    rounds = ["".join(calls[k : k + 3]) for k in range(0, len(calls), 3)]
    assert all(sorted(one) == ["A", "B", "C"] for one in rounds) and len(set(rounds)) == 6
    repeated, calls = calls, []
    interleaved.interleave(runs, rounds=20)
    assert calls == repeated  # the same order in every process
    found = interleaved.summary({"A": [2e-3, 4e-3, 9e-3], "B": [6e-3, 4e-3, 5e-3]}, "A", calls=2)
    assert found["B"] == pytest.approx(
        {"min_ms": 2.0, "median_ms": 2.5, "ratio_min": 2.0, "ratio_median": 1.25}
    )
    assert interleaved.ROUNDS["cpu"] >= 15


def test_short_rounds_are_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted() -> int:
        return len(interleaved.interleave({"A": lambda: None})["A"])

    assert counted() == interleaved.MORE_ROUNDS
    monkeypatch.setattr(interleaved, "MORE_SECONDS", 0.0)
    assert counted() == interleaved.ROUNDS["cpu"]


def test_rates_are_compared_with_the_best_product() -> None:
    times = {"ours": [3.0, 2.0], "mm": [1.0, 2.0], "other": [1.0]}
    found = measure.rates(times, {"ours": 8e9, "mm": 8e9, "other": 5e9}, "ours")
    assert found == {"gflops": {"ours": 4.0, "mm": 8.0, "other": 5.0}, "fraction": 0.5}


def test_products_do_the_operations_of_the_layer() -> None:
    setting = grid.Setting(40, 80, 5, 8)  # more rows than one block
    for mode, factor in (("inference", 1), ("training", 3)):
        assert contenders.operations(setting, mode) == factor * 8 * 40 * 80 * 8 * 13
        product = contenders.products(setting, mode, "cpu")["torch.mm"]
        # The last block is a whole one.
        assert 1.0 <= product.operations / contenders.operations(setting, mode) <= 2.0
        with FlopCounterMode(display=False) as counter:
            product.run()
        assert counter.get_total_flops() == product.operations
    two = grid.Setting(3, 2, 5, 8, bidirectional=True, layers=2)
    assert contenders.operations(two, "inference") == 8 * 3 * 2 * 8 * 2 * ((5 + 8) + (16 + 8))


@pytest.mark.parametrize("name", [None, *contenders.CELLS, "slstm"])
def test_loops_compute_the_cell(name: str | None) -> None:
    setting = grid.Setting(6, 3, 5, 8, "float64")
    module = contenders.same_weights(setting, "cpu", backend="reference", cell=name)
    x = contenders.make_input(setting, "training", "cpu") * 4
    ours, theirs = module(x)[0], contenders.loop(setting, "cpu", cell=name)(x)[0]
    torch.testing.assert_close(theirs, ours)
    given = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(y, x, given)[0] for y in (theirs, ours))
    torch.testing.assert_close(found, expected)


def needs_megabytes(
    setting: grid.Setting, mode: str, device: str
) -> dict[str, Callable[[], Callable[[], None]]]:
    """A contender that holds so many MiB while it runs, and as many again for a moment."""

    def build(megabytes: int) -> Callable[[], None]:
        def run() -> None:
            kept = torch.ones(megabytes << 18)
            kept + 1.0

        return run

    return {"A": lambda: build(setting.steps), "B": lambda: build(2 * setting.steps)}


@needs_marks
def test_peak_memory_of_this_process() -> None:
    run = needs_megabytes(grid.Setting(32, 1, 1, 1), "inference", "cpu")["A"]()
    for _ in range(2):  # what the first one freed does not help the second
        assert 62 << 20 <= memory.resident_peak(run) <= 72 << 20
    assert memory.resident_peak(lambda: None) < 4 << 20


@needs_library
@needs_marks
def test_peak_memory_in_a_process_of_its_own() -> None:
    """Threads that this process has started do no harm, and what it has freed is of no use there."""
    torch.ones(1 << 22).sin().sum()
    setting = grid.Setting(20, 16, 64, 256)
    found = memory.peaks(contenders.layer, setting, "inference", "cpu")
    output = 20 * 16 * 256 * 4
    assert found.keys() == {contenders.OURS, contenders.THEIRS}
    assert all(output / 2 <= bytes_ <= output + (16 << 20) for bytes_ in found.values()), found


def test_a_failed_measurement_says_so() -> None:
    if sys.platform != "linux":
        pytest.skip("memory is measured on Linux only")
    with pytest.raises(RuntimeError, match=r"measures no such contender at .* ended with code 1"):
        memory.in_child(contenders.layer, grid.Setting(*grid.TINY), "inference", "no such contender")


def test_machine_is_described_without_its_name() -> None:
    text = "processor : 0\nmodel name : A CPU @ 1 GHz\nflags : fpu avx2 amx_bf16\n\nprocessor : 1\n"
    assert machine.cpu(text) == {"cpu": "A CPU @ 1 GHz", "cpu_cores": 2, "cpu_flags": ["avx2", "amx_bf16"]}
    found = machine.machine()
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert os.uname().nodename not in map(str, found.values())


def test_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.commit(tmp_path) == {"id": "unknown", "dirty": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except OSError:
        pytest.skip("no git")
    (tmp_path / "file").write_text("a")
    for words in (["add", "file"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    found = machine.commit(tmp_path)
    assert len(str(found["id"])) == 40 and found["dirty"] is False
    (tmp_path / "file").write_text("b")
    assert machine.commit(tmp_path) == {**found, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit(tmp_path) == {"id": "unknown", "dirty": None}


def pytest_on_suites(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", *arguments]
    # One thread: the tests run beside other work, where threads that wait for each other take for ever.
    # And a run of its own: within one of pytest-xdist's, pytest-benchmark writes no file.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**outside, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_wrong_options_are_explained() -> None:
    pytest.importorskip("pytest_benchmark")
    done = pytest_on_suites("--collect-only", "--threads", "two")
    assert (
        done.returncode != 0 and "--threads expects numbers such as 1,2, got two" in done.stdout + done.stderr
    )


@needs_library
@pytest.mark.slow
def test_a_file_to_add_to_is_looked_at_first(tmp_path: Path) -> None:
    """And left as it is, where nothing can be added to it."""
    pytest.importorskip("pytest_benchmark")
    file = tmp_path / "kept.json"
    other = runs.Source({"device": "Another machine"}, {"id": "unknown"})
    info = {"suite": "layer", "ours": "a", "setting": {}, "mode": "", "threads": 1, "times": {}, "ratios": []}
    runs.write(file, [runs.Run(info, other)])
    for text, why in ((file.read_text(), "of another machine: Another machine"), ("{}", "is no result")):
        file.write_text(text)
        done = pytest_on_suites("--grid", "tiny", "-k", "test_step", f"--keep={file}")
        assert done.returncode == 4 and why in done.stdout + done.stderr
        assert file.read_text() == text


@needs_library
@pytest.mark.slow
def test_every_suite_runs(tmp_path: Path) -> None:
    """Compiling once shows that it works, and twice would take as long as everything else."""
    pytest.importorskip("pytest_benchmark")
    file, kept = tmp_path / "tiny.json", tmp_path / "there" / "kept.json"
    chosen = ["--grid", "tiny", "--dtype", "float32", "--threads", "1", "-k", "not (compiled and training)"]
    done = pytest_on_suites(*chosen, f"--benchmark-json={file}", f"--keep={kept}")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(file.read_text())
    assert content["machine_info"].keys() == machine.machine().keys()
    assert content["commit_info"].keys() == {"id", "dirty"}
    found = runs.read(kept)
    # No run has the key of another one, or it would have replaced it.
    assert [run.info for run in found] == [run.info for run in runs.read(file)]
    assert {run.suite for run in found} >= set(SUITES) - {"compiled"}
    assert {run.mode for run in found if run.suite == "layer"} == set(contenders.MODES)
    assert all(run.threads == 1 and run.ratios() for run in found if run.info["device"] == "cpu")
    assert all(report.fraction(run) for run in found if run.suite == "layer")
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert all(report.peak(run) for run in found if run.suite in ("layer", "cells", "lengths"))
    assert all(f"## {title}" in report.report(found) for title in ("Summary", "One step"))


@needs_library
@pytest.mark.slow
def test_loops_can_be_left_out(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    kept = tmp_path / "kept.json"
    chosen = ["--grid", "tiny", "--dtype", "float32", "--no-loops"]
    chosen += ["-k", "test_layer and inference and not layers"]
    done = pytest_on_suites(*chosen, f"--keep={kept}")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = runs.read(kept)
    assert {contenders.OURS, contenders.THEIRS} <= run.info["times"].keys()
    assert not {contenders.LOOP, contenders.REFERENCE} & run.info["times"].keys()


def test_errors_are_those_of_the_exact_result() -> None:
    """One wrong element of a thousand counts, as twice the other's error does not."""
    exact = torch.zeros(1000, dtype=torch.float64)
    other = exact.float() + 1e-6
    wrong = other.clone()
    wrong[0] = 1e-3
    results = {"ours": exact.float() - 1.9e-6, "wrong": wrong, "other": other, "exact": exact}
    made = {name: (lambda value=value: value) for name, value in results.items()}
    measure.check_errors(made, [("ours", "other", "exact")])
    with pytest.raises(AssertionError, match=r"wrong: error 3.16e-05, other: 1.00e-06"):
        measure.check_errors(made, [("wrong", "other", "exact")])
