"""What cannot be held or used is refused with a reason, and the disk is as it was before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from keyop import KeyopError, OffsetError, PayloadError, RecordTooLargeError, StorageError
from keyop.testing import drain

from .helpers import (
    Recorder,
    channel_dir,
    dead_letters,
    log_bytes,
    offset_path,
    read_all,
    record,
    records,
    running,
    segments,
    tree,
    write_offset,
    write_segment,
)


def loop() -> list:
    value: list = []
    value.append(value)
    return value


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


UNHOLDABLE = {
    "nan": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "nan inside": {"a": [1, {"b": float("nan")}]},
    "nan in a tuple": (1, float("nan")),
    "2^64": 2**64,
    "2^64 inside": {"a": [2**64]},
    "below -2^63": -(2**63) - 1,
    "set": {1, 2},
    "object": object(),
    "bytes": b"x",
    "function": len,
    "generator": (n for n in range(3)),
    "lone surrogate": "a\udc80b",
    "lone surrogate inside": {"a": ["\ud800"]},
    "lone surrogate as a key": {"\ud800": 1},
    "complex": 1j,
    "key that is a tuple": {(1, 2): 3},
    "key that is an object": {object(): 3},
    "loop": loop(),
    "10,000 deep": deep(10_000),
}


@pytest.mark.parametrize("payload", UNHOLDABLE.values(), ids=UNHOLDABLE)
def test_unholdable_payload(tmp_path: Path, payload: object) -> None:
    """What JSON cannot hold is refused with ``PayloadError`` and leaves no trace on disk."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)
        before = tree(tmp_path)
        with pytest.raises(PayloadError):
            messenger.publish("orders", "t", payload)
        with pytest.raises(PayloadError):
            messenger.publish("invoices", "t", payload)
        assert tree(tmp_path) == before
        messenger.publish("orders", "t", 1)
    assert [record["payload"] for record in records(tmp_path, "orders")] == [0, 1]


@pytest.mark.parametrize("levels", [100, 200, 250, 300, 500, 1000, 1023, 1024, 1025])
def test_depth_is_refused_or_readable(tmp_path: Path, levels: int) -> None:
    """A deep payload is refused at publish, or every reader can read it: never in between."""
    with running(tmp_path) as messenger:
        try:
            messenger.publish("orders", "t", deep(levels))
        except PayloadError:
            assert levels > 200
            return
    (message,) = read_all(tmp_path, "orders", 1)
    assert message.payload == deep(levels)
    assert dead_letters(tmp_path, "orders") == []


def test_deepest_payload_can_be_dead_lettered(tmp_path: Path) -> None:
    """The deepest payload that is accepted still makes a dead letter that can be read."""
    with running(tmp_path) as messenger:
        for levels in (1024, 1000, 500, 254, 253, 252, 251, 250, 200):
            try:
                messenger.publish("orders", "t", deep(levels))
            except PayloadError:
                continue
            break
        messenger.subscribe("orders", "s", lambda m: 1 / 0, start="earliest", max_retries=0)
        drain(messenger)
    (message,) = read_all(tmp_path, "orders.dead-letter", 1)
    assert message.payload["original"]["payload"] == deep(levels)


ODD_FIELDS: list[dict[str, Any]] = [
    {"payload_type": None},
    {"payload_type": 5},
    {"payload_type": b"t"},
    {"payload_type": "\udc80"},
    {"correlation_id": 5},
    {"correlation_id": b"c"},
    {"correlation_id": "\udc80"},
    {"service_name": ["s"]},
    {"service_name": "\ud800"},
    {"message_id": 5},
    {"message_id": b"m"},
    {"message_id": "\udc80"},
    {"message_id": ""},
    {"timeout": "1"},
    {"timeout": float("nan")},
    {"timeout": -1},
]


