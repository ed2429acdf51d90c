"""The window of ids seen last: what happens when its reader is stopped half way."""

from __future__ import annotations

from pathlib import Path

import pytest
from gevent import GreenletExit

import keyop.dedup
from keyop.dedup import Held, Window
from keyop.fs import SYSTEM_FS
from tests.fakes.faulty import FaultyFs
from tests.integration.helpers import channel_dir, record, write_segment


def test_a_reader_that_is_killed_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks next goes on where it was: no id that was read is forgotten."""
    lines = b"".join([record(n, id=f"id-{n}") for n in range(1000)])
    write_segment(tmp_path, "orders", 0, lines)
    steps = 0

    class Deadly(keyop.dedup.Pace):
        def step(self) -> None:
            nonlocal steps
            steps += 1
            if steps == 500:
                raise GreenletExit

    monkeypatch.setattr(keyop.dedup, "Pace", Deadly)
    window = Window(SYSTEM_FS, str(channel_dir(tmp_path, "orders")), 10_000, 1 << 20)
    try:
        with pytest.raises(GreenletExit):
            window.refresh()
        window.refresh()
        assert len(window._ids) == 1000
        assert all(window.contains(f"id-{n}") for n in range(1000))
    finally:
        window.close()


def test_a_known_end_is_not_read(tmp_path: Path) -> None:
    """Where the log is known to end nothing is read; else what others appended is taken in."""
    write_segment(tmp_path, "orders", 0, record(0, id="a"))
    directory = channel_dir(tmp_path, "orders")
    size = len(record(0, id="a"))
    known = [size]
    fs = FaultyFs()
    window = Window(fs, str(directory), 10, 1 << 20, lambda offset: offset in known)
    try:
        window.refresh()
        assert window.contains("a")
        reads = fs.calls["pread"]
        window.refresh()
        assert fs.calls["pread"] == reads
        with open(directory / f"{0:020}.jsonl", "ab") as file:
            file.write(record(1, id="b"))
        known.clear()
        window.refresh()
        assert window.contains("b")
    finally:
        window.close()


def test_what_was_left_is_counted_no_more(tmp_path: Path) -> None:
    """A window that is still used after it was left goes on, and counts for nobody."""
    held = Held()
    window = Window(SYSTEM_FS, str(tmp_path), 10, 1 << 20, held=held)
    window.wrote(["a", "b"], 0, 0)
    assert held.count == 2
    window.leave()
    assert held.count == 0
    window.wrote(["c"], 0, 0)
    assert held.count == 0
    assert all(map(window.contains, "abc"))
