"""``make gpu-check``: everything there is to check on a machine with a GPU, in one command and within 9
minutes.

Builds the kernels for the GPUs present, runs the GPU tests, compute-sanitizer's four tools on small shapes
and the benchmarks against cuDNN, and ends with a short table. RESULTS_DIR (by default benchmarks/results)
gets how each part ended and the times as JSON, and each part's output as a log. A later part gets the time
that the earlier ones leave; what did not fit is said, never left out in silence. The exit code is 0 only if
every part passed that this GPU can run, and 2 if none was begun. CUSTOMLSTM_BENCHMARK_DTYPES ("tf32,float32")
limits the benchmarks to these.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from . import report, runs
from .machine import ROOT, commit
from .parts import Check, slug

# Compute capabilities; the package, which knows them too, must not be imported before its build.
OLDEST, FIRST_WITH_CLUSTERS = 80, 90
USUAL_PLACE = "/usr/local/cuda/bin"  # where torch looks for a toolkit last
PYTEST = [sys.executable, "-m", "pytest", "-v", "--color=no", "--tb=short", "--maxfail=25", "--durations=10",
          "-o", "faulthandler_timeout=40"]  # fmt: skip
# A variant that deadlocks costs its own limit only; "as planned" are the tests that force none. The last
# column is the least compute capability: a part whose tests are all skipped has not passed.
GPU_TESTS = [
    ("tests, step", "not grid and not cluster", 90, {"CUSTOMLSTM_CUDA_VARIANT": "step"}, OLDEST),
    ("tests, grid", "grid", 60, {}, OLDEST),
    ("tests, cluster", "cluster", 60, {}, FIRST_WITH_CLUSTERS),
    ("tests, as planned", "not step and not grid and not cluster", 60, {}, OLDEST),
]
ONLY_OURS = ["--kernel-name", "kernel_substring=customlstm"]
# initcheck has to see the kernels of PyTorch, too: they write what ours read.
SANITIZERS = {"memcheck": ONLY_OURS, "racecheck": ONLY_OURS, "initcheck": [], "synccheck": ONLY_OURS}
KERNELS_ARE_LOADED = """
import torch
from customlstm import dispatch
reason = dispatch.why_not_fused(torch.device("cuda"), torch.float32)
if reason is not None:
    raise SystemExit(f"no CUDA kernels: {reason}")
