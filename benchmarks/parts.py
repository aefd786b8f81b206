"""Commands one after the other within a budget of time, and how they ended: the parts of gpu_check.py."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from .machine import ROOT

BUDGET = 9 * 60.0
GRACE = 5.0  # for a command that is interrupted to write what it has
KEPT_LINES = 200  # of the log of a part that passed


@dataclass
class Outcome:
    """How a part ended: "passed", "failed", "cut short", "not run" or "left out" (this device has nothing to
    run), and a remark for the reader."""

    part: str
    state: str
    seconds: float
    remark: str = ""


class Check:
    """Runs the parts one after the other and remembers how they ended; files begin with ``name``."""

    def __init__(self, results: Path, name: str, about: dict[str, Any]) -> None:
        self.start = time.monotonic()
        self.results = results
        self.name = name
        self.about = about
        self.outcomes: list[Outcome] = []
        results.mkdir(parents=True, exist_ok=True)
        self._write()  # a folder that cannot be written is known before the first part runs

    def left(self) -> float:
        """Seconds for the next part, with those to end it set aside."""
        return BUDGET - (time.monotonic() - self.start) - 2 * GRACE

    def run(self, part: str, command: Sequence[str], limit: float, **environment: str) -> bool:
        """Whether ``command`` passed within ``limit`` seconds and the time that is left."""
        limit = min(limit, self.left())
        if limit < 5:
            return self.skip(part, "no time left")
        print(f"\n== {part}: {' '.join(command)}", flush=True)
        log = self.results / f"{self.name}-{slug(part)}.log"
        begin = time.monotonic()
        state, remark = supervise(command, limit, log, environment)
        if "pytest" in command:
            counts = last_line(log)
            if state == "passed" and "passed" not in counts:
                state = "failed"  # nothing ran
            remark = ", ".join(filter(None, [remark, counts]))
        if state == "passed":
            log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[-KEPT_LINES:]))
        self._add(Outcome(part, state, round(time.monotonic() - begin, 1), remark))
        return state == "passed"

    def skip(self, part: str, why: str) -> bool:
        self._add(Outcome(part, "not run", 0.0, why))
        return False

    def leave_out(self, part: str, why: str) -> None:
        """Unlike :meth:`skip` no failure: the device has nothing that could be run."""
        self._add(Outcome(part, "left out", 0.0, why))

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._write()

    def _write(self) -> None:
        content = {"machine": self.about, "parts": [asdict(o) for o in self.outcomes]}
        (self.results / f"{self.name}-outcomes.json").write_text(json.dumps(content, indent=1) + "\n")

    def report(self) -> int:
        print("\npart                        state        seconds")
        for o in self.outcomes:
            print(f"{o.part:<27} {o.state:<12} {o.seconds:7.1f}  {o.remark}")
        states = {o.state for o in self.outcomes}
        return 0 if "passed" in states and states <= {"passed", "left out"} else 1


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def supervise(
    command: Sequence[str], limit: float, log: Path, environment: dict[str, str]
) -> tuple[str, str]:
    """State and remark. The command gets a session of its own, of which nothing is left afterwards."""
    log.write_bytes(b"")
    try:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return "failed", str(error)
    reader = threading.Thread(target=tee, args=(child.stdout, log), daemon=True)
    reader.start()
    try:
        code = child.wait(limit)
    except subprocess.TimeoutExpired:
        return "cut short", f"after {limit:.0f} s"
    finally:
        end(child)
        reader.join(GRACE)
    return ("passed", "") if code == 0 else ("failed", f"exit code {code}")


def tee(source: IO[bytes], log: Path) -> None:
    """What comes from ``source``, at once, to stdout and to ``log``."""
    with source, log.open("wb") as file:
        while chunk := os.read(source.fileno(), 65536):
            file.write(chunk)
            file.flush()
            with contextlib.suppress(OSError):  # nobody reads stdout any more; the log goes on
                sys.stdout.write(chunk.decode(errors="replace"))
                sys.stdout.flush()


def end(child: subprocess.Popen[bytes]) -> None:
    """An interrupt, on which pytest writes its results, then a kill; both go to the whole group."""
    for number in (signal.SIGINT, signal.SIGKILL) if child.poll() is None else (signal.SIGKILL,):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)


def last_line(log: Path) -> str:
    """ "3 passed, 2 skipped", from pytest's last line; empty where it did not come that far."""
    found = re.findall(r"^=+ (.+) in \d[\d.]*s", log.read_text(errors="replace"), re.MULTILINE)
    return found[-1] if found else ""
