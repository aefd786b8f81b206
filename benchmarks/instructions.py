"""``python -m benchmarks.instructions [--output FILE] [--compare FILE]``: the instructions of a call.

Counted by ``valgrind --tool=callgrind``, on one thread and with the AVX2 kernels, which it knows. Counts do
not depend on what else the machine does, and little on which machine it is: where times are noise, a count
still shows that code became longer. It says nothing of memory, caches or instructions a cycle.

"kernels" is what was executed inside the compiled library of this package, "whole" is everything, Python,
torch and nn.LSTM's oneDNN included. With --compare the exit code is 1 where one of ours grew by more than
GROWTH, and 2 where nothing could be counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customlstm import _binary

from .machine import ROOT, commit, cpu

GROWTH = 0.03
# Begins and ends what is counted, and writes the count with a name to a file of its own.
MARKS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char* name) { CALLGRIND_STOP_INSTRUMENTATION; CALLGRIND_DUMP_STATS_AT(name); }
"""
# Uncompressed, each line of a dump can be read without those before it.
CALLGRIND = ["--tool=callgrind", "-q", "--instr-atstart=no", "--compress-strings=no", "--compress-pos=no"]
# Python's hashes decide how often its dictionaries collide.
FIXED = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# On another CPU, or under a valgrind that knows more, the same code shall run.
AVX2 = {"CUSTOMLSTM_CPU_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2"}  # fmt: skip
FACTS = ("device", "kernels", "compiler", "torch", "python", "valgrind")  # that may change a count

Counts = Mapping[str, Mapping[str, int]]  # name of the case: "kernels" and "whole"


class Unable(Exception):
    """Carries the sentence that says why nothing can be counted."""


def parse(text: str, library: str) -> tuple[str, dict[str, int]]:
    """The name of a dump, and its instructions: "whole", and "kernels", those in the file named ``library``.

    Raises:
        ValueError: the text is no whole dump; its parts must sum up to the total that it states.
    """
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
    total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
    if name is None or total is None:
        raise ValueError("this is no dump of callgrind that was asked for by name")
    found = {"kernels": 0, "whole": 0}
    inside = called = False
    for line in text.splitlines():
        if line.startswith("ob="):
            inside = Path(line.removeprefix("ob=")).name == library
        elif line.startswith("calls="):
            called = True  # what the next line counts is counted where it was executed as well
        elif line[:1].isdigit():
            count = 0 if called else int(line.split()[-1])
            called = False
            found["whole"] += count
            found["kernels"] += count if inside else 0
    if found["whole"] != int(total[1]):
        raise ValueError(f"the dump states {total[1]} instructions, and {found['whole']} are in it")
    return name[1], found


def is_ours(case: str) -> bool:
    return case.startswith("customlstm.")


