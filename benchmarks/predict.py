"""``python -m benchmarks.predict [DTYPE]``: what the launch plan expects of the grid on an H200, as markdown.

Milliseconds of the recurrences alone: the input projection and the gradients of the weights, which are matrix
products of cuBLAS, come to that. Predictions of the time model, no measurement.
"""

from __future__ import annotations

import sys

from customlstm.launch_plan import H200, plan

from .grid import Setting, cuda_settings

MATH = {"float32": "float32", "tf32": "tf32", "bfloat16": "bfloat16", "float16": "float16"}


def cell(setting: Setting, backward: bool) -> str:
    """Time and variant, "2.31 grid"."""
    found = plan(
        H200,
        steps=setting.steps,
        batch=setting.batch,
        hidden_size=setting.hidden,
        directions=2 if setting.bidirectional else 1,
        math=MATH[setting.dtype],
        backward=backward,
    )
    return f"{setting.layers * found.predicted_us / 1e3:.2f} {found.variant}"


def table(dtypes: list[str]) -> str:
    """One line a shape, for each dtype forward and backward."""
    columns = {dtype: {str(s).replace(dtype, ""): s for s in cuda_settings(dtype)} for dtype in dtypes}
    titles = [f"{dtype} {way}" for dtype in dtypes for way in ("forward", "backward")]
    lines = ["| shape | " + " | ".join(titles) + " |", "|" + "---|" * (len(titles) + 1)]
    for name, first in columns[dtypes[0]].items():
        cells = [cell(columns[d][name], backward) for d in dtypes for backward in (False, True)]
        shape = str(first).replace(f"-{first.dtype}", "")
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1:] or ["bfloat16", "tf32", "float32"]))