"""


def machine() -> dict[str, str | int | None]:
    """What a result must name to mean something."""
    import torch

    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "date": datetime.date.today().isoformat(),
        "commit": str(commit()["id"])[:7],
    }


def run_benchmarks(check: Check) -> None:
    file = check.results / f"{check.name}-layer.json"
    file.unlink(missing_ok=True)  # an earlier call's: what is shown below is of this one
    command = [*PYTEST, "benchmarks/test_layer.py", "--keep", str(file)]
    # The suite itself stops in time, and its summary counts what it skipped.
    seconds = check.left() - 15
    check.run("benchmarks", command, check.left(), CUSTOMLSTM_BENCHMARK_SECONDS=f"{seconds:.0f}")
    if not file.exists():
        print("\nno benchmark ran")
        return
    found = runs.read(file)
    print("", report.summary(found), report.losses(found), sep="\n")


def run_tests(check: Check, capability: int) -> None:
    for part, chosen, limit, environment, oldest in GPU_TESTS:
        if capability < oldest:
            check.leave_out(part, f"needs compute capability {oldest / 10}, this is {capability / 10}")
            continue
        command = [*PYTEST, "tests/cuda/test_gpu.py", "tests/cuda/test_gpu_behaviour.py", "-k", chosen]
        check.run(part, command, limit, CUSTOMLSTM_REQUIRE_GPU="1", **environment)


def run_tests_of_written_cells(check: Check) -> None:
    part = "tests, cells of your own"
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        check.skip(part, "cuda.core is not there, which compiles them: pip install 'cuda-core>=1.0'")
        return
    # Most of it is NVRTC's time, which differs much from machine to machine; the benchmarks keep a minute.
    limit = max(120.0, min(300.0, check.left() - 60))
    check.run(part, [*PYTEST, "tests/cuda/test_gpu_written.py"], limit, CUSTOMLSTM_REQUIRE_GPU="1")


def run_all(check: Check, capability: int) -> None:
    python = sys.executable
    if not check.run("build", [python, "setup.py", "build_ext", "--inplace"], 240):
        return
    check.run("report", [python, "-m", "customlstm"], 60)
    if not check.run("kernels are loaded", [python, "-c", KERNELS_ARE_LOADED], 60):
        return
    run_tests(check, capability)
    sanitizer = shutil.which("compute-sanitizer")
    for tool, kernels in SANITIZERS.items():
        if sanitizer is None:
            check.skip(tool, "compute-sanitizer is not on the PATH")
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *kernels]
        # In PyTorch's pool a tensor's end is no end of an allocation, and old values count as initialised.
        check.run(
            tool, [*command, python, "-m", "benchmarks.small_shapes"], 45, PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
    run_tests_of_written_cells(check)  # after the sanitizers, which need less and always the same
    run_benchmarks(check)


class Refused(Exception):
    """Carries the sentence that says why nothing was begun."""


def missing() -> Iterator[str]:
    """What the parts need, torch apart, and is not here, each with where it comes from."""
    for module, package in (("pytest", "pytest"), ("pytest_benchmark", "pytest-benchmark")):
        if importlib.util.find_spec(module) is None:
            yield f"{package} (pip install {package})"
    if not recent_setuptools():
        yield "setuptools (pip install 'setuptools>=77')"
    # setup.py looks beside this Python as well; without ninja torch compiles one file after the other.
    beside = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    if shutil.which("ninja", path=beside) is None:
        yield "ninja (pip install ninja)"
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if toolkit and shutil.which("nvcc", path=str(Path(toolkit, "bin"))) is None:
        yield f"nvcc (CUDA_HOME is {toolkit}, which has no bin/nvcc)"
    elif not toolkit and shutil.which("nvcc") is None and shutil.which("nvcc", path=USUAL_PLACE) is None:
        yield "nvcc (of a CUDA toolkit: put its bin folder on the PATH, or set CUDA_HOME)"


def recent_setuptools() -> bool:
    """Whether there is one that can read pyproject.toml."""
    try:
        return int(metadata.version("setuptools").partition(".")[0]) >= 77
    except (metadata.PackageNotFoundError, ValueError):
        return False


def prepare() -> Check:
    """Looks at all that could stop a part later on.

    Raises:
        Refused: something is missing or wrong.
    """
    try:
        import torch
    except ImportError as error:
        raise Refused(
            f"{sys.executable} has no torch ({error}). Name an environment whose torch is built with CUDA: "
            "make gpu-check VENV=/path/to/environment"
        ) from error
    if not torch.cuda.is_available():
        from customlstm import gpu  # not where there is a GPU: the build replaces the library that this loads

        raise Refused(f"it needs a GPU, and torch can use none: {gpu.why_no_gpu()}. Use make cuda-check here")
    from .grid import DTYPES, chosen_dtypes

    try:
        dtypes = chosen_dtypes()
    except ValueError as error:
        raise Refused(str(error)) from error
    absent = list(missing())
    sanitizer = shutil.which("compute-sanitizer") is not None
    rest = "" if sanitizer else "compute-sanitizer is not on the PATH: what it checks will not be run"
    if absent:
        raise Refused("; ".join(filter(None, [f"missing for {sys.executable}: {', '.join(absent)}", rest])))
    if rest:
        print(f"gpu-check: {rest}", file=sys.stderr)
    about = machine()
    name = f"{about['date']}-{slug(str(about['device']))}"
    if dtypes != DTYPES:
        name += f"-{'-'.join(dtypes)}"  # beside the results of another call
    results = Path(os.environ.get("RESULTS_DIR") or ROOT / "benchmarks" / "results").resolve()
    try:
        return Check(results, name, about)
    except OSError as error:
        raise Refused(f"RESULTS_DIR, {results}, cannot be written: {error.strerror}") from error


def main() -> int:
    try:
        check = prepare()
    except Refused as error:
        print(f"gpu-check: {error}.", file=sys.stderr)
        return 2
    import torch  # prepare() has said so where there is none

    try:
        major, minor = torch.cuda.get_device_capability()
        run_all(check, 10 * major + minor)
    finally:
        code = check.report()
    return code


if __name__ == "__main__":
    sys.exit(main())
