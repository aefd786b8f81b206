"""Cell: what it holds, its encoding, its texts."""

import copy
import dataclasses
import pickle
import random

import pytest
import torch

from customlstm import Cell, PiecewiseLinear
from customlstm.activations import KINDS, Activation
from customlstm.cells import as_cell

KNOTS = PiecewiseLinear([-1.5, 0.0, 2.0], [-1.0, 0.25, 1.0])
CELLS = [
    Cell(),
    Cell("hard_sigmoid", "hard_tanh", "identity"),
    Cell(gate_activation=("hard_sigmoid", {"alpha": 0.2})),
    Cell(cell_activation=KNOTS),
    Cell(KNOTS, PiecewiseLinear([0, 1], [0, 1]), KNOTS),
    Cell(output_activation=("scaled_tanh", {"alpha": 1.7159, "beta": 2 / 3})),
    Cell(peephole=True),
    Cell("hard_sigmoid", coupled_gates=True, gate_clip=3),
    Cell(output_activation=KNOTS, peephole=True, coupled_gates=True, gate_clip=2.5, cell_clip=1),
]


def test_attributes():
    cell = Cell(gate_activation="relu", output_activation=("elu", {"alpha": 0.5}))
    assert cell.gate_activation == Activation("relu")
    assert cell.cell_activation == Activation("tanh")
    assert cell.output_activation == Activation("elu", 0.5)
    with pytest.raises(AttributeError):
        cell.gate_activation = "tanh"
    assert dataclasses.replace(cell, gate_activation="sigmoid") == Cell(
        output_activation=("elu", {"alpha": 0.5})
    )


def test_is_standard():
    assert Cell().is_standard
    assert Cell("sigmoid", Activation("tanh"), ("tanh", {})).is_standard
    assert not any(cell.is_standard for cell in CELLS[1:])


def test_encoding():
    assert Cell().encode() == ("lstm", [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])
    name, args = Cell("hard_sigmoid", KNOTS, "leaky_relu").encode()
    assert name == "lstm"
    assert args == [7, 1 / 6, 0.5, 0, 13, 0, 0, 3, -1.5, 0.0, 2.0, -1.0, 0.25, 1.0, 4, 0.01, 0, 0]
    assert all(type(number) is float for number in args)
    name, args = Cell(peephole=True, cell_clip=2).encode()
    assert (name, args) == ("lstm", [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 2])
    assert Cell.decode(name, [*args[:12], 0, 0, 0, 0]).is_standard


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_decoding_is_the_way_back(cell):
    name, args = cell.encode()
    assert Cell.decode(name, args) == cell
    args[0] = 12.0  # a list of the caller's own
    assert cell.encode() == Cell.decode(*cell.encode()).encode() != ("lstm", args)


def test_every_activation_decodes():
    names = list(KINDS)
    for name in names:
        cell = Cell(name, random.Random(name).choice(names), name)
        assert Cell.decode(*cell.encode()) == cell


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("gru", [], "unknown cell 'gru', expected 'lstm'"),
        ("lstm", [], "cell_args ends within gate_activation: 0 numbers"),
        ("lstm", [0, 0, 0, 0, 1, 0, 0], "ends within cell_activation"),
        ("lstm", [13, 0, 0, 3, 0, 1, 2], "ends within gate_activation"),
        ("lstm", [13, 0, 0, 2.5, 0, 1, 2, 3], "ends within gate_activation"),
        ("lstm", [13, 0, 0, -1, 0, 1, 2, 3], "ends within gate_activation"),
        ("lstm", [14, 0, 0, 0] * 3, "gate_activation has kind 14 with 0 knots"),
        ("lstm", [0.5, 0, 0, 0] * 3, "gate_activation has kind 0.5"),
        ("lstm", [0, 0, 0, 0, 1, 0, 0, 1, 5, 6, 0, 0, 0, 0], "cell_activation has kind 1 with 1 knots"),
        ("lstm", [0, 0, 0, 0] * 5, "cell_args has 20 numbers, the three activations take 12"),
        ("lstm", [*[0, 0, 0, 0] * 3, 1], "expected none or 4 more: peephole, coupled_gates, gate_clip"),
        ("lstm", [*[0, 0, 0, 0] * 3, 2, 0, 0, 0], "peephole is 2, expected 0 or 1"),
        ("lstm", [*[0, 0, 0, 0] * 3, 0, 0.5, 0, 0], "coupled_gates is 0.5"),
        ("lstm", [*[0, 0, 0, 0] * 3, 0, 0, -1, 0], "gate_clip .* greater than 0, got -1"),
        ("lstm", [*[0, 0, 0, 0] * 3, 0, 0, 0, float("inf")], "cell_clip must be finite"),
        ("lstm", [13, 0, 0, 2, 1, 0, 0, 0] * 3, "must increase strictly"),
    ],
)
def test_what_does_not_decode(name, args, text):
    with pytest.raises(ValueError, match=text):
        Cell.decode(name, args)


