"""Which backend runs, why, and that it is said: why_not_fused, the warning, use_backend, explain."""

import os
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest
import torch
from support import BACKENDS
from torch.utils._python_dispatch import TorchDispatchMode

import customlstm
from customlstm import _binary, dispatch, thread_plan

FUSED = "fused" in BACKENDS
needs_library = pytest.mark.skipif(not FUSED, reason="no compiled library")
x = torch.zeros(5, 3, 4)


class Tagged(torch.Tensor):
    """A tensor subclass."""


def run(code: str, **environment: str) -> str:
    """What a fresh Python process prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_is_fused_on_the_cpu(dtype: torch.dtype) -> None:
    module = customlstm.LSTM(4, 6, dtype=dtype, backend="fused")
    assert customlstm.explain(module, x.to(dtype)).backend == "fused"
    assert module(x.to(dtype))[0].dtype == dtype


@needs_library
@pytest.mark.parametrize(
    ("device", "dtype", "cell", "reason"),
    [
        ("cpu", torch.float32, "lstm", None),
        ("cpu", torch.float8_e5m2, "lstm", "no fused kernel for torch.float8_e5m2"),
        ("cpu", torch.float32, "gru", "no fused kernel for cell 'gru'"),
        ("mps", torch.float32, "lstm", "this build has no fused kernel for device 'mps'"),
        ("meta", torch.float32, "lstm", "tensors on the meta device have no data"),
    ],
)
def test_reasons(device: str, dtype: torch.dtype, cell: str, reason: str | None) -> None:
    found = dispatch.why_not_fused(torch.device(device), dtype, cell)
    assert found is None if reason is None else reason in found


@needs_library
def test_silent_choice_and_loud_refusal_give_one_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_warned", set())
    tagged = x.as_subclass(Tagged)
    reason = "the tensors are of the subclass Tagged"
    with pytest.raises(RuntimeError, match=f"backend='fused' cannot run: {reason}"):
        customlstm.LSTM(4, 6, backend="fused")(tagged)
    module = customlstm.LSTM(4, 6)
    with pytest.warns(customlstm.FallbackWarning, match=reason) as caught:
        module(tagged)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(tagged)  # said once
    explanation = customlstm.explain(module, tagged)
    assert explanation.backend == "reference" and explanation.reason.startswith(reason)
    with pytest.warns(customlstm.FallbackWarning, match=r"torch\.func transform"):
        torch.func.vmap(lambda one: module(one)[0])(x[None])


def test_a_tensor_subclass_survives() -> None:
    assert type(customlstm.LSTM(4, 6)(x.as_subclass(Tagged))[0]) is Tagged


def test_use_backend() -> None:
    module = customlstm.LSTM(4, 6)

    def backend() -> str:
        return customlstm.explain(module, x).backend

    outside = backend()
    with customlstm.use_backend("reference"):
        assert backend() == "reference"
        assert (
            module(x)[0].grad_fn.name() == "StackBackward0" or "lstm_layer" not in module(x)[0].grad_fn.name()
        )
        with customlstm.use_backend("auto"):
            assert backend() == outside
        assert backend() == "reference"
        found = []
        thread = threading.Thread(target=lambda: found.append(backend()))
        thread.start()
        thread.join()
        assert found == [outside]  # another thread has its own
    assert backend() == outside and dispatch._open == ()
    with pytest.raises(KeyError), customlstm.use_backend("reference"):
        raise KeyError
    assert backend() == outside and dispatch._open == ()
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'fused', 'reference', got 'fast'"):
        with customlstm.use_backend("fast"):
            pass


def test_use_backend_overrides_the_module() -> None:
    module = customlstm.LSTM(4, 6, backend="reference")
    with customlstm.use_backend("auto"):
        assert customlstm.explain(module, x).backend == ("fused" if FUSED else "reference")


@needs_library
def test_explain_fused() -> None:
    module = customlstm.LSTM(4, 6, 2, bidirectional=True, proj_size=3)
    explanation = customlstm.explain(module, x)
    isa, rest = torch.ops.customlstm.cpu_isa(), "projected to 3, both directions, keeps what backward needs"
    assert explanation == customlstm.Explanation(
        "fused",
        f"cpu {isa}",
        (
            f"layer 0: customlstm::lstm_layer, 4 -> 6, {rest}",
            f"layer 1: customlstm::lstm_layer, 6 -> 6, {rest}",
        ),
        None,
        plans=("forward, 1 thread\nbackward, 1 thread",) * 2,
    )
    lines = str(explanation).splitlines()
    assert lines[0] == f"fused: cpu {isa}" and len(lines) == 7
    assert lines[2:4] == ["    forward, 1 thread", "    backward, 1 thread"]
    with torch.no_grad():
        assert customlstm.explain(module, x).layers[0].endswith("keeps nothing")
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 1]))
    hx = (torch.zeros(4, 3, 3), torch.zeros(4, 3, 6))
    assert customlstm.explain(module, packed, hx, resets=torch.zeros(5, 3).bool()).backend == "fused"


@needs_library
def test_explain_names_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every layer, by its own input size, with the threads that torch has."""
    asked = []

    def record(**sizes: Any) -> thread_plan.ThreadPlan:
        asked.append(sizes)
        return plan(**sizes)

    plan = thread_plan.plan
    monkeypatch.setattr(thread_plan, "plan", record)
    monkeypatch.setattr(thread_plan, "_threads", lambda: 2)
    shared = "2 threads, which share the units of every step"
    few, many = torch.zeros(100, 1, 512), torch.zeros(64, 128, 100)
    found = customlstm.explain(customlstm.LSTM(512, 512, 2), few)
    assert found.plans == (f"forward, {shared}\nbackward, {shared}",) * 2
    with torch.no_grad():
        found = customlstm.explain(customlstm.LSTM(100, 100, batch_first=True), many)
        assert found.plans == ("forward, 2 threads, each with sequences of its own",)
        found = customlstm.explain(customlstm.LSTM(100, 400, bidirectional=True), many[:, :1])
        assert found.plans == ("forward, 2 threads, each with a direction of its own",)
        asked.clear()
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 1]))
        customlstm.explain(customlstm.LSTM(4, 6, 2, bidirectional=True, proj_size=3), packed)
        customlstm.explain(customlstm.LSTMCell(4, 6), x[0])
        customlstm.explain(customlstm.LSTMCell(4, 6), x[0, 0])
    names = ("steps", "batch", "input_size", "hidden_size", "proj_size", "directions", "backward")
    assert [tuple(sizes[name] for name in names) for sizes in asked] == [
        (5, 3, 4, 6, 3, 2, False),
        (5, 3, 6, 6, 3, 2, False),
        (1, 3, 4, 6, 0, 1, False),
        (1, 1, 4, 6, 0, 1, False),
    ]


