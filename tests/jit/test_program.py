"""Programs: what they compute, what they save, and how they are stored."""

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_cells import BINARY, NAMED, UNARY, Values, in_torch, random_function, standard
from torch import Tensor

from customlstm.jit import Program, trace
from customlstm.jit.program import Code, Instruction


def run(program: Program, values: Values) -> tuple[list[Tensor], list[Tensor]]:
    """Results and gradients, by the program's own forward and backward."""
    h, states, saved = program.forward_saving(values.gates, values.states, values.parameters)
    of_states, of_gates, of_parameters = program.backward(
        saved, values.parameters, values.states, states, values.dh, values.dstates
    )
    return [h, *states], [*of_states, *of_gates, *of_parameters]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance, equal_nan=True)


def check(function: Callable[..., Any], seed: int = 0) -> None:
    """Forward and backward, and forward under autograd, against plain PyTorch."""
    program = trace(function)
    values = in_torch(function, program, seed=seed)
    results, gradients = run(program, values)
    assert_same(results, values.results)
    assert_same(gradients, values.gradients)
    inputs = [x.clone().requires_grad_() for x in (*values.gates, *values.states, *values.parameters)]
    gates, positional = len(program.gates), len(program.gates) + len(program.states)
    h, states = program.forward(inputs[:gates], inputs[gates:positional], inputs[positional:])
    assert_same([h.detach(), *(x.detach() for x in states)], values.results)
    order = [*inputs[gates:positional], *inputs[:gates], *inputs[positional:]]
    assert_same(
        list(torch.autograd.grad([h, *states], order, [values.dh, *values.dstates])), values.gradients
    )


@pytest.mark.parametrize("name", NAMED)
def test_cells(name: str) -> None:
    check(NAMED[name])


@pytest.mark.parametrize("name", UNARY)
def test_unary_functions(name: str) -> None:
    function = UNARY[name]
    check(lambda a, c: (function(a) * c, function(c) + a))


@pytest.mark.parametrize("name", BINARY)
def test_binary_functions(name: str) -> None:
    function = BINARY[name]
    check(lambda a, c: (function(a, c) * c, function(c, a * 0.5) + a))


def test_hardsigmoid_is_exact_where_torch_is_not() -> None:
    """torch multiplies the gradient by a sixth that is rounded to float32."""
    program = trace(lambda a, c: (torch.nn.functional.hardsigmoid(a), c))
    a = torch.tensor([-3.0, -2.9, 0.0, 1.0, 3.0, -7.0, 7.0], dtype=torch.float64)
    h, states, saved = program.forward_saving([a], [a])
    torch.testing.assert_close(h, torch.clamp(a / 6 + 0.5, 0, 1), rtol=1e-15, atol=1e-15)
    _, (da,), _ = program.backward(saved, [], [a], states, torch.ones_like(a), [torch.zeros_like(a)])
    sixth = 1 / 6
    torch.testing.assert_close(da.tolist(), [0.0, sixth, sixth, sixth, 0.0, 0.0, 0.0], rtol=1e-15, atol=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(100, 100_000))
def test_random_compositions(seed: int) -> None:
    check(random_function(seed), seed)


