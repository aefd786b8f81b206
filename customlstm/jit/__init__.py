"""From a user's Python function to a fused kernel: trace, differentiate, write out, build, register.

:func:`~customlstm.jit.trace.trace` runs the function on small tensors and records it and its derivative as
a :class:`~customlstm.jit.program.Program`; :func:`~customlstm.jit.generate.generate` writes a program as
the struct that ``csrc/cells/README.md`` describes; :func:`~customlstm.jit.build.build_library` compiles it,
once for all processes of a user, and :func:`~customlstm.jit.register.register` makes it known to the
operators. For GPUs :mod:`customlstm.jit.nvrtc` takes the place of the C++ compiler. What a function must not
do is said by a :class:`CellError`, what the compiler has against it by a :class:`BuildError`.
"""

from .build import BuildError
from .cuda import compile_for_gpu
from .errors import CellError
from .generate import generate
from .program import Program
from .register import register
from .trace import trace

__all__ = ["BuildError", "CellError", "Program", "compile_for_gpu", "generate", "register", "trace"]
