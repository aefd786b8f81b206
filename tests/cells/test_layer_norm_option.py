"""The option layer_norm of a Cell: its places, its encoding, its parameters, its errors."""

import copy
import itertools
import pickle

import pytest
import torch

from customlstm import Cell
from customlstm.cells.layer_norm import PLACES

SUBSETS = [names for size in range(1, 4) for names in itertools.combinations(PLACES, size)]
subsets = pytest.mark.parametrize("places", SUBSETS, ids="+".join)


def test_places_are_a_tuple_in_their_order():
    assert Cell().layer_norm == Cell(layer_norm=[]).layer_norm == ()
    assert Cell(layer_norm="cell").layer_norm == ("cell",)
    for given in (["cell", "input"], ("input", "cell"), {"cell": 1, "input": 2}, iter(["cell", "input"] * 2)):
        assert Cell(layer_norm=given).layer_norm == ("input", "cell")
    assert Cell(layer_norm=PLACES).layer_norm == ("input", "recurrent", "cell")


EXPECTED = "expected any of 'input', 'recurrent', 'cell', such as layer_norm=('input', 'recurrent')"


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (True, TypeError, "layer_norm names the places, got True (bool); "),
        (None, TypeError, "layer_norm names the places, got None (NoneType); "),
        (b"cell", TypeError, "layer_norm names the places, got b'cell' (bytes); "),
        (("input", 1), TypeError, "layer_norm names the places, got 1 (int); "),
        ("gates", ValueError, "layer_norm: unknown place 'gates'; "),
        (["cell", "Input"], ValueError, "layer_norm: unknown place 'Input'; "),
    ],
)
def test_what_names_no_places(given, error, text):
    with pytest.raises(error) as caught:
        Cell(layer_norm=given)
    assert str(caught.value) == text + EXPECTED


@subsets
def test_values_of_a_cell(places):
    cell = Cell("hard_sigmoid", peephole=True, layer_norm=places)
    assert cell.has_options and not cell.is_standard and not Cell(layer_norm=places).is_standard
    assert eval(repr(cell), {"Cell": Cell}) == cell != Cell("hard_sigmoid", peephole=True)
    assert repr(Cell(layer_norm=places)) == f"Cell(layer_norm={places!r})"
    for copied in (pickle.loads(pickle.dumps(cell)), copy.deepcopy(cell), copy.copy(cell)):
        assert copied == cell and hash(copied) == hash(cell) and copied.encode() == cell.encode()
    assert len({cell, *(Cell("hard_sigmoid", peephole=True, layer_norm=other) for other in SUBSETS)}) == 7


@subsets
def test_encoding(places):
    mask = sum({"input": 1, "recurrent": 2, "cell": 4}[place] for place in places)
    name, args = Cell(layer_norm=places, gate_clip=2).encode()
    assert (name, args) == ("lstm", [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, mask])
    assert all(type(number) is float for number in args)
    assert Cell.decode(name, args) == Cell(layer_norm=places, gate_clip=2)
    assert Cell.decode(name, args[:-1]) == Cell(gate_clip=2)


@pytest.mark.parametrize("mask", [0, 8, 1.5, -1, float("nan"), float("inf")])
def test_a_mask_that_does_not_decode(mask):
    text = f"cell_args: layer_norm is {float(mask)}, expected a whole number from 1 to 7"
    with pytest.raises(ValueError, match=text):
        Cell.decode("lstm", [0.0] * 16 + [float(mask)])
    with pytest.raises(
        ValueError, match=r"cell_args has 18 numbers, .* gate_clip, cell_clip, or also layer_norm$"
    ):
        Cell.decode("lstm", [0.0] * 16 + [1.0, float(mask)])


#: Of Cell("hard_sigmoid", peephole=True), made before there was layer_norm.
OLDER_PICKLE = (
    b"\x80\x02ccustomlstm.cells\n_with_options\nccustomlstm.activations\nActivation\nq\x00X\x0c"
    b"\x00\x00\x00hard_sigmoidG?\xc5UUUUUUG?\xe0\x00\x00\x00\x00\x00\x00\x87Rh\x00X\x04\x00\x00"
    b"\x00tanhq\x01NN\x87Rh\x00h\x01NN\x87R\x87}X\x08\x00\x00\x00peephole\x88s\x86R."
)


def test_older_pickles_load():
    assert pickle.loads(OLDER_PICKLE) == Cell("hard_sigmoid", peephole=True)


def test_parameters():
    assert Cell(peephole=True).norm_parameters == {}
    assert Cell(layer_norm="cell").norm_parameters == {"weight_ln_c": 1, "bias_ln_c": 1}
    cell = Cell(peephole=True, layer_norm=PLACES)
    assert list(cell.norm_parameters.items()) == [
        ("weight_ln_ih", 4), ("bias_ln_ih", 4), ("weight_ln_hh", 4), ("bias_ln_hh", 4), ("weight_ln_c", 1),
        ("bias_ln_c", 1),
    ]  # fmt: skip
    assert cell.unit_parameters == ("peephole_i", "peephole_f", "peephole_o")
    assert [Cell(layer_norm=places).saved for places in SUBSETS] == [8, 8, 4, 8, 8, 8, 8]


def test_pointwise_takes_gain_and_bias_after_the_units_own():
    cell = Cell(peephole=True, layer_norm="cell")
    gates, c, p = torch.randn(4, 2, 5), torch.randn(2, 5), torch.randn(5, 5)
    h, (new,) = cell.pointwise(c)(gates.unbind(), (c,), p.unbind())
    plain = Cell(peephole=True, output_activation="identity").pointwise(c)
    expected, (same,) = plain(gates.unbind(), (c,), p[:3].unbind())
    assert torch.equal(new, same)
    shown = torch.nn.functional.layer_norm(new, (5,), p[3], p[4])
    torch.testing.assert_close(h, expected / new * shown.tanh(), rtol=1e-4, atol=1e-5)
