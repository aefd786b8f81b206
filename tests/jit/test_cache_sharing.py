"""The cache under many threads and processes at once, some of which are killed."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support_builds import CONTENT, RECIPE, Writer, contents, finish, start

from customlstm.jit import cache, locks
from customlstm.jit.build_error import CacheWarning
from customlstm.jit.entries import Entry, Recipe

pytestmark = pytest.mark.usefixtures("root")

CLEAN = ["some_cell", "some_cell.lock"]


@pytest.mark.parametrize("locking", [True, False])
def test_threads_build_once(locking: bool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file system has no locks, which would do by themselves."""
    if not locking:
        monkeypatch.setattr(locks, "_acquire", lambda descriptor, patience: False)
    writer = Writer(before=lambda: time.sleep(0.1))
    entries: list[Entry] = []
    threads = [
        threading.Thread(target=lambda: entries.append(cache.obtain(RECIPE, writer))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.builds == 1
    assert sorted(entry.from_cache for entry in entries) == [False] + [True] * 7


def test_different_entries_are_built_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=30)
    writer = Writer(before=meeting.wait)
    recipes = [Recipe("text", "x", RECIPE.product, {"n": n}) for n in range(2)]
    threads = [threading.Thread(target=cache.obtain, args=(recipe, writer)) for recipe in recipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.builds == 2
    assert not meeting.broken


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    for number in (errno.ENOLCK, errno.ENOTSUP):
        recipe = Recipe("text", "some cell", RECIPE.product, {"number": number})

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
        assert not cache.obtain(recipe, Writer()).from_cache
        assert cache.obtain(recipe, Writer()).from_cache
    assert contents(root / "text") == sorted(CLEAN * 2)


def test_without_locks_the_first_to_publish_wins(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(locks, "between_processes", lambda path, patience: contextlib.nullcontext(False))
    monkeypatch.setattr(locks, "within_process", lambda key: contextlib.nullcontext())
    first: list[Entry] = []
    slow = Writer(before=lambda: first.append(cache.obtain(RECIPE, Writer())))
    made = cache.obtain(RECIPE, slow)
    assert slow.builds == 1
    assert made.from_cache
    assert made.folder == first[0].folder
    assert contents(root / "text") == ["some_cell"]


def test_without_locks_a_damaged_entry_does_not_win(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(locks, "between_processes", lambda path, patience: contextlib.nullcontext(False))
    monkeypatch.setattr(locks, "within_process", lambda key: contextlib.nullcontext())
    made = cache.obtain(RECIPE, Writer(before=lambda: os.truncate(cache.obtain(RECIPE, Writer()).product, 0)))
    assert not made.from_cache
    assert made.product.read_text() == CONTENT
    assert contents(root / "text") == ["some_cell"]


def test_a_stopped_process_does_not_stop_others_for_ever(monkeypatch, root: Path, entry: Entry) -> None:
    monkeypatch.setattr(cache, "PATIENCE_S", 0.1)
    entry.product.unlink()
    with locks.between_processes(Path(f"{entry.folder}.lock"), 0.0) as held:
        assert held
        with pytest.warns(CacheWarning, match="is incomplete"):
            assert cache.obtain(RECIPE, Writer()).product.read_text() == CONTENT


def test_what_killed_builds_have_left_is_swept_up(root: Path, entry: Entry) -> None:
    here = (
        f"{entry.folder}.attempt-{os.uname().nodename.replace('-', '_').replace('.', '_')[:40].strip('_')}-1"
    )
    old, other_host = f"{entry.folder}.attempt-elsewhere-1", f"{entry.folder}.attempt-elsewhere-2"
    other_entry = f"{entry.folder.parent}/another-0123.attempt-x-1"
    for left in (here, old, other_host, other_entry):
        Path(left).mkdir()
        (Path(left) / "number.o").write_text("half")
    os.utime(old, (0, 0))
    entry.product.unlink()
    with pytest.warns(CacheWarning):
        cache.obtain(RECIPE, Writer())
    assert [Path(left).exists() for left in (here, old, other_host, other_entry)] == [
        False,
        False,
        True,
        True,
    ]


HOLDS_A_LOCK = """
with locks.between_processes(Path(json.loads(sys.argv[2])), 5.0) as held:
    assert held
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_a_lock_goes_with_its_process_even_when_a_forked_child_lives_on(tmp_path: Path) -> None:
    process = start(HOLDS_A_LOCK, str(tmp_path / "lock"))
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with locks.between_processes(tmp_path / "lock", 0.0) as held:
            assert not held
        process.kill()
        process.wait()
        with locks.between_processes(tmp_path / "lock", 5.0) as held:
            assert held
        os.kill(child, 0)  # still there
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


FORKS_WHILE_BUILDING = """
import threading
from customlstm.jit.entries import Recipe
building, go_on = threading.Event(), threading.Event()
class Writer:
    def __init__(self, wait): self.wait = wait
    def identity(self): return {}
    def build(self, folder, kept):
        if self.wait:
            building.set()
            assert go_on.wait(30)
        (folder / "x").write_text("x")
        return {}
def get(number, wait=False):
    return cache.obtain(Recipe("text", "x", "x", {"n": number}), Writer(wait)).from_cache
thread = threading.Thread(target=get, args=(1, True))
thread.start()
building.wait()
child = os.fork()
if child == 0:
    os._exit(10 * get(2) + get(1))  # one that is new, and the one that the parent builds
time.sleep(0.2)
go_on.set()
thread.join()
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), get(1), get(2)]))
"""


def test_fork_while_another_thread_builds() -> None:
    assert finish(start(FORKS_WHILE_BUILDING)) == [1, True, True]


def test_one_entry_for_many_processes(tmp_path: Path) -> None:
    """Of the file that is written beside the entry, a line for each build."""
    code = """
from customlstm.jit.entries import Recipe
class Writer:
    def identity(self): return {}
    def build(self, folder, kept):
        with open(json.loads(sys.argv[2]), "a") as log: log.write("built\\n")
        time.sleep(0.3)
        (folder / "x").write_text("x")
        return {}
print(json.dumps(cache.obtain(Recipe("text", "x", "x", {}), Writer()).from_cache))
"""
    processes: list[subprocess.Popen[str]] = [start(code, str(tmp_path / "builds")) for _ in range(4)]
    assert sorted(finish(process) for process in processes) == [False, True, True, True]
    assert (tmp_path / "builds").read_text() == "built\n"