@pytest.mark.parametrize("odd", ODD_FIELDS, ids=repr)
def test_odd_fields(tmp_path: Path, odd: dict[str, Any]) -> None:
    """Another field of the wrong kind is refused as well, in a batch too; nothing is written."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)
        before = tree(tmp_path)
        more = {"payload_type": "t", **odd}
        kind = more.pop("payload_type")
        with pytest.raises((KeyopError, TypeError, ValueError)):
            messenger.publish("orders", kind, 1, **more)
        with pytest.raises((KeyopError, TypeError, ValueError)):
            messenger.publish_batch("orders", [("t", 0), (kind, 1)], **more)
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["\n", "\x00", '"', "\\", "\u2028", "é", '","payload":1,"x":"', "\r\n"]
)
def test_odd_text_in_fields_survives(tmp_path: Path, text: str) -> None:
    """Line breaks, quotes and look-alikes in the fields stay within their record."""
    with running(tmp_path) as messenger:
        messenger.publish(
            "orders", f"t{text}", 1, correlation_id=text, service_name=text, message_id=f"m{text}"
        )
        messenger.publish("orders", "t", 2)
    first, second = read_all(tmp_path, "orders", 2)
    assert first.id == f"m{text}"
    assert (first.payload_type, first.correlation_id, first.service_name) == (
        f"t{text}",
        text,
        text,
    )
    assert (first.payload, second.payload) == (1, 2)


@pytest.mark.parametrize("batch", [[("t",)], [("t", 1, 2)], [5], 5, ["tt", None]])
def test_odd_batches(tmp_path: Path, batch: Any) -> None:
    """A batch that is not made of pairs is refused; nothing is written."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)
        before = tree(tmp_path)
        with pytest.raises((KeyopError, TypeError, ValueError)):
            messenger.publish_batch("orders", batch)
        assert tree(tmp_path) == before


def test_largest_record(tmp_path: Path) -> None:
    """A line of exactly ``max_record_bytes``, newline included, is taken; one byte more is not."""
    with running(tmp_path, storage={"max_record_bytes": 4096}) as messenger:
        messenger.publish("orders", "t", "")
        room = 4096 - len(log_bytes(tmp_path, "orders"))
        # A time with trailing zeros dropped makes the line some bytes shorter.
        messenger.publish("orders", "t", "x" * (room - 10))
        before = tree(tmp_path)
        with pytest.raises(RecordTooLargeError):
            messenger.publish("orders", "t", "x" * (room + 10))
        with pytest.raises(RecordTooLargeError):
            messenger.publish("new", "t", "x" * (room + 10))
        assert tree(tmp_path) == before


def test_size_counts_every_field(tmp_path: Path) -> None:
    """A record that is too large for its correlation id is refused just the same."""
    with running(tmp_path, storage={"max_record_bytes": 4096}) as messenger:
        messenger.start()
        with pytest.raises(RecordTooLargeError):
            messenger.publish("orders", "t", 1, correlation_id="x" * 4096)
        with pytest.raises(RecordTooLargeError):
            messenger.publish("orders", "t" * 4096, 1)
    assert log_bytes(tmp_path, "orders") == b""


def test_size_counts_bytes(tmp_path: Path) -> None:
    """The limit is in bytes of UTF-8, not in characters."""
    with running(tmp_path, storage={"max_record_bytes": 4096}) as messenger:
        messenger.start()
        with pytest.raises(RecordTooLargeError):
            messenger.publish("orders", "t", "é" * 2040)


# --- the directory


def test_file_in_place_of_the_data_directory(tmp_path: Path) -> None:
    """A file where the data directory should be is a ``StorageError``; the file stays."""
    data = tmp_path / "data"
    data.write_bytes(b"precious")
    with running(data) as messenger:
        with pytest.raises(StorageError, match="data"):
            messenger.start()
        with pytest.raises(StorageError):
            messenger.publish("orders", "t", 1)
    assert data.read_bytes() == b"precious"


