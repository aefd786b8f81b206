"""Arguments that do not fit together, straight at the operators: an error with a text, never a crash.

The whole table runs in one process of its own, which must live to its end: every case is announced before
it runs, so that a crash shows which one it was.
"""

from __future__ import annotations

import pytest
from support_process import run_python


@pytest.fixture(scope="module")
def report() -> str:
    """What the process said. It takes seconds to start, so all tests share one."""
    done = run_python("-X", "faulthandler", "support_metadata.py", timeout=300)
    last = done.stdout.strip().rpartition("\n")[2]
    assert done.returncode == 0, f"ended with {done.returncode} after {last!r}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_process_survives(report: str) -> None:
    assert report.strip().endswith("end of the table")


def test_every_case_is_refused_with_a_text(report: str) -> None:
    """RuntimeError; TypeError, IndexError and ValueError come from torch, which sees some cases first."""
    wrong = [line for line in report.splitlines() if line.startswith("WRONG")]
    assert not wrong, "\n".join(wrong)
    assert report.count("refused: ") > 100


def test_texts_name_the_argument(report: str) -> None:
    for case, word in {
        "lengths out of range": "lengths[",
        "lengths negative": "lengths[",
        "batch_sizes growing": "batch_sizes[",
        "batch_sizes add up to less": "batch_sizes add up to",
        "h_0 of another batch": "h_0 has shape",
        "c_0 of another size": "c_0 has shape",
        "weight_hh of another dtype": "weight_hh is float32",
        "unknown cell": 'no cell is registered as "gru"',
        "needs too short": "needs has",
        "gates of save 0": "call forward with save=2",
        "resets of integers": "resets is int64, expected bool",
        "cell_args truncated to 0": "cell_args ends before gate_activation",
        "knots that do not increase": "strictly increasing",
        "save is 3": "save is 3",
        "layer_norm 8.0": "layer_norm is 8, expected an integer from 1 to 7",
        "layer norms without weights": "weights has 10 tensors, expected 22",
        "weight_ln_hh too short": "weight_ln_hh has shape [31], expected [32]",
        "bias_ln_c_reverse too short": "bias_ln_c_reverse has shape [7], expected [8]",
    }.items():
        (line,) = [line for line in report.splitlines() if line.startswith(f"{case} refused: ")] or [""]
        assert word in line, f"{case}: {line!r} does not say {word!r}"
