"""What people do to a module besides calling it: torch's tools for parameters, state and graph."""

from __future__ import annotations

import copy
import io
import pickle
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint

import customlstm

LIBRARIES = [nn, customlstm]
OPTIONS: dict[str, Any] = dict(num_layers=2, bidirectional=True, proj_size=3)


def pair(**options: Any) -> tuple[nn.LSTM, customlstm.LSTM]:
    """Both modules, from one seed."""
    modules = []
    for library in LIBRARIES:
        torch.manual_seed(1)
        modules.append(library.LSTM(4, 6, **options))
    return tuple(modules)  # type: ignore[return-value]


def batch() -> Tensor:
    return torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(2))


def assert_equal_results(ours: nn.Module, theirs: nn.Module, x: Tensor | None = None) -> None:
    """Output, states, and the gradient of every parameter by name."""
    x = batch() if x is None else x
    for module in (ours, theirs):
        module.zero_grad()
        output, (h_n, c_n) = module(x)
        (output.sin().sum() + h_n.pow(2).sum() + c_n.sum()).backward()
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(ours(x), theirs(x), **close)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    actual = {name: p.grad for name, p in ours.named_parameters()}
    assert list(actual) == list(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient, msg=lambda text, name=name: f"{name}: {text}", **close
        )


def test_state_dict_both_ways() -> None:
    theirs, ours = pair(**OPTIONS)
    for p in theirs.parameters():
        nn.init.uniform_(p, -0.4, 0.4)
    ours.load_state_dict(theirs.state_dict())
    assert_equal_results(ours, theirs)
    for p in ours.parameters():
        nn.init.uniform_(p, -0.4, 0.4)
    theirs.load_state_dict(ours.state_dict())
    assert_equal_results(ours, theirs)


def test_state_dict_hooks_and_strictness() -> None:
    theirs, ours = pair()
    seen: list[str] = []
    ours.register_state_dict_post_hook(lambda module, state, prefix, local: seen.append("saved"))
    ours.register_load_state_dict_pre_hook(lambda module, state, *rest: seen.append("about to load"))
    ours.register_load_state_dict_post_hook(lambda module, keys: seen.append("loaded"))
    ours.load_state_dict(ours.state_dict())
    assert seen == ["saved", "about to load", "loaded"]
    for module in (theirs, ours):
        state = dict(module.state_dict())
        state["weight_hh_l1"] = state.pop("weight_hh_l0")
        with pytest.raises(
            RuntimeError, match=r'Missing key.*"weight_hh_l0"[\s\S]*Unexpected key.*"weight_hh_l1"'
        ):
            module.load_state_dict(state)
        found = module.load_state_dict(state, strict=False)
        assert found.missing_keys == ["weight_hh_l0"] and found.unexpected_keys == ["weight_hh_l1"]
    with torch.device("meta"):
        empty = customlstm.LSTM(4, 6)
    empty.load_state_dict(theirs.state_dict(), assign=True)
    assert_equal_results(empty, theirs)


def test_ensembles_of_copies() -> None:
    theirs, ours = pair(**OPTIONS)
    for module in (theirs, ours):
        members = [copy.deepcopy(module) for _ in range(3)]
        for k, member in enumerate(members):
            with torch.no_grad():
                for p in member.parameters():
                    p.add_(0.01 * k)
        assert len({p.data_ptr() for m in [module, *members] for p in m.parameters()}) == 4 * len(
            list(module.parameters())
        )
        module.mean = torch.stack([member(batch())[0] for member in members]).mean(0)
        assert torch.equal(members[0](batch())[0], module(batch())[0])
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-12)


def test_pickle_and_save() -> None:
    _, ours = pair(**OPTIONS)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for again in (pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False)):
        assert_equal_results(again, ours)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW foreach", "RMSprop", "LBFGS"])
