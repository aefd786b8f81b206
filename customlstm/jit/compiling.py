"""C++ sources to a shared library: the commands, their time limit and log, and the errors they can end in.

Environment variables:
  MAX_JOBS   so many compilers at a time at most; else one for each CPU that this process may use
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .build_error import BuildError
from .toolchain import FLAGS, LINK_FLAGS, Compiler

LOG = "build.log"
LIMIT_S = 600.0  # for a whole build; one with kernels for every instruction set takes a minute

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAYS_FULL = re.compile("No space left on device|Dis[ck] quota exceeded")
_SAYS_KILLED = re.compile(r"signal terminated program|unable to execute command: (Killed|Terminated)")
_ERROR = re.compile(r"\berror: |\bundefined (reference|symbol)|\bcannot find ", re.IGNORECASE)


@dataclass(frozen=True)
class Library:
    """A shared library to be made of C++ sources.

    Attributes:
        subject: what it is, for errors.
        file: its file name.
        sources: file name -> text. Those that end in .cpp are compiled, others are for them to include.
        includes: a folder to include from.
        flags: more flags for compiling and linking.
    """

    subject: str
    file: str
    sources: Mapping[str, str]
    includes: Path
    flags: tuple[str, ...]


def compile_library(compiler: Compiler, library: Library, folder: Path, kept: Path) -> str:
    """Compiles and links in ``folder``, where it leaves the library, the sources and the log.

    Args:
        kept: where the folder will be found if this fails, for the text of the error.

    Returns:
        The commands, for a shell in the folder of the sources.

    Raises:
        BuildError: with the compiler's first error, the command, and where the whole log is.
        OSError: ``folder`` cannot be written, or is full.
    """
    for name, text in library.sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    units = [name for name in library.sources if name.endswith(".cpp")]
    first = [*compiler.command, *FLAGS, *library.flags]
    include = f"-I{os.path.abspath(library.includes)}"
    compiling = [[*first, include, "-c", unit, "-o", f"{unit}.o"] for unit in units]
    linking = [*first, *(f"{unit}.o" for unit in units), *LINK_FLAGS, "-o", library.file]
    run = _Run(library.subject, folder, kept)
    run.side_by_side(compiling)
    run.side_by_side([linking])
    for unit in units:
        (folder / f"{unit}.o").unlink()
    return " && ".join(shlex.join(command) for command in [*compiling, linking])


def jobs() -> int:
    """How many compilers may run at a time."""
    limit = os.environ.get("MAX_JOBS", "")
    if limit.isdecimal() and int(limit) > 0:
        return int(limit)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Run:
    """The commands of one build: their common time limit, and their log."""

    def __init__(self, subject: str, folder: Path, kept: Path) -> None:
        self.subject, self.folder, self.kept = subject, folder, kept
        self.end = time.monotonic() + LIMIT_S
        # Errors are searched for English words. Temporary files lie here too, and go with the folder.
        self.environment = os.environ | {"LC_ALL": "C", "TMPDIR": str(folder)}

    def side_by_side(self, commands: Sequence[Sequence[str]]) -> None:
        """Runs all of these, some at a time, until one fails."""
        waiting = list(commands)
        running: list[tuple[Sequence[str], subprocess.Popen[bytes], Path]] = []
        try:
            while waiting or running:
                while waiting and len(running) < jobs():
                    command = waiting.pop(0)
                    running.append((command, *self._start(command, len(waiting))))
                for done in [each for each in running if each[1].poll() is not None]:
                    running.remove(done)
                    self._finish(*done)
                if running and time.monotonic() > self.end:
                    raise self._error(
                        running[0][0],
                        f"was not compiled: it took longer than {LIMIT_S:g} s, and the compiler was ended",
                        "Run the command by hand to see whether it ends; on a busy machine, try again later",
                    )
                if running:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        running[0][1].wait(0.01)
        finally:
            for _, process, _ in running:
                _end(process)

    def _start(self, command: Sequence[str], number: int) -> tuple[subprocess.Popen[bytes], Path]:
        output = self.folder / f"output-{number}.txt"
        with output.open("wb") as stream:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    # A group of its own: what has to be ended is the compiler behind g++ or ccache, too.
                    start_new_session=True,
                )
            except OSError as error:
                what = f"was not compiled: the compiler does not run: {error}"
                raise self._error(command, what, "Set CXX to a C++ compiler that works") from error
        return process, output

    def _finish(self, command: Sequence[str], process: subprocess.Popen[bytes], output: Path) -> None:
        text = output.read_text(errors="replace")
        output.unlink()
        with (self.folder / LOG).open("a") as log:
            log.write(f"$ {shlex.join(command)}\n{text}")
        if process.returncode == 0:
            return
        if _SAYS_FULL.search(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        if process.returncode < 0 or _SAYS_KILLED.search(text):
            by = f" by signal {-process.returncode}" if process.returncode < 0 else ""
            raise self._error(
                command,
                f"was not compiled: the compiler was killed{by}",
                "Most often memory ran out: free some, or set MAX_JOBS=1 to run one compiler at a time",
                text,
            )
        raise self._error(
            command,
            f"does not compile: {first_error(text) or f'exit status {process.returncode}'}",
            "Mend it if the error is in code of yours; else set CXX to another compiler, or report this with "
            "the log",
            text,
        )

    def _error(self, command: Sequence[str], what: str, way_out: str, text: str = "") -> BuildError:
        log = self.kept / LOG
        (self.folder / LOG).touch()
        around = "".join(f"\n    {line}" for line in around_first_error(text))
        by_hand = f"cd {shlex.quote(str(self.kept))} && LC_ALL=C {shlex.join(command)}"
        return BuildError(
            f"{self.subject} {what}{around}\n  command: {by_hand}\n  log: {log}\n  {way_out}", log
        )


def first_error(text: str) -> str:
    """The line of a compiler's output that the first error is on; empty if there is none."""
    return next((line.strip() for line in text.splitlines() if _ERROR.search(line)), "")


def around_first_error(text: str) -> list[str]:
    """The first error with what tells where it is: "In function ..." before, source and caret after."""
    lines = text.rstrip().splitlines()
    at = next((i for i, line in enumerate(lines) if _ERROR.search(line)), None)
    return lines[-8:] if at is None else lines[max(0, at - 3) : at + 6]


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
