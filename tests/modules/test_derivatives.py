"""Derivatives: gradcheck, gradgradcheck, what is not needed, and torch.func transforms."""

import gc
import weakref

import pytest
import torch
from support import BACKENDS, assert_all_near, assert_near
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import customlstm

T, B, INPUT, HIDDEN = 3, 2, 2, 3
SMOOTH = customlstm.Cell("sigmoid", "softsign", ("scaled_tanh", {"alpha": 1.2, "beta": 0.7}))

backends = pytest.mark.parametrize("backend", BACKENDS)
options = pytest.mark.parametrize(
    "options",
    [{}, {"bias": False, "bidirectional": True}, {"num_layers": 2, "proj_size": 2, "bidirectional": True}],
    ids=["simple", "both ways", "everything"],
)


def leaves(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def as_function(module: customlstm.LSTM, **given: Tensor):
    """The module as a function of input, h_0, c_0 and every parameter, to everything that it returns."""
    names = list(dict(module.named_parameters()))

    def function(x: Tensor, h: Tensor, c: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        replaced = dict(zip(names, parameters, strict=True))
        output, states = functional_call(module, replaced, (x, (h, c)), given)
        return output, *states

    return function


def arguments(module: customlstm.LSTM) -> tuple[Tensor, ...]:
    rows = module.num_layers * (1 + module.bidirectional)
    state = module.proj_size or HIDDEN
    return (*leaves((T, B, INPUT), (rows, B, state), (rows, B, HIDDEN)), *module.parameters())


@backends
@options
def test_first_and_second_derivatives(options: dict, backend: str) -> None:
    module = customlstm.LSTM(INPUT, HIDDEN, dtype=torch.float64, cell=SMOOTH, backend=backend, **options)
    function, given = as_function(module), arguments(module)
    large = module.num_layers > 1  # then along random directions rather than one number at a time
    assert gradcheck(function, given, fast_mode=large)
    assert gradgradcheck(function, given, fast_mode=large)


@backends
def test_derivatives_with_lengths_and_resets(backend: str) -> None:
    module = customlstm.LSTM(INPUT, HIDDEN, bidirectional=True, dtype=torch.float64, backend=backend)
    resets = torch.tensor([[0, 1], [1, 0], [1, 1]]).bool()
    function, given = as_function(module, lengths=torch.tensor([2, 3]), resets=resets), arguments(module)
    assert gradcheck(function, given)
    assert gradgradcheck(function, given)


@backends
def test_derivatives_of_states(backend: str) -> None:
    module = customlstm.LSTM(INPUT, HIDDEN, dtype=torch.float64, proj_size=2, backend=backend)
    (x,) = leaves((T, B, INPUT))
    assert gradcheck(module.states, (x,))
    assert gradgradcheck(module.states, (x,))


@backends
def test_derivatives_of_the_cell(backend: str) -> None:
    module = customlstm.LSTMCell(
        INPUT, HIDDEN, dtype=torch.float64, proj_size=2, cell=SMOOTH, backend=backend
    )
    given = leaves((B, INPUT), (B, 2), (B, HIDDEN))
    assert gradcheck(lambda x, h, c: module(x, (h, c)), given)
    assert gradgradcheck(lambda x, h, c: module(x, (h, c)), given)


@backends
def test_derivatives_of_packed_rows(backend: str) -> None:
    module = customlstm.LSTM(INPUT, HIDDEN, bidirectional=True, dtype=torch.float64, backend=backend)
    pack = torch.nn.utils.rnn.pack_padded_sequence

    def function(x: Tensor) -> tuple[Tensor, ...]:
        output, states = module(pack(x, torch.tensor([2, 3]), enforce_sorted=False))
        return output.data, *states

    assert gradgradcheck(function, leaves((T, B, INPUT)))


@pytest.mark.skipif("fused" not in BACKENDS, reason="no compiled library")
def test_third_derivative_of_fused_is_that_of_the_reference() -> None:
    found = []
    for backend in ("fused", "reference"):
        torch.manual_seed(0)
        module = customlstm.LSTM(INPUT, HIDDEN, 2, dtype=torch.float64, backend=backend)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(3)  # else nothing is left of it
        (value,) = inputs = leaves((T, B, INPUT))
        value = module(value)[0].pow(3).sum()
        for _ in range(3):
            (derivative,) = torch.autograd.grad(value, inputs, create_graph=True)
            value = derivative.pow(2).sum()
        found.append(derivative)
    assert found[1].detach().abs().max() > 1e-4
    assert_near(found[0], found[1], tolerance=1e-12 * float(found[1].detach().abs().max()))


@backends
def test_input_that_also_makes_the_initial_state(backend: str) -> None:
    """The second derivative must not count the path from input through h_0 twice."""
    module = customlstm.LSTM(INPUT, HIDDEN, dtype=torch.float64, backend=backend)

    def function(x: Tensor) -> Tensor:
        h = torch.cat([x, x[..., :1]], -1).mean(0, keepdim=True).sin()
        return module(x, (h, 2 * h))[0]

    assert gradgradcheck(function, leaves((T, B, INPUT)))


class Calls(TorchDispatchMode):
    """Records the customlstm operators that run, with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "customlstm":
            self.seen.append((func._opname, args, result))
        return result


@pytest.mark.skipif("fused" not in BACKENDS, reason="no compiled library")
def test_what_is_frozen_is_not_computed() -> None:
    module = customlstm.LSTM(INPUT, HIDDEN, 2, backend="fused")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.weight_hh_l1.requires_grad_(True)
    with Calls() as calls:
        output, _ = module(torch.randn(T, B, INPUT))
        output.sum().backward()
    names = [name for name, _, _ in calls.seen]
    assert names == ["lstm_layer", "lstm_layer", "lstm_layer_backward"]  # nothing for the frozen layer
    lower, upper, backward = calls.seen
    assert [t.numel() for t in lower[2][3:]] == [0, 0, 0] and upper[2][4].numel() > 0
    assert backward[1][-1] == [0, 0, 0, 0, 1, 0, 0]
    assert [g.numel() for g in (*backward[2][:3], *backward[2][3])] == [0, 0, 0, 0, 4 * HIDDEN * HIDDEN, 0, 0]
    assert module.weight_hh_l1.grad is not None and module.weight_ih_l1.grad is None


@pytest.mark.skipif("fused" not in BACKENDS, reason="no compiled library")
def test_nothing_is_saved_without_gradients() -> None:
    module, x = customlstm.LSTM(INPUT, HIDDEN, proj_size=2, backend="fused"), torch.randn(T, B, INPUT)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, Calls() as calls:
            assert not module(x)[0].requires_grad
            module.states(x)
        (_, _, plain), (_, _, states) = calls.seen
        assert [t.numel() for t in plain[3:]] == [0, 0, 0]
        assert [t.numel() for t in states[3:]] == [T * B * HIDDEN, 0, 0]


@backends
def test_backward_in_eval_mode_and_twice(backend: str) -> None:
    module, x = (
        customlstm.LSTM(INPUT, HIDDEN, backend=backend).eval(),
        torch.randn(T, B, INPUT, requires_grad=True),
    )
    output, _ = module(x)
    first = torch.autograd.grad(output.sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(output.sum(), x)[0], first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output.sum(), x)


@backends
def test_weights_changed_in_place_before_backward_are_noticed(backend: str) -> None:
    module = customlstm.LSTM(INPUT, HIDDEN, backend=backend)
    output, _ = module(torch.randn(T, B, INPUT, requires_grad=True))
    with torch.no_grad():
        module.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.skipif("fused" not in BACKENDS, reason="no compiled library")
def test_the_graph_is_freed() -> None:
    module, x = customlstm.LSTM(INPUT, HIDDEN, backend="fused"), torch.randn(T, B, INPUT)
    gc.disable()
    try:
        output, states = module(x)
        node = weakref.ref(output.grad_fn)
        assert node() is not None
        del output, states
        assert node() is None  # no reference cycle
    finally:
        gc.enable()


@backends
@pytest.mark.parametrize("used", ["output", "h_n", "c_n"])
def test_only_one_result_used(used: str, backend: str) -> None:
    """The backward kernels get None for the gradients of the others."""
    found = []
    for chosen in (backend, "reference"):
        torch.manual_seed(0)
        module = customlstm.LSTM(INPUT, HIDDEN, bidirectional=True, dtype=torch.float64, backend=chosen)
        (x,) = leaves((T, B, INPUT))
        output, (h_n, c_n) = module(x)
        value = {"output": output, "h_n": h_n, "c_n": c_n}[used].pow(2).sum()
        found.append(torch.autograd.grad(value, [x, *module.parameters()]))
    assert_all_near(*found, ["input", *dict(module.named_parameters())])


def test_torch_func_transforms_run_the_reference() -> None:
    """No rules on the operators for these: auto says so once and runs what has them; results are the same."""
    module = customlstm.LSTM(INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64)
    x, direction = (
        torch.randn(4, T, B, INPUT, dtype=torch.float64),
        torch.randn(T, B, INPUT, dtype=torch.float64),
    )
    each = torch.stack([module(one)[0] for one in x])
    assert_near(vmap(lambda one: module(one)[0])(x), each)
    loss = lambda one: module(one, lengths=torch.tensor([2, 3]))[0].pow(2).sum()  # noqa: E731
    leaf = x[0].clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    assert_near(grad(loss)(x[0]), expected)
    assert_near(jvp(loss, (x[0],), (direction,))[1], (expected * direction).sum())
    assert_near(vmap(grad(loss))(x)[0], expected)
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(x[0], direction))
        assert_near(forward_ad.unpack_dual(dual).tangent, (expected * direction).sum())
    # an ensemble: the weights stacked
    weights = {name: torch.stack([w, 2 * w]) for name, w in module.named_parameters()}
    outputs = vmap(lambda w: functional_call(module, w, (x[0],))[0])(weights)
    assert_near(outputs[0], each[0])
    step = customlstm.LSTMCell(INPUT, HIDDEN, dtype=torch.float64)
    assert_near(vmap(lambda one: step(one)[0])(x[:, 0]), torch.stack([step(one)[0] for one in x[:, 0]]))
