"""Where the knots of a piecewise-linear approximation go: asymptotes, kinks, and a start for least squares.

The start is the equidistribution of ``|f''| ** 0.4``, towards which the knots of the best least-squares fit
tend as their number grows (de Boor, A Practical Guide to Splines, chapter XII); :mod:`.freeknots` then moves
them to the minimum. Kinks of f become knots that stay where they are. All in float64 on the CPU; nothing here
knows about cells.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .freeknots import CLOSEST, FreeKnots, Function, Line, evaluate

__all__ = ["fit_knots"]

_GRID = 4096  # intervals of the grid on which curvature is measured and kinks are looked for


def _snapped(value: float) -> float:
    """value, or the number with 6 decimals within 1e-8 of it: so a limit of 1 is 1 and a slope of 0 is 0."""
    near = round(value, 6) + 0.0  # no -0.0
    return near if abs(value - near) < 1e-8 else value


def _asymptote(fn: Function, sign: int) -> Line | None:
    """The line that fn approaches towards sign * infinity, as judged at 2**20 and 2**30, or None."""
    far = [2.0**20, 2.0**21, 2.0**30, 2.0**31]
    y = evaluate(fn, sign * torch.tensor(far, dtype=torch.float64)).tolist()
    slopes = [sign * (y[1] - y[0]) / far[0], sign * (y[3] - y[2]) / far[2]]
    # negated, so that NaN ends here too
    if not (all(abs(value) < 1e30 for value in y) and abs(slopes[1] - slopes[0]) < 1e-6):
        return None
    slope = _snapped(slopes[1])
    offsets = [y[0] - sign * slope * far[0], y[2] - sign * slope * far[2]]
    if not abs(offsets[1] - offsets[0]) < 1e-4 * (1.0 + abs(offsets[0])):
        return None
    # Farthest out a flat function is nearest to its limit, but a slope takes the digits of the offset there.
    return Line(slope, _snapped(offsets[1] if slope == 0.0 else offsets[0]))


def _narrow(fn: Function, left: float, right: float, closest: float) -> list[tuple[float, float]]:
    """(change of slope, place) of the kink between left and right; two for a jump, none if fn is smooth."""
    for _ in range(2):
        x = torch.linspace(left, right, 65, dtype=torch.float64)
        y = evaluate(fn, x)
        middle = int((y[2:] - 2 * y[1:-1] + y[:-2]).abs().argmax()) + 1
        left, right = float(x[max(middle - 2, 0)]), float(x[min(middle + 2, 64)])
    width = right - left
    x = torch.tensor([left - width, left, right, right + width], dtype=torch.float64)
    y0, y1, y2, y3 = evaluate(fn, x).tolist()
    before, after = (y1 - y0) / width, (y3 - y2) / width
    change = abs(after - before)
    if change > 1e-3 * (1.0 + abs(before) + abs(after)):
        place = (y1 - before * left - y2 + after * right) / (after - before)  # where the two lines meet
        if left <= place <= right:
            return [(change, _snapped(place))]
    jump = abs(y2 - y1) - (abs(before) + abs(after)) * width
    if jump > 1e-3 * (abs(y1) + abs(y2)):
        return [(jump / closest, (left + right + side * closest) / 2) for side in (-1, 1)]
    return []


def _kinks(fn: Function, x: Tensor, y: Tensor) -> tuple[list[tuple[float, float]], Tensor]:
    """The kinks of fn as (change of slope, place), and |f''| at the inner points of the grid x without them.

    A kink is suspected where a second difference stands out from those 4 intervals to either side.
    """
    step = float(x[1] - x[0])
    second = (y[2:] - 2 * y[1:-1] + y[:-2]).abs()
    padded = torch.cat([second[:1].expand(4), second, second[-1:].expand(4)])
    beside = torch.maximum(padded[:-8], padded[8:])
    places: list[tuple[float, float]] = []
    for index in (second > 8 * beside + 1e-12 * float(y.abs().max())).nonzero().flatten().tolist():
        for change, place in _narrow(fn, float(x[index]), float(x[index + 2]), CLOSEST * float(x[-1] - x[0])):
            if all(abs(place - other) > step / 4 for _, other in places):  # a kink shows at two grid points
                places.append((change, place))
        second[index] = beside[index]
    return places, second / step**2


def _start(
    kinks: list[float],
    curvature: Tensor,
    x: Tensor,
    floor: float,
    count: int,
    edges: tuple[list[float], list[float]],
) -> list[float]:
    """count positions between the ends of x: the kinks, those given in edges, and equidistributed ones
    between the edges."""
    lower, upper = float(x[0]), float(x[-1])
    density = (torch.cat([curvature[:1], curvature, curvature[-1:]]) + floor) ** 0.4
    density *= (x >= max(edges[0], default=lower)) & (x <= min(edges[1], default=upper))
    mass = torch.cat([density.new_zeros(1), (density[1:] + density[:-1]).cumsum(0)])
    fillers = count - len(kinks) - len(edges[0]) - len(edges[1])
    wanted = mass[-1] * torch.arange(1, fillers + 1, dtype=torch.float64) / (fillers + 1)
    right = torch.searchsorted(mass, wanted).clamp(1, mass.numel() - 1)
    part = (wanted - mass[right - 1]) / (mass[right] - mass[right - 1])
    found = x[right - 1] + part * (x[right] - x[right - 1])
    places = sorted([*kinks, *edges[0], *edges[1]])
    for place in found.tolist():
        ends = [lower, *places, upper]
        if min(abs(place - end) for end in ends) < 2 * CLOSEST * (upper - lower):
            # as good as a knot already there: the widest gap has more use for it
            place = max((b - a, (a + b) / 2) for a, b in pairwise(ends))[1]
        places = sorted([*places, place])
    return places


def _asymptotes_that_fit(
    left: Line | None, right: Line | None, lower: float, upper: float, inner: int
) -> tuple[Line | None, Line | None, float | None]:
    """(left, right, meeting point): what `inner` knots between the ends can follow. Two asymptotes need two
    inner knots, or one where they meet; one needs one."""
    if left is not None and right is not None and inner == 1 and left.slope != right.slope:
        meeting = _snapped((right.offset - left.offset) / (left.slope - right.slope))
        if lower < meeting < upper:
            return left, right, meeting
    if inner < (left is not None) + (right is not None):
        return None, None, None
    return left, right, None


def _edges(
    values: Tensor,
    lower: float,
    upper: float,
    left: Line | None,
    right: Line | None,
    steepest: float,
    slack: float,
) -> tuple[list[float], list[float]]:
    """Knots for an end of the bounds where fn (values on the grid) has not reached its asymptote.

    The squared error is least with a jump from one to the other there. A segment about as steep as fn is at
    its steepest takes its place: from a knot on the asymptote, at the very end, to one on fn.
    """
    near = 2 * CLOSEST * (upper - lower)
    edges: tuple[list[float], list[float]] = ([], [])
    for edge, line, end, value, inwards in (
        (edges[0], left, lower, values[0], 1),
        (edges[1], right, upper, values[-1], -1),
    ):
        gap = 0.0 if line is None else abs(float(value) - line.at(end))
        if gap > slack and gap < steepest * (upper - lower) / 8:
            edge += [end + inwards * near, end + inwards * (near + max(gap / steepest, near))]
    return edges


def _symmetry(values: Tensor, slack: float) -> int:
    """-1 if values are odd about their middle one, 1 if they are even, else 0."""
    mirror = values.flip(0)
    if bool(((values + mirror - 2 * values[_GRID // 2]).abs() < slack).all()):
        return -1
    return int(bool(((values - mirror).abs() < slack).all()))


def fit_knots(fn: Function, knots: int, lower: float, upper: float) -> tuple[list[float], list[float]]:
    """Positions and values of the knots of ``PiecewiseLinear.fit``, where it says what they minimise."""
    grid = torch.linspace(lower, upper, _GRID + 1, dtype=torch.float64)
    values = evaluate(fn, grid)
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        raise ValueError(
            f"fn must be finite within bounds, got {float(values[~finite][0])} at {float(grid[~finite][0])}"
        )
    size = float(values.abs().max())
    if size > 0.0 and not 0.01 < size < 100.0:  # tolerances here are for numbers of order 1
        scale = 2.0 ** round(math.log2(size))
        positions, scaled = fit_knots(lambda t: fn(t) / scale, knots, lower, upper)
        return positions, [value * scale for value in scaled]
    width, middle = upper - lower, float(values[_GRID // 2])
    left, right, meeting = _asymptotes_that_fit(
        _asymptote(fn, -1), _asymptote(fn, 1), lower, upper, knots - 2
    )
    kinks, curvature = _kinks(fn, grid, values)
    kept = [place for _, place in sorted(kinks, reverse=True)[: knots - 2] if lower < place < upper]
    if meeting is not None:
        kept = [meeting]
    slack = 1e-9 * (1.0 + size)  # what counts as equal
    steepest = float((values[1:] - values[:-1]).abs().max()) / float(grid[1] - grid[0])
    edges = _edges(values, lower, upper, left, right, steepest, slack)
    starts: list[tuple[list[float], list[float]]] = [([], []), edges]
    if knots < 8 or knots - 2 < len(kept) + 4 or edges == ([], []):
        starts = starts[:1]
    elif knots > 100:  # where the first start would not win, and takes a second
        starts = starts[1:]

    best: tuple[float, FreeKnots] | None = None
    for start in starts:
        inner = _start(kept, curvature, grid, 1e-6 * (1.0 + size), knots - 2, start)
        x = torch.tensor([lower, *inner, upper], dtype=torch.float64)
        pinned = torch.tensor([place in start[0] or place in start[1] for place in x.tolist()])
        held = pinned | torch.tensor([place in kept for place in x.tolist()])
        for line, knot in ((left, 1), (right, knots - 2)):
            # a kink that has to lie on an asymptote, but does not, has to move
            if line is not None and meeting is None and held[knot] and not pinned[knot]:
                place = x[knot : knot + 1]
                held[knot] = abs(float(evaluate(fn, place)) - line.at(float(place))) < slack
        mirrored = bool(((x + x.flip(0) - lower - upper).abs() < 1e-6 * width).all())
        problem = FreeKnots(fn, x, (left, right), held, pinned, _symmetry(values, slack) if mirrored else 0)
        if float(problem.residuals(x, problem.y).abs().max()) > 1e-12 * (1.0 + size):
            problem.minimise(1.5 * steepest)
        cost = problem.cost(problem.x, problem.y)
        if best is None or cost < best[0]:
            best = (cost, problem)
    assert best is not None
    problem = best[1]
    if problem.symmetry:  # so far but for rounding
        problem.x = (lower + upper) / 2 + (problem.x - problem.x.flip(0)) / 2
        problem.x[0], problem.x[-1] = lower, upper
        other = problem.y.flip(0) if problem.symmetry == 1 else 2 * middle - problem.y.flip(0)
        problem.y = (problem.y + other) / 2
    problem.settle()
    return problem.x.tolist(), problem.y.tolist()
