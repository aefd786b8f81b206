"""From generated C++ to a library: arguments, headers, flags, compilers."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support_builds import (
    ALL_COMPILED,
    CompilerScript,
    compiled,
    contents,
    includes,
    needs_compiler,
    number,
    sources,
    wait_for,
)

from customlstm.jit import build, compiling, headers, toolchain
from customlstm.jit.build import BuildError, Built, NoCompilerError, build_library

pytestmark = [needs_compiler, pytest.mark.usefixtures("root")]

PROJECT = Path(__file__).resolve().parents[2]
CLEAN = ["number", "number.lock"]


def test_sources_become_a_library(folder: Path, root: Path) -> None:
    built = build_library("number", sources(), includes=folder)
    assert number(built.path) == 101
    assert not built.from_cache
    assert built.path.parent.parent == root / "cpu"
    assert sorted(path.name for path in built.path.parent.iterdir()) == [
        "build.log", "manifest.json", "number.cpp", "number.so", "other.cpp", "other.h",
    ]  # fmt: skip
    assert built.log == built.path.with_name("build.log")
    commands = [f"$ {command}" for command in built.command.split(" && ")]
    assert sorted(commands) == sorted(built.log.read_text().splitlines())  # in the order in which they ended
    again = build_library("number", sources(), includes=folder)
    assert again == Built(built.path, again.seconds, True, built.command, built.log)
    assert contents(root / "cpu") == CLEAN


def test_the_command_can_be_run_again(folder: Path) -> None:
    built = build_library("number", sources(), includes=folder)
    built.path.unlink()
    subprocess.run(built.command, shell=True, cwd=built.path.parent, check=True)
    assert number(built.path) == 101


def test_the_package_s_own_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '#include "cpu/kernels.h"\n#include "cells/activation.h"\n' + sources("1")["number.cpp"]
    text = text.replace('#include "cells/number.h"\n', "")
    built = build_library("number", sources() | {"number.cpp": text}, includes=headers.headers())
    assert number(built.path) == 101


def test_flags_are_those_of_the_package_s_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stated twice, since setup.py may be no part of an installation. So cells round alike."""
    for switch in ("DEBUG", "SANITIZE"):
        monkeypatch.delenv(switch, raising=False)
    spec = importlib.util.spec_from_file_location("setup_of_customlstm", PROJECT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs, _ = module.compile_flags()
    own = {"-std=c++17", "-fPIC", "-DNDEBUG"}  # torch and Python add these to setup.py's
    assert set(toolchain.FLAGS) - own == {flag for flag in theirs if flag.startswith(("-O", "-g", "-f"))} - {
        "-fopenmp"
    }


@pytest.mark.parametrize("flags", [["-DNUMBER=2"], ["-DNUMBER=2", "-O1"]])
def test_flags_reach_the_compiler_and_tell_entries_apart(flags: list[str], folder: Path) -> None:
    (folder / "cells/number.h").write_text("#ifndef NUMBER\n#define NUMBER 1\n#endif\n")
    plain = build_library("number", sources(), includes=folder)
    with_flags = build_library("number", sources(), includes=folder, flags=flags)
    assert (number(plain.path), number(with_flags.path)) == (101, 102)
    assert plain.path.parent != with_flags.path.parent
    assert shlex.join(flags) in with_flags.command


@pytest.mark.parametrize("changed", ["number.cpp", "other.cpp", "other.h"])
def test_every_source_tells_entries_apart(changed: str, folder: Path) -> None:
    first = build_library("number", sources(), includes=folder)
    edited = sources() | {changed: "/* edited */\n" + sources()[changed]}
    assert not build_library("number", edited, includes=folder).from_cache
    assert build_library("number", sources(), includes=folder).path == first.path


@pytest.mark.parametrize("file", ["cells/number.h", "cells/new.inl", "cpu/deep/new.cpp", "types.h"])
def test_a_changed_header_is_another_entry(file: str, folder: Path) -> None:
    """Also one that no source names: which are included may depend on macros, or on the compiler."""
    first = build_library("number", sources(), includes=folder)
    header = folder / file
    header.parent.mkdir(parents=True, exist_ok=True)
    before = header.read_text() if header.exists() else None
    header.write_text("#define NUMBER 5\n")
    second = build_library("number", sources(), includes=folder)
    assert not second.from_cache
    assert number(second.path) == (105 if file == "cells/number.h" else 101)
    header.unlink() if before is None else header.write_text(before)
    assert build_library("number", sources(), includes=folder).path == first.path


def test_files_that_cannot_be_included_do_not_count(folder: Path) -> None:
    first = build_library("number", sources(), includes=folder)
    (folder / "cells/README.md").write_text("words")
    (folder / "ops").mkdir()
    (folder / "ops/torch.h").write_text("")
    assert build_library("number", sources(), includes=folder).path == first.path


def test_two_installations_share(folder: Path, tmp_path: Path) -> None:
    first = build_library("number", sources(), includes=folder)
    elsewhere = shutil.copytree(folder, tmp_path / "else where")
    assert build_library("number", sources(), includes=elsewhere).path == first.path


def test_headers_that_change_during_a_build_are_not_published(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    script = CompilerScript(tmp_path / "tools")
    script.hold.touch()
    monkeypatch.setenv("CXX", str(script.path))
    errors: list[BuildError] = []

    def attempt() -> None:
        try:
            build_library("number", sources(), includes=folder)
        except BuildError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    wait_for(script.runs)
    (folder / "cells/number.h").write_text("#define NUMBER 7\n")
    script.hold.unlink()
    thread.join()
    assert [str(error) for error in errors] == [
        f"headers below {folder} changed while 'number' was compiled. Call again"
    ]
    assert contents(root / "cpu") == ["number.failed", "number.lock"]
    assert number(build_library("number", sources(), includes=folder).path) == 107


def test_no_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError) as caught:
        build_library("number", sources(), includes=tmp_path / "nowhere")
    assert str(caught.value) == (
        f"{tmp_path / 'nowhere'} holds no C++ headers: expected types.h, cells, cpu there. Pass the "
        "folder that "
        "customlstm.jit.headers.headers() returns"
    )
    monkeypatch.setattr(headers, "_PACKAGE", tmp_path / "customlstm")
    with pytest.raises(BuildError) as caught:
        headers.headers()
    assert str(caught.value) == (
        f"the C++ headers of customlstm are missing: types.h is in neither {tmp_path}/customlstm/include nor "
        f"{tmp_path}/csrc. Every wheel and every clone has them, so this installation is damaged: install "
        "customlstm again"
    )


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"sources": {"a.h": ""}}, ValueError, "sources has no file that ends in .cpp, got a.h"),
        ({"sources": {}}, ValueError, "sources has no file that ends in .cpp, got none at all"),
        (
            {"sources": {"a.cpp": b""}},
            TypeError,
            "sources must map file names to texts, got 'a.cpp': bytes",
        ),
        ({"flags": "-O2"}, TypeError, "flags must be a sequence of str, one for each flag, got '-O2'"),
        ({"flags": [1]}, TypeError, "flags must be a sequence of str, one for each flag, got [1]"),
        *(
            (
                {"sources": {name: ""}},
                ValueError,
                f"sources has {name!r}, expected file names of letters, digits and _ . + - without a folder, "
                "other than manifest.json and build.log",
            )
            for name in ("../a.cpp", "-o.cpp", "@a.cpp", ".a.cpp", "", "manifest.json", "build.log")
        ),
    ],
)
def test_wrong_arguments(wrong: dict, error: type[Exception], said: str, folder: Path) -> None:
    with pytest.raises(error) as caught:
        build_library(**{"name": "number", "sources": sources(), "includes": folder} | wrong)
    assert str(caught.value) == said


