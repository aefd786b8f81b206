"""Tracing: what a cell function may be and do."""

import functools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from support_cells import NAMED, standard
from torch import Tensor

from customlstm.jit import generate, trace


class _Callable:
    def __init__(self, slope: float) -> None:
        self.slope = slope

    def __call__(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return a * self.slope, c

    def method(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return a * self.slope, c


def test_kinds_of_functions() -> None:
    program = trace(lambda a, c: (a * 0.3, c))
    made = _Callable(0.3)
    wrapped = functools.partial(lambda slope, a, c: (a * slope, c), 0.3)
    for function in (made, made.method, wrapped, functools.wraps(made.method)(lambda *x: made(*x))):
        assert trace(function) == program
    assert trace(made).name == "_Callable"


def test_names_and_defaults() -> None:
    program = trace(NAMED["peephole"])
    assert program.name == "peephole"
    assert (program.gates, program.states) == (("i", "f", "g", "o"), ("c",))
    assert (program.parameters, program.defaults) == (("p_i", "p_f", "p_o"), (None, 0.0, 0.5))
    assert trace(NAMED["slstm"]).states == ("c", "n", "m")
    assert trace(lambda a, c, *, p=1: (a * p, c)).defaults == (1.0,)


def test_values_have_the_users_names() -> None:
    program = trace(standard)
    assert [x for x in program.forward_hints if x] == ["i", "f", "g", "o", "c", "h"]
    for name in ("i", "f", "g", "o", "c"):  # h is computed in the argument of that name
        assert re.search(rf"const V& {name}_1 = ", generate(program))


def test_result_may_be_a_list() -> None:
    assert trace(lambda a, c: [a * c, c]) == trace(lambda a, c: (a * c, c))


def test_numbers_of_a_closure_are_constants() -> None:
    as_python, as_numpy = 0.3, np.float64(0.3)
    as_tensor = torch.tensor(0.3, dtype=torch.float64)
    expected = trace(lambda a, c: (a * 0.3, c))
    assert trace(lambda a, c: (a * as_python, c)) == expected
    assert trace(lambda a, c: (a * as_numpy, c)) == expected
    assert trace(lambda a, c: (a * as_tensor, c)) == expected
    assert trace(lambda a, c: (a * torch.full_like(c, 0.3), c)) == expected
    assert trace(lambda a, c: (a * as_tensor.item(), c)) == expected
    assert trace(lambda a, c: (a * 0.3 if as_tensor > 0 else a, c)) == expected


def test_dtypes_of_constants_are_kept() -> None:
    twice = trace(lambda a, c: (a * 2, c))
    assert trace(lambda a, c: (a * torch.full_like(c, 2.7).long(), c)) == twice
    assert trace(lambda a, c: (a * (torch.full_like(c, 6.0).int() & 3), c)) == twice
    assert trace(lambda a, c: (a * 2 * torch.full_like(c, 0.5, dtype=torch.bool), c)) == twice

    def changed(a, c):
        k = torch.tensor(1.0)
        k += 1
        return a * k, c

    assert trace(changed) == twice

    def condition(a, c):
        mask = c > 0
        mask.copy_(a)
        return mask * c, c

    assert trace(condition) == trace(lambda a, c: (torch.where(a != 0, 1.0, 0.0) * c, c))


def test_views_of_the_same_shape_are_the_same_value() -> None:
    plain = trace(lambda a, c: (a * c, c))
    assert trace(lambda a, c: (a.view(-1).reshape(c.shape) * c.expand_as(a).contiguous(), c)) == plain


def test_what_is_changed_in_place_is_another_value() -> None:
    def in_place(i, f, g, c):
        old = c
        kept = c.clone()
        c *= f
        c += i * g
        return old * kept, c

    def plain(i, f, g, c):
        new = c * f + i * g
        return new * c, new

    assert trace(in_place).forward_code == trace(plain).forward_code


def test_in_place_after_a_use_that_autograd_keeps() -> None:
    """``c *= f`` after ``p * c``: plain autograd refuses, because it has kept c for the gradient of p."""

    def in_place(i, f, c, *, p):
        i = torch.sigmoid(i + p * c)
        c *= f
        c += i
        return c * 2, c

    def plain(i, f, c, *, p):
        i = torch.sigmoid(i + p * c)
        c = c * f + i
        return c * 2, c

    assert trace(in_place) == trace(plain)


def test_print_does_not_disturb(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(a, c):
        print(a, f"{c}")
        return a * c, c

    assert trace(shown) == trace(lambda a, c: (a * c, c))
    line = "<a tensor of the cell that is being traced, torch.float64>"
    assert capsys.readouterr().out.splitlines()[0] == f"{line} {line}"


def test_surroundings_do_not_matter() -> None:
    expected = trace(standard)
    with torch.no_grad():
        assert trace(standard) == expected
    with torch.inference_mode():
        assert trace(standard) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trace(standard) == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert trace(standard) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_torchs_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    trace(standard)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_are_cut_where_the_function_cuts_them() -> None:
    def cut(a, b, c):
        with torch.no_grad():
            scale = torch.exp(b)
        return a * scale + c.detach() * b, c

    program = trace(cut)
    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    _, states, saved = program.forward_saving([x, 2 * x], [3 * x])
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    (dc,), (da, db), _ = program.backward(saved, [], [3 * x], states, one, [zero])
    torch.testing.assert_close(da, torch.exp(2 * x))
    torch.testing.assert_close(db, 3 * x)
    assert torch.equal(dc, zero)


def test_imports_stay_light() -> None:
    code = (
        "import sys, customlstm\n"
        "assert not [x for x in sys.modules if x.startswith('customlstm.jit')]\n"
        "before = set(sys.modules)\n"
        "import customlstm.jit\n"
        "new = {x.partition('.')[0] for x in set(sys.modules) - before}\n"
        "assert new <= {'customlstm'} | set(sys.stdlib_module_names), new\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
