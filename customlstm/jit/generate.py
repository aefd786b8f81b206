"""A program as the C++ struct of ``csrc/cells/README.md``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .program import Code, Instruction, Program

__all__ = ["generate"]

_SIGN = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def generate(program: Program) -> str:
    """The text of ``struct UserCell``, to be included in the namespace of an instruction set or of CUDA.

    The same program always gives the same text. Names in it are checked and numbered and the function's
    name is cut to letters and digits, so nothing of a program can be anything but what it is here.
    """
    g, s, p = len(program.gates), len(program.states), len(program.parameters)
    k = program.saved_count
    forward = _Writer(
        program.forward_code,
        program.forward_hints,
        [*_elements("a", g), *_elements("s", s), *_elements("w", p)],
        ["h", *_elements("s", s), *_elements("saved", k)],
    )
    kept = program.forward_code.results[1 + s :]
    kept_hints = [_hint_of(program, x) for x in kept]
    backward = _Writer(
        program.backward_code,
        program.backward_hints,
        [
            *_elements("saved", k),
            *_elements("w", p),
            *_elements("s_prev", s),
            *_elements("s", s),
            "dh",
            *_elements("ds", s),
        ],
        [*_elements("ds", s), *_elements("da", g), *_elements("dw", p)],
        kept_hints,
    )
    return _TEMPLATE.format(
        name=_plain(program.name),
        digest=program.digest,
        gates=g,
        states=s,
        saved=k,
        parameters=p,
        gate_names=_plain_names(program.gates),
        state_names=_plain_names(program.states),
        parameter_names=_plain_names(program.parameters) or "none",
        forward_w=_argument("w", forward.reads("w")),
        forward_a=_argument("a", forward.reads("a")),
        forward_body=forward.text(),
        backward_saved=_argument("saved", backward.reads("saved")),
        backward_w=_argument("w", backward.reads("w")),
        backward_s_prev=_argument("s_prev", backward.reads("s_prev")),
        backward_s=_argument("s", backward.reads("s")),
        backward_dh=_argument("dh", backward.reads("dh")),
        backward_dw=_argument("dw", p > 0),
        backward_body=backward.text(),
    )


_TEMPLATE = """\
// The cell function {name}, written out by customlstm.jit. See cells/README.md for the contract.
// Digest {digest}.

struct UserCell {{
  static constexpr int kGates = {gates};   // {gate_names}
  static constexpr int kStates = {states};   // {state_names}
  static constexpr int kSaved = {saved};
  static constexpr int kParameters = {parameters};   // {parameter_names}

  template <class V, class S>
  static CUSTOMLSTM_INLINE void forward(const CellParams<S>&, const V (&{forward_a})[kGates],
                                        const V*{forward_w}, V (&s)[kStates], V& h, V (&saved)[kSaved]) {{
{forward_body}  }}

  template <class V, class S>
  static CUSTOMLSTM_INLINE void backward(const CellParams<S>&, const V (&{backward_saved})[kSaved],
                                         const V*{backward_w}, const V (&{backward_s_prev})[kStates],
                                         const V (&{backward_s})[kStates], const V&{backward_dh},
                                         V (&ds)[kStates], V (&da)[kGates], V*{backward_dw}) {{
{backward_body}  }}
}};
"""


def _elements(name: str, count: int) -> list[str]:
    return [f"{name}[{k}]" for k in range(count)]


def _argument(name: str, used: bool) -> str:
    """An argument's name, or none for one that is not read: -Wextra would warn of it."""
    if name in ("w", "dw", "dh"):
        return f" {name}" if used else ""
    return name if used else ""


