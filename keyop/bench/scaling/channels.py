"""How the cost grows with the number of channels in one messenger."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import gevent

from keyop.bench.local import PAYLOAD_TYPE, payload
from keyop.bench.scaling.curve import Curve, Series
from keyop.bench.scaling.process import max_descriptors, memory_kib
from keyop.bench.scaling.work import count, messenger_at, records
from keyop.envelope import EnvelopeWriter, Message
from keyop.fs import FileSystem
from keyop.messenger import Messenger
from keyop.storage.locks import LOCK_NAME
from keyop.storage.offsets import offset_path, write_offset
from keyop.storage.segment import segment_path

XS = (1, 10, 100, 1_000, 10_000)
MEASURES = ("opened", "subscribed")
_NAMES = "opened", "with a subscriber on each"
_X_NAME = "channels of one messenger"
_OF_EACH = "The bend is of the cost of a channel, from 100 on."
CURVES = (
    Curve(
        "channels-open",
        "Time to open channels that are on the disk",
        _X_NAME,
        "",
        "seconds for all",
        (
            Series("opened.seconds", "start, and a message to each"),
            Series("subscribed.seconds", "start, and a subscriber on each"),
        ),
        _OF_EACH,
        bend_from=100,
        per_x=True,
    ),
    Curve(
        "channels-memory",
        "Memory of a channel",
        _X_NAME,
        "",
        "KiB per channel",
        tuple(map(Series, ("opened.memory", "subscribed.memory"), _NAMES)),
        "Of few channels, what is measured is the size of a page. The bend begins at 100.",
        bend_from=100,
    ),
    Curve(
        "channels-publish",
        "Cost of publishing to channels in turn",
        _X_NAME,
        "",
        "µs per message",
        tuple(map(Series, ("opened.publish", "subscribed.publish"), _NAMES)),
        "With subscribers, each message is delivered as well.",
    ),
    Curve(
        "channels-idle",
        "Processor time of a messenger with nothing to do",
        _X_NAME,
        "",
        "% of a core",
        tuple(map(Series, ("opened.idle", "subscribed.idle"), _NAMES)),
        _OF_EACH,
        bend_from=100,
        per_x=True,
    ),
)
_PUBLISHED = 30_000
_IDLE_S = 5.0
# Until what was published is synced, which happens every 200 ms, and every greenlet waits.
_SETTLE_S = 0.5
_LOOK_S = 0.001
_PAGE_KIB = 4
_DESCRIPTORS_EACH, _DESCRIPTORS = 5, 100


def refusal(directory: str, x: int, measure: str) -> str:
    """Say why so many channels cannot be subscribed to in one process; empty if they can."""
    if measure == "opened" or x * _DESCRIPTORS_EACH + _DESCRIPTORS <= max_descriptors():
        return ""
    return (
        f"Left out: {x:,} channels with subscribers, as a process may have "
        f"{max_descriptors():,} descriptors."
    )


def prepare(directory: str, x: int, scale: float) -> None:
    """Write channels of one record each; in one of the two places, with a position behind it."""
    writer = EnvelopeWriter("bench")
    for measure in MEASURES:
        if refusal(directory, x, measure):
            continue
        for channel in _channels(x):
            place = f"{directory}/{measure}/channels/{channel}"
            os.makedirs(place)
            (line,) = records(writer, channel, 1)
            with open(segment_path(place, 0), "wb") as file:
                file.write(line)
            with open(f"{place}/{LOCK_NAME}", "wb") as file:
                file.write(b"%020d" % 0)
            if measure == "subscribed":
                place = f"{directory}/{measure}/subscribers/{channel}"
                os.makedirs(place)
                write_offset(FileSystem(), offset_path(place, "reader"), len(line), durable=False)


def opened(directory: str, x: int, scale: float) -> dict[str, float]:
    """Open the channels by publishing to each."""
    made = payload(0)

    def use(messenger: Messenger, channel: str) -> None:
        messenger.publish(channel, PAYLOAD_TYPE, made)

    return _measure(directory, "opened", x, scale, use, None)


def subscribed(directory: str, x: int, scale: float) -> dict[str, float]:
    """Open the channels by subscribing to each."""
    handled = _Handled()

    def use(messenger: Messenger, channel: str) -> None:
        messenger.subscribe(channel, "reader", handled)

    return _measure(directory, "subscribed", x, scale, use, handled)


class _Handled:
    """A handler that counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, message: Message) -> None:
        self.count += 1


def _channels(x: int) -> list[str]:
    return [f"channel-{number:05d}" for number in range(x)]


def _measure(
    directory: str,
    name: str,
    x: int,
    scale: float,
    use: Callable[[Messenger, str], None],
    handled: _Handled | None,
) -> dict[str, float]:
    channels = _channels(x)
    messenger = messenger_at(f"{directory}/{name}")
    begun = time.perf_counter()
    messenger.start()
    started = time.perf_counter() - begun
    with messenger:
        # What is there once, whatever the number of channels, is not counted as theirs.
        use(messenger, "first")
        _publish_in_turn(messenger, ["first"], 1, handled)
        before = memory_kib()
        begun = time.perf_counter()
        for channel in channels:
            use(messenger, channel)
        seconds = started + time.perf_counter() - begun
        idle = _idle(_IDLE_S if scale >= 1 else _IDLE_S / 10)
        held = max(memory_kib() - before, _PAGE_KIB)
        publish = _publish_in_turn(
            messenger, channels, max(x, count(_PUBLISHED, scale, 1)), handled
        )
    return {
        f"{name}.seconds": seconds,
        f"{name}.memory": held / x,
        f"{name}.publish": publish,
        f"{name}.idle": idle * 100,
    }


def _idle(seconds: float) -> float:
    """Return the share of a core that this process uses while nothing happens."""
    gevent.sleep(_SETTLE_S)
    begun, used = time.perf_counter(), time.process_time()
    gevent.sleep(seconds)
    return (time.process_time() - used) / (time.perf_counter() - begun)


def _publish_in_turn(
    messenger: Messenger, channels: list[str], number: int, handled: _Handled | None
) -> float:
    """Return the µs that a message takes, published and, where there is a handler, handled."""
    made, send = payload(0), messenger.publish
    awaited = number + handled.count if handled is not None else 0
    begun = time.perf_counter()
    for each in range(number):
        send(channels[each % len(channels)], PAYLOAD_TYPE, made)
    while handled is not None and handled.count < awaited:
        gevent.sleep(_LOOK_S)
    return (time.perf_counter() - begun) / number * 1e6
