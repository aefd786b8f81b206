"""What the cache refuses: entries that are not what was built, and folders that others can write to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support_builds import CONTENT, RECIPE, Writer, contents, edit_manifest

from customlstm.jit import cache, trust
from customlstm.jit.build_error import CacheWarning, UnsafeFolderError
from customlstm.jit.entries import MANIFEST, Entry

pytestmark = pytest.mark.usefixtures("root")

CLEAN = ["some_cell", "some_cell.lock"]
ROOT = os.geteuid() == 0


def _exchange(path: Path, make: Callable[[Path, Path], object]) -> None:
    """Moves ``path`` out of the way and puts something in its place."""
    aside = path.parent.parent / f"aside-{path.name}"
    path.rename(aside)
    make(path, aside)


FAULTS: dict[str, tuple[Callable[[Entry], object], str]] = {
    "product of the group": (
        lambda e: e.product.chmod(0o664),
        "holds some_cell.txt, which can be written by its group (mode 0664)",
    ),
    "log of everyone": (
        lambda e: (e.folder / "log").chmod(0o646),
        "holds log, which can be written by everyone (mode 0646)",
    ),
    "entry of the group": (lambda e: e.folder.chmod(0o770), "can be written by its group (mode 0770)"),
    "entry of everyone": (lambda e: e.folder.chmod(0o777), "can be written by everyone (mode 0777)"),
    "linked product": (
        lambda e: _exchange(e.product, lambda path, aside: path.symlink_to(aside)),
        "holds some_cell.txt, which is no ordinary file",
    ),
    "linked manifest": (
        lambda e: _exchange(e.folder / MANIFEST, lambda path, aside: path.symlink_to(aside)),
        "holds manifest.json, which is no ordinary file",
    ),
    "linked entry": (
        lambda e: _exchange(e.folder, lambda path, aside: path.symlink_to(aside)),
        "is a symbolic link",
    ),
    "dangling link": (
        lambda e: _exchange(e.folder, lambda path, aside: path.symlink_to("nowhere")),
        "is a symbolic link",
    ),
    "file in place of the entry": (
        lambda e: _exchange(e.folder, lambda path, aside: path.write_text("")),
        "is no folder",
    ),
    "folder in the entry": (
        lambda e: (e.folder / "more").mkdir(),
        "holds more, which is no ordinary file",
    ),
    "truncated": (
        lambda e: os.truncate(e.product, 3),
        f"is damaged: some_cell.txt has 3 bytes, {len(CONTENT)} were built",
    ),
    "empty": (
        lambda e: os.truncate(e.product, 0),
        f"is damaged: some_cell.txt has 0 bytes, {len(CONTENT)} were built",
    ),
    "other bytes": (
        lambda e: e.product.write_text(CONTENT.upper()),
        "is damaged: the contents of some_cell.txt are not what was built",
    ),
    "no product": (lambda e: e.product.unlink(), "is incomplete: some_cell.txt is missing"),
    "no manifest": (lambda e: (e.folder / MANIFEST).unlink(), "is incomplete: manifest.json is missing"),
    "empty manifest": (
        lambda e: (e.folder / MANIFEST).write_text(""),
        "is damaged: manifest.json is not JSON (Expecting value: line 1 column 1 (char 0))",
    ),
    "list for a manifest": (
        lambda e: (e.folder / MANIFEST).write_text("[]"),
        "is damaged: manifest.json has no inputs_digest, tool_digest, size, sha256, created, notes",
    ),
    "manifest without size": (lambda e: edit_manifest(e, size=None), "is damaged: manifest.json has no size"),
    "other inputs": (
        lambda e: edit_manifest(e, inputs_digest="0"),
        "was built from something else, by its manifest",
    ),
    "other tool": (
        lambda e: edit_manifest(e, tool_digest="0"),
        "was built from something else, by its manifest",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused_and_built_anew(fault: str, root: Path, entry: Entry) -> None:
    spoil, said = FAULTS[fault]
    spoil(entry)
    writer = Writer()
    with pytest.warns(CacheWarning) as caught:
        again = cache.obtain(RECIPE, writer)
    assert [str(each.message) for each in caught] == [f"{entry.folder} {said}; it is removed and built anew"]
    assert writer.builds == 1
    assert not again.from_cache
    assert again.product.read_text() == CONTENT
    assert [name for name in contents(root / "text") if not name.startswith("aside")] == CLEAN
    assert cache.obtain(RECIPE, writer).from_cache


@pytest.mark.skipif(not ROOT, reason="only root can give a file away; the next test is for all users")
@pytest.mark.parametrize("what", ["entry", "product"])
def test_what_another_user_owns_is_refused(what: str, entry: Entry) -> None:
    path, said = (entry.folder, "") if what == "entry" else (entry.product, "holds some_cell.txt, which ")
    os.chown(path, 12345, -1)
    with pytest.warns(CacheWarning) as caught:
        assert not cache.obtain(RECIPE, Writer()).from_cache
    said = (
        f"{entry.folder} {said}belongs to user 12345, expected user 0 or root; it is removed and built anew"
    )
    assert [str(each.message) for each in caught] == [said]


def test_owners(monkeypatch: pytest.MonkeyPatch, entry: Entry) -> None:
    def status(owner: int, mode: int = 0o100755) -> os.stat_result:
        return os.stat_result((mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert trust.why_foreign(status(1000)) is None
    assert trust.why_foreign(status(0)) is None
    assert trust.why_foreign(status(1001)) == "belongs to user 1001, expected user 1000 or root"
    assert trust.why_foreign(status(1000, 0o100775)) == "can be written by its group (mode 0775)"
    assert trust.why_foreign(status(0, 0o101777)) == "can be written by everyone (mode 1777)"


def test_a_folder_of_another_user_is_refused(
    monkeypatch: pytest.MonkeyPatch, root: Path, entry: Entry
) -> None:
    """Any user's test: another one looks at this user's folders. For root's, they have to be given away."""
    if ROOT:
        os.chown(root, 12345, -1)
        owner, me = 12345, 0
    else:
        owner, me = os.geteuid(), os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: me)
    with pytest.raises(UnsafeFolderError) as caught:
        cache.obtain(RECIPE, Writer())
    assert str(caught.value) == (
        f"the cache folder {root} is not safe to load code from: {root} belongs to user {owner}, "
        f"expected user {me} "
        "or root, so that another user could exchange the libraries in it. To mend it, set "
        "CUSTOMLSTM_CACHE_DIR to "
        "a folder that only you can write to, below folders of which the same is true"
    )


