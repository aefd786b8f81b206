"""Where builds are kept: the cache folder, or a folder of this process where that one cannot be written.

Environment variables:
  CUSTOMLSTM_CACHE_DIR   the cache folder; else $XDG_CACHE_HOME/customlstm, else ~/.cache/customlstm
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import warnings
from pathlib import Path

from . import trust
from .build_error import BuildError, CacheWarning

#: Ends the name of a failed build's folder, which holds its log.
FAILED = ".failed"

_guard = threading.Lock()
_temporary: tuple[int, Path] | None = None  # the process that made it, and the folder
_warned: set[str] = set()


def cache_folder() -> Path | None:
    """The cache folder, without symbolic links, whether or not it exists; None for a user without a home.

    A home that does not exist is not made: in a container it is a sign that nobody meant to keep anything.
    """
    chosen = os.environ.get("CUSTOMLSTM_CACHE_DIR")
    if chosen:
        return Path(os.path.realpath(os.path.expanduser(chosen)))
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # the XDG specification: a relative one is to be ignored
        home = os.path.expanduser("~")
        if not os.path.isdir(home):
            return None
        cache = os.path.join(home, ".cache")
    return Path(os.path.realpath(os.path.join(cache, "customlstm")))


def make(folder: Path) -> None:
    """Makes a folder, and those above it, each for this user alone, and checks that it is safe.

    Raises:
        UnsafeFolderError: see :func:`customlstm.jit.trust.check_folder`.
        OSError: it cannot be made.
    """
    missing = []
    for each in (folder, *folder.parents):
        if os.path.lexists(each):
            break
        missing.append(each)
    for each in reversed(missing):
        # os.makedirs would leave the mode of those above to the umask, which in a container is often 0.
        each.mkdir(mode=0o700, exist_ok=True)
    trust.check_folder(folder)


def temporary(why: str) -> Path:
    """A folder of this process, removed when it ends, unless a failed build left its log there.

    Warns, once for each reason.

    Args:
        why: why the cache folder cannot be used.

    Raises:
        BuildError: there is no folder for temporary files either, or no room in it.
    """
    global _temporary
    with _guard:
        if _temporary is None or _temporary[0] != os.getpid() or not _temporary[1].is_dir():
            try:
                folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="customlstm-")))
            except OSError as error:
                raise BuildError(
                    f"{why}, and no folder for temporary files can be made either: {error}. Set "
                    "CUSTOMLSTM_CACHE_DIR or TMPDIR to a folder that can be written"
                ) from error
            _temporary = (os.getpid(), folder)
            atexit.register(_remove_at_exit, *_temporary)
        folder = _temporary[1]
        first = why not in _warned
        _warned.add(why)
    if first:
        warnings.warn(
            f"{why}. Cells are built in {folder} for this process alone, and again in the next one; to keep "
            "them, set CUSTOMLSTM_CACHE_DIR to a folder that can be written",
            CacheWarning,
            stacklevel=2,
        )
    return folder


def present_temporary() -> Path | None:
    """The folder of :func:`temporary`, if there is one."""
    return _temporary[1] if _temporary is not None and _temporary[0] == os.getpid() else None


def _remove_at_exit(process: int, folder: Path) -> None:
    # A forked child runs its parent's exit functions too.
    if process == os.getpid() and not any(folder.rglob(f"*{FAILED}")):
        shutil.rmtree(folder, ignore_errors=True)


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
