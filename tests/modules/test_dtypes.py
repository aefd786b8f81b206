"""16-bit semantics of the reference, mixed precision, and what each dtype may lose."""

import pytest
import torch
from support import BACKENDS, assert_near
from torch import nn

import customlstm

T, B, INPUT, HIDDEN = 9, 4, 8, 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reference_computes_16_bit_in_float32(dtype: torch.dtype) -> None:
    """The specification of the kernels: everything in float32 within a layer, results rounded once."""
    narrow = customlstm.LSTM(INPUT, HIDDEN, bidirectional=True, proj_size=5, dtype=dtype, backend="reference")
    wide = customlstm.LSTM(INPUT, HIDDEN, bidirectional=True, proj_size=5, backend="reference")
    wide.load_state_dict(narrow.state_dict())
    x = torch.randn(T, B, INPUT, dtype=dtype)
    output, states = narrow(x)
    expected, expected_states = wide(x.float())
    for actual, rounded in zip([output, *states], [expected, *expected_states], strict=True):
        assert torch.equal(actual, rounded.to(dtype))
    assert torch.equal(narrow.states(x)[1], wide.states(x.float())[1].to(dtype))


def errors(module: nn.LSTM | customlstm.LSTM, exact: nn.LSTM, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Root mean square error against ``exact``, of every result and every gradient."""
    found = []
    for m in (module, exact):
        input = x.to(m.weight_ih_l0.dtype).requires_grad_()
        output, (h_n, c_n) = m(input)
        gradients = torch.autograd.grad(output.double().pow(2).mean(), [input, *m.parameters()])
        found.append([output, h_n, c_n, *gradients])
    names = ["output", "h_n", "c_n", "input", *dict(exact.named_parameters())]
    pairs = zip(names, *found, strict=True)
    return {name: (a.double() - e).pow(2).mean().sqrt() for name, a, e in pairs}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_at_most_twice_that_of_pytorch(dtype: torch.dtype, backend: str) -> None:
    """Against float64, allowed is twice what nn.LSTM or the plain formula loses in that dtype."""
    theirs = nn.LSTM(INPUT, HIDDEN, 2, dtype=dtype)
    ours = customlstm.LSTM(INPUT, HIDDEN, 2, dtype=dtype, backend=backend)
    plain = customlstm.LSTM(INPUT, HIDDEN, 2, dtype=dtype, backend="reference")
    exact = nn.LSTM(INPUT, HIDDEN, 2, dtype=torch.float64)
    for module in (ours, plain, exact):
        module.load_state_dict(theirs.state_dict())
    x = torch.randn(40, 32, INPUT).to(dtype)
    lost, by_theirs, by_plain = (errors(module, exact, x) for module in (ours, theirs, plain))
    for name, error in lost.items():
        # nn.LSTM alone is the measure, but for sums over all steps: there it does better than plain PyTorch.
        summed = name.startswith(("weight", "bias"))
        allowed = 2 * (max(by_theirs[name], by_plain[name]) if summed else by_theirs[name])
        assert error <= allowed, f"{name}: {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, backend: str) -> None:
    module = customlstm.LSTM(INPUT, HIDDEN, backend=backend)
    narrow = customlstm.LSTM(INPUT, HIDDEN, dtype=dtype, backend=backend)
    narrow.load_state_dict(module.state_dict())
    x, hx = torch.randn(T, B, INPUT), tuple(torch.randn(1, B, HIDDEN) for _ in range(2))
    expected = narrow(x.to(dtype), tuple(s.to(dtype) for s in hx))
    with torch.autocast("cpu", dtype):
        output, states = module(x, hx)
        double = customlstm.LSTM(INPUT, HIDDEN, dtype=torch.float64, backend=backend)(x.double())[0]
    for actual, e in zip([output, *states], [expected[0], *expected[1]], strict=True):
        assert torch.equal(actual, e)
    assert double.dtype == torch.float64
    # the gradients arrive in the dtype of the parameters
    output.float().sum().backward()
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_a_step(dtype: torch.dtype, backend: str) -> None:
    """Dtypes of nn.LSTMCell: a float32 cell state stays so, and is not rounded."""
    theirs, ours = nn.LSTMCell(INPUT, HIDDEN), customlstm.LSTMCell(INPUT, HIDDEN, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    x, h, c = torch.randn(B, INPUT), torch.randn(B, HIDDEN), torch.randn(B, HIDDEN) + 100.0
    narrow = (x.to(dtype), (h.to(dtype), c.to(dtype)))
    for input, hx in [(x, None), (x, (h, c)), (narrow[0], (h, c)), (x, (narrow[1][0], c)), narrow]:
        with torch.autocast("cpu", dtype):
            expected, actual = theirs(input, hx), ours(input, hx)
        assert [t.dtype for t in actual] == [t.dtype for t in expected]
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.float(), e.float(), rtol=0.03, atol=0.03)
    rounded = customlstm.LSTMCell(INPUT, HIDDEN, backend=backend)
    rounded.load_state_dict({name: w.to(dtype) for name, w in theirs.state_dict().items()})
    with torch.autocast("cpu", dtype):
        states = ours(x, (h, c))
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)(x, (h, c))
    expected = rounded(x.to(dtype).float(), (h.to(dtype).float(), c))
    for given in (states, compiled):
        assert all(torch.equal(a, e) for a, e in zip(given, expected, strict=True))
    states[1].sum().backward()
    assert {p.grad.dtype for p in ours.parameters()} == {torch.float32}


def test_reference_under_autocast_keeps_float32_inside() -> None:
    """Autocast must not reach into the reference: its float32 accumulation is the specification."""
    module = customlstm.LSTM(INPUT, HIDDEN, backend="reference")
    narrow = customlstm.LSTM(INPUT, HIDDEN, dtype=torch.bfloat16, backend="reference")
    narrow.load_state_dict(module.state_dict())
    x = torch.randn(T, B, INPUT)
    c_all = narrow.states(x.bfloat16())[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(module.states(x)[1].double(), c_all.double(), tolerance=0.0)


def test_autocast_inside_a_graph_and_a_script() -> None:
    module = customlstm.LSTM(INPUT, HIDDEN)
    x = torch.randn(T, B, INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        expected = module(x)[0]
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)(x)[0]
    assert compiled.dtype == torch.bfloat16
    assert torch.equal(compiled, expected)
