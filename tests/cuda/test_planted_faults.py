"""Faults planted in a copy of the recurrences: the executor catches each and names the line."""

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support_host_kernels import HostKernels, sources
from support_layers import compare

NativeLibrary = Callable[..., ctypes.CDLL]

ROOT = Path(__file__).parents[2]
# Name, file, what stands there, what is put in its place, variant, words of the report.
FAULTS = [
    (
        "sums read before all warps have written them",
        "block.h",
        "    if (r < shape.row_tiles) multiply_rows<1>(shape, weights, operand, r, column_tile);\n"
        "    device::sync_block();",
        "    if (r < shape.row_tiles) multiply_rows<1>(shape, weights, operand, r, column_tile);",
        "step",
        ["race", "'partial sums'", "block.h:"],
    ),
    (
        "units beyond the hidden size",
        "forward.h",
        "item.unit < g.hidden_size && item.b < g.batch",
        "item.b < g.batch",
        "step",
        ["forward.h:"],
    ),
    (
        "a block that never raises its flag",
        "block.h",
        "if (device::thread_index() == 0) device::release",
        "if (device::thread_index() == 0 && x != 0) device::release",
        "grid",
        ["deadlock", "block.h:"],
    ),
    (
        "hidden states read before the other blocks have sent them",
        "block.h",
        "      send(operand, shape, own_rows);\n      device::sync_cluster();",
        "      send(operand, shape, own_rows);",
        "cluster",
        ["race", "'exchange'", "block.h:"],
    ),
    (
        "sums over a row read before all warps have written theirs",
        "norm_rows.h",
        "    device::sync_block();\n    const int warps",
        "    const int warps",
        "step",
        ["race", "'row sums'", "norm_rows.h:"],
    ),
    (
        "sums over a row that take no turns",
        "norm_rows.h",
        "    turn_ ^= 1;\n",
        "",
        "step",
        ["race", "'row sums'", "norm_rows.h:"],
    ),
]


@pytest.fixture(scope="module")
def faulty(
    native_library: NativeLibrary, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., HostKernels]:
    def build(index: int) -> HostKernels:
        name, file, old, new, _, _ = FAULTS[index]
        copy = tmp_path_factory.mktemp("faulty")
        shutil.copytree(ROOT / "csrc", copy / "csrc")
        shutil.copytree(ROOT / "tests" / "cuda" / "native", copy / "tests" / "cuda" / "native")
        path = copy / "csrc" / "cuda" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{name}: the line to change is not there once"
        path.write_text(text.replace(old, new))
        # Only the driver under test is compiled anew; all other objects are those without a fault.
        both = zip(sources(), sources(copy), strict=True)
        chosen = [there if "-DCUSTOMLSTM_MATH=kFma32" in there[1] else here for here, there in both]
        return HostKernels(native_library(f"faulty{index}", chosen))

    return build


@pytest.mark.parametrize("index", range(len(FAULTS)), ids=[fault[0] for fault in FAULTS])
def test_planted_fault_is_caught(faulty: Callable[..., HostKernels], index: int) -> None:
    kernels = faulty(index)
    variant, words = FAULTS[index][4:]
    reports = []
    for seed in range(40):
        try:
            compare(kernels, seed, variant, "fma32", normalised=FAULTS[index][1].startswith("norm_"))
        except RuntimeError as error:
            reports.append(str(error))
        except AssertionError:
            continue  # wrong numbers from the same fault, where a schedule hides the rest
    assert reports, "no schedule of 40 showed the fault"
    for word in words:
        assert any(word in report for report in reports), f"{word} is in no report:\n{reports[0]}"


def test_without_fault_nothing_is_reported(native_library: NativeLibrary) -> None:
    kernels = HostKernels(native_library("recurrences", sources()))
    for seed in range(5):
        assert not torch.isnan(compare(kernels, seed, "cluster", "fma32")["h_n"]).any()
