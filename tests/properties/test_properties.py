"""Laws that hold for every shape and option, on examples that hypothesis chooses (the same in every run)."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import customlstm

CELLS = [
    None,
    customlstm.Cell("hard_sigmoid", "hard_tanh", "softsign"),
    customlstm.Cell(customlstm.PiecewiseLinear([-2, 0, 2], [0, 0.5, 1]), "elu", "identity"),
]
laws = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes and options of a module and its input."""
    hidden = draw(st.integers(1, 40))
    return {
        "steps": draw(st.integers(1, 9)),
        "batch": draw(st.integers(1, 20)),
        "features": draw(st.integers(1, 20)),
        "hidden": hidden,
        "options": {
            "num_layers": draw(st.integers(1, 2)),
            "bidirectional": draw(st.booleans()),
            "bias": draw(st.booleans()),
            "proj_size": draw(st.integers(0, hidden - 1)),
        },
        "cell": draw(st.sampled_from(CELLS)),
        "seed": draw(st.integers(0, 1000)),
    }


def build(problem: dict[str, Any], **more: Any) -> tuple[customlstm.LSTM, Tensor]:
    torch.manual_seed(problem["seed"])
    options = problem["options"] | {"cell": problem["cell"], "dtype": torch.float64} | more
    module = customlstm.LSTM(problem["features"], problem["hidden"], **options)
    return module, torch.randn(
        problem["steps"], problem["batch"], problem["features"], dtype=options["dtype"]
    )


def run(module: nn.Module, *args: Any, **options: Any) -> list[Tensor]:
    output, states = module(*args, **options)
    return [output, *states]


@laws
@given(problems(), st.booleans())
def test_fused_equals_reference_with_every_gradient(problem: dict[str, Any], ragged: bool) -> None:
    module, x = build(problem)
    lengths = torch.randint(0, len(x) + 1, (x.size(1),)) if ragged else None
    resets = torch.rand(x.shape[:2]) < 0.2 if ragged else None
    results = []
    for backend in ("fused", "reference"):
        with customlstm.use_backend(backend):
            leaf = x.clone().requires_grad_()
            outputs = run(module, leaf, lengths=lengths, resets=resets)
            weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) for y in outputs]
            loss = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
            results.append([*outputs, *torch.autograd.grad(loss, [leaf, *module.parameters()])])
    for fused, reference in zip(*results, strict=True):
        torch.testing.assert_close(fused, reference, atol=1e-11, rtol=1e-11)


@laws
@given(problems())
def test_plain_cell_equals_nn_lstm(problem: dict[str, Any]) -> None:
    module, x = build(problem | {"cell": None}, backend="fused")
    standard = nn.LSTM(problem["features"], problem["hidden"], dtype=torch.float64, **problem["options"])
    standard.load_state_dict(module.state_dict())
    for ours, theirs in zip(run(module, x), run(standard, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@laws
@given(problems(), st.integers(0, 9), st.sampled_from([torch.float32, torch.float64]))
def test_a_sequence_in_two_pieces_gives_the_same_bits(
    problem: dict[str, Any], cut: int, dtype: torch.dtype
) -> None:
    problem["options"]["bidirectional"] = False
    module, x = build(problem, backend="fused", dtype=dtype)
    cut = min(cut, len(x))
    whole, (h_n, c_n) = module(x)
    first, state = module(x[:cut])
    second, (h, c) = module(x[cut:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(h, h_n) and torch.equal(c, c_n)


@laws
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_batch_changes_no_bit(problem: dict[str, Any], random: Any) -> None:
    module, x = build(problem, backend="fused")
    lengths = torch.tensor([random.randint(0, len(x)) for _ in range(x.size(1))])
    order = torch.tensor(random.sample(range(x.size(1)), x.size(1)))
    output, (h_n, c_n) = module(x, lengths=lengths)
    shuffled, (h, c) = module(x[:, order], lengths=lengths[order])
    assert torch.equal(shuffled, output[:, order])
    assert torch.equal(h, h_n[:, order]) and torch.equal(c, c_n[:, order])


@laws
@given(problems(), st.randoms(use_true_random=False))
def test_lengths_equal_packing(problem: dict[str, Any], random: Any) -> None:
    module, x = build(problem, backend="fused")
    lengths = torch.tensor([random.randint(1, len(x)) for _ in range(x.size(1))])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, (h_n, c_n) = module(packed)
    padded, _ = nn.utils.rnn.pad_packed_sequence(output, total_length=len(x))
    expected, (h, c) = module(x, lengths=lengths)
    assert torch.equal(padded, expected)
    assert torch.equal(h_n, h) and torch.equal(c_n, c)


@laws
@given(problems(), st.integers(1, 8))
def test_a_reset_equals_running_the_pieces(problem: dict[str, Any], at: int) -> None:
    problem["options"]["num_layers"] = 1
    module, x = build(problem, backend="fused")
    at = min(at, len(x) - 1)
    if at == 0:
        return
    resets = torch.zeros(x.shape[:2], dtype=torch.bool)
    resets[at] = True
    output, _ = module(x, resets=resets)
    assert torch.equal(output, torch.cat([module(x[:at])[0], module(x[at:])[0]]))
