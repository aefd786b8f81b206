"""Whole sequences, on a GPU where there is one: the plain cell against nn.LSTM, changed cells against it.

Results are checked before anything is timed. The interleaved times are in ``extra_info`` of the JSON of
pytest-benchmark (``--benchmark-json FILE``), which ``python -m benchmarks.table FILE`` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import customlstm

from .grid import Setting, settings
from .interleaved import interleave, summary
from .loop import ScriptedLSTM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PIECEWISE = customlstm.Cell(
    gate_activation=customlstm.PiecewiseLinear.fit("sigmoid", knots=16, bounds=(-7.0, 7.0)),
    cell_activation=customlstm.PiecewiseLinear.fit("tanh", knots=16),
    output_activation=customlstm.PiecewiseLinear.fit("tanh", knots=16),
)
HARD = customlstm.Cell("hard_sigmoid", "hard_tanh", "hard_tanh")
OURS, THEIRS, LOOP = "customlstm", "nn.LSTM", "TorchScript loop"
PLAIN = "piecewise, plain PyTorch"
# Largest difference of two outputs, which are at most 1 in size; over hundreds of steps of the 16-bit types
# each contender is about this far from the exact result.
TOLERANCES = {"float32": 1e-5, "tf32": 1e-2, "bfloat16": 5e-2, "float16": 1e-2}
# Likewise of two gradients, as a part of the largest element.
GRADIENT_TOLERANCES = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 8e-2, "float16": 3e-2}


def inference(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return module(x)[0]

    return run


def training(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    gradient = torch.randn_like(module(x)[0])

    def run() -> Tensor:
        module.zero_grad(set_to_none=True)
        output = module(x)[0]
        output.backward(gradient)
        return output.detach()

    return run


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


@pytest.fixture
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    """PyTorch's switches, for cuDNN and for products, as the setting asks."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = request.getfixturevalue("setting").dtype == "tf32"
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("mode", [inference, training])
@pytest.mark.parametrize("setting", settings(DEVICE), ids=str)
def test_layer(benchmark: Any, setting: Setting, mode: Callable[..., Callable[[], Tensor]]) -> None:
    torch.manual_seed(0)
    place = {"device": DEVICE, "dtype": setting.torch_dtype}
    shape = {"num_layers": setting.layers, "bidirectional": setting.bidirectional}
    x = torch.randn(setting.steps, setting.batch, setting.features, **place, requires_grad=mode is training)
    standard = nn.LSTM(setting.features, setting.hidden, **shape, **place)

    def same_weights(**options: Any) -> customlstm.LSTM:
        module = customlstm.LSTM(setting.features, setting.hidden, **shape, **place, **options)
        module.load_state_dict(standard.state_dict())
        return module

    ours = same_weights(backend="fused")
    if mode is training:
        check_gradients(ours, standard, x, GRADIENT_TOLERANCES[setting.dtype])
    contenders = {OURS: mode(ours, x), THEIRS: mode(standard, x)}
    same = [(OURS, THEIRS)]
    if setting.cells:
        contenders["hard"] = mode(same_weights(backend="fused", cell=HARD), x)
        contenders["piecewise"] = mode(same_weights(backend="fused", cell=PIECEWISE), x)
    if setting.cells and DEVICE == "cpu":
        contenders[PLAIN] = mode(same_weights(backend="reference", cell=PIECEWISE), x)
        same.append(("piecewise", PLAIN))
    if setting.loop:
        contenders[LOOP] = mode(ScriptedLSTM(standard), x)
        same.append((OURS, LOOP))
    for one, other in same:
        torch.testing.assert_close(
            contenders[one](), contenders[other](), atol=TOLERANCES[setting.dtype], rtol=0.0
        )

    times = interleave(contenders, DEVICE)
    benchmark.extra_info.update(
        setting=vars(setting),
        mode=mode.__name__,
        device=DEVICE,
        threads=torch.get_num_threads(),
        times=summary(times, OURS),
    )
    benchmark.pedantic(contenders[OURS], rounds=3)
