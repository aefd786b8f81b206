"""The machine's C++ compiler: which one it is, what identifies it, and the flags that generated code needs.

Environment variables:
  CXX   the compiler, with arguments if it needs some ("ccache g++"); else c++, g++ or clang++, on the PATH
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .build_error import NoCompilerError

#: Those of setup.py that make code fast and its rounding reproducible; the reasons are there. No -march:
#: generated code names its instruction sets by pragmas. No -fopenmp: threads are the caller's.
FLAGS = (
    "-std=c++17", "-O3", "-g0", "-DNDEBUG", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden",
    "-fPIC", "-falign-functions=64", "-falign-loops=64",
)  # fmt: skip

# An undefined symbol is better found now, with a log, than by whoever loads the library.
LINK_FLAGS = ("-shared", *(("-Wl,-z,defs",) if sys.platform.startswith("linux") else ()))

_CANDIDATES = ("c++", "g++", "clang++")
_INSTALL = (
    "Install one (`apt-get install g++`, `dnf install gcc-c++`, `apk add g++`, `conda install -c conda-forge "
    "cxx-compiler`), or set CXX to one that is elsewhere"
)


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        command: the first words of every command.
        version: what it prints for --version, without paths.
        target: the machine it compiles for, "x86_64-linux-gnu" for example.
        executables: size and time of change of each program in ``command``: an upgrade that leaves the
            version as it is, or another script of the same name, is another compiler.
    """

    command: tuple[str, ...]
    version: str
    target: str
    executables: tuple[tuple[int, int], ...]

    def identity(self) -> dict[str, object]:
        """All that tells it from other compilers, but for where it lies; JSON."""
        return {
            "version": self.version,
            "target": self.target,
            "arguments": [word for word in self.command[1:] if not _is_program(word)],
            "executables": [list(each) for each in self.executables],
        }


def find_compiler() -> Compiler:
    """The compiler that CXX names, else the first of c++, g++ and clang++ that is on the PATH.

    It is asked for its version once in a process, and again when its files change.

    Raises:
        NoCompilerError: there is none, or it does not run.
    """
    chosen = os.environ.get("CXX", "").strip()
    words = _words(chosen) if chosen else [name for name in _CANDIDATES if shutil.which(name)][:1]
    program = shutil.which(words[0]) if words else None
    if program is None:
        looked = f"CXX is {chosen!r}, but there is no such program"
        if not chosen:
            looked = f"CXX is not set, and {', '.join(_CANDIDATES)} are not on the PATH"
        raise NoCompilerError(f"no C++ compiler was found: {looked}. {_INSTALL}")
    command = (program, *words[1:])
    return _ask(command, _executables(command))


def _words(chosen: str) -> list[str]:
    if shutil.which(chosen):  # a path with spaces that nobody quoted
        return [chosen]
    try:
        return shlex.split(chosen)
    except ValueError as error:
        raise NoCompilerError(
            f"CXX is {chosen!r}, which cannot be split into words: {error}. Quote it as in a shell"
        ) from None


def _is_program(word: str) -> bool:
    return not word.startswith("-") and shutil.which(word) is not None


def _executables(command: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Of every word that is a program, since of "ccache g++" it is the second that compiles."""
    statuses = [os.stat(shutil.which(word) or word) for word in command if _is_program(word)]
    # Whole seconds: layers of container images keep no more.
    return tuple((status.st_size, int(status.st_mtime)) for status in statuses)


@functools.lru_cache(maxsize=8)
def _ask(command: tuple[str, ...], executables: tuple[tuple[int, int], ...]) -> Compiler:
    asked: list[subprocess.Popen[str]] = []
    try:
        for question in (
            "--version",
            "-dumpmachine",
        ):  # side by side: most of what a warm start costs is here
            asked.append(
                subprocess.Popen(
                    [*command, question],
                    env=os.environ | {"LC_ALL": "C"},  # the version must not depend on the user's language
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            )
        version, target = (_answer(process) for process in asked)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompilerError(
            f"`{shlex.join(command)}` does not run: {error}. Set CXX to a C++ compiler that works"
        ) from error
    finally:
        for process in asked:
            with process:  # closes its pipe, and waits for it
                if process.poll() is None:
                    process.kill()
    # Clang tells where it is installed, which is no part of what it is.
    paths = ("InstalledDir:", "Configuration file:")
    version = "\n".join(line for line in version.splitlines() if not line.startswith(paths))
    return Compiler(command, version, target, executables)


def _answer(process: subprocess.Popen[str]) -> str:
    answer, _ = process.communicate(timeout=60)
    if process.returncode != 0:
        raise NoCompilerError(
            f"`{shlex.join(process.args)}` failed with exit status {process.returncode}: "  # type: ignore[arg-type]
            f"{answer.strip() or 'no output'}. Set CXX to a C++ compiler that works"
        )
    return answer.strip()
