"""The launch plan as a table: no hole, no tiling that breaks a rule, and the expected choice at landmarks."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from customlstm import _binary
from customlstm.launch_plan import (
    A100,
    B200,
    H100,
    H200,
    MATH,
    RTX_3090,
    RTX_5090,
    VARIANTS,
    DeviceLimits,
    LaunchPlan,
    plan,
)

pytestmark = pytest.mark.skipif(not _binary.status().loaded, reason=_binary.status().reason)

DEVICES = {"A100": A100, "RTX_3090": RTX_3090, "H100": H100, "H200": H200, "B200": B200, "RTX_5090": RTX_5090}
DEPTH = {"float32": 4, "float64": 4, "bfloat16": 16, "float16": 16, "tf32": 8}
BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2, "tf32": 4}
CSRC = Path(__file__).resolve().parents[2] / "csrc"


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# --- the rules, as csrc/cuda/tiling.h states them ---


def products(found: LaunchPlan, call: dict[str, Any]) -> list[tuple[int, int]]:
    """Rows of a block and padded depth of each product of a step."""
    t, depth, gates = found.tiling, DEPTH[call["math"]], call.get("gates", 4)
    hidden = round_up(call["hidden_size"], depth)
    state = round_up(call.get("proj_size") or call["hidden_size"], depth)
    if call.get("backward"):
        first = (t.state_rows or t.units, gates * hidden)
        return [first, (t.units, state)] if t.state_rows else [first]
    return [(gates * t.units, state), *([(t.state_rows, hidden)] if t.state_rows else [])]


def shared_bytes(found: LaunchPlan, call: dict[str, Any]) -> int:
    t, value = found.tiling, BYTES[call["math"]]
    accumulator = 8 if call["math"] == "float64" else 4
    most_rows = max(rows for rows, _ in products(found, call))
    total = round_up(t.warps * most_rows * (8 * t.column_tiles + 1) * accumulator, 128)
    for copies, (rows, depth) in zip((2, 1), products(found, call), strict=False):
        total += rows * depth * value * (t.variant != "step")
        total += copies * depth * t.columns * value * (t.variant == "cluster")
    return total


def broken_rules(found: LaunchPlan, limits: DeviceLimits, call: dict[str, Any]) -> Iterator[str]:
    """Every rule that this plan breaks."""
    t = found.tiling
    hidden, proj, directions = call["hidden_size"], call.get("proj_size", 0), call.get("directions", 1)
    batch = max(call["batch"], 1)
    blocks = t.unit_blocks * t.column_blocks * directions
    rules = {
        "the variant is one of three": t.variant == found.variant and t.variant in VARIANTS,
        "a variant that runs has no reason not to": t.variant not in found.why_not,
        "step always fits": "step" not in found.why_not,
        "units are whole tiles": t.units > 0 and t.units % (16 if call.get("backward") else 8) == 0,
        "rows of the first product are whole tiles": products(found, call)[0][0] % 16 == 0,
        "blocks hold all units": t.unit_blocks * t.units >= hidden,
        "rows of the state only with projection": (t.state_rows > 0) == (proj > 0),
        "rows of the state are whole tiles": t.state_rows % 16 == 0,
        "blocks hold all rows of the state": t.unit_blocks * t.state_rows >= proj,
        "1 or 4 tiles of columns": t.column_tiles in ((1,) if call["math"] == "float64" else (1, 4)),
        "columns are whole chunks": t.columns > 0 and t.columns % (8 * t.column_tiles) == 0,
        "blocks hold all columns": t.column_blocks * t.columns >= batch,
        "no block has columns of padding only": (t.column_blocks - 1) * t.columns < batch,
        "1 to 8 warps, a power of two": t.warps in (1, 2, 4, 8),
        "every warp has a tile of every depth": all(
            t.warps * DEPTH[call["math"]] <= depth for _, depth in products(found, call)
        ),
        "the grid has legal dimensions": 0 < t.unit_blocks < 2**31 and 0 < t.column_blocks <= 65535,
        "fields fit 32 bits": max(t.units, t.columns, t.state_rows) < 2**31,
        "a block has that much shared memory": shared_bytes(found, call) <= limits.shared_bytes,
        "float64 runs with step": t.variant == "step" or call["math"] != "float64",
        "a time": found.predicted_us is not None and 0 < found.predicted_us < math.inf,
    }
    if t.variant == "cluster":
        rules |= {
            "the device has clusters": limits.capability >= 90 and limits.clusters > 0,
            "a legal cluster": t.cluster in (1, 2, 4, 8, 16) and t.cluster <= limits.cluster_blocks,
            "a cluster is a group": t.cluster == t.unit_blocks,
            "states travel in whole tiles": t.units % DEPTH[call["math"]] == 0,
            "less than half of a cluster is padding": t.cluster == 1 or t.units * t.cluster // 2 < hidden,
        }
    else:
        rules |= {
            "no cluster": t.cluster == 1,
            "no block has units of padding only": (t.unit_blocks - 1) * t.units < hidden,
        }
    if t.variant == "grid":
        rules |= {"all blocks are resident": limits.cooperative and blocks <= limits.multiprocessors}
    return (rule for rule, holds in rules.items() if not holds)


def check(limits: DeviceLimits, call: dict[str, Any]) -> None:
    found = plan(limits, **call)
    if found.tiling is None:
        variant = call.get("variant")
        assert variant in found.why_not and variant != "step", f"hole at {call} on {limits}: {found}"
        assert found.variant is None and found.predicted_us is None
    else:
        broken = list(broken_rules(found, limits, call))
        assert not broken, f"{call} on {limits}: {found}\nbreaks: {broken}"
    for variant, reason in found.why_not.items():
        assert reason.startswith(f"{variant}: "), reason


# --- sweeps ---


def random_call(source: random.Random, **given: Any) -> dict[str, Any]:
    hidden = given.get("hidden_size") or source.randint(1, 8192)
    sizes = {"steps": source.choice([0, 1, 100, 1024]), "batch": source.choice([1, 8, 16, 64, 128, 1024])}
    call = {
        **sizes,
        "hidden_size": hidden,
        "proj_size": source.choice([0, 0, 1, max(1, hidden // 2), max(1, hidden - 1)]),
        "directions": source.choice([1, 2]),
        "gates": source.choice([4, 4, source.randint(1, 8)]),
        "math": source.choice(MATH),
        "backward": source.random() < 0.5,
        "ragged": source.random() < 0.5,
        "variant": source.choice([None, None, *VARIANTS]),
    }
    return call | given


def test_no_hole_in_hidden_size() -> None:
    """Every size, each on a device and in an arithmetic of its own."""
    source = random.Random(0)
    for hidden in range(1, 8193):
        limits = source.choice(list(DEVICES.values()))
        batch = source.choice([1, 7, 8, 16, 63, 64, 65, 128, 1023, 1024])
        check(limits, random_call(source, hidden_size=hidden, batch=batch))


def test_no_hole_in_batch() -> None:
    source = random.Random(1)
    for batch in range(1, 1025):
        for limits in DEVICES.values():
            check(limits, random_call(source, batch=batch))


def test_no_hole_at_random() -> None:
    source = random.Random(2)
    for _ in range(5000):
        limits = source.choice(list(DEVICES.values()))
        check(limits, random_call(source, batch=source.randint(1, 1024)))


@pytest.mark.parametrize("name", DEVICES)
def test_no_hole_in_options(name: str) -> None:
    """Every combination, at sizes on both sides of what fits."""
    for hidden in (1, 16, 31, 192, 512, 1024, 1760, 8192):
        for options in range(8):
            for arithmetic in MATH:
                for variant in (None, "step"):
                    check(
                        DEVICES[name],
                        {
                            "steps": 100,
                            "batch": 16,
                            "hidden_size": hidden,
                            "proj_size": hidden // 2 if options & 1 else 0,
                            "directions": 1 + bool(options & 2),
                            "math": arithmetic,
                            "backward": bool(options & 4),
                            "variant": variant,
                        },
                    )


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {"steps": 0, "batch": 0, "hidden_size": 64},
        {"steps": 10, "batch": 0, "hidden_size": 64, "proj_size": 8},
        {"steps": 2**40, "batch": 1, "hidden_size": 64},
        {"steps": 3, "batch": 65536 * 8, "hidden_size": 8},
        {"steps": 3, "batch": 2**31 + 5, "hidden_size": 3},
        {"steps": 3, "batch": 2**40, "hidden_size": 1, "proj_size": 1},
        {"steps": 1, "batch": 1, "hidden_size": 2**20},
        {"steps": 1, "batch": 2**20, "hidden_size": 2**17, "directions": 2},
        {"steps": 2**33, "batch": 2**33, "hidden_size": 2**28},
    ],
    ids=str,
)
def test_empty_and_huge(sizes: dict[str, int], backward: bool) -> None:
    for limits in DEVICES.values():
        for arithmetic in MATH:
            check(limits, {**sizes, "math": arithmetic, "backward": backward})


def test_small_devices() -> None:
    """A slice of a GPU, and one whose blocks get 48 KB."""
    source = random.Random(3)
    small = [replace(H200, multiprocessors=1, clusters=0), replace(A100, shared_bytes=48 << 10)]
    small += [replace(H200, multiprocessors=16, clusters=1), replace(RTX_3090, cooperative=False)]
    small += [replace(H200, cluster_blocks=8, clusters=16), replace(H200, cluster_blocks=1, clusters=0)]
    for _ in range(1000):
        check(source.choice(small), random_call(source))


# --- the choice ---


def choice_on_h200(steps: int, batch: int, hidden: int, arithmetic: str, **more: Any) -> str | None:
    return plan(H200, steps=steps, batch=batch, hidden_size=hidden, math=arithmetic, **more).variant


@pytest.mark.parametrize(
    ("expected", "shape"),
    [
        ("grid", (1024, 16, 768, "bfloat16")),
        ("grid", (1024, 16, 768, "tf32")),
        ("grid", (1024, 16, 1024, "float16")),
        ("cluster", (1024, 8, 128, "bfloat16")),
        ("cluster", (1024, 8, 128, "float32")),
        ("cluster", (1024, 64, 256, "float16")),
        ("step", (100, 1024, 8192, "bfloat16")),
        ("step", (100, 16, 2048, "bfloat16")),
        ("step", (100, 8, 128, "float64")),
        ("step", (1, 8, 128, "bfloat16")),
    ],
    ids=str,
)
def test_landmarks_on_h200(expected: str, shape: tuple[int, int, int, str]) -> None:
    assert choice_on_h200(*shape) == expected
    assert choice_on_h200(*shape, backward=True) == expected


def test_landmarks_on_b200() -> None:
    """There a product waits for the operands of each depth (kMostLoadsAhead).

    What comes through the L2 costs more than on an H200, and the cluster, whose operands are near, does not.
    """
    call: dict[str, Any] = {"steps": 1024, "batch": 16, "math": "bfloat16", "backward": True}
    wide = [plan(limits, hidden_size=768, **call) for limits in (H200, B200)]
    assert [found.variant for found in wide] == ["grid", "grid"]
    assert wide[1].predicted_us > 1.5 * wide[0].predicted_us
    assert [plan(limits, hidden_size=512, **call).variant for limits in (H200, B200)] == ["grid", "cluster"]
    near = [plan(limits, hidden_size=128, **call) for limits in (H200, B200)]
    assert [found.variant for found in near] == ["cluster", "cluster"]
    assert near[1].predicted_us < 1.1 * near[0].predicted_us


def test_no_cluster_before_hopper() -> None:
    for hidden in (32, 128, 512):
        for limits in (A100, RTX_3090):
            found = plan(limits, steps=1000, batch=8, hidden_size=hidden, math="bfloat16")
            assert found.variant == "grid"
            assert "need 9.0" in found.why_not["cluster"]


def test_the_fastest_is_chosen() -> None:
    """The plan is that of the forced variants with the least predicted time."""
    source = random.Random(4)
    for _ in range(300):
        call = random_call(source, hidden_size=source.randint(1, 1200), variant=None)
        chosen = plan(H200, **call)
        forced = [plan(H200, **call | {"variant": variant}) for variant in VARIANTS]
        times = [p.predicted_us for p in forced if p.predicted_us is not None]
        assert chosen.predicted_us == min(times)
        assert chosen in forced


def test_time_grows_with_steps() -> None:
    source = random.Random(5)
    for _ in range(300):
        call = random_call(source)
        times = [plan(H200, **call | {"steps": steps}).predicted_us for steps in (1, 10, 100, 1000)]
        if times[0] is not None:
            assert times == sorted(times) and times[0] < times[-1]


def test_a_plan_is_a_pure_function() -> None:
    call = {"steps": 100, "batch": 64, "hidden_size": 512, "math": "tf32"}
    assert plan(H200, **call) == plan(H200, **call)


# --- forced variants and reasons ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_forced(variant: str) -> None:
    found = plan(H200, steps=100, batch=16, hidden_size=256, math="bfloat16", variant=variant)
    assert found.variant == variant and found.why_not == {}


@pytest.mark.parametrize(
    ("variant", "limits", "sizes", "numbers"),
    [
        ("grid", H200, (4096, "bfloat16", 1), ["size 4096 need 134217728 bytes", f"hold {132 * 232448}"]),
        ("grid", H200, (2048, "float32", 2), ["in 2 directions need 134217728 bytes"]),
        ("grid", A100, (1344, "bfloat16", 1), ["84 blocks of 16 units", "172032", "can have 166912"]),
        ("grid", replace(A100, cooperative=False), (64, "tf32", 1), ["no cooperative launch"]),
        ("grid", replace(A100, multiprocessors=1), (8, "tf32", 2), ["2 directions", "there is 1"]),
        ("grid", H200, (64, "float64", 1), ["float64 runs with step only"]),
        ("cluster", H200, (768, "bfloat16", 1), ["blocks of 48 units", "weights 294912", "have 232448"]),
        ("cluster", RTX_3090, (64, "bfloat16", 1), ["capability 8.6", "9.0"]),
        ("cluster", replace(H200, clusters=0), (64, "tf32", 1), ["0 clusters of 16"]),
        ("cluster", H200, (64, "float64", 1), ["float64 runs with step only"]),
    ],
)
def test_reasons_name_the_limit(
    variant: str, limits: DeviceLimits, sizes: tuple[int, str, int], numbers: list[str]
) -> None:
    hidden, arithmetic, directions = sizes
    call = {"hidden_size": hidden, "math": arithmetic, "directions": directions}
    found = plan(limits, steps=100, batch=16, variant=variant, **call)
    assert found.variant is None and found.tiling is None and found.predicted_us is None
    for number in numbers:
        assert number in found.why_not[variant]
    assert found.why_not[variant] in str(found)


@pytest.mark.parametrize("variant", ["grid", "cluster"])
def test_layer_norm_runs_with_step_only(variant: str) -> None:
    call = {"steps": 1000, "batch": 16, "hidden_size": 256, "math": "bfloat16", "layer_norm": True}
    why = f"{variant}: layer norm runs with step only: its sums over a row would cost an exchange each"
    assert plan(H200, **call, variant=variant).why_not[variant] == why
    for backward in (False, True):
        found = plan(H200, **call, backward=backward)
        assert found.variant == "step" and found.why_not[variant] == why
        plain = plan(H200, **call | {"layer_norm": False}, backward=backward, variant="step")
        assert found.predicted_us > plain.predicted_us + 2500  # a launch a step more


def test_text() -> None:
    text = str(plan(H200, steps=1024, batch=16, hidden_size=768, math="bfloat16"))
    assert re.match(
        r"grid: 48 x 2 blocks of \d warps, each 16 units of 8 sequences; predicted \d+ us\n", text
    )
    assert "\n  not cluster: hidden size 768" in text


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"math": "int8"}, "math must be one of 'float32'"),
        ({"variant": "fast"}, "variant must be one of 'step', 'grid', 'cluster', got 'fast'"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"batch": -1}, "batch must be at least 0, got -1"),
        ({"directions": 3}, "directions must be 1 or 2, got 3"),
        ({"gates": 0}, "gates must be 1 to 8, got 0"),
        ({"gates": 9}, "gates must be 1 to 8, got 9"),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        plan(H200, **{"steps": 1, "batch": 1, "hidden_size": 8} | wrong)


def test_the_operator_checks_its_lists() -> None:
    import torch

    op, limits = torch.ops.customlstm.cuda_plan, [90, 132, 232448, 1 << 26, 16, 8, 1]
    for request, device, forced, text in [
        ([1] * 8, limits, -1, "request has 8 numbers, expected 11"),
        ([1] * 11, limits[:6], -1, "limits has 6 numbers, expected 7"),
        ([1, 1, 8, 8, 1, 0, 0, 0, 5, 4, 0], limits, -1, "math is 5"),
        ([1, 1, 8, 8, 1, 0, 0, 0, 0, 0, 0], limits, -1, "gates is 0, expected 1 to 8"),
        ([1, 1, 8, 8, 1, 0, 0, 0, 0, 9, 0], limits, -1, "gates is 9, expected 1 to 8"),
        ([1, 1, 8, 8, 1, 0, 0, 0, 0, 4, 0], limits, 3, "forced is 3"),
        ([1, 1, 8, 8, 1, 0, 0, 0, 0, 4, 0], [90, 0, *limits[2:]], -1, "multiprocessors is 0"),
        ([1, 1, 2**40, 2**40, 1, 0, 0, 0, 0, 4, 0], limits, -1, "no launch plan for"),
        ([1, 1, 8, 4, 1, 0, 0, 0, 0, 4, 0], limits, -1, "no launch plan for"),
    ]:
        with pytest.raises(RuntimeError, match=text):
            op(request, device, forced)


NAMES = r"""
#include <cstdio>
#include <stdexcept>
#include "cuda/plan.h"
using namespace customlstm::cuda;
int main() {
  bool good = variant_named(nullptr) == -1 && variant_named("") == -1;
  for (int v = 0; v < kVariants; ++v) good = good && variant_named(name_of(Variant(v))) == v;
  try { variant_named("Grid"); good = false; } catch (const std::runtime_error& e) { std::puts(e.what()); }
  return good ? 0 : 1;
}
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_names_for_the_environment(tmp_path: Path) -> None:
    """What CUSTOMLSTM_CUDA_VARIANT may hold; needs no library and no GPU, like all of plan.cpp."""
    source, program = tmp_path / "names.cpp", tmp_path / "names"
    source.write_text(NAMES)
    files = [str(source), str(CSRC / "cuda/plan.cpp")]
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", str(CSRC)]
    subprocess.run([*command, *files, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == 'CUSTOMLSTM_CUDA_VARIANT is "Grid", expected step, grid or cluster\n'
