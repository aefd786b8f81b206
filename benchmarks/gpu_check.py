"""``make gpu-check``: everything there is to check on a machine with a GPU, in one command and within 9
minutes.

Builds the kernels for the GPUs present, runs the GPU tests, compute-sanitizer's four tools on small shapes
and the benchmarks against cuDNN, leaves results as JSON in a folder (RESULTS_DIR, by default
benchmarks/results) and ends with a short table. A later part gets the time that the earlier ones leave; what
did not fit is said, never left out in silence. The exit code is 0 only if every part passed.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .table import summary_table

BUDGET = 9 * 60.0
ROOT = Path(__file__).parents[1]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass
class Outcome:
    """How a part ended: "passed", "failed", "cut short" or "not run", and a remark for the reader."""

    part: str
    state: str
    seconds: float
    remark: str = ""


class Check:
    """Runs the parts one after the other and remembers how they ended."""

    def __init__(self, results: Path) -> None:
        self.start = time.monotonic()
        self.results = results
        self.outcomes: list[Outcome] = []
        results.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        return BUDGET - (time.monotonic() - self.start)

    def run(self, part: str, command: Sequence[str], limit: float, **environment: str) -> bool:
        """Whether ``command`` passed within ``limit`` seconds and the time that is left."""
        limit = min(limit, self.left())
        if limit < 5:
            self.outcomes.append(Outcome(part, "not run", 0.0, "no time left"))
            return False
        print(f"\n== {part}: {' '.join(command)}", flush=True)
        begin = time.monotonic()
        try:
            done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, timeout=limit, check=False)
            state = "passed" if done.returncode == 0 else "failed"
            remark = "" if done.returncode == 0 else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            state, remark = "cut short", f"after {limit:.0f} s"
        except FileNotFoundError as error:
            state, remark = "failed", str(error)
        self.outcomes.append(Outcome(part, state, time.monotonic() - begin, remark))
        return state == "passed"

    def skip(self, part: str, why: str) -> None:
        self.outcomes.append(Outcome(part, "not run", 0.0, why))

    def report(self) -> int:
        print("\npart                        state        seconds")
        for o in self.outcomes:
            print(f"{o.part:<27} {o.state:<12} {o.seconds:7.1f}  {o.remark}")
        return 0 if all(o.state == "passed" for o in self.outcomes) else 1


def machine() -> dict[str, str | int | None]:
    """What a result must name to mean something."""
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
    }


def strip(raw: Path, to: Path, about: dict[str, str | int | None]) -> None:
    """pytest-benchmark's file without what it knows of the machine's insides, with ``about``."""
    runs = [{"extra_info": run["extra_info"]} for run in json.loads(raw.read_text())["benchmarks"]]
    to.write_text(json.dumps({"machine": about, "benchmarks": runs}, indent=1) + "\n")


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print("gpu-check needs a GPU, and torch sees none: use make cuda-check here", file=sys.stderr)
        return 2
    check = Check(Path(os.environ.get("RESULTS_DIR", ROOT / "benchmarks" / "results")))
    about = machine()
    python = sys.executable
    name = f"{about['date']}-{str(about['device']).lower().replace(' ', '-')}"
    (check.results / f"{name}-machine.json").write_text(json.dumps(about, indent=1) + "\n")

    if not check.run("build", [python, "setup.py", "build_ext", "--inplace"], 240):
        return check.report()
    check.run("report", [python, "-m", "customlstm"], 60)
    check.run("GPU tests", [python, "-m", "pytest", "tests/cuda/test_gpu.py", "-q", "-x"], 150)
    sanitizer = shutil.which("compute-sanitizer")
    for tool in SANITIZERS:
        if sanitizer is None:
            check.skip(tool, "compute-sanitizer is not on the PATH")
            continue
        command = [
            sanitizer,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            python,
            "-m",
            "benchmarks.small_shapes",
        ]
        check.run(tool, command, 40)
    raw = check.results / f"{name}-raw.json"
    command = [python, "-m", "pytest", "benchmarks/test_layer.py", "-q", "--benchmark-json", str(raw)]
    # The suite itself stops in time: a run that is killed writes nothing.
    seconds = check.left() - 15
    check.run("benchmarks", command, check.left(), CUSTOMLSTM_BENCHMARK_SECONDS=f"{seconds:.0f}")
    if raw.exists():
        final = check.results / f"{name}-layer.json"
        strip(raw, final, about)
        raw.unlink()
        print(summary_table(json.loads(final.read_text())))
    return check.report()


if __name__ == "__main__":
    sys.exit(main())
