"""The texts of errors about what a cell function must not do, and the lines that they point at."""

import inspect
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support_cells import NAMED

from customlstm.jit import CellError, trace
from customlstm.jit.lowering import LOWERINGS

UNITS = torch.ones(3)
COUNTER = torch.zeros(())
LEARNED = torch.nn.Parameter(torch.tensor(2.0))
MIXES = (
    "combines several elements, but a cell computes every unit of every sequence by itself; use functions "
    "that work element by element, and put what mixes units into a layer before or after the LSTM"
)
RANDOM = (
    "draws random numbers, but a kernel computes some values twice and must get the same; use the options "
    "recurrent_dropout and zoneout of customlstm.LSTM, or nn.Dropout on its output"
)
SHAPE = (
    "changes the shape, but everything in a cell has one shape, one element a unit of every sequence; use "
    "functions that work element by element"
)
PLACE = (
    "takes elements by their place, but a cell computes every unit of every sequence by itself; choose by "
    "value, with torch.where(condition, a, b)"
)
VALUE = (
    "needs the value of a tensor in Python, but a cell is written out once for all values; write "
    "torch.where(condition, a, b) in place of if, and & | ~ in place of and, or, not"
)
NUMBER = (
    "takes a tensor's values out of torch, but a cell is written out once for all values; keep to functions "
    "of torch, such as torch.exp in place of math.exp"
)
DTYPE = (
    "but a cell computes in the dtype of its arguments; leave out the conversion, write conditions as "
    ".to(c.dtype), and torch.floor or torch.round for whole numbers"
)
UNKNOWN = (
    "is not among the functions that kernels have; write it with + - * / **, comparisons and torch.where, "
    "sigmoid, tanh, exp, log, sqrt, sin, erf and the like (csrc/cells/README.md lists them)"
)
EXAMPLE = "def cell(i, f, g, o, c, *, p=0.0): ... return h, c"
OUTSIDE = "that is none of its arguments"


def branch(a, c):
    if c > 0:
        c = 2 * c
    return a * c, c


def assigned(a, c):
    c[a > 0] = 0.0
    return a * c, c


def helped(a, c):
    return a * _helper(c), c


def _helper(x):
    return x - x.mean()


def long(a, c):
    for k in range(1500):
        c = torch.sin(c * k) + a
    return a * c, c


def spread(a, c):
    h = a * torch.sigmoid(c.cumsum(0))
    return h, c


