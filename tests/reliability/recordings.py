"""What messengers do on a disk, recorded with notes of what they had promised by when."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import gevent

from keyop import Message, Messenger
from keyop.testing import drain
from tests.fakes.recording import Operation, RecordingFs

from .messengers import FAST_BACKOFF, make
from .workload import CHANNEL, TYPE, payload

FAIL_EVERY = 7
SUBSCRIBERS = ("plain", "failing")
SEGMENT_BYTES = 2048
_PATIENCE_S = 30.0


class Acknowledged(NamedTuple):
    """A publish of this message returned."""

    by: str
    n: int


class Handled(NamedTuple):
    """A subscriber's handler had this message and returned, or refused it for good."""

    subscriber: str
    by: str
    n: int


class Subscribed(NamedTuple):
    """``subscribe`` returned."""

    subscriber: str


class Swept(NamedTuple):
    """Segments may have been deleted from now on."""


class Closed(NamedTuple):
    """``close`` returned, having brought everything to the disk but under ``none``."""


class Recording(NamedTuple):
    """All operations, and the sync policy under which they were made."""

    policy: str
    operations: list[Operation]


def record(
    data_dir: Path, policy: str, rng: Random, sweeping: bool, sessions: int = 2
) -> Recording:
    """Publish and deliver in some sessions, one after the other, on one directory.

    Each has two subscribers, one of which refuses some messages, and three publishing greenlets.
    """
    data_dir.mkdir()
    fs = RecordingFs(data_dir)
    for session in range(sessions):
        messenger = make(data_dir, policy, fs=fs, max_segment_bytes=SEGMENT_BYTES)
        _session(messenger, fs, session, rng, sweeping)
        messenger.close()
        fs.mark(Closed())
    return Recording(policy, fs.ops)


def subscribe(messenger: Messenger, subscriber: str, handle: Any) -> None:
    """Subscribe as the recorded sessions do; ``handle`` takes a message after it was handled."""

    def handler(message: Message) -> None:
        handle(message)
        if subscriber == "failing" and is_refused(message.payload.get("n", 0)):
            raise ValueError("meant to fail")

    messenger.subscribe(CHANNEL, subscriber, handler, max_retries=0, retry_backoff=FAST_BACKOFF)


def is_refused(n: int) -> bool:
    """Tell whether the handler of ``failing`` refuses messages with this number."""
    return n % FAIL_EVERY == 0


def _session(
    messenger: Messenger, fs: RecordingFs, session: int, rng: Random, sweeping: bool
) -> None:
    def note(subscriber: str) -> Any:
        return lambda message: fs.mark(
            Handled(subscriber, message.payload["by"], message.payload["n"])
        )

    for subscriber in SUBSCRIBERS:
        subscribe(messenger, subscriber, note(subscriber))
        fs.mark(Subscribed(subscriber))

    def publish(by: str) -> None:
        done = 0
        while done < 16:
            numbers = range(done, done + rng.choice((1, 1, rng.randint(2, 6))))
            if len(numbers) > 1:
                messenger.publish_batch(CHANNEL, [(TYPE, payload(by, n)) for n in numbers])
            else:
                messenger.publish(CHANNEL, TYPE, payload(by, done))
            for n in numbers:
                fs.mark(Acknowledged(by, n))
            done = numbers.stop
            gevent.sleep(rng.choice((0, 0.001)))

    writers = [gevent.spawn(publish, f"s{session}.{number}") for number in range(3)]
    if sweeping:
        gevent.sleep(0.01)
        fs.mark(Swept())
        messenger.sweep()
    gevent.joinall(writers, raise_error=True)
    drain(messenger, _PATIENCE_S)
    if sweeping:
        messenger.sweep()
