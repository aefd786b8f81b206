"""The host executor: correct kernels give correct results under any schedule, faulty ones are located."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native"
EXECUTOR = sorted((ROOT / "csrc" / "cuda" / "device").glob("host_*.cpp"))
FAULTS = NATIVE / "host_executor_faults.h"
SEEDS = range(100)


class Params(ctypes.Structure):
    _fields_ = (
        ("input", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("flags", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("steps", ctypes.c_int64),
    )


@dataclass
class Grid:
    """How a kernel is launched; ``shared`` in bytes."""

    blocks: int
    threads: int
    shared: int = 4096
    cluster: int = 1
    cooperative: bool = False


class HostError(Exception):
    pass


Launch = Callable[..., None]


@pytest.fixture(scope="session")
def launch(native_library: Callable[..., ctypes.CDLL]) -> Launch:
    """Runs a kernel of host_executor_test.cpp once; arrays are numpy's, flags begin at zero."""
    library = native_library("host_executor_test", [NATIVE / "host_executor_test.cpp", *EXECUTOR])

    def launch(
        kernel: str,
        grid: Grid,
        seed: int,
        source: np.ndarray | None = None,
        out: np.ndarray | None = None,
        other: np.ndarray | None = None,
        count: int | None = None,
        steps: int = 1,
    ) -> None:
        flags = np.zeros(grid.blocks, np.uint32)
        address = [None if x is None else x.ctypes.data for x in (source, other, out, flags)]
        count = count if count is not None else max([0] + [x.size for x in (source, out) if x is not None])
        params = Params(*address, count, grid.blocks << 32 | steps)
        shape = [grid.blocks, 1, 1, grid.threads, grid.shared, grid.cluster, grid.cooperative]
        numbers = (ctypes.c_int64 * 7)(*map(int, shape))
        error = ctypes.create_string_buffer(8000)
        arguments = (kernel.encode(), ctypes.c_uint64(seed), numbers, ctypes.byref(params))
        failed = library.customlstm_test_launch(*arguments, error, ctypes.c_int64(len(error)))
        if failed:
            raise HostError(error.value.decode())

    return launch


def random_floats(seed: int, *shape: int) -> np.ndarray:
    """Multiples of 1/8 between -1 and 1: sums of a few are exact in any order."""
    return (np.random.default_rng(seed).integers(-8, 9, shape) / 8).astype(np.float32)


# --- correct kernels


@pytest.mark.parametrize("seed", SEEDS)
def test_reduction(launch: Launch, seed: int) -> None:
    blocks, threads = 1 + seed % 9, 32 * (1 + seed % 5)
    x, out = random_floats(seed, blocks, 77), np.zeros(blocks * 77, np.float32)
    launch("reduce", Grid(blocks, threads), seed, x, out)
    np.testing.assert_array_equal(out[:blocks], x.sum(1))


def test_stacks_of_a_large_launch_are_given_back(launch: Launch) -> None:
    """Each is two maps of memory, of which Linux gives a process 65,530: without one no thread can start."""
    maps = Path("/proc/self/maps")
    before = len(maps.read_text().splitlines())
    x, out = random_floats(0, 64, 77), np.zeros(64 * 77, np.float32)
    for _ in range(2):
        launch("reduce", Grid(64, 256, cooperative=True), 0, x, out)
        np.testing.assert_array_equal(out[:64], x.sum(1))
    assert len(maps.read_text().splitlines()) - before < 1000


@pytest.mark.parametrize("seed", SEEDS)
def test_warp_barriers_and_shuffles(launch: Launch, seed: int) -> None:
    blocks, warps, steps = 2, 1 + seed % 4, 5
    out = np.zeros((blocks, warps, 32), np.float32)
    launch("warps", Grid(blocks, 32 * warps), seed, out=out, steps=steps)
    lanes = np.arange(32)
    x = np.arange(32 * warps).reshape(warps, 32).sum(1, keepdims=True) + lanes.sum() + np.zeros((warps, 32))
    for _ in range(steps):
        x = np.roll(x, -1, 1) + lanes
    np.testing.assert_array_equal(out, np.stack([x, x]))