def test_explain_reference() -> None:
    step = customlstm.LSTMCell(4, 6, backend="reference")
    explanation = customlstm.explain(step, x[0])
    assert (explanation.backend, explanation.kernel) == ("reference", "plain PyTorch on cpu")
    assert str(explanation) == (
        "reference: plain PyTorch on cpu\n"
        "  layer 0: reference of lstm_cell, 4 -> 6, keeps what backward needs\n"
        "not fused, because backend='reference' was asked for"
    )


def test_explain_of_another_module() -> None:
    expected = r"module must be a customlstm\.LSTM or customlstm\.LSTMCell, got "
    with pytest.raises(TypeError, match=expected + r"torch\.nn\.modules\.rnn\.LSTM; .*to_customlstm"):
        customlstm.explain(torch.nn.LSTM(4, 6), x)
    with pytest.raises(TypeError, match=expected + r"torch\.nn\..*\.Sequential; pass the layer itself"):
        customlstm.explain(torch.nn.Sequential(customlstm.LSTM(4, 6)), x)
    with pytest.raises(TypeError, match="LSTMCell takes no lengths; leave lengths out"):
        customlstm.explain(customlstm.LSTMCell(4, 6), x[0], lengths=torch.tensor([1]))


def test_explain_computes_nothing() -> None:
    module, ran = customlstm.LSTM(4, 6), []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            ran.append(str(func))
            return func(*args, **(kwargs or {}))

    with Record():
        customlstm.explain(module, x)
        assert [name for name in ran if "lstm_layer" in name or "mm" in name] == []
        module(x)
    assert ran  # it would have seen them


