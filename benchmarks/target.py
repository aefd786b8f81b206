"""``python -m benchmarks.target [FILE]``: the time of ``nn.LSTM`` itself here, the target of the kernels.

On a GPU this is cuDNN, over the whole grid, in float32 with and without TF32, bfloat16 and float16; on a CPU
a few small shapes in float32. Median of 20 runs, inference and forward + backward, input projection included.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

RUNS = 20
# (steps, batch, hidden size); the input is as wide as the hidden state
GRID = [
    *itertools.product((100, 1024), (1, 8, 16, 64, 128), (128, 256, 512, 768, 1024)),
    *itertools.product((100,), (16, 64), (1760, 2048)),
]
CPU_GRID = [(100, 1, 128), (100, 16, 256), (100, 64, 128)]


def settings(device: str) -> Iterator[dict[str, Any]]:
    """Every combination to time."""
    if device == "cpu":
        for steps, batch, hidden in CPU_GRID:
            yield {"steps": steps, "batch": batch, "hidden": hidden, "dtype": "float32"}
        return
    for dtype in ("bfloat16", "float16", "tf32", "float32"):
        for steps, batch, hidden in GRID:
            yield {"steps": steps, "batch": batch, "hidden": hidden, "dtype": dtype}
        yield {"steps": 100, "batch": 64, "hidden": 512, "dtype": dtype, "bidirectional": True}
        yield {"steps": 100, "batch": 64, "hidden": 512, "dtype": dtype, "num_layers": 2}


def median_ms(run: Callable[[], object], device: str) -> float:
    """Of RUNS calls after three that do not count; CUDA events, so that launches do not count twice."""
    for _ in range(3):
        run()
    times = []
    for _ in range(RUNS):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(setting: dict[str, Any], device: str) -> dict[str, Any]:
    """``setting`` with the times of inference and of forward + backward in milliseconds."""
    tf32 = setting["dtype"] == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    dtype = torch.float32 if tf32 else getattr(torch, setting["dtype"])
    steps, batch, hidden = setting["steps"], setting["batch"], setting["hidden"]
    options = {name: setting[name] for name in ("bidirectional", "num_layers") if name in setting}
    module = nn.LSTM(hidden, hidden, device=device, dtype=dtype, **options)
    x = torch.randn(steps, batch, hidden, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(module(x)[0])

    def inference() -> None:
        with torch.no_grad():
            module(x)

    def training() -> None:
        module(x)[0].backward(gradient)

    times = {"inference_ms": median_ms(inference, device), "training_ms": median_ms(training, device)}
    return setting | times


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cpu = platform.processor() or platform.machine()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "times": [],
    }
    for setting in settings(device):
        result["times"].append(measure(setting, device))
        row = result["times"][-1]
        print(*(f"{name}={value}" for name, value in row.items()), flush=True)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