#: Functions, a part of the line that the error points at, and its text.
AT_A_LINE: list[tuple[Callable[..., Any], str, str]] = [
    (branch, "if c > 0:", f"bool() {VALUE}"),
    (lambda a, c: (a if 0 < c < 1 else c, c), "0 < c < 1", f"bool() {VALUE}"),
    (lambda a, c: (a and c, c), "a and c", f"bool() {VALUE}"),
    (lambda a, c: (math.exp(c) * a, c), "math.exp(c)", f"float() {NUMBER}"),
    (lambda a, c: (int(c) * a, c), "int(c)", f"int() {NUMBER}"),
    (lambda a, c: (c.item() * a, c), "c.item()", f"Tensor.item() {NUMBER}"),
    (lambda a, c: (c.tolist()[0] * a, c), "c.tolist()", f"Tensor.tolist() {NUMBER}"),
    (lambda a, c: (c.detach().numpy() * a, c), ".numpy()", f"Tensor.numpy() {NUMBER}"),
    (lambda a, c: (np.tanh(c) * a, c), "np.tanh(c)", f"numpy.asarray() {NUMBER}"),
    (lambda a, c: (c.sum() * a, c), "c.sum()", f"torch.Tensor.sum {MIXES}"),
    (lambda a, c: (c.max() * a, c), "c.max()", f"torch.Tensor.max {MIXES}"),
    (lambda a, c: (a if (c > 0).all() else c, c), ".all()", f"torch.Tensor.all {MIXES}"),
    (lambda a, c: (torch.cumsum(c, 0) * a, c), "torch.cumsum(c, 0)", f"torch.cumsum {MIXES}"),
    (lambda a, c: (F.softmax(c, -1) * a, c), "F.softmax(c, -1)", f"torch.nn.functional.softmax {MIXES}"),
    (lambda a, c: (F.layer_norm(c, c.shape), c), "F.layer_norm", f"torch.nn.functional.layer_norm {MIXES}"),
    (lambda a, c: (a @ c, c), "(a @ c, c)", f"torch.Tensor.matmul {MIXES}"),
    (helped, "return x - x.mean()", f"torch.Tensor.mean {MIXES}"),
    (spread, "c.cumsum(0)", f"torch.Tensor.cumsum {MIXES}"),
    (lambda a, c: (F.dropout(c, 0.5), c), "F.dropout(c, 0.5)", f"torch.nn.functional.dropout {RANDOM}"),
    (lambda a, c: (torch.rand_like(c), c), "torch.rand_like(c)", f"torch.rand_like {RANDOM}"),
    (lambda a, c: (torch.randn(()) * c, c), "torch.randn(())", f"torch.randn {RANDOM}"),
    (lambda a, c: (a.clone().normal_(), c), ".normal_()", f"torch.Tensor.normal_ {RANDOM}"),
    (lambda a, c: (c.unsqueeze(0) * a, c), "c.unsqueeze(0)", f"torch.Tensor.unsqueeze {SHAPE}"),
    (lambda a, c: (c.view(-1, 1) * a, c), "c.view(-1, 1)", f"torch.Tensor.view {SHAPE}"),
    (lambda a, c: (torch.stack([a, c])[0], c), "torch.stack([a, c])", f"torch.stack {SHAPE}"),
    (lambda a, c: (c[0] * a, c), "c[0]", f"[...] {PLACE}"),
    (lambda a, c: (c[c > 0], c), "c[c > 0]", f"[...] {PLACE}"),
    (lambda a, c: (sum(c) * a, c), "sum(c)", f"iteration or unbind() {PLACE}"),
    (assigned, "c[a > 0] = 0.0", f"[...] = {PLACE}"),
    (lambda a, c: (c.float() * a, c), "c.float()", f"torch.Tensor.float gives torch.float32, {DTYPE}"),
    (lambda a, c: (c.double() * a, c), "c.double()", f"torch.Tensor.double gives torch.float64, {DTYPE}"),
    (lambda a, c: (c.long() * a, c), "c.long()", f"torch.Tensor.long gives torch.int64, {DTYPE}"),
    (lambda a, c: ((c > 0).int() * a, c), ".int()", f"torch.Tensor.int gives torch.int32, {DTYPE}"),
    (lambda a, c: (c.to(torch.complex64), c), "complex64", f"torch.Tensor.to gives torch.complex64, {DTYPE}"),
    (lambda a, c: (torch.lgamma(c) * a, c), "torch.lgamma(c)", f"torch.lgamma {UNKNOWN}"),
    (
        lambda a, c: (UNITS * a, c),
        "UNITS * a",
        f"it uses a tensor of shape [3] {OUTSIDE}, but a kernel knows only what is passed; make it a "
        "keyword-only parameter, which has one value a unit, or use a Python number",
    ),
    (
        lambda a, c: (LEARNED * a, c),
        "LEARNED * a",
        f"it uses a tensor with requires_grad=True {OUTSIDE}, which would get no gradient; make it a "
        "keyword-only parameter, or detach it to use the value that it has now",
    ),
    (
        lambda a, c: (COUNTER.add_(1) * a, c),
        "COUNTER.add_(1)",
        "torch.Tensor.add_ changes a tensor that is not the cell's own, which a kernel cannot; keep what "
        "lasts from step to step in a state, or make it a keyword-only parameter",
    ),
    (
        lambda a, c: (torch.round(c, decimals=2) * a, c),
        "torch.round(c, decimals=2)",
        "torch.round: decimals has no form in a kernel; write torch.round(x * 10**n) / 10**n",
    ),
    (
        lambda a, c: (torch.clamp(c, min=math.nan), c),
        "torch.clamp(c, min=math.nan)",
        "torch.clamp: a bound is NaN; give a number or None",
    ),
    (
        long,
        "c = torch.sin(c * k) + a",
        "it and its derivative need more than 2000 operations, but a kernel has at most that many; shorten "
        "its loops",
    ),
    (
        lambda a, c: (a * c.nothing, c),
        "a * c.nothing",
        "it raised AttributeError: 'Tensor' object has no attribute 'nothing'",
    ),
]  # fmt: skip


