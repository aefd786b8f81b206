"""Builds the library with AddressSanitizer and UndefinedBehaviorSanitizer, and runs kernel tests on it.

``python tests/native/sanitize.py [pytest arguments]``. The build has folders of its own below build/sanitize;
the library that the package uses is not touched. The tests run once for each instruction set that was
compiled and that this CPU has. The exit code is that of the first run that failed; a report ends its run.
Cells that tests write are compiled with the sanitizers as well.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"

# libstdc++ too: AddressSanitizer looks for __cxa_throw when it starts, before Python has loaded any C++.
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so")
REPORTED = 99  # exit code of a process that a sanitizer ended
OPTIONS = {
    # CPython and torch leave much of their memory to the end of the process; leaks reported would be theirs.
    "ASAN_OPTIONS": f"detect_leaks=0:exitcode={REPORTED}",
    "UBSAN_OPTIONS": f"print_stacktrace=1:exitcode={REPORTED}",
}


def build() -> Path:
    """Compiles what is out of date and returns the library."""
    command = [sys.executable, "setup.py", "build_ext"]
    command += ["--build-lib", str(BUILD / "lib"), "--build-temp", str(BUILD / "temp")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"SANITIZE": "1"}, check=True)
    (library,) = (BUILD / "lib" / "customlstm").glob("_C.*so")
    return library


def runtimes() -> str:
    """The sanitizers' run-time libraries, from the compiler that built the library, for LD_PRELOAD."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    found = []
    for name in RUNTIMES:
        path = subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip()
        if not os.path.isabs(path):
            raise SystemExit(f"{compiler[0]} has no {name}: install its sanitizers, or set CXX to a g++")
        found.append(path)
    return ":".join(found)


def available(isa: str, environment: dict[str, str]) -> bool:
    """Whether the kernels for this instruction set run here; prints the reason where the CPU lacks it."""
    code = "import torch, customlstm; print('chosen:', torch.ops.customlstm.cpu_isa())"
    command = [sys.executable, "-c", code]
    probe = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if f"chosen: {isa}" in probe.stdout:
        return True
    # Any CPU has the default. An exception (1) may say that it lacks another; a report or a crash never does.
    if isa == "default" or probe.returncode != 1:
        raise SystemExit(f"sanitize: FAILED, the library does not run:\n{probe.stdout}{probe.stderr}")
    print(f"sanitize: {isa} is left out: {probe.stderr.strip().rpartition(chr(10))[2]}", flush=True)
    return False


def main(arguments: list[str]) -> int:
    library = build()
    preload = {"LD_PRELOAD": runtimes(), "CUSTOMLSTM_BINARY": str(library)}
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    checked = [*compiler, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    preload["CXX"] = shlex.join([*checked, "--param=asan-instrumentation-with-call-threshold=0"])
    tested = []
    for isa in json.loads(library.with_name("_C.json").read_text())["cpu"]:
        environment = os.environ | OPTIONS | preload | {"CUSTOMLSTM_CPU_ISA": isa}
        if not available(isa, environment):
            continue
        print(f"sanitize: {isa}", flush=True)
        # Captured by file descriptor, a report would vanish together with the process that pytest runs in.
        command = [sys.executable, "-m", "pytest", "--capture=sys", "-q", *arguments]
        code = subprocess.run(command, env=environment, cwd=ROOT).returncode
        if code:
            print(f"sanitize: FAILED for {isa}, exit code {code}", flush=True)
            return code
        tested.append(isa)
    print(f"sanitize: no report for {', '.join(tested)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
