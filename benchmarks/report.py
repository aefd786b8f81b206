"""``python -m benchmarks.report FILE... [--output DIR]``: results as markdown, losses included, and as plots.

FILE is what ``make bench`` or ``pytest benchmarks --keep FILE`` wrote, or ``--benchmark-json FILE``, or
``make gpu-check``. Of several, a later run of a setting takes the place of an earlier one. A ratio is
a median time divided by a median time, in parentheses the same of the minima; above 1 the second is faster.
A loss, a median ratio below what is aimed at (1.0, for changed cells against the plain one 0.87, for options
0.8, with layer norm 0.625, for the plain one written by a user 0.95), is bold with an arrow. With --output
the table goes to DIR/report.md too, and plots as SVG beside it, for which matplotlib is needed. --keep writes
the part of the results that is worth committing.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .runs import Ratio, Run, Source, load, sources, write

MIB = 1 << 20
TITLES = {
    "layer": "Whole sequences",
    "step": "One step",
    "streaming": "Streaming",
    "lengths": "Sequences of different lengths",
    "cells": "Changed cells",
    "options": "Options of the cell",
    "written": "Cells that users write",
    "compiled": "torch.compile",
}


def fraction(run: Run) -> str:
    gemm = run.info.get("gemm")
    return f"{gemm['fraction']:.0%} of {max(gemm['gflops'].values()):.0f}" if gemm else ""


def peak(run: Run) -> str:
    """MiB of ours and of what the first ratio compares it with."""
    peaks = run.info.get("peak_bytes") or {}
    names = [run.ours, *(r["of"] for r in run.specs[:1] if r["of"] != run.ours)]
    return " / ".join(f"{peaks[name] / MIB:.1f}" for name in names if name in peaks)


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


def about(runs: Sequence[Run]) -> str:
    """A line for each machine and commit, where there are several with the number of its runs."""
    found = sources(runs)

    def which(source: Source) -> str:
        counts = Counter(run.suite for run in runs if run.source == source)
        return ", ".join(f"{count} of {suite}" for suite, count in counts.items())

    return "\n".join(f"- {s}" + (f"; runs: {which(s)}" if len(found) > 1 else "") for s in found)


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
        rows.append([suite, title, dtype, mode, str(threads), mean, text, f"{worst} at {shape}"])
    titles = ["suite", "ratio", "dtype", "mode", "threads", "geometric mean", "lost", "worst"]
    return markdown(titles, rows)


def losses(runs: Sequence[Run]) -> str:
    """A line for every loss, the worst first; empty where there is none."""
    found: list[tuple[float, str]] = []
    for run in runs:
        what = f"{run.suite}, {run.setting['dtype']}, {run.mode}, {run.threads} threads, ({run.shape})"
        found += [
            (r.median, f"loss: {what}: {name} {r.short}") for name, r in run.ratios().items() if r.lost
        ]
    return "\n".join(line for _, line in sorted(found))


def _mean(ratios: Sequence[Ratio]) -> str:
    median, minimum = (geometric_mean([getattr(r, key) for r in ratios]) for key in ("median", "minimum"))
    return f"{median:.2f} ({minimum:.2f})"


def suite_table(runs: Sequence[Run], commits: bool = False) -> str:
    """Every run of one suite, and after each dtype, mode and number of threads its geometric means.

    Args:
        commits: whether each row names the commit that it was measured at.
    """
    names = ordered(title for run in runs for title in run.ratios())
    rows = []
    for group in ordered(run.group for run in runs):
        dtype, mode, threads = group
        members = [run for run in runs if run.group == group]
        head = [dtype, mode, str(threads)]
        for run in members:
            ratios = run.ratios()
            cells = [str(ratios.get(name, "")) for name in names]
            ours = f"{run.times[run.ours]['median_ms']:.4g}"
            commit = run.source.short if commits else ""
            rows.append([run.shape, *head, ours, *cells, fraction(run), peak(run), commit])
        columns = [[r for run in members if (r := run.ratios().get(name))] for name in names]
        means = [_mean(column) if column else "" for column in columns]
        if len(members) > 1:
            rows.append(["geometric mean", *head, "", *means, "", "", ""])
    titles = [
        "T, B, I, H",
        "dtype",
        "mode",
        "threads",
        "ours, ms",
        *names,
        "of GEMM, GFLOP/s",
        "peak MiB, ours / theirs",
        "commit",
    ]
    return markdown(titles, rows)


def report(runs: Sequence[Run]) -> str:
    """The whole page. Where the runs are of several commits, each row names its own."""
    commits = len({run.source.short for run in runs}) > 1
    parts = ["# Benchmarks", about(runs)]
    parts.append(
        "Ratios of median times (in parentheses of the minima), above 1: the second is faster; ↓: a loss."
        + (" A commit with a plus had changes that are not committed." if commits else "")
    )
    parts += ["## Summary", summary(runs)]
    for suite in ordered(run.suite for run in runs):
        table = suite_table([run for run in runs if run.suite == suite], commits)
        parts += [f"## {TITLES.get(suite, suite)}", table]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write report.md and plots (SVG) into DIR")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the results, made small, to FILE")
    options = parser.parse_args(arguments)
    try:
        runs = load(options.files)
        if options.keep:
            write(options.keep, runs)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    page = report(runs)
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