def of_one_call(dumps: Iterable[tuple[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """From dumps named "<calls> <case>", one for each case, or two, whose difference is taken."""
    cases: dict[str, dict[int, Mapping[str, int]]] = {}
    for name, counts in dumps:
        calls, _, case = name.partition(" ")
        cases.setdefault(case, {})[int(calls)] = counts
    found = {}
    for case, by_calls in cases.items():
        many, few = max(by_calls), min(by_calls) if len(by_calls) > 1 else 0
        less = by_calls.get(few, {})
        found[case] = {
            part: round((count - less.get(part, 0)) / (many - few))
            for part, count in by_calls[many].items()
            if is_ours(case) or part == "whole"
        }
    return found


@dataclass(frozen=True)
class Change:
    """Of one count; ``old`` is None where the earlier result lacks the case."""

    case: str
    part: str
    old: int | None
    new: int

    @property
    def ratio(self) -> float | None:
        return self.new / self.old if self.old else None

    @property
    def grew(self) -> bool:
        """Nobody here can mend the others."""
        return is_ours(self.case) and self.ratio is not None and self.ratio > 1 + GROWTH


def changes(old: Counts, new: Counts) -> list[Change]:
    """Every count of ``new``.

    Raises:
        ValueError: the two have no case in common.
    """
    if not set(old) & set(new):
        raise ValueError("the two results have no case in common")
    return [
        Change(case, part, old.get(case, {}).get(part), count)
        for case, parts in new.items()
        for part, count in parts.items()
    ]


def table(found: Sequence[Change]) -> str:
    width = max(len(change.case) for change in found)
    lines = [f"{'':{width}}  part     {'before':>13} {'now':>13}  ratio"]
    for c in found:
        old = "-" if c.old is None else f"{c.old:,}"
        ratio = "" if c.ratio is None else f"{c.ratio:7.4f}" + (" grew" if c.grew else "")
        lines.append(f"{c.case:{width}}  {c.part:<8} {old:>13} {c.new:>13,} {ratio}".rstrip())
    return "\n".join(lines)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Facts that may explain another count."""
    return [f"{name}: {old.get(name)} before, {new.get(name)} now" for name in FACTS
            if old.get(name) != new.get(name)]  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError where it is no result of this program."""
    try:
        result = json.loads(path.read_text())
        numbers = [count for parts in result["counts"].values() for count in parts.values()]
        sound = isinstance(result["machine_info"], dict) and all(isinstance(n, int) for n in numbers)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is no result of benchmarks.instructions")
    return result


def valgrind() -> str:
    """Its path.

    Raises:
        Unable: there is none.
    """
    found = shutil.which("valgrind")
    if found is None:
        raise Unable("valgrind is not on the PATH; it counts the instructions (apt install valgrind)")
    return found


def build_marks(folder: Path) -> Path:
    """The marks as a library.

    Raises:
        Unable: they do not compile.
    """
    source, library = folder / "marks.c", folder / "marks.so"
    source.write_text(MARKS)
    compiler = os.environ.get("CC") or "cc"
    command = [*compiler.split(), "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Unable(f"no C compiler: {compiler}: {error.strerror}; CC names another one") from error
    if done.returncode != 0:
        raise Unable(
            f"{compiler} cannot compile the marks around what is counted; they need valgrind's headers:\n"
            f"{done.stderr.strip()}"
        )
    return library


def count(words: Sequence[str] = ()) -> dict[str, Any]:
    """A result: facts of machine and versions, the commit, and the counts of the cases with all ``words``.

    Raises:
        Unable: something that it needs is missing, or the counted process failed.
    """
    tool, status = valgrind(), _binary.status()
    if not status.loaded or status.path is None:
        raise Unable(f"there are no kernels to count: {status.reason}")
    environment = {**os.environ, **FIXED}
    environment |= AVX2 if "avx2" in (cpu()["cpu_flags"] or []) else {"CUSTOMLSTM_CPU_ISA": "default"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts, dumps = folder / "facts.json", folder / "dump"
        marks = build_marks(folder)
        child = [sys.executable, "-m", "benchmarks.counted", str(marks), str(facts), *words]
        command = [tool, *CALLGRIND, f"--callgrind-out-file={dumps}", *child]
        done = subprocess.run(command, cwd=ROOT, env=environment)
        if done.returncode != 0:
            raise Unable(f"the counted process ended with code {done.returncode}")
        library = Path(status.path).name
        # The file without a number is written at the end, and nothing is counted in it.
        files = sorted(folder.glob("dump.*"), key=lambda path: int(path.suffix[1:]))
        found = of_one_call(parse(path.read_text(), library) for path in files)
        about = json.loads(facts.read_text())
    if not found:
        raise Unable(f"there is no case with the words {' '.join(words)}")
    version = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout.strip()
    about["valgrind"] = version.removeprefix("valgrind-")
    return {"machine_info": about, "commit_info": commit(), "counts": found}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the counts to FILE")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="with the counts in FILE")
    parser.add_argument("--only", default="", metavar="WORDS", help="the cases with all these words in them")
    options = parser.parse_args(arguments)
    try:
        old = read(options.compare) if options.compare else None
        new = count(options.only.split())
        found = changes(old["counts"] if old else new["counts"], new["counts"])
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(new, indent=1) + "\n")
    except (Unable, OSError, ValueError) as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    if old is None:
        for case, parts in new["counts"].items():
            print(case, *(f"{part} {value:,}" for part, value in parts.items()), sep="  ")
        return 0
    print(table(found))
    for line in differences(old["machine_info"], new["machine_info"]):
        print(line)
    if absent := [] if options.only else [case for case in old["counts"] if case not in new["counts"]]:
        print(f"no longer counted: {'; '.join(absent)}")
    grown = [change for change in found if change.grew]
    print(f"{len(grown)} of {len(found)} counts grew by more than {GROWTH:.0%}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
