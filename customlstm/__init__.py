"""``nn.LSTM`` that you can change: a drop-in LSTM with a cell of one's own, on fused kernels."""

import importlib

from .activations import PiecewiseLinear
from .cells import Cell, cell
from .checking import CellCheck, check_cell
from .dispatch import FallbackWarning, use_backend
from .explain import Explanation, explain
from .modules import LSTM, LSTMCell
from .streaming import Stream

__version__ = "0.1.0"

__all__ = [
    "LSTM", "Cell", "CellCheck", "Explanation", "FallbackWarning", "LSTMCell", "PiecewiseLinear", "Stream",
    "cell", "check_cell", "explain", "use_backend",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in ("convert", "jit"):  # not before they are asked for: few need them
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "convert", "jit"})
