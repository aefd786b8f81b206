"""Cells that users write on a GPU: compiled by NVRTC when a call needs them, against the float64 reference.

Skipped where no GPU can run the kernels or NVRTC is not there; CUSTOMLSTM_REQUIRE_GPU=1 makes that an error.
"""

from __future__ import annotations

import os

import pytest
import torch
from support_compare import assert_close
from support_gpu import CUDA, DTYPES, TOLERANCE, fits, needs_gpu
from torch import Tensor

import customlstm
from customlstm.cells import gallery
from customlstm.jit import nvrtc
from customlstm.jit.build import NoCompilerError
from customlstm.launch_plan import VARIANTS


def _why_no_nvrtc() -> str:
    try:
        nvrtc.find_nvrtc()
    except NoCompilerError as error:
        return str(error)
    return ""


_WHY_SKIP = _why_no_nvrtc()
if _WHY_SKIP and os.environ.get("CUSTOMLSTM_REQUIRE_GPU", "0") != "0":
    raise RuntimeError(f"CUSTOMLSTM_REQUIRE_GPU is set, but {_WHY_SKIP}")
pytestmark = [*needs_gpu, pytest.mark.skipif(bool(_WHY_SKIP), reason=_WHY_SKIP)]


@customlstm.cell
def eight_gates(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor, g: Tensor, h: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    first = torch.tanh(torch.sigmoid(a) * torch.relu(b) + torch.sigmoid(c) * torch.tanh(d))
    second = torch.where(e > f, torch.tanh(e), torch.sigmoid(f)) * torch.nn.functional.softplus(g)
    s = torch.sigmoid(h) * s + first * second
    return torch.tanh(s), s


#: Three gates in every dtype; one gate with a parameter, four gates and three states, eight gates.
CASES = [(gallery.coupled, dtype) for dtype in DTYPES]
CASES += [
    (cell, dtype)
    for cell in (gallery.leaky, gallery.slstm, eight_gates)
    for dtype in (torch.float32, torch.bfloat16)
]
ids = [f"{cell.name}-{str(dtype).removeprefix('torch.')}" for cell, dtype in CASES]
OPTIONS = [
    {},
    {"bidirectional": True, "num_layers": 2},
    {"proj_size": 5, "bidirectional": True},
    {"zoneout": (0.1, 0.2)},
]


def on_both(
    cell: customlstm.cells.AnyCell, dtype: torch.dtype, hidden: int, options: dict[str, object]
) -> tuple[customlstm.LSTM, customlstm.LSTM]:
    """The fused layer on the GPU, and the reference of the same weights in float64 on the CPU."""
    ours = customlstm.LSTM(7, hidden, cell=cell, dtype=dtype, device=CUDA, backend="fused", **options)
    reference = customlstm.LSTM(7, hidden, cell=cell, dtype=torch.float64, backend="reference", **options)
    reference.load_state_dict({name: w.cpu().double() for name, w in ours.state_dict().items()})
    return ours.eval(), reference.eval()  # zoneout by its expectation: masks are of each device's generator


def results(lstm: customlstm.LSTM, x: Tensor, hx: tuple[Tensor, Tensor], **call: Tensor) -> dict[str, Tensor]:
    """Everything that a call gives, gradients included, in float64 on the CPU."""
    leaves = [each.detach().clone().requires_grad_() for each in (x, *hx)]
    output, (h_n, c_n) = lstm(leaves[0], tuple(leaves[1:]), **call)
    found = {"output": output, "h_n": h_n, "c_n": c_n}
    total = sum((each.double() * torch.arange(each.numel(), device=each.device).view_as(each).cos()).sum()
                for each in found.values())  # fmt: skip
    names = ["x", "h_0", "c_0", *(name for name, _ in lstm.named_parameters())]
    gradients = torch.autograd.grad(total, [*leaves, *lstm.parameters()])
    found |= {f"gradient of {name}": each for name, each in zip(names, gradients, strict=True)}
    return {name: each.detach().cpu().double() for name, each in found.items()}


def compare(
    cell: customlstm.cells.AnyCell, dtype: torch.dtype, hidden: int = 21, batch: int = 5, **options: object
) -> None:
    ours, reference = on_both(cell, dtype, hidden, options)
    rows = ours.num_layers * (2 if ours.bidirectional else 1)
    x = (torch.randn(6, batch, 7) * 0.5).to(dtype)
    h = (torch.randn(rows, batch, ours.proj_size or hidden) * 0.5).to(dtype)
    c = (torch.rand(rows, batch, cell.states * hidden) + 0.5).to(dtype)  # a normaliser is positive
    lengths = torch.randint(0, 7, (batch,))
    for call in ({}, {"lengths": lengths}):
        found = results(ours, x.to(CUDA), (h.to(CUDA), c.to(CUDA)), **call)
        expected = results(reference, x.double(), (h.double(), c.double()), **call)
        scale = max(1.0, *(float(each.abs().max()) for each in expected.values()))
        assert_close(found, expected, (cell, options, call), TOLERANCE[dtype] * scale, TOLERANCE[dtype])


@pytest.mark.parametrize(("cell", "dtype"), CASES, ids=ids)
def test_results_and_gradients(cell: customlstm.cells.AnyCell, dtype: torch.dtype) -> None:
    for options in OPTIONS:
        compare(cell, dtype, **options)
    assert customlstm.explain(customlstm.LSTM(7, 21, cell=cell, dtype=dtype, device=CUDA),
                              torch.zeros(6, 5, 7, dtype=dtype, device=CUDA)).backend == "fused"  # fmt: skip


@pytest.mark.parametrize(("cell", "dtype"), CASES, ids=ids)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant(
    variant: str, cell: customlstm.cells.AnyCell, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fits(variant, dtype):
        pytest.skip(f"{variant} is not for {dtype} on this GPU")
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", variant)
    for hidden, batch in ((1, 1), (17, 33), (64, 8)):
        compare(cell, dtype, hidden, batch)


def test_tf32_is_decided_at_the_call() -> None:
    ours, _ = on_both(gallery.slstm, torch.float32, 64, {})
    x, matmul = torch.randn(6, 8, 7, device=CUDA), torch.backends.cuda.matmul
    exact = ours(x)[0]
    matmul.fp32_precision = "tf32"  # the fixture sets it back
    rounded = ours(x)[0]
    assert 0 < float((rounded - exact).abs().max().detach()) < 1e-2


def test_the_same_under_compile_and_in_a_graph() -> None:
    ours, _ = on_both(gallery.coupled, torch.float32, 21, {})
    x = torch.randn(6, 5, 7, device=CUDA)
    with torch.no_grad():
        expected = ours(x)[0]
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x)[0], expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = ours(x)[0]
        x.mul_(2)
        graph.replay()
        assert torch.equal(output.clone(), ours(x)[0])


def test_first_used_while_a_graph_is_captured() -> None:
    """Compiling and loading are no work for the stream."""
    ours, _ = on_both(gallery.minimal_gated, torch.float64, 9, {})
    x = torch.randn(3, 2, 7, device=CUDA, dtype=torch.float64)
    plain = customlstm.LSTM(7, 9, device=CUDA, dtype=torch.float64)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        plain(x)  # cuBLAS makes its handle, which it may not while capturing
        with torch.cuda.graph(graph):
            output = ours(x)[0]
        graph.replay()
        assert torch.equal(output.clone(), ours(x)[0])


def test_single_steps() -> None:
    single = customlstm.LSTMCell(7, 9, cell=gallery.slstm, device=CUDA, backend="fused")
    reference = customlstm.LSTMCell(7, 9, cell=gallery.slstm, dtype=torch.float64, backend="reference")
    reference.load_state_dict({name: w.cpu().double() for name, w in single.state_dict().items()})
    x = torch.randn(4, 7)
    found, expected = single(x.to(CUDA)), reference(x.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours.cpu().double(), theirs, rtol=0, atol=TOLERANCE[torch.float32])
