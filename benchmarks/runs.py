"""Results as files: reading them, and putting several together with where each run is from.

A run is one setting of one suite. A file is either what ``pytest benchmarks --benchmark-json FILE`` wrote, or
what :func:`write` did: the machines and commits, each once, and the runs with the number of theirs. A later
run of the same setting takes the place of the earlier one, so that a file is a table without doublets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


class Source:
    """Where runs are from: the machine with its versions and date, and the commit."""

    def __init__(self, machine: dict[str, Any], commit: dict[str, Any]) -> None:
        self.machine, self.commit = machine, commit

    @property
    def device(self) -> str:
        return str(self.machine.get("device", "unknown machine"))

    @property
    def short(self) -> str:
        """ "0123456", with a plus where the tree differed from that commit."""
        return str(self.commit.get("id", "unknown"))[:7] + ("+" if self.commit.get("dirty") else "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and vars(self) == vars(other)

    def __str__(self) -> str:
        """ "AMD EPYC (2 cores; avx2), torch 2.13.0, ..., commit 0123456789ab with changes, 2026-11-22"."""
        facts = self.machine
        cores, flags = facts.get("cpu_cores"), ", ".join(facts.get("cpu_flags") or [])
        details = "; ".join(filter(None, [f"{cores} cores" if cores else "", flags]))
        parts = [self.device + (f" ({details})" if details else "")]
        names = ("torch", "cuda", "cudnn", "customlstm", "kernels", "python")
        parts += [f"{name} {facts[name]}" for name in names if facts.get(name)]
        dirty = " with changes that are not committed" if self.commit.get("dirty") else ""
        parts.append(f"commit {str(self.commit.get('id', 'unknown'))[:12]}{dirty}")
        return ", ".join([*parts, str(facts.get("date", "no date"))])


class Run:
    """One setting of one suite: what the suite recorded, and where it is from."""

    def __init__(self, info: dict[str, Any], source: Source) -> None:
        self.info = info
        self.source = source
        self.suite: str = info["suite"]
        self.ours: str = info["ours"]
        self.setting: dict[str, Any] = info["setting"]
        self.mode: str = info["mode"]
        self.threads: int = info["threads"]
        self.specs: list[dict[str, Any]] = info["ratios"]
        self.times: dict[str, dict[str, float]] = info["times"]

    @property
    def group(self) -> tuple[str, str, int]:
        return self.setting["dtype"], self.mode, self.threads

    @property
    def key(self) -> str:
        """The same for runs of which one replaces the other. Who takes part besides is no difference."""
        setting = {name: value for name, value in self.setting.items() if name not in ("loop", "cells")}
        return json.dumps([self.suite, self.mode, self.threads, setting], sort_keys=True)

    @property
    def shape(self) -> str:
        sizes = ", ".join(str(self.setting[name]) for name in ("steps", "batch", "features", "hidden"))
        more = [
            "bidirectional" if self.setting["bidirectional"] else "",
            f"{self.setting['layers']} layers" if self.setting["layers"] > 1 else "",
        ]
        return ", ".join(filter(None, [sizes, *more]))

    def ratios(self) -> dict[str, Ratio]:
        def ratio(of: str, to: str, least: float) -> Ratio:
            median, minimum = (self.times[of][key] / self.times[to][key] for key in ("median_ms", "min_ms"))
            return Ratio(median, minimum, least)

        return {r["title"]: ratio(r["of"], r["to"], r["least"]) for r in self.specs}


def read(path: Path) -> list[Run]:
    """The runs of one file.

    Raises:
        ValueError: it is no result, or holds no run.
    """
    try:
        content = json.loads(path.read_text())
        # pytest-benchmark has machine and commit of all runs beside these.
        sources = [Source(s["machine_info"], s["commit_info"]) for s in content.get("sources", [content])]
        found = [
            Run(b["extra_info"], sources[b.get("source", 0)])
            for b in content["benchmarks"]
            if "times" in b["extra_info"]
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is no result of the benchmarks: {error!r}") from error
    if not found:
        raise ValueError(f"{path} holds no run; did every benchmark fail or get skipped?")
    return found


def merged(runs: Iterable[Run]) -> list[Run]:
    """Each setting once, where it came first, as it was measured last.

    Raises:
        ValueError: they are of several machines, whose times and means do not mix.
    """
    found = {run.key: run for run in runs}
    devices = list(dict.fromkeys(run.source.device for run in found.values()))
    if len(devices) > 1:
        raise ValueError(f"results of several machines do not mix: {', '.join(devices)}")
    return list(found.values())


def load(paths: Iterable[Path]) -> list[Run]:
    """The runs of all files, the later ones in place of the earlier.

    Raises:
        ValueError: as in :func:`read` and :func:`merged`.
    """
    return merged(run for path in paths for run in read(path))


def sources(runs: Iterable[Run]) -> list[Source]:
    """Each once, in the order in which they come."""
    found: list[Source] = []
    for run in runs:
        if run.source not in found:
            found.append(run.source)
    return found


def write(path: Path, runs: Iterable[Run]) -> None:
    """Whoever reads the file meanwhile, or ends this process, leaves or finds a whole one."""
    runs = list(runs)
    known = sources(runs)
    content = {
        "sources": [{"machine_info": s.machine, "commit_info": s.commit} for s in known],
        "benchmarks": [{"source": known.index(run.source), "extra_info": run.info} for run in runs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def add(path: Path, run: Run) -> None:
    """Puts ``run`` into the file at ``path``, which need not exist yet.

    Raises:
        ValueError: the file's run of this setting has contenders that ``run`` lacks; they would be lost.
    """
    before = read(path) if path.exists() else []
    for old in before:
        missing = old.times.keys() - run.times.keys()
        if old.key == run.key and missing:
            raise ValueError(
                f"{path} has a run of {run.shape}, {run.mode}, with {', '.join(sorted(missing))}, which this "
                "one lacks: write to another file, or measure it with all of them"
            )
    write(path, merged([*before, run]))