class _Sign(torch.autograd.Function):
    """A step with the derivative of hardtanh, as spiking networks and binary ones use it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


def test_derivative_of_the_users_own() -> None:
    check(lambda a, c: (_Sign.apply(a) * c, _Sign.apply(c + a) * a))


def test_branch_that_overflows_does_not_spoil_the_derivative() -> None:
    program = trace(lambda a, c: (torch.nn.functional.softplus(a), torch.nn.functional.elu(c)))
    a = torch.tensor([800.0, 1000.0, 3.0], dtype=torch.float64, requires_grad=True)
    h, (c,) = program.forward([a], [a])
    (gradient,) = torch.autograd.grad(h.sum() + c.sum(), a)
    torch.testing.assert_close(gradient.tolist(), [2.0, 2.0, 1 + 1 / (1 + math.exp(-3.0))])


# --- torch around a program


def small(program: Program) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = len(program.gates) + len(program.states) + len(program.parameters)
    return [
        torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(count)
    ]


def flat(program: Program) -> Callable[..., tuple[Tensor, ...]]:
    """The program as a function of gates, states and parameters in a row."""
    gates, positional = len(program.gates), len(program.gates) + len(program.states)

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        h, states = program.forward(inputs[:gates], inputs[gates:positional], inputs[positional:])
        return (h, *states)

    return function


@pytest.mark.parametrize("name", ["standard", "peephole", "slstm", "nas"])
def test_gradcheck_of_first_and_second_derivative(name: str) -> None:
    program = trace(NAMED[name])
    assert torch.autograd.gradcheck(flat(program), small(program), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(flat(program), small(program))


def test_under_torch_func() -> None:
    program = trace(NAMED["peephole"])
    function, inputs = flat(program), [x.detach() for x in small(program)]
    plain = NAMED["peephole"]

    def in_plain(*x: Tensor) -> tuple[Tensor, ...]:
        return plain(*x[:5], p_i=x[5], p_f=x[6], p_o=x[7])

    over = tuple(range(len(inputs)))
    for transform in (
        lambda f: torch.vmap(f),
        lambda f: torch.func.grad(lambda *x: f(*x)[0].sum(), over),
        lambda f: torch.vmap(torch.func.grad(lambda *x: f(*x)[1], over)),
        lambda f: torch.func.jacrev(f, over),
    ):
        found, expected = transform(function)(*inputs), transform(in_plain)(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    tangents = tuple(torch.ones_like(x) for x in inputs)
    found = torch.func.jvp(function, tuple(inputs), tangents)
    torch.testing.assert_close(
        found, torch.func.jvp(in_plain, tuple(inputs), tangents), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMED)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    program = trace(NAMED[name])
    function, inputs = flat(program), [x.detach().to(dtype).requires_grad_() for x in small(program)]
    results = function(*inputs)
    assert all(x.dtype == dtype and x.shape == (4,) for x in results)
    gradients = torch.autograd.grad(results, inputs, [torch.ones_like(x) for x in results])
    assert all(x.dtype == dtype for x in gradients)


def test_parameters_are_broadcast_and_their_gradients_summed() -> None:
    program = trace(NAMED["leaky"])
    generator = torch.Generator().manual_seed(0)
    a, c = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    decay = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    h, (new,) = program.forward([a], [c], [decay])
    (found,) = torch.autograd.grad(h.sum() + new.sum(), decay)
    h, new = NAMED["leaky"](a, c, decay=decay)
    (expected,) = torch.autograd.grad(h.sum() + new.sum(), decay)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_wrong_number_of_tensors() -> None:
    program, x = trace(NAMED["leaky"]), torch.zeros(2)
    with pytest.raises(ValueError, match=r"^gates: expected 1 tensors \(a\), got 2$"):
        program.forward([x, x], [x], [x])
    with pytest.raises(ValueError, match=r"^states: expected 1 tensors \(c\), got 0$"):
        program.forward([x], [], [x])
    with pytest.raises(ValueError, match=r"^parameters: expected none, got 1$"):
        trace(NAMED["janet"]).forward([x, x], [x], [x])


# --- what is saved


def saved_names(program: Program) -> list[str]:
    inputs = [*program.gates, *program.states, *program.parameters]
    names = [*inputs, *program.forward_hints]
    return [names[x] for x in program.forward_code.results[1 + len(program.states) :]]


def operations(code: Code) -> list[str]:
    return sorted(x.op for x in code.instructions if x.op != "constant")


def test_standard_cell_saves_its_gates_and_computes_one_tanh_again() -> None:
    program = trace(standard)
    assert saved_names(program) == ["i", "f", "g", "o"]
    saved = [program.forward_code.instructions[x - 5].op for x in program.forward_code.results[2:]]
    assert saved == ["sigmoid", "sigmoid", "tanh", "sigmoid"]
    # What csrc/cells/standard.inl has, operation for operation.
    assert operations(program.forward_code) == ["add", *["mul"] * 3, *["sigmoid"] * 3, *["tanh"] * 2]
    assert operations(program.backward_code) == ["add", *["mul"] * 16, *["sub"] * 5, "tanh"]


def test_cheap_values_are_computed_again() -> None:
    program = trace(NAMED["coupled"])
    assert program.saved_count == 3  # i, tanh(g) and o, but not 1 - i
    assert operations(program.backward_code).count("sigmoid") == 0
    assert operations(program.backward_code).count("tanh") == 1
    assert trace(lambda a, c: (a * 2 * c, c + a)).saved_count == 1


def test_new_and_previous_states_and_parameters_are_at_hand() -> None:
    def cell(a, c, *, p):
        c = torch.tanh(a) * c * p
        return torch.exp(c), c

    program = trace(cell)
    assert program.saved_count == 1  # tanh(a): its derivative, and that of p, need nothing else
    assert operations(program.backward_code).count("tanh") == 0
    assert operations(program.backward_code).count("exp") == 1


def test_something_is_saved_where_backward_reads_nothing() -> None:
    program = trace(lambda a, b, c: (a + b + c, c))
    assert program.saved_count == 1
    assert program.forward_code.results[2] == 0  # the first gate, which costs no arithmetic
    assert program.backward_code.instructions[0].op == "add"


def test_no_more_is_saved_than_there_is_room_for() -> None:
    def cell(a, b, c):
        h = c
        for k in range(20):  # each sine is needed, and dearer than what it costs to save it
            h = h + torch.sin((k + 1) * a) * torch.cos((k + 2) * b)
        return h, c

    program = trace(cell)
    assert 1 <= program.saved_count <= 16
    check(cell)


def test_tracing_is_deterministic() -> None:
    for function in NAMED.values():
        assert trace(function).to_data() == trace(function).to_data()


# --- simplification


def forward_operations(function: Callable[..., Any]) -> list[str]:
    return operations(trace(function).forward_code)


def test_constants_are_folded_and_equal_values_are_one() -> None:
    two = torch.tensor(2.0)
    assert forward_operations(lambda a, c: (a * (two * 3 + 1).sqrt(), c)) == ["mul"]
    assert forward_operations(lambda a, c: (torch.tanh(a) * torch.tanh(a), c + torch.tanh(a))) == [
        "add", "mul", "tanh",
    ]  # fmt: skip
    assert forward_operations(lambda a, c: (a * c + c * a, c)) == ["add", "mul"]


def test_only_exact_identities_are_used() -> None:
    assert forward_operations(lambda a, c: (a * 1, c / 1)) == []
    assert forward_operations(lambda a, c: (a - 0.0, a + -0.0)) == []
    assert forward_operations(lambda a, c: (torch.neg(torch.neg(a)), c)) == []
    assert forward_operations(lambda a, c: (a * -1.0, c)) == ["neg"]
    assert forward_operations(lambda a, c: (a / 4, c)) == ["mul"]
    # -0 + 0 is 0, inf * 0 and inf - inf are NaN, a third is rounded.
    assert forward_operations(lambda a, c: (a + 0.0, c)) == ["add"]
    assert forward_operations(lambda a, c: (a * 0.0, c)) == ["mul"]
    assert forward_operations(lambda a, c: (a - a, c)) == ["sub"]
    assert forward_operations(lambda a, c: (a / 3, c)) == ["div"]
    assert forward_operations(lambda a, c: (torch.where(a >= a, c, a), c)) == ["select_ge"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 1 + -0.0,
        lambda x: torch.neg(torch.neg(x)),
        lambda x: x / 2 - 0.0,
        lambda x: x + 0.0,
        lambda x: x * 0.0,
    ],
)
def test_special_numbers_go_through_simplification(function: Callable[[Tensor], Tensor]) -> None:
    program = trace(lambda a, c: (function(a), c))
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0], dtype=torch.float64)
    h, _ = program.forward([x], [x])
    torch.testing.assert_close(h, function(x), rtol=0, atol=0, equal_nan=True)
    number = ~x.isnan() & ~function(x).isnan()
    assert torch.equal(torch.signbit(h)[number], torch.signbit(function(x))[number])


# --- data


@pytest.mark.parametrize("name", NAMED)
def test_data_round_trip(name: str) -> None:
    program = trace(NAMED[name])
    text = json.dumps(program.to_data(), allow_nan=False)
    for again in (
        Program.from_data(json.loads(text)),
        pickle.loads(pickle.dumps(program)),
        copy.deepcopy(program),
    ):
        assert again == program and hash(again) == hash(program)
        assert again.to_data() == program.to_data()
        assert again.name == name
    values = in_torch(NAMED[name], program)
    assert_same(run(Program.from_data(json.loads(text)), values)[1], values.gradients)


def test_digest_is_of_what_is_computed() -> None:
    def renamed(i, f, g, o, c):
        # Other names and comments.
        first, second, third, fourth = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        new = second * c + first * third
        return fourth * torch.tanh(new), new

    assert trace(renamed) == trace(standard)
    assert trace(renamed).digest == trace(standard).digest
    assert len(trace(standard).digest) == 64
    assert trace(renamed).name != trace(standard).name


@pytest.mark.parametrize(
    "other",
    [
        lambda a, c, *, p=0.25: (torch.tanh(a) * c, c),
        lambda a, c, *, p: (torch.tanh(a) * c, c),
        lambda a, c, *, q=0.5: (torch.tanh(a) * c, c),
        lambda a, s, *, p=0.5: (torch.tanh(a) * s, s),
        lambda a, c, *, p=0.5: (torch.tanh(a) * c * 2, c),
    ],
    ids=["default", "no default", "parameter", "state", "formula"],
)
def test_digest_differs(other: Callable[..., Any]) -> None:
    program = trace(lambda a, c, *, p=0.5: (torch.tanh(a) * c, c))
    assert trace(other).digest != program.digest
    assert trace(other) != program
    assert program != "a program"


def bad(change: Callable[[dict[str, Any]], Any]) -> object:
    """The data of the peephole cell, changed."""
    data = copy.deepcopy(trace(NAMED["peephole"]).to_data())
    changed = change(data)
    return data if changed is None else changed


def set_in(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda d: [],
            "a program must be a dict with the keys ['backward', 'backward_hints', 'defaults', "
            "'format', 'forward', 'forward_hints', 'gates', 'name', 'parameters', 'states']",
        ),
        (set_in("format", to=2), "format must be 1, got 2"),
        (set_in("name", to=3), "name must be a str, got int"),
        (set_in("gates", to=[]), "there must be 1 to 8 gates, got 0"),
        (set_in("states", to=list("abcde")), "there must be 1 to 4 states, got 5"),
        (set_in("gates", 0, to="a; b"), "'a; b' is no name of one of the gates"),
        (set_in("gates", 0, to="for"), "'for' is no name of one of the gates"),
        (set_in("gates", to="ifgo"), "gates must be a list, got str"),
        (
            set_in("gates", 0, to="c"),
            "names must be distinct, got ['c', 'f', 'g', 'o', 'c', 'p_i', 'p_f', 'p_o']",
        ),
        (
            set_in("defaults", to=[None]),
            "defaults must be a float or None for each of 3 parameters, got (None,)",
        ),
        (set_in("defaults", 1, to=0.5), "defaults: a number must be a str in hex, got float"),
        (set_in("defaults", 1, to="0.5"), "defaults: '0.5' is not how float.hex() writes that number"),
        (set_in("defaults", 1, to="half"), "defaults: 'half' is no number"),
        (set_in("forward", to=None), "forward must be a dict with the keys inputs, instructions and results"),
        (set_in("forward", "inputs", to=7), "forward must have 8 inputs, got 7"),
        (set_in("forward", "inputs", to=8.0), "forward must have 8 inputs, got 8.0"),
        (set_in("format", to=True), "format must be 1, got True"),
        (
            set_in("forward", "instructions", 0, to=["system", [0]]),
            "forward, instruction 0: unknown operation 'system'",
        ),
        (
            set_in("forward", "instructions", 0, to=["mul", [5]]),
            "forward, instruction 0: mul takes 2 arguments, got 1",
        ),
        (
            set_in("forward", "instructions", 0, to=["mul", [5, 8]]),
            "forward, instruction 0: there is no value 8, only 8",
        ),
        (
            set_in("forward", "instructions", 0, to=["mul", [5, -1]]),
            "forward, instruction 0: there is no value -1, only 8",
        ),
        (
            set_in("forward", "instructions", 0, to=["mul", [5, True]]),
            "forward, instruction 0: there is no value True, only 8",
        ),
        (
            set_in("forward", "instructions", 0, to=["mul", [5, "4"]]),
            "forward, instruction 0: there is no value '4', only 8",
        ),
        (set_in("forward", "instructions", 0, to=["mul"]), "forward: ['mul'] is no instruction"),
        (set_in("forward", "instructions", 0, to=[["mul"], []]), "forward: [['mul'], []] is no instruction"),
        (
            set_in("forward", "instructions", 0, to=["constant", [1]]),
            "forward: a number must be a str in hex, got list",
        ),
        (set_in("forward", "results", to=[0, 1]), "forward must save 1 to 16 values, got 0"),
        (set_in("forward", "results", to=list(range(8)) * 3), "forward must save 1 to 16 values, got 22"),
        (set_in("forward", "results", 0, to=99), "forward, results: there is no value 99, only 23"),
        (set_in("backward", "results", to=[0]), "backward must have 8 results, got 1"),
        (set_in("forward_hints", to=["x"]), "forward: a hint for each instruction, or none"),
        (set_in("forward_hints", 0, to="x;"), "forward: 'x;' is no name"),
        (set_in("forward_hints", 0, to="x\n"), "forward: 'x\\n' is no name"),
        (set_in("forward_hints", 0, to=1), "forward: 1 is no name"),
        (
            set_in("forward", "instructions", to=[["neg", [0]]] * 2001),
            "forward has 2001 instructions, at most 2000",
        ),
    ],
)
def test_bad_data_is_refused(change: Callable[[dict[str, Any]], Any], text: str) -> None:
    with pytest.raises(ValueError) as error:
        Program.from_data(bad(change))
    assert str(error.value) == f"not a cell program: {text}"


def test_bad_instructions_are_refused() -> None:
    program = trace(NAMED["leaky"])
    for instruction, text in (
        (Instruction("constant", (), 1), "a constant has a number and no arguments"),
        (Instruction("constant", (0,), 1.0), "a constant has a number and no arguments"),
        (Instruction("neg", (0,), 1.0), "neg has no number of its own"),
    ):
        with pytest.raises(ValueError) as error:
            Program(
                "x", program.gates, program.states, program.parameters, program.defaults,
                Code(3, (instruction,), (0, 0, 0)), program.backward_code,
            )  # fmt: skip
        assert str(error.value) == f"not a cell program: forward, instruction 0: {text}"
