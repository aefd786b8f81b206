"""Cells that users write, in modules: the fused kernel computes what the reference does, and that what the
function says."""

import pytest
import torch
from support import BACKENDS, assert_all_near, assert_near, weighted_sum
from support_written import CELLS, HIDDEN, INPUT, VARIED, B, T, arguments, assert_same, make
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import customlstm
from customlstm import _binary
from customlstm.cells import gallery

backends = pytest.mark.parametrize("backend", BACKENDS)
cells = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
varied = pytest.mark.parametrize("cell", VARIED, ids=lambda cell: cell.name)
fused = pytest.mark.skipif(
    not _binary.status().loaded, reason="no compiled library; a damaged one fails elsewhere"
)


# --- the reference against a loop over the function ---


@cells
def test_the_reference_is_a_loop_over_the_function(cell: customlstm.cells.UserCell) -> None:
    lstm = make(cell, "reference")
    x, (h_0, c_0) = arguments(lstm)
    own = {name: getattr(lstm, f"{name}_l0") for name in cell.unit_parameters}
    h, states = h_0[0], c_0[0].unflatten(-1, (cell.states, HIDDEN)).unbind(-2)
    outputs = []
    for t in range(T):
        a = x[t] @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        h, *states = cell(*a.unflatten(-1, (cell.gates, HIDDEN)).unbind(-2), *states, **own)
        outputs.append(h)
    output, (h_n, c_n) = lstm(x, (h_0, c_0))
    expected = [torch.stack(outputs), h[None], torch.cat(states, -1)[None]]
    assert_all_near([output, h_n, c_n], expected, ["output", "h_n", "c_n"])


