"""``check_cell``: whether a user's cell as traced, derived and compiled is what its function computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cells import UserCell, as_cell, cell
from .dispatch import why_not_fused
from .modules import LSTM

__all__ = ["CellCheck", "check_cell"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class CellCheck:
    """What :func:`check_cell` found; ``str()`` of it is for people.

    Attributes:
        cell: its name and arguments.
        traced: largest difference of the traced function and its derivative from the function and autograd,
            relative to 1 + the size of the value.
        fused: the same for a layer on the fused kernel from the reference; None where there is no kernel.
        why_not_fused: why there is none; None if there is.
    """

    cell: str
    traced: float
    fused: float | None
    why_not_fused: str | None

    def __str__(self) -> str:
        lines = [f"{self.cell}: differs from autograd by {self.traced:.1e} as traced"]
        if self.fused is not None:
            lines.append(f"and by {self.fused:.1e} as compiled")
        else:
            lines.append(f"; no kernel, because {self.why_not_fused}")
        return " ".join(lines).replace(" ;", ";")


def check_cell(
    function: Callable[..., Any] | UserCell,
    *,
    dtype: torch.dtype = torch.float64,
    samples: int = 1000,
    scale: float = 2.0,
    tolerance: float | None = None,
    seed: int = 0,
) -> CellCheck:
    """Compares a cell as traced, and as compiled, with its function and autograd, forward and backward.

    Args:
        function: the cell, or the function to make one of.
        dtype: in which to compute: float64 or float32.
        samples: how many random gates, states and parameters to try.
        scale: their standard deviation.
        tolerance: the largest difference allowed, relative to 1 + the size of a value; default 1e-10 for
            float64 and 1e-4 for float32.
        seed: of the random numbers; torch's own generator is left alone.

    Returns:
        The largest differences found.

    Raises:
        CellError: the function is no cell, or cannot be fused; the text names the line and the way out.
        AssertionError: a difference is larger than ``tolerance``, or one is NaN or infinite where the other
            is not.
        ValueError: another dtype.
    """
    from .jit import CellError

    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"dtype must be torch.float64 or torch.float32, got {dtype}")
    if tolerance is None:
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    checked = as_cell(cell(function))
    if checked.why_not_fused is not None:
        raise CellError(checked.why_not_fused)
    generator = torch.Generator().manual_seed(seed)

    def random(*sizes: int) -> Tensor:
        return scale * torch.randn(sizes, dtype=dtype, generator=generator)

    traced = _difference(*_traced(checked, random, samples), checked, "as traced", tolerance)
    reason = why_not_fused(_CPU, dtype, checked.encode()[0])
    fused = None
    if reason is None:
        fused = _difference(*_compiled(checked, random, dtype), checked, "as compiled", tolerance)
    return CellCheck(str(checked), traced, fused, reason)


def _traced(checked: UserCell, random: Callable[..., Tensor], samples: int) -> tuple[dict, dict]:
    gates, states, names = checked.gate_names, checked.state_names, checked.unit_parameters
    inputs = {name: random(samples) for name in (*gates, *states, *names)}
    grads = [random(samples) for _ in range(1 + len(states))]
    program = checked.program

    own = (
        [inputs[name] for name in gates],
        [inputs[name] for name in states],
        [inputs[name] for name in names],
    )
    h, new, saved = program.forward_saving(*own)
    d_states, d_gates, d_parameters = program.backward(saved, own[2], own[1], new, grads[0], grads[1:])
    found = _named("h", [h]) | _named("new ", new, states)
    found |= _named("gradient of ", [*d_gates, *d_states, *d_parameters], [*gates, *states, *names])

    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    clones = [leaves[name].clone() for name in (*gates, *states)]  # the function may write into them
    h, *new = checked(*clones, **{name: leaves[name] for name in names})
    results = [
        torch.as_tensor(x, dtype=h_like.dtype).expand(h_like.shape)
        for x, h_like in zip([h, *new], grads, strict=True)
    ]
    expected = _named("h", [results[0]]) | _named("new ", results[1:], states)
    pairs = [(x, g) for x, g in zip(results, grads, strict=True) if x.requires_grad]
    computed: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs:
        outputs, weights = zip(*pairs, strict=True)
        computed = torch.autograd.grad(outputs, list(leaves.values()), weights, allow_unused=True)
    filled = [torch.zeros(samples) if g is None else g for g in computed]
    return found, expected | _named("gradient of ", filled, list(leaves))


def _compiled(checked: UserCell, random: Callable[..., Tensor], dtype: torch.dtype) -> tuple[dict, dict]:
    """A small layer in both directions on the kernel and on the reference."""
    steps, batch, features, hidden = 4, 3, 2, 19
    x, h_0 = random(steps, batch, features), random(2, batch, hidden)
    c_0, grad = random(2, batch, checked.states * hidden), random(steps, batch, 2 * hidden)
    weights: dict[str, Tensor] = {}
    results = []
    for backend in ("fused", "reference"):
        lstm = LSTM(
            features, hidden, bidirectional=True, cell=checked, backend=backend, device="meta", dtype=dtype
        )
        lstm.to_empty(device="cpu")
        for name, weight in lstm.named_parameters():
            if name not in weights:
                weights[name] = random(*weight.shape) / 4
            weight.data.copy_(weights[name])
        leaves = [t.clone().requires_grad_() for t in (x, h_0, c_0)]
        output, (h_n, c_n) = lstm(leaves[0], (leaves[1], leaves[2]))
        ((output * grad).sum() + h_n.sum() + c_n.sin().sum()).backward()
        found = {"output": output, "h_n": h_n, "c_n": c_n}
        found |= {f"gradient of {n}": t.grad for n, t in zip(("input", "h_0", "c_0"), leaves, strict=True)}
        found |= {f"gradient of {n}": w.grad for n, w in lstm.named_parameters()}
        results.append(found)
    return results[0], results[1]


def _named(prefix: str, values: Sequence[Tensor], names: Sequence[str] = ("",)) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in zip(names, values, strict=True)}


def _difference(
    found: dict[str, Tensor], expected: dict[str, Tensor], checked: UserCell, how: str, tolerance: float
) -> float:
    """The largest difference.

    Raises:
        AssertionError: it is too large.
    """
    largest = 0.0
    for name, value in found.items():
        a, b = value.detach().double().flatten(), expected[name].detach().double().flatten()
        both_infinite = (a == b) | (a.isnan() & b.isnan())
        difference = ((a - b).abs() / (1.0 + b.abs())).masked_fill(both_infinite, 0.0)
        difference = difference.nan_to_num(nan=float("inf"))
        if difference.numel() == 0:
            continue
        worst, at = difference.max(0)
        if worst > tolerance:
            raise AssertionError(
                f"cell {checked} {how}: {name} is {a[at].item()!r}, the function and autograd give "
                f"{b[at].item()!r}: a difference of {worst.item():.1e}, where {tolerance:.0e} is allowed. "
                "This is a mistake of customlstm, unless the function is not the same at every call or "
                "magnifies roundings there, as a division by nearly 0 does"
            )
        largest = max(largest, worst.item())
    return largest