@pytest.mark.parametrize(("mode", "whom"), [(0o777, "everyone"), (0o1777, "everyone"), (0o770, "its group")])
@pytest.mark.parametrize("part", ["cache", "cache/text", ""])
def test_a_folder_that_others_can_write_to_is_an_error(
    mode: int, whom: str, part: str, tmp_path: Path, entry: Entry
) -> None:
    folder, writer = tmp_path / part, Writer()
    folder.chmod(mode)
    if mode & 0o1000 and folder != tmp_path / "cache" and folder != tmp_path / "cache/text":
        assert cache.obtain(RECIPE, writer).from_cache  # as below /tmp
        return
    with pytest.raises(UnsafeFolderError) as caught:
        cache.obtain(RECIPE, writer)
    shown = entry.folder.parent if part == "cache/text" else tmp_path / "cache"
    assert str(caught.value) == (
        f"the cache folder {shown} is not safe to load code from: {folder} can be written by {whom} (mode "
        f"{mode:04o}), so that another user could exchange the libraries in it. To mend it, run `chmod go-w "
        f"{folder}`, or set CUSTOMLSTM_CACHE_DIR to a folder that only you can write to, below folders "
        "of which the "
        "same is true"
    )
    assert writer.builds == 0
    folder.chmod(0o700)
    assert cache.obtain(RECIPE, writer).from_cache


def test_folders_above_in_a_user_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the system's root all its folders belong to nobody: then nothing would be safe."""
    lstat, folder = os.lstat, tmp_path / "cache"
    folder.mkdir(mode=0o700)

    def seen(path: Path) -> os.stat_result:
        status = lstat(path)
        mine = Path(path).is_relative_to(tmp_path)
        return status if mine else os.stat_result((*status[:4], 65534, *status[5:10]))

    monkeypatch.setattr(os, "lstat", seen)
    with pytest.raises(UnsafeFolderError, match="belongs to user 65534"):
        trust.check_folder(folder)
    monkeypatch.setattr(trust, "_unknown_owner", lambda: 65534)
    trust.check_folder(folder)
    tmp_path.chmod(0o777)
    with pytest.raises(UnsafeFolderError, match="can be written by everyone"):
        trust.check_folder(folder)
    monkeypatch.setattr(
        os, "lstat", lambda path: os.stat_result((*lstat(path)[:4], 65534, *lstat(path)[5:10]))
    )
    with pytest.raises(UnsafeFolderError, match=f"{folder} belongs to user 65534"):
        trust.check_folder(folder)


def test_all_owners_are_known_or_one_stands_for_the_others() -> None:
    identity = Path("/proc/self/uid_map")
    known = not identity.exists() or identity.read_text().split() == ["0", "0", "4294967295"]
    assert (trust._unknown_owner() is None) == known


def test_a_warning_that_is_an_error_does_not_come_twice(entry: Entry) -> None:
    entry.product.unlink()
    with pytest.raises(CacheWarning, match=r"some_cell\.txt is missing"):
        cache.obtain(RECIPE, Writer())
    assert not cache.obtain(RECIPE, Writer()).from_cache


def test_nothing_is_made_below_an_unsafe_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("CUSTOMLSTM_CACHE_DIR", str(tmp_path / "open/mine"))
    writer = Writer()
    with pytest.raises(UnsafeFolderError, match="can be written by everyone"):
        cache.obtain(RECIPE, writer)
    assert writer.builds == 0


def test_a_linked_cache_folder_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Caches are often moved to another disk. What is used from then on is where the link leads now."""
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("CUSTOMLSTM_CACHE_DIR", str(tmp_path / "link/cells"))
    assert cache.obtain(RECIPE, Writer()).folder.parent == tmp_path / "disk/cells/text"