@pytest.mark.parametrize("seed", SEEDS)
def test_cluster_exchange(launch: Launch, seed: int) -> None:
    size = (1, 2, 4)[seed % 3]
    clusters, threads, steps = 1 + seed % 4, 32, 3
    x = random_floats(seed, clusters, size, threads)
    out = np.zeros_like(x)
    grid = Grid(clusters * size, threads, 2 * size * threads * 16, size, cooperative=seed % 2 == 0)
    launch("cluster", grid, seed, x, out, steps=steps)
    for _ in range(steps):
        x = np.broadcast_to((x + np.arange(size)[:, None]).mean(1, keepdims=True), x.shape)
    np.testing.assert_allclose(out, x, rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_device_wide_barrier(launch: Launch, seed: int) -> None:
    blocks, threads, steps = 1 + seed % 5, 32 * (1 + seed % 3), 4
    x = torch.from_numpy(random_floats(seed, blocks, threads))
    out = np.zeros((4, blocks, threads), np.uint16)
    launch("grid", Grid(blocks, threads, cooperative=True), seed, x.numpy(), out, steps=steps)
    for _ in range(steps - 1):
        x = x.bfloat16().float().roll(-1, 1).mean(0, keepdim=True).expand(blocks, threads)
    written = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)[(steps - 1) % 2].float()
    torch.testing.assert_close(written, x.bfloat16().float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_matrix_product(launch: Launch, kind: str) -> None:
    for seed in SEEDS:
        depth = 8 if kind == "tf32" else 16
        generator = torch.Generator().manual_seed(seed)
        a, b, c = (torch.randn(3, *s, generator=generator) for s in ((16, depth), (depth, 8), (16, 8)))
        if kind == "tf32":
            # More than ten bits of mantissa: the product must leave the others out.
            a_bits, b_bits = (x.numpy().view(np.uint32) for x in (a, b))
            a, b = (torch.from_numpy((x & 0xFFFFE000).view(np.float32)) for x in (a_bits, b_bits))
        else:
            dtype = torch.bfloat16 if kind == "bf16" else torch.float16
            a, b = a.to(dtype), b.to(dtype)
            a_bits, b_bits = (x.view(torch.int16).numpy() for x in (a, b))
        out = c.numpy().copy()
        launch(f"product_{kind}", Grid(1, 96), seed, a_bits, out, b_bits)
        expected = c.double() + a.double() @ b.double()
        np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_asynchronous_copies(launch: Launch, seed: int) -> None:
    blocks, threads, tiles = 1 + seed % 3, 32 * (1 + seed % 3), 1 + seed % 4
    x = random_floats(seed, blocks * 7 * tiles * threads)
    out = np.zeros_like(x)
    launch("copies", Grid(blocks, threads, 32 * threads), seed, x, out, steps=tiles)
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("seed", SEEDS)
def test_values_passed_on_by_single_threads(launch: Launch, seed: int) -> None:
    blocks = 4
    x = random_floats(seed, blocks * 32)
    out = np.zeros((blocks, 32), np.float32)
    launch("relay", Grid(blocks, 64, cooperative=True), seed, x, out)
    np.testing.assert_array_equal(out, x[:32] * np.array([[1], [1], [2], [4]]))
    launch("relay_of_one", Grid(blocks, 64, cooperative=True), seed, x, out)
    a, b, c, d = x[:4]
    np.testing.assert_array_equal(out.ravel()[:4], [a, a + b, 2 * a + b + c, 4 * a + 2 * b + c + d])


# --- faults


def marked_lines(kernel: str) -> list[str]:
    lines = FAULTS.read_text().splitlines()
    found = [i for i, line in enumerate(lines, 1) if re.search(rf"fault: {kernel}$", line)]
    assert found, f"no line of {FAULTS.name} is marked for {kernel}"
    return [f"tests/native/{FAULTS.name}:{i}" for i in found]


TWO_WARPS = Grid(1, 64)
TOGETHER = Grid(4, 64, cooperative=True)
PAIR = Grid(2, 64, cooperative=True)
CLUSTER = Grid(2, 64, cluster=2)
RACE = "race: neither a barrier nor a flag orders two accesses to"
OWN_WORDS = "a kernel's own words"
# Kernel, launch, what the report says, and whether it names all marked lines or, depending on the schedule,
# one.
CASES = [
    (
        "no_sync_block",
        TWO_WARPS,
        f"{RACE} shared array 'x' \\[(3[2-9]|[45]\\d|6[0-3])\\]|uninitialised",
        "some",
    ),
    ("no_sync_warp", Grid(1, 32), f"{RACE} shared array 'x'|uninitialised", "some"),
    ("overwrite", Grid(1, 96), f"{RACE} shared array 'x'", "all"),
    ("half_overwritten", TWO_WARPS, f"{RACE} shared array '(halves' \\[15|words' \\[7)\\]", "all"),
    ("out_of_global", TWO_WARPS, r"out of bounds: global array 'in' \[256\], of 256", "all"),
    ("before_global", TWO_WARPS, r"out of bounds: global array 'out' \[-1\], of 256", "all"),
    ("out_of_shared", Grid(1, 32), r"out of bounds: shared array 'x' \[3[01]\], of 30", "all"),
    ("vector_over_the_end", TWO_WARPS, r"out of bounds: shared array 'x' \[28\], 4 elements, of 30", "all"),
    ("array_too_large", TWO_WARPS, "shared array 'x' at byte 64 .* does not fit into 4096 bytes", "all"),
    ("null_array", TWO_WARPS, r"out of bounds: global array 'nothing' \[0\], of 0", "all"),
    ("misaligned_index", TWO_WARPS, r"misaligned: global array 'in' \[2\]", "all"),
    ("misaligned_pointer", TWO_WARPS, r"misaligned: global array 'in' \[4\]", "all"),
    ("uninitialised", Grid(1, 32), r"uninitialised shared memory: shared array 'x' \[32\]", "all"),
    ("never_released", TOGETHER, "deadlock: no thread can go on", "all"),
    ("no_pause", TWO_WARPS, r"a loop around acquire without pause\(\)", "all"),
    ("early_end", TWO_WARPS, "50: have ended|a thread ends while|threads have ended", "all"),
    ("early_end_of_lane", TWO_WARPS, "a thread ends while|threads have ended", "all"),
    ("two_barriers", TWO_WARPS, "sync_block cannot be completed: threads wait in different places", "all"),
    ("divergent_warp", TWO_WARPS, "cannot be completed: threads of one warp wait in different places", "all"),
    ("needs_company", Grid(4, 64), "deadlock.*the launch is not cooperative", "all"),
    ("needs_company", Grid(2, 64), "deadlock.*1 blocks have not begun", "all"),
    ("stale", TOGETHER, "stale read: use read_fresh.*'out'", "all"),
    ("stale_copy", TOGETHER, "stale read: use read_fresh.*'out'", "all"),
    ("no_copy_wait", TWO_WARPS, r"read before copy_wait: shared array 'x'", "all"),
    ("no_copy_commit", TWO_WARPS, r"read before copy_wait: shared array 'x'", "all"),
    ("copy_at_end", TWO_WARPS, "a thread ends without copy_wait", "all"),
    ("copy_not_shared", TWO_WARPS, f"{RACE} shared|uninitialised|before copy_wait", "some"),
    ("no_acquire", TOGETHER, f"{RACE} global array 'out'", "some"),
    ("no_release", PAIR, f"{RACE} global array 'flags'", "all"),
    ("release_too_early", PAIR, f"{RACE} global array 'out'", "all"),
    ("no_sync_after_acquire", PAIR, f"{RACE} global array 'out'", "all"),
    ("one_copy", TOGETHER, f"{RACE} global array 'out'", "all"),
    ("remote_too_early", CLUSTER, "write_remote before the first sync_cluster", "all"),
    ("remote_without_sync", CLUSTER, f"{RACE} shared array 'x'", "all"),
    ("remote_at_end", CLUSTER, "write_remote (since|to a block that ends)", "all"),
    ("cluster_left_waiting", CLUSTER, "a thread ends while its cluster waits|threads have ended", "all"),
    ("throws", TWO_WARPS, OWN_WORDS, ""),
]


@pytest.mark.parametrize(
    ("kernel", "grid", "says", "names"), CASES, ids=[f"{c[0]}-{c[1].blocks}" for c in CASES]
)
def test_fault_is_caught_and_located(launch: Launch, kernel: str, grid: Grid, says: str, names: str) -> None:
    lines = marked_lines(kernel) if names else []
    for seed in SEEDS:
        x, out = np.zeros(256, np.float32), np.zeros(512, np.float32)
        with pytest.raises(HostError) as caught:
            launch(kernel, grid, seed, x, out, count=256 if "global" in kernel else 512)
        report = str(caught.value)
        assert re.search(says, report, re.DOTALL), report
        assert report.startswith(f"host executor, kernel '{kernel}', seed {seed}: "), report
        named = [line for line in lines if re.search(rf"{re.escape(line)}\b", report)]
        assert named == lines or (names == "some" and named), f"{lines}\n{report}"
        assert kernel == "throws" or re.search(r"block \(\d, 0, 0\), threads? \d", report), report


REFUSED = [
    (Grid(1, 48), "threads are not a multiple of 32"),
    (Grid(1, 2048), "too many threads a block"),
    (Grid(1, 32, shared=228 * 1024), "too much shared memory"),
    (Grid(3, 32, cluster=2), "the grid is not made of whole clusters"),
    (Grid(0, 32), "a grid without blocks"),
    (Grid(65, 1024, cooperative=True), "cooperative, with more threads than can be resident"),
]


@pytest.mark.parametrize(("grid", "says"), REFUSED)
def test_impossible_launch_is_refused(launch: Launch, grid: Grid, says: str) -> None:
    with pytest.raises(HostError, match=f"launch of reduce refused: {says}"):
        launch("reduce", grid, 0)


def test_a_seed_gives_the_same_report_again(launch: Launch) -> None:
    def reports() -> list[str]:
        found = []
        for seed in range(20):
            with pytest.raises(HostError) as caught:
                launch("overwrite", Grid(2, 128), seed)
            found.append(str(caught.value).split(": ", 1)[1])
        return found

    first = reports()
    assert first == reports()
    assert len(set(first)) > 5, "the schedules hardly differ"


def test_correct_kernel_after_a_fault(launch: Launch) -> None:
    x, out = random_floats(0, 4, 77), np.zeros(4 * 77, np.float32)
    for seed in range(20):
        with pytest.raises(HostError):
            launch("early_end", Grid(3, 256), seed)
        launch("reduce", Grid(4, 64), seed, x, out)
        np.testing.assert_array_equal(out[:4], x.sum(1))
