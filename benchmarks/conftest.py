"""Options of the suites, and what a result says of its machine.

CUSTOMLSTM_BENCHMARK_SECONDS: what has not begun by then is skipped; the summary counts the skips.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from . import grid, machine, runs

_START = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("customlstm benchmarks")
    group.addoption("--grid", choices=grid.GRIDS, default="small", help="which settings (default: small)")
    group.addoption("--dtype", help='such as "float32,bfloat16"; default: each suite\'s own')
    group.addoption("--threads", help='such as "1,2", on a CPU; default: as many as PyTorch uses')
    group.addoption(
        "--no-loops",
        action="store_true",
        help="leave out the reference and the TorchScript loop, which take most of the time",
    )
    group.addoption(
        "--keep",
        type=Path,
        metavar="FILE",
        help="add every run to FILE as it ends, in place of an earlier one of its setting",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long_on_gpu: on a GPU only with another --grid than small")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before anything is timed: a file that nothing can be added to."""
    file: Path | None = session.config.getoption("--keep", None)
    if file is None or session.config.option.collectonly:
        return
    try:
        if file.exists():
            kept = runs.load([file])[0].source.device
            if kept != (here := str(machine.machine()["device"])):
                raise ValueError(f"{file} holds results of another machine: {kept}, and this is {here}")
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--keep: {error}") from error


def _words(config: pytest.Config, option: str) -> list[str]:
    # A default: where pytest reads this file only while collecting, it does not know the options.
    return [word.strip() for word in (config.getoption(option, None) or "").split(",") if word.strip()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every suite's settings, and where they are asked for the numbers of threads."""
    suite = getattr(metafunc.module, "SUITE", None)
    if suite is None or "setting" not in metafunc.fixturenames:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen, threads = _words(metafunc.config, "--dtype"), _words(metafunc.config, "--threads")
    if not all(word.isdigit() and int(word) > 0 for word in threads):
        raise pytest.UsageError(f"--threads expects numbers such as 1,2, got {','.join(threads)}")
    try:
        name = metafunc.config.getoption("--grid", "small")
        settings = grid.suite_settings(suite, device, name, chosen or None)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    if metafunc.config.getoption("--no-loops", False):
        settings = [dataclasses.replace(setting, loop=False) for setting in settings]
    if device == "cuda" and name == "small" and metafunc.definition.get_closest_marker("long_on_gpu"):
        # The grid for a GPU is long, and `make gpu-check` has minutes. One skip, not one for each setting.
        settings = [pytest.param(None, marks=pytest.mark.skip(reason="on a GPU part of --grid full"))]
    metafunc.parametrize("setting", settings, ids=str)
    if threads and device == "cpu":
        metafunc.parametrize(
            "threads", [int(word) for word in threads], ids="{}threads".format, indirect=True
        )


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads that PyTorch and the kernels use."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", before))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


@pytest.fixture
def tf32(setting: grid.Setting) -> Iterator[None]:
    """PyTorch's switches, for cuDNN and for products, as the setting asks."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = setting.dtype == "tf32"
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.fixture(autouse=True)
def _in_time() -> None:
    seconds = float(os.environ.get("CUSTOMLSTM_BENCHMARK_SECONDS", "inf"))
    if time.monotonic() - _START > seconds:
        pytest.skip(f"not timed: the {seconds:.0f} seconds for benchmarks are over")


@pytest.fixture(scope="session")
def _source() -> runs.Source:
    return runs.Source(machine.machine(), machine.commit())


@pytest.fixture(autouse=True)
def _kept(request: pytest.FixtureRequest, _source: runs.Source) -> Iterator[None]:
    """At once, since pytest-benchmark writes its file at the end, and a long run may not come that far."""
    yield
    file: Path | None = request.config.getoption("--keep", None)
    benchmark = request.node.funcargs.get("benchmark")
    if file is not None and benchmark is not None and "times" in benchmark.extra_info:
        runs.add(file, runs.Run(dict(benchmark.extra_info), _source))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """In place of what pytest-benchmark finds out, which has the host's name in it and no word of torch."""
    machine_info.clear()
    machine_info.update(machine.machine())


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict) -> None:
    commit_info.clear()
    commit_info.update(machine.commit())
