"""lengths, resets and states against what they stand for: sequences run one by one, and piece by piece."""

import pytest
import torch
from support import BACKENDS, assert_all_near, assert_near, weighted_sum
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import customlstm

T, B, INPUT, HIDDEN = 7, 5, 4, 6
LENGTHS = [3, 7, 0, 1, 5]

backends = pytest.mark.parametrize("backend", BACKENDS)
shapes = pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 3, "bidirectional": True, "proj_size": 2, "batch_first": True, "bias": False},
    ],
    ids=["simple", "deep both ways", "projected batch first"],
)


def make(backend: str, options: dict, cell: customlstm.Cell | None = None) -> customlstm.LSTM:
    return customlstm.LSTM(INPUT, HIDDEN, dtype=torch.float64, backend=backend, cell=cell, **options)


def random_states(module: customlstm.LSTM, batch: list[int]) -> tuple[Tensor, Tensor]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    sizes = (module.proj_size or HIDDEN, HIDDEN)
    return tuple(torch.randn(rows, *batch, size, dtype=torch.float64, requires_grad=True) for size in sizes)


def time_first(module: customlstm.LSTM, tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1) if module.batch_first else tensor


def in_pieces(
    module: customlstm.LSTM, x: Tensor, resets: Tensor, hx: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One unbatched sequence, cut where ``resets`` is True, by separate calls: output, c_all, h_n, c_n.

    The forward rows of hx belong to the first piece, the reverse rows to the last.
    """
    forward = torch.arange(hx[0].size(0)) % (2 if module.bidirectional else 1) == 0
    starts = sorted({0, *resets.nonzero().flatten().tolist()})
    ends = [*starts[1:], len(x)]
    results = []
    for start, end in zip(starts, ends, strict=True):
        first, last = start == 0 and not resets[0], end == len(x)
        keep = (forward & first) | (~forward & last)
        piece = tuple(torch.where(keep.unsqueeze(1), s, 0.0) for s in hx)
        output, states = module(x[start:end], piece)
        results.append((output, module.states(x[start:end], piece)[1], states))
    h_n, c_n = (torch.where(forward.unsqueeze(1), results[-1][2][k], results[0][2][k]) for k in range(2))
    return torch.cat([r[0] for r in results]), torch.cat([r[1] for r in results]), h_n, c_n


def one_by_one(
    module: customlstm.LSTM, x: Tensor, hx: tuple[Tensor, Tensor], lengths: list[int], resets: Tensor
) -> list[Tensor]:
    """Every sequence of time-first x [T, B, L] by itself, padded with zeros: output, c_all, h_n, c_n."""
    columns: list[list[Tensor]] = [[], [], [], []]
    for b, length in enumerate(lengths):
        own = tuple(s[:, b] for s in hx)
        if length == 0:
            width = HIDDEN * (2 if module.bidirectional else 1)
            found = (x.new_zeros(0, width // HIDDEN * own[0].size(1)), x.new_zeros(0, width), *own)
        else:
            found = in_pieces(module, x[:length, b], resets[:length, b], own)
        for column, value in zip(columns, found, strict=True):
            column.append(value)
    padded = [
        torch.stack([nn.functional.pad(v, (0, 0, 0, len(x) - len(v))) for v in column], 1)
        for column in columns[:2]
    ]
    return [*padded, *(torch.stack(column, 1) for column in columns[2:])]


def check(
    module: customlstm.LSTM, lengths: list[int] | None, resets: Tensor | None, with_output: bool = True
) -> None:
    """Results and gradients of one call with ``lengths`` and ``resets`` against :func:`one_by_one`."""
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    hx = random_states(module, [B])
    given = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    given |= {} if resets is None else {"resets": time_first(module, resets)}
    output, states = module(time_first(module, x), hx, **given)
    h_all, c_all = module.states(time_first(module, x), hx, **given)
    assert torch.equal(h_all, output)
    actual = [time_first(module, output), time_first(module, c_all), *states]
    cuts = torch.zeros(T, B, dtype=torch.bool) if resets is None else resets
    expected = one_by_one(module, x, hx, [T] * B if lengths is None else lengths, cuts)
    assert_all_near(actual, expected, ["output", "c_all", "h_n", "c_n"])
    leaves = [x, *hx, *module.parameters()]
    assert_all_near(
        torch.autograd.grad(weighted_sum(actual), leaves),
        torch.autograd.grad(weighted_sum(expected), leaves),
        ["input", "h_0", "c_0", *dict(module.named_parameters())],
    )


@backends
@shapes
def test_lengths_are_sequences_run_one_by_one(options: dict, backend: str) -> None:
    check(make(backend, options), LENGTHS, None)


@backends
@shapes
def test_resets_are_pieces_run_one_by_one(options: dict, backend: str) -> None:
    check(make(backend, options), None, torch.rand(T, B) < 0.3)


@backends
@shapes
def test_lengths_and_resets_together(options: dict, backend: str) -> None:
    cell = customlstm.Cell(
        "hard_sigmoid", customlstm.PiecewiseLinear([-1.0, 0.5, 2.0], [-1.0, 0.0, 1.0]), "softsign"
    )
    resets = torch.rand(T, B) < 0.4
    resets[0], resets[-1] = True, True
    check(make(backend, options, cell), LENGTHS, resets)


@backends
def test_lengths_of_any_integer_dtype_and_unbatched(backend: str) -> None:
    module = make(backend, {"bidirectional": True})
    x = torch.randn(T, B, INPUT, dtype=torch.float64)
    expected = module(x, lengths=torch.tensor(LENGTHS))[0]
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(module(x, lengths=torch.tensor(LENGTHS, dtype=dtype))[0], expected)
    strided = torch.tensor([LENGTHS, LENGTHS]).t().contiguous()[:, 1]
    assert not strided.is_contiguous()
    assert torch.equal(module(x, lengths=strided)[0], expected)
    for lengths in (torch.tensor(3), torch.tensor([3])):
        output, (h_n, _) = module(x[:, 0], lengths=lengths)
        assert_near(output, expected[:, 0])
        assert h_n.shape == (2, HIDDEN)


@backends
def test_unbatched_resets(backend: str) -> None:
    module = make(backend, {"bidirectional": True, "batch_first": True})
    x = torch.randn(T, INPUT, dtype=torch.float64)
    resets = torch.tensor([0, 0, 1, 0, 1, 0, 0]).bool()
    output, states = module(x, resets=resets)
    batched, batched_states = module(x.unsqueeze(0), resets=resets.unsqueeze(0))
    assert_near(output, batched[0])
    assert_all_near(states, [s[:, 0] for s in batched_states], ["h_n", "c_n"])


@backends
@shapes
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_equals_lengths(options: dict, enforce_sorted: bool, backend: str) -> None:
    """nn.LSTM's packed form and lengths are two ways of saying the same, resets included."""
    module = make(backend, options)
    lengths = torch.tensor([7, 5, 5, 3, 1] if enforce_sorted else [3, 7, 1, 5, 5])
    x, hx, resets = (
        torch.randn(T, B, INPUT, dtype=torch.float64),
        random_states(module, [B]),
        torch.rand(T, B) < 0.3,
    )
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    given = {"resets": time_first(module, resets)}
    output, states = module(packed, hx, **given)
    h_all, c_all = module.states(packed, hx, **given)
    padded, expected_states = module(time_first(module, x), hx, lengths=lengths, **given)
    _, expected_c = module.states(time_first(module, x), hx, lengths=lengths, **given)
    assert torch.equal(h_all.data, output.data)
    actual = [
        pad_packed_sequence(output, total_length=T)[0],
        pad_packed_sequence(c_all, total_length=T)[0],
        *states,
    ]
    expected = [time_first(module, padded), time_first(module, expected_c), *expected_states]
    assert_all_near(actual, expected, ["output", "c_all", "h_n", "c_n"])
    leaves = [*hx, *module.parameters()]
    assert_all_near(
        torch.autograd.grad(weighted_sum(actual), leaves),
        torch.autograd.grad(weighted_sum(expected), leaves),
        ["h_0", "c_0", *dict(module.named_parameters())],
    )


@backends
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_padding_is_never_read(poison: float, backend: str) -> None:
    module = make(backend, {"bidirectional": True, "num_layers": 2})
    lengths = torch.tensor(LENGTHS)
    x = torch.randn(T, B, INPUT, dtype=torch.float64)
    padding = (torch.arange(T).unsqueeze(1) >= lengths).unsqueeze(-1)
    leaves = list(module.parameters())
    clean = module(x, lengths=lengths)[0]
    poisoned_x = x.masked_fill(padding, poison).requires_grad_()
    poisoned = module(poisoned_x, lengths=lengths)[0]
    assert torch.equal(clean, poisoned)
    assert torch.equal(
        poisoned.masked_select(padding), torch.zeros(1).double().expand(int(padding.sum()) * 2 * HIDDEN)
    )
    expected = torch.autograd.grad(weighted_sum([clean]), leaves)
    *actual, grad_x = torch.autograd.grad(weighted_sum([poisoned]), [*leaves, poisoned_x])
    assert_all_near(actual, expected, list(dict(module.named_parameters())))
    assert grad_x.masked_select(padding).count_nonzero() == 0


@backends
def test_no_gradient_crosses_a_reset(backend: str) -> None:
    module = make(backend, {"bidirectional": True})
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[4] = True
    output, _ = module(x, resets=resets)
    before, after = (
        torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in (output[:4], output[4:])
    )
    assert before[4:].count_nonzero() == 0 and before[:4].count_nonzero() == before[:4].numel()
    assert after[:4].count_nonzero() == 0 and after[4:].count_nonzero() == after[4:].numel()


@backends
def test_states_agree_with_the_output(backend: str) -> None:
    module = make(backend, {"num_layers": 2, "bidirectional": True})
    x, lengths = torch.randn(T, B, INPUT, dtype=torch.float64), torch.tensor(LENGTHS)
    output, (_, c_n) = module(x, lengths=lengths)
    h_all, c_all = module.states(x, lengths=lengths)
    assert torch.equal(h_all, output)
    for b, length in enumerate(LENGTHS):
        assert c_all[length:, b].count_nonzero() == 0
        if length:
            assert torch.equal(c_all[length - 1, b, :HIDDEN], c_n[-2, b])
            assert torch.equal(c_all[0, b, HIDDEN:], c_n[-1, b])


@backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_states_and_results_keep_the_dtype(dtype: torch.dtype, backend: str) -> None:
    module = customlstm.LSTM(INPUT, HIDDEN, 2, proj_size=3, dtype=dtype, backend=backend)
    x = torch.randn(T, B, INPUT, dtype=dtype, requires_grad=True)
    output, (h_n, c_n) = module(x)
    h_all, c_all = module.states(x)
    assert {t.dtype for t in (output, h_n, c_n, h_all, c_all)} == {dtype}
    gradients = torch.autograd.grad(weighted_sum([h_all, c_all]), [x, *module.parameters()])
    assert {g.dtype for g in gradients} == {dtype}
