"""A cache of builds on disk: found by a digest of all that went in, made once, published whole or not at all.

Independent of what is built: a :class:`Builder` writes files into a folder that it is given. An entry is a
folder ``<cache>/<kind>/<name>-<digest of the inputs>-<digest of the tool>`` with these and ``manifest.json``.

Environment variables:
  CUSTOMLSTM_JIT=0   build nothing, and run no compiler. What the cache holds of the same inputs is used,
                     whichever compiler has made it; where it holds nothing, that is an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import folders, locks, trust
from .build_error import BuildDisabledError, BuildError, CacheWarning
from .entries import Entry, Recipe, UnusableEntry, digest, file_name, remove, seal, sync, verified

#: How long to wait for another process that builds the same: longer than any build may take.
PATIENCE_S = 660.0

# Older than any build that may still be under way.
_ABANDONED_S = 24 * 3600.0

_failures: dict[Path, BuildError] = {}
_others_forget: list[Callable[[], object]] = []


class Builder(Protocol):
    """What builds: a compiler with what it is to compile."""

    def identity(self) -> Mapping[str, Any]:
        """What the product depends on besides the inputs: the tool and its version, as JSON.

        Raises:
            BuildError: there is no such tool. An entry that another has made is used, if there is one.
        """
        ...

    def build(self, folder: Path, kept: Path) -> Mapping[str, Any]:
        """Writes the product, and what helps to understand it; returns notes for the manifest.

        Args:
            folder: where to write: empty, of this process alone. All of it is published as the entry.
            kept: where that folder will lie if this raises BuildError, for its text to name.

        Raises:
            BuildError: the inputs cannot be built. It is remembered, and raised again when asked for again.
            OSError: the folder cannot be written, or is full. Another folder is tried.
        """
        ...


def building_disabled() -> bool:
    """Whether CUSTOMLSTM_JIT=0, or one of the words for it."""
    return os.environ.get("CUSTOMLSTM_JIT", "").strip().lower() in ("0", "off", "false", "no")


def obtain(recipe: Recipe, builder: Builder) -> Entry:
    """The entry of ``recipe``: from the cache, or built.

    Any number of threads and processes may ask at once: one builds, the others wait and then find it.

    Raises:
        BuildError: it cannot be built (the builder's own error), the cache folder is not safe
            (:class:`UnsafeFolderError`), or building is switched off and the cache holds nothing
            (:class:`BuildDisabledError`).
    """
    root = folders.cache_folder()
    try:
        if building_disabled():
            raise BuildDisabledError(
                f"{recipe.name!r} needs to be built, but CUSTOMLSTM_JIT is {os.environ['CUSTOMLSTM_JIT']}. "
                "Unset it, or set CUSTOMLSTM_CACHE_DIR to a cache that holds a build of it"
            )
        tool = dict(builder.identity())
    except BuildError as error:
        return _made_by_any_tool(recipe, root, error)
    if root is None:
        return _obtain_here(recipe, tool, builder, "there is no home folder for a cache of built cells")
    try:
        return _obtain(_Place.of(root, recipe, tool), recipe, tool, builder)
    except OSError as error:
        why = f"the cache folder {root} cannot be used: {error.strerror or error}"
        return _obtain_here(recipe, tool, builder, why)


def forget_failures() -> None:
    """Lets what has failed in this process be tried again, when its cause has gone: a full disk, perhaps, or
    a compiler that was not installed."""
    _failures.clear()
    for forget in _others_forget:
        forget()


def forget_too(forget: Callable[[], object]) -> None:
    """Has :func:`forget_failures` call ``forget``: of who remembers failures that this cache does not see."""
    _others_forget.append(forget)


@dataclass(frozen=True)
class _Place:
    """Where an entry lies or will lie."""

    root: Path
    entry: Path
    tool_digest: str

    @classmethod
    def of(cls, root: Path, recipe: Recipe, tool: Mapping[str, Any]) -> _Place:
        made_by = digest(tool)
        return cls(root, root / recipe.kind / f"{_stem(recipe)}-{made_by[:8]}", made_by)

    @property
    def folder(self) -> Path:
        return self.entry.parent

    def beside(self, suffix: str) -> Path:
        return self.entry.with_name(self.entry.name + suffix)


def _stem(recipe: Recipe) -> str:
    return f"{file_name(recipe.name)}-{recipe.digest()[:16]}"


def _made_by_any_tool(recipe: Recipe, root: Path | None, error: BuildError) -> Entry:
    """The newest entry of the same inputs; raises ``error`` if there is none."""
    found, faults = [], []
    entry_name = re.compile(re.escape(_stem(recipe)) + "-[0-9a-f]{8}")
    for base in filter(None, (root, folders.present_temporary())):
        folder, names = base / recipe.kind, []
        try:
            _check(base, folder)
            names = sorted(filter(entry_name.fullmatch, os.listdir(folder)))
        except FileNotFoundError:
            pass
        except OSError as fault:
            faults.append(f"{folder} cannot be read: {fault.strerror}")
        for path in (folder / name for name in names):
            try:
                manifest = verified(path, recipe, None)
                found.append((manifest["created"], path, manifest))
            except (UnusableEntry, OSError) as fault:
                faults.append(f"{path} {fault}")
    if found:
        _, path, manifest = max(found)
        return Entry(path, path / recipe.product, manifest["notes"], from_cache=True)
    if faults or isinstance(error, BuildDisabledError):
        looked = f"none was found in {root}" if root else "there is no home folder for a cache"
        raise type(error)(f"{error} ({'; '.join(faults) or looked})") from error
    raise error


def _obtain_here(recipe: Recipe, tool: Mapping[str, Any], builder: Builder, why: str) -> Entry:
    """Builds in a folder of this process: whoever has no cache still wants results."""
    root = folders.temporary(why)
    try:
        return _obtain(_Place.of(root, recipe, tool), recipe, tool, builder)
    except OSError as error:
        raise BuildError(
            f"{why}, and the folder for temporary files {root} cannot be used either: "
            f"{error.strerror or error}. Set CUSTOMLSTM_CACHE_DIR or TMPDIR to a folder that can be written"
        ) from error


def _obtain(place: _Place, recipe: Recipe, tool: Mapping[str, Any], builder: Builder) -> Entry:
    with locks.within_process(place.entry):
        with contextlib.suppress(UnusableEntry):  # said once the lock is held, if it is still so
            entry = _look(place, recipe)
            if entry is not None:
                return entry
        if place.entry in _failures:
            raise _failures[place.entry].again()
        folders.make(place.folder)
        _check(place.root, place.folder)
        with locks.between_processes(place.beside(".lock"), PATIENCE_S) as held:
            try:
                entry = _look(place, recipe)
                if entry is not None:
                    return entry
            except UnusableEntry as fault:
                _put_aside(place)  # first: the warning may be an error
                warnings.warn(
                    f"{place.entry} {fault}; it is removed and built anew", CacheWarning, stacklevel=4
                )
            _sweep(place, held)
            return _build(place, recipe, tool, builder)


def _look(place: _Place, recipe: Recipe) -> Entry | None:
    """The entry, verified; None if there is none.

    Raises:
        UnusableEntry: what lies there is no complete entry of ours.
        UnsafeFolderError: nothing that lies there is to be used.
    """
    try:
        _check(place.root, place.folder)
        manifest = verified(place.entry, recipe, place.tool_digest)
    except FileNotFoundError:
        return None
    return Entry(place.entry, place.entry / recipe.product, manifest["notes"], from_cache=True)


def _check(root: Path, folder: Path) -> None:
    # Not only as a folder above the other: the cache folder itself may not be as open as /tmp is.
    trust.check_folder(root)
    trust.check_folder(folder)


def _build(place: _Place, recipe: Recipe, tool: Mapping[str, Any], builder: Builder) -> Entry:
    attempt = Path(tempfile.mkdtemp(prefix=_attempt_prefix(place), dir=place.folder))
    kept = place.beside(folders.FAILED)
    try:
        notes = dict(builder.build(attempt, kept))
        seal(attempt, recipe, tool, notes)
        other = _publish(attempt, place, recipe)
    except BuildError as error:
        _failures[place.entry] = error
        remove(kept)
        with contextlib.suppress(OSError):  # without the lock another process may have put its own there
            os.rename(attempt, kept)
        raise
    except BaseException:  # an interrupt too must leave nothing behind
        remove(attempt)
        raise
    remove(kept)
    return other or Entry(place.entry, place.entry / recipe.product, notes, from_cache=False)


def _publish(attempt: Path, place: _Place, recipe: Recipe) -> Entry | None:
    """Gives the attempt the entry's name, unless one made without the lock has it: then that is returned."""
    try:
        os.rename(attempt, place.entry)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with contextlib.suppress(UnusableEntry):
            entry = _look(place, recipe)
            if entry is not None:
                remove(attempt)
                return entry
        _put_aside(place)
        os.rename(attempt, place.entry)
    sync(place.folder)
    return None


def _put_aside(place: _Place) -> None:
    """Renamed first, within its folder: what another user owns cannot always be removed, or moved away."""
    aside = place.beside(f".attempt-refused-{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(place.entry, aside)
    remove(aside)


def _attempt_prefix(place: _Place) -> str:
    return f"{place.entry.name}.attempt-{file_name(os.uname().nodename)}-"


def _sweep(place: _Place, held: bool) -> None:
    """Removes what builds of this entry that were killed have left.

    With the lock held none is under way here. On another host one may be: some network file systems lock on
    each host alone.
    """
    here = (_attempt_prefix(place), f"{place.entry.name}.attempt-refused-")
    for left in place.folder.glob(f"{place.entry.name}.attempt-*"):
        with contextlib.suppress(OSError):
            if (held and left.name.startswith(here)) or time.time() - os.lstat(left).st_mtime > _ABANDONED_S:
                remove(left)
