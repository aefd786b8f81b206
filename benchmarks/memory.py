"""The peak memory of a call: how much more than its weights and inputs a contender needs while it runs.

On a GPU, what PyTorch's allocator counts. On a CPU that allocator sees neither the scratch memory of oneDNN
nor that of our kernels, so the operating system is asked, for pages in use (Linux only):

- in a process of its own for every contender, forked from one that has loaded the libraries and run nothing,
  so that no memory freed by somebody else is at hand, and what a contender keeps between calls counts;
- after a call at a tiny shape, which starts the threads and loads what is loaded at first use;
- the highest mark is reset after weights and inputs are made, and read after two calls.

The same contender differs by some 100 KiB from run to run; where the kernel hands out pages of 2 MiB, by one
or two of these.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from .grid import TINY, Setting

CALLS = 2
LIMIT = 200.0  # seconds
Builder = Callable[[Setting, str, str], Mapping[str, Callable[[], Callable[[], object]]]]


def peaks(builder: Builder, setting: Setting, mode: str, device: str) -> dict[str, int]:
    """Bytes for each of ``builder(setting, mode, device)``; empty where they cannot be found out."""
    names = list(builder(setting, mode, device))
    if device == "cuda":
        return {name: cuda_peak(builder(setting, mode, device)[name]()) for name in names}
    if sys.platform != "linux" or not os.access("/proc/self/clear_refs", os.W_OK):
        return {}
    return {name: in_child(builder, setting, mode, name) for name in names}


def cuda_peak(run: Callable[[], object]) -> int:
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()  # what the first call has left behind counts
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@lru_cache(maxsize=1)
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # Nothing that computes: a process forked from one whose threads have started waits for them for ever.
    context.set_forkserver_preload(["torch", "customlstm"])
    return context


def in_child(builder: Builder, setting: Setting, mode: str, name: str) -> int:
    """Bytes that the contender ``name`` needs on a CPU, with as many threads as here.

    Raises:
        RuntimeError: the child process failed, or took longer than LIMIT; its own message is on stderr.
    """
    receive, send = _context().Pipe(duplex=False)
    arguments = (send, builder, setting, mode, name, torch.get_num_threads())
    child = _context().Process(target=_measure, args=arguments, daemon=True)
    child.start()
    send.close()
    try:
        if not receive.poll(LIMIT):
            raise RuntimeError(f"the memory of {name} at {setting} was not measured within {LIMIT:.0f} s")
        return receive.recv()
    except EOFError:
        child.join()
        raise RuntimeError(
            f"the process that measures {name} at {setting} ended with code {child.exitcode}"
        ) from None
    finally:
        child.kill()
        child.join()
        receive.close()


def _measure(
    send: Connection, builder: Builder, setting: Setting, mode: str, name: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    steps, batch, features, hidden = TINY
    tiny = replace(setting, steps=steps, batch=batch, features=features, hidden=hidden)
    builder(tiny, mode, "cpu")[name]()()
    run = builder(setting, mode, "cpu")[name]()
    send.send(resident_peak(run))


def resident_peak(run: Callable[[], object], calls: int = CALLS) -> int:
    """Bytes of memory that came into use while ``run`` ran, at most at any one time, in this process."""
    if hasattr(trim := ctypes.CDLL(None), "malloc_trim"):  # glibc: gives back what has been freed
        trim.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark is now what is in use
    before = _status("VmRSS")
    for _ in range(calls):
        run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
