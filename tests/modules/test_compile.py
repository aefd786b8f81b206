"""torch.compile, torch.export and fake tensors: one graph, one operator a layer, no matter how long."""

from pathlib import Path

import pytest
import torch
from support import BACKENDS, assert_all_near, assert_near
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import customlstm

INPUT, HIDDEN = 4, 6
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True, "bias": False},
]
CELL = customlstm.Cell(
    "hard_sigmoid", "softsign", customlstm.PiecewiseLinear([-1.0, 0.0, 1.0], [-1.0, 0.0, 0.5])
)

options = pytest.mark.parametrize("options", OPTIONS, ids=["simple", "everything"])
backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def make(options: dict, backend: str = "auto") -> customlstm.LSTM:
    return customlstm.LSTM(INPUT, HIDDEN, cell=CELL, backend=backend, **options)


def operators(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if "customlstm" in str(node.target)]


@backends
@options
def test_one_graph_for_every_length_and_batch(options: dict, backend: str) -> None:
    module = make(options, backend).eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for steps, batch in [(8, 3), (512, 3), (5, 7), (2, 2), (33, 4)]:
        x = torch.randn(steps, batch, INPUT, requires_grad=True)
        expected, states = module(x)
        actual, actual_states = compiled(x)
        assert_all_near([actual, *actual_states], [expected, *states], ["output", "h_n", "c_n"], 0.0)
        leaves = [x, *module.parameters()]
        names = ["input", *dict(module.named_parameters())]
        gradients = torch.autograd.grad(actual.sum(), leaves)
        assert_all_near(
            gradients, torch.autograd.grad(expected.sum(), leaves), names, 1e-4 if steps > 99 else 1e-5
        )
    assert counter.frame_count == 1
    assert len(operators(counter.graphs[0].graph)) == module.num_layers


@backends
def test_the_graph_does_not_grow_with_time(backend: str) -> None:
    sizes = []
    for steps in (8, 512):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        module = make(OPTIONS[1], backend)
        torch.compile(module, fullgraph=True, dynamic=False, backend=counter)(torch.randn(3, steps, INPUT))
        sizes.append([len(graph.graph.nodes) for graph in counter.graphs])
    assert sizes[0] == sizes[1] and len(sizes[0]) == 1


def test_every_argument() -> None:
    module = make({"bidirectional": True})
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def compiled(x, h, c, lengths, resets):
        return module(x, (h, c), lengths=lengths, resets=resets), module.states(x, resets=resets)

    for steps, batch in [(7, 3), (9, 5)]:  # no size equal to HIDDEN: dynamic=True would take them for one
        x, lengths = torch.randn(steps, batch, INPUT), torch.randint(0, steps, (batch,))
        hx, resets = tuple(torch.randn(2, batch, HIDDEN) for _ in range(2)), torch.rand(steps, batch) < 0.3
        (output, states), every = compiled(x, *hx, lengths, resets)
        expected, expected_states = module(x, hx, lengths=lengths, resets=resets)
        assert_all_near([output, *states], [expected, *expected_states], ["output", "h_n", "c_n"], 0.0)
        assert_all_near(every, module.states(x, resets=resets), ["h_all", "c_all"], 0.0)
    assert counter.frame_count == 1


def test_packed() -> None:
    module = make({"num_layers": 2, "bidirectional": True})
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for lengths in ([3, 5, 1], [4, 4, 2]):
        packed = nn.utils.rnn.pack_padded_sequence(
            torch.randn(5, 3, INPUT), torch.tensor(lengths), enforce_sorted=False
        )
        (output, states), (expected, expected_states) = compiled(packed), module(packed)
        assert_all_near(
            [output.data, *states], [expected.data, *expected_states], ["output", "h_n", "c_n"], 0.0
        )


