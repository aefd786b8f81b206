"""Locks between threads, and between processes; both survive fork and the death of whoever holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Hashable, Iterator
from pathlib import Path

_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_POLL_S = 0.02

_open: set[int] = set()  # descriptors of lock files of this process
_guard = threading.Lock()
_by_key: dict[Hashable, threading.Lock] = {}


def within_process(key: Hashable) -> threading.Lock:
    """The lock that all threads of this process share for ``key``."""
    with _guard:
        return _by_key.setdefault(key, threading.Lock())


@contextlib.contextmanager
def between_processes(path: Path, patience: float) -> Iterator[bool]:
    """Holds the lock file ``path``; yields whether it is held.

    It is not where the file system has no locks, or where another process has kept it for ``patience``
    seconds: one that was stopped must not stop all others for ever. The file is made if need be and never
    removed, since whoever waits for a removed file and whoever makes a new one would both hold "the" lock.
    The kernel releases the lock when the process dies, however it dies.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _open.add(descriptor)
    held = False
    try:
        held = _acquire(descriptor, patience)
        yield held
    finally:
        _open.discard(descriptor)
        if held:
            # Closing would not do: a child forked meanwhile may not have closed its copy yet.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquire(descriptor: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                return False
            raise
        time.sleep(_POLL_S)


def _after_fork() -> None:
    """In the child: its copies of lock files would outlive a parent that is killed, and locks of threads
    that were not copied would never be released."""
    global _guard
    for descriptor in _open:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _open.clear()
    _by_key.clear()
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
