"""What every suite does with its contenders: compare their results, time them in turn, record the columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import memory
from .contenders import Contenders, Product
from .grid import Setting
from .interleaved import interleave, summary

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Largest difference of two outputs, which are at most 1 in size; over hundreds of steps of the 16-bit types
# each contender is about this far from the exact result.
TOLERANCES = {"float32": 1e-5, "tf32": 1e-2, "bfloat16": 5e-2, "float16": 1e-2}
# Likewise of two gradients, as a part of the largest element.
GRADIENT_TOLERANCES = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 8e-2, "float16": 3e-2}


@dataclass(frozen=True)
class Ratio:
    """A column: the time of ``of`` divided by that of ``to``; below ``least`` it counts as a loss."""

    title: str
    of: str
    to: str
    least: float = 1.0


def build(contenders: Contenders) -> dict[str, Callable[[], Any]]:
    return {name: make() for name, make in contenders.items()}


def check_outputs(
    runs: Mapping[str, Callable[[], Tensor]], same: Sequence[tuple[str, str]], tolerance: float
) -> None:
    """The two of each pair return the same, up to ``tolerance``."""
    for one, other in same:
        torch.testing.assert_close(
            runs[one](),
            runs[other](),
            atol=tolerance,
            rtol=0.0,
            msg=lambda text, pair=(one, other): f"{pair}: {text}",
        )


def rms_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).square().mean().sqrt())


def check_errors(
    runs: Mapping[str, Callable[[], Tensor]], same: Sequence[tuple[str, str, str]], most: float = 2.0
) -> None:
    """Of (one, other, exact): one's error, as root of the mean square, is at most ``most`` times the other's.

    For what two right results differ by more than a tolerance in, since a small difference of two numbers is
    divided by something small.
    """
    for one, other, exact in same:
        right = runs[exact]()
        errors = [rms_error(runs[name](), right) for name in (one, other)]
        assert errors[0] <= most * errors[1], f"{one}: error {errors[0]:.2e}, {other}: {errors[1]:.2e}"


def gradients(module: nn.Module, x: Tensor, given: Tensor) -> dict[str, Tensor]:
    """Of ``x`` and of every weight, for this gradient of the output."""
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(module(x)[0], [x, *parameters.values()], given)
    return dict(zip(["x", *parameters], found, strict=True))


def check_gradients(ours: nn.Module, theirs: nn.Module, x: Tensor, tolerance: float) -> None:
    """The differences are at most ``tolerance`` of the largest element of each gradient."""
    given = torch.randn_like(theirs(x)[0])
    found, expected = gradients(ours, x, given), gradients(theirs, x, given)
    assert found.keys() == expected.keys()
    errors = {
        name: float((found[name] - value).double().abs().max() / value.double().abs().max())
        for name, value in expected.items()
    }
    assert all(error <= tolerance for error in errors.values()), f"allowed {tolerance}: {errors}"


def rates(times: Mapping[str, Sequence[float]], done: Mapping[str, int], ours: str) -> dict[str, Any]:
    """GFLOP/s of every name in ``done`` (its operations), by the minimum, which other work distorts least.

    ``fraction`` is that of ``ours`` to the best of the others.
    """
    found = {name: done[name] / min(times[name]) / 1e9 for name in done}
    best = max(rate for name, rate in found.items() if name != ours)
    return {"gflops": found, "fraction": found[ours] / best}


def record(
    benchmark: Any,
    runs: Mapping[str, Callable[[], Any]],
    setting: Setting,
    mode: str,
    *,
    suite: str,
    ours: str,
    ratios: Sequence[Ratio],
    calls: int = 1,
    products: Mapping[str, Product] | None = None,
    operations: int = 0,
    memory_of: memory.Builder | None = None,
) -> None:
    """Times ``runs`` in turn and fills ``benchmark.extra_info``.

    Args:
        ours: the contender that the ratios in "times" refer to.
        ratios: the columns of the report, as far as their contenders take part.
        calls: how many calls each run makes.
        products: matrix products that take part in the same rounds; ``operations`` are those of ``ours``.
        memory_of: what builds the contenders anew to measure their memory; None: it is not measured.
    """
    timed = {**runs, **{name: product.run for name, product in (products or {}).items()}}
    times = interleave(timed, DEVICE)
    benchmark.extra_info.update(
        suite=suite,
        ours=ours,
        setting=vars(setting),
        mode=mode,
        device=DEVICE,
        threads=torch.get_num_threads(),
        times=summary({name: times[name] for name in runs}, ours, calls),
        ratios=[vars(r) for r in ratios if r.of in runs and r.to in runs],
    )
    if products:
        done = {ours: operations, **{name: product.operations for name, product in products.items()}}
        benchmark.extra_info["gemm"] = rates(times, done, ours)
    if memory_of is not None:
        benchmark.extra_info["peak_bytes"] = memory.peaks(memory_of, setting, mode, DEVICE)
    benchmark.pedantic(runs[ours], rounds=3)
