"""customlstm.LSTM in float64 against nn.LSTM: outputs, states, every gradient, every option they share."""

import itertools

import pytest
import torch
from support import BACKENDS, assert_all_near, lstm_pair, weighted_sum
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import customlstm

T, B, INPUT, HIDDEN = 5, 3, 4, 6
LENGTHS = {"packed sorted": [5, 3, 2], "packed unsorted": [2, 5, 3]}

options = pytest.mark.parametrize(
    ("layers", "bidirectional", "proj_size", "bias"),
    list(itertools.product([1, 3], [False, True], [0, 3], [True, False])),
)


def outputs_and_gradients(
    module: nn.Module, layout: str, batch_first: bool, x: Tensor, hx: tuple[Tensor, Tensor] | None
) -> dict[str, Tensor]:
    """Everything that one call and its backward compute, from fresh leaves."""
    x = x.clone().requires_grad_()
    given = (
        {} if hx is None else {"h_0": hx[0].clone().requires_grad_(), "c_0": hx[1].clone().requires_grad_()}
    )
    input = x
    if layout.startswith("packed"):
        lengths = LENGTHS[layout]
        input = pack_padded_sequence(
            x, torch.tensor(lengths), batch_first, enforce_sorted=layout.endswith(" sorted")
        )
    output, (h_n, c_n) = module(input, tuple(given.values()) or None)
    found = {}
    if isinstance(output, PackedSequence):
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert (getattr(output, name) is None) == (getattr(input, name) is None)
            if getattr(output, name) is not None:
                assert torch.equal(getattr(output, name), getattr(input, name))
        output = output.data
    leaves = {"input": x, **given, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(weighted_sum([output, h_n, c_n]), list(leaves.values()))
    found = {"output": output, "h_n": h_n, "c_n": c_n}
    return found | {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("layout", ["padded", "unbatched", *LENGTHS])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@options
def test_equal_to_nn_lstm(
    layers: int, bidirectional: bool, proj_size: int, bias: bool, batch_first: bool, layout: str, given: bool,
    backend: str,
) -> None:  # fmt: skip
    theirs, ours = lstm_pair(backend, INPUT, HIDDEN, layers, bias, batch_first, 0.0, bidirectional, proj_size)
    batch = [] if layout == "unbatched" else [B]
    x = torch.randn(T, *batch, INPUT, dtype=torch.float64)
    if batch_first and batch:
        x = x.transpose(0, 1)
    rows, state = layers * (1 + bidirectional), proj_size or HIDDEN
    hx = None
    if given:
        hx = tuple(torch.randn(rows, *batch, size, dtype=torch.float64) for size in (state, HIDDEN))
    assert customlstm.explain(ours, x, hx).backend == backend
    expected = outputs_and_gradients(theirs, layout, batch_first, x, hx)
    actual = outputs_and_gradients(ours, layout, batch_first, x, hx)
    assert_all_near(list(actual.values()), list(expected.values()), list(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["padded", "packed unsorted"])
def test_dropout_draws_the_same_random_numbers(backend: str, layout: str) -> None:
    theirs, ours = lstm_pair(backend, INPUT, HIDDEN, num_layers=3, dropout=0.4, bidirectional=True)
    x = torch.randn(T, B, INPUT, dtype=torch.float64)
    torch.manual_seed(3)
    expected = outputs_and_gradients(theirs, layout, False, x, None)
    torch.manual_seed(3)
    actual = outputs_and_gradients(ours, layout, False, x, None)
    assert_all_near(list(actual.values()), list(expected.values()), list(expected))
    # and none in eval mode
    ours.eval(), theirs.eval()
    assert_all_near(ours(x)[1], theirs(x)[1], ["h_n", "c_n"])
    assert torch.equal(ours(x)[0], ours(x)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", ["transposed", "sliced", "expanded", "stepped"])
def test_input_of_any_strides(backend: str, view: str) -> None:
    theirs, ours = lstm_pair(backend, INPUT, HIDDEN)
    x = {
        "transposed": lambda: torch.randn(INPUT, B, T, dtype=torch.float64).permute(2, 1, 0),
        "sliced": lambda: torch.randn(T + 2, B + 1, INPUT + 3, dtype=torch.float64)[1:-1, 1:, 2:-1],
        "expanded": lambda: torch.randn(T, 1, INPUT, dtype=torch.float64).expand(T, B, INPUT),
        "stepped": lambda: torch.randn(2 * T, B, 2 * INPUT, dtype=torch.float64)[::2, :, ::2],
    }[view]()
    assert not x.is_contiguous()
    hx = tuple(torch.randn(B, HIDDEN, 1, dtype=torch.float64).permute(2, 0, 1) for _ in range(2))
    expected = outputs_and_gradients(theirs, "padded", False, x, hx)
    actual = outputs_and_gradients(ours, "padded", False, x, hx)
    assert_all_near(list(actual.values()), list(expected.values()), list(expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_trains_like_nn_lstm(backend: str) -> None:
    """200 steps of Adam on the same data from the same weights: losses equal within 1e-4."""
    losses = []
    theirs, ours = lstm_pair(backend, INPUT, HIDDEN, bidirectional=True)
    for module in (theirs, ours):
        generator = torch.Generator().manual_seed(2)
        optimizer = torch.optim.Adam(module.parameters(), 0.02)
        history = []
        for _ in range(200):
            x = torch.randn(T, B, INPUT, generator=generator, dtype=torch.float64)
            output, _ = module(x)
            loss = (output[:, :, 0] - x.cumsum(0)[:, :, 0].tanh()).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses.append(torch.tensor(history))
    assert losses[1][-20:].mean() < 0.5 * losses[1][:20].mean()  # it did learn
    assert (losses[0] - losses[1]).abs().max() < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_no_step(backend: str) -> None:
    theirs, ours = lstm_pair(backend, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    empty = torch.randn(T, 0, INPUT, dtype=torch.float64)
    assert_all_near(
        [ours(empty)[0], *ours(empty)[1]], [theirs(empty)[0], *theirs(empty)[1]], ["output", "h_n", "c_n"]
    )
    # nn.LSTM refuses a sequence without steps; here the states are handed through, their gradients too.
    hx = tuple(torch.randn(4, B, HIDDEN, dtype=torch.float64, requires_grad=True) for _ in range(2))
    output, (h_n, c_n) = ours(torch.randn(0, B, INPUT, dtype=torch.float64), hx)
    assert output.shape == (0, B, 2 * HIDDEN)
    assert torch.equal(h_n, hx[0]) and torch.equal(c_n, hx[1])
    gradients = torch.autograd.grad((2 * h_n + c_n.sin()).sum(), hx)
    assert_all_near(gradients, [torch.full_like(hx[0], 2.0), hx[1].detach().cos()], ["h_0", "c_0"])
