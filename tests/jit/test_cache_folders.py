"""Cache folders that cannot be written, are full, or do not exist: cells are built all the same."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from support_builds import CONTENT, RECIPE, Writer, contents, finish, start

from customlstm.jit import cache, folders
from customlstm.jit.build_error import BuildError, CacheWarning
from customlstm.jit.entries import Entry, Recipe

pytestmark = pytest.mark.usefixtures("root")

ROOT = os.geteuid() == 0


def read_only(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int = errno.EROFS) -> None:
    """As on a read-only file system, which root does not get by modes."""

    def refuse(real: Callable, writes: Callable[..., object]) -> Callable:
        def call(path, *args, **named):
            if str(path).startswith(str(folder)) and writes(*args):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **named)

        return call

    def for_writing(flags: int, *_: object) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    monkeypatch.setattr(os, "open", refuse(os.open, for_writing))
    for name in ("mkdir", "rename", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name), lambda *_: True))


def test_entries_of_a_read_only_folder_are_used(monkeypatch, root: Path, entry: Entry) -> None:
    read_only(monkeypatch, root)
    assert cache.obtain(RECIPE, Writer()).folder == entry.folder


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_folder_that_cannot_be_written_is_replaced_for_this_process(
    number: int, monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    read_only(monkeypatch, root, number)
    writer = Writer()
    with pytest.warns(CacheWarning) as caught:
        made = cache.obtain(RECIPE, writer)
    private = folders.present_temporary()
    assert private is not None
    assert private.parent == tmp_path / "tmp"
    assert [str(each.message) for each in caught] == [
        f"the cache folder {root} cannot be used: {os.strerror(number)}. Cells are built in {private} "
        "for this "
        "process alone, and again in the next one; to keep them, set CUSTOMLSTM_CACHE_DIR to a folder "
        "that can be "
        "written"
    ]
    assert made.product.read_text() == CONTENT
    assert made.folder.is_relative_to(private)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert cache.obtain(RECIPE, writer).from_cache
        assert not cache.obtain(Recipe("text", "another", RECIPE.product, {}), writer).from_cache
    assert writer.builds == 2


@pytest.mark.skipif(ROOT, reason="modes do not bind root; the test before this one is for all users")
def test_a_folder_without_the_right_to_write(root: Path) -> None:
    root.mkdir()
    root.chmod(0o500)
    with pytest.warns(CacheWarning, match="cannot be used: Permission denied"):
        assert cache.obtain(RECIPE, Writer()).product.read_text() == CONTENT


def test_a_disk_that_fills_up_during_a_build(root: Path) -> None:
    builds = []

    def fill() -> None:
        builds.append(1)
        if len(builds) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.warns(CacheWarning, match="cannot be used: No space left on device"):
        made = cache.obtain(RECIPE, Writer(before=fill))
    assert made.product.read_text() == CONTENT
    assert contents(root / "text") == ["some_cell.lock"]


def test_no_folder_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read_only(monkeypatch, tmp_path, errno.ENOSPC)
    with pytest.raises(BuildError) as caught:
        cache.obtain(RECIPE, Writer())
    said = str(caught.value)
    assert said.startswith(
        f"the cache folder {tmp_path / 'cache'} cannot be used: No space left on device, and no folder for "
        "temporary files can be made either: "
    )
    assert said.endswith("Set CUSTOMLSTM_CACHE_DIR or TMPDIR to a folder that can be written")


@pytest.mark.parametrize("home", ["/nonexistent", None])
def test_no_home(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUSTOMLSTM_CACHE_DIR")
    if home is None:  # an unknown user, as with `docker run --user 12345`
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        monkeypatch.setattr(os.path, "isdir", lambda path: path != "~")
    else:
        monkeypatch.setenv("HOME", home)
    with pytest.warns(
        CacheWarning, match="^there is no home folder for a cache of built cells. Cells are built"
    ):
        assert cache.obtain(RECIPE, Writer()).product.read_text() == CONTENT
    assert not Path("/nonexistent").exists()


def test_temporary_builds_go_when_the_process_ends_unless_they_failed(tmp_path: Path) -> None:
    code = """
import warnings; warnings.simplefilter("ignore")
from customlstm.jit.build_error import BuildError
from customlstm.jit.entries import Recipe
class Writer:
    def identity(self): return {}
    def build(self, folder, kept):
        (folder / "x").write_text("x")
        if sys.argv[2] == '"fail"': raise BuildError(str(kept))
        return {}
try: path = cache.obtain(Recipe("text", "x", "x", {}), Writer()).folder
except BuildError as error: path = Path(str(error))
if os.fork() == 0: sys.exit()  # runs exit functions, but is not the process that the folder is for
os.wait()
print(json.dumps([str(path), path.is_dir()]))
"""
    (tmp_path / "file").write_text("")
    environment = {"CUSTOMLSTM_CACHE_DIR": str(tmp_path / "file/cache"), "TMPDIR": str(tmp_path / "tmp")}
    for argument, stays in (("succeed", False), ("fail", True)):
        path, was_there = finish(start(code, argument, **environment))
        assert was_there
        assert Path(path).is_dir() == stays
        assert Path(path).is_relative_to(tmp_path / "tmp")
