"""Cells that users write in the CUDA kernels on the host executor: which cells, and the C++ that is built.

The struct that ``customlstm.jit.generate`` writes is put into the kernels as it is for a GPU; the operators
launch the kernels by their handles.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import customlstm
from customlstm.cells import UserCell, gallery
from customlstm.jit import generate


@customlstm.cell
def seven_gates(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor, g: Tensor, s: Tensor, m: Tensor, *,
    scale: Tensor, shift: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """An odd number of gates, two states that look at each other, two parameters."""
    s_new = torch.sigmoid(a) * s + torch.sigmoid(b) * torch.tanh(c + shift * m)
    m = torch.sigmoid(d) * m + torch.sigmoid(e) * torch.tanh(f)
    return torch.sigmoid(g) * torch.tanh(scale * s_new + m), s_new, m


@customlstm.cell
def one_gate(
    a: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As many states as there may be, handed from one to the next."""
    c_new = torch.tanh(a) - 0.5 * f
    return torch.sin(c_new + e), c_new, torch.tanh(c), d * torch.sigmoid(a), e + 0.25 * d


CELLS: dict[str, UserCell] = {
    **{name: getattr(gallery, name) for name in gallery.__all__},
    "seven_gates": seven_gates,
    "one_gate": one_gate,
}
#: Those with kernels for all tilings of small calls, by arithmetic. All others have step with one tile of
#: columns, in float64 and float32.
EVERY_TILING = {
    "fma32": ("coupled", "slstm", "seven_gates"),
    "tf32": ("coupled", "seven_gates"),
    "bf16": ("coupled", "seven_gates"),
    "f16": ("coupled", "seven_gates"),
}
_MATHS = {"fma64": "kFma64", "fma32": "kFma32", "tf32": "kTf32", "bf16": "kBFloat16", "f16": "kFloat16"}
#: Functions of the library that register the cells' kernels.
REGISTER = [f"customlstm_register_{math}" for math in _MATHS]


def cells_of(math: str) -> list[str]:
    """The cells that have kernels in this arithmetic."""
    return list(CELLS if math in ("fma64", "fma32") else EVERY_TILING[math])


def written_sources(folder: Path) -> list[Path]:
    """Writes a file of kernels for each arithmetic."""
    paths = []
    for math, kind in _MATHS.items():
        structs, calls = "", ""
        for name in cells_of(math):
            program, registered = CELLS[name].program, CELLS[name].encode()[0]
            every = str(name in EVERY_TILING.get(math, ())).lower()
            parameters = ", ".join(f'"{p}"' for p in program.parameters)
            structs += f"namespace {name}_cell {{\n{generate(program)}}}\n"
            arguments = f"MathKind::{kind}, {name}_cell::UserCell, {every}"
            calls += f'  register_kernels<{arguments}>("{registered}", {{{parameters}}});\n'
        path = folder / f"written_{math}.cpp"
        path.write_text(_SOURCE.format(structs=structs, calls=calls, math=math))
        paths.append(path)
    return paths


_SOURCE = """\
#include "tests/cuda/native/written_cells.h"

namespace customlstm {{
namespace cuda {{
namespace {{
#define CUSTOMLSTM_INLINE CUSTOMLSTM_DEVICE
{structs}
}}  // namespace
}}  // namespace cuda
}}  // namespace customlstm

extern "C" __attribute__((visibility("default"))) void customlstm_register_{math}() {{
  using namespace customlstm::cuda;
{calls}}}
"""
