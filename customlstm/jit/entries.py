"""One entry of the cache, a folder with what was built and a manifest: how it is sealed, and verified."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import trust

MANIFEST = "manifest.json"
_LAYOUT = 1  # raised when entries are laid out in another way; part of the digest


@dataclass(frozen=True)
class Recipe:
    """What is to be built.

    Attributes:
        kind: the folder in the cache: "cpu", for example.
        name: what people call it; becomes part of names of files. Does not tell one entry from another.
        product: the file that is loaded.
        inputs: all that the product depends on, except the tool; JSON, readable in the manifest.
    """

    kind: str
    name: str
    product: str
    inputs: Mapping[str, Any]

    def digest(self) -> str:
        return digest([_LAYOUT, self.kind, self.product, self.inputs])


@dataclass(frozen=True)
class Entry:
    """A build in the cache, verified.

    Attributes:
        folder: all its files.
        product: the file that is loaded.
        notes: what the builder returned when it was built.
        from_cache: whether it was there already.
    """

    folder: Path
    product: Path
    notes: Mapping[str, Any]
    from_cache: bool


class UnusableEntry(Exception):
    """Carries what is wrong with an entry, to be read after its path."""


def digest(value: object) -> str:
    """sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_name(name: str) -> str:
    """What people call something, as a part of the name of a file: letters, digits and _."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:40] or "unnamed"


def seal(folder: Path, recipe: Recipe, tool: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Adds the manifest, and sees to it that all is on the disk before the folder gets the entry's name."""
    product = folder / recipe.product
    if not product.is_file():  # not the disk's fault, which OSError is taken for
        raise RuntimeError(f"the builder of {recipe.name!r} has not written {recipe.product}")
    size, sha256 = _contents(product)
    manifest = {
        "name": recipe.name,
        "kind": recipe.kind,
        "product": recipe.product,
        "size": size,
        "sha256": sha256,
        "created": time.time(),
        "notes": notes,
        "inputs_digest": recipe.digest(),
        "inputs": recipe.inputs,
        "tool_digest": digest(tool),
        "tool": tool,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for file in folder.iterdir():
        # Under a umask of 002 or 0 the next look would refuse what others may write.
        file.chmod(file.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
        sync(file)
    sync(folder)


def verified(folder: Path, recipe: Recipe, tool_digest: str | None) -> dict[str, Any]:
    """The manifest of an entry that is complete, ours, and holds the product that was built.

    The product is loaded by its name, after this. In between nobody exchanges it: the entry and all folders
    above belong to this user or root and are writable by nobody else (trust.check_folder has seen to those
    above), and this user's own processes rename complete entries into place and never write into one.

    Args:
        tool_digest: of the tool that must have built it; None for any.

    Raises:
        FileNotFoundError: there is no entry.
        UnusableEntry: it is not as it should be.
    """
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise UnusableEntry("is no folder" if not stat.S_ISLNK(status.st_mode) else "is a symbolic link")
    _refuse_foreign("", status)
    try:
        with os.scandir(folder) as files:
            for file in files:
                status = file.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    raise UnusableEntry(f"holds {file.name}, which is no ordinary file")
                _refuse_foreign(f"holds {file.name}, which ", status)
        manifest = _read_manifest(folder / MANIFEST)
        right_tool = tool_digest in (None, manifest["tool_digest"])
        if manifest["inputs_digest"] != recipe.digest() or not right_tool:
            raise UnusableEntry("was built from something else, by its manifest")
        size, sha256 = _contents(folder / recipe.product)
    except FileNotFoundError as error:
        raise UnusableEntry(f"is incomplete: {Path(error.filename).name} is missing") from None
    if size != manifest["size"]:
        raise UnusableEntry(f"is damaged: {recipe.product} has {size} bytes, {manifest['size']} were built")
    if sha256 != manifest["sha256"]:
        raise UnusableEntry(f"is damaged: the contents of {recipe.product} are not what was built")
    return manifest


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise UnusableEntry(f"is damaged: {file.name} is not JSON ({error})") from None
    expected = {
        "inputs_digest": str,
        "tool_digest": str,
        "size": int,
        "sha256": str,
        "created": float,
        "notes": dict,
    }
    known = manifest if isinstance(manifest, dict) else {}
    wrong = [key for key, kind in expected.items() if not isinstance(known.get(key), kind)]
    if wrong:
        raise UnusableEntry(f"is damaged: {file.name} has no {', '.join(wrong)}")
    return manifest


def _refuse_foreign(prefix: str, status: os.stat_result) -> None:
    reason = trust.why_foreign(status)
    if reason is not None:
        raise UnusableEntry(prefix + reason)


def _contents(file: Path) -> tuple[int, str]:
    """Size and sha256."""
    size, sha256 = 0, hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            size += len(chunk)
            sha256.update(chunk)
    return size, sha256.hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """As far as it goes: a compiler whose parent was killed may add a file at this moment."""
    for _ in range(3):
        if not os.path.lexists(path):
            return
        with contextlib.suppress(OSError):
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            else:
                shutil.rmtree(path)
