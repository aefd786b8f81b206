"""Generated C++ to a shared library that can be loaded: from the cache, or compiled into it.

Nothing here runs at import. What is checked before a library is loaded: :mod:`customlstm.jit.entries` and
:mod:`customlstm.jit.trust`; ``docs/jit.md`` is the page for users.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cache, compiling, toolchain
from .build_error import BuildDisabledError, BuildError, CacheWarning, NoCompilerError, UnsafeFolderError
from .cache import forget_failures
from .entries import MANIFEST, Entry, Recipe, file_name
from .ingredients import Ingredients

__all__ = [
    "BuildDisabledError", "BuildError", "Built", "CacheWarning", "NoCompilerError", "UnsafeFolderError",
    "build_library", "forget_failures",
]  # fmt: skip

# No folder, and nothing that a compiler takes for an option or a list of options (@file).
_SOURCE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Built:
    """What was built: a shared library that is ready to be loaded, or an archive of cubins for a GPU.

    Attributes:
        path: the library or the archive.
        seconds: how long this call took, a wait for another process included.
        from_cache: whether it was built before.
        command: what was run to build it, for a shell in the folder of ``path``, where the sources are.
        log: what the compiler printed; None if that was not kept.
    """

    path: Path
    seconds: float
    from_cache: bool
    command: str
    log: Path | None

    @classmethod
    def of(cls, entry: Entry, start: float) -> Built:
        """Of a cache's entry, for a call that began at ``start`` by :func:`time.perf_counter`."""
        log = entry.folder / compiling.LOG
        return cls(
            path=entry.product,
            seconds=time.perf_counter() - start,
            from_cache=entry.from_cache,
            command=entry.notes["command"],
            log=log if log.is_file() else None,
        )


def build_library(
    name: str, sources: Mapping[str, str], *, includes: Path, flags: Sequence[str] = ()
) -> Built:
    """Compiles ``sources`` into a shared library, unless the cache holds it.

    Args:
        name: what people call it; appears in names of files and in errors.
        sources: file name -> text. Files that end in .cpp are compiled, side by side, and linked; others are
            for these to include.
        includes: the folder of the package's C++ headers, see :func:`customlstm.jit.headers.headers`. Sources
            may include what is in :data:`customlstm.jit.headers.CPU`: of other files a change goes unnoticed.
        flags: more flags of the compiler, after :data:`customlstm.jit.toolchain.FLAGS`.

    Returns:
        The library, and how it came about. Loading it is up to the caller.

    Raises:
        TypeError, ValueError: ``sources`` or ``flags`` are not as described.
        BuildError: it does not compile, or nothing can be compiled: no compiler (:class:`NoCompilerError`),
            CUSTOMLSTM_JIT=0 (:class:`BuildDisabledError`), a cache folder that others can write to
            (:class:`UnsafeFolderError`). The text says what to do. What does not compile is remembered, and
            not compiled again in this process.
    """
    start = time.perf_counter()
    _check(sources, flags)
    library = compiling.Library(
        f"{name!r}", f"{file_name(name)}.so", dict(sources), Path(includes), tuple(flags)
    )
    builder = _LibraryBuilder(library)
    entry = cache.obtain(Recipe("cpu", name, library.file, builder.inputs()), builder)
    return Built.of(entry, start)


def _check(sources: Mapping[str, str], flags: Sequence[str]) -> None:
    if isinstance(flags, str) or not all(isinstance(flag, str) for flag in flags):
        raise TypeError(f"flags must be a sequence of str, one for each flag, got {flags!r}")
    for name, text in sources.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"sources must map file names to texts, got {name!r}: {type(text).__name__}")
        if not _SOURCE_NAME.fullmatch(name) or name in (MANIFEST, compiling.LOG):
            raise ValueError(
                f"sources has {name!r}, expected file names of letters, digits and _ . + - without a folder, "
                f"other than {MANIFEST} and {compiling.LOG}"
            )
    if not any(name.endswith(".cpp") for name in sources):
        raise ValueError(f"sources has no file that ends in .cpp, got {', '.join(sources) or 'none at all'}")


class _LibraryBuilder:
    """Builds one library; a :class:`customlstm.jit.cache.Builder`."""

    def __init__(self, library: compiling.Library) -> None:
        self.library = library
        self.ingredients = Ingredients(library.sources, library.includes)

    def inputs(self) -> dict[str, Any]:
        return self.ingredients.inputs() | {
            "platform": sys.platform,
            "machine": os.uname().machine,
            "flags": [*toolchain.FLAGS, *toolchain.LINK_FLAGS, *self.library.flags],
        }

    def identity(self) -> Mapping[str, Any]:
        return toolchain.find_compiler().identity()

    def build(self, folder: Path, kept: Path) -> Mapping[str, Any]:
        start = time.perf_counter()
        compiler = toolchain.find_compiler()
        command = compiling.compile_library(compiler, self.library, folder, kept)
        self.ingredients.check_unchanged(self.library.subject)
        return {
            "seconds": round(time.perf_counter() - start, 3),
            "command": command,
            "compiler": list(compiler.command),
        }
