"""setup.py: why it leaves the CUDA kernels out, and what the package says to mend that; nothing is built."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils import cpp_extension

from customlstm import _binary, gpu

ROOT = Path(__file__).resolve().parents[2]
# Python's own, which setuptools takes for its copy where another test of the process has had it imported.
pytestmark = pytest.mark.filterwarnings("ignore:The distutils:DeprecationWarning")
COMMAND = "cd /there && python setup.py build_ext --inplace"


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py where nothing is in the way of the CUDA kernels, and what it reads can be changed."""
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("customlstm_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CUSTOMLSTM_NO_CUDA", "FORCE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "/usr/local/cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_binary, "rebuild_command", lambda: COMMAND)
    return module


def test_nothing_in_the_way(setup_py: ModuleType) -> None:
    assert setup_py.why_no_cuda() == ""


def test_remedy_where_cuda_was_not_wanted(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMLSTM_NO_CUDA", "1")
    assert gpu.how_to_build(setup_py.why_no_cuda()) == f"unset CUSTOMLSTM_NO_CUDA && {COMMAND}"


def test_remedy_for_a_torch_without_cuda(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    reason = setup_py.why_no_cuda()
    remedy = gpu.how_to_build(reason)
    assert remedy.startswith("install a torch that was built with CUDA") and remedy.endswith(COMMAND)
    monkeypatch.setattr(torch.version, "cuda", "13.0")  # it has been installed since
    assert gpu.how_to_build(reason) == COMMAND


def test_remedy_without_a_toolkit(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    remedy = gpu.how_to_build(setup_py.why_no_cuda())
    assert remedy == f"install a CUDA 13 toolkit, and set CUDA_HOME to its folder; then {COMMAND}"


def test_remedy_without_a_gpu(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = setup_py.why_no_cuda()
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "no NVIDIA driver")
    assert gpu.how_to_build(reason).endswith(f"export FORCE_CUDA=1 && {COMMAND}")
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: None)  # the same folder on a machine with one
    assert gpu.how_to_build(reason) == COMMAND


def test_an_architecture_that_torch_does_not_know(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;sm_90")
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST is '8\.0;sm_90'.*\(sm_90\)"):
        with setup_py.naming_arch_list():
            cpp_extension._get_cuda_arch_flags()
    with pytest.raises(ValueError, match="another"), setup_py.naming_arch_list():
        raise ValueError("another")