@backends
def test_the_cell_of_nn_lstm_written_out(backend: str) -> None:
    theirs = nn.LSTM(INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64)
    ours = make(gallery.standard, backend, num_layers=2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x, hx = arguments(ours)
    output, states = ours(x, hx)
    expected, expected_states = theirs(x, hx)
    assert_all_near([output, *states], [expected, *expected_states], ["output", "h_n", "c_n"])


def test_named_cells_equal_the_options_of_cell() -> None:
    for written, option in [
        (gallery.peephole, customlstm.Cell(peephole=True)),
        (gallery.standard, customlstm.Cell()),
        (
            gallery.hard,
            customlstm.Cell(("hard_sigmoid", {"alpha": 0.25, "beta": 0.5}), "hard_tanh", "hard_tanh"),
        ),
    ]:
        assert_same(make(written, "reference"), make(option, "reference"))


# --- the kernel against the reference ---


@fused
@cells
def test_fused_equals_reference(cell: customlstm.cells.UserCell) -> None:
    assert_same(make(cell), make(cell, "reference"))


@fused
@varied
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_fused_equals_reference_in_every_form(cell: customlstm.cells.UserCell, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        for options in (
            {"num_layers": 2, "bidirectional": True, "proj_size": 5},
            {"bias": False, "batch_first": True},
        ):
            shape = (B, T) if options.get("batch_first") else (T, B)
            for call in (
                {},
                {"lengths": torch.tensor([3, 6, 0, 5])},
                {"resets": torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3},
                {
                    "lengths": torch.tensor([3, 6, 0, 5]),
                    "resets": torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.3,
                },
            ):
                assert_same(make(cell, **options), make(cell, "reference", **options), **call)
    finally:
        torch.set_num_threads(1)


@fused
@varied
def test_masks_and_zoneout(cell: customlstm.cells.UserCell) -> None:
    options = {"zoneout": (0.2, 0.3), "recurrent_dropout": 0.3, "weight_dropout": 0.2, "bidirectional": True}
    assert_same(make(cell, **options), make(cell, "reference", **options))
    projected = {**options, "proj_size": 5}
    assert_same(make(cell, **projected), make(cell, "reference", **projected))
    assert_same(make(cell, **options).eval(), make(cell, "reference", **options).eval())


@fused
@varied
def test_packed(cell: customlstm.cells.UserCell) -> None:
    lstm, reference = make(cell, bidirectional=True), make(cell, "reference", bidirectional=True)
    x, hx = arguments(lstm)
    reference.load_state_dict(lstm.state_dict())
    found = []
    for module in (lstm, reference):
        packed = pack_padded_sequence(x, torch.tensor([3, 6, 1, 5]), enforce_sorted=False)
        output, (h_n, c_n) = module(packed, hx)
        _, c_all = module.states(packed, hx)
        results = [output.data, h_n, c_n, c_all.data]
        gradients = torch.autograd.grad(weighted_sum(results), [x, *hx, *module.parameters()])
        found.append([*results, *gradients])
    leaves = ["input", "h_0", "c_0", *dict(lstm.named_parameters())]
    names = ["output", "h_n", "c_n", "c_all", *(f"gradient of {name}" for name in leaves)]
    assert_all_near(found[0], found[1], names)
    packed = pack_padded_sequence(x, torch.tensor([3, 6, 1, 5]), enforce_sorted=False)
    # without hx the zeros are the package's own
    assert_near(lstm(packed)[1][1], reference(packed)[1][1], "c_n")


@fused
def test_one_sequence_and_one_step() -> None:
    """Other ways to read the weights: along their rows, and turned in registers."""
    for cell in VARIED:
        for steps, batch, size in [(5, 1, 300), (1, 3, 16), (1, 1, 260)]:
            torch.manual_seed(0)
            lstm = customlstm.LSTM(size, size, cell=cell, dtype=torch.float64, backend="fused")
            x = torch.randn(steps, batch, size, dtype=torch.float64, requires_grad=True)
            found = [lstm(x)[0]]
            found += torch.autograd.grad(found[0].sum(), [x, *lstm.parameters()])
            with customlstm.use_backend("reference"):
                expected = [lstm(x)[0]]
                expected += torch.autograd.grad(expected[0].sum(), [x, *lstm.parameters()])
            names = ["output", "input", *dict(lstm.named_parameters())]
            assert_all_near(found, expected, [f"{cell.name} {name}" for name in names], 1e-11)


@fused
def test_the_number_of_threads_changes_no_bit() -> None:
    lstm = customlstm.LSTM(40, 70, cell=gallery.slstm, backend="fused", dtype=torch.float64)
    x = torch.randn(20, 16, 40, dtype=torch.float64, requires_grad=True)

    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        try:
            output, (_, c_n) = lstm(x)
            return [output, c_n, *torch.autograd.grad(output.sum() + c_n.sum(), [x, *lstm.parameters()])]
        finally:
            torch.set_num_threads(1)

    for one, many in zip(run(1), run(4), strict=True):
        assert torch.equal(one, many)


@fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_no_worse_than_plain_pytorch(dtype: torch.dtype) -> None:
    cell = gallery.slstm
    exact = make(cell, "reference")
    x, hx = arguments(exact)
    expected = exact(x, hx)[0].detach()
    gradient = torch.autograd.grad(exact(x, hx)[0].sum(), x)[0]
    errors = []
    for backend in ("fused", "reference"):
        lstm = make(cell, backend).to(dtype)
        own, states = x.detach().to(dtype).requires_grad_(), tuple(s.detach().to(dtype) for s in hx)
        output = lstm(own, states)[0]
        found = torch.autograd.grad(output.sum(), own)[0]
        errors.append([(output - expected).abs().max().item(), (found - gradient).abs().max().item()])
    for ours, plain in zip(*errors, strict=True):
        assert ours <= 2 * plain, f"{dtype}: error {ours:.3g}, of the reference {plain:.3g}"


@fused
@varied
def test_gradcheck(cell: customlstm.cells.UserCell) -> None:
    torch.manual_seed(0)
    lstm = customlstm.LSTM(2, 3, cell=cell, dtype=torch.float64, backend="fused")
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    h = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    c = torch.rand(1, 2, 3 * cell.states, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*lstm.named_parameters(), strict=True)

    def run(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        output, states = torch.func.functional_call(lstm, dict(zip(names, weights, strict=True)), (x, (h, c)))
        return output, *states

    assert torch.autograd.gradcheck(run, (x, h, c, *weights))
    assert torch.autograd.gradgradcheck(run, (x, h, c, *weights))


# --- other ways to run a module ---


@backends
@varied
def test_lstm_cell_in_a_loop(cell: customlstm.cells.UserCell, backend: str) -> None:
    lstm = make(cell, backend)
    step = customlstm.LSTMCell(INPUT, HIDDEN, cell=cell, dtype=torch.float64, backend=backend)
    step.load_state_dict({name.removesuffix("_l0"): value for name, value in lstm.state_dict().items()})
    x, (h, c) = arguments(lstm)
    output, (_, c_n) = lstm(x, (h, c))
    h, c = h[0], c[0]
    for t in range(T):
        h, c = step(x[t], (h, c))
        assert_near(h, output[t], f"step {t}")
    assert_near(c, c_n[0], "c_n")
    zeros = step(x[0])
    assert [list(state.shape) for state in zeros] == [[B, HIDDEN], [B, cell.states * HIDDEN]]
    assert [list(state.shape) for state in step(x[0, 0])] == [[HIDDEN], [cell.states * HIDDEN]]


@backends
@varied
def test_torch_script(cell: customlstm.cells.UserCell, backend: str, tmp_path: object) -> None:
    lstm = make(cell, backend, num_layers=2)
    x, hx = arguments(lstm)
    expected, expected_states = lstm(x, hx)
    torch.jit.save(torch.jit.script(lstm), str(tmp_path / "lstm.pt"))
    loaded = torch.jit.load(str(tmp_path / "lstm.pt"))
    output, states = loaded(x, hx)
    assert_all_near([output, *states], [expected, *expected_states], ["output", "h_n", "c_n"], 0.0)
    gradient = torch.autograd.grad(output.sum(), x)[0]
    assert_near(gradient, torch.autograd.grad(expected.sum(), x)[0], "gradient", 0.0)

    step = customlstm.LSTMCell(INPUT, HIDDEN, cell=cell, dtype=torch.float64, backend=backend)
    scripted = torch.jit.script(step)
    pair = (hx[0][0].detach(), hx[1][0].detach())
    assert_all_near(scripted(x[0].detach(), pair), step(x[0].detach(), pair), ["h", "c"], 0.0)
    assert {name for name, _ in scripted.named_parameters()} == {name for name, _ in step.named_parameters()}


@backends
@varied
def test_compile(cell: customlstm.cells.UserCell, backend: str) -> None:
    torch._dynamo.reset()
    lstm = make(cell, backend, num_layers=2)
    compiled = torch.compile(lstm, fullgraph=True, dynamic=True, backend="aot_eager")
    x, hx = arguments(lstm)
    expected, states = lstm(x, hx)
    output, found = compiled(x, hx)
    assert_all_near([output, *found], [expected, *states], ["output", "h_n", "c_n"], 0.0)
    leaves = [x, *lstm.parameters()]
    names = ["input", *dict(lstm.named_parameters())]
    gradients = torch.autograd.grad(output.sum(), leaves)
    assert_all_near(gradients, torch.autograd.grad(expected.sum(), leaves), names)


@fused
@varied
def test_stream(cell: customlstm.cells.UserCell) -> None:
    lstm = make(cell, num_layers=2).eval()
    x, _ = arguments(lstm)
    with torch.no_grad():
        expected, (_, c_n) = lstm(x)
        stream = customlstm.Stream(lstm, batch=B)
        output = torch.cat([stream(x[:1]), stream(x[1:4]), stream(x[4:])])
    assert_near(output, expected, "output")
    assert_near(stream.state[1], c_n, "c")
    assert stream.nbytes > 0


@fused
def test_a_layer_scripted_under_autocast_runs_there() -> None:
    lstm = make(gallery.janet, "auto", dtype=torch.float32)
    x = torch.randn(T, B, INPUT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scripted = torch.jit.script(lstm)
        output = scripted(x)[0]
        assert torch.equal(output, lstm(x)[0]) and output.dtype == torch.bfloat16


@fused
def test_autocast() -> None:
    lstm = make(gallery.slstm, dtype=torch.float32)
    x = torch.randn(T, B, INPUT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, (h_n, c_n) = lstm(x)
        with customlstm.use_backend("reference"):
            expected = lstm(x)[0]
    assert output.dtype == h_n.dtype == c_n.dtype == torch.bfloat16
    assert_near(output.float(), expected.float(), "output", 0.02)


def test_vmap_and_functional_gradients() -> None:
    lstm = make(gallery.slstm, "auto")
    x = torch.randn(2, T, B, INPUT, dtype=torch.float64)
    mapped = torch.func.vmap(lambda one: lstm(one)[0])(x)
    assert_near(mapped, torch.stack([lstm(one)[0] for one in x]), "vmap")
    one = x[0].clone().requires_grad_()
    gradient = torch.func.grad(lambda one: lstm(one)[0].sin().sum())(x[0])
    (expected,) = torch.autograd.grad(lstm(one)[0].sin().sum(), one)
    assert_near(gradient, expected, "gradient")


@fused
def test_nothing_is_kept_without_gradients() -> None:
    lstm = make(gallery.slstm)
    x, hx = arguments(lstm)
    with torch.no_grad():
        output, h_n, c_n, c_all, gates, hidden = torch.ops.customlstm.lstm_layer(
            x, *hx, lstm._weight_list(), None, None, None, None, None, None, *gallery.slstm.encode(),
            True, False, False, 1.0, 0.0, 0.0, 0,
        )  # fmt: skip
    assert [c_all.numel(), gates.numel(), hidden.numel()] == [0, 0, 0]
    assert output.shape == (T, B, HIDDEN) and h_n.shape == (1, B, HIDDEN) and c_n.shape == (1, B, 3 * HIDDEN)
