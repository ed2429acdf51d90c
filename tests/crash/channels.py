"""A channel written by hand, to be damaged by hand, and a look at what is read back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from keyop import Messenger
from keyop.testing import drain
from tests.integration.helpers import (
    FAST_BACKOFF,
    Recorder,
    channel_dir,
    dead_letters,
    record,
    running,
    segments,
    write_offset,
    write_segment,
)

CHANNEL = "orders"
MAX_RECORD_BYTES = 2000
PER_SEGMENT = 3
COUNT = 12
OLD_AT = 6
NEW = "new"


class Channel:
    """Twelve records, three in each segment; the subscriber ``old`` has had the first six."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.directory = channel_dir(data_dir, CHANNEL)
        self.lines = [record(n) for n in range(COUNT)]
        # The offset of each record, and of the log's end.
        self.offsets = [sum(map(len, self.lines[:n])) for n in range(COUNT + 1)]
        for first in range(0, COUNT, PER_SEGMENT):
            part = b"".join(self.lines[first : first + PER_SEGMENT])
            write_segment(data_dir, CHANNEL, self.offsets[first], part)
        (self.directory / ".lock").write_bytes(b"%020d" % self.offsets[COUNT - PER_SEGMENT])
        self.set_offset("old", self.offsets[OLD_AT])

    def segment(self, number: int) -> Path:
        """The file of a segment; negative numbers count from the end."""
        return segments(self.data_dir, CHANNEL)[number]

    def append(self, data: bytes, number: int = -1) -> None:
        with open(self.segment(number), "ab") as file:
            file.write(data)

    def truncate(self, by: int, number: int = -1) -> None:
        content = self.segment(number).read_bytes()
        self.segment(number).write_bytes(content[:-by])

    def overwrite(self, data: bytes, n: int, inside: int = 0) -> None:
        """Put other bytes over record ``n`` from one of its bytes on."""
        path = self.segment(n // PER_SEGMENT)
        at = self.offsets[n] - self.offsets[n // PER_SEGMENT * PER_SEGMENT] + inside
        content = path.read_bytes()
        path.write_bytes(content[:at] + data + content[at + len(data) :])

    def replace(self, n: int, line: bytes) -> None:
        """Put a line of any length in place of a record of the last segment."""
        content = self.segment(-1).read_bytes()
        assert self.lines[n] in content
        self.segment(-1).write_bytes(content.replace(self.lines[n], line))

    def set_offset(self, subscriber_id: str, content: bytes | int) -> Path:
        return write_offset(self.data_dir, CHANNEL, subscriber_id, content)

    @property
    def torn(self) -> list[bytes]:
        """What was cut off and kept, in order."""
        return [path.read_bytes() for path in sorted(self.directory.glob("*.torn-*"))]


class Read(NamedTuple):
    """What was delivered, how many dead letters there are, and how many bytes were missing."""

    fresh: list[Any]
    old: list[Any]
    letters: int
    dropped: int


@contextmanager
def opened(channel: Channel, policy: str = "periodic") -> Iterator[Messenger]:
    with running(
        channel.data_dir,
        storage={"max_record_bytes": MAX_RECORD_BYTES, "sync_policy": policy},
    ) as messenger:
        yield messenger


def read_back(channel: Channel, *, publish_first: bool, policy: str = "periodic") -> Read:
    """Publish one more message, and let a new subscriber and the old one read all they get."""
    fresh, old = Recorder(), Recorder()
    with opened(channel, policy) as messenger:
        if publish_first:
            messenger.publish(CHANNEL, "com.example.T", NEW)
        subscriptions = [
            messenger.subscribe(CHANNEL, own_id, seen, start="earliest", retry_backoff=FAST_BACKOFF)
            for own_id, seen in (("fresh", fresh), ("old", old))
        ]
        drain(messenger)
        if not publish_first:
            messenger.publish(CHANNEL, "com.example.T", NEW)
        drain(messenger)
        dropped = subscriptions[0].counters.dropped_bytes
    return Read(fresh.payloads, old.payloads, len(dead_letters(channel.data_dir, CHANNEL)), dropped)
