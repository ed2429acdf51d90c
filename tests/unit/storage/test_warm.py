"""Which cursors keep a descriptor at the end of the log."""

from __future__ import annotations

from pathlib import Path

from keyop.fs import FileSystem
from keyop.storage.cursor import Cursor
from keyop.storage.warm import WarmCursors


def read_one(tmp_path: Path, name: str) -> Cursor:
    directory = tmp_path / name
    directory.mkdir()
    (directory / f"{0:020d}.jsonl").write_bytes(b"{}\n")
    cursor = Cursor(FileSystem(), str(directory), 1000)
    assert cursor.read() is not None
    assert cursor.read() is None
    return cursor


def is_open(cursor: Cursor) -> bool:
    return cursor._fd >= 0


def test_what_reads_on_stays_open_and_what_does_not_is_closed(tmp_path: Path) -> None:
    warm = WarmCursors()
    busy, idle = read_one(tmp_path, "busy"), read_one(tmp_path, "idle")
    for cursor in (busy, idle):
        warm.keep(cursor)
    warm.cool()
    assert is_open(busy)
    assert is_open(idle)  # for a whole round at least
    warm.keep(busy)
    warm.cool()
    assert is_open(busy)
    assert not is_open(idle)
    warm.discard(busy)
    assert not is_open(busy)


def test_only_so_many_are_open_at_once(tmp_path: Path) -> None:
    warm = WarmCursors(2)
    cursors = [read_one(tmp_path, str(number)) for number in range(4)]
    for cursor in cursors:
        warm.keep(cursor)
    assert [is_open(each) for each in cursors] == [False, False, True, True]
    for cursor in cursors:
        warm.discard(cursor)


def test_a_cursor_that_was_closed_reads_on(tmp_path: Path) -> None:
    warm = WarmCursors(1)
    cursor = read_one(tmp_path, "a")
    warm.keep(cursor)
    other = read_one(tmp_path, "b")
    warm.keep(other)
    assert not is_open(cursor)
    with (tmp_path / "a" / f"{0:020d}.jsonl").open("ab") as file:
        file.write(b"[]\n")
    found = cursor.read()
    assert found is not None
    assert found.start == 3
    warm.discard(cursor)
    warm.discard(other)
