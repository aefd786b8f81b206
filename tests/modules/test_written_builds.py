"""Cells that users write, and the building of their kernels: switched off, failing, in many processes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from customlstm import _binary

pytestmark = pytest.mark.skipif(
    not _binary.status().loaded, reason="no compiled library; a damaged one fails elsewhere"
)

START = """
    import sys, warnings
    import torch, customlstm
    from customlstm.cells import gallery
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lstm = customlstm.LSTM(3, 5, cell=gallery.janet)
    x = torch.randn(4, 2, 3)
"""


def run(script: str, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(START) + textwrap.dedent(script), *arguments],
        capture_output=True, text=True, env={**os.environ, **variables}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_switched_off_it_runs_on_the_reference_and_says_so(tmp_path: Path) -> None:
    script = """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            output = lstm(x)[0]
            lstm(x)
        assert [w.category for w in caught] == [customlstm.FallbackWarning], caught
        print(caught[0].message)
        print(customlstm.explain(lstm, x))
        lstm.backend = "fused"
        try:
            lstm(x)
        except RuntimeError as error:
            print(error)
    """
    text = run(script, CUSTOMLSTM_JIT="0", CUSTOMLSTM_CACHE_DIR=str(tmp_path))
    warning, report, refusal = (
        text.partition("reference: plain")[0],
        text,
        text[text.index("backend='fused'") :],
    )
    for part in (warning, report, refusal):
        assert "the kernel of the cell janet(f, g, c) cannot be built" in part and "CUSTOMLSTM_JIT" in part
    assert list(tmp_path.rglob("*.so")) == []


def test_a_failing_compiler_is_told_with_its_command(tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("""#!/bin/sh
case "$*" in *--version*|*-dumpmachine*) exec c++ "$@";; esac
echo "file.cpp:1:1: error: out of paper" >&2; exit 1
""")
    compiler.chmod(0o755)
    script = """
        warnings.simplefilter("ignore")
        assert torch.equal(lstm(x)[0], lstm(x)[0])
        print(customlstm.explain(lstm, x).reason)
    """
    text = run(script, CXX=str(compiler), CUSTOMLSTM_CACHE_DIR=str(tmp_path / "cache"))
    assert "out of paper" in text and "command: " in text and "log: " in text, text


def test_what_was_mended_is_tried_again(tmp_path: Path) -> None:
    """What failed with one compiler, or while building was switched off, is no verdict on the cell."""
    script = """
        import os
        warnings.simplefilter("ignore")
        lstm(x)
        assert customlstm.explain(lstm, x).backend == "reference"
        os.environ["CXX"] = "c++"
        print(customlstm.explain(lstm, x).backend)
    """
    assert run(script, CXX="false", CUSTOMLSTM_CACHE_DIR=str(tmp_path)).endswith("fused\n")
    script = """
        import os
        lstm.backend = "fused"
        try:
            lstm(x)
        except RuntimeError as error:
            assert "CUSTOMLSTM_JIT" in str(error)
        del os.environ["CUSTOMLSTM_JIT"]
        print(lstm(x)[0].shape)
    """
    assert "[4, 2, 5]" in run(script, CUSTOMLSTM_JIT="0", CUSTOMLSTM_CACHE_DIR=str(tmp_path / "other"))


def test_a_kernel_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    script = """
        import ctypes
        def refuse(path):
            raise OSError(f"{path}: failed to map segment from shared object")
        ctypes.CDLL = refuse
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert lstm(x)[0].isfinite().all()
        print(caught[0].message)
    """
    text = run(script)
    assert "cannot be loaded: " in text and "failed to map segment" in text and "CUSTOMLSTM_CACHE_DIR" in text


def test_a_cell_without_a_digest_is_not_taken_for_another_one(tmp_path: Path) -> None:
    """TorchScript keeps the name of a cell; of one that cannot be fused, the name means nothing elsewhere."""
    file = str(tmp_path / "lstm.pt")
    cell = """
        warnings.simplefilter("ignore")
        def make(factor):
            @customlstm.cell
            def mine(a, c):
                return torch.softmax(a, -1) * factor, c
            return customlstm.LSTM(3, 5, cell=mine, backend="reference")
    """
    run(textwrap.dedent(cell) + "torch.jit.save(torch.jit.script(make(2.0)), sys.argv[1])", file)
    load = """
        make(-100.0)(x)
        loaded = torch.jit.load(sys.argv[1])
        try:
            loaded(x)
        except Exception as error:
            print(error)
    """
    assert "unknown cell 'user.mine." in run(textwrap.dedent(cell) + textwrap.dedent(load), file)


DDP = """
    import os
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    lstm = customlstm.LSTM(3, 5, cell=gallery.slstm, backend="fused", dtype=torch.float64)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    alone = customlstm.LSTM(3, 5, cell=gallery.slstm, backend="fused", dtype=torch.float64)
    alone.load_state_dict(lstm.state_dict())
    alone(x)[0].square().mean().backward()
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    parallel = DistributedDataParallel(lstm)
    parallel(x[:, 3 * rank : 3 * rank + 3])[0].square().mean().backward()
    for (name, ours), theirs in zip(lstm.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12, msg=name)
    print("equal", flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads sometimes abort a process that ends by itself, whatever it has computed
"""


def test_two_processes_under_ddp_have_the_gradients_of_one(tmp_path: Path) -> None:
    """Both start with an empty cache and need the same kernel."""
    code = textwrap.dedent(START) + textwrap.dedent(DDP)
    env = {**os.environ, "CUSTOMLSTM_CACHE_DIR": str(tmp_path / "cache"), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    for output, errors, code in ended:
        assert code == 0 and output == "equal\n", errors
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 1


def test_forked_workers_use_what_was_built_before() -> None:
    script = """
        import os
        expected = lstm(x)[0]
        child = os.fork()
        if child == 0:
            same = torch.equal(lstm(x)[0], expected)
            janet = customlstm.LSTM(3, 5, cell=gallery.janet, dtype=torch.float64, backend="fused")
            built = janet(x.double())[0].isfinite().all()  # another kernel, built after the fork
            os._exit(0 if same and built else 1)
        assert os.waitpid(child, 0)[1] == 0
        print("same")
    """
    assert run(script) == "same\n"


def test_a_scripted_layer_in_a_new_process_says_what_is_missing(tmp_path: Path) -> None:
    file = str(tmp_path / "lstm.pt")
    run("torch.jit.save(torch.jit.script(lstm), sys.argv[1])", file)
    script = f"""
        import torch, customlstm
        loaded = torch.jit.load({file!r})
        try:
            loaded(torch.randn(4, 2, 3))
        except RuntimeError as error:
            way_out = "customlstm.jit.register(cell, dtype, device)"
            print("no cell is registered" in str(error), way_out in str(error))
        customlstm.jit.register(customlstm.cells.janet, torch.float32)
        output, (h_n, c_n) = loaded(torch.randn(4, 2, 3))
        print(list(output.shape), list(c_n.shape))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.stdout == "True True\n[4, 2, 5] [1, 2, 5]\n", done.stderr
