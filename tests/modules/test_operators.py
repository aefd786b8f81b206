"""The operators themselves: opcheck on every one, their schemas, and bad arguments."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support import BACKENDS
from torch import Tensor
from torch.library import opcheck

import customlstm
from customlstm import ops, schemas

T, B, INPUT, HIDDEN = 4, 3, 2, 5
NAME, ARGUMENTS = customlstm.Cell(
    "hard_sigmoid", customlstm.PiecewiseLinear([-1.0, 1.0], [-1.0, 1.0])
).encode()

layer_operators = pytest.mark.parametrize("operator", [ops.lstm_layer, ops.lstm_layer_reference], ids=str)
cell_operators = pytest.mark.parametrize("operator", [ops.lstm_cell, ops.lstm_cell_reference], ids=str)


def weights_of(
    directions: int, bias: bool, proj_size: int, dtype: torch.dtype, requires_grad: bool = True
) -> list[Tensor]:
    state = proj_size or HIDDEN
    shapes = [(4 * HIDDEN, INPUT), (4 * HIDDEN, state)]
    shapes += [(4 * HIDDEN,)] * 2 if bias else []
    shapes += [(state, HIDDEN)] if proj_size else []
    return [
        torch.randn(s, dtype=dtype).requires_grad_(requires_grad) for _ in range(directions) for s in shapes
    ]


def layer_arguments(
    directions: int = 1,
    bias: bool = True,
    proj_size: int = 0,
    dtype: torch.dtype = torch.float64,
    given: bool = True,
    packed: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    mask: bool = False,
    zoneout: bool = False,
    save: int = 2,
) -> list[Any]:
    requires_grad = save == 2
    leaf = lambda *shape: torch.randn(*shape, dtype=dtype).requires_grad_(requires_grad)  # noqa: E731
    sizes = torch.tensor([3, 2, 1, 1]) if packed else None
    hx = [leaf(directions, B, proj_size or HIDDEN), leaf(directions, B, HIDDEN)] if given else [None, None]
    input = leaf(7, INPUT) if packed else leaf(T, B, INPUT)
    weights = weights_of(directions, bias, proj_size, dtype, requires_grad)
    flags = [bias, proj_size > 0, directions == 2]
    kept = torch.rand(directions, B, proj_size or HIDDEN) < 0.5 if mask else None
    rows = input.shape[:-1]
    zones = [
        torch.rand(*rows, directions * size) < 0.5 if zoneout else None
        for size in (proj_size or HIDDEN, HIDDEN)
    ]
    return [
        input, *hx, weights, sizes, lengths, resets, kept, *zones, NAME, ARGUMENTS, *flags, 2.0, 0.0, 0.25,
        save,
    ]  # fmt: skip


LAYERS = {
    "plain": {},
    "zeros": {"given": False},
    "both ways, projected": {"directions": 2, "proj_size": 2, "bias": False},
    "packed": {"directions": 2, "packed": True, "resets": torch.tensor([[0, 1, 0]] * T).bool()},
    # Full lengths: beyond a length the kept gates are undefined, and opcheck compares every result.
    "lengths and resets": {
        "lengths": torch.tensor([4, 4, 4]),
        "resets": torch.tensor([[0, 1, 0]] * T).bool(),
    },
    "16 bit": {"dtype": torch.bfloat16, "proj_size": 2},
    "zoneout": {"zoneout": True, "directions": 2, "packed": True, "proj_size": 2},
    "mask": {"mask": True, "directions": 2, "packed": True, "proj_size": 2},
    "nothing saved": {"save": 0},
    "states saved": {"save": 1},
}


def without_gradient(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [v.detach() for v in value]
    return value


@layer_operators
@pytest.mark.parametrize("options", LAYERS.values(), ids=list(LAYERS))
def test_opcheck_layer(options: dict[str, Any], operator: Any) -> None:
    arguments = layer_arguments(**options)
    opcheck(operator, arguments)
    if arguments[-1] < 2:
        return
    output, _, c_n, c_all, *rest = (t.detach() for t in operator(*arguments))
    inputs = [without_gradient(a) for a in arguments[:-1]]
    needs = [1, 0, arguments[1] is not None] + [1] * len(arguments[3])
    grads = [torch.randn_like(output), None, torch.randn_like(c_n), torch.randn_like(c_all)]
    backward = getattr(torch.ops.customlstm, f"{operator._opname}_backward").default
    opcheck(backward, [*grads, *inputs, output, c_all, *rest, [int(need) for need in needs]])


@cell_operators
@pytest.mark.parametrize(
    "options", [{}, {"proj_size": 2, "bias": False, "dtype": torch.bfloat16}], ids=["plain", "16 bit"]
)
def test_opcheck_cell(options: dict[str, Any], operator: Any) -> None:
    input, h_0, c_0, weights, *_ = layer_arguments(**options)
    rest = layer_arguments(**options)[10:]
    arguments = [*(without_gradient(t)[0].requires_grad_() for t in (input, h_0, c_0)), weights, *rest[:4], 2]
    opcheck(operator, arguments)
    h_1, _, *saved = (t.detach() for t in operator(*arguments))
    inputs = [without_gradient(a) for a in arguments[:-1]]
    backward = getattr(torch.ops.customlstm, f"{operator._opname}_backward").default
    opcheck(backward, [torch.randn_like(h_1), None, *inputs, h_1, *saved, [0, 1, 1] + [1] * len(weights)])


@layer_operators
@pytest.mark.parametrize("save", [0, 1])
def test_backward_after_too_little_was_saved(save: int, operator: Any) -> None:
    arguments = layer_arguments()
    arguments[-1] = save
    output = operator(*arguments)[0]
    with pytest.raises(RuntimeError, match=f"called with save={save}, which keeps nothing for backward"):
        output.sum().backward()


BAD = {
    "one weight short": (3, lambda w: w[:-1]),
    "shape of w_ih": (3, lambda w: [w[0][:, :1], *w[1:]]),
    "shape of w_hh": (3, lambda w: [w[0], w[1][:-1], *w[2:]]),
    "shape of b_hh": (3, lambda w: [*w[:3], w[3][:-1]]),
    "dtype of a weight": (3, lambda w: [w[0].float(), *w[1:]]),
    "h_0 without c_0": (2, lambda c: None),
    "shape of h_0": (1, lambda h: h[:, :-1]),
    "dtype of c_0": (2, lambda c: c.float()),
    "2-D input": (0, lambda x: x[0]),
    "integer input": (0, lambda x: x.detach().long()),
    "shape of lengths": (5, lambda _: torch.tensor([1, 2])),
    "dtype of lengths": (5, lambda _: torch.tensor([1, 2, 3], dtype=torch.int32)),
    "lengths too long": (5, lambda _: torch.tensor([1, 2, T + 1])),
    "lengths negative": (5, lambda _: torch.tensor([1, 2, -1])),
    "shape of resets": (6, lambda _: torch.zeros(B, T).bool()),
    "dtype of resets": (6, lambda _: torch.zeros(T, B)),
    "shape of recurrent_mask": (7, lambda _: torch.zeros(1, HIDDEN, B).bool()),
    "dtype of recurrent_mask": (7, lambda _: torch.zeros(1, B, HIDDEN)),
    "shape of zoneout_h": (8, lambda _: torch.zeros(T, B, 1).bool()),
    "dtype of zoneout_c": (9, lambda _: torch.zeros(T, B, HIDDEN)),
    "zoneout_h_rate": (16, lambda _: 1.5),
    "zoneout_c_rate": (17, lambda _: -0.5),
    "unknown cell": (10, lambda _: "gru"),
    "cell arguments cut short": (11, lambda a: a[:-1]),
    "unknown activation": (11, lambda a: [99.0, *a[1:]]),
    "save": (-1, lambda _: 3),
}


@layer_operators
@pytest.mark.parametrize(("position", "spoil"), BAD.values(), ids=list(BAD))
def test_bad_metadata_raises(position: int, spoil: Any, operator: Any) -> None:
    arguments = layer_arguments()
    arguments[position] = spoil(arguments[position])
    with pytest.raises((RuntimeError, ValueError), match=r"\w+"):
        operator(*arguments)


@layer_operators
@pytest.mark.parametrize(
    "sizes", [[3, 2, 1], [3, 2, 1, 1, 1], [2, 3, 1, 1], [3, 3, 1, 0], [4, 1, 1, 1], [-1, 3, 3, 2]]
)
def test_bad_batch_sizes_raise(sizes: list[int], operator: Any) -> None:
    arguments = layer_arguments(packed=True)
    arguments[4] = torch.tensor(sizes)
    with pytest.raises((RuntimeError, ValueError), match="batch_sizes"):
        operator(*arguments)


def test_fused_and_reference_have_one_schema() -> None:
    for name in ("lstm_layer", "lstm_cell"):
        for suffix in ("", "_backward"):
            schema = str(getattr(torch.ops.customlstm, name + suffix).default._schema)
            twin = str(getattr(torch.ops.customlstm, f"{name}_reference{suffix}").default._schema)
            assert twin.replace("_reference", "", 1) == schema


def test_schema_text_equals_that_of_the_library() -> None:
    """One text in two languages."""
    header = Path(__file__).resolve().parents[2] / "csrc/ops/schema.h"
    if not header.is_file():
        pytest.skip("installed without sources")
    macros = re.findall(r"#define CUSTOMLSTM_(\w+)_SCHEMA((?:[^\n]*\\\n)*[^\n]*)", header.read_text())
    texts = {name: "".join(re.findall(r'"([^"]*)"', body)) for name, body in macros}
    expected = {
        schemas.name_of(s).removeprefix("lstm_").upper(): s[len(schemas.name_of(s)) :]
        for s in schemas.SCHEMAS
    }
    assert texts == expected


@pytest.mark.skipif("fused" not in BACKENDS, reason="no compiled library")
def test_the_library_registered_what_the_package_expects() -> None:
    for schema in schemas.SCHEMAS:
        found = getattr(torch.ops.customlstm, schemas.name_of(schema)).default._schema
        assert str(found) == str(torch._C.parse_schema(f"customlstm::{schema}"))
