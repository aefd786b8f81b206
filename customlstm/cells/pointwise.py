"""The form in which the reference takes a cell."""

from collections.abc import Callable, Sequence

from torch import Tensor

#: (pre-activations, states besides h, per-unit parameters) -> (h, new states), all of one leading shape.
Pointwise = Callable[
    [Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, tuple[Tensor, ...]]
]
