"""Many channels in one messenger: what opening, closing and sweeping them costs and keeps."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from keyop.fs import FileSystem
from keyop.storage import store

from .helpers import records, running


class Counting(FileSystem):
    """Counts calls by name."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("fsync", "listdir"):
            return found

        def count(*args: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            return found(*args)

        return count


def test_opening_syncs_nothing(tmp_path: Path) -> None:
    """What was there at the start is synced together; a channel's directory, with its records."""
    channels = [f"c{number}" for number in range(10)]
    with running(tmp_path) as messenger:
        for channel in channels:
            messenger.publish(channel, "t", 1)
    fs = Counting()
    with running(tmp_path, seams={"fs": fs}, storage={"sync_interval_ms": 60_000}) as messenger:
        messenger.start()
        started = fs.counts.pop("fsync")
        for channel in channels:
            messenger.publish(channel, "t", 2)
        assert "fsync" not in fs.counts
    assert fs.counts["fsync"] == len(channels)
    assert started < 10


def test_more_channels_than_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond the bound are synced, closed, and opened again."""
    monkeypatch.setattr(store, "_max_open_logs", lambda: 16)
    fs = Counting()
    channels = [f"c{number}" for number in range(64)]
    with running(tmp_path, seams={"fs": fs}, storage={"sync_interval_ms": 60_000}) as messenger:
        messenger.start()
        logs = [messenger._store.log(channel) for channel in channels]
        for channel in channels:
            messenger.publish(channel, "t", 1)
            assert sum(log.is_open for log in logs) <= 16
        for channel in channels:
            messenger.publish(channel, "t", 2)
            assert sum(log.is_open for log in logs) <= 16
    for channel in channels:
        assert [each["payload"] for each in records(tmp_path, channel)] == [1, 2]


def test_a_channel_that_was_deleted_by_hand(tmp_path: Path) -> None:
    """Its directory is made again, though it was there when the messenger started."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
    with running(tmp_path) as messenger:
        shutil.rmtree(tmp_path / "channels" / "orders")
        messenger.publish("orders", "t", 2)
    assert [each["payload"] for each in records(tmp_path, "orders")] == [2]


def test_sweeping_looks_at_what_has_changed(tmp_path: Path) -> None:
    """Of a channel with one segment, the directory is listed again only when it has changed."""
    fs = Counting()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 1)
        directory = tmp_path / "channels" / "orders"
        os.utime(directory, (1, 1))
        messenger._store.sweep()
        listed = fs.counts["listdir"]
        messenger._store.sweep()
        assert fs.counts["listdir"] == listed + 1  # of the channels
        (directory / "another").touch()
        messenger._store.sweep()
        assert fs.counts["listdir"] == listed + 3


def test_one_message_leaves_the_hint_alone_until_somebody_looks(tmp_path: Path) -> None:
    """What a channel with one message costs is small; whoever looks at it sees all the same."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        log = messenger._store.log("orders")
        assert log._lock.hint == b""
        assert not log.has_foreign_news()
        assert log.has_grown()
        assert not log.has_grown()
        with running(tmp_path) as other:
            other.publish("orders", "t", 2)
        assert log.has_foreign_news()
        assert log.has_grown()
        assert not log.has_grown()