def test_optimizers(kind: str) -> None:
    theirs, ours = pair(**OPTIONS)
    for module in (theirs, ours):
        parameters = list(module.parameters())
        optimizer = {
            "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
            "Adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
            "AdamW foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
            "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True),
            "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=5),
        }[kind](parameters)

        def closure(module: nn.Module = module, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad(set_to_none=False)
            loss = (module(batch())[0] - 0.1).pow(2).sum()
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
    # Optimizers with a square root in the denominator divide rounding by rounding where a gradient is tiny.
    assert_states_close(ours, theirs, 1e-9)


def assert_states_close(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-12) -> None:
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        difference = (value - expected[name]).abs().max().item()
        assert difference <= tolerance, f"{name} is {difference} apart"


def test_clipping() -> None:
    theirs, ours = pair(**OPTIONS)
    norms = []
    for module in (theirs, ours):
        module(batch())[0].sum().backward()
        norms.append(nn.utils.clip_grad_norm_(module.parameters(), 0.1, error_if_nonfinite=True))
        nn.utils.clip_grad_value_(module.parameters(), 0.01)
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-12, atol=0)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal", "own"])
def test_parametrizations(kind: str) -> None:
    """A weight that is computed at every access, and through which gradients must flow."""

    class Halve(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    theirs, ours = pair()
    for module in (theirs, ours):
        torch.manual_seed(3)
        if kind == "own":
            parametrize.register_parametrization(module, "weight_ih_l0", Halve())
        else:
            getattr(parametrizations, kind)(module, "weight_hh_l0")
        module.eval()  # spectral_norm takes a power iteration at every access in training
    assert_equal_results(ours, theirs)
    assert parametrize.is_parametrized(ours)
    name = "weight_ih_l0" if kind == "own" else "weight_hh_l0"
    parametrize.remove_parametrizations(ours, name)
    parametrize.remove_parametrizations(theirs, name)
    assert_equal_results(ours, theirs)


def test_pruning() -> None:
    theirs, ours = pair()
    for module in (theirs, ours):
        prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
    assert (ours.weight_hh_l0 == 0).sum() == ours.weight_hh_l0.numel() // 2
    # Pruning computes the weight in a hook before every call, and its gradient goes to weight_hh_l0_orig.
    assert_equal_results(ours, theirs)


def test_moving_averages() -> None:
    theirs, ours = pair(**OPTIONS)
    averages = []
    for module in (theirs, ours):
        average = swa_utils.AveragedModel(module, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(4):
            optimizer.zero_grad()
            module(batch())[0].pow(2).sum().backward()
            optimizer.step()
            average.update_parameters(module)
        averages.append(average)
    assert_states_close(averages[1], averages[0])
    torch.testing.assert_close(averages[1](batch()), averages[0](batch()), rtol=0, atol=1e-12)


def test_functional_call() -> None:
    theirs, ours = pair(**OPTIONS)
    other = {name: (p.detach() * 0.5).requires_grad_() for name, p in theirs.named_parameters()}
    results = [torch.func.functional_call(m, other, (batch(),))[0] for m in (theirs, ours)]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(y.sum(), list(other.values())) for y in results]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-12)
    assert all(p.grad is None for p in ours.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    _, ours = pair(**OPTIONS)
    x = batch().requires_grad_()
    plain = torch.autograd.grad(ours(x)[0].pow(2).sum(), [x, *ours.parameters()])
    ours.zero_grad()
    output = checkpoint(lambda v: ours(v)[0], x, use_reentrant=reentrant)
    output.pow(2).sum().backward()
    assert torch.equal(x.grad, plain[0])
    for p, gradient in zip(ours.parameters(), plain[1:], strict=True):
        assert torch.equal(p.grad, gradient)


def test_hooks() -> None:
    """The same calls of every kind of hook, in the same order."""
    calls = []
    for module in pair():
        seen: list[str] = []
        module.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(f"before {len(args)}"))
        module.register_forward_hook(
            lambda module, args, y, seen=seen: seen.append(f"after {type(y).__name__}")
        )
        module.register_full_backward_hook(
            lambda module, gi, go, seen=seen: seen.append(f"backward {len(gi)} {len(go)}")
        )
        module.weight_hh_l0.register_hook(
            lambda gradient, seen=seen: seen.append(f"weight {list(gradient.shape)}")
        )
        module(batch().requires_grad_())[0].sum().backward()
        calls.append(seen)
    assert calls[0] == calls[1] and len(calls[0]) == 4


