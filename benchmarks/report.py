"""``python -m benchmarks.report FILE... [--output DIR]``: results as markdown, losses included, and as plots.

FILE is what ``pytest benchmarks --benchmark-json FILE`` wrote, or a result of ``make gpu-check``. A ratio is
a median time divided by a median time, in parentheses the same of the minima; above 1 the second is faster.
A loss, a median ratio below what is aimed at (1.0, for changed cells against the plain one 0.87), is bold
with an arrow. With --output the table goes to DIR/report.md too, and plots as SVG beside it, for which
matplotlib is needed. --keep writes the part of a result that is worth committing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .table import RATIOS, shape_of

MIB = 1 << 20
TITLES = {
    "layer": "Whole sequences",
    "step": "One step",
    "streaming": "Streaming",
    "lengths": "Sequences of different lengths",
    "cells": "Changed cells",
    "compiled": "torch.compile",
}


@dataclass(frozen=True)
class Ratio:
    """Of two contenders' times in one run; ``least`` is what is aimed at."""

    median: float
    minimum: float
    least: float

    @property
    def lost(self) -> bool:
        return self.median < self.least

    def __str__(self) -> str:
        return f"**{self.median:.2f}** ({self.minimum:.2f}) ↓" if self.lost else self.short

    @property
    def short(self) -> str:
        return f"{self.median:.2f} ({self.minimum:.2f})"


