"""Cells compiled for GPUs by NVRTC, without a GPU: what is in the cubins, and how they are kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support_builds import contents
from support_cubins import kernels, local_memory, use_sources

import customlstm
from customlstm.cells import gallery
from customlstm.jit import Program, cache, cuda, folders, headers, nvrtc
from customlstm.jit.build import BuildDisabledError, CacheWarning
from customlstm.jit.primitives import PRIMITIVES

CELLS = {name: getattr(gallery, name) for name in gallery.__all__}
ROOT = Path(customlstm.__file__).parents[1]


def compiled(program: Program, dtype: torch.dtype, unit: str, folder: Path) -> tuple[bytes, str]:
    """One of a cell's programs alone, for one tile of columns, and what ptxas said."""
    files = cuda.sources(program, dtype, "sm_90")
    one, four, end = re.split("(using Kernel4.*?^}$)", files[unit], maxsplit=1, flags=re.M | re.S)
    assert "_4(" in four
    (folder / "cell.inl").write_text(files["cell.inl"])
    (folder / unit).write_text(one + end)
    return nvrtc.compile_file(folder / unit, headers.headers(), "sm_90")


# --- what is compiled


@pytest.mark.parametrize("name", sorted(CELLS))
def test_every_cell_of_the_gallery_compiles(name: str, tmp_path: Path) -> None:
    image, log = compiled(CELLS[name].program, torch.bfloat16, "bfloat16_forward_step.cu", tmp_path)
    assert kernels(image) == {"customlstm_forward_step_1"}
    assert local_memory(log) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("math", "dtype", "unit"),
    [
        ("tf32", torch.float32, "backward_cluster"),
        ("fma32", torch.float32, "forward_grid"),
        ("float16", torch.float16, "backward_grid"),
    ],
)
def test_every_arithmetic_and_recurrence_compiles(
    math: str, dtype: torch.dtype, unit: str, tmp_path: Path
) -> None:
    image, log = compiled(gallery.peephole.program, dtype, f"{math}_{unit}.cu", tmp_path)
    assert kernels(image) == {f"customlstm_{unit}_1"}
    assert local_memory(log) == []


def test_every_function_that_a_cell_may_use_compiles(tmp_path: Path) -> None:
    signs = {"add": "x + y", "sub": "x - y", "mul": "x * y", "div": "x / y", "neg": "-x"}
    calls = {name: f"{name}({', '.join('xyzw'[: each.arity])})" for name, each in PRIMITIVES.items()} | signs
    body = "".join(f"  *to++ = {call};\n" for call in calls.values())
    (tmp_path / "functions.cu").write_text(
        '#include "cuda/functions.h"\nnamespace customlstm {\nnamespace cuda {\ntemplate <class V>\n'
        f"CUSTOMLSTM_DEVICE void all(V x, V y, V z, V w, V* to) {{\n{body}}}\n"
        "__global__ void run(Scalar<float>* a, Scalar<double>* b) {\n"
        "  all(a[0], a[1], a[2], a[3], a);\n  all(b[0], b[1], b[2], b[3], b);\n}\n}\n}\n"
    )
    image, _ = nvrtc.compile_file(tmp_path / "functions.cu", headers.headers(), "sm_80")
    assert kernels(image)


@pytest.mark.parametrize(
    ("arch", "dtype", "expected"),
    [
        ("sm_90", torch.bfloat16, {"bfloat16": ("step", "grid", "cluster")}),
        ("sm_86", torch.float16, {"float16": ("step", "grid")}),  # clusters came with 9.0
        ("sm_120", torch.float64, {"fma64": ("step",)}),
        ("sm_80", torch.float32, {"fma32": ("step", "grid"), "tf32": ("step", "grid")}),
    ],
)
def test_which_kernels_there_are(arch: str, dtype: torch.dtype, expected: dict[str, tuple[str, ...]]) -> None:
    files = cuda.sources(gallery.leaky.program, dtype, arch)
    units = {
        f"{math}_{part}_{variant}.cu"
        for math, variants in expected.items()
        for part in ("forward", "backward")
        for variant in variants
    }
    assert files.keys() == units | {"cell.inl"}
    for name in units:
        tiles = (1,) if dtype == torch.float64 else (1, 4)
        _, part, variant = name.removesuffix(".cu").split("_")
        for n in (1, 4):
            assert (f"customlstm_{part}_{variant}_{n}(" in files[name]) == (n in tiles)


def test_headers_of_the_current_folder_are_not_taken_for_ours(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "types.h").write_text("#error from the current folder\n")
    monkeypatch.chdir(tmp_path)
    use_sources(monkeypatch)
    assert customlstm.jit.compile_for_gpu(gallery.leaky, torch.float64).path.is_file()


# --- how it is kept


