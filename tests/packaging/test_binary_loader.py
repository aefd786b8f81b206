"""Whatever is wrong with the compiled library, the package imports, computes, and says what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from customlstm import _binary

ROOT = Path(__file__).resolve().parents[2]

# Tries one library after the other and prints a line for each at once, so that the lines end before the one
# that kills the process. The loader is taken by its path: the rest of the package is not under test.
LOADER = """
import dataclasses, importlib.util, json, os, sys
for name, library in zip(sys.argv[2::2], sys.argv[3::2]):
    os.environ["CUSTOMLSTM_BINARY"] = library
    spec = importlib.util.spec_from_file_location("loader", sys.argv[1])
    loader = sys.modules["loader"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    print(json.dumps([name, library, dataclasses.asdict(loader.load())]), flush=True)
"""

PACKAGE = """
import json, torch, customlstm
from customlstm import _binary
lstm = customlstm.LSTM(3, 4)
output, _ = lstm(torch.randn(5, 2, 3))
output.sum().backward()
assert lstm.weight_ih_l0.grad.isfinite().all()
status = _binary.status()
assert status is _binary.load()
print(json.dumps([status.loaded, status.path, status.reason, status.remedy]))
"""

COMPILER = shutil.which("cc")


def write(folder: Path, content: bytes, **changes: Any) -> Path:
    """A library with this content and a manifest that fits, but for the changes; None leaves an entry out."""
    library = folder / "_C.abi3.so"
    library.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    fitting = {"interface": _binary.INTERFACE, "size": len(content), "sha256": digest}
    manifest = {key: value for key, value in (fitting | changes).items() if value is not None}
    (folder / "_C.json").write_text(json.dumps(manifest))
    return library


def compiled(folder: Path, source: str) -> bytes:
    (folder / "library.c").write_text(source)
    subprocess.run([COMPILER, "-shared", "-fPIC", "library.c", "-o", "library.so"], cwd=folder, check=True)
    return (folder / "library.so").read_bytes()


def absent(folder: Path) -> Path:
    return folder / "_C.abi3.so"


def no_manifest(folder: Path) -> Path:
    library = write(folder, b"contents")
    (folder / "_C.json").unlink()
    return library


def manifest_is_no_json(folder: Path) -> Path:
    library = write(folder, b"contents")
    (folder / "_C.json").write_text('{"interface": 1, "si')
    return library


def manifest_is_a_list(folder: Path) -> Path:
    library = write(folder, b"contents")
    (folder / "_C.json").write_text("[1, 2]")
    return library


def manifest_without_digest(folder: Path) -> Path:
    return write(folder, b"contents", sha256=None)


def older_interface(folder: Path) -> Path:
    return write(folder, b"contents", interface=_binary.INTERFACE - 1)


def newer_interface(folder: Path) -> Path:
    return write(folder, b"contents", interface=_binary.INTERFACE + 1)


def truncated(folder: Path) -> Path:
    library = write(folder, bytes(100_000))
    library.write_bytes(bytes(4096))
    return library


def garbage(folder: Path) -> Path:
    library = write(folder, bytes(100_000))
    library.write_bytes(b"\xff" * 100_000)
    return library


def not_a_library(folder: Path) -> Path:
    return write(folder, b"neither ELF nor anything else", torch="2.10.0")


def undefined_symbol(folder: Path) -> Path:
    source = "void of_a_newer_torch(void); void *PyInit__C(void) { of_a_newer_torch(); return 0; }"
    return write(folder, compiled(folder, source), torch="9.9.0")


def no_init_function(folder: Path) -> Path:
    return write(folder, compiled(folder, "int nothing;"))


def init_function_fails(folder: Path) -> Path:
    return write(folder, compiled(folder, "void *PyInit__C(void) { return 0; }"))


INTERFACE = _binary.INTERFACE
REASONS = {
    absent: ["there is no compiled library"],
    no_manifest: ["_C.json is missing"],
    manifest_is_no_json: ["_C.json cannot be read"],
    manifest_is_a_list: ["_C.json has no interface"],
    manifest_without_digest: ["_C.json has no sha256"],
    older_interface: [f"has interface {INTERFACE - 1}", f"needs {INTERFACE}"],
    newer_interface: [f"has interface {INTERFACE + 1}", f"needs {INTERFACE}"],
    truncated: ["is damaged: it has 4096 bytes, but 100000 were built"],
    garbage: ["is damaged: its contents are not what was built"],
    not_a_library: ["does not load", "ImportError", "built with torch 2.10.0"],
    undefined_symbol: ["does not load", "of_a_newer_torch", "built with torch 9.9.0"],
    no_init_function: ["does not load", "PyInit__C"],
    init_function_fails: ["does not load", "SystemError"],
}
COMPILED = (undefined_symbol, no_init_function, init_function_fails)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, run) -> dict[str, tuple[str, dict]]:
    """What the loader said about each of these libraries, with the library's path."""
    libraries = []
    for make in REASONS:
        if make not in COMPILED or COMPILER is not None:
            libraries += [make.__name__, make(tmp_path_factory.mktemp(make.__name__))]
    done = run("python", "-c", LOADER, _binary.__file__, *libraries, cwd=ROOT, code=None)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (library, status) for name, library, status in outcomes}


