"""The operators and modules on a GPU, against the float64 reference on the CPU: a minute or two.

Skipped where no GPU can run the kernels; CUSTOMLSTM_REQUIRE_GPU=1 makes that an error.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from support_compare import assert_close, assert_same_bits
from support_gpu import CUDA, DTYPES, TOLERANCE, compare, fits, needs_gpu, on_gpu, to_cpu
from support_ops import CELLS, NORMALISED, Case, make_call, run_cell, run_layer, run_reference
from torch import Tensor, nn

import customlstm
from customlstm.launch_plan import VARIANTS

pytestmark = needs_gpu


# --- every option ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["padded", "packed", "lengths", "no lengths"])
def test_options(layout: str, dtype: torch.dtype) -> None:
    for resets, bidirectional, projection in itertools.product(["none", "some"], [False, True], [0, 5]):
        case = Case(
            9, 5, 7, 24, projection, bidirectional=bidirectional, layout=layout, resets=resets, dtype=dtype
        )
        compare(case)
        if layout == "lengths":
            compare(case, lengths_there=True)
    compare(Case(9, 5, 7, 24, bias=False, given=False, layout="padded", dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_activation(dtype: torch.dtype) -> None:
    # In 16 bits a rounding may fall on the other side of a kink, and the gradient jumps there.
    tolerance = {torch.bfloat16: 0.3, torch.float16: 0.1}.get(dtype)
    for cell in CELLS.keys() - NORMALISED:
        compare(Case(3, 4, 5, 16, cell=cell, gain=0.3, dtype=dtype), tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", NORMALISED)
def test_layer_norm(cell: str, dtype: torch.dtype) -> None:
    # A row whose deviation is below 1 has its rounding divided by that. For clips see test_every_activation.
    kinked = CELLS[cell].gate_clip is not None
    tolerance = ({torch.bfloat16: 0.3, torch.float16: 0.1} if kinked else {torch.bfloat16: 0.1}).get(dtype)
    for layout, projection in itertools.product(["padded", "packed", "lengths"], [0, 5]):
        case = Case(9, 5, 7, 24, projection, layout=layout, resets="some", cell=cell, dtype=dtype)
        compare(case, tolerance)
        case = dataclasses.replace(case, bidirectional=True, dropout=0.4, zoneout="both masks")
        compare(case, tolerance, lengths_there=layout == "lengths")
    case = Case(9, 5, 7, 24, bias=False, given=False, cell=cell, zoneout="both rates", dtype=dtype)
    compare(case, tolerance)
    # Rows of several units a thread, and several tiles and slices of columns.
    compare(Case(4, 70, 7, 600, cell=cell, dtype=dtype), tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant(variant: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fits(variant, dtype):
        pytest.skip(f"{variant} is not for {dtype} on this GPU")
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", variant)
    for hidden, batch in itertools.product((1, 17, 128), (1, 8, 33)):
        compare(Case(5, batch, 6, hidden, dtype=dtype))
    compare(Case(5, 9, 6, 40, 12, bidirectional=True, layout="lengths", resets="some", dtype=dtype))
    compare(Case(5, 9, 6, 40, bidirectional=True, layout="packed", cell="piecewise linear", gain=0.3,
                 dtype=dtype), {torch.bfloat16: 0.3, torch.float16: 0.1}.get(dtype))  # fmt: skip


@pytest.mark.parametrize("hidden", [256, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_many_units(
    variant: str, dtype: torch.dtype, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fits(variant, dtype):
        pytest.skip(f"{variant} is not for this GPU")
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", variant)
    try:
        compare(Case(5, 40, 6, hidden, dtype=dtype))
    except RuntimeError as error:
        if f"asks for {variant}, which does not fit" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cell(dtype: torch.dtype) -> None:
    for projection in (0, 3):
        call = make_call(Case(1, 6, 4, 20, projection, dtype=dtype))
        expected = run_cell(call.to(torch.float64), torch.ops.customlstm.lstm_cell_reference)
        found = to_cpu(run_cell(on_gpu(call)), torch.float64)
        assert_close(found, expected, projection, TOLERANCE[dtype] * 10, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_modules(dtype: torch.dtype) -> None:
    """Layers, batch_first, unbatched, packed, lengths and resets by the front end, against ``nn.LSTM``."""
    theirs = nn.LSTM(7, 12, 2, batch_first=True, bidirectional=True, proj_size=5).double()
    ours = customlstm.LSTM(7, 12, 2, batch_first=True, bidirectional=True, proj_size=5, backend="fused")
    ours.load_state_dict(theirs.state_dict())
    ours.to(CUDA, dtype)
    theirs.load_state_dict({k: v.to(torch.float64).cpu() for k, v in ours.state_dict().items()})
    x = torch.randn(4, 6, 7).to(dtype)
    for value in (x, x[0]):
        expected, _ = theirs(value.double())
        found, _ = ours(value.to(CUDA))
        assert torch.allclose(found.cpu().double(), expected, rtol=0, atol=TOLERANCE[dtype] * 4)
    lengths = torch.tensor([6, 2, 5, 1])
    pack = torch.nn.utils.rnn.pack_padded_sequence
    expected, _ = theirs(pack(x.double(), lengths, batch_first=True, enforce_sorted=False))
    found, _ = ours(pack(x.to(CUDA), lengths, batch_first=True, enforce_sorted=False))
    assert torch.allclose(found.data.cpu().double(), expected.data, rtol=0, atol=TOLERANCE[dtype] * 4)
    padded, _ = nn.utils.rnn.pad_packed_sequence(found, batch_first=True)
    for where in ("cpu", "cuda"):
        output, _ = ours(x.to(CUDA), lengths=lengths.to(where))
        assert torch.allclose(output, padded, rtol=0, atol=TOLERANCE[dtype])
    h_all, c_all = ours.states(x.to(CUDA), resets=torch.rand(4, 6, device=CUDA) < 0.2)
    assert h_all.shape == (4, 6, 10) and c_all.shape == (4, 6, 24) and c_all.dtype == dtype


@pytest.mark.parametrize("cell", ["standard", "layer norm and all options"])
def test_gradcheck(cell: str) -> None:
    call = on_gpu(make_call(Case(3, 2, 3, 4, 2, bidirectional=True, resets="some", cell=cell)))
    inputs = [call.input, call.h_0, call.c_0, *call.weights]
    leaves = [x.detach().clone().requires_grad_() for x in inputs]

    def run(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        again = call.replace(input=x, h_0=h, c_0=c, weights=list(weights))
        return torch.ops.customlstm.lstm_layer(*again.arguments(), 2)[:4]

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_bad_values_stay_where_they_are() -> None:
    call = make_call(Case(6, 7, 5, 17, bidirectional=True, layout="lengths", resets="some"))
    beyond = torch.arange(6).unsqueeze(1) >= call.lengths
    bad = call.replace(input=call.input.masked_fill(beyond.unsqueeze(-1), torch.nan))
    assert_same_bits(to_cpu(run_layer(on_gpu(bad))), to_cpu(run_layer(on_gpu(call))), "NaN in the padding")
    nan = call.input.clone()
    nan[:, 2] = torch.nan
    found = run_layer(on_gpu(call.replace(input=nan)))["output"]
    others = [b for b in range(7) if b != 2]
    assert not found[:, others].isnan().any()


# --- PyTorch's switches and tools ---


def test_tf32_follows_pytorchs_switch() -> None:
    """The error of one product shows whether its operands were rounded; both faces of the switch."""
    call = make_call(Case(4, 32, 16, 256, dtype=torch.float32))
    exact = run_reference(call.to(torch.float64))["output"]
    there, matmul = on_gpu(call), torch.backends.cuda.matmul

    def error() -> float:
        output = torch.ops.customlstm.lstm_layer(*there.arguments(), 0)[0]
        return float((output.cpu().double() - exact).abs().max())

    full = error()
    matmul.fp32_precision = "tf32"
    rounded = error()
    matmul.fp32_precision = "ieee"
    assert error() == full and full < 1e-5 < rounded < 1e-2
    torch.set_float32_matmul_precision("high")
    assert error() == rounded
    torch.set_float32_matmul_precision("highest")
    assert error() == full


def test_autocast() -> None:
    module = customlstm.LSTM(7, 24, device=CUDA, backend="fused")
    x = torch.randn(8, 5, 7, device=CUDA, requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        output, _ = module(x)
        output.float().sum().backward()  # inside: the gradient's products must not be cast again
    assert output.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.float32
    inside = x.grad.clone()
    x.grad = None
    with torch.autocast("cuda", torch.bfloat16):
        output, _ = module(x)
    output.float().sum().backward()
    assert torch.equal(x.grad, inside)
    double = on_gpu(make_call(Case(4, 3, 5, 8)))
    with torch.autocast("cuda", torch.float16):
        assert torch.ops.customlstm.lstm_layer(*double.arguments(), 0)[0].dtype == torch.float64


def test_compile_and_export() -> None:
    module = customlstm.LSTM(7, 24, 2, device=CUDA, backend="fused")
    x = torch.randn(8, 5, 7, device=CUDA)
    expected = module(x)[0]
    assert torch.allclose(torch.compile(module, fullgraph=True, backend="aot_eager")(x)[0], expected)
    assert torch.allclose(torch.export.export(module, (x,)).module()(x)[0], expected)
    assert torch.allclose(torch.jit.script(module)(x)[0], expected)


def test_explain_shows_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = customlstm.LSTM(7, 128, device=CUDA), torch.randn(8, 5, 7, device=CUDA)
    found = customlstm.explain(module, x)
    major, minor = torch.cuda.get_device_capability()
    assert found.backend == "fused" and found.kernel == f"cuda sm_{major}{minor}"
    assert "forward float32, " in str(found) and "backward float32, " in str(found)
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "step")
    assert "forward float32, step: " in str(customlstm.explain(module, x))
    with torch.autocast("cuda", torch.bfloat16):
        assert "forward bfloat16, step: " in str(customlstm.explain(module, x))
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "fast")
    for call in (module, lambda x: customlstm.explain(module, x)):
        with pytest.raises(RuntimeError, match='"fast", expected step, grid or cluster'):
            call(x)


# --- errors ---


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    call = on_gpu(make_call(Case(4, 3, 5, 8, layout="lengths", resets="some")))
    layer = torch.ops.customlstm.lstm_layer

    def refused(match: str, **changes: object) -> None:
        with pytest.raises(RuntimeError, match=match):
            layer(*call.replace(**changes).arguments(), 0)

    refused("weight_ih is on the CPU, but input is on cuda:0", weights=[w.cpu() for w in call.weights])
    refused("h_0 is on the CPU, but input is on cuda:0", h_0=call.h_0.cpu())
    refused("resets is on the CPU, but input is on cuda:0", resets=call.resets.cpu())
    refused(r"lengths\[0\] is 9, expected 0 to 4", lengths=torch.full((3,), 9))
    refused("c_0 is float32, but input is float64", c_0=call.c_0.float())
    refused("h_0 has shape", h_0=call.h_0[:, :1])
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "grid")
    refused(r"asks for grid, which does not fit: .*float64")
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "fast")
    refused('"fast", expected step, grid or cluster')


def test_lengths_on_the_device_are_clamped() -> None:
    """Their values cannot be checked without waiting; no value makes a kernel read elsewhere."""
    call = on_gpu(make_call(Case(4, 3, 5, 8, layout="lengths", dtype=torch.float32)))
    wild = torch.tensor([-5, 2**40, 2], device=CUDA)
    tame = torch.tensor([0, 4, 2], device=CUDA)
    found, expected = run_layer(call.replace(lengths=wild)), run_layer(call.replace(lengths=tame))
    assert_same_bits(to_cpu(found), to_cpu(expected), "lengths out of range")
