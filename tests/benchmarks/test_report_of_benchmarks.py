"""``python -m benchmarks.report``: tables and plots of a small made-up result."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import report
from benchmarks.runs import Ratio, Run, Source, load

SETTING = {"steps": 100, "batch": 1, "features": 64, "hidden": 64, "dtype": "float32", "bidirectional": False,
           "layers": 1, "loop": False, "cells": True}  # fmt: skip
RATIO = {"title": "nn.LSTM / ours", "of": "nn.LSTM", "to": "customlstm", "least": 1.0}


def run(ours: float, theirs: float, mode: str = "inference", **setting: Any) -> dict[str, Any]:
    """Median times; the minima are a tenth of our time less for both."""
    times = {
        name: {"median_ms": ms, "min_ms": ms - 0.1 * ours}
        for name, ms in (("customlstm", ours), ("nn.LSTM", theirs))
    }
    return {
        "suite": "layer", "ours": "customlstm", "setting": {**SETTING, **setting}, "mode": mode, "threads": 2,
        "times": times, "ratios": [RATIO], "peak_bytes": {"customlstm": 3 << 20, "nn.LSTM": 6 << 20},
        "gemm": {"gflops": {"customlstm": 80.0, "torch.mm": 90.0, "oneDNN": 100.0}, "fraction": 0.8},
    }  # fmt: skip


RUNS = [run(1.0, 4.0), run(2.0, 1.0, hidden=128, features=128), run(3.0, 6.0, hidden=256, features=256)]
MACHINE = {"device": "A CPU", "cpu_cores": 2, "cpu_flags": ["avx2"], "torch": "2.13.0", "date": "2026-11-22"}


def write(file: Path, runs: list[dict[str, Any]] = RUNS, **content: Any) -> Path:
    head = {"machine_info": MACHINE, "commit_info": {"id": "0123456789abcdef", "dirty": True}, "version": "5"}
    benchmarks = [{"extra_info": info, "stats": {"data": [1.0]}} for info in runs]
    file.write_text(json.dumps({**head, "benchmarks": benchmarks, **content}))
    return file


def runs(infos: Iterable[dict[str, Any]]) -> list[Run]:
    return [Run(info, Source(MACHINE, {"id": "0123456789abcdef", "dirty": True})) for info in infos]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return write(tmp_path / "result.json")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(page: str, *words: str) -> list[list[str]]:
    return [
        cells(line) for line in page.splitlines() if line.startswith("|") and all(w in line for w in words)
    ]


def test_page(result: Path) -> None:
    page = report.report(load([result]))
    assert (
        "- A CPU (2 cores; avx2), torch 2.13.0, commit 0123456789ab with changes that are not committed"
        in page
    )
    (summary,) = rows(page, "| layer |")
    # The geometric mean of 4, 1/2 and 2; the minima's of 3.9/0.9, 0.8/1.8 and 5.7/2.7.
    assert summary[2:7] == ["float32", "inference", "2", "1.59 (1.60)", "**1 of 3**"]
    assert summary[7] == "**0.50** (0.44) ↓ at 100, 1, 128, 128"
    (row,) = rows(page, "| 100, 1, 64, 64 |")
    assert row == [
        "100, 1, 64, 64",
        "float32",
        "inference",
        "2",
        "1",
        "4.00 (4.33)",
        "80% of 100",
        "3.0 / 6.0",
    ]
    (mean,) = rows(page, "| geometric mean |", "inference")
    assert mean[5] == "1.59 (1.60)"


def test_means_are_of_one_dtype_mode_and_number_of_threads(tmp_path: Path) -> None:
    other = run(1.0, 9.0, "training")
    page = report.report(load([write(tmp_path / "a.json", [*RUNS, other])]))
    (training,) = rows(page, "| layer |", "training")
    assert training[5].startswith("9.00") and training[6] == "0 of 1"
    assert not rows(page, "| geometric mean |", "training")  # of one shape it would say nothing new


def test_columns_without_values_are_left_out(tmp_path: Path) -> None:
    plain = {key: value for key, value in RUNS[0].items() if key not in ("peak_bytes", "gemm")}
    page = report.report(load([write(tmp_path / "a.json", [plain])]))
    assert "GEMM" not in page and "MiB" not in page


def test_losses_against_another_aim() -> None:
    assert not Ratio(0.9, 0.95, 1 / 1.15).lost
    assert Ratio(0.86, 0.95, 1 / 1.15).lost
    assert str(Ratio(0.5, 0.6, 1.0)) == "**0.50** (0.60) ↓"
    assert str(Ratio(1.5, 1.6, 1.0)) == "1.50 (1.60)"


def test_every_loss_has_a_line() -> None:
    found = runs([run(1.0, 0.9, hidden=32), *RUNS, run(1.0, 0.95, "training", dtype="float16")])
    assert report.losses(found).splitlines() == [
        "loss: layer, float32, inference, 2 threads, (100, 1, 128, 128): nn.LSTM / ours 0.50 (0.44)",
        "loss: layer, float32, inference, 2 threads, (100, 1, 64, 32): nn.LSTM / ours 0.90 (0.89)",
        "loss: layer, float16, training, 2 threads, (100, 1, 64, 64): nn.LSTM / ours 0.95 (0.94)",
    ]
    assert report.losses(found[1:2]) == ""


def test_rows_name_their_commit_where_there_are_several(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(result)]) == 0
    assert not rows(capsys.readouterr().out, "| commit |")
    newer = {"id": "fedcba9876543210", "dirty": False}
    other = write(tmp_path / "other.json", [run(1.0, 2.0, batch=2), run(1.0, 3.0)], commit_info=newer)
    assert report.main([str(result), str(other)]) == 0
    page = capsys.readouterr().out
    first, second = sorted(line for line in page.splitlines() if line.startswith("- "))
    assert "commit 0123456789ab with changes" in first and first.endswith("; runs: 2 of layer")
    assert "commit fedcba987654," in second and second.endswith("; runs: 2 of layer")
    named = {row[0]: (row[5], row[-1]) for row in rows(page, "| 100, ")}
    assert named["100, 1, 64, 64"] == ("3.00 (3.22)", "fedcba9")
    assert named["100, 1, 128, 128"][1] == "0123456+"


def test_kept_file_gives_the_same_page(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other.json", [run(1.0, 2.0, batch=2)], commit_info={"id": "f" * 40})
    small = tmp_path / "there" / "small.json"
    assert report.main([str(result), str(other), "--keep", str(small)]) == 0
    page = capsys.readouterr().out
    assert report.main([str(small)]) == 0
    assert capsys.readouterr().out == page
    assert "stats" not in small.read_text()


@pytest.mark.parametrize("text", ["", "{}", '{"benchmarks": []}', '{"benchmarks": [{"extra_info": {}}]}'])
def test_what_is_no_result(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(text)
    assert report.main([str(tmp_path / "a.json")]) == 1
    assert str(tmp_path / "a.json") in capsys.readouterr().err


class TestPlots:
    @pytest.fixture(autouse=True)
    def _matplotlib(self) -> None:
        pytest.importorskip("matplotlib", reason="the plots need matplotlib")

    def test_files(self, result: Path, tmp_path: Path) -> None:
        assert report.main([str(result), "--output", str(tmp_path / "there")]) == 0
        names = sorted(path.name for path in (tmp_path / "there").iterdir())
        assert names == ["ratio-layer-float32-2threads.svg", "report.md", "time-by-H-inference.svg"]
        text = (tmp_path / "there" / names[0]).read_text()
        assert all(word in text for word in ("100, 1, 128, 128", "nn.LSTM / ours", "2 threads"))
        before = text
        report.main([str(result), "--output", str(tmp_path / "again")])
        assert (tmp_path / "again" / names[0]).read_text() == before

    def test_series(self) -> None:
        from benchmarks import plots

        members = runs(RUNS)
        (title,) = plots.series(members, "H")
        assert title == "T=100, B=1, I=H\nfloat32, 2 threads"
        assert [r.setting["hidden"] for r in plots.series(members[::-1], "H")[title]] == [64, 128, 256]
        assert not plots.series(members[:2], "H") and not plots.series(members, "B")
        by_batch = runs(run(1.0, 2.0, batch=b, loop=b > 1) for b in (4, 1, 2))
        (members,) = plots.series(by_batch, "B").values()
        assert [r.setting["batch"] for r in members] == [1, 2, 4]

    def test_labels_do_not_overlap(self) -> None:
        """With as many shapes as the small grid has, and with one."""
        from benchmarks import plots

        for count in (1, 15):
            infos = [
                run(1.0, 0.5 + 0.2 * i, mode, hidden=97 + i) for i in range(count) for mode in ("a", "b")
            ]
            figure = plots.ratio_figure(runs(infos), "title")
            figure.draw_without_rendering()
            for axis in figure.axes:
                assert any(list(line.get_xdata()) == [1.0, 1.0] for line in axis.lines)
                for labels, side in ((axis.get_yticklabels(), "y"), (axis.get_xticklabels(), "x")):
                    ends = sorted(
                        (getattr(box, f"{side}0"), getattr(box, f"{side}1"))
                        for box in (label.get_window_extent() for label in labels if label.get_text())
                    )
                    assert all(a[1] <= b[0] for a, b in pairwise(ends)), (
                        count,
                        side,
                        ends,
                    )


def test_without_matplotlib(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.main([str(result), "--output", str(tmp_path / "there")]) == 1
    assert "they need matplotlib" in capsys.readouterr().err
    assert (tmp_path / "there/report.md").exists()
