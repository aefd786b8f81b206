"""What :mod:`benchmarks.instructions` has valgrind run: every case warmed up, then once more and counted.

Two shapes of the grid, the third one with fewer steps, since under valgrind a product takes a thousand times
as long. Equal code gives equal counts: one thread, no garbage collection, nothing that depends on a clock.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from . import machine, steps
from .contenders import OURS, THEIRS, layer, make_input
from .grid import TINY, Setting, Shape

SHAPES: list[Shape] = [(100, 1, 128, 128), (37, 7, 61, 97), (6, 16, 256, 256)]
# Steps in the two runs whose difference is taken: what comes once in a run is not in it, and what comes now
# and then (a table that grows, an allocator that tidies up) is shared by many steps.
STEPS = {"inference": (5, 25), "training": (2, 6)}
# Of the tiny shape, before anything is counted: after some calls Python takes faster instructions.
FIRST_CALLS = 50
NAMES = {OURS: "customlstm.LSTM", THEIRS: "nn.LSTM"}  # of whole sequences


@dataclass(frozen=True)
class Case:
    """``build(setting, calls)`` gives the run to count, one for each number of calls."""

    name: str
    setting: Setting
    build: Callable[[Setting, int], Callable[[], object]]
    calls: tuple[int, ...]


def cases() -> Iterator[Case]:
    """Whole sequences and single steps at every shape; theirs as a scale."""
    for setting in (Setting(*shape) for shape in SHAPES):
        for mode in ("inference", "training"):
            for contender, name in NAMES.items():
                build = partial(sequence, contender=contender, mode=mode)
                yield Case(f"{name} {title(setting)} {mode}", setting, build, (1,))
        step = replace(setting, steps=1)
        yield Case(f"{steps.STREAM} {title(step)} inference", step, stream, STEPS["inference"])
        for mode in ("inference", "training"):
            for contender in (steps.OUR_CELL, steps.THEIR_CELL):
                build = partial(cell, contender=contender, mode=mode)
                yield Case(f"{contender} {title(step)} {mode}", step, build, STEPS[mode])


def sequence(setting: Setting, calls: int, contender: str, mode: str) -> Callable[[], object]:
    run = layer(setting, mode, "cpu")[contender]()
    return lambda: [run() for _ in range(calls)]


def stream(setting: Setting, calls: int) -> Callable[[], object]:
    return steps.stream_steps(setting, make_input(setting, "inference", "cpu"), calls, "cpu")


def cell(setting: Setting, calls: int, contender: str, mode: str) -> Callable[[], object]:
    module = steps.modules(setting, "cpu")[contender]
    return steps.steps(module, make_input(setting, mode, "cpu"), calls, mode)


def title(setting: Setting) -> str:
    return f"{setting.steps},{setting.batch},{setting.features},{setting.hidden} {setting.dtype}"


def main() -> None:
    """Arguments: the library of marks, the file for the facts of this process, and words of the cases."""
    library, facts, *words = sys.argv[1:]
    marks = ctypes.CDLL(library)
    torch.set_num_threads(1)
    Path(facts).write_text(json.dumps(machine.machine()))
    gc.disable()
    for case in cases():
        if not all(word in case.name for word in words):
            continue
        print(case.name, file=sys.stderr, flush=True)
        tiny = Setting(min(case.setting.steps, TINY[0]), *TINY[1:])
        case.build(tiny, FIRST_CALLS)()
        case.build(case.setting, 1)()
        for calls in case.calls:
            run = case.build(case.setting, calls)
            marks.begin()
            run()
            marks.end(f"{calls} {case.name}".encode())


if __name__ == "__main__":
    main()