@needs_library
def test_explain_a_refusal() -> None:
    explanation = customlstm.explain(customlstm.LSTM(4, 6, backend="fused"), x.as_subclass(Tagged))
    assert explanation.refused and "the call raises RuntimeError" in str(explanation)


def test_without_the_library() -> None:
    """Everything works on the reference; one warning; 'fused' raises; graphs still hold one operator."""
    printed = run(
        """
import warnings, torch, customlstm
from customlstm import _binary
assert not _binary.status().loaded
x = torch.randn(5, 3, 4, requires_grad=True)
module = customlstm.LSTM(4, 6, 2, bidirectional=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        module(x)[0].sum().backward()
    customlstm.LSTMCell(4, 6)(x[0])
print([w.category.__name__ for w in caught])
try:
    customlstm.LSTM(4, 6, backend="fused")(x)
except RuntimeError as error:
    print(_binary.status().reason in str(error))
print(_binary.status().reason in customlstm.explain(module, x).reason)
warnings.simplefilter("ignore")
scripted = torch.jit.script(module)
print(torch.allclose(scripted(x)[0], module(x)[0], atol=1e-6))
gradient, = torch.autograd.grad(scripted(x)[0].sum(), x)
print(torch.allclose(gradient, torch.autograd.grad(module(x)[0].sum(), x)[0], atol=1e-6))
compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
print(torch.allclose(compiled(x)[0], module(x)[0], atol=1e-6))
""",
        CUSTOMLSTM_DISABLE_BINARY="1",
    )
    assert printed.split("\n")[:-1] == ["['FallbackWarning']", *["True"] * 5]


def test_status_says_what_backends_there_are() -> None:
    status = _binary.status()
    assert status.loaded == FUSED and (status.reason == "") == FUSED


@needs_library
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "compiled"])
def test_under_autocast_a_cell_is_built_only_for_the_dtype_that_runs(
    graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[torch.dtype] = []

    def refuse(cell: customlstm.cells.UserCell, dtype: torch.dtype, device: torch.device) -> None:
        built.append(dtype)
        raise customlstm.jit.BuildError("not now")

    monkeypatch.setattr(customlstm.jit, "register", refuse)
    monkeypatch.setattr(dispatch, "_compiled_reasons", {})
    layer = customlstm.LSTM(4, 3, cell=customlstm.cells.janet)
    wide = customlstm.LSTM(4, 3, cell=customlstm.cells.janet, dtype=torch.float64)
    step = customlstm.LSTMCell(4, 3, cell=customlstm.cells.janet)
    narrow = (torch.zeros(3, 3, dtype=torch.bfloat16), torch.zeros(3, 3, dtype=torch.bfloat16))
    for module, arguments, expected in (
        (layer, (x,), torch.bfloat16),
        (wide, (x.double(),), torch.float64),
        (step, (x[0],), torch.float32),  # its state is not rounded
        (step, (x[0], narrow), torch.bfloat16),
    ):
        called = torch.compile(module, backend="eager") if graph else module
        built.clear()
        with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
            warnings.simplefilter("ignore", customlstm.FallbackWarning)
            called(*arguments)
            assert built == [expected]
            built.clear()
            assert "not now" in customlstm.explain(module, *arguments).reason
        assert built == [expected]
