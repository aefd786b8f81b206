"""customlstm.LSTMCell in float64 against nn.LSTMCell, and its projection against nn.LSTM of one step."""

import pytest
import torch
from support import BACKENDS, assert_all_near, assert_near, weighted_sum
from torch import Tensor, nn

import customlstm

B, INPUT, HIDDEN = 3, 4, 6


def results_and_gradients(
    module: nn.Module, x: Tensor, hx: tuple[Tensor, Tensor] | None
) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    given = (
        {} if hx is None else {"h_0": hx[0].clone().requires_grad_(), "c_0": hx[1].clone().requires_grad_()}
    )
    h, c = module(x, tuple(given.values()) or None)
    leaves = {"input": x, **given, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(weighted_sum([h, c]), list(leaves.values()))
    return {"h": h, "c": c} | dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("bias", [True, False])
def test_equal_to_nn_lstm_cell(bias: bool, batched: bool, given: bool, backend: str) -> None:
    theirs = nn.LSTMCell(INPUT, HIDDEN, bias, dtype=torch.float64)
    ours = customlstm.LSTMCell(INPUT, HIDDEN, bias, dtype=torch.float64, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    batch = [B] if batched else []
    x = torch.randn(*batch, INPUT, dtype=torch.float64)
    hx = tuple(torch.randn(*batch, HIDDEN, dtype=torch.float64) for _ in range(2)) if given else None
    assert customlstm.explain(ours, x, hx).backend == backend
    expected, actual = results_and_gradients(theirs, x, hx), results_and_gradients(ours, x, hx)
    assert_all_near(list(actual.values()), list(expected.values()), list(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_projection_equal_to_nn_lstm(batched: bool, backend: str) -> None:
    theirs = nn.LSTM(INPUT, HIDDEN, proj_size=2, dtype=torch.float64)
    ours = customlstm.LSTMCell(INPUT, HIDDEN, dtype=torch.float64, proj_size=2, backend=backend)
    ours.load_state_dict({name.removesuffix("_l0"): w for name, w in theirs.state_dict().items()})
    batch = [B] if batched else []
    x = torch.randn(*batch, INPUT, dtype=torch.float64)
    h, c = (torch.randn(*batch, size, dtype=torch.float64) for size in (2, HIDDEN))
    expected = theirs(x.unsqueeze(0), (h.unsqueeze(0), c.unsqueeze(0)))[1]
    assert_all_near(ours(x, (h, c)), [expected[0][0], expected[1][0]], ["h", "c"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_of_cells_is_a_layer(backend: str) -> None:
    cell = customlstm.Cell("hard_sigmoid", "softsign", "identity")
    layer = customlstm.LSTM(INPUT, HIDDEN, dtype=torch.float64, cell=cell, backend=backend)
    step = customlstm.LSTMCell(INPUT, HIDDEN, dtype=torch.float64, cell=cell, backend=backend)
    step.load_state_dict({name.removesuffix("_l0"): w for name, w in layer.state_dict().items()})
    x = torch.randn(7, B, INPUT, dtype=torch.float64)
    state, steps = None, []
    for row in x:
        state = step(row, state)
        steps.append(state)
    h_all, c_all = layer.states(x)
    assert_near(h_all, torch.stack([h for h, _ in steps]), "h")
    assert_near(c_all, torch.stack([c for _, c in steps]), "c")


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: str) -> None:
    step = customlstm.LSTMCell(INPUT, HIDDEN, backend=backend)
    h, c = step(torch.randn(0, INPUT))
    assert h.shape == c.shape == (0, HIDDEN)
    assert torch.autograd.grad(h.sum() + c.sum(), step.weight_hh)[0].count_nonzero() == 0