@backends
def test_cell(backend: str) -> None:
    module = customlstm.LSTMCell(INPUT, HIDDEN, proj_size=2, cell=CELL, backend=backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for batch in (3, 8):
        x, hx = torch.randn(batch, INPUT), (torch.randn(batch, 2), torch.randn(batch, HIDDEN))
        assert_all_near(compiled(x, hx), module(x, hx), ["h", "c"], 0.0)
    assert counter.frame_count == 1


def test_use_backend_is_traced_and_guarded() -> None:
    module, x = make({}), torch.randn(5, 3, INPUT)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    compiled(x)
    with customlstm.use_backend("reference"):
        compiled(x)
        compiled(x)
    compiled(x)
    assert [operators(graph.graph) for graph in counter.graphs] == [
        ["customlstm.lstm_layer.default"],
        ["customlstm.lstm_layer_reference.default"],
    ]


@pytest.mark.skipif("fused" not in BACKENDS, reason="no compiled library")
def test_fused_is_refused_where_no_kernel_fits() -> None:
    module = customlstm.LSTM(INPUT, HIDDEN, backend="fused", dtype=torch.float8_e5m2, device="meta").to_empty(
        device="cpu"
    )
    with pytest.raises(Exception, match=r"no fused kernel for torch\.float8_e5m2"):
        torch.compile(module, backend="eager")(torch.zeros(5, 3, INPUT).to(torch.float8_e5m2))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_torch_func_transforms_inside_a_graph() -> None:
    """There the reference is traced: the operators have no rules for vmap and grad."""
    module, x = customlstm.LSTM(INPUT, HIDDEN, bidirectional=True), torch.randn(2, 5, 3, INPUT)
    loss = lambda one: module(one)[0].pow(2).sum()  # noqa: E731
    for function in (torch.func.vmap(lambda one: module(one)[0]), torch.func.vmap(torch.func.grad(loss))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_near(compiled(x), function(x), tolerance=1e-6)
    fused = customlstm.LSTM(INPUT, HIDDEN, backend="fused")
    with pytest.raises(Exception, match="backend='fused' cannot run"):
        torch.compile(torch.func.vmap(lambda one: fused(one)[0]), backend="eager")(x)


def test_weights_changed_after_compilation_are_used() -> None:
    module, x = make({}), torch.randn(5, 3, INPUT)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    before = compiled(x)[0]
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    assert torch.equal(compiled(x)[0], module(x)[0]) and not torch.allclose(compiled(x)[0], before)
    module.cell = None
    assert torch.equal(compiled(x)[0], module(x)[0])


@pytest.mark.parametrize("strict", [True, False])
@options
def test_export_with_both_sizes_dynamic(options: dict, strict: bool) -> None:
    module = make(options).eval()
    names = ("B", "T") if module.batch_first else ("T", "B")
    dims = {k: torch.export.Dim(name) for k, name in enumerate(names)}
    program = torch.export.export(
        module, (torch.randn(6, 3, INPUT),), dynamic_shapes={"input": dims}, strict=strict
    )
    assert len(operators(program.graph)) == module.num_layers
    for sizes in [(6, 3), (40, 2), (2, 50)]:
        x = torch.randn(*sizes, INPUT)
        (output, states), (expected, expected_states) = program.module()(x), module(x)
        assert_all_near([output, *states], [expected, *expected_states], ["output", "h_n", "c_n"], 0.0)


@pytest.mark.filterwarnings(
    "ignore:The given buffer is not writable:UserWarning"
)  # torch.export.load in 2.11
def test_export_round_trip(tmp_path: Path) -> None:
    module, x, file = make({}).eval(), torch.randn(5, 3, INPUT), tmp_path / "module.pt2"
    with torch.no_grad():
        torch.export.save(torch.export.export(module, (x,)), file)
    assert_near(torch.export.load(file).module()(x)[0], module(x)[0], tolerance=0.0)


@backends
def test_fake_tensors_never_unroll(backend: str) -> None:
    module = make({"bidirectional": True}, backend)
    with FakeTensorMode(allow_non_fake_inputs=True):
        output, (h_n, _) = module(torch.empty(100_000, 3, INPUT))
    assert output.shape == (100_000, 3, 2 * HIDDEN) and h_n.shape == (2, 3, HIDDEN)
    trace = make_fx(lambda x: module(x)[0], tracing_mode="symbolic", _allow_non_fake_inputs=True)
    graph = trace(torch.randn(5, 3, INPUT)).graph
    assert len(operators(graph)) == 1


def test_whole_training_step_compiles() -> None:
    """Forward, loss and backward through AOTAutograd, with a frozen layer below a trained one."""
    module, x = make({"num_layers": 2}), torch.randn(5, 3, INPUT)
    for parameter in list(module.parameters())[:4]:
        parameter.requires_grad_(False)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    trained = list(module.parameters())[4:]
    gradients = torch.autograd.grad(compiled(x)[0].pow(2).sum(), trained)
    expected = torch.autograd.grad(module(x)[0].pow(2).sum(), trained)
    assert_all_near(gradients, expected, ["w_ih", "w_hh", "b_ih", "b_hh"], 1e-6)
