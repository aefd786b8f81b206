"""Layer normalisation in modules: against nn.LayerNorm, its parameters, and every way to run a module."""

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from support import BACKENDS, assert_all_near, assert_near, weighted_sum
from support_options import HIDDEN, INPUT, B, T, backends, make, random_input, shapes
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import customlstm
from customlstm import Cell, compat, convert, dispatch

PLACES = ("input", "recurrent", "cell")
SUBSETS = [names for size in range(1, 4) for names in itertools.combinations(PLACES, size)]
subsets = pytest.mark.parametrize("places", SUBSETS, ids="+".join)
CELLS = [
    Cell(layer_norm=PLACES),
    Cell("hard_sigmoid", "softsign", peephole=True, coupled_gates=True, gate_clip=1.5, layer_norm=PLACES),
    Cell(peephole=True, gate_clip=0.9, cell_clip=0.4, layer_norm=("recurrent", "cell")),
    Cell(output_activation="softsign", layer_norm="input"),
]
cells = pytest.mark.parametrize("cell", CELLS, ids=str)


def stirred(module: nn.Module, scale: float = 0.4) -> nn.Module:
    """``module`` with gains and biases that are all different, so that none may stand in another's place."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "_ln_" in name:
                value.add_(scale * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return module


# --- what it computes ---


def norm_of(lstm: customlstm.LSTM, name: str, suffix: str) -> nn.Module:
    """The nn.LayerNorm with the gain and bias of that name, or nothing where the cell has none."""
    if not hasattr(lstm, f"weight_ln_{name}{suffix}"):
        return nn.Identity()
    norm = nn.LayerNorm(getattr(lstm, f"weight_ln_{name}{suffix}").numel(), dtype=lstm.weight_ih_l0.dtype)
    # Set as attributes, so that gradients reach the module's own parameters.
    del norm.weight, norm.bias
    norm.weight = getattr(lstm, f"weight_ln_{name}{suffix}")
    norm.bias = getattr(lstm, f"bias_ln_{name}{suffix}")
    return norm


def composed(lstm: customlstm.LSTM, x: Tensor, h_0: Tensor, c_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """output, h_n and c_n of sigmoid and tanh with peepholes or without, written with nn.LayerNorm."""
    last_h, last_c = [], []
    for layer in range(lstm.num_layers):
        outputs = []
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][: 1 + lstm.bidirectional]:
            own = {
                name.removesuffix(suffix): p for name, p in lstm.named_parameters() if name.endswith(suffix)
            }
            ln_x, ln_h, ln_c = (norm_of(lstm, name, suffix) for name in ("ih", "hh", "c"))
            h, c = h_0[len(last_h)], c_0[len(last_h)]
            steps = x if not suffix.endswith("reverse") else x.flip(0)
            results = []
            for step in steps:
                a = ln_x(step @ own["weight_ih"].T) + ln_h(h @ own["weight_hh"].T)
                a = a + own.get("bias_ih", 0.0) + own.get("bias_hh", 0.0)
                i, f, g, o = a.split(HIDDEN, -1)
                i, f = i + own.get("peephole_i", 0.0) * c, f + own.get("peephole_f", 0.0) * c
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = (o + own.get("peephole_o", 0.0) * c).sigmoid() * ln_c(c).tanh()
                if "weight_hr" in own:
                    h = h @ own["weight_hr"].T
                results.append(h)
            outputs.append(torch.stack(results if steps is x else results[::-1]))
            last_h.append(h)
            last_c.append(c)
        x = torch.cat(outputs, -1)
    return x, torch.stack(last_h), torch.stack(last_c)


def found_by(run: Callable[..., tuple], lstm: customlstm.LSTM, *inputs: Tensor) -> dict[str, Tensor]:
    """output, h_n and c_n, and their gradients for every input and parameter, in float64."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    results = run(lstm, *inputs)
    gradients = torch.autograd.grad(weighted_sum(results), [*inputs, *lstm.parameters()])
    names = ["output", "h_n", "c_n", "x", "h_0", "c_0", *lstm.state_dict()]
    return {k: v.detach().double() for k, v in zip(names, (*results, *gradients), strict=True)}


def called(lstm: customlstm.LSTM, x: Tensor, h_0: Tensor, c_0: Tensor) -> tuple[Tensor, ...]:
    output, hx = lstm(x, (h_0, c_0))
    return (output, *hx)