def place_of(part: str) -> tuple[int, str]:
    """Number and text of the first line of this file that has ``part`` in a function."""
    with open(__file__) as file:
        for number, line in enumerate(file, start=1):
            if part in line:
                return number, line.strip()
    raise AssertionError(part)


@pytest.mark.parametrize(("function", "part", "text"), AT_A_LINE, ids=[x[1] for x in AT_A_LINE])
def test_error_points_at_the_line(function: Callable[..., Any], part: str, text: str) -> None:
    number, line = place_of(part)
    with pytest.raises(CellError) as error:
        trace(function)
    assert str(error.value) == (
        f"{__file__}:{number}: cell function {function.__name__!r}: {text}\n    {line}"
    )


async def coroutine(a, c):
    return a, c


def generator(a, c):
    yield a


DEPENDS = (
    "it computes something else for another dtype or size, or at every call, but one kernel serves them "
    "all; use numbers in place of what depends on dtype, shape, randomness or outer state"
)
RETURN = "return h and the new states, as in: return h, c"

#: Functions and what is wrong with them as a whole.
AS_A_WHOLE: list[tuple[str, Callable[..., Any], str]] = [
    ("shape", lambda a, c: (a * c.shape[0], c), DEPENDS),
    ("length", lambda a, c: (a / len(c), c), DEPENDS),
    ("dtype", lambda a, c: (a.clamp(max=torch.finfo(c.dtype).max), c), DEPENDS),
    ("random number", lambda a, c: (a * random.random(), c), DEPENDS),
    ("None", lambda a, c: None, f"it returns None, but a cell must {RETURN}"),
    ("tensor", lambda a, c: c, f"it returns a Tensor, but a cell must {RETURN}"),
    (
        "one value",
        lambda a, c: (c,),
        f"it returns 1 values, but a cell returns h and then 1 to 4 new states; {RETURN}",
    ),
    (
        "six values",
        lambda a, c: (c,) * 6,
        f"it returns 6 values, but a cell returns h and then 1 to 4 new states; {RETURN}",
    ),
    (
        "number",
        lambda a, c: (c, 0.0),
        "new state 1 is a float, but a result must be a tensor; write torch.full_like(c, number) for a "
        "number",
    ),
    (
        "bool",
        lambda a, c: (c > 0, c),
        "h is a bool tensor, but a result must be numbers; write condition.to(c.dtype)",
    ),
    (
        "scalar",
        lambda a, c: (c, torch.tensor(0.0)),
        "new state 1 has shape [] for arguments of shape [5], but a result has one element for each of "
        "theirs; write torch.full_like(c, number) for a number",
    ),
    (
        "integers",
        lambda a, c: (torch.where(c > 0, 1, 0), c),
        "h is torch.int64, but a cell computes with floating-point numbers; write .to(c.dtype)",
    ),
    (
        "no gate",
        lambda c, d: (c, c, d),
        "of its 2 positional arguments the last 2 are states, because it returns 3 values, which leaves 0 "
        "gates, but a cell has 1 to 8; take the gates first and then as many states as it returns after h",
    ),
    (
        "nine gates",
        lambda a, b, d, e, f, g, h, i, j, c: (a, c),
        "of its 10 positional arguments the last 1 are states, because it returns 2 values, which leaves 9 "
        "gates, but a cell has 1 to 8; take the gates first and then as many states as it returns after h",
    ),
    (
        "one argument",
        lambda c: (c, c),
        "a cell takes 1 to 8 gates and then 1 to 4 states as positional arguments, got 1 (c); write it as " +
        EXAMPLE,
    ),
    (
        "no argument",
        lambda: None,
        "a cell takes 1 to 8 gates and then 1 to 4 states as positional arguments, got none; write it as " +
        EXAMPLE,
    ),
    (
        "thirteen arguments",
        lambda a, b, d, e, f, g, h, i, j, k, m, n, c: (a, c),
        "a cell takes 1 to 8 gates and then 1 to 4 states as positional arguments, got 13 (a, b, d, e, f, "
        "g, h, i, j, k, m, n, c); write it as " + EXAMPLE,
    ),
    (
        "args",
        lambda *gates: gates,
        "it takes *gates, but a cell has a fixed number of arguments; name each gate and state, and each "
        "parameter after a *: " + EXAMPLE,
    ),
    (
        "kwargs",
        lambda a, c, **options: (a, c),
        "it takes **options, but a cell has a fixed number of arguments; name each gate and state, and each "
        "parameter after a *: " + EXAMPLE,
    ),
    (
        "default",
        lambda a, c=1.0: (a, c),
        "the positional argument 'c' has the default 1.0, but gates and states are always given; write it "
        "without a default or, for a parameter with one value a unit, after a *: " + EXAMPLE,
    ),
    (
        "default that is a str",
        lambda a, c, *, p="one": (a, c),
        "the parameter 'p' has the default 'one' (str), but a default is the number that every unit starts "
        "with; write a Python number or no default",
    ),
    (
        "default that is a bool",
        lambda a, c, *, p=True: (a, c),
        "the parameter 'p' has the default True (bool), but a default is the number that every unit starts "
        "with; write a Python number or no default",
    ),
    (
        "nine parameters",
        lambda x, c, *, a, b, d, e, f, g, h, i, j: (x, c),
        "it has 9 keyword-only parameters, but a cell may have at most 8; merge some, or write numbers that "
        "are not learned as Python numbers",
    ),
    (
        "async",
        coroutine,
        f"it is an async function, but a cell must return h and its new states at once; write {EXAMPLE}",
    ),
    (
        "generator",
        generator,
        f"it is a generator function, but a cell must return h and its new states at once; write {EXAMPLE}",
    ),
    ("builtin", torch.add, f"its arguments cannot be read; write it in Python, as {EXAMPLE}"),
    (
        "no derivative",
        lambda a, c: (a // 0.3, c),
        "autograd cannot differentiate it: RuntimeError: derivative for aten::floor_divide is not "
        "implemented",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("function", "text"), [x[1:] for x in AS_A_WHOLE], ids=[x[0] for x in AS_A_WHOLE])
def test_error_about_the_function(function: Callable[..., Any], text: str) -> None:
    with pytest.raises(CellError) as error:
        trace(function)
    message = f"cell function {function.__name__!r}: {text}"
    if inspect.isbuiltin(function):
        assert str(error.value) == message
        return
    number = function.__code__.co_firstlineno
    line = Path(__file__).read_text().splitlines()[number - 1].strip()
    assert str(error.value) == f"{__file__}:{number}: {message}\n    {line}"


@pytest.mark.parametrize("name", ["h", "x"])
def test_gate_that_looks_like_the_state_or_the_input(name: str) -> None:
    text = (
        f"the argument '{name}' is one of its 5 gates, but looks like what a cell does not get: its gates "
        "are W_ih x + W_hh h and the biases, added up already; leave it out, or give the gate another name"
    )
    function: Any = {
        "h": lambda i, f, g, o, h, c: (o * h, f * c + i * g),
        "x": lambda i, f, g, o, x, c: (o * x, f * c + i * g),
    }[name]
    with pytest.warns(UserWarning) as caught:
        trace(function)
    assert [str(each.message).split("'<lambda>': ")[1].splitlines()[0] for each in caught] == [text]


ODD_SPLITS: list[tuple[Callable[..., Any], str]] = [
    (
        lambda i, g, o, c: (i * g + o, c, c),
        "it returns 3 values, h and 2 new states, so its gates are i, g and its states o, c; 'o', a state of "
        "these, is named as a gate. Return h and one new value for each state, or give the argument another "
        "name",
    ),
    (
        lambda i, f, c, n: (i * f + c, n),
        "it returns 2 values, h and 1 new state, so its gates are i, f, c and its states n; 'c', a gate of "
        "these, is named as a state. Return h and one new value for each state, or give the argument another "
        "name",
    ),
]


@pytest.mark.parametrize(("function", "text"), ODD_SPLITS, ids=["one result too many", "one too few"])
def test_number_of_results_that_makes_a_gate_a_state(function: Callable[..., Any], text: str) -> None:
    with pytest.warns(UserWarning) as caught:
        trace(function)
    assert [str(each.message).split("'<lambda>': ")[1].splitlines()[0] for each in caught] == [text]


@pytest.mark.filterwarnings("error")
def test_eighth_letter_is_a_gate_like_any_other() -> None:
    assert trace(lambda a, b, d, e, f, g, h, c: (a * b * d * e * f * g * h, c)).gates[-1] == "h"


@pytest.mark.filterwarnings("error")
def test_arguments_may_be_called_by_letters() -> None:
    assert trace(lambda a, b, c, d: (a * b * c, d)).gates == ("a", "b", "c")
    assert trace(lambda d, e, f, g: (d * e, f, g)).states == ("f", "g")


def test_cell_error_is_a_value_error_with_its_cause() -> None:
    def broken(a, c):
        raise KeyError("forget")

    with pytest.raises(ValueError, match="it raised KeyError: 'forget'; ") as error:
        trace(broken)
    assert isinstance(error.value, CellError)
    assert isinstance(error.value.__cause__, KeyError)


def test_not_a_function() -> None:
    with pytest.raises(TypeError, match=r"^function must be a function of tensors, got int$"):
        trace(3)


def test_source_that_no_file_has() -> None:
    scope: dict[str, Any] = {"torch": torch}
    exec("def typed(a, c):\n    h = torch.tanh(a)\n    return h * c, c\n", scope)
    program = trace(scope["typed"])
    assert program.name == "typed"
    assert program == trace(lambda a, c: (torch.tanh(a) * c, c))
    exec("def typed(a, c):\n    return a.sum() * c, c\n", scope)
    with pytest.raises(CellError) as error:
        trace(scope["typed"])
    assert str(error.value) == f"<string>:2: cell function 'typed': torch.Tensor.sum {MIXES}"


def test_whole_numbers_are_no_place_for_real_ones() -> None:
    def whole(a, c):
        number = torch.where(c > 0, 1, 0)
        number.copy_(a)
        return number * c, c

    with pytest.raises(CellError, match=r"cell function 'whole': torch.Tensor.copy_ gives torch.int64, but"):
        trace(whole)


def test_program_that_is_not_the_function_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOWERINGS, "tanh", LOWERINGS["cos"])
    with pytest.raises(CellError) as error:
        trace(NAMED["janet"])
    assert str(error.value).split(": ", 1)[1].splitlines()[0] == (
        "cell function 'janet': its kernel would compute something else than it does, which is an error of "
        f"customlstm with torch {torch.__version__}; please report it, with the function"
    )


def test_functions_here_are_where_the_errors_say() -> None:
    assert place_of("return x - x.mean()")[0] == inspect.getsourcelines(_helper)[1] + 1