def test_cxx_with_arguments(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As "ccache g++": a program that runs the compiler which is its first argument."""
    launcher = tmp_path / "a launcher"
    launcher.write_text('#!/bin/sh\nexec "$@"\n')
    launcher.chmod(0o755)
    (folder / "cells/number.h").write_text("")
    monkeypatch.setenv("CXX", f"'{launcher}' c++ -DNUMBER=3")
    first = build_library("number", sources(), includes=folder)
    assert number(first.path) == 103
    monkeypatch.setenv("CXX", f"'{launcher}' c++ -DNUMBER=4")
    assert number(build_library("number", sources(), includes=folder).path) == 104


@pytest.mark.parametrize("quoted", [True, False])
def test_odd_characters_in_paths(quoted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a b'c\"d $(e) ä;f"
    script = CompilerScript(tmp_path / "a b; $c", "c ++")
    folder = includes(odd / "includes")
    monkeypatch.setenv("CXX", shlex.quote(str(script.path)) if quoted else str(script.path))
    monkeypatch.setenv("CUSTOMLSTM_CACHE_DIR", str(odd / "cache"))
    built = build_library("number", sources(), includes=folder)
    assert number(built.path) == 101
    assert compiled(script.runs()) == ALL_COMPILED
    built.path.unlink()
    subprocess.run(built.command, shell=True, cwd=built.path.parent, check=True)
    assert number(built.path) == 101


def test_another_compiler_is_another_entry(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = CompilerScript(tmp_path / "tools")
    monkeypatch.setenv("CXX", str(script.path))
    first = build_library("number", sources(), includes=folder)
    assert build_library("number", sources(), includes=folder).from_cache
    os.utime(script.path, (0, 0))  # an upgrade that tells the same version, within the life of this process
    second = build_library("number", sources(), includes=folder)
    assert not second.from_cache
    assert second.path.parent != first.path.parent
    moved = CompilerScript(tmp_path / "moved")
    shutil.copy2(script.path, moved.path)
    monkeypatch.setenv("CXX", str(moved.path))
    assert build_library("number", sources(), includes=folder).path == second.path


def test_without_a_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built = build_library("number", sources(), includes=folder)
    monkeypatch.setenv("PATH", str(tmp_path))
    for chosen, looked in (
        ("", "CXX is not set, and c++, g++, clang++ are not on the PATH"),
        ("my-c++ -m32", "CXX is 'my-c++ -m32', but there is no such program"),
    ):
        monkeypatch.setenv("CXX", chosen)
        with pytest.raises(NoCompilerError) as caught:
            build_library("number", sources("2"), includes=folder)
        assert str(caught.value) == (
            f"no C++ compiler was found: {looked}. Install one (`apt-get install g++`, `dnf install "
            "gcc-c++`, `apk "
            "add g++`, `conda install -c conda-forge cxx-compiler`), or set CXX to one that is elsewhere"
        )
        # As in the second stage of a container's build, which has the cache of the first but no compiler.
        assert build_library("number", sources(), includes=folder).path == built.path


def test_a_compiler_that_does_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no licence >&2; exit 3\n")
    broken.chmod(0o755)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x7fELF and no more")
    garbage.chmod(0o755)
    for chosen, said in (
        (
            str(broken),
            f"`{broken} --version` failed with exit status 3: no licence. Set CXX to a C++ compiler "
            "that works",
        ),
        (
            str(garbage),
            f"`{garbage}` does not run: [Errno 8] Exec format error: '{garbage}'. Set CXX to a C++ "
            "compiler that works",
        ),
        (
            "c++ 'half",
            'CXX is "c++ \'half", which cannot be split into words: No closing quotation. Quote it as '
            "in a shell",
        ),
    ):
        monkeypatch.setenv("CXX", chosen)
        with pytest.raises(NoCompilerError) as caught:
            build_library("number", sources(), includes=folder)
        assert str(caught.value) == said


def test_switched_off_no_compiler_is_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.setenv("CUSTOMLSTM_JIT", "0")
    touched = tmp_path / "touched"
    (tmp_path / "c++").write_text(f"#!/bin/sh\ntouch '{touched}'\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    with pytest.raises(build.BuildDisabledError) as caught:
        build_library("number", sources(), includes=folder)
    assert str(caught.value) == (
        "'number' needs to be built, but CUSTOMLSTM_JIT is 0. Unset it, or set CUSTOMLSTM_CACHE_DIR to "
        "a cache that "
        f"holds a build of it (none was found in {root})"
    )
    assert not touched.exists()
    monkeypatch.delenv("CUSTOMLSTM_JIT")
    monkeypatch.delenv("CXX")
    built = build_library("number", sources(), includes=folder)
    monkeypatch.setenv("CUSTOMLSTM_JIT", "0")
    assert build_library("number", sources(), includes=folder).path == built.path


@pytest.mark.parametrize(("jobs", "most"), [("1", 1), ("3", 3)])
def test_units_are_compiled_side_by_side(
    jobs: str, most: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = CompilerScript(tmp_path / "tools")
    script.hold.touch()
    monkeypatch.setenv("CXX", str(script.path))
    monkeypatch.setenv("MAX_JOBS", jobs)
    texts = sources() | {f"unit{n}.cpp": f"int unit{n}() {{ return {n}; }}\n" for n in range(3)}
    thread = threading.Thread(target=build_library, args=("number", texts), kwargs={"includes": folder})
    thread.start()
    wait_for(lambda: len(script.runs()) == most)
    time.sleep(0.2)
    assert len(script.runs()) == most
    script.hold.unlink()
    thread.join()
    assert len(script.runs()) == 6


def test_as_many_compilers_as_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7})
        assert compiling.jobs() == 3
    for text, jobs in (("2", 2), ("64", 64)):
        monkeypatch.setenv("MAX_JOBS", text)
        assert compiling.jobs() == jobs
