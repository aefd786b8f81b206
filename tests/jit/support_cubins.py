"""What is in a cubin, what ptxas said of it, and a cell's archive that compiles in no time."""

from __future__ import annotations

import re
import struct

import pytest

from customlstm.jit import cuda

#: Stands for the sources of a cell where it does not matter what is compiled.
TINY = {
    "cell.inl": "constexpr int kNumber = 7;\n",
    "fma64_tiny.cu": '#include "types.h"\n#include "cell.inl"\n'
    'extern "C" __global__ void customlstm_forward_step_1(int64_t* to) { *to = kNumber; }\n',
}


def use_sources(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    """Makes TINY, with some files changed, what every cell is compiled from."""
    files = TINY | {name.replace("__", "."): text for name, text in changed.items()}
    monkeypatch.setattr(cuda, "sources", lambda program, dtype, arch: files)


def kernels(cubin: bytes) -> set[str]:
    """The names of the kernels: each has a section of code."""
    return {name.removeprefix(".text.") for name in _sections(cubin) if name.startswith(".text.")}


def local_memory(log: str) -> list[str]:
    """What ptxas says of kernels that have a stack or spill: none should."""
    told = [line for line in log.splitlines() if "bytes stack frame" in line]
    assert told, f"ptxas says nothing of the kernels:\n{log}"
    return [line for line in told if re.findall(r"\d+", line) != ["0", "0", "0"]]


def _sections(elf: bytes) -> dict[str, bytes]:
    assert elf[:4] == b"\x7fELF"
    (offset,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, of_names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, offset + size * k) for k in range(count)]
    names = elf[headers[of_names][4] :]
    return {names[h[0] : names.index(b"\0", h[0])].decode(): elf[h[4] : h[4] + h[5]] for h in headers}
