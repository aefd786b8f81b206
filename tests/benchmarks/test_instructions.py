"""Instruction counts: reading what callgrind writes, comparing two results, and one count for real."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import counted, instructions
from benchmarks.instructions import Change
from customlstm import _binary

# In the library 10 + 5 and 20, in Python 7; the 20 that line 12 has called are those of line 40.
DUMP = """# callgrind format
version: 1
part: 1

desc: Trigger: Client Request: 2 customlstm.LSTM 1,2,3,4 float32 training

positions: line
events: Ir
summary: 0

ob=/some/where/_C.abi3.so
fl=csrc/a.cpp
fn=caller
10 10
cob=/some/where/_C.abi3.so
cfi=csrc/b.inl
cfn=called
calls=3 40
12 20
fi=csrc/inlined.h
7 5
fe=csrc/a.cpp

fl=csrc/b.inl
fn=called
40 20

ob=/usr/lib/libpython3.11.so
fl=???
fn=eval
0 7

totals: 42
"""
OURS, THEIRS = "customlstm.LSTM 1,2,3,4 float32 training", "nn.LSTM 1,2,3,4 float32 training"


def test_a_dump_is_read() -> None:
    name, found = instructions.parse(DUMP, "_C.abi3.so")
    assert name == f"2 {OURS}" and found == {"kernels": 35, "whole": 42}
    assert instructions.parse(DUMP, "other.so")[1] == {"kernels": 0, "whole": 42}


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("totals: 42", "totals: 43", "states 43 instructions, and 42"),
        ("totals: 42", "", "no dump of callgrind"),
        ("Client Request: ", "", "no dump of callgrind"),
    ],
)
def test_what_is_no_whole_dump(old: str, new: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        instructions.parse(DUMP.replace(old, new), "_C.abi3.so")


def test_one_call_is_a_difference() -> None:
    dumps = [
        (f"1 {OURS}", {"kernels": 40, "whole": 100}),
        (f"1 {THEIRS}", {"kernels": 0, "whole": 90}),
        ("2 customlstm.Stream", {"kernels": 5, "whole": 50}),
        ("6 customlstm.Stream", {"kernels": 17, "whole": 61}),
    ]
    assert instructions.of_one_call(dumps) == {
        OURS: {"kernels": 40, "whole": 100},
        THEIRS: {"whole": 90},
        "customlstm.Stream": {"kernels": 3, "whole": 3},
    }


@pytest.mark.parametrize(("new", "grew"), [(1000, False), (1030, False), (1031, True), (500, False)])
def test_growth(new: int, grew: bool) -> None:
    assert instructions.GROWTH == 0.03
    assert Change(OURS, "kernels", 1000, new).grew is grew
    assert not Change(THEIRS, "whole", 1000, new).grew, "ours only"


def test_changes() -> None:
    old = {OURS: {"kernels": 10, "whole": 20}, "gone": {"kernels": 1, "whole": 1}}
    new = {OURS: {"kernels": 11, "whole": 20}, THEIRS: {"whole": 5}}
    found = instructions.changes(old, new)
    assert found == [
        Change(OURS, "kernels", 10, 11), Change(OURS, "whole", 20, 20), Change(THEIRS, "whole", None, 5)
    ]  # fmt: skip
    head, first, second, third = instructions.table(found).splitlines()
    assert head.split() == ["part", "before", "now", "ratio"]
    assert first.split()[-5:] == ["kernels", "10", "11", "1.1000", "grew"]
    assert second.split()[-1] == "1.0000" and third.split()[-3:] == ["whole", "-", "5"]
    with pytest.raises(ValueError, match="no case in common"):
        instructions.changes({"gone": {"whole": 1}}, new)


def result(kernels: int, **facts: str) -> dict[str, Any]:
    about = {"compiler": "a", "torch": "b", **facts}
    return {"machine_info": about, "commit_info": {}, "counts": {OURS: {"kernels": kernels, "whole": 50}}}


def test_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "there" / "a.json"
    monkeypatch.setattr(instructions, "count", lambda words: result(100))
    assert instructions.main(["--output", str(file)]) == 0
    assert json.loads(file.read_text()) == result(100)
    assert "kernels 100  whole 50" in capsys.readouterr().out
    monkeypatch.setattr(instructions, "count", lambda words: result(103, compiler="c"))
    assert instructions.main(["--compare", str(file)]) == 0
    out = capsys.readouterr().out
    assert "compiler: a before, c now" in out and "torch" not in out and "0 of 2 counts grew" in out
    monkeypatch.setattr(instructions, "count", lambda words: result(104))
    assert instructions.main(["--compare", str(file), "--output", str(file)]) == 1
    assert "1 of 2 counts grew by more than 3%" in capsys.readouterr().out
    assert json.loads(file.read_text()) == result(104)
    more = result(100) | {"counts": {**result(100)["counts"], "customlstm.Stream": {"whole": 1}}}
    file.write_text(json.dumps(more))
    for only, said in (([], True), (["--only", "LSTM"], False)):
        instructions.main(["--compare", str(file), *only])
        assert ("no longer counted: customlstm.Stream" in capsys.readouterr().out) is said


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"counts": {"a": {"whole": "1"}}, "machine_info": {}}'])
def test_what_is_no_result(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before minutes go into counting."""
    monkeypatch.delattr(instructions, "count")
    file = tmp_path / "a.json"
    file.write_text(text)
    assert instructions.main(["--compare", str(file)]) == 2
    said = capsys.readouterr().err
    assert str(file) in said and "no result of benchmarks.instructions" in said


def test_without_valgrind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert instructions.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("instructions: valgrind is not on the PATH") and said.count("\n") == 1


def test_without_compiler_or_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(instructions.Unable, match="no C compiler: /no/such/compiler: No such file"):
        instructions.build_marks(tmp_path)
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho valgrind/callgrind.h: No such file >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", f"{broken} -m64")
    with pytest.raises(instructions.Unable, match=r"need valgrind's headers:\nvalgrind/callgrind.h: No such"):
        instructions.build_marks(tmp_path)


def test_cases() -> None:
    names = [case.name for case in counted.cases()]
    assert len(set(names)) == len(names) == 9 * len(counted.SHAPES)
    for shape in counted.SHAPES:
        assert any(f"customlstm.LSTM {','.join(map(str, shape))} float32 training" == name for name in names)
    assert {name.split()[0] for name in names if instructions.is_ours(name)} == {
        "customlstm.LSTM", "customlstm.LSTMCell", "customlstm.Stream"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not _binary.status().loaded, reason=_binary.status().reason)
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_a_count(tmp_path: Path) -> None:
    """The smallest one: half a minute, nearly all of it for importing torch under valgrind."""
    try:
        instructions.build_marks(tmp_path)
    except instructions.Unable as error:
        pytest.skip(str(error))
    found = instructions.count(["Stream", "1,1,128,128"])
    ((name, counts),) = found["counts"].items()
    assert name == "customlstm.Stream 1,1,128,128 float32 inference"
    # 8 B H (I + H) operations in vectors of at most 8, a multiply-add two of them, are 16,384 instructions.
    assert 16_384 < counts["kernels"] < 1_000_000 and counts["kernels"] < counts["whole"]
    about = found["machine_info"]
    assert about["threads"] == 1 and about["kernels"] in ("avx2", "default") and about["valgrind"]