OPTIONS = {
    "simple": {},
    "deep both ways": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "no bias": {"bias": False},
}


@backends
@subsets
@pytest.mark.parametrize("peephole", [False, True], ids=["", "peephole"])
@pytest.mark.parametrize("options", OPTIONS)
def test_against_nn_layer_norm(backend: str, places: tuple, peephole: bool, options: str) -> None:
    lstm = stirred(make(Cell(peephole=peephole, layer_norm=places), backend, **OPTIONS[options]))
    count = lstm.num_layers * (1 + lstm.bidirectional)
    inputs = [random_input()] + [
        torch.randn(count, B, size, dtype=torch.float64) for size in (lstm.proj_size or HIDDEN, HIDDEN)
    ]
    expected = found_by(composed, lstm, *inputs)
    for name, actual in found_by(called, lstm, *inputs).items():
        assert_near(actual, expected[name], name, 1e-12 * max(1.0, expected[name].abs().max().item()))
    # Where a product hardly varies its roundings are divided by that little, in any float32 computation.
    inputs = [x.float() for x in inputs]
    plain = found_by(composed, lstm.float(), *inputs)
    for name, actual in found_by(called, lstm, *inputs).items():
        unit = 1e-5 * max(1.0, expected[name].abs().max().item())
        error = (plain[name] - expected[name]).abs().max().item()
        assert_near(actual, expected[name], name, unit + 2 * error)


@backends
@pytest.mark.parametrize("place", ["input", "recurrent"])
def test_products_may_be_of_any_size(backend: str, place: str) -> None:
    """What the norm is for: a product times 1000, and one with a large mean, give the same gates."""
    lstm = make(Cell(layer_norm=place), backend)
    weight = lstm.weight_ih_l0 if place == "input" else lstm.weight_hh_l0
    hx = torch.randn(2, 1, B, HIDDEN, dtype=torch.float64)
    expected = lstm(random_input()[:1], (hx[0], hx[1]))[0]
    with torch.no_grad():
        weight.mul_(1000.0)  # so large that the variance's 1e-5 no longer counts
        larger = lstm(random_input()[:1], (hx[0], hx[1]))[0]
        weight.add_(500.0)  # the same for every row: the product of each sequence moves as a whole
        assert_near(lstm(random_input()[:1], (hx[0], hx[1]))[0], larger, "moved", 1e-10)
    assert (larger - expected).abs().max() < 1e-3


@backends
def test_a_large_mean_does_not_cancel(backend: str) -> None:
    """Variances as E[x^2] - E[x]^2 would have no digit left in float32."""
    lstm = make(Cell(layer_norm=("input", "cell")), backend, bias=False)
    with torch.no_grad():
        lstm.weight_ih_l0.add_(100.0)
    x = random_input().abs() + 1.0
    expected = lstm(x)[0]
    actual = lstm.float()(x.float())[0]
    # The products themselves are rounded to about 500 * 2^-24.
    assert (actual - expected).abs().max() < 1e-3


@backends
def test_rows_without_variance(backend: str) -> None:
    """Zero weights: every product is equal, so it is the bias that is left; gradients are finite."""
    lstm = stirred(make(Cell(layer_norm=PLACES), backend))
    with torch.no_grad():
        lstm.weight_ih_l0.zero_()
        lstm.weight_hh_l0.zero_()
        added = lstm.bias_ln_ih_l0 + lstm.bias_ln_hh_l0
    output = lstm(random_input())[0]
    without = make(Cell(layer_norm="cell"), backend)
    without.load_state_dict({k: v for k, v in lstm.state_dict().items() if k in without.state_dict()})
    with torch.no_grad():
        without.bias_ih_l0.add_(added)
    assert_near(output, without(random_input())[0], "output")
    for gradient in torch.autograd.grad(output.sum(), list(lstm.parameters())):
        assert gradient.isfinite().all()


# --- parameters ---


