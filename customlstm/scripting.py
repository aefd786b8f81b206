"""The TorchScript form of :class:`customlstm.LSTM`, and of an LSTMCell whose cell has parameters.

TorchScript knows neither keyword-only arguments with defaults nor iteration over parameters, and it types the
input once. ``torch.jit.script`` therefore compiles a twin, which ``__prepare_scriptable__`` gives it: an
object that shares the module's state, of a subclass whose ``forward(input, hx, lengths, resets)`` takes a
tensor and positional arguments, and whose weight list names every parameter in source text generated for its
layers and directions. What the twin computes is ``LSTM._run``, compiled as it stands.

``torch.jit.script(parent)`` also puts the twin in the place of the original inside ``parent``. So a twin is
an LSTM in eager mode too: every call, copy, pickle and text is the original's.
"""

import copy
import functools
import linecache
from typing import Any

import torch
from torch import Tensor, nn

from .cells import own_parameters
from .dispatch import for_scripting
from .modules import LSTM, LSTMCell


class _Twin(LSTM):
    _original: type  # class of the module that this is the twin of

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if torch.jit.is_scripting():
            output, h_n, c_n, _ = self._run(input, hx, lengths, resets, False)
            return output, (h_n, c_n)
        else:
            return LSTM.forward(self, input, hx, lengths=lengths, resets=resets)

    @torch.jit.export
    def states(  # type: ignore[override]
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if torch.jit.is_scripting():
            h_all, _, _, c_all = self._run(input, hx, lengths, resets, True)
            return h_all, c_all
        else:
            return LSTM.states(self, input, hx, lengths=lengths, resets=resets)

    def __prepare_scriptable__(self) -> nn.Module:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The generated class cannot be found by name in another process; the original's can.
        return object.__new__, (self._original,), self.__getstate__()


def prepare(module: LSTM | LSTMCell) -> nn.Module:
    """The object that TorchScript compiles for ``module``, with the backend that holds here and now.

    Raises:
        RuntimeError: that is "fused", and no fused kernel fits the module's weights.
    """
    weight = module._weight_list()[0]
    backend = for_scripting(module.backend, weight.device, weight.dtype, module._cell_name)
    if isinstance(module, LSTM):
        prepared = twin(module)
    else:
        prepared = step_twin(module)
    if prepared is not module:
        prepared.backend = backend
    return prepared


def twin(module: LSTM) -> nn.Module:
    """The object for TorchScript to compile in place of ``module``, sharing its parameters and buffers.

    A subclass of LSTM with a forward of its own is returned as it is: its author decides whether it compiles.
    """
    if type(module).forward is not LSTM.forward or type(module).states is not LSTM.states:
        return module
    twin = object.__new__(_twin_class(type(module), tuple(module._flat_weights_names)))
    twin.__dict__.update(module.__dict__)
    return twin


def step_twin(module: LSTMCell) -> nn.Module:
    """The same for an LSTMCell, which without parameters of the cell's own compiles as it is."""
    if not own_parameters(module.cell):
        return copy.copy(module)
    if isinstance(module, _StepTwin):
        return module
    names = tuple(name for name in module._weight_names if getattr(module, name) is not None)
    twin = object.__new__(_twin_class(type(module), names))
    twin.__dict__.update(module.__dict__)
    return twin


class _StepTwin(LSTMCell):
    _original: type

    def __prepare_scriptable__(self) -> nn.Module:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__new__, (self._original,), self.__getstate__()


@functools.cache
def _twin_class(original: type, names: tuple[str, ...]) -> type:
    """The twin class of ``original`` for these parameter names."""
    weights = ", ".join(f"self.{name}" for name in names)
    source = f"def _weight_list(self) -> list[Tensor]:\n    return [{weights}]\n"
    # TorchScript reads a method's source back through linecache; a name in <> is never looked for on disk.
    file = f"<weights of customlstm.{original.__name__} #{_twin_class.cache_info().misses}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"Tensor": Tensor, "__name__": __name__}
    exec(compile(source, file, "exec"), scope)
    twin = _Twin if issubclass(original, LSTM) else _StepTwin
    bases = (twin,) if original in (LSTM, LSTMCell) else (twin, original)
    members = {"_weight_list": scope["_weight_list"], "_original": original, "__module__": __name__}
    # TorchScript cannot tell the type from an empty list, and looks at the annotations of this very class.
    members["__annotations__"] = {"_cell_args": list[float]}
    return type(original.__name__, bases, members)