@pytest.mark.parametrize("make", list(REASONS), ids=lambda make: make.__name__)
def test_reason(make, outcomes: dict[str, tuple[str, dict]]) -> None:
    if make in COMPILED and COMPILER is None:
        pytest.skip("no C compiler (cc)")
    library, status = outcomes[make.__name__]
    assert not status["loaded"]
    assert status["path"] == library
    for text in REASONS[make]:
        assert text in status["reason"]
    assert status["remedy"] == "unset CUSTOMLSTM_BINARY"  # building the package's own would not help


@pytest.mark.parametrize("make", [absent, truncated, older_interface], ids=lambda make: make.__name__)
def test_remedy_for_the_packages_own_library(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    for name in ("CUSTOMLSTM_BINARY", "CUSTOMLSTM_DISABLE_BINARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "customlstm._C", raising=False)
    monkeypatch.setattr(_binary, "_PACKAGE", tmp_path)
    status = _binary._load()
    assert not status.loaded and REASONS[make][0] in status.reason and "CUSTOMLSTM" not in status.reason
    assert "pip install --force-reinstall" in status.remedy


@pytest.mark.parametrize("torchs_cuda", [None, "13.0"])
def test_library_with_cuda_kernels_and_a_torch_without(
    torchs_cuda: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What dlopen says, libtorch_cuda.so is missing, does not name what to install."""
    library = write(tmp_path, b"no ELF, which fails as well", torch="2.11.0+cu130", cuda={"toolkit": "13.0"})
    monkeypatch.setattr(_binary.torch.version, "cuda", torchs_cuda)
    with pytest.raises(_binary._Unusable) as raised:
        _binary._import(library, json.loads((tmp_path / "_C.json").read_text()))
    assert "built with torch 2.11.0+cu130" in str(raised.value)
    assert ("needs a torch built with CUDA" in str(raised.value)) == (torchs_cuda is None)


@pytest.mark.parametrize("make", [absent, truncated, not_a_library], ids=lambda make: make.__name__)
def test_package_computes_all_the_same(make, tmp_path: Path, run) -> None:
    library = make(tmp_path)
    done = run("python", "-c", PACKAGE, cwd=ROOT, CUSTOMLSTM_BINARY=str(library))
    loaded, path, reason, _ = json.loads(done.stdout.splitlines()[-1])
    assert not loaded
    assert path == str(library)
    assert REASONS[make][0] in reason


def test_disabled(tmp_path: Path, run) -> None:
    done = run("python", "-c", PACKAGE, cwd=ROOT, CUSTOMLSTM_DISABLE_BINARY="1")
    loaded, _, reason, remedy = json.loads(done.stdout.splitlines()[-1])
    assert not loaded
    assert reason == "CUSTOMLSTM_DISABLE_BINARY is set"
    assert remedy == "unset CUSTOMLSTM_DISABLE_BINARY"


@pytest.mark.skipif(not _binary.status().loaded, reason=_binary.status().reason)
def test_reloading_the_module_does_not_load_the_library_again(run) -> None:
    """A second copy would register every operator twice, which ends the process."""
    code = (
        "import importlib, customlstm\nfrom customlstm import _binary\n"
        "before = _binary.status(); importlib.reload(_binary); print(_binary.status() is before)"
    )
    assert run("python", "-c", code, cwd=ROOT).stdout.strip() == "True"


def test_remedy_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUSTOMLSTM_NO_EXTENSION", raising=False)
    strange = tmp_path / "with a space"
    for name in ("customlstm", "csrc"):
        (strange / name).mkdir(parents=True)
    (strange / "setup.py").touch()
    monkeypatch.setattr(_binary, "_PACKAGE", strange / "customlstm")
    monkeypatch.setattr(_binary.sys, "executable", "/opt/my python/bin/python")
    expected = f"cd '{strange}' && '/opt/my python/bin/python' setup.py build_ext --inplace"
    assert _binary.rebuild_command().endswith(expected)
    monkeypatch.setenv("CUSTOMLSTM_NO_EXTENSION", "1")
    assert _binary.rebuild_command().startswith("unset CUSTOMLSTM_NO_EXTENSION && ")
