"""Inputs of any strides, empty ones, and huge ones. What the reference does is right."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable

import pytest
import torch
from support_compare import assert_close, assert_same_bits, bits
from support_ops import (
    Case,
    LayerCall,
    gradients_given,
    make_call,
    ops,
    run_cell,
    run_layer,
    run_reference,
)
from torch import Tensor

CASE = Case(6, 7, 5, 9, 4, bidirectional=True)


# --- strides ---


def in_larger(x: Tensor) -> Tensor:
    """A slice out of the middle of a larger tensor, whose other elements are NaN."""
    large = x.new_full([size + 2 for size in x.shape], torch.nan)
    inside = large[tuple(slice(1, -1) for _ in x.shape)]
    return inside.copy_(x)


def stepped(x: Tensor) -> Tensor:
    """Every second element in every dimension."""
    large = x.new_full([2 * size for size in x.shape], torch.nan)
    return large[tuple(slice(None, None, 2) for _ in x.shape)].copy_(x)


def turned(x: Tensor) -> Tensor:
    """Dimensions laid out in the opposite order."""
    order = list(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


def expanded(x: Tensor) -> Tensor:
    """One element for all of the first dimension: stride 0."""
    return x[:1].expand(x.shape)


def misaligned(x: Tensor) -> Tensor:
    """Contiguous, one element past whatever the allocator aligns to."""
    flat = x.new_empty(x.numel() + 1)
    return flat[1:].view(x.shape).copy_(x)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "in a larger one": in_larger,
    "every second element": stepped,
    "turned round": turned,
    "expanded": expanded,
    "misaligned": misaligned,
}


def through(view: Callable[[Tensor], Tensor], call: LayerCall) -> tuple[LayerCall, LayerCall]:
    """The call with every floating tensor seen through ``view``, and the same one with contiguous copies."""
    weird = call.replace(
        input=view(call.input),
        h_0=view(call.h_0),
        c_0=view(call.c_0),
        weights=[view(w) for w in call.weights],
    )
    plain = weird.replace(
        input=weird.input.contiguous(),
        h_0=weird.h_0.contiguous(),
        c_0=weird.c_0.contiguous(),
        weights=[w.contiguous() for w in weird.weights],
    )
    return weird, plain


@pytest.mark.parametrize("layout", ["padded", "packed", "lengths"])
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view: str, layout: str) -> None:
    for case in (CASE, Case(6, 7, 5, 9)):
        call = make_call(Case(6, 7, 5, 9, case.projection, True, case.bidirectional, layout, "some"))
        weird, plain = through(VIEWS[view], call)
        assert_same_bits(run_layer(weird), run_layer(plain), view)
        assert_close(run_layer(weird), run_reference(plain), view)


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_of_a_single_step(view: str) -> None:
    weird, plain = through(VIEWS[view], make_call(Case(1, 7, 5, 9, 4)))
    assert_same_bits(run_cell(weird), run_cell(plain), view)


def test_any_strides_of_the_index_tensors() -> None:
    call = make_call(Case(6, 7, 5, 9, bidirectional=True, layout="lengths", resets="some"))
    lengths = torch.full((14,), 10**6)
    lengths[::2] = call.lengths
    resets = call.resets.t().contiguous().t()
    weird = call.replace(lengths=lengths[::2], resets=resets)
    assert not weird.lengths.is_contiguous() and not weird.resets.is_contiguous()
    assert_same_bits(run_layer(weird), run_layer(call))
    packed = make_call(Case(6, 7, 5, 9, layout="packed"))
    sizes = torch.full((2 * packed.batch_sizes.numel(),), 10**6)
    sizes[::2] = packed.batch_sizes
    assert_same_bits(run_layer(packed.replace(batch_sizes=sizes[::2])), run_layer(packed))


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_of_the_gradients(view: str) -> None:
    call = make_call(Case(6, 7, 5, 9, 4, bidirectional=True, layout="lengths"))
    results = ops.lstm_layer(*call.arguments(), 2)
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in results[:4]]
    weird = [VIEWS[view](g) for g in gradients]
    needs = [1] * (3 + len(call.weights))
    found = [
        ops.lstm_layer_backward(*given, *call.arguments(), results[0], *results[3:], needs)
        for given in (weird, [g.contiguous() for g in weird])
    ]
    flat = [{str(k): g for k, g in enumerate([*grads[:3], *grads[3]])} for grads in found]
    assert_same_bits(flat[0], flat[1], view)


def test_a_gradient_of_stride_zero() -> None:
    """What ``output.sum().backward()`` hands over."""
    call = make_call(CASE)
    leaves = [x.detach().requires_grad_() for x in call.leaves().values()]
    fresh = call.replace(input=leaves[0], h_0=leaves[1], c_0=leaves[2], weights=leaves[3:])
    found = []
    for operator in (ops.lstm_layer, ops.lstm_layer_reference):
        gradients = torch.autograd.grad(operator(*fresh.arguments(), 2)[0].sum(), leaves)
        found.append(dict(zip(call.leaves(), gradients, strict=True)))
    assert_close(*found)


def test_arguments_stay_as_they_are() -> None:
    call = make_call(Case(6, 7, 5, 9, 4, bidirectional=True, layout="lengths", resets="some"))
    tensors = [*call.leaves().values(), call.lengths, call.resets]
    before = [x.clone() for x in tensors]
    results = ops.lstm_layer(*call.arguments(), 2)
    kept = [y.clone() for y in results]
    given = [torch.ones_like(y) for y in results[:4]]
    ops.lstm_layer_backward(
        *given, *call.arguments(), results[0], *results[3:], [1] * (3 + len(call.weights))
    )
    for x, copy in zip(
        [*tensors, *results, *given], [*before, *kept, *map(torch.ones_like, given)], strict=True
    ):
        assert torch.equal(bits(x), bits(copy))


def test_one_tensor_in_many_places() -> None:
    """The same storage as input and state, the same tensor for both biases and both directions."""
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    w, b = torch.randn(32, 8, dtype=torch.float64) / 3, torch.randn(32, dtype=torch.float64)
    call = LayerCall(
        x, x, x, [w, w, b, b], *[None] * 6, *make_call(CASE).arguments()[10:12], True, False, False,
        1.0, 0.0, 0.0,
    )  # fmt: skip
    assert_close(run_layer(call), run_reference(call))
    both = call.replace(
        h_0=x.expand(2, 6, 8), c_0=x.expand(2, 6, 8), weights=[w, w, b, b] * 2, bidirectional=True
    )
    assert_close(run_layer(both), run_reference(both))


def test_conjugate_and_negative_views_are_resolved() -> None:
    """A lazy view of the negated values, as ``x.conj().imag`` gives one."""
    call = make_call(Case(4, 3, 5, 9))
    negative = torch.complex(torch.zeros_like(call.input), -call.input).conj().imag
    assert negative.is_neg()
    assert_close(run_layer(call.replace(input=negative)), run_layer(call))


# --- empty ---


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layout", ["padded", "packed", "lengths", "no lengths"])
@pytest.mark.parametrize("resets", ["none", "every"])
def test_empty(bidirectional: bool, layout: str, resets: str, threads: int) -> None:
    for (steps, batch), projection, given in [
        ((0, 5), 0, True),
        ((0, 5), 4, True),
        ((0, 5), 4, False),
        ((5, 0), 4, True),
        ((5, 0), 0, False),
        ((0, 0), 4, True),
    ]:
        call = make_call(Case(steps, batch, 3, 9, projection, True, bidirectional, layout, resets, given))
        actual = run_layer(call)
        assert_close(
            actual, run_reference(call), f"T={steps} B={batch} projection={projection} given={given}"
        )
        for name in actual:
            if "w_" in name or "b_" in name:
                assert not actual[name].any(), f"{name} is not zero"
        if steps == 0 and given:
            # the states go through, and so do their gradients
            assert torch.equal(actual["h_n"], call.h_0) and torch.equal(actual["c_n"], call.c_0)
            assert batch == 0 or actual["gradient of c_0"].any()


def test_empty_batch_of_a_single_step() -> None:
    call = make_call(Case(1, 0, 3, 9, 4))
    assert_close(run_cell(call), run_cell(call, ops.lstm_cell_reference))


def test_no_input_features() -> None:
    for layout in ("padded", "packed", "lengths"):
        call = make_call(Case(4, 5, 3, 9, layout=layout))
        weights = [w[:, :0] if k == 0 else w for k, w in enumerate(call.weights)]
        call = call.replace(input=call.input[..., :0], weights=weights)
        assert_close(run_layer(call), run_reference(call), layout)


# --- huge ---


def test_more_than_65535_sequences() -> None:
    call = make_call(Case(2, 70_000, 2, 8, bidirectional=True))
    actual, expected = run_layer(call), run_reference(call)
    names = [name for name in actual if "_ih" not in name and "_hh" not in name]
    assert_close({name: actual[name] for name in names}, {name: expected[name] for name in names})
    # The weights' gradients are sums of 140,000 terms of about 1, up to 1000 together: rounding leaves
    # 1e-11 of them.
    assert_close(actual, expected, tolerance=1e-10)


def test_more_than_65535_steps() -> None:
    """The reference would take minutes, so it gets the last steps only, and the states before them."""
    steps, last = 70_000, 50
    call = make_call(Case(steps, 1, 2, 8))
    leaves = [x.detach().requires_grad_() for x in (call.input, call.h_0, call.c_0)]
    results = ops.lstm_layer(*call.replace(input=leaves[0], h_0=leaves[1], c_0=leaves[2]).arguments(), 2)
    before = slice(steps - last - 1, steps - last)
    tail = call.replace(
        input=call.input[-last:], h_0=results[0][before].detach(), c_0=results[3][before].detach()
    )
    expected = run_layer(tail, ops.lstm_layer_reference, ["h_n"])
    assert_close({"h_n": results[1].detach()}, {"h_n": expected["h_n"]})
    # What the last state's gradient does is forgotten long before the first step.
    given = gradients_given({"h_n": results[1]})
    gradients = torch.autograd.grad([results[1]], leaves, given, retain_graph=True)
    assert_close(
        {"input": gradients[0][-last // 2 :]}, {"input": expected["gradient of input"][-last // 2 :]}
    )
    assert gradients[0].isfinite().all() and not gradients[0][0].any()
    # And what the first output's gradient does reaches no later step.
    gradients = torch.autograd.grad(results[0][:last].sum(), leaves)
    head = run_layer(call.replace(input=call.input[:last]), ops.lstm_layer_reference, ["output"])
    assert not gradients[0][last:].any()
    first = call.replace(input=call.input[:last].detach().requires_grad_())
    (wanted,) = torch.autograd.grad(ops.lstm_layer_reference(*first.arguments(), 2)[0].sum(), first.input)
    assert_close({"input": gradients[0][:last]}, {"input": wanted})
    assert_close({"output": results[0][:last].detach()}, {"output": head["output"]})


def test_offsets_beyond_32_bits() -> None:
    """Elements of the input more than 2^31 apart. Only the pages that are touched take memory."""
    if sys.platform != "linux":
        pytest.skip("reserving memory without committing it is asked for in Linux's way")
    reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python has the name since 3.13
    call = make_call(Case(3, 2, 5, 9, dtype=torch.float16))
    stride = 2**31 + 2**20
    memory = mmap.mmap(-1, 2 * (3 * stride), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve)
    large = torch.frombuffer(memory, dtype=torch.float16)
    # by steps, by sequences, by features
    for strides in [(stride, 64, 1), (64, stride, 1), (5, 1, 2**29 + 2**20)]:
        input = large.as_strided((3, 2, 5), strides)
        input.copy_(call.input)
        far = call.replace(input=input)
        assert_same_bits(run_layer(far), run_layer(call), strides)
    del large, input, far