def _plain(name: str) -> str:
    """For a comment: letters, digits and _ only; no end of line, trigraph or backslash gets into it."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)[:60] or "_"


def _plain_names(names: Sequence[str]) -> str:
    return ", ".join(map(_plain, names))


def _literal(value: float) -> str:
    if math.isnan(value):
        return '__builtin_nan("")'
    if math.isinf(value):
        return "-__builtin_inf()" if value < 0 else "__builtin_inf()"
    text = f"{value:.17g}"
    return text if any(c in text for c in ".e") else text + ".0"


class _Writer:
    """One function body: a line for each value, but for products that are a part of a fused multiply-add."""

    def __init__(
        self,
        code: Code,
        hints: Sequence[str],
        inputs: Sequence[str],
        outputs: Sequence[str],
        local: Sequence[str] = (),
    ) -> None:
        self._code, self._outputs = code, outputs
        self._inputs = inputs
        self._uses = [0] * (code.inputs + len(code.instructions))
        for instruction in code.instructions:
            for x in instruction.arguments:
                self._uses[x] += 1
        for x in code.results:
            self._uses[x] += 2  # never a mere part of another value
        reads = self._all_reads()
        local = [hint if at in reads else "" for at, hint in enumerate(local)]
        self._read = {inputs[x].partition("[")[0] for x in reads}
        instructions = zip(code.instructions, hints or [""] * len(code.instructions), strict=True)
        own = _names([*(x for x in local if x), *(_constant_hint(x) or hint for x, hint in instructions)])
        self._local = {at: own.pop(0) for at, hint in enumerate(local) if hint}
        self._names = [*(self._local.get(at, x) for at, x in enumerate(inputs)), *own]
        self._fused = self._choose_fused()

    def reads(self, argument: str) -> bool:
        return argument in self._read

    def text(self) -> str:
        lines = [f"const V& {name} = {self._inputs[x]};" for x, name in self._local.items()]
        # Outputs that are also inputs, such as s in forward, are read before the first of them is written.
        early = {x for x in self._code.results if x < self._code.inputs and self._moves(x)} - set(self._local)
        for x in sorted(early):
            lines.append(f"const V {self._early_name(x)} = {self._inputs[x]};")
            self._names[x] = self._early_name(x)
        order = self._order()
        outputs = self._direct(order)
        # Values that the user has named keep their names where they are used.
        used = {a for index in order for a in self._arguments(index)}
        named = {index for index in outputs if index in used and not self._names[index].startswith("t_")}
        for index in order:
            instruction = self._instruction(index)
            if instruction.value is not None:
                value = f"V::broadcast(S({_literal(instruction.value)}))"
            else:
                value = self._expression(index)
            name, output = self._names[index], outputs.get(index)
            if output is None:
                lines.append(f"const V {name} = {value};")
            elif index in named:
                lines.append(f"const V& {name} = {output} = {value};")
            else:
                self._names[index] = output
                lines.append(f"{output} = {value};")
        for output, x in zip(self._outputs, self._code.results, strict=True):
            if output not in (self._names[x], outputs.get(x)):
                lines.append(f"{output} = {self._names[x]};")
        return "".join(f"    {line}\n" for line in lines)

    def _order(self) -> list[int]:
        """Each result with all it needs before the next one begins, the longer of two arguments first.

        Compilers keep much of the order they are given, and in the order of the trace, where many values
        wait for their use, more of them spill.
        """
        heights = [0] * self._code.inputs
        for instruction in self._code.instructions:
            heights.append(1 + max((heights[x] for x in instruction.arguments), default=-1))
        order: list[int] = []
        done: set[int] = set()
        waiting = list(reversed(self._code.results))
        while waiting:
            x = waiting[-1]
            if x in done or x < self._code.inputs:
                waiting.pop()
                continue
            arguments = self._arguments(x)
            missing = [a for a in arguments if a >= self._code.inputs and a not in done]
            if missing:
                waiting.extend(sorted(missing, key=lambda a: heights[a]))
                continue
            waiting.pop()
            done.add(x)
            order.append(x)
        return order

    def _direct(self, order: Sequence[int]) -> dict[int, str]:
        """Values that are computed right in an output: a pack of rows that is copied goes through memory.

        Not in one that is an input, too, while anything still reads that.
        """
        read = {self._inputs[x] for x in self._code.results if x < self._code.inputs}
        found: dict[int, str] = {}
        for index in reversed(order):
            for output, x in zip(self._outputs, self._code.results, strict=True):
                if x == index and output not in read:
                    found[index] = output
                    break
            read |= {self._inputs[x] for x in self._arguments(index) if x < self._code.inputs}
        return found

    def _arguments(self, index: int) -> list[int]:
        """Those of a value; of a product that is a part of it, the product's."""
        found: list[int] = []
        for x in self._instruction(index).arguments:
            found += self._arguments(x) if self._fused.get(x) == index else [x]
        return found

    def _all_reads(self) -> set[int]:
        used = {x for instruction in self._code.instructions for x in instruction.arguments}
        return {x for x in used | set(self._code.results) if x < self._code.inputs}

    def _moves(self, x: int) -> bool:
        """Whether input x, an element of an array that is written, too, goes to another output."""
        array = self._inputs[x].partition("[")[0]
        outputs = [out for out, r in zip(self._outputs, self._code.results, strict=True) if r == x]
        written = any(out.partition("[")[0] == array for out in self._outputs)
        return written and any(out != self._inputs[x] for out in outputs)

    def _early_name(self, x: int) -> str:
        return re.sub(r"[\[\]]", "", self._inputs[x]) + "_in"

    def _instruction(self, index: int) -> Instruction | None:
        return self._code.instructions[index - self._code.inputs] if index >= self._code.inputs else None

    def _choose_fused(self) -> dict[int, int]:
        """Products that have one use, in a sum or difference: the product's index, and that of the sum."""
        fused: dict[int, int] = {}
        for at, instruction in enumerate(self._code.instructions):
            if instruction.op not in ("add", "sub"):
                continue
            for x in instruction.arguments:
                product = self._instruction(x)
                if product is not None and product.op == "mul" and self._uses[x] == 1:
                    fused[x] = self._code.inputs + at
                    break
        return fused

    def _expression(self, index: int) -> str:
        instruction = self._instruction(index)
        op, arguments = instruction.op, instruction.arguments
        names = [self._names[x] for x in arguments]
        for place, x in enumerate(arguments):
            if self._fused.get(x) == index:
                return self._fma(op, place, x, names[1 - place])
        if op in _SIGN:
            return f"{names[0]} {_SIGN[op]} {names[1]}"
        if op == "neg":
            return f"-{names[0]}"
        return f"{op}({', '.join(names)})"

    def _fma(self, op: str, place: int, product: int, other: str) -> str:
        x, y = (self._names[a] for a in self._instruction(product).arguments)
        if op == "sub" and place == 0:
            other = f"-{other}"
        if op == "sub" and place == 1:
            x = f"-{x}"
        return f"fma({x}, {y}, {other})"


def _hint_of(program: Program, value: int) -> str:
    """The user's name for a value of forward, an argument's own for an input."""
    inputs = [*program.gates, *program.states, *program.parameters]
    if value < len(inputs):
        return inputs[value]
    return program.forward_hints[value - len(inputs)] if program.forward_hints else ""


def _constant_hint(instruction: Instruction) -> str:
    if instruction.value is None:
        return ""
    return {0.0: "zero", 0.5: "half", 1.0: "one", 2.0: "two"}.get(instruction.value, "k")


def _names(hints: Sequence[str]) -> list[str]:
    """A name for each instruction: the hint and a number, which no keyword, macro or function is called."""
    counts: dict[str, int] = {}
    names = []
    for hint in hints:
        base = re.sub(r"_+", "_", re.sub(r"[^a-z0-9_]", "", hint.lower())).strip("_")
        base = base if base and base[0].isalpha() else "t"
        counts[base] = counts.get(base, 0) + 1
        names.append(f"{base}_{counts[base]}")
    return names
