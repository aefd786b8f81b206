"""Every instruction set that was compiled and that this CPU has, not only the one that is chosen here."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch
from support_process import run_python

from customlstm import _binary

# Chosen at the first call and for good, so that another one needs a process of its own; this much runs in it.
TESTS = [
    "test_instruction_sets.py::test_the_best_one_is_chosen",
    "test_against_reference.py::test_sizes",
    "test_against_reference.py::test_projection_sizes",
    "test_against_reference.py::test_one_wide_sequence",
    "test_against_reference.py::test_activations",
    "test_against_reference.py::test_activations_at_their_kinks",
    "test_piecewise_kernels.py",
    "test_accuracy.py::test_elementary_functions",
    "test_bad_values.py::test_activations_at_nan_and_infinity",
    "test_bad_values.py::test_every_bit_pattern_is_read_and_rounded_right",
    "test_determinism.py::test_a_sequence_does_not_see_its_batch",
    "test_determinism.py::test_backward_of_a_sequence_does_not_see_its_batch",
    "test_determinism.py::test_runs_and_threads_in_16_bits",
    "test_mask.py",
    "test_layer_norm_kernels.py::test_sizes",
    "test_layer_norm_kernels.py::test_threads_change_no_bit",
]
COMPILED = _binary.status().build.get("cpu", [])


def run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    return run_python(*command, CUSTOMLSTM_CPU_ISA=isa)


def chosen() -> str:
    return torch.ops.customlstm.cpu_isa()


@pytest.mark.slow
@pytest.mark.skipif("CUSTOMLSTM_CPU_ISA" in os.environ, reason="CUSTOMLSTM_CPU_ISA asks for one")
@pytest.mark.parametrize("isa", COMPILED)
def test_another_instruction_set(isa: str) -> None:
    if isa == chosen():
        return  # what all other tests run on
    done = run(isa, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *TESTS)
    if isa != "default" and "but this CPU and build have" in done.stdout:
        pytest.skip(f"this CPU has no {isa}")
    assert done.returncode == 0, f"{isa}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]


def test_an_unknown_instruction_set_is_refused() -> None:
    done = run("sse9", "-c", "import torch, customlstm; torch.ops.customlstm.cpu_isa()")
    assert done.returncode == 1
    assert 'CUSTOMLSTM_CPU_ISA is "sse9"' in done.stderr and "have: default" in done.stderr


def test_the_best_one_is_chosen() -> None:
    """The names are in ascending order of what they need."""
    if "CUSTOMLSTM_CPU_ISA" in os.environ:
        assert chosen() == os.environ["CUSTOMLSTM_CPU_ISA"]  # raises where this CPU lacks it
        return
    capability = torch.backends.cpu.get_cpu_capability()
    best = "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else "avx512"
    expected = {"AVX512": best, "AVX2": "avx2"}.get(capability, "default")
    assert chosen() == (expected if expected in COMPILED else "default")
