"""Least squares over the positions and values of the knots of a piecewise-linear function together.

A Newton iteration with Levenberg-Marquardt damping on half the integrated squared error. The Gauss-Newton
part of the Hessian alone would converge slowly: how the fit bends as knots move weighs as much as the
residual shrinks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

CLOSEST = 1e-4  # smallest distance of two knots, as part of the whole range
_NODES = 24  # quadrature nodes a segment
_STEPS = 80  # at most; 10 to 40 are usual


class Line(NamedTuple):
    """``slope * x + offset``."""

    slope: float
    offset: float

    def at(self, x: float) -> float:
        return self.slope * x + self.offset


def evaluate(fn: Function, x: Tensor) -> Tensor:
    """``fn(x)`` without gradient, in float64 on the CPU.

    Raises:
        TypeError: fn does not take a tensor, or returns none.
        ValueError: fn returns another shape.
    """
    try:
        with torch.no_grad():
            y = fn(x.clone())  # a copy: fn may work in place
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"fn must work on a tensor of any size, but on a float64 tensor it raised: {error}"
        ) from error
    if not isinstance(y, Tensor):
        raise TypeError(f"fn must map a tensor to a tensor, got {type(y).__name__}")
    if y.shape != x.shape:
        raise ValueError(
            f"fn must keep the shape, got {tuple(y.shape)} for an input of shape {tuple(x.shape)}"
        )
    return y.to(device=x.device, dtype=x.dtype)


class FreeKnots:
    """Knots x, y and how they may move: knot v along (dx, dy) = ``moves[v, k]`` where ``free[v, k]``.

    ``held`` knots keep their position, ``pinned`` ones their value too. ``symmetry`` is -1 for a fit that is
    odd about its middle, 1 for an even one, 0 for neither.
    """

    def __init__(
        self,
        fn: Function,
        x: Tensor,
        lines: tuple[Line | None, Line | None],
        held: Tensor,
        pinned: Tensor,
        symmetry: int,
    ) -> None:
        n = x.numel()
        self.fn, self.x, self.y = fn, x, evaluate(fn, x)
        self.closest, self.symmetry = CLOSEST * float(x[-1] - x[0]), symmetry
        self.moves = torch.eye(2, dtype=torch.float64).repeat(n, 1, 1)
        self.free = torch.ones(n, 2, dtype=torch.bool)
        self.free[:, 0], self.free[:, 1] = ~held, ~pinned
        self.lines: list[tuple[int, Line]] = []
        for line, end, inner in ((lines[0], 0, 1), (lines[1], n - 1, n - 2)):
            self.free[end, 0] = False
            if line is not None:  # the end segment lies on the asymptote: its inner knot slides along it
                self.free[end, 1] = self.free[inner, 1] = False
                self.moves[inner, 0, 1] = line.slope
                self.lines += [(end, line), (inner, line)]
        self.u = (torch.arange(_NODES, dtype=torch.float64) + 0.5) / _NODES
        self.settle()

    def settle(self) -> None:
        """Take away the rounding that moves knots off their asymptotes."""
        for knot, line in self.lines:
            self.y[knot] = line.at(float(self.x[knot]))

    def residuals(self, x: Tensor, y: Tensor) -> Tensor:
        """[segment, node]: fit minus fn at the midpoints of _NODES equal parts of each segment."""
        nodes = x[:-1, None] + (x[1:] - x[:-1])[:, None] * self.u
        return (
            y[:-1, None]
            + (y[1:] - y[:-1])[:, None] * self.u
            - evaluate(self.fn, nodes.flatten()).view_as(nodes)
        )

    def cost(self, x: Tensor, y: Tensor) -> float:
        """Half the integral of the squared error."""
        return float((self.residuals(x, y).square().mean(1) * (x[1:] - x[:-1])).sum() / 2)

    def derivatives(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hessian [2n, 2n] and gradient [2n] of the cost in the allowed moves; Gauss-Newton's diagonal."""
        x, y, n = self.x, self.y, self.x.numel()
        width = x[1:] - x[:-1]
        slope = (y[1:] - y[:-1]) / width
        residuals = self.residuals(x, y)
        first, second = ((residuals * hat).mean(1) * width for hat in (1 - self.u, self.u))
        zero = torch.zeros_like(width)
        # Per segment, in its unknowns (x0, y0, x1, y1). At a fixed point, with hat functions 1 - u and u, the
        # fit changes by hat * (dy - slope * dx); the products of two hats integrate to 1/3 and 1/6 of the
        # width.
        change = torch.stack([-slope, torch.ones_like(slope)], 1)
        hats = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64) / 6
        gauss = torch.einsum("s,ab,si,sj->saibj", width, hats, change, change).reshape(-1, 4, 4)
        gradient = torch.stack([-slope * first, first, -slope * second, second], 1)
        # ... and what the second derivatives of the fit add, weighted with the residual
        xx, xy = slope * (first - second), second
        curved = (
            torch.stack(
                [
                    torch.stack([-2 * slope * first, first, xx, -first], 1),
                    torch.stack([first, zero, xy, zero], 1),
                    torch.stack([xx, xy, 2 * slope * second, -second], 1),
                    torch.stack([-first, zero, -second, zero], 1),
                ],
                1,
            )
            / width[:, None, None]
        )
        allowed = self.moves * self.free[:, :, None]
        moves = torch.zeros(n - 1, 4, 4, dtype=torch.float64)
        moves[:, :2, :2], moves[:, 2:, 2:] = allowed[:-1], allowed[1:]
        index = 2 * torch.arange(n - 1)[:, None] + torch.arange(4)
        place = (index[:, :, None], index[:, None, :])
        hessian, plain = torch.zeros(2, 2 * n, 2 * n, dtype=torch.float64)
        hessian.index_put_(place, moves @ (gauss + curved) @ moves.mT, accumulate=True)
        plain.index_put_(place, moves @ gauss @ moves.mT, accumulate=True)
        # the segments' common border moves too, and the slope of the fit jumps there
        border = (y - evaluate(self.fn, x))[1:-1] * (slope[1:] - slope[:-1])
        corner = torch.zeros(n, dtype=torch.float64)
        corner[1:-1] = border
        hessian.diagonal()[0::2] += corner * self.free[:, 0]
        total = torch.zeros(2 * n, dtype=torch.float64)
        total.index_put_((index,), (moves @ gradient[:, :, None])[:, :, 0], accumulate=True)
        return hessian, total, plain.diagonal()

    def step(self, damping: float) -> tuple[Tensor, Tensor] | None:
        """(dx, dy) of a damped Newton step, shortened where knots would meet; None if not downhill."""
        hessian, gradient, scale = self.derivatives()
        scale = torch.where(scale > 0, damping * scale + 1e-12 * scale.max(), 1.0)  # 1: what may not move
        factor, failed = torch.linalg.cholesky_ex(hessian + torch.diag(scale))
        if int(failed):
            return None
        step = -torch.cholesky_solve(gradient[:, None], factor).view(-1, 2, 1)
        dx, dy = (step * self.moves * self.free[:, :, None]).sum(1).unbind(1)
        if self.symmetry:  # rounding would grow along directions that lead out of the symmetry
            dx, dy = (dx - dx.flip(0)) / 2, (dy + self.symmetry * dy.flip(0)) / 2
        gap, change = self.x[1:] - self.x[:-1], dx[1:] - dx[:-1]
        room = torch.minimum(0.7 * gap, gap - self.closest).clamp(min=0) / -change
        length = min(1.0, float(room[change < 0].min())) if bool((change < 0).any()) else 1.0
        return length * dx, length * dy

    def steepness(self, x: Tensor, y: Tensor) -> float:
        """The largest slope, up or down."""
        return float(((y[1:] - y[:-1]) / (x[1:] - x[:-1])).abs().max())

    def minimise(self, steepest: float) -> None:
        """Move to a minimum of the cost, with no segment steeper than ``steepest`` or than any before."""
        damping, cost, small = 1e-2, self.cost(self.x, self.y), 0
        steepest = max(steepest, self.steepness(self.x, self.y))
        for _ in range(_STEPS):
            step = self.step(damping) or (torch.zeros_like(self.x), torch.zeros_like(self.y))
            x, y = self.x + step[0], self.y + step[1]
            new = self.cost(x, y)
            if not new < cost or self.steepness(x, y) > steepest:
                damping *= 10
                if damping > 1e8:
                    return
                continue
            small = small + 1 if cost - new < 1e-6 * cost else 0
            self.x, self.y, cost, damping = x, y, new, max(damping / 10, 1e-12)
            # a knot that has run into another one stays there; else it would hold up all others
            tight = (self.x[1:] - self.x[:-1]) < 1.05 * self.closest
            self.free[1:, 0] &= ~tight
            self.free[:-1, 0] &= ~tight
            if small == 2:
                return
