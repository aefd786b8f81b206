"""Bad calls: the error class of nn.LSTM or nn.LSTMCell, a text that says what came and what was expected."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import BACKENDS
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import customlstm

T, B = 5, 3
x = torch.zeros(T, B, 4)
h = torch.zeros(2, B, 6)
wide = torch.zeros(2, B, 6, dtype=torch.float64)


def packed(input: torch.Tensor = x) -> PackedSequence:
    return pack_padded_sequence(input, torch.tensor([5, 3, 1]))


CONSTRUCTOR = {
    "input_size 0": ({"input_size": 0}, "input_size must be greater than zero, got 0"),
    "input_size float": ({"input_size": 4.0}, "input_size should be of type int, got: float (4.0)"),
    "hidden_size negative": ({"hidden_size": -1}, "hidden_size must be greater than zero, got -1"),
    "hidden_size text": ({"hidden_size": "6"}, "hidden_size should be of type int, got: str ('6')"),
    "num_layers 0": ({"num_layers": 0}, "num_layers must be greater than zero, got 0"),
    "num_layers float": ({"num_layers": 1.5}, "num_layers should be of type int, got: float"),
    "bias number": ({"bias": 1}, "bias should be of type bool, got: int (1)"),
    "batch_first text": ({"batch_first": "yes"}, "batch_first should be of type bool, got: str ('yes')"),
    "dropout above 1": ({"dropout": 1.5, "num_layers": 2}, "range [0, 1]", "got 1.5"),
    "dropout bool": ({"dropout": True}, "range [0, 1]", "got True"),
    "dropout text": ({"dropout": "much"}, "range [0, 1]", "got 'much'"),
    "proj_size as large": ({"proj_size": 6}, "proj_size has to be smaller than hidden_size (6), got 6"),
    "proj_size negative": ({"proj_size": -1}, "proj_size should be a positive integer or zero", "got -1"),
    "proj_size float": ({"proj_size": 1.5}, "proj_size should be of type int"),
    "integer dtype": ({"dtype": torch.int64}, "floating point"),
    "unknown option": ({"peephole": True}, "unexpected keyword argument 'peephole'"),
}

CALL: dict[str, tuple[Any, ...]] = {
    "1-D input": ((x[0, 0],), "input to be 2D [T, input_size] or 3D [T, B, input_size], got 1D"),
    "4-D input": ((x[None],), "got 4D"),
    "dtype of input": ((x.double(),), "input has dtype torch.float64", "input.to(torch.float32)"),
    "integer input": ((x.long(),), "the weights have torch.float32; convert it: input.to(torch.float32)"),
    "device of input": ((x.to("meta"),), "input is on meta, the weights are on cpu"),
    "features": ((x[..., :3],), "input.size(-1) must be equal to input_size. Expected 4, got 3", "[5, 3, 3]"),
    "one tensor as hx": (
        (x, h),
        "hx must be a pair (h_0, c_0) of tensors, got one tensor of shape [2, 3, 6]",
    ),
    "one tensor as unbatched hx": ((x[:, 0], h[:, 0]), "hx must be a pair"),
    "three states": ((x, (h, h, h)), "hx must be a pair (h_0, c_0) of tensors, got a tuple of 3"),
    "2-D hx": ((x, (h[:, 0], h[:, 0])), "For batched 3-D input", "also be 3-D but got (2-D, 2-D)"),
    "3-D hx, unbatched input": (
        (x[:, 0], (h, h)),
        "For unbatched 2-D input",
        "also be 2-D but got (3-D, 3-D)",
    ),
    "layers of h_0": ((x, (h[:1], h)), "Expected hidden[0] size [2, 3, 6], got [1, 3, 6]"),
    "size of c_0": ((x, (h, h[..., :5])), "Expected hidden[1] size [2, 3, 6], got [2, 3, 5]", "hidden_size"),
    "batch of hx": ((x, (h[:, :2], h[:, :2])), "got [2, 2, 6]", "check batch_first"),
    "dtype of hx": ((x, (wide, wide)), "hx[0] has dtype torch.float64, the weights have torch.float32"),
    "dtype of c_0": ((x, (h, wide)), "hx[1] has dtype torch.float64"),
    "device of hx": ((x, (h.to("meta"), h.to("meta"))), "hx[0] is on meta"),
    "packed dtype": ((packed(x.double()),), "input has dtype torch.float64"),
    "packed features": ((packed(x[..., :3]),), "Expected 4, got 3"),
    "packed batch of hx": (
        (packed(), (h[:, :2], h[:, :2])),
        "Expected hidden[0] size [2, 3, 6], got [2, 2, 6]",
    ),
}

CELL_CALL: dict[str, tuple[Any, ...]] = {
    "3-D input": ((x,), "input to be 1D [input_size] or 2D [B, input_size], got 3D"),
    "3-D hx": ((x[0], (h, h)), "Expected hx[0] to be 1D or 2D, got 3D"),
    "features": ((x[0, :, :3],), "input has inconsistent input_size: got 3 expected 4"),
    "dtype": ((x[0].double(),), "input has dtype torch.float64, the weights have torch.float32"),
    "dtype of hx": ((x[0], (wide[0], wide[0])), "hx[0] has dtype torch.float64"),
    "batch of h_0": ((x[0], (h[0, :2], h[0])), "hx[0] must have shape [3, 6]", "got [2, 6]"),
    "size of c_0": ((x[0], (h[0], h[0, :, :5])), "hx[1] must have shape [3, 6]", "got [3, 5]"),
    "1-D hx": ((x[0], (h[0, 0], h[0, 0])), "hx[0] must have shape [3, 6]", "got [6]"),
    "2-D hx, unbatched input": ((x[0, 0], (h[0], h[0])), "hx[0] must have shape [6] for input of shape [4]"),
    "three states": ((x[0], (h[0], h[0], h[0])), "hx must be a pair (h_0, c_0) of tensors, got a tuple of 3"),
}


def cases(table: dict[str, tuple[Any, ...]]) -> Any:
    return pytest.mark.parametrize(
        ("given", "fragments"), [(row[0], row[1:]) for row in table.values()], ids=list(table)
    )


def error_of(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], fragments: tuple[str, ...]) -> None:
    error = error_of(ours)
    assert type(error) is type(error_of(theirs))
    for fragment in fragments:
        assert fragment in str(error)


def explained(module: nn.Module, given: tuple[Any, ...], error: Exception) -> None:
    """explain() raises what the call raises."""
    found = error_of(lambda: customlstm.explain(module, *given))
    assert type(found) is type(error) and str(found) == str(error)


@cases(CONSTRUCTOR)
def test_constructor(given: dict[str, Any], fragments: tuple[str, ...]) -> None:
    arguments = {"input_size": 4, "hidden_size": 6} | given
    compare(lambda: customlstm.LSTM(**arguments), lambda: nn.LSTM(**arguments), fragments)


@pytest.mark.parametrize("backend", BACKENDS)
@cases(CALL)
def test_call(given: tuple[Any, ...], fragments: tuple[str, ...], backend: str) -> None:
    ours, theirs = customlstm.LSTM(4, 6, 2, backend=backend), nn.LSTM(4, 6, 2)
    compare(lambda: ours(*given), lambda: theirs(*given), fragments)
    explained(ours, given, error_of(lambda: ours(*given)))


@pytest.mark.parametrize("backend", BACKENDS)
@cases(CELL_CALL)
def test_cell_call(given: tuple[Any, ...], fragments: tuple[str, ...], backend: str) -> None:
    ours, theirs = customlstm.LSTMCell(4, 6, backend=backend), nn.LSTMCell(4, 6)
    compare(lambda: ours(*given), lambda: theirs(*given), fragments)
    explained(ours, given, error_of(lambda: ours(*given)))


@pytest.mark.parametrize("module", [customlstm.LSTM, customlstm.LSTMCell])
def test_not_tensors(module: type) -> None:
    """nn.LSTM dies of an AttributeError or IndexError here."""
    made, input, state = module(4, 6), torch.zeros(B, 4), torch.zeros(1, 6)
    with pytest.raises(TypeError, match=r"input must be a tensor.*got list"):
        made([1.0, 2.0])
    with pytest.raises(TypeError, match=r"hx\[0\] must be a tensor, got NoneType"):
        made(input, (None, None))
    with pytest.raises(RuntimeError, match=r"hx must be a pair.*got a tuple of 1"):
        made(input, (state,))
    with pytest.raises(RuntimeError, match=r"hx must be a pair.*got a dict"):
        made(input, {"h": state})


def test_hx_laid_out_like_batch_first_input() -> None:
    module = customlstm.LSTM(4, 6, 2, batch_first=True)
    turned = h.transpose(0, 1)
    with pytest.raises(RuntimeError, match=r"batch_first holds for input and output only, so transpose hx"):
        module(x.transpose(0, 1), (turned, turned))


def test_batch_first_data_without_batch_first() -> None:
    module = customlstm.LSTM(4, 6, 2)
    with pytest.raises(
        RuntimeError, match=r"input has a batch of 5 \(batch_first=False\), so check batch_first"
    ):
        module(x.transpose(0, 1), (h, h))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        (
            {"lengths": [5, 3, 1]},
            TypeError,
            r"lengths must be a tensor, got list; write torch.tensor\(lengths\)",
        ),
        ({"lengths": torch.tensor([5.0, 3, 1])}, TypeError, "lengths must hold integers"),
        ({"lengths": torch.tensor([True, True, True])}, TypeError, "lengths must hold integers"),
        ({"lengths": torch.tensor([5, 3])}, RuntimeError, r"lengths must have shape \[3\].*got \[2\]"),
        ({"lengths": torch.tensor([[5, 3, 1]])}, RuntimeError, r"got \[1, 3\]"),
        (
            {"lengths": torch.tensor([6, 3, 1])},
            ValueError,
            "between 0 and the 5 steps of input, got values from 1 to 6",
        ),
        ({"lengths": torch.tensor([5, -1, 1])}, ValueError, "got values from -1 to 5"),
        ({"resets": [True]}, TypeError, "resets must be a tensor, got list"),
        ({"resets": torch.zeros(T, B)}, TypeError, "resets must be a bool tensor"),
        (
            {"resets": torch.zeros(T, B + 1).bool()},
            RuntimeError,
            r"resets must have shape \[5, 3\].*got \[5, 4\]",
        ),
        (
            {"resets": torch.zeros(B, T).bool()},
            RuntimeError,
            r"resets must have shape \[5, 3\].*got \[3, 5\]",
        ),
        ({"resets": torch.zeros(T).bool()}, RuntimeError, r"resets must have shape \[5, 3\].*got \[5\]"),
    ],
)
def test_lengths_and_resets(given: dict[str, Any], kind: type[Exception], text: str, backend: str) -> None:
    module = customlstm.LSTM(4, 6, backend=backend)
    for call in (module, module.states, lambda *a, **k: customlstm.explain(module, *a, **k)):
        with pytest.raises(kind, match=text):
            call(x, **given)


def test_lengths_and_resets_by_layout() -> None:
    module = customlstm.LSTM(4, 6, batch_first=True)
    with pytest.raises(RuntimeError, match=r"resets must have shape \[3, 5\].*got \[5, 3\]"):
        module(x.transpose(0, 1), resets=torch.zeros(T, B).bool())
    with pytest.raises(RuntimeError, match=r"resets must have shape \[5\].*got \[5, 3\]"):
        module(x[:, 0], resets=torch.zeros(T, B).bool())
    with pytest.raises(RuntimeError, match=r"lengths must have shape \[1\].*got \[3\]"):
        module(x[:, 0], lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="lengths cannot be given with a PackedSequence"):
        module(packed(), lengths=torch.tensor([5, 3, 1]))
    with pytest.raises(RuntimeError, match=r"resets must have shape \[3, 5\].*got \[4, 3\]"):
        module(packed(), resets=torch.zeros(4, 3).bool())


@pytest.mark.parametrize("module", [customlstm.LSTM, customlstm.LSTMCell])
def test_cell_and_backend(module: type) -> None:
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'fused', 'reference', got 'cuda'"):
        module(4, 6, backend="cuda")
    with pytest.raises(TypeError, match=r"be a customlstm\.Cell, a @customlstm\.cell or None, got 'relu'"):
        module(4, 6, cell="relu")
    with pytest.raises(TypeError, match="positional argument"):
        module(4, 6, 1, True, False, 0.0, False, 0, None, None, customlstm.Cell())


def test_cell_constructor() -> None:
    with pytest.raises(TypeError, match="input_size should be of type int, got: float"):
        customlstm.LSTMCell(4.0, 6)
    with pytest.raises(RuntimeError, match="input_size must not be negative, got -2"):
        customlstm.LSTMCell(-2, 6)
    with pytest.raises(ValueError, match="hidden_size must be greater than zero, got 0"):
        customlstm.LSTMCell(4, 0)
    with pytest.raises(ValueError, match=r"proj_size has to be smaller than hidden_size \(6\), got 7"):
        customlstm.LSTMCell(4, 6, proj_size=7)
