"""What the logs of one data directory share: how they write, with what, and how they end."""

from __future__ import annotations

from typing import NamedTuple

from gevent.event import Event

from keyop.fs import FileSystem
from keyop.offload import Offload


class LogOptions(NamedTuple):
    """How a log writes. ``segment_bytes`` is the size at which a segment is rolled."""

    segment_bytes: int
    sync_policy: str = "periodic"

    @property
    def durable(self) -> bool:
        """Whether anything has to reach the disk at all."""
        return self.sync_policy != "none"


class LogThreads(NamedTuple):
    """Threads for what blocks. Waiting for a lock never keeps an fsync waiting."""

    files: Offload
    locks: Offload


class Closing(NamedTuple):
    """How a messenger ends: first nobody waits for a full disk any more, then nobody writes."""

    waits: Event
    writes: Event


class Environment(NamedTuple):
    """All that. ``opened`` is set when a channel was opened here, which may have created it."""

    fs: FileSystem
    options: LogOptions
    threads: LogThreads
    closing: Closing
    opened: Event