class Run:
    """One setting of one suite: its ``extra_info``, where older results lack something with the default."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.suite: str = info.get("suite", "layer")
        self.ours: str = info.get("ours", "customlstm")
        self.setting: dict[str, Any] = info["setting"]
        self.mode: str = info["mode"]
        self.threads: int = info.get("threads", 0)
        self.times: dict[str, dict[str, float]] = info["times"]

    @property
    def group(self) -> tuple[str, str, int]:
        return self.setting["dtype"], self.mode, self.threads

    @property
    def shape(self) -> str:
        return shape_of(self.setting)

    def specs(self) -> list[dict[str, Any]]:
        if "ratios" in self.info:
            return self.info["ratios"]
        older = [
            {"title": title, "of": a, "to": b, "least": 0.0 if "plain cell" in title else 1.0}
            for title, a, b in RATIOS
        ]
        return [r for r in older if r["of"] in self.times and r["to"] in self.times]

    def ratios(self) -> dict[str, Ratio]:
        def ratio(of: str, to: str, least: float) -> Ratio:
            median, minimum = (self.times[of][key] / self.times[to][key] for key in ("median_ms", "min_ms"))
            return Ratio(median, minimum, least)

        return {r["title"]: ratio(r["of"], r["to"], r["least"]) for r in self.specs()}

    def fraction(self) -> str:
        gemm = self.info.get("gemm")
        return f"{gemm['fraction']:.0%} of {max(gemm['gflops'].values()):.0f}" if gemm else ""

    def peak(self) -> str:
        """MiB of ours and of what the first ratio compares it with."""
        peaks, specs = self.info.get("peak_bytes") or {}, self.specs()
        names = [self.ours, *(r["of"] for r in specs[:1] if r["of"] != self.ours)]
        return " / ".join(f"{peaks[name] / MIB:.1f}" for name in names if name in peaks)


def load(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs of all files, and of each file a line that names machine, versions, commit and date.

    Raises:
        ValueError: a file is no result, or holds no run.
    """
    runs: list[Run] = []
    about: list[str] = []
    for path in paths:
        try:
            content = json.loads(path.read_text())
            found = [Run(b["extra_info"]) for b in content["benchmarks"] if "times" in b["extra_info"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no result of the benchmarks: {error!r}") from error
        if not found:
            raise ValueError(f"{path} holds no run; did every benchmark fail or get skipped?")
        runs += found
        about.append(describe(content))
    return runs, about


def describe(content: dict[str, Any]) -> str:
    """ "AMD EPYC (2 cores; avx2, avx512f), torch 2.13.0, ..., commit 1234567 with changes, 2026-11-22"."""
    facts = dict(content.get("machine_info") or content.get("machine") or {})
    commit = content.get("commit_info") or {"id": facts.get("commit", "unknown")}
    cores, flags = facts.get("cpu_cores"), ", ".join(facts.get("cpu_flags") or [])
    details = "; ".join(filter(None, [f"{cores} cores" if cores else "", flags]))
    parts = [str(facts.get("device", "unknown machine")) + (f" ({details})" if details else "")]
    names = ("torch", "cuda", "cudnn", "customlstm", "kernels", "python")
    parts += [f"{name} {facts[name]}" for name in names if facts.get(name)]
    dirty = {True: " with changes that are not committed", None: "", False: ""}[commit.get("dirty")]
    parts.append(f"commit {str(commit.get('id', 'unknown'))[:12]}{dirty}")
    return ", ".join([*parts, str(facts.get("date", "no date"))])


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a column in which no row has anything is left out."""
    rows = list(rows)
    used = [i for i in range(len(titles)) if any(row[i] for row in rows)]
    lines = [[titles[i] for i in used], ["---"] * len(used), *([row[i] for i in used] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ordered(values: Iterable[Any]) -> list[Any]:
    """Each once, in the order in which they come."""
    return list(dict.fromkeys(values))


def summary(runs: Sequence[Run]) -> str:
    """One line for each suite, ratio, dtype, mode and number of threads: mean, losses and the worst shape."""
    found: dict[tuple[Any, ...], list[tuple[Ratio, str]]] = {}
    for run in runs:
        for title, ratio in run.ratios().items():
            found.setdefault((run.suite, title, *run.group), []).append((ratio, run.shape))
    rows = []
    for (suite, title, dtype, mode, threads), pairs in found.items():
        worst, shape = min(pairs, key=lambda pair: pair[0].median)
        mean = _mean([ratio for ratio, _ in pairs])
        lost = sum(ratio.lost for ratio, _ in pairs)
        text = f"**{lost} of {len(pairs)}**" if lost else f"0 of {len(pairs)}"
        if not any(ratio.least for ratio, _ in pairs):
            text = "no aim stated"
        rows.append([suite, title, dtype, mode, str(threads or ""), mean, text, f"{worst} at {shape}"])
    titles = ["suite", "ratio", "dtype", "mode", "threads", "geometric mean", "lost", "worst"]
    return markdown(titles, rows)


def _mean(ratios: Sequence[Ratio]) -> str:
    median, minimum = (geometric_mean([getattr(r, key) for r in ratios]) for key in ("median", "minimum"))
    return f"{median:.2f} ({minimum:.2f})"


def suite_table(runs: Sequence[Run]) -> str:
    """Every run of one suite, and after each dtype, mode and number of threads its geometric means."""
    names = ordered(title for run in runs for title in run.ratios())
    rows = []
    for group in ordered(run.group for run in runs):
        dtype, mode, threads = group
        members = [run for run in runs if run.group == group]
        head = [dtype, mode, str(threads or "")]
        for run in members:
            ratios = run.ratios()
            cells = [str(ratios.get(name, "")) for name in names]
            ours = f"{run.times[run.ours]['median_ms']:.4g}"
            rows.append([run.shape, *head, ours, *cells, run.fraction(), run.peak()])
        columns = [[r for run in members if (r := run.ratios().get(name))] for name in names]
        means = [_mean(column) if column else "" for column in columns]
        if len(members) > 1:
            rows.append(["geometric mean", *head, "", *means, "", ""])
    titles = [
        "T, B, I, H",
        "dtype",
        "mode",
        "threads",
        "ours, ms",
        *names,
        "of GEMM, GFLOP/s",
        "peak MiB, ours / theirs",
    ]
    return markdown(titles, rows)


def report(runs: Sequence[Run], about: Sequence[str]) -> str:
    """The whole page."""
    parts = ["# Benchmarks", "\n".join(f"- {line}" for line in ordered(about))]
    parts.append(
        "Ratios of median times (in parentheses of the minima), above 1: the second is faster; ↓: a loss."
    )
    parts += ["## Summary", summary(runs)]
    for suite in ordered(run.suite for run in runs):
        parts += [f"## {TITLES.get(suite, suite)}", suite_table([run for run in runs if run.suite == suite])]
    return "\n\n".join(parts) + "\n"


def kept(content: dict[str, Any]) -> dict[str, Any]:
    """What is worth committing of a file: machine, commit, and what the suites recorded."""
    head = {
        key: content[key] for key in ("machine_info", "commit_info", "machine", "datetime") if key in content
    }
    runs = [{"extra_info": b["extra_info"]} for b in content["benchmarks"] if "times" in b["extra_info"]]
    return {**head, "benchmarks": runs}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write report.md and plots (SVG) into DIR")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="write the only result, made small, to FILE"
    )
    options = parser.parse_args(arguments)
    if options.keep and len(options.files) > 1:
        parser.error("--keep takes one result, not several")
    try:
        runs, about = load(options.files)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.keep:
        options.keep.write_text(json.dumps(kept(json.loads(options.files[0].read_text())), indent=1) + "\n")
    page = report(runs, about)
    print(page)
    if options.output is None:
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "report.md").write_text(page)
    try:
        from .plots import plot_all
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "matplotlib":
            raise
        print(
            "no plots: they need matplotlib (pip install matplotlib); the table is complete", file=sys.stderr
        )
        return 1
    for path in plot_all(runs, options.output):
        print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
