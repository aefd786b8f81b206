"""How a build can fail, and what the error says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support_builds import (
    CompilerScript,
    contents,
    needs_compiler,
    number,
    sources,
    wait_for,
)

from customlstm.jit import compiling, folders
from customlstm.jit.build import BuildError, CacheWarning, build_library

pytestmark = [needs_compiler, pytest.mark.usefixtures("root")]



def test_a_compile_error(folder: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = CompilerScript(tmp_path / "tools")
    monkeypatch.setenv("CXX", str(script.path))
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    wrong = sources() | {"number.cpp": "int one() { return 1; }\nint number() {\n  return absent;\n}\n"}
    errors = []
    for _ in range(2):
        with pytest.raises(BuildError) as caught:
            build_library("number", wrong, includes=folder)
        errors.append(caught.value)
    assert len([run for run in script.runs() if "number.cpp" in run]) == 1
    assert str(errors[0]) == str(errors[1])

    (kept,) = (root / "cpu").glob("*.failed")
    lines = str(errors[0]).splitlines()
    assert lines[0].startswith("'number' does not compile: number.cpp:3:10: error: ")
    assert "absent" in lines[0]
    assert f"    {lines[0].partition(': ')[2]}" in lines
    assert any(line.endswith("return absent;") for line in lines)
    command, log, way_out = lines[-3:]
    assert command.startswith(f"  command: cd {kept} && LC_ALL=C {script.path} -std=c++17 -O3 ")
    assert log == f"  log: {kept / 'build.log'}"
    assert way_out == (
        "  Mend it if the error is in code of yours; else set CXX to another compiler, or report this "
        "with the log"
    )
    assert errors[0].log == kept / "build.log"
    assert "absent" in errors[0].log.read_text()
    by_hand = subprocess.run(command.removeprefix("  command: "), shell=True, capture_output=True, text=True)
    assert by_hand.returncode == 1
    assert lines[0].partition(": ")[2] in by_hand.stderr


def test_an_undefined_symbol_is_an_error_of_the_build(folder: Path) -> None:
    lacking = sources() | {"other.cpp": "int absent();\nint other() { return absent(); }\n"}
    if not sys.platform.startswith("linux"):
        pytest.skip("other linkers refuse this by themselves, in other words")
    with pytest.raises(BuildError, match=r"^'number' does not compile: .*undefined reference to .absent"):
        build_library("number", lacking, includes=folder)


def script_that(folder: Path, does: str) -> str:
    """A compiler that tells its version and target, then does this."""
    path = folder / "does"
    path.write_text(f'#!/bin/sh\ncase "$1" in --version|-dumpmachine) echo x; exit;; esac\n{does}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("kill -9 $$", "'number' was not compiled: the compiler was killed by signal 9"),
        (
            "echo 'c++: fatal error: Killed signal terminated program cc1plus' >&2; exit 1",
            "'number' was not compiled: the compiler was killed",
        ),
        (
            "echo 'clang++: error: unable to execute command: Killed' >&2; exit 1",
            "'number' was not compiled: the compiler was killed",
        ),
    ],
)
def test_a_compiler_that_is_killed(
    does: str, said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", script_that(tmp_path, does))
    with pytest.raises(BuildError) as caught:
        build_library("number", sources(), includes=folder)
    lines = str(caught.value).splitlines()
    assert lines[0] == said
    assert lines[-1] == (
        "  Most often memory ran out: free some, or set MAX_JOBS=1 to run one compiler at a time"
    )


def test_surroundings_of_the_compiler(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """Its language is the one that errors are searched in; its temporary files go with the attempt."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("CXX", script_that(tmp_path, 'echo "error: $LC_ALL, $TMPDIR, $PWD"; exit 1'))
    with pytest.raises(BuildError) as caught:
        build_library("number", sources(), includes=folder)
    said = str(caught.value).splitlines()[0]
    language, temporary, here = said.removeprefix("'number' does not compile: error: ").split(", ")
    assert language == "C"
    assert temporary == here
    assert Path(here).parent == root / "cpu"


def test_a_compiler_that_says_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", script_that(tmp_path, "exit 7"))
    with pytest.raises(BuildError) as caught:
        build_library("number", sources(), includes=folder)
    assert str(caught.value).splitlines()[0] == "'number' does not compile: exit status 7"


def test_a_compiler_that_takes_too_long_is_ended_with_its_children(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    monkeypatch.setenv("CXX", script_that(tmp_path, f"sleep 60 & echo $! >> '{child}'; wait"))
    monkeypatch.setattr(compiling, "LIMIT_S", 0.5)
    start = time.monotonic()
    with pytest.raises(BuildError) as caught:
        build_library("number", sources(), includes=folder)
    assert time.monotonic() - start < 30  # not the 60 of the child
    lines = str(caught.value).splitlines()
    assert lines[0] == ("'number' was not compiled: it took longer than 0.5 s, and the compiler was ended")
    assert lines[-1] == (
        "  Run the command by hand to see whether it ends; on a busy machine, try again later"
    )
    for process in child.read_text().split():
        wait_for(lambda process=process: not _runs(int(process)))


def _runs(process: int) -> bool:
    """A zombie, which whoever adopted it has not yet asked about, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_compiler_that_finds_the_disk_full(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """It is the cache's disk: elsewhere there is room."""
    full = f'case "$PWD" in {root}*) echo "fatal error: a.o: No space left on device" >&2; exit 1;; esac\n'
    monkeypatch.setenv("CXX", script_that(tmp_path, full + 'exec c++ "$@"'))
    with pytest.warns(
        CacheWarning, match=f"^the cache folder {root} cannot be used: No space left on device"
    ):
        built = build_library("number", sources(), includes=folder)
    assert number(built.path) == 101
    assert built.path.is_relative_to(folders.present_temporary())
    assert contents(root / "cpu") == ["number.lock"]
