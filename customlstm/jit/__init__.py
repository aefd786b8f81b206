"""From a user's Python function to a fused kernel: trace, differentiate, write out.

:func:`~customlstm.jit.trace.trace` runs the function once on small tensors and records it and its derivative
as a :class:`~customlstm.jit.program.Program`; :func:`~customlstm.jit.generate.generate` writes a program as
the struct that ``csrc/cells/README.md`` describes. What a function must not do is said by a
:class:`CellError`.
"""

from .errors import CellError
from .generate import generate
from .program import Program
from .trace import trace

__all__ = ["CellError", "Program", "generate", "trace"]
