"""CUDA tensors without a GPU: fake ones have a device and a shape. And the words for GPUs that do not fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import customlstm
from customlstm import _binary, dispatch, gpu
from customlstm.launch_plan import H200, DeviceLimits

ops = torch.ops.customlstm
STANDARD = customlstm.Cell().encode()


def weights(size: int, hidden: int, projection: int, directions: int, dtype: torch.dtype) -> list[Tensor]:
    state = projection or hidden
    shapes = [(4 * hidden, size), (4 * hidden, state), (4 * hidden,), (4 * hidden,)]
    shapes += [(projection, hidden)] if projection else []
    return [torch.empty(shape, device="cuda", dtype=dtype) for shape in shapes * directions]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths_on", [None, "cpu", "cuda"])
def test_layer(dtype: torch.dtype, lengths_on: str | None) -> None:
    with FakeTensorMode():
        x = torch.empty(5, 3, 4, device="cuda", dtype=dtype)
        own = weights(4, 6, 2, 2, dtype)
        states = [torch.empty(2, 3, n, device="cuda", dtype=dtype) for n in (2, 6)]
        lengths = None if lengths_on is None else torch.empty(3, dtype=torch.int64, device=lengths_on)
        call = (x, *states, own, None, lengths, *[None] * 4, *STANDARD, True, True, True, 1.0, 0.0, 0.0)
        results = ops.lstm_layer(*call, 2)
        shapes = [(5, 3, 4), (2, 3, 2), (2, 3, 6), (5, 3, 12), (5, 3, 2, 4, 6), (5, 3, 12)]
        assert [tuple(r.shape) for r in results] == shapes
        assert [r.dtype for r in results] == [dtype] * 3 + [torch.float32] * 3
        assert {r.device.type for r in results} == {"cuda"}
        assert [r.numel() for r in ops.lstm_layer(*call, 0)][3:] == [0, 0, 0]

        needs = [1, 0, 1] + [k % 2 for k in range(10)]
        saved = (results[0], *results[3:])
        *named, grads = ops.lstm_layer_backward(*map(torch.empty_like, results[:4]), *call, *saved, needs)
        for grad, of, need in zip([*named, *grads], [x, *states, *own], needs, strict=True):
            assert tuple(grad.shape) == (tuple(of.shape) if need else (0,))
            assert grad.dtype == dtype and grad.device.type == "cuda"


def test_cell() -> None:
    with FakeTensorMode():
        x, h, c = (torch.empty(3, n, device="cuda") for n in (4, 6, 6))
        results = ops.lstm_cell(x, h, c, weights(4, 6, 0, 1, torch.float32), *STANDARD, True, False, 2)
        assert [tuple(r.shape) for r in results] == [(3, 6), (3, 6), (3, 6), (3, 4, 6), (0,)]
        assert {r.device.type for r in results} == {"cuda"}


def test_tensors_on_two_devices_are_refused() -> None:
    with FakeTensorMode():
        x = torch.empty(5, 3, 4, device="cuda")
        own = [w.to("cpu") for w in weights(4, 6, 0, 1, torch.float32)]
        with pytest.raises(RuntimeError, match="on cuda"):
            ops.lstm_layer(x, None, None, own, *[None] * 6, *STANDARD, True, False, False, 1.0, 0.0, 0.0, 0)


# --- explain, with an H200's limits


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if there were one: what ``explain`` asks torch and the library about it."""
    if not _binary.status().loaded:
        pytest.skip("the compiled library plans")
    monkeypatch.setattr(dispatch, "why_not_fused", lambda *args: None)
    monkeypatch.setattr(DeviceLimits, "from_device", lambda index: H200)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for kind in (customlstm.LSTM, customlstm.LSTMCell):  # fake tensors have no random numbers on a GPU
        monkeypatch.setattr(kind, "reset_parameters", lambda self: None)
    monkeypatch.delenv("CUSTOMLSTM_CUDA_VARIANT", raising=False)
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with FakeTensorMode():
        yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


def layer(hidden: int = 512, dtype: torch.dtype = torch.float32) -> tuple[customlstm.LSTM, Tensor]:
    place = {"device": "cuda", "dtype": dtype}
    return customlstm.LSTM(4, hidden, backend="fused", **place), torch.empty(5, 3, 4, **place)