@shapes
@cells
def test_names_and_initial_values(cell: Cell, options: dict) -> None:
    ours = make(cell, **options)
    torch.manual_seed(3)
    theirs = nn.LSTM(INPUT, HIDDEN, dtype=torch.float64, **options).state_dict()
    found = ours.state_dict()
    ends = [
        f"_l{k}{s}"
        for k in range(ours.num_layers)
        for s in (["", "_reverse"] if ours.bidirectional else [""])
    ]
    sizes = {"ih": 4 * HIDDEN, "hh": 4 * HIDDEN, "c": HIDDEN}
    chosen = [sizes_of for sizes_of, place in zip(sizes, PLACES, strict=True) if place in cell.layer_norm]
    norms = {
        f"{kind}_ln_{name}{end}": sizes[name]
        for end in ends
        for name in chosen
        for kind in ("weight", "bias")
    }
    units = {f"{name}{end}" for end in ends for name in cell.unit_parameters}
    assert set(found) == set(theirs) | set(norms) | units
    for name, value in theirs.items():
        assert torch.equal(found[name], value), f"{name}: another random number than nn.LSTM's"
    for name, size in norms.items():
        assert torch.equal(
            found[name], torch.full((size,), float(name.startswith("weight")), dtype=torch.float64)
        )
    own = [f"{name}_ln_{place}" for place in chosen for name in ("weight", "bias")]
    assert [n for n in found if n.endswith("_l0")][-len(own) :] == [f"{name}_l0" for name in own]
    stirred(ours).reset_parameters()
    for name, size in norms.items():
        assert torch.equal(
            found[name], torch.full((size,), float(name.startswith("weight")), dtype=torch.float64)
        )


def test_no_random_number_is_drawn_for_norms() -> None:
    numbers = []
    for module, cell in itertools.product(
        [customlstm.LSTM, customlstm.LSTMCell], [None, Cell(layer_norm=PLACES)]
    ):
        torch.manual_seed(1)
        module(INPUT, HIDDEN, cell=cell)
        numbers.append(torch.rand(1).item())
    assert numbers[0] == numbers[1] and numbers[2] == numbers[3]


def test_parameters_of_lstm_cell() -> None:
    step = customlstm.LSTMCell(
        INPUT, HIDDEN, proj_size=2, cell=Cell(coupled_gates=True, layer_norm=["cell", "input"])
    )
    assert list(step.state_dict())[4:] == [
        "weight_hr",
        "weight_ln_ih",
        "bias_ln_ih",
        "weight_ln_c",
        "bias_ln_c",
    ]
    assert (
        step.weight_ln_ih.shape == (4 * HIDDEN,)
        and (step.weight_ln_c == 1).all()
        and not step.bias_ln_c.any()
    )
    step = customlstm.LSTMCell(INPUT, HIDDEN, bias=False, cell=Cell(peephole=True, layer_norm="recurrent"))
    assert list(step.state_dict())[-3:] == ["peephole_o", "weight_ln_hh", "bias_ln_hh"]


@pytest.mark.parametrize("module", [customlstm.LSTM, customlstm.LSTMCell])
def test_a_cell_with_other_norms_cannot_be_assigned(module: type) -> None:
    plain, normalised = module(INPUT, HIDDEN), module(INPUT, HIDDEN, cell=Cell(layer_norm="cell"))
    with pytest.raises(ValueError) as caught:
        plain.cell = Cell(layer_norm="cell")
    assert str(caught.value) == (
        "cell has the parameters ['weight_ln_c', 'bias_ln_c'], this module was made for []; "
        "customlstm.convert.to_customlstm(module, cell=Cell(layer_norm=('cell',))) makes a new one, "
        "where new parameters begin at 0 or where the cell says, and gains of layer norm at 1"
    )
    with pytest.raises(ValueError, match=r"made for \['weight_ln_c', 'bias_ln_c'\]"):
        normalised.cell = Cell(layer_norm=PLACES)
    normalised.cell = Cell(gate_clip=1.0, layer_norm=["cell"])
    assert normalised.cell.gate_clip == 1.0


def test_the_hand_written_form_has_no_place_for_norms() -> None:
    with pytest.raises(
        ValueError, match=r"cell=Cell\(layer_norm=\('cell',\)\) has parameters of its own, for which"
    ):
        compat.LSTM(INPUT, HIDDEN, 1, cell=Cell(layer_norm="cell"))
    with pytest.raises(ValueError, match="has parameters of its own"):
        convert.to_compat(make(Cell(layer_norm="input")))