def test_start_may_be_tried_again(tmp_path: Path) -> None:
    """A start that failed for a file in the way works once the file is gone."""
    data = tmp_path / "data"
    data.write_bytes(b"")
    with running(data) as messenger:
        with pytest.raises(StorageError):
            messenger.start()
        data.unlink()
        messenger.publish("orders", "t", 1)
    assert len(records(data, "orders")) == 1


def test_file_above_the_data_directory(tmp_path: Path) -> None:
    """A file in place of a parent of the data directory is a ``StorageError`` too."""
    (tmp_path / "file").write_bytes(b"")
    with running(tmp_path / "file" / "data") as messenger, pytest.raises(StorageError):
        messenger.start()


@pytest.mark.parametrize("where", ["channels", "channels/orders"])
def test_file_in_place_of_a_channel_directory(tmp_path: Path, where: str) -> None:
    """A file where a channel's directory should be stops that publish; nothing else changes."""
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"precious")
    with running(tmp_path) as messenger:
        with pytest.raises(StorageError, match=r"channels"):
            messenger.publish("orders", "t", 1)
        with pytest.raises(StorageError):
            messenger.subscribe("orders", "s", Recorder())
        if where == "channels/orders":
            messenger.publish("invoices", "t", 1)
    assert path.read_bytes() == b"precious"
    assert not offset_path(tmp_path, "orders", "s").exists()


@pytest.mark.parametrize("where", ["subscribers", "subscribers/orders"])
def test_file_in_place_of_a_subscribers_directory(tmp_path: Path, where: str) -> None:
    """A file where positions should be stops subscribing, not publishing."""
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"precious")
    with running(tmp_path) as messenger:
        with pytest.raises(StorageError):
            messenger.subscribe("orders", "s", Recorder())
        messenger.publish("orders", "t", 1)
    assert path.read_bytes() == b"precious"
    assert len(records(tmp_path, "orders")) == 1


def test_directory_in_place_of_a_segment(tmp_path: Path) -> None:
    """A directory with a segment's name is a ``StorageError`` that names it; it stays."""
    path = channel_dir(tmp_path, "orders") / f"{0:020}.jsonl"
    path.mkdir(parents=True)
    with running(tmp_path) as messenger, pytest.raises(StorageError, match=path.name):
        messenger.publish("orders", "t", 1)
    assert path.is_dir()


def test_directory_in_place_of_a_position(tmp_path: Path) -> None:
    """A directory with a position's name stops that subscriber only."""
    path = offset_path(tmp_path, "orders", "s")
    path.mkdir(parents=True)
    seen = Recorder()
    with running(tmp_path) as messenger:
        with pytest.raises(StorageError):
            messenger.subscribe("orders", "s", Recorder())
        messenger.subscribe("orders", "other", seen)
        messenger.publish("orders", "t", 1)
        seen.wait(1)
    assert path.is_dir()


def test_directory_in_place_of_a_lock(tmp_path: Path) -> None:
    """A directory with the lock's name is a ``StorageError``, not a hang."""
    (channel_dir(tmp_path, "orders") / ".lock").mkdir(parents=True)
    with running(tmp_path) as messenger, pytest.raises(StorageError):
        messenger.publish("orders", "t", 1, timeout=3)


