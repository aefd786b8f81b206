"""Whether anybody but this user, and root, could have written a file or could replace it.

A library that is loaded runs with the rights of whoever loads it. So a cache is as safe as the least safe
folder on the way to it. Root is trusted throughout: root could replace Python itself, and images of
containers are commonly made by root for another user.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .build_error import UnsafeFolderError


def why_foreign(status: os.stat_result) -> str | None:
    """Why what has this status is not to be trusted: its owner, or who may write it; None if it is.

    Under an access control list the group's bits are its mask, so that a right of any other user shows there.
    """
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {status.st_uid}, expected user {os.geteuid()} or root"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        whom = "everyone" if status.st_mode & stat.S_IWOTH else "its group"
        return f"can be written by {whom} (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def check_folder(folder: Path) -> None:
    """Refuses a folder whose contents another user could change, or that another user could replace.

    The folder must belong to the effective user or to root and be writable by the owner alone. So must every
    folder above it, but for two cases. One with the sticky bit, such as /tmp, may be writable by all: nobody
    can rename what another user owns there. And in a user namespace that leaves out the system's root, as
    Apptainer makes them, / and /home belong to "nobody", which is taken for root there.

    Args:
        folder: absolute and without symbolic links (``os.path.realpath``): a link could be redirected later.

    Raises:
        UnsafeFolderError: naming the folder that is at fault, and the command that mends it.
        OSError: a folder does not exist, or cannot be looked at.
    """
    for each in (folder, *folder.parents):
        status = os.lstat(each)
        reason = why_foreign(status) if each == folder else why_foreign(_as_seen_from_below(status))
        if reason is None and not stat.S_ISDIR(status.st_mode):
            reason = "is not a folder"
        if reason is None:
            continue
        mend = (
            f"run `chmod go-w {each}`, or " if status.st_uid == os.geteuid() and "written" in reason else ""
        )
        raise UnsafeFolderError(
            f"the cache folder {folder} is not safe to load code from: {each} {reason}, so that another user "
            f"could exchange the libraries in it. To mend it, {mend}set CUSTOMLSTM_CACHE_DIR to a folder "
            "that only you can write to, below folders of which the same is true"
        )


def _as_seen_from_below(status: os.stat_result) -> os.stat_result:
    """What the status of a folder means for one that lies in it; see check_folder."""
    mode, owner = status.st_mode, status.st_uid
    if mode & stat.S_ISVTX:
        mode &= ~(stat.S_IWGRP | stat.S_IWOTH)
    if owner not in (os.geteuid(), 0) and owner == _unknown_owner():
        owner = 0
    return os.stat_result((mode, *status[1:4], owner, *status[5:10]))


def _unknown_owner() -> int | None:
    """The user that files of unknown owners seem to belong to; None where every owner is known."""
    try:
        known = Path("/proc/self/uid_map").read_text().split()
        return (
            None if known == ["0", "0", "4294967295"] else int(Path("/proc/sys/fs/overflowuid").read_text())
        )
    except (OSError, ValueError):  # no Linux, or no /proc
        return None
