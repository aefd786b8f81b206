"""The C++ headers of the package that generated code includes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from .build_error import BuildError

#: What code for the CPU may include, relative to the folder of the headers: files, and folders as a whole.
CPU = ("types.h", "cells", "cpu")
#: The same for GPUs.
CUDA = ("types.h", "cells", "cuda")

_SUFFIXES = (".h", ".inl")
# One file of kernels is a translation unit of the package, and text for generated code to include.
_SUFFIXES_OF = {"cpu": (*_SUFFIXES, ".cpp")}

_PACKAGE = Path(__file__).resolve().parents[1]


def headers() -> Path:
    """The folder of the headers: ``csrc`` of a clone or an editable install, else the copy in the package.

    Raises:
        BuildError: there is neither.
    """
    candidates = (_PACKAGE / "include", _PACKAGE.parent / "csrc")
    for folder in candidates:
        if (folder / "types.h").is_file():
            return folder
    raise BuildError(
        f"the C++ headers of customlstm are missing: types.h is in neither {candidates[0]} nor "
        f"{candidates[1]}. Every wheel and every clone has them, so this installation is damaged: install "
        "customlstm again"
    )


def digests(folder: Path, parts: Sequence[str] = CPU) -> dict[str, str]:
    """sha256 of everything that can be included, by its path relative to ``folder``.

    All of it, not what one source is seen to include: a header named by a macro must not be missed. Paths are
    relative, so that two installations of one version share a cache.

    Raises:
        BuildError: ``folder`` holds none of the ``parts``, or a file cannot be read.
    """
    found: dict[str, str] = {}
    try:
        for part in parts:
            path = folder / part
            files = [path] if path.is_file() else sorted(path.rglob("*"))
            for file in files:
                if file.suffix in _SUFFIXES_OF.get(part, _SUFFIXES) and file.is_file():
                    name = file.relative_to(folder).as_posix()
                    found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise BuildError(f"a C++ header cannot be read: {error}. Make it readable for this user") from error
    if not found:
        raise BuildError(
            f"{folder} holds no C++ headers: expected {', '.join(parts)} there. Pass the folder that "
            "customlstm.jit.headers.headers() returns"
        )
    return found