def test_converted_norms_begin_at_one_and_zero() -> None:
    theirs = nn.LSTM(INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64)
    ours = convert.to_customlstm(theirs, cell=Cell(peephole=True, layer_norm=PLACES))
    for name, value in ours.named_parameters():
        if "_ln_" in name:
            assert value.requires_grad and (value == float(name.startswith("weight"))).all()
    assert not ours.peephole_f_l1.any() and torch.equal(ours.weight_hh_l1, theirs.weight_hh_l1)
    again = convert.to_customlstm(stirred(ours))
    assert again.cell == ours.cell and torch.equal(again.weight_ln_c_l1, ours.weight_ln_c_l1)
    with pytest.raises(ValueError) as caught:
        convert.to_customlstm(make(Cell(layer_norm="input")), cell=Cell(layer_norm="cell"))
    assert str(caught.value) == (
        "module has cell Cell(layer_norm=('input',)) with the parameters bias_ln_ih, weight_ln_ih, for which "
        "cell=Cell(layer_norm=('cell',)) has no place; leave cell out, or take one with the same parameters"
    )
    with pytest.raises(
        ValueError, match=r"module has cell Cell\(layer_norm=\('input',\)\); torch.nn has only"
    ):
        convert.to_torch(make(Cell(layer_norm="input")))


# --- every way to run a module ---


@cells
@shapes
def test_fused_is_the_reference(cell: Cell, options: dict) -> None:
    found = []
    for backend in BACKENDS:
        module, x = stirred(make(cell, backend, **options)), random_input().requires_grad_()
        lengths = torch.tensor([4, 2, 0, 3, 1, 4] if options.get("batch_first") else [4, 6, 0, 3])
        output, hx = module(x)
        ragged, ragged_hx = module(x, lengths=lengths)
        results = [output, *hx, ragged, *ragged_hx, *module.states(x)]
        gradients = torch.autograd.grad(weighted_sum(results), [x, *module.parameters()])
        found.append([*results, *gradients])
        assert customlstm.explain(module, x).backend == backend
    for other in found[1:]:
        for k, (actual, expected) in enumerate(zip(other, found[0], strict=True)):
            # From a state of zeros the product has no variance: gradients come to hundreds.
            assert_near(actual, expected, str(k), 1e-12 * max(1.0, expected.detach().abs().max().item()))


@backends
@cells
def test_a_loop_of_steps_is_the_layer(cell: Cell, backend: str) -> None:
    layer = stirred(make(cell, backend))
    step = customlstm.LSTMCell(INPUT, HIDDEN, cell=cell, dtype=torch.float64, backend=backend)
    step.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    x, state, steps = random_input(), None, []
    for row in x:
        state = step(row, state)
        steps.append(state[0])
    output = layer(x)[0]
    assert_near(torch.stack(steps), output, "output")
    expected = torch.autograd.grad(output.sin().sum(), list(layer.parameters()))
    actual = torch.autograd.grad(torch.stack(steps).sin().sum(), list(step.parameters()))
    assert_all_near(actual, expected, list(step.state_dict()))


@backends
@cells
def test_packed(cell: Cell, backend: str) -> None:
    lstm, x = stirred(make(cell, backend, bidirectional=True)), random_input()
    lengths = torch.tensor([3, 6, 1, 4])
    packed, (h_n, c_n) = lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
    padded, (h, c) = lstm(x, lengths=lengths)
    rows = nn.utils.rnn.pad_packed_sequence(packed)[0]
    assert_all_near([rows, h_n, c_n], [padded, h, c], ["output", "h_n", "c_n"])


@backends
@cells
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_torchscript(cell: Cell, backend: str) -> None:
    lstm = stirred(make(cell, backend, num_layers=2, bidirectional=True))
    step = stirred(customlstm.LSTMCell(INPUT, HIDDEN, cell=cell, dtype=torch.float64, backend=backend))
    x = random_input()
    scripted = torch.jit.script(lstm)
    actual, expected = scripted(x), lstm(x)
    assert_all_near([actual[0], *actual[1]], [expected[0], *expected[1]], ["output", "h_n", "c_n"])
    gradients = torch.autograd.grad(actual[0].sum(), list(scripted.parameters()))
    assert_all_near(
        gradients, torch.autograd.grad(expected[0].sum(), list(lstm.parameters())), list(lstm.state_dict())
    )
    assert_all_near(torch.jit.script(step)(x[0]), step(x[0]), ["h", "c"])


