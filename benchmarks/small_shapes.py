"""``python -m benchmarks.small_shapes``: every recurrence on small shapes, for compute-sanitizer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pack_padded_sequence

import customlstm
from customlstm.launch_plan import VARIANTS

MATHS = ("bfloat16", "float16", "tf32", "float32", "float64")
CHANGED = customlstm.Cell("hard_sigmoid", customlstm.PiecewiseLinear.fit("tanh", knots=5), "tanh")


@dataclass(frozen=True)
class Layer:
    """Two directions; ``layout`` is "padded", "packed" or "lengths"."""

    steps: int
    batch: int
    hidden: int
    projection: int = 0
    layout: str = "padded"
    resets: bool = False
    cell: customlstm.Cell | None = None


SMALL = [
    Layer(3, 40, 20, resets=True),
    Layer(3, 5, 20, projection=12, layout="lengths"),
    Layer(3, 40, 72, projection=12, layout="packed", resets=True, cell=CHANGED),
]
# So many sequences that a block computes 4 tiles of columns at once, or several chunks one after the other.
MANY_COLUMNS = [
    Layer(2, 200, 200),
    Layer(2, 1032, 20, layout="lengths", resets=True, cell=CHANGED),
]


def run(layer: Layer, math: str, device: str = "cuda") -> None:
    """Forward and backward."""
    torch.backends.cuda.matmul.allow_tf32 = math == "tf32"
    dtype = torch.float32 if math == "tf32" else getattr(torch, math)
    module = customlstm.LSTM(
        7, layer.hidden, bidirectional=True, proj_size=layer.projection, cell=layer.cell or customlstm.Cell(),
        backend="fused", device=device, dtype=dtype,
    )  # fmt: skip
    size = layer.steps, layer.batch
    x = torch.randn(*size, 7, device=device, dtype=dtype, requires_grad=True)
    lengths = torch.arange(layer.batch) % (layer.steps + 1)
    resets = torch.rand(*size, device=device) < 0.3 if layer.resets else None
    if layer.layout == "packed":
        packed = pack_padded_sequence(x, lengths.clamp(min=1), enforce_sorted=False)
        output, (h_n, c_n) = module(packed, resets=resets)
        output = output.data
    else:
        ragged = lengths.to(device) if layer.layout == "lengths" else None
        output, (h_n, c_n) = module(x, lengths=ragged, resets=resets)
    (output.sum() + h_n.sum() + c_n.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in (x, *module.parameters()))


def runs(capability: int) -> Iterator[tuple[Layer, str, str]]:
    """Layer, math and variant: all that a GPU of this compute capability (90 is 9.0) may be able to run."""
    for math in MATHS:
        for variant in VARIANTS:
            if (variant != "step" and math == "float64") or (variant == "cluster" and capability < 90):
                continue
            for layer in SMALL if math == "float64" else [*SMALL, *MANY_COLUMNS]:
                yield layer, math, variant


def run_those_that_fit(cases: Iterable[tuple[Layer, str, str]]) -> tuple[int, list[str]]:
    """How many ran, and what does not fit this device, with the plan's reason."""
    count, left_out = 0, []
    for layer, math, variant in cases:
        os.environ["CUSTOMLSTM_CUDA_VARIANT"] = variant
        try:
            run(layer, math)
        except RuntimeError as error:
            if f"asks for {variant}, which does not fit" not in str(error):
                raise
            left_out.append(f"{layer}, {math}: {str(error).splitlines()[0]}")
        else:
            count += 1
    return count, left_out


def main() -> None:
    major, minor = torch.cuda.get_device_capability()
    count, left_out = run_those_that_fit(runs(10 * major + minor))
    torch.cuda.synchronize()
    for text in left_out:
        print(f"left out: {text}")
    print(f"{count} layers, forward and backward; {len(left_out)} left out")
    if count == 0:
        raise SystemExit("nothing ran")


if __name__ == "__main__":
    main()
