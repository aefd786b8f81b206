"""The generated C++: what it computes, compiled for every value type, and how it reads."""

import dataclasses
import re

import pytest
import torch
from support_cells import NAMED, in_torch, standard
from support_native import PADDED, ROOT, Library, kinds
from torch import Tensor

from customlstm.jit import Program, generate, trace
from customlstm.jit.program import Code, Instruction


def stacked(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.stack(tensors).to(dtype) if tensors else torch.empty(0, PADDED, dtype=dtype)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    # Every sum in a kernel is one rounding better than torch's, so of large values a share.
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


def compare(compiled: Library, kind: str, cell: int, dtype: torch.dtype, tolerance: float) -> None:
    program = compiled.programs[cell]
    # For the kinks' sake of the same arguments; no kink is where the two dtypes round to different sides of
    # it.
    values = in_torch(lambda *x, **p: program_in_torch(program, x, p), program, PADDED, seed=cell)
    gates, states, parameters = (stacked(x, dtype) for x in (values.gates, values.states, values.parameters))
    dh, dstates = values.dh.to(dtype), stacked(values.dstates, dtype)
    h, new, saved = compiled.forward(kind, cell, gates, parameters, states)
    expected_h, expected_new, expected_saved = program.forward_saving([*gates], [*states], [*parameters])
    assert_close(h, expected_h, tolerance, "h")
    assert_close(new, torch.stack(expected_new), tolerance, "new states")
    assert_close(saved, torch.stack(expected_saved), tolerance, "saved")
    found = compiled.backward(kind, cell, saved, parameters, states, new, dh, dstates)
    expected = program.backward([*saved], [*parameters], [*states], [*new], dh, [*dstates])
    for name, f, e in zip(("states", "gates", "parameters"), found, expected, strict=True):
        assert_close(f, stacked([*e], dtype), tolerance, f"gradients of {name}")


def program_in_torch(program: Program, positional: tuple[Tensor, ...], parameters: dict[str, Tensor]):
    gates = len(program.gates)
    h, states = program.forward(positional[:gates], positional[gates:], list(parameters.values()))
    return (h, *states)


@pytest.mark.parametrize("kind", kinds())
def test_compiled_cells_compute_their_programs_in_double(compiled: Library, kind: str) -> None:
    assert len(compiled.programs) == 18
    for cell in range(len(compiled.programs)):
        compare(compiled, kind, cell, torch.float64, 1e-12)


@pytest.mark.parametrize("kind", kinds())
def test_compiled_cells_compute_their_programs_in_float(compiled: Library, kind: str) -> None:
    for cell, name in enumerate(NAMED):
        # sigmoid and tanh of a GPU are good to 5e-7, and h = c / n of the sLSTM divides by what may be small.
        compare(compiled, kind, cell, torch.float32, 2e-5 if name == "slstm" else 4e-6)


@pytest.mark.parametrize("kind", kinds())
def test_compiled_cells_let_bad_numbers_through(compiled: Library, kind: str) -> None:
    """NaN and infinities at every gate and state end where the program has them."""
    special = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 0.0]).repeat(PADDED // 6)
    for cell, program in enumerate(compiled.programs[: len(NAMED)]):
        count = len(program.gates) + len(program.states) + len(program.parameters)
        for place in range(count):
            inputs = torch.linspace(-1, 1, count * PADDED, dtype=torch.float64).view(count, PADDED).clone()
            inputs[place] = special.double()
            g, s = len(program.gates), len(program.gates) + len(program.states)
            gates, states, parameters = inputs[:g], inputs[g:s], inputs[s:]
            h, new, _ = compiled.forward(kind, cell, gates.clone(), parameters.clone(), states.clone())
            expected_h, expected_new, _ = program.forward_saving([*gates], [*states], [*parameters])
            what = f"{program.name}, argument {place}"
            assert_close(h, expected_h, 1e-12, what)
            assert_close(new, torch.stack(expected_new), 1e-12, what)


# --- text


def test_text_of_a_small_cell() -> None:
    def leaky_unit(a, c, *, decay=0.5):
        c = decay * c + torch.tanh(a)
        h = torch.relu(c)
        return h, c

    program = trace(leaky_unit)
    assert generate(program) == (
        f"""\
// The cell function leaky_unit, written out by customlstm.jit. See cells/README.md for the contract.
// Digest {program.digest}.

struct UserCell {{
  static constexpr int kGates = 1;   // a
  static constexpr int kStates = 1;   // c
  static constexpr int kSaved = 1;
  static constexpr int kParameters = 1;   // decay

  template <class V, class S>
  static CUSTOMLSTM_INLINE void forward(const CellParams<S>&, const V (&a)[kGates],
                                        const V* w, V (&s)[kStates], V& h, V (&saved)[kSaved]) {{
    saved[0] = tanh(a[0]);
    const V& c_1 = s[0] = fma(w[0], s[0], saved[0]);
    const V zero_1 = V::broadcast(S(0.0));
    h = select_ge(zero_1, c_1, zero_1, c_1);
  }}

  template <class V, class S>
  static CUSTOMLSTM_INLINE void backward(const CellParams<S>&, const V (&saved)[kSaved],
                                         const V* w, const V (&s_prev)[kStates],
                                         const V (&s)[kStates], const V& dh,
                                         V (&ds)[kStates], V (&da)[kGates], V* dw) {{
    const V zero_1 = V::broadcast(S(0.0));
    const V h_1 = select_ge(zero_1, s[0], zero_1, s[0]);
    const V t_1 = select_ge(zero_1, h_1, zero_1, dh);
    const V t_2 = ds[0] + t_1;
    ds[0] = t_2 * w[0];
    const V one_1 = V::broadcast(S(1.0));
    const V t_4 = fma(-saved[0], saved[0], one_1);
    da[0] = t_2 * t_4;
    dw[0] = t_2 * s_prev[0];
  }}
}};
"""
    )


def arithmetic(text: str) -> dict[str, int]:
    """How often each operation stands in C++ text; a fused multiply-add counts as its two."""
    text = re.sub(r"//.*", "", text)
    fused = text.count("fma(")
    return {
        "mul": text.count(" * ") + fused,
        "add or sub": text.count(" + ") + text.count(" - ") + fused,
        **{name: text.count(f"{name}(") for name in ("sigmoid", "tanh")},
    }


def test_standard_cell_has_the_operations_of_the_one_written_by_hand() -> None:
    by_hand = (ROOT / "csrc" / "cells" / "standard.inl").read_text()
    generated = generate(trace(standard))
    for part in (0, 1):
        ours, theirs = (
            arithmetic(text.partition("void forward(")[2].split("void backward(")[part])
            for text in (generated, by_hand)
        )
        assert ours == theirs


def code(constants: list[float]) -> Program:
    """A program with one gate, one state and h = the last of ``constants``."""
    instructions = tuple(Instruction("constant", (), x) for x in constants)
    return Program(
        "constants", ("a",), ("c",), (), (),
        Code(2, instructions, (1 + len(constants), 1, 0)), Code(5, (), (0, 0)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.10000000000000001"),
        (1.0, "1.0"),
        (-2.0, "-2.0"),
        (-0.0, "-0.0"),
        (1e300, "1.0000000000000001e+300"),
        (5e-324, "4.9406564584124654e-324"),
        (float("inf"), "__builtin_inf()"),
        (float("-inf"), "-__builtin_inf()"),
        (float("nan"), '__builtin_nan("")'),
    ],
)
def test_constants_have_all_their_digits(value: float, text: str) -> None:
    assert f"V::broadcast(S({text}));" in generate(code([value]))
    if value == value and abs(value) != float("inf"):
        assert float(text) == value


@pytest.mark.parametrize("name", ["x\n} // */", 'a";system("x', "\\", "??/", "<lambda>", "π", "", "a" * 1000])
def test_no_name_is_more_than_a_comment(name: str) -> None:
    plain = generate(dataclasses.replace(trace(standard), name="plain"))
    changed = generate(dataclasses.replace(trace(standard), name=name))
    assert changed.splitlines()[1:] == plain.splitlines()[1:]
    first = changed.splitlines()[0]
    match = re.fullmatch(
        r"// The cell function ([A-Za-z0-9_]{1,60}), written out by customlstm\.jit\. "
        r"See cells/README\.md for the contract\.",
        first,
    )
    assert match is not None


def test_names_of_the_users_are_no_words_of_cpp() -> None:
    def cell(int, double, register, V, c):
        fma = torch.sigmoid(int)
        S = torch.tanh(double) - fma
        const = torch.sin(register) / V
        __LINE__ = S + const
        M_PI = __LINE__ * c
        return M_PI * c, M_PI

    text = generate(trace(cell))
    names = re.findall(r"const V&? (\w+) =", text)
    assert {"fma_1", "s_1", "const_1", "line_1", "m_pi_1"} <= set(names)
    assert [x for x in names if not re.fullmatch(r"[a-z_]+\d*_(\d+|in)", x)] == []
    for comment in re.findall(r"//.*", text):
        assert re.fullmatch(r"[A-Za-z0-9_,. /]*", comment)


def test_names_that_are_not_ascii() -> None:
    def cell(α, c):
        β = torch.tanh(α)
        return β * c, c

    text = generate(trace(cell))
    assert text.isascii()
    assert "kGates = 1;   // _" in text


def test_states_that_change_places_are_read_before_they_are_written() -> None:
    text = generate(trace(NAMED["swap"]))
    assert (
        "    const V s0_in = s[0];\n    const V s1_in = s[1];\n    h = s0_in;\n    s[0] = s1_in;\n    s[1] "
        "= s0_in;\n" in text
    )


def test_products_are_fused_with_signs() -> None:
    forward = generate(trace(lambda a, b, c: (a * b - c, c - a * b))).partition("void backward")[0]
    assert "a[0] * a[1]" in forward  # it has two uses
    assert "fma(" not in forward
    assert "fma(a[0], a[1], -s[0])" in generate(trace(lambda a, b, c: (a * b - c, c)))
    assert "fma(-a[0], a[1], s[0])" in generate(trace(lambda a, b, c: (c - a * b, c)))
    assert "fma(a[0], a[1], s[0])" in generate(trace(lambda a, b, c: (c + a * b, c)))


def test_same_program_same_text() -> None:
    for function in NAMED.values():
        program = trace(function)
        assert generate(program) == generate(Program.from_data(program.to_data()))
