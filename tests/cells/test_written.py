"""``@customlstm.cell`` as a value: what it says of itself, how it is kept, and what it refuses."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import customlstm
from customlstm import LSTM, LSTMCell, compat, convert
from customlstm.cells import UserCell, gallery
from customlstm.jit import CellError


@customlstm.cell
def with_parameters(
    f: Tensor, g: Tensor, c: Tensor, *, start: float = 0.25, free: Tensor
) -> tuple[Tensor, Tensor]:
    """A docstring."""
    c = torch.sigmoid(f + start * c) * c + torch.tanh(g) * free
    return torch.tanh(c), c


@customlstm.cell
def mixing(f: Tensor, g: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    c = torch.sigmoid(f) * c + torch.softmax(g, -1)
    return c, c


def branching(f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    if f.sum() > 0:
        c = c + f
    return c, c


def test_what_it_says() -> None:
    cell = with_parameters
    assert (cell.gates, cell.states) == (2, 1)
    assert (cell.gate_names, cell.state_names, cell.unit_parameters) == (
        ("f", "g"),
        ("c",),
        ("start", "free"),
    )
    assert cell.initial == {"start": 0.25}
    assert cell.name == cell.__name__ == "with_parameters" and cell.__doc__ == "A docstring."
    assert not cell.is_standard and cell.why_not_fused is None and cell.forget_gate == 0
    assert len(cell.digest) == 64 and cell.source.startswith("@customlstm.cell\ndef with_parameters(")
    assert str(cell) == "with_parameters(f, g, c, *, start, free)"
    assert repr(cell) == "<cell with_parameters(f, g, c, *, start, free)>"
    lstm = LSTM(3, 4, cell=cell)
    assert repr(lstm) == "LSTM(3, 4, cell=with_parameters(f, g, c, *, start, free))"
    values = [torch.randn(5) for _ in range(3)]
    h, c = cell(*values, start=torch.ones(5), free=torch.ones(5))
    assert torch.equal(h, torch.tanh(c))


def test_it_is_looked_at_when_it_is_used_first() -> None:
    calls = []

    @customlstm.cell
    def lazy(a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return a + c, c

    assert not calls and repr(lazy) == "lazy"
    LSTM(2, 3, cell=lazy)
    count = len(calls)
    assert count > 0
    LSTM(2, 3, cell=lazy)
    assert len(calls) == count


def test_it_may_be_looked_at_where_tensors_are_fake() -> None:
    @customlstm.cell
    def first_seen_here(a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(a) * torch.sigmoid(c), a + c

    with FakeTensorMode():
        output, _ = LSTM(2, 3, cell=first_seen_here)(torch.zeros(4, 5, 2))
    assert output.shape == (4, 5, 3) and isinstance(output, FakeTensor)
    assert first_seen_here.why_not_fused is None


def test_import_neither_traces_nor_loads_the_tools_for_it() -> None:
    script = """
        import sys, customlstm
        from customlstm.cells import gallery
        assert all(repr(getattr(gallery, name)) == name for name in gallery.__all__)
        print("customlstm.jit" in sys.modules)
    """
    code = textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# --- parameters ---


def test_parameters_of_modules() -> None:
    torch.manual_seed(0)
    lstm = LSTM(3, 4, 2, bidirectional=True, cell=with_parameters)
    shapes = {name: list(weight.shape) for name, weight in lstm.named_parameters()}
    assert shapes["weight_ih_l0"] == [8, 3] and shapes["weight_hh_l1_reverse"] == [8, 4]
    assert shapes["bias_ih_l0"] == [8] and shapes["free_l1_reverse"] == [4]
    assert len(shapes) == 4 * 6
    assert torch.equal(lstm.start_l1, torch.full((4,), 0.25))
    assert lstm.free_l0.abs().max() <= 0.5 and lstm.free_l0.count_nonzero() == 4
    step = LSTMCell(3, 4, bias=False, cell=with_parameters)
    assert list(step.state_dict()) == ["weight_ih", "weight_hh", "start", "free"]
    assert torch.equal(step.start, torch.full((4,), 0.25))


def test_forget_bias_is_for_the_gate_named_f() -> None:
    lstm = LSTM(3, 4, cell=gallery.slstm, forget_bias=1.5)
    assert torch.equal((lstm.bias_ih_l0 + lstm.bias_hh_l0)[4:8], torch.full((4,), 1.5))
    lstm = LSTM(3, 4, cell=gallery.janet, forget_bias=2.0)
    assert torch.equal((lstm.bias_ih_l0 + lstm.bias_hh_l0)[:4], torch.full((4,), 2.0))
    with pytest.raises(
        ValueError, match=r"=1.0 .* cell=coupled\(i, g, o, c\); leave it out, or name that gate f$"
    ):
        LSTM(3, 4, cell=gallery.coupled, forget_bias=1.0)


def test_names_that_are_taken() -> None:
    @customlstm.cell
    def first(a: Tensor, c: Tensor, *, weight_ih: Tensor) -> tuple[Tensor, Tensor]:
        return a * weight_ih, c

    @customlstm.cell
    def second(a: Tensor, c: Tensor, *, training: Tensor) -> tuple[Tensor, Tensor]:
        return a * training, c

    @customlstm.cell
    def third(a: Tensor, c: Tensor, *, k_l0: float = 0.5) -> tuple[Tensor, Tensor]:
        return a * k_l0, c

    for module in (LSTM, LSTMCell):
        with pytest.raises(ValueError, match="has a parameter named k_l0, which reads like one of a layer"):
            module(3, 4, cell=third)
        with pytest.raises(
            ValueError, match="has a parameter named weight_ih, as the layer has; give it another"
        ):
            module(3, 4, cell=first)
    with pytest.raises(ValueError, match="has a parameter named training, which LSTMCell uses for itself"):
        LSTMCell(3, 4, cell=second)
    assert LSTM(3, 4, cell=second).training_l0.shape == (4,)


@pytest.mark.parametrize("module", [LSTM, LSTMCell])
def test_assignment_keeps_sizes(module: type) -> None:
    made = module(3, 4, cell=gallery.standard)
    made.cell = gallery.hard
    assert made.cell is gallery.hard
    made.cell = None
    assert made.cell.is_standard
    with pytest.raises(
        ValueError, match=r"cell has 3 gates and 1 state besides h, this module was made for 4 gates"
    ):
        made.cell = gallery.coupled
    with pytest.raises(
        ValueError, match=r"cell has 4 gates and 3 states besides h, this module was made for"
    ):
        made.cell = gallery.slstm
    with pytest.raises(
        ValueError, match=r"has the parameters \['peephole_i', 'peephole_f', 'peephole_o'\], this"
    ):
        made.cell = gallery.peephole
    assert made.cell.is_standard


def test_conversions() -> None:
    theirs = torch.nn.LSTM(3, 4)
    ours = convert.to_customlstm(theirs, cell=gallery.peephole)
    assert torch.equal(ours.peephole_f_l0, torch.zeros(4))
    x = torch.randn(5, 2, 3)
    assert torch.allclose(ours(x)[0], theirs(x)[0], atol=1e-6)
    with pytest.raises(
        ValueError, match=r"cell=coupled\(i, g, o, c\) has 3 gates, the weights of module are for 4"
    ):
        convert.to_customlstm(theirs, cell=gallery.coupled)
    with pytest.raises(ValueError, match=r"torch.nn has only the standard one"):
        convert.to_torch(ours)
    with pytest.raises(
        ValueError, match="has 4 gates and 3 states, the hand-written form has four gates and one"
    ):
        compat.LSTM(3, 4, cell=gallery.slstm)
    assert compat.LSTM(3, 4, cell=gallery.hard)(x)[0].isfinite().all()


# --- kept and copied ---


def test_pickle_copy_and_equality() -> None:
    cell = with_parameters
    assert pickle.loads(pickle.dumps(cell)) is cell
    assert copy.deepcopy(cell) is cell and copy.copy(cell) is cell
    same = customlstm.cell(lambda f, g, c: (torch.sigmoid(f) * c + g, c))
    other = customlstm.cell(lambda f, g, c: (torch.sigmoid(f) * c + g, c))
    another = customlstm.cell(lambda f, g, c: (torch.sigmoid(f) * c - g, c))
    assert same == other and hash(same) == hash(other) and same != another and same != "cell"
    assert copy.deepcopy(LSTM(3, 4, cell=cell)).cell is cell
    assert customlstm.cell(cell) is cell


def test_it_loads_where_its_module_does_not_exist(tmp_path: Path) -> None:
    lstm = LSTM(3, 4, cell=with_parameters, backend="reference")
    x = torch.randn(5, 2, 3)
    torch.save({"lstm": lstm, "x": x, "output": lstm(x)[0].detach()}, tmp_path / "lstm.pt")
    script = f"""
        import pickle, torch, customlstm
        saved = torch.load({str(tmp_path / "lstm.pt")!r}, weights_only=False)
        lstm = saved["lstm"]
        assert torch.equal(lstm(saved["x"])[0], saved["output"])
        cell = lstm.cell
        assert str(cell) == "with_parameters(f, g, c, *, start, free)"
        assert "torch.sigmoid(f + start * c)" in cell.source
        h, c = cell(torch.ones(2), torch.ones(2), torch.ones(2), start=torch.ones(2), free=torch.ones(2))
        assert h.shape == (2,)
        again = pickle.loads(pickle.dumps(cell))
        assert again is cell and cell == again
        print("loaded")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.stdout == "loaded\n", done.stderr