def test_bind():
    x = torch.linspace(-3, 3, 50)
    for cell in CELLS:
        parts = (cell.gate_activation, cell.cell_activation, cell.output_activation)
        for bound, part in zip(cell.bind(x), parts, strict=True):
            assert torch.equal(bound(x), part(x))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_values_of_a_cell(cell):
    assert eval(repr(cell), {"Cell": Cell, "PiecewiseLinear": PiecewiseLinear}) == cell
    for copied in (pickle.loads(pickle.dumps(cell)), copy.deepcopy(cell), copy.copy(cell)):
        assert copied == cell
        assert hash(copied) == hash(cell)
        assert copied.encode() == cell.encode()
    assert len({*CELLS, cell}) == len(CELLS)


def test_texts():
    assert repr(Cell()) == str(Cell()) == "Cell()"
    assert repr(Cell(gate_activation="hard_sigmoid")) == "Cell(gate_activation='hard_sigmoid')"
    assert str(Cell(cell_activation=KNOTS)) == "Cell(cell_activation=PiecewiseLinear(3 knots on [-1.5, 2]))"
    assert repr(CELLS[2]) == "Cell(gate_activation=('hard_sigmoid', {'alpha': 0.2}))"


@pytest.mark.parametrize("argument", ["gate_activation", "cell_activation", "output_activation"])
def test_errors_name_the_argument(argument):
    with pytest.raises(ValueError, match=rf"{argument}: unknown activation 'swish'"):
        Cell(**{argument: "swish"})
    with pytest.raises(TypeError, match=rf"{argument} must be an activation name"):
        Cell(**{argument: torch.tanh})


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"peephole": 1}, TypeError, r"peephole must be True or False, got 1 \(int\)"),
        ({"coupled_gates": None}, TypeError, "coupled_gates must be True or False"),
        ({"gate_clip": 0}, ValueError, r"gate_clip clamps to \[-gate_clip, .* greater than 0"),
        ({"cell_clip": -1.5}, ValueError, "got -1.5; None is for no clamp"),
        ({"gate_clip": "3"}, TypeError, "gate_clip must be a number, got '3'"),
        ({"gate_clip": True}, TypeError, "gate_clip must be a number"),
        ({"cell_clip": float("nan")}, ValueError, "cell_clip must be finite"),
    ],
)
def test_options_that_cannot_be(options, error, text):
    with pytest.raises(error, match=text):
        Cell(**options)


def test_options():
    cell = Cell(peephole=True, gate_clip=3)
    assert (cell.peephole, cell.coupled_gates, cell.gate_clip, cell.cell_clip) == (True, False, 3.0, None)
    assert cell.has_options and not Cell("hard_sigmoid").has_options
    assert Cell("hard_sigmoid").unit_parameters == Cell(coupled_gates=True).unit_parameters == ()
    assert cell.unit_parameters == ("peephole_i", "peephole_f", "peephole_o")
    assert Cell(peephole=True, coupled_gates=True).unit_parameters == ("peephole_i", "peephole_o")
    assert repr(cell) == str(cell) == "Cell(peephole=True, gate_clip=3.0)"


def test_as_cell():
    assert as_cell(None).is_standard
    assert as_cell(CELLS[1]) is CELLS[1]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            "tanh",
            r"cell must be a customlstm.Cell, a @customlstm.cell or None, got 'tanh' \(str\); .* "
            r"Cell\(cell_activation='tanh'\)",
        ),
        (KNOTS, r"\(PiecewiseLinear\); .* write Cell\(cell_activation=\.\.\.\)"),
        (Activation("relu"), r"write Cell\(cell_activation=\.\.\.\)"),
        (Cell, r"write Cell\(\) with parentheses"),
        (
            torch.tanh,
            r"write @customlstm.cell above it, and to change an activation "
            r"Cell\(cell_activation=PiecewiseLinear.fit\(fn\)\)",
        ),
        (7, r"got 7 \(int\)$"),
    ],
)
def test_what_is_no_cell(given, text):
    with pytest.raises(TypeError, match=text):
        as_cell(given)