def test_a_whole_cell_from_the_cache_of_another_process(root: Path) -> None:
    built = customlstm.jit.compile_for_gpu(gallery.standard, torch.float64, "sm_90")
    log = built.log.read_text()
    assert not built.from_cache and local_memory(log) == [] and "\0" not in log
    assert built.path.name == "standard_float64_sm_90.zip"
    found = {name: kernels(image) for name, image in nvrtc.read_images(built.path).items()}
    assert found == {
        "fma64_forward_step": {"customlstm_forward_step_1"},
        "fma64_backward_step": {"customlstm_backward_step_1"},
    }
    script = """
        import json, sys
        import torch, customlstm
        from customlstm.cells import gallery
        from customlstm.jit import nvrtc
        nvrtc.find_nvrtc()
        built = [customlstm.jit.compile_for_gpu(gallery.standard, torch.float64) for _ in range(20)]
        print(json.dumps([str(built[0].path), [b.from_cache for b in built], min(b.seconds for b in built)]))
        print("cuda.core" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer, imported = done.stdout.splitlines()
    path, from_cache, seconds = json.loads(answer)
    assert (path, from_cache) == (str(built.path), [True] * 20)
    assert seconds < 0.05  # the best of them: other processes may hold the cores
    assert imported == "False"  # its import takes longer than all of that


def test_what_an_entry_holds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_sources(monkeypatch)
    built = customlstm.jit.compile_for_gpu(gallery.leaky, torch.float64, "sm_80")
    assert contents(root / "cuda") == ["leaky_float64_sm_80", "leaky_float64_sm_80.lock"]
    held = {path.name for path in built.path.parent.iterdir()}
    assert held == {"cell.inl", "fma64_tiny.cu", "build.log", "manifest.json", "leaky_float64_sm_80.zip"}
    manifest = json.loads((built.path.parent / "manifest.json").read_text())
    assert manifest["tool"] == nvrtc.find_nvrtc().identity()
    assert manifest["tool"].keys() == {"nvrtc", "cuda.core", "size"}
    assert manifest["inputs"]["architecture"] == "sm_80"
    assert manifest["inputs"]["flags"] == {"std": "c++17", "ptxas_options": "-v"}
    used = manifest["inputs"]["headers"]
    assert {"types.h", "cells/activation.h", "cuda/forward.h", "cuda/device/nvrtc.h"} <= used.keys()
    assert not [name for name in used if name.startswith("cpu/") or name.endswith((".cpp", ".cuh"))]


def test_what_tells_builds_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(dtype: torch.dtype = torch.float64, arch: str = "sm_90") -> Path:
        return customlstm.jit.compile_for_gpu(gallery.leaky, dtype, arch).path

    use_sources(monkeypatch)
    found = [build(), build(torch.float16), build(arch="sm_86")]
    another = replace(nvrtc.find_nvrtc(), core="99.0")
    monkeypatch.setattr(nvrtc, "find_nvrtc", lambda: another)
    found.append(build())
    use_sources(monkeypatch, cell__inl="constexpr int kNumber = 8;\n")
    found.append(build())
    assert len(set(found)) == 5


def test_a_damaged_entry_is_built_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_sources(monkeypatch)
    first = customlstm.jit.compile_for_gpu(gallery.leaky, torch.float64)
    good = first.path.read_bytes()
    first.path.write_bytes(good[:-1] + b"?")
    with pytest.warns(CacheWarning, match=r"the contents of leaky_float64_sm_90\.zip are not what was built"):
        again = customlstm.jit.compile_for_gpu(gallery.leaky, torch.float64)
    assert not again.from_cache and again.path.read_bytes() == good


def test_switched_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_sources(monkeypatch)
    monkeypatch.setenv("CUSTOMLSTM_JIT", "0")
    with pytest.raises(BuildDisabledError) as caught:
        customlstm.jit.compile_for_gpu(gallery.leaky, torch.float64)
    assert str(caught.value) == (
        "'leaky-float64-sm_90' needs to be built, but CUSTOMLSTM_JIT is 0. Unset it, or set "
        "CUSTOMLSTM_CACHE_DIR to a cache that holds a build of it (none was found in "
        f"{folders.cache_folder()})"
    )
    monkeypatch.delenv("CUSTOMLSTM_JIT")
    built = customlstm.jit.compile_for_gpu(gallery.leaky, torch.float64)
    monkeypatch.setenv("CUSTOMLSTM_JIT", "0")
    found = customlstm.jit.compile_for_gpu(gallery.leaky, torch.float64)
    assert found.from_cache and found.path == built.path


def test_two_threads_compile_one_cell_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_sources(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(customlstm.jit.compile_for_gpu, gallery.leaky, torch.float64) for _ in range(2)]
        assert sorted(task.result().from_cache for task in tasks) == [False, True]
    assert cache._failures == {}