@pytest.mark.usefixtures("h200")
def test_explain_plans_for_the_dtype_of_autocast() -> None:
    module, x = layer()
    x_0 = torch.empty(3, 4, device="cuda")
    single, double = customlstm.LSTMCell(4, 8, device="cuda"), layer(dtype=torch.float64)
    assert "forward float32, " in str(customlstm.explain(module, x))
    torch.set_autocast_enabled("cuda", True)
    for dtype in (torch.bfloat16, torch.float16):
        torch.set_autocast_dtype("cuda", dtype)
        for way in ("forward", "backward"):
            assert f"{way} {str(dtype)[6:]}, " in str(customlstm.explain(module, x))
        assert "forward float64, " in str(customlstm.explain(*double))
        # The cell state of a step stays float32, and the step is computed in it; unless it came rounded.
        assert "forward float32, " in str(customlstm.explain(single, x_0))
        rounded = [torch.empty(3, 8, device="cuda", dtype=dtype) for _ in range(2)]
        assert f"forward {str(dtype)[6:]}, " in str(customlstm.explain(single, x_0, rounded))


@pytest.mark.usefixtures("h200")
def test_explain_layer_norm() -> None:
    module, x = layer()
    cell = customlstm.Cell(layer_norm="cell")
    normalised = customlstm.LSTM(4, 512, cell=cell, backend="fused", device="cuda")
    assert "layer norm" not in str(customlstm.explain(module, x))
    found = str(customlstm.explain(normalised, x))
    assert "forward float32, step: " in found and "backward float32, step: " in found
    for variant in ("grid", "cluster"):
        why = "layer norm runs with step only: its sums over a row would cost an exchange each"
        assert found.count(f"not {variant}: {why}") == 2


@pytest.mark.usefixtures("h200")
@pytest.mark.parametrize("backend", ["fused", "auto"])
def test_explain_a_forced_variant_that_does_not_fit(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call raises, whatever the backend: the kernel is the fused one."""
    module, x = layer(1024)
    module.backend = backend
    for variant, refused in (("step", False), ("grid", True), ("cluster", True)):
        monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", variant)
        found = customlstm.explain(module, x)
        assert (found.backend, found.refused) == ("fused", refused)
        assert (found.reason is not None) == str(found).endswith("\nthe call raises RuntimeError") == refused
        if refused:
            assert f"CUSTOMLSTM_CUDA_VARIANT asks for {variant}, which does not fit: " in found.reason
            assert f", {variant}: hidden size 1024" in found.reason
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "grid")
    with torch.no_grad():  # forward alone fits
        assert not customlstm.explain(module, x).refused


@pytest.fixture
def coupled() -> customlstm.cells.UserCell:
    """Looked at before the tensors are fake: what it computes is recorded from real ones."""
    customlstm.cells.coupled.check()
    return customlstm.cells.coupled


def test_explain_plans_for_the_gates_of_the_cell(
    coupled: customlstm.cells.UserCell, h200: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "cluster")
    x = torch.empty(5, 3, 4, device="cuda")
    for cell, gates in ((customlstm.Cell(), ""), (coupled, " of 3 gates")):
        found = customlstm.explain(customlstm.LSTM(4, 1024, cell=cell, device="cuda"), x)
        assert f"cluster: hidden size 1024{gates} in 16 blocks of 64 units needs" in str(found)


@pytest.mark.usefixtures("h200")
def test_explain_a_misspelt_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same error as that of the call, which test_torch_side.py and test_gpu.py expect."""
    monkeypatch.setenv("CUSTOMLSTM_CUDA_VARIANT", "fast")
    with pytest.raises(
        RuntimeError, match='CUSTOMLSTM_CUDA_VARIANT is "fast", expected step, grid or cluster'
    ):
        customlstm.explain(*layer())


# --- GPUs that do not fit


@pytest.mark.parametrize(
    ("capability", "architectures", "reason"),
    [
        ((9, 0), "8.0;8.6;9.0+PTX;10.0", None),
        ((8, 9), "8.0 8.6", None),  # code for 8.6 runs on 8.9
        ((8, 0), "8.6", "built for 8.6 only"),
        ((9, 0), "9.0a", None),
        ((10, 0), "9.0a", "built for 9.0a only"),
        ((10, 0), "9.0+PTX", None),
        ((10, 0), "9.0a+PTX", "built for"),
        ((12, 0), "8.0 9.0 10.0", "built for 8.0 9.0 10.0 only"),
        ((10, 3), "10.0f", None),
        ((7, 5), "7.5", "compute capability 7.5, the fused kernels need 8.0"),
        ((9, 0), "Hopper", None),  # not known, not refused
        ((9, 0), "", None),
    ],
)
def test_which_gpus_a_build_is_for(
    capability: tuple[int, int], architectures: str, reason: str | None
) -> None:
    found = gpu.why_not_capability(capability, architectures)
    assert found is None if reason is None else found is not None and reason in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_why_not_without_a_gpu() -> None:
    reason = customlstm.dispatch.why_not_fused(torch.device("cuda"), torch.float32)
    assert reason is not None
    assert any(text in reason for text in ("has no CUDA kernels", "can use no GPU", "is not loaded"))
