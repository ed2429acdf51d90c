"""How the cost grows with the number of a channel's segments."""

from __future__ import annotations

import os
import statistics
import time
from datetime import datetime, timezone

from gevent.event import Event

from keyop.bench.local import PAYLOAD_TYPE, payload
from keyop.bench.scaling.curve import Curve, Series
from keyop.bench.scaling.work import (
    CHANNEL,
    SetClock,
    count,
    deliver,
    messenger_at,
    publish_each,
    records,
)
from keyop.envelope import EnvelopeWriter, Message
from keyop.messenger import Messenger
from keyop.storage.segment import segment_path

XS = (1, 10, 100, 1_000, 10_000)
MEASURES = ("measure",)
CURVES = (
    Curve(
        "segments",
        "Cost of a message by the number of segments",
        "segments of 100 records in one channel",
        "",
        "µs per message",
        (Series("publish", "publish, one greenlet"), Series("delivery", "delivery of a backlog")),
    ),
    Curve(
        "segments-open",
        "Opening and seeking by the number of segments",
        "segments of 100 records in one channel",
        "",
        "ms",
        (Series("open", "start and first publish"), Series("seek", "seek by time")),
        "The bend is of the cost of a segment, from 100 on: opening and seeking list all of them.",
        bend_from=100,
        per_x=True,
    ),
)
_RECORDS = 100
_BEGUN_S = 1_700_000_000
_MOST_DELIVERED, _PUBLISHED, _SEEKS = 100_000, 30_000, 20
# Of few segments, all are delivered several times.
_MOST_PASSES = 50


def refusal(directory: str, x: int, measure: str) -> str:
    """Every number can be measured."""
    return ""


def prepare(directory: str, x: int, scale: float) -> None:
    """Write the segments, the records of each stamped a second after those before."""
    # Stamps of a whole second are rare, and read more slowly than others.
    clock = SetClock(_BEGUN_S * 1_000_000_000 + 123_456_789)
    writer = EnvelopeWriter("bench", clock)
    place = f"{directory}/channels/{CHANNEL}"
    os.makedirs(place)
    start = 0
    for _ in range(x):
        data = b"".join(records(writer, CHANNEL, _RECORDS))
        with open(segment_path(place, start), "wb") as file:
            file.write(data)
        start += len(data)
        clock.now_ns += 1_000_000_000


def measure(directory: str, x: int, scale: float) -> dict[str, float]:
    """Open the channel, look for moments, deliver, and publish."""
    payloads = [payload(each) for each in range(16)]
    messenger = messenger_at(directory)
    begun = time.perf_counter()
    messenger.publish(CHANNEL, PAYLOAD_TYPE, payloads[0])
    opened = time.perf_counter() - begun
    with messenger:
        seek = _seek(messenger, x)
        there = min(x * _RECORDS, count(_MOST_DELIVERED, scale, _RECORDS))
        passes = max(1, min(_MOST_PASSES, count(_MOST_DELIVERED, scale, _RECORDS) // there))
        taken = statistics.median(deliver(messenger, "earliest", there) for _ in range(passes))
        publish = publish_each(messenger, payloads, count(_PUBLISHED, scale, 100))
    return {
        "open": opened * 1e3,
        "seek": seek * 1e3,
        "delivery": taken / (there - 1) * 1e6,
        "publish": publish,
    }


def _seek(messenger: Messenger, segments: int) -> float:
    """Return the seconds that a seek to some moment takes, while nothing is delivered."""
    may_handle = Event()

    def handle(message: Message) -> None:
        may_handle.wait()

    subscription = messenger.subscribe(CHANNEL, "seeker", handle, start="earliest")
    taken = []
    for number in range(_SEEKS):
        moment = datetime.fromtimestamp(_BEGUN_S + segments * number // _SEEKS, timezone.utc)
        begun = time.perf_counter()
        subscription.seek(moment)
        taken.append(time.perf_counter() - begun)
    subscription.request_stop()
    may_handle.set()
    messenger.unsubscribe(CHANNEL, "seeker")
    return statistics.median(taken)