def test_torch_load_reads_it_without_running_code() -> None:
    file = io.BytesIO()
    torch.save({"cell": with_parameters}, file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["cell"] is with_parameters


def test_damaged_pickles_are_refused() -> None:
    restore, (data, source) = with_parameters.__reduce__()
    assert restore(data, source) is with_parameters
    with pytest.raises(ValueError, match="source of a pickled cell must be a str, got int"):
        restore(data, 3)
    damaged = copy.deepcopy(data)
    damaged["forward"]["instructions"][0][0] = "system"
    with pytest.raises(ValueError, match=r"not a cell program: .*unknown operation 'system'"):
        restore(damaged, source)


# --- what cannot be a kernel, or no cell at all ---


def test_the_decorator_takes_no_parentheses() -> None:
    with pytest.raises(TypeError, match=r"function is missing: write @customlstm\.cell above the def"):
        customlstm.cell()


def test_attributes_of_the_function_are_its_own() -> None:
    def function(a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return a + c, c

    function._meaning, function.name = True, 3.0
    lstm = LSTM(2, 3, cell=customlstm.cell(function))
    assert lstm.cell.gates == 1 and lstm.cell.initial == {}


@pytest.mark.parametrize("wrong", [3, "tanh", torch.nn.Tanh])
def test_what_is_no_function(wrong: object) -> None:
    with pytest.raises(
        TypeError, match=r"function must be a function of gates and states, got .*write @customlstm"
    ):
        customlstm.cell(wrong)


def test_a_plain_function_is_no_cell() -> None:
    with pytest.raises(TypeError, match=r"to make a cell of a function write @customlstm.cell above it"):
        LSTM(3, 4, cell=branching)


def test_what_is_no_cell_is_said_when_a_module_is_made() -> None:
    @customlstm.cell
    def alone(a: Tensor, c: Tensor) -> Tensor:
        return a + c

    with pytest.raises(CellError, match="cell function 'alone'"):
        LSTM(3, 4, cell=alone)


def test_what_cannot_be_fused_runs_on_the_reference_and_says_why() -> None:
    lstm = LSTM(3, 4, cell=mixing)
    assert "softmax" in mixing.why_not_fused and "test_written.py" in mixing.why_not_fused
    assert mixing.program is None and mixing.digest is None
    x = torch.randn(5, 2, 3, requires_grad=True)
    with pytest.warns(customlstm.FallbackWarning, match="cannot be fused: .*softmax"):
        customlstm.dispatch._warned.clear()
        output, (_, c_n) = lstm(x)
    output.sum().backward()
    assert x.grad.isfinite().all() and c_n.shape == (1, 2, 4)
    report = str(customlstm.explain(lstm, x))
    assert "reference: plain PyTorch on cpu" in report and "torch.softmax" in report
    with pytest.raises(RuntimeError, match=r"backend='fused' cannot run: .*cannot be fused: .*softmax"):
        LSTM(3, 4, cell=mixing, backend="fused")(x)
    assert pickle.loads(pickle.dumps(mixing)) is mixing
    unfused = customlstm.cell(branching)
    LSTM(3, 4, cell=unfused)
    with pytest.raises(
        TypeError, match=r"cannot be pickled: it cannot be fused, .*define it at the top of a module"
    ):
        pickle.dumps(unfused)


def test_check_cell() -> None:
    for name in gallery.__all__:
        found = customlstm.check_cell(getattr(gallery, name))
        assert isinstance(found.cell, str) and found.traced < 1e-12, f"{name}: {found}"
        assert (found.fused is None) == (found.why_not_fused is not None)
        assert found.fused is None or found.fused < 1e-11, f"{name}: {found}"
    assert "as traced" in str(found)
    with pytest.raises(CellError, match="softmax"):
        customlstm.check_cell(mixing)
    with pytest.raises(CellError, match="branching"):
        customlstm.check_cell(branching)
    with pytest.raises(ValueError, match=r"dtype must be torch.float64 or torch.float32, got torch.float16"):
        customlstm.check_cell(gallery.leaky, dtype=torch.float16)

    another = customlstm.cell(lambda a, c: (a + 2 * c, c)).program
    wrong = UserCell(lambda a, c: (a + c, c), another)
    with pytest.raises(
        AssertionError, match=r"as traced: h is .* unless the function is not the same at every call"
    ):
        customlstm.check_cell(wrong)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match=r"unknown cell 'user.x': this process has not met it; import the module"
    ):
        customlstm.cells.decode("user.x", [])
    name, _ = gallery.leaky.encode()
    with pytest.raises(ValueError, match="cell_args has 1 numbers, expected none"):
        customlstm.cells.decode(name, [1.0])
    assert isinstance(customlstm.cells.decode(name, []), UserCell)
