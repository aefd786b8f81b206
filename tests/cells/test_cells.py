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
        ("lstm", [0, 0, 0, 0] * 4, "cell_args has 16 numbers, the three activations take 12"),
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
    with pytest.raises(TypeError, match="peephole"):
        Cell(peephole=True)


def test_as_cell():
    assert as_cell(None).is_standard
    assert as_cell(CELLS[1]) is CELLS[1]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            "tanh",
            r"cell must be a customlstm.Cell or None, got 'tanh' \(str\); .* Cell\(cell_activation='tanh'\)",
        ),
        (KNOTS, r"\(PiecewiseLinear\); .* write Cell\(cell_activation=\.\.\.\)"),
        (Activation("relu"), r"write Cell\(cell_activation=\.\.\.\)"),
        (Cell, r"write Cell\(\) with parentheses"),
        (torch.tanh, r"write Cell\(cell_activation=PiecewiseLinear.fit\(fn\)\)"),
        (7, r"got 7 \(int\)$"),
    ],
)
def test_what_is_no_cell(given, text):
    with pytest.raises(TypeError, match=text):
        as_cell(given)
