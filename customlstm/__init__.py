"""``nn.LSTM`` that you can change: a drop-in LSTM with a cell of one's own, on fused kernels."""

from .activations import PiecewiseLinear
from .cells import Cell
from .dispatch import FallbackWarning, use_backend
from .explain import Explanation, explain
from .modules import LSTM, LSTMCell
from .streaming import Stream

__version__ = "0.1.0"

__all__ = [
    "LSTM", "Cell", "Explanation", "FallbackWarning", "LSTMCell", "PiecewiseLinear", "Stream", "explain",
    "use_backend",
]  # fmt: skip
