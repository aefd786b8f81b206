"""Finds the compiled library, checks it, and loads it; where that fails it says why, and how to mend it.

Nothing here raises: a package whose library is absent, damaged, or made for other Python code imports all the
same and computes on the reference.

Environment variables:
  CUSTOMLSTM_DISABLE_BINARY=1   load nothing
  CUSTOMLSTM_BINARY=FILE        load this library, with the manifest beside it, in place of the package's own
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch  # must be in the process before the library, which finds torch's own libraries already loaded

# The number that this Python code and the library must share; csrc/ops/interface.h has the other copy.
INTERFACE = 7

_MODULE = "customlstm._C"
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Status:
    """What became of the compiled library.

    Attributes:
        loaded: whether its operators are registered.
        path: the library file, or where it was looked for.
        reason: why it is not loaded, one or two sentences; empty if it is.
        remedy: the shell command that mends it; empty if nothing is to be mended.
        asked_for: whether this is a pure-Python installation on purpose (CUSTOMLSTM_NO_EXTENSION).
        build: the build manifest (interface, version, torch, compiler, flags, cpu, cuda, why_no_cuda, size,
            sha256), as setup.py wrote it; empty where there is none.
    """

    loaded: bool
    path: str | None
    reason: str = ""
    remedy: str = ""
    build: dict[str, Any] = field(default_factory=dict)
    asked_for: bool = False


class _Unusable(Exception):
    """Carries the reason, and the remedy where it is another one than :func:`_remedy`."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = _remedy() if remedy is None else remedy


def _remedy() -> str:
    # What is built anew is the package's own library, of no use while another one is asked for.
    return "unset CUSTOMLSTM_BINARY" if os.environ.get("CUSTOMLSTM_BINARY") else rebuild_command()


_status: Status | None = None


def load() -> Status:
    """Loads the library at the first call; every call returns what came of that one."""
    global _status
    if _status is None:
        _status = _load()
    return _status


def status() -> Status:
    """What became of the library; the same as :func:`load`, for readers."""
    return load()


def _load() -> Status:
    # After importlib.reload of this module. The file may be a newer one by now, and loading it beside the
    # first would register every operator twice, which ends the process.
    earlier = getattr(sys.modules.get(_MODULE), "status", None)
    if earlier is not None:
        return earlier
    path = _library()
    build: dict[str, Any] = {}
    try:
        if os.environ.get("CUSTOMLSTM_DISABLE_BINARY", "0") not in ("", "0"):
            raise _Unusable("CUSTOMLSTM_DISABLE_BINARY is set", "unset CUSTOMLSTM_DISABLE_BINARY")
        if not path.is_file() and (choice := _why_not_built(path)):
            return Status(False, str(path), choice, rebuild_command(), asked_for=True)
        if not path.is_file():
            chosen = ", which CUSTOMLSTM_BINARY names" if os.environ.get("CUSTOMLSTM_BINARY") else ""
            raise _Unusable(f"there is no compiled library: {path.name} is not in {path.parent}{chosen}")
        build = _manifest(path)
        _check(path, build)
        module = _import(path, build)
    except _Unusable as error:
        return Status(False, str(path), str(error), error.remedy, build)
    module.status = Status(True, str(path), build=build)
    return module.status


def _library() -> Path:
    chosen = os.environ.get("CUSTOMLSTM_BINARY")
    if chosen:
        return Path(chosen).absolute()
    candidates = [_PACKAGE / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    default = next((path for path in candidates if ".abi3" in path.name), candidates[0])
    return next((path for path in candidates if path.exists()), default)


def _why_not_built(path: Path) -> str:
    """What setup.py noted in place of a manifest where it was told to compile nothing; else empty."""
    try:
        noted = json.loads(path.with_name("_C.json").read_bytes())
    except (OSError, ValueError):
        return ""
    return str(noted.get("why_not_built", "")) if isinstance(noted, dict) else ""


def _manifest(path: Path) -> dict[str, Any]:
    file = path.with_name("_C.json")
    try:
        build = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise _Unusable(f"the build manifest {file} is missing, so the library cannot be checked") from None
    except (OSError, ValueError) as error:
        raise _Unusable(f"the build manifest {file} cannot be read: {error}") from None
    known = build if isinstance(build, dict) else {}
    missing = [key for key in ("interface", "size", "sha256") if key not in known]
    if missing:
        raise _Unusable(f"the build manifest {file} has no {', '.join(missing)}")
    return build


def _check(path: Path, build: dict[str, Any]) -> None:
    """Refuses a library of another interface, and a damaged one: loading that can kill the process."""
    if build["interface"] != INTERFACE:
        raise _Unusable(
            f"the compiled library has interface {build['interface']}, this Python code needs {INTERFACE}: "
            "they come from different versions"
        )
    try:
        size, digest = path.stat().st_size, hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise _Unusable(f"the compiled library cannot be read: {error}") from None
    if size != build["size"]:
        raise _Unusable(f"{path} is damaged: it has {size} bytes, but {build['size']} were built")
    if digest.hexdigest() != build["sha256"]:
        raise _Unusable(f"{path} is damaged: its contents are not what was built")


def _import(path: Path, build: dict[str, Any]) -> Any:
    loader = importlib.machinery.ExtensionFileLoader(_MODULE, str(path))
    spec = importlib.util.spec_from_file_location(_MODULE, path, loader=loader)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a foreign binary raises; the text is kept, and the reference serves
        raise _Unusable(
            f"the library does not load: {type(error).__name__}: {error} "
            f"(built with torch {build.get('torch')}, this is torch {torch.__version__})"
            f"{_why_not_this_torch(build)}"
        ) from error
    sys.modules[_MODULE] = module
    return module


def _why_not_this_torch(build: dict[str, Any]) -> str:
    """What the loader's "libtorch_cuda.so: cannot open shared object file" means; else empty."""
    if build.get("cuda") is None or torch.version.cuda is not None:
        return ""
    return (
        ". A library with CUDA kernels needs a torch built with CUDA, which this one is not: install one "
        "that is, or build the library anew for this torch, without CUDA kernels"
    )


def rebuild_command() -> str:
    """The shell command that builds the library anew where this package lies."""
    python = shlex.quote(sys.executable)
    steps = ["unset CUSTOMLSTM_NO_EXTENSION"] if "CUSTOMLSTM_NO_EXTENSION" in os.environ else []
    if importlib.util.find_spec("ninja") is None or _older_setuptools():
        steps.append(f"{python} -m pip install ninja 'setuptools>=77' torch")
    root = _PACKAGE.parent
    if (root / "csrc").is_dir() and (root / "setup.py").is_file():
        steps += [f"cd {shlex.quote(str(root))}", f"{python} setup.py build_ext --inplace"]
    else:
        source = shlex.quote(_source())
        steps.append(f"{python} -m pip install --force-reinstall --no-deps --no-build-isolation {source}")
    return " && ".join(steps)


def _older_setuptools() -> bool:
    try:
        return int(metadata.version("setuptools").partition(".")[0]) < 77
    except (metadata.PackageNotFoundError, ValueError):
        return True


def _source() -> str:
    """The folder or archive that pip installed this package from, if it is still there; else its name."""
    try:
        origin = metadata.distribution("customlstm").read_text("direct_url.json")
        url = json.loads(origin or "{}").get("url", "")
    except (metadata.PackageNotFoundError, ValueError):
        return "customlstm"
    path = url2pathname(urlsplit(url).path)
    usable = url.startswith("file:") and os.path.exists(path) and not path.endswith(".whl")
    return path if usable else "customlstm"
