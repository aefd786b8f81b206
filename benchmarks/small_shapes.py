"""``python -m benchmarks.small_shapes``: every recurrence once on small shapes, for compute-sanitizer."""

from __future__ import annotations

import itertools
import os

import torch

import customlstm

VARIANTS = ("step", "grid", "cluster")
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def run(dtype: torch.dtype, variant: str, projection: bool, ragged: bool) -> None:
    """Forward and backward of a layer in two directions."""
    os.environ["CUSTOMLSTM_CUDA_VARIANT"] = variant
    steps, batch, hidden = 3, 5, 20
    cell = customlstm.Cell("hard_sigmoid", customlstm.PiecewiseLinear.fit("tanh", knots=5), "tanh")
    module = customlstm.LSTM(
        7, hidden, bidirectional=True, proj_size=12 if projection else 0, cell=cell, backend="fused",
        device="cuda", dtype=dtype,
    )  # fmt: skip
    x = torch.randn(steps, batch, 7, device="cuda", dtype=dtype, requires_grad=True)
    lengths = torch.tensor([3, 0, 2, 1, 3], device="cuda") if ragged else None
    output, (h_n, c_n) = module(x, lengths=lengths)
    (output.sum() + h_n.sum() + c_n.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


def main() -> None:
    count = 0
    for dtype, variant, projection, ragged in itertools.product(
        DTYPES, VARIANTS, (False, True), (False, True)
    ):
        if dtype == torch.float64 and variant != "step":
            continue  # float64 has no other
        run(dtype, variant, projection, ragged)
        count += 1
    torch.cuda.synchronize()
    print(f"{count} layers, forward and backward")


if __name__ == "__main__":
    main()
