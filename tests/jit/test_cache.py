"""The cache of builds: what is kept, what tells entries apart, failures, and the switch."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from support_builds import CONTENT, RECIPE, Writer, contents, edit_manifest

from customlstm.jit import cache, folders
from customlstm.jit.build_error import BuildDisabledError, BuildError, UnsafeFolderError
from customlstm.jit.entries import MANIFEST, Entry, Recipe

pytestmark = pytest.mark.usefixtures("root")

CLEAN = ["some_cell", "some_cell.lock"]


def test_built_once_and_then_found(root: Path) -> None:
    writer = Writer()
    first, second = cache.obtain(RECIPE, writer), cache.obtain(RECIPE, writer)
    assert writer.builds == 1
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.product == second.product == first.folder / "some_cell.txt"
    assert first.product.read_text() == CONTENT
    assert second.notes == {"ink": "blue"}
    assert contents(root / "text") == CLEAN


def test_entry_tells_what_it_was_made_from(entry: Entry) -> None:
    manifest = json.loads((entry.folder / MANIFEST).read_text())
    assert manifest["inputs"] == RECIPE.inputs
    assert manifest["tool"] == {"tool": "pen"}
    assert manifest["inputs_digest"] == RECIPE.digest()
    assert entry.folder.name == f"some_cell-{RECIPE.digest()[:16]}-{manifest['tool_digest'][:8]}"


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002, 0o000])
def test_only_this_user_can_write_whatever_the_umask(umask: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUSTOMLSTM_CACHE_DIR", str(tmp_path / "made/too"))
    before = os.umask(umask)
    try:
        made = cache.obtain(RECIPE, Writer())
    finally:
        os.umask(before)
    assert cache.obtain(RECIPE, Writer()).from_cache
    for path in (tmp_path / "made", tmp_path / "made/too", made.folder.parent, made.folder):
        assert path.stat().st_mode & 0o777 == 0o700, path
    assert not [file for file in made.folder.iterdir() if file.stat().st_mode & 0o022]


@pytest.mark.parametrize(
    "other",
    [
        Recipe("text", "some cell", "some_cell.txt", {"sources": "2"}),
        Recipe("text", "some cell", "some_cell.txt", {"sources": "1", "flags": []}),
        Recipe("other", "some cell", "some_cell.txt", {"sources": "1"}),
    ],
)
def test_another_input_is_another_entry(entry: Entry, other: Recipe) -> None:
    writer = Writer()
    assert cache.obtain(other, writer).folder != entry.folder
    assert writer.builds == 1


def test_another_tool_is_another_entry(entry: Entry) -> None:
    made = cache.obtain(RECIPE, Writer(tool="pencil"))
    assert not made.from_cache
    assert made.folder.name.rsplit("-", 1)[0] == entry.folder.name.rsplit("-", 1)[0]


@pytest.mark.parametrize("name", ["../../etc", "a/b\0c", "", "*[x]*", "ä" * 300, "x" * 300])
def test_names_become_file_names(name: str, root: Path) -> None:
    recipe = Recipe("text", name, RECIPE.product, {})
    made = cache.obtain(recipe, Writer())
    assert made.folder.parent == root / "text"
    assert cache.obtain(recipe, Writer()).from_cache
    assert len(made.folder.name) < 80


def test_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CUSTOMLSTM_CACHE_DIR", "~/mine")
    assert folders.cache_folder() == home / "mine"
    monkeypatch.delenv("CUSTOMLSTM_CACHE_DIR")
    assert folders.cache_folder() == home / ".cache/customlstm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert folders.cache_folder() == home / ".cache/customlstm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folders.cache_folder() == tmp_path / "xdg/customlstm"


def test_a_failure_is_remembered_and_its_folder_kept(root: Path) -> None:
    writer = Writer(error=BuildError("does not compile", Path("/some/log")))
    errors = []
    for _ in range(2):
        with pytest.raises(BuildError, match=r"^does not compile$") as caught:
            cache.obtain(RECIPE, writer)
        errors.append(caught.value)
    assert writer.builds == 1
    assert errors[0] is not errors[1]
    assert errors[1].log == Path("/some/log")
    assert contents(root / "text") == ["some_cell.failed", "some_cell.lock"]
    (kept,) = (root / "text").glob("*.failed")
    assert (kept / "log").read_text() == f"{kept}\n"

    cache.forget_failures()
    writer.error = None
    assert cache.obtain(RECIPE, writer).product.read_text() == CONTENT
    assert contents(root / "text") == CLEAN


def test_a_failure_counts_for_its_inputs_only() -> None:
    with pytest.raises(BuildError):
        cache.obtain(RECIPE, Writer(error=BuildError("no")))
    other = Recipe(RECIPE.kind, RECIPE.name, RECIPE.product, {"sources": "2"})
    assert cache.obtain(other, Writer()).product.read_text() == CONTENT


def test_an_interrupted_build_leaves_nothing(root: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cache.obtain(RECIPE, Writer(error=KeyboardInterrupt()))  # type: ignore[arg-type]
    assert contents(root / "text") == ["some_cell.lock"]
    assert cache.obtain(RECIPE, Writer()).product.read_text() == CONTENT


def test_a_builder_that_writes_nothing(root: Path) -> None:
    writer = Writer()
    recipe = Recipe("text", "x", "missing.txt", {})
    with pytest.raises(RuntimeError, match=r"^the builder of 'x' has not written missing\.txt$"):
        cache.obtain(recipe, writer)
    assert contents(root / "text") == ["x.lock"]


@pytest.mark.parametrize("value", ["0", "off", "False", "no"])
def test_switched_off(value: str, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("CUSTOMLSTM_JIT", value)
    writer = Writer()
    with pytest.raises(BuildDisabledError) as caught:
        cache.obtain(RECIPE, writer)
    assert str(caught.value) == (
        f"'some cell' needs to be built, but CUSTOMLSTM_JIT is {value}. Unset it, or set "
        "CUSTOMLSTM_CACHE_DIR to a cache "
        f"that holds a build of it (none was found in {root})"
    )
    assert writer.builds == 0
    assert not root.exists()


@pytest.mark.parametrize("value", ["", "1"])
def test_not_switched_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMLSTM_JIT", value)
    assert not cache.obtain(RECIPE, Writer()).from_cache


def test_switched_off_the_newest_build_serves(monkeypatch: pytest.MonkeyPatch, entry: Entry) -> None:
    newer = cache.obtain(RECIPE, Writer(tool="pencil"))
    monkeypatch.setenv("CUSTOMLSTM_JIT", "0")

    class NoTool(Writer):
        def identity(self) -> dict:
            raise AssertionError("asked for its tool")

    assert cache.obtain(RECIPE, NoTool()).folder == newer.folder
    edit_manifest(entry, created=time.time() + 1.0)
    assert cache.obtain(RECIPE, NoTool()).folder == entry.folder


def test_switched_off_a_damaged_build_is_told(monkeypatch: pytest.MonkeyPatch, entry: Entry) -> None:
    monkeypatch.setenv("CUSTOMLSTM_JIT", "0")
    entry.product.unlink()
    with pytest.raises(
        BuildDisabledError, match=r"\(.*some_cell-.* is incomplete: some_cell.txt is missing\)$"
    ):
        cache.obtain(RECIPE, Writer())
    assert entry.folder.exists()


def test_switched_off_others_may_not_write_either(monkeypatch, root: Path, entry: Entry) -> None:
    monkeypatch.setenv("CUSTOMLSTM_JIT", "0")
    root.chmod(0o777)
    with pytest.raises(UnsafeFolderError):
        cache.obtain(RECIPE, Writer())


def test_without_a_tool_any_build_of_the_same_inputs_serves(entry: Entry) -> None:
    class NoTool(Writer):
        def identity(self) -> dict:
            raise BuildError("no pen anywhere")

    assert cache.obtain(RECIPE, NoTool()).folder == entry.folder
    other = Recipe(RECIPE.kind, RECIPE.name, RECIPE.product, {"sources": "2"})
    with pytest.raises(BuildError, match=r"^no pen anywhere$"):
        cache.obtain(other, NoTool())
