"""``python -m benchmarks.predict [DTYPE]``: what is expected of the grid on an H200, as markdown.

Milliseconds of what ``test_layer.py`` times: inference, and forward + backward with the gradients of the
input and of all weights. The recurrences by the time model of the launch plan, the products around them over
the rates below; the small launches around them (packing, zeroing, a few microseconds each) are not counted.
Predictions, no measurement.
"""

from __future__ import annotations

import sys

from customlstm.launch_plan import H200, plan

from .grid import Setting, cuda_settings

# Products of cuBLAS: six tenths of the dense peaks of the datasheet (990, 495 and 67 TFLOP/s), or what their
# operands and results take from and to device memory, whichever is longer.
FLOPS = {"bfloat16": 594e12, "float16": 594e12, "tf32": 297e12, "float32": 40e12}
BANDWIDTH = 4.3e12  # bytes a second


def product_us(dtype: str, m: int, n: int, k: int, element: int, result: int) -> float:
    """Of an [m, k] and a [k, n] matrix with elements and results of so many bytes."""
    moved = (m * k + k * n) * element + m * n * result
    return 1e6 * max(2 * m * n * k / FLOPS[dtype], moved / BANDWIDTH)


def products_us(setting: Setting, layer: int, training: bool) -> float:
    """The products of one layer that need no order of steps."""
    directions = 2 if setting.bidirectional else 1
    rows, element = setting.steps * setting.batch, setting.torch_dtype.itemsize
    inputs = setting.features if layer == 0 else directions * setting.hidden
    one = 4 * setting.hidden
    gates = directions * one
    # The input projection is kept in float32.
    us = product_us(setting.dtype, rows, gates, inputs, element, 4)
    if training:
        us += product_us(setting.dtype, rows, inputs, gates, element, element)
        us += directions * product_us(setting.dtype, one, inputs, rows, element, 4)
        us += directions * product_us(setting.dtype, one, setting.hidden, rows, element, 4)
        # The biases' gradients read those of the gates; W_hh's needs a copy of the hidden states.
        us += 1e6 * rows * (gates + 2 * directions * setting.hidden) * element / BANDWIDTH
    return us


def cell(setting: Setting, training: bool) -> str:
    """Time and variant, "2.51 grid"; of training those of forward and backward, "6.10 cluster, grid"."""
    ways = (False, True) if training else (False,)
    found = [
        plan(
            H200,
            steps=setting.steps,
            batch=setting.batch,
            hidden_size=setting.hidden,
            directions=2 if setting.bidirectional else 1,
            math=setting.dtype,
            backward=backward,
        )
        for backward in ways
    ]
    us = setting.layers * sum(each.predicted_us for each in found)
    us += sum(products_us(setting, layer, training) for layer in range(setting.layers))
    return f"{us / 1e3:.2f} {', '.join(dict.fromkeys(each.variant for each in found))}"


def table(dtypes: list[str]) -> str:
    """One line a shape, for each dtype inference and training."""
    columns = {dtype: {str(s).replace(dtype, ""): s for s in cuda_settings(dtype)} for dtype in dtypes}
    titles = [f"{dtype} {mode}" for dtype in dtypes for mode in ("inference", "training")]
    lines = ["| shape | " + " | ".join(titles) + " |", "|" + "---|" * (len(titles) + 1)]
    for name, first in columns[dtypes[0]].items():
        cells = [cell(columns[d][name], training) for d in dtypes for training in (False, True)]
        shape = str(first).replace(f"-{first.dtype}", "")
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1:] or ["bfloat16", "tf32", "float32"]))
