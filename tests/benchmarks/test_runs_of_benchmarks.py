"""Results as files: reading, putting together, adding a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import runs
from benchmarks.runs import Run, Source

SETTING = {"steps": 100, "batch": 1, "features": 64, "hidden": 64, "dtype": "float32", "bidirectional": False,
           "layers": 1, "loop": False, "cells": True}  # fmt: skip
OLD = Source({"device": "A CPU", "date": "2026-11-21"}, {"id": "0123456789", "dirty": True})
NEW = Source({"device": "A CPU", "date": "2026-11-22"}, {"id": "9876543210", "dirty": False})


def run(ms: float, source: Source = OLD, **other: Any) -> Run:
    info = {"suite": "layer", "ours": "a", "mode": "inference", "threads": 2, "ratios": []}
    info["times"] = {"a": {"median_ms": ms, "min_ms": ms}}
    facts = {name: value for name, value in other.items() if name in info}
    setting = {name: value for name, value in other.items() if name not in info}
    return Run({**info, **facts, "setting": {**SETTING, **setting}}, source)


def times(found: list[Run]) -> list[float]:
    return [each.times["a"]["median_ms"] for each in found]


def test_later_run_of_a_setting_replaces_the_earlier_one() -> None:
    first, second, again = run(1.0), run(2.0, batch=2), run(3.0, NEW, loop=True, cells=False)
    found = runs.merged([first, second, again])
    assert times(found) == [3.0, 2.0]
    assert [each.source.short for each in found] == ["9876543", "0123456+"]


@pytest.mark.parametrize(
    "other",
    [{"mode": "training"}, {"threads": 1}, {"suite": "cells"}, {"dtype": "bfloat16"}, {"hidden": 65},
     {"bidirectional": True}, {"layers": 2}],
)  # fmt: skip
def test_other_settings_stay(other: dict[str, Any]) -> None:
    assert times(runs.merged([run(1.0), run(2.0, **other)])) == [1.0, 2.0]


def test_several_machines_do_not_mix() -> None:
    other = Source({"device": "Another CPU"}, NEW.commit)
    with pytest.raises(ValueError, match="several machines do not mix: A CPU, Another CPU"):
        runs.merged([run(1.0), run(2.0, other, batch=2)])
    assert times(runs.merged([run(1.0), run(2.0, other)])) == [2.0], "of the first one nothing is left"


def test_file_says_where_each_run_is_from(tmp_path: Path) -> None:
    file = tmp_path / "there" / "a.json"
    runs.write(file, [run(1.0), run(2.0, NEW, batch=2), run(3.0, batch=3)])
    content = json.loads(file.read_text())
    assert content["sources"] == [
        {"machine_info": each.machine, "commit_info": each.commit} for each in (OLD, NEW)
    ]
    assert [each["source"] for each in content["benchmarks"]] == [0, 1, 0]
    found = runs.read(file)
    assert times(found) == [1.0, 2.0, 3.0] and [r.source for r in found] == [OLD, NEW, OLD]
    assert runs.sources(found) == [OLD, NEW]


def test_runs_are_added_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for each in (run(1.0), run(2.0, batch=2), run(3.0, NEW), run(4.0, NEW, batch=2)):
        runs.add(file, each)
    assert times(runs.read(file)) == [3.0, 4.0]
    assert len(json.loads(file.read_text())["sources"]) == 1, "nothing is left of the older commit"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_run_with_fewer_contenders_replaces_none(tmp_path: Path) -> None:
    file, first = tmp_path / "a.json", run(1.0)
    first.times["the slow one"] = {"median_ms": 9.0, "min_ms": 9.0}
    runs.add(file, first)
    with pytest.raises(ValueError, match="with the slow one, which this one lacks"):
        runs.add(file, run(2.0))
    assert times(runs.read(file)) == [1.0]
    runs.add(file, run(2.0, batch=2))
    assert times(runs.read(file)) == [1.0, 2.0]


def test_file_of_pytest_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    benchmarks = [{"extra_info": run(1.0).info, "stats": {"data": [1.0]}}, {"extra_info": {}}]
    head = {"machine_info": OLD.machine, "commit_info": OLD.commit, "version": "5"}
    file.write_text(json.dumps({**head, "benchmarks": benchmarks}))
    (found,) = runs.read(file)
    assert found.source == OLD and found.info == run(1.0).info


def test_source_in_words() -> None:
    facts = {"device": "A CPU", "cpu_cores": 2, "cpu_flags": ["avx2"], "torch": "2.13.0", "date": "today"}
    text = str(Source(facts, {"id": "0123456789abcdef", "dirty": True}))
    commit = "commit 0123456789ab with changes that are not committed"
    assert text == f"A CPU (2 cores; avx2), torch 2.13.0, {commit}, today"
    assert str(Source({}, {})) == "unknown machine, commit unknown, no date"


def test_source_that_does_not_exist(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    runs.write(file, [run(1.0)])
    file.write_text(file.read_text().replace('"source": 0', '"source": 1'))
    with pytest.raises(ValueError, match=r"a\.json is no result of the benchmarks"):
        runs.read(file)