@pytest.mark.parametrize("name", ["notes.txt", "0.jsonl", "x.jsonl", "-0000000000000000001.jsonl"])
def test_foreign_files_stay(tmp_path: Path, name: str) -> None:
    """A foreign file in a channel's directory is left alone, and in nobody's way."""
    path = channel_dir(tmp_path, "orders") / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine\nhalf")
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
    assert path.read_bytes() == b"mine\nhalf"
    assert (channel_dir(tmp_path, "orders") / f"{0:020}.jsonl").read_bytes().count(b"\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_directory_without_permission(tmp_path: Path) -> None:
    """A data directory that may not be written to is a ``StorageError``."""
    data = tmp_path / "data"
    data.mkdir(mode=0o500)
    with running(data) as messenger, pytest.raises(StorageError):
        messenger.publish("orders", "t", 1)
    assert tree(data) == {}


# --- damaged files

DAMAGED_OFFSETS = {
    "empty": b"",
    "newline": b"\n",
    "letters": b"abc\n",
    "negative": b"-1\n",
    "plus": b"+1\n",
    "float": b"1.5\n",
    "hex": b"0x10\n",
    "underscore": b"1_0\n",
    "two numbers": b"1 2\n",
    "two lines": b"1\n2\n",
    "nul bytes": b"\x00" * 21,
    "half overwritten": b"0000000000000000001\x00\x00",
    "arabic digits": "\u0661\n".encode(),
    "beyond 64 bits": b"9" * 30 + b"\n",
    "binary": bytes(range(256)),
    "a megabyte": b"1" * 1_000_000,
}


@pytest.mark.parametrize("content", DAMAGED_OFFSETS.values(), ids=DAMAGED_OFFSETS)
def test_damaged_position(tmp_path: Path, content: bytes) -> None:
    """A position that cannot be parsed is an ``OffsetError`` that names the file; it stays."""
    line = record(1)
    write_segment(tmp_path, "orders", 0, line)
    path = write_offset(tmp_path, "orders", "s", content)
    with running(tmp_path) as messenger:
        for start in ("latest", "earliest"):
            with pytest.raises(OffsetError, match=r"s\.offset"):
                messenger.subscribe("orders", "s", Recorder(), start=start)
        assert path.read_bytes() == content
        messenger.publish("orders", "t", 2)
        seen = Recorder()
        messenger.subscribe("orders", "other", seen, start="earliest")
        assert seen.wait(2) == [1, 2]
    assert path.read_bytes() == content


def test_damaged_position_can_be_forgotten(tmp_path: Path) -> None:
    """``unsubscribe`` is a way out of a damaged position."""
    path = write_offset(tmp_path, "orders", "s", b"")
    with running(tmp_path) as messenger:
        messenger.unsubscribe("orders", "s")
        assert not path.exists()
        messenger.subscribe("orders", "s", Recorder())


def test_damaged_position_holds_segments(tmp_path: Path) -> None:
    """While a position cannot be read, nothing of its channel is deleted."""
    with running(tmp_path, storage={"max_segment_bytes": 1000}) as messenger:
        seen = Recorder()
        messenger.subscribe("orders", "good", seen)
        for n in range(50):
            messenger.publish("orders", "t", n)
        seen.wait(50)
        drain(messenger)
        write_offset(tmp_path, "orders", "bad", b"")
        before = segments(tmp_path, "orders")
        messenger.sweep()
        assert segments(tmp_path, "orders") == before


def test_stats_with_damaged_files(tmp_path: Path) -> None:
    """``stats`` works beside a position that cannot be read, which it shows as unknown."""
    write_segment(tmp_path, "orders", 0, record(1))
    write_offset(tmp_path, "orders", "s", b"")
    with running(tmp_path) as messenger:
        messenger.start()
        (subscriber,) = messenger.stats().channels[0].subscribers
    assert (subscriber.offset, subscriber.lag_bytes) == (None, None)


@pytest.mark.parametrize("hint", [b"", b"x", b"\x00" * 20, b"9" * 20, b"-" * 20, b"1" * 5000])
def test_damaged_lock_file(tmp_path: Path, hint: bytes) -> None:
    """The listing wins over whatever stands in the lock file, which is put right."""
    write_segment(tmp_path, "orders", 0, record(1))
    lock = channel_dir(tmp_path, "orders") / ".lock"
    lock.write_bytes(hint)
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 2)
    assert lock.read_bytes()[:20] == b"0" * 20
    assert [record["payload"] for record in records(tmp_path, "orders")] == [1, 2]
    assert len(segments(tmp_path, "orders")) == 1
