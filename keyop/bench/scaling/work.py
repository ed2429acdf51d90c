"""What several curves measure alike: publishing one by one, delivering from a position on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson
from gevent.event import Event

from keyop.bench.local import PAYLOAD_TYPE, payload
from keyop.clock import Clock
from keyop.config import Config
from keyop.envelope import EnvelopeWriter, Message
from keyop.messenger import Messenger
from keyop.storage.position import Position

CHANNEL = "readings"
_TOO_LONG_S = 600.0


def messenger_at(directory: str, **options: Any) -> Messenger:
    """Return a messenger on a data directory, as it is by default; not started."""
    return Messenger(Config.from_dict({"storage": {"data_dir": directory}, **options}))


def count(full: int, scale: float, least: int) -> int:
    """Return how many there are of something at this scale."""
    return max(least, int(full * scale))


def publish_each(messenger: Messenger, payloads: Sequence[Any], times: int) -> float:
    """Publish so many, one after the other; return the µs that each took."""
    send, different = messenger.publish, len(payloads)
    begun = time.perf_counter()
    for number in range(times):
        send(CHANNEL, PAYLOAD_TYPE, payloads[number % different])
    return (time.perf_counter() - begun) / times * 1e6


def deliver(messenger: Messenger, start: Position, number: int) -> float:
    """Have a new subscriber handle so many messages; return the seconds from first to last.

    Subscribing is not in it, so these are one less than ``number`` times what a message takes.
    """
    done = Event()
    seen = 0
    begun = ended = 0.0

    def handle(message: Message) -> None:
        nonlocal seen, begun, ended
        seen += 1
        if seen == 1:
            begun = time.perf_counter()
        elif seen == number:
            ended = time.perf_counter()
            done.set()

    messenger.subscribe(CHANNEL, "reader", handle, start=start)
    if not done.wait(_TOO_LONG_S):
        raise TimeoutError(f"{seen} of {number} messages were delivered")
    messenger.unsubscribe(CHANNEL, "reader")
    return ended - begun


class SetClock(Clock):
    """A clock that stands where it was set, in nanoseconds."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def time_ns(self) -> int:
        """Return the time that was set."""
        return self.now_ns


def records(writer: EnvelopeWriter, channel: str, number: int) -> list[bytes]:
    """Return so many lines, as publishing them would write them."""
    pairs = [(PAYLOAD_TYPE, orjson.dumps(payload(each))) for each in range(number)]
    return writer.encode_batch(channel, pairs)[1]