@backends
@pytest.mark.parametrize("cell", CELLS[:2], ids=str)
def test_compile(cell: Cell, backend: str) -> None:
    torch._dynamo.reset()
    lstm = stirred(make(cell, backend, num_layers=2))
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps, batch in [(T, B), (3, 2)]:
        x = random_input()[:steps, :batch]
        actual, expected = compiled(x), lstm(x)
        assert_all_near([actual[0], *actual[1]], [expected[0], *expected[1]], ["output", "h_n", "c_n"])
        gradients = torch.autograd.grad(actual[0].sum(), list(lstm.parameters()))
        expected_gradients = torch.autograd.grad(expected[0].sum(), list(lstm.parameters()))
        assert_all_near(gradients, expected_gradients, list(lstm.state_dict()))


@pytest.mark.filterwarnings("ignore::customlstm.FallbackWarning")
def test_vmap_over_parameters() -> None:
    lstm, x = stirred(make(CELLS[1])), random_input()
    many = {name: torch.stack([p, 0.5 * p]) for name, p in lstm.named_parameters()}
    found = torch.func.vmap(lambda p: torch.func.functional_call(lstm, p, (x,))[0])(many)
    for k, expected in enumerate(found):
        single = torch.func.functional_call(lstm, {name: p[k] for name, p in many.items()}, (x,))[0]
        assert_near(expected, single, str(k))


@backends
@cells
def test_stream(cell: Cell, backend: str) -> None:
    lstm = stirred(customlstm.LSTM(INPUT, HIDDEN, num_layers=2, cell=cell, backend=backend))
    x = torch.randn(9, 3, INPUT)
    stream = customlstm.Stream(lstm, 3)
    with torch.no_grad():
        expected = lstm(x)[0]
    actual = torch.cat([stream(piece) for piece in x.split([1, 5, 3])])
    assert_near(actual, expected, "output", 0.0 if backend == "fused" else 1e-5)
    assert stream.nbytes == 0  # there is no packed step with layer norm: the layer itself was called


@cells
def test_copies(cell: Cell) -> None:
    lstm, x = stirred(make(cell)), random_input()
    for other in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        assert other.cell == cell
        assert torch.equal(other(x)[0], lstm(x)[0])


@backends
@pytest.mark.parametrize("frozen", [False, True], ids=["norms frozen", "all else frozen"])
def test_frozen_parameters(backend: str, frozen: bool) -> None:
    lstm, x = stirred(make(CELLS[0], backend)), random_input()
    names = [name for name in lstm.state_dict() if ("_ln_" in name) == frozen]
    parameters = [getattr(lstm, name) for name in names]
    expected = torch.autograd.grad(lstm(x)[0].sum(), parameters)
    for parameter in lstm.parameters():
        parameter.requires_grad_(any(parameter is p for p in parameters))
    lstm(x)[0].sum().backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(parameters, expected, strict=True))
    assert all(p.grad is None for p in lstm.parameters() if not p.requires_grad)
    single = lstm.bias_ln_hh_l0 if frozen else lstm.bias_ih_l0
    gradient = single.grad.clone()
    lstm.zero_grad()
    lstm.requires_grad_(False)
    single.requires_grad_()
    lstm(x)[0].sum().backward()
    assert torch.equal(single.grad, gradient)


@backends
def test_with_masks(backend: str) -> None:
    """Zoneout by rate in eval mode, and dropout of everything else with one seed, as in the reference."""
    found = []
    for other in ("reference", backend):
        lstm = stirred(make(CELLS[2], other, num_layers=2, zoneout=(0.2, 0.3), recurrent_dropout=0.4))
        for mode in (True, False):
            torch.manual_seed(11)
            found.append([*lstm.train(mode).states(random_input()), *lstm(random_input())[1]])
    assert_all_near(found[2], found[0], ["h_all", "c_all", "h_n", "c_n"])
    assert_all_near(found[3], found[1], ["h_all", "c_all", "h_n", "c_n"])


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As far as the choice of a backend can see, there is a GPU and the kernels for it."""
    monkeypatch.setattr(dispatch, "_why_not_compiled", lambda *_: None)
    yield


@pytest.mark.usefixtures("gpu_build")
def test_gpus_have_kernels() -> None:
    gpu, (name, _) = torch.device("cuda"), Cell(layer_norm="cell").encode()
    assert dispatch.why_not_fused(gpu, torch.float32, name) is None
    for backend in ("auto", "fused"):
        assert dispatch.for_scripting(backend, gpu, torch.float32, name) == backend
