"""What the operators promise to torch: schemas, opcheck, truthful fake kernels, autocast."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support_ops import Case, make_call, ops
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import customlstm
from customlstm import _binary, schemas

OPERATORS = ["lstm_layer", "lstm_layer_backward", "lstm_cell", "lstm_cell_backward"]


# --- schemas ---


@pytest.mark.parametrize("schema", schemas.SCHEMAS, ids=schemas.name_of)
def test_schemas_are_those_of_the_library(schema: str) -> None:
    """The library defined these operators. torch prints what it parsed, so both texts go through it."""
    name = schemas.name_of(schema)
    assert str(getattr(ops, name).default._schema) == str(torch._C.parse_schema(f"customlstm::{schema}"))


def test_the_library_defines_the_operators() -> None:
    """Not Python, which would do so only where there is no library."""
    assert _binary.status().loaded
    for name in OPERATORS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"customlstm::{name}", "CPU")
        dump = torch._C._dispatch_dump(f"customlstm::{name}")
        assert re.search(r"^CPU: .*$", dump, re.M) and "schemas.py" not in dump


def test_every_operator_has_all_its_kernels() -> None:
    for name in OPERATORS:
        for twin in (
            name,
            name.replace("lstm_layer", "lstm_layer_reference").replace("lstm_cell", "lstm_cell_reference"),
        ):
            qualified = f"customlstm::{twin}"
            has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
            for key in ("Meta", "CPU", "AutogradCPU", "CUDA", "AutogradCUDA"):
                assert has_kernel(qualified, key), f"{twin} has none for {key}"
            # The backward on a GPU has one that only keeps autocast away from its products.
            for key, has_rule in (("AutocastCPU", "backward" not in name), ("AutocastCUDA", True)):
                assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key) == has_rule, twin


def test_results_are_fresh_tensors() -> None:
    """No alias annotations: no result may share memory with an argument or with another result."""
    for name in OPERATORS:
        schema = getattr(ops, name).default._schema
        assert all(x.alias_info is None for x in [*schema.arguments, *schema.returns])
    for case in (Case(2, 3, 4, 5), Case(0, 3, 4, 5), Case(2, 3, 4, 5, 2, layout="no lengths")):
        call = make_call(case)
        results = ops.lstm_layer(*call.arguments(), 2)
        grads = [torch.randn_like(y) for y in results[:4]]
        backward = ops.lstm_layer_backward(
            *grads, *call.arguments(), results[0], *results[3:], [1] * len(call.leaves())
        )
        tensors = [*call.leaves().values(), *results, *grads, *backward[:3], *backward[3]]
        storages = [x.untyped_storage().data_ptr() for x in tensors if x.numel()]
        assert len(set(storages)) == len(storages), case


# --- opcheck ---


def sample_cases() -> list[Case]:
    return [
        Case(3, 2, 3, 5),
        Case(3, 2, 3, 5, 2, bidirectional=True, given=False),
        Case(3, 2, 3, 5, bias=False, layout="lengths", resets="some", dtype=torch.float32),
        Case(3, 2, 3, 5, 2, bidirectional=True, layout="lengths", resets="some"),
        Case(3, 2, 3, 5, 2, bidirectional=True, layout="packed", resets="some", cell="piecewise linear"),
        Case(3, 2, 3, 5, dtype=torch.bfloat16),
        Case(0, 2, 3, 5),
        Case(3, 0, 3, 5, 2),
    ]


# Tracing takes seconds, and most for second derivatives: plain, and forward operators with every option.
TRACED = [Case(3, 2, 3, 5), Case(3, 2, 3, 5, 2, bidirectional=True, layout="lengths", resets="some")]


def arguments(operator: str, case: Case, save: int) -> tuple[Any, ...]:
    """Arguments of any of the operators for the case."""
    call = make_call(dataclasses.replace(case, steps=1) if "cell" in operator else case)
    if "layer" in operator:
        forward, layout, count = ops.lstm_layer, call.arguments(), 4
    else:
        forward, count = ops.lstm_cell, 2
        layout = [call.input[0], call.h_0[0], call.c_0[0], call.weights, call.cell, call.cell_args, call.bias,
                  call.projection]  # fmt: skip
    if "backward" not in operator:
        return (*layout, save)
    results = forward(*layout, 2)
    kept = results[3:] if count == 4 else results[2:]
    needs = [1, int(call.h_0 is not None), int(call.h_0 is not None), *[1] * len(call.weights)]
    return (*[torch.randn_like(y) for y in results[:count]], *layout, results[0], *kept, needs)


def requiring_gradients(value: Any) -> Any:
    """A copy whose floating tensors are leaves that require gradients."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.is_floating_point())
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        return [requiring_gradients(x) for x in value]
    return value


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("case", sample_cases(), ids=str)
def test_opcheck(operator: str, case: Case) -> None:
    if "cell" in operator:
        if case.layout != "padded" or case.bidirectional or case.steps == 0:
            case = dataclasses.replace(case, layout="padded", resets="none", bidirectional=False, given=True)
    op = getattr(ops, operator).default
    plain = arguments(operator, case, 1)
    # Schema, autograd registration and fake kernel for inference; and, for training, a trace with symbolic
    # sizes.
    torch.library.opcheck(
        op, plain, test_utils=["test_schema", "test_autograd_registration", "test_faketensor"]
    )
    training = tuple(requiring_gradients(x) for x in arguments(operator, case, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about tracing
        torch.library.opcheck(op, training, test_utils=["test_schema", "test_faketensor"])
        if case in TRACED[: 1 if "backward" in operator else None]:
            torch.library.opcheck(op, training, test_utils=["test_aot_dispatch_dynamic"])


def fake_and_real() -> Iterator[tuple[str, Case, int]]:
    for case in [*sample_cases(), Case(3, 4, 2, 5, 2, layout="no lengths")]:
        for save in (0, 1, 2):
            yield "lstm_layer", case, save
        yield "lstm_layer_backward", case, 2
    for projection in (0, 2):
        for save in (0, 1, 2):
            yield "lstm_cell", Case(1, 4, 2, 5, projection, dtype=torch.bfloat16), save
        yield "lstm_cell_backward", Case(1, 4, 2, 5, projection), 2


def test_fake_kernels_tell_the_truth() -> None:
    """Shape, strides and dtype of every result, also of those that are not kept."""
    for operator, case, save in fake_and_real():
        values = arguments(operator, case, save)
        op = getattr(ops, operator)
        mode = FakeTensorMode()

        def pretend(x: Any, mode: FakeTensorMode = mode) -> Any:
            if isinstance(x, Tensor):
                return mode.from_tensor(x)
            return [pretend(v) for v in x] if isinstance(x, list) and x and isinstance(x[0], Tensor) else x

        with mode:
            fake = op(*map(pretend, values))
        flat = [[*r[:3], *r[3]] if isinstance(r[-1], list) else list(r) for r in (op(*values), fake)]
        described = [[(list(y.shape), y.stride(), y.dtype) for y in results] for results in flat]
        assert described[0] == described[1], f"{operator} {case} save={save}"


def test_backward_of_a_call_that_kept_nothing_says_so() -> None:
    call = make_call(Case(3, 2, 3, 5))
    call.input.requires_grad_()
    for save in (0, 1):
        with pytest.raises(RuntimeError, match=f"was called with save={save}.*save=2"):
            ops.lstm_layer(*call.arguments(), save)[0].sum().backward()


def test_only_states_are_differentiable() -> None:
    call = make_call(Case(3, 2, 3, 5, 2))
    call.input.requires_grad_()
    results = ops.lstm_layer(*call.arguments(), 2)
    assert [y.requires_grad for y in results] == [True, True, True, True, False, False]


# --- autocast ---

Dtypes = list[torch.dtype]


def dtypes(module: nn.Module, *inputs: Any) -> Dtypes:
    """Of output, h_n and c_n, or of h and c."""
    result = module(*inputs)
    flat = [result[0], *result[1]] if isinstance(module, (nn.LSTM, customlstm.LSTM)) else list(result)
    return [x.dtype for x in flat]


@pytest.mark.parametrize("given", [None, torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_as_nn_lstm(given: torch.dtype | None) -> None:
    """``given`` is the dtype of hx; parameters and input are float32, or float64 with hx in float64."""
    kept = torch.float64 if given == torch.float64 else torch.float32
    theirs = nn.LSTM(3, 5, 2, dtype=kept)
    ours = customlstm.LSTM(3, 5, 2, dtype=kept, backend="fused")
    x = torch.randn(4, 2, 3, dtype=kept)
    hx = None if given is None else (torch.randn(2, 2, 5, dtype=given), torch.randn(2, 2, 5, dtype=given))
    expected = [kept if kept == torch.float64 else torch.bfloat16] * 3
    with torch.autocast("cpu", torch.bfloat16):
        assert dtypes(ours, x, hx) == expected
        # On CPUs without AVX-512 oneDNN has no LSTM in bfloat16, and nn.LSTM fails.
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            assert dtypes(theirs, x, hx) == expected
    with torch.autocast("cpu", torch.float16):  # nn.LSTM has it on some CPUs only
        assert dtypes(ours, x, hx) == [kept if kept == torch.float64 else torch.float16] * 3


def test_autocast_of_a_single_step() -> None:
    """As in ``nn.LSTMCell`` the dtype of c_0 decides, and without one it is float32."""
    theirs, ours = nn.LSTMCell(3, 5), customlstm.LSTMCell(3, 5, backend="fused")
    x, hx = torch.randn(2, 3), (torch.randn(2, 5), torch.randn(2, 5))
    narrow = tuple(state.bfloat16() for state in hx)
    with torch.autocast("cpu", torch.bfloat16):
        for inputs in ((x,), (x, hx), (x.bfloat16(), hx)):
            assert dtypes(ours, *inputs) == dtypes(theirs, *inputs) == [torch.float32] * 2
        for inputs in ((x, narrow), (x.bfloat16(), narrow)):
            assert dtypes(ours, *inputs) == dtypes(theirs, *inputs) == [torch.bfloat16] * 2


def test_autocast_computes_what_a_bfloat16_module_does() -> None:
    ours = customlstm.LSTM(3, 5, 2, bidirectional=True, proj_size=2, backend="fused")
    x = torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output, (h_n, c_n) = ours(x)
    expected, (h, c) = ours.bfloat16()(x.bfloat16())
    assert torch.equal(output, expected) and torch.equal(h_n, h) and torch.equal(c_n, c)


def test_autocast_gradients_are_float32() -> None:
    ours = customlstm.LSTM(3, 5, backend="fused")
    x = torch.randn(4, 2, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(x)[0].float().pow(2).sum()
    loss.backward()
    assert x.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in ours.parameters())


def test_autocast_of_packed_input_and_states() -> None:
    """As for padded input. (``nn.LSTM`` on the CPU has no rule for packed input and stays in float32.)"""
    ours = customlstm.LSTM(3, 5, bidirectional=True, backend="fused")
    packed = nn.utils.rnn.pack_padded_sequence(
        torch.randn(4, 2, 3), torch.tensor([2, 4]), enforce_sorted=False
    )
    with torch.autocast("cpu", torch.bfloat16):
        output, (h_n, c_n) = ours(packed)
        assert [output.data.dtype, h_n.dtype, c_n.dtype] == [torch.bfloat16] * 3
        assert [y.dtype for y in ours.states(torch.randn(4, 2, 3))] == [torch.bfloat16] * 2
    # outside, everything is as it was
    assert dtypes(ours, torch.randn(4, 2, 3)) == [torch.float32] * 3