def test_initialisation_by_name() -> None:
    """The loop that everybody writes: orthogonal recurrent weights, forget bias of 1."""
    theirs, ours = pair(**OPTIONS)
    for module in (theirs, ours):
        torch.manual_seed(4)
        for name, p in module.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(p)
            elif "weight" in name:
                nn.init.xavier_uniform_(p)
            else:
                nn.init.zeros_(p)
                hidden = p.size(0) // 4
                p.data[hidden : 2 * hidden].fill_(1.0)
    assert_equal_results(ours, theirs)
    torch.manual_seed(1)
    ours.reset_parameters()
    fresh, _ = pair(**OPTIONS)
    assert_equal_results(ours, fresh)


def test_freezing_and_unfreezing() -> None:
    theirs, ours = pair(**OPTIONS)
    for module in (theirs, ours):
        for name, p in module.named_parameters():
            p.requires_grad_("l1" in name)
        module(batch())[0].sum().backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == ("l1" not in name)
    ours.requires_grad_(), theirs.requires_grad_()
    assert_equal_results(ours, theirs)


def test_parameters_as_one_vector() -> None:
    theirs, ours = pair(**OPTIONS)
    vector = nn.utils.parameters_to_vector(theirs.parameters()) * 0.7
    nn.utils.vector_to_parameters(vector, ours.parameters())
    nn.utils.vector_to_parameters(vector, theirs.parameters())
    assert_equal_results(ours, theirs)


def test_assigning_to_data_and_shared_weights() -> None:
    theirs, ours = pair(num_layers=1)
    for module in (theirs, ours):
        module.weight_hh_l0.data = module.weight_hh_l0.data.t().contiguous().t() * 1.5
        module.bias_hh_l0 = module.bias_ih_l0
    assert_equal_results(ours, theirs)
    assert "bias_hh_l0" not in dict(ours.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversions(dtype: torch.dtype) -> None:
    theirs, ours = pair(num_layers=2)
    ours.to(dtype), theirs.to(dtype)
    x = batch().to(dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=0, atol=8 * eps)
    ours.double(), theirs.double()
    assert_states_close(ours, theirs)


def test_in_process_pool_of_threads() -> None:
    """One module called by several threads at once."""
    from concurrent.futures import ThreadPoolExecutor

    _, ours = pair(**OPTIONS)
    inputs = [torch.randn(5, 3, 4) for _ in range(16)]
    expected = [torch.autograd.grad(ours(x)[0].sum(), ours.weight_hh_l0)[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: torch.autograd.grad(ours(x)[0].sum(), ours.weight_hh_l0)[0], inputs))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_attributes_that_existing_code_reads() -> None:
    theirs, ours = pair(**OPTIONS)
    sizes = ["input_size", "hidden_size", "num_layers", "proj_size"]
    for name in [*sizes, "mode", "bias", "batch_first", "dropout", "bidirectional", "training"]:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert [[p.shape for p in row] for row in ours.all_weights] == [
        [p.shape for p in row] for row in theirs.all_weights
    ]
    assert ours.flatten_parameters() is None
    assert repr(ours) == repr(theirs)
    assert repr(customlstm.LSTMCell(3, 4, bias=False)) == repr(nn.LSTMCell(3, 4, bias=False))


def test_libraries_are_what_the_tests_say() -> None:
    assert all(isinstance(library, ModuleType) and hasattr(library, "LSTMCell") for library in LIBRARIES)
