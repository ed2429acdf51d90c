"""How far behind subscribers are: in messages, and since when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from keyop.channel_view import ChannelView, SubscriberView
from keyop.inspection import DataDirectory
from keyop.look.records import Reader
from keyop.pace import Pace
from keyop.stats import ChannelStats, Stats, SubscriberStats
from keyop.timestamps import parse

# So much of a channel is read to count what is pending; what is beyond is estimated.
_COUNT_BYTES = 32 << 20
_SAMPLE_BYTES = 1 << 20
# So much is counted between two looks at the clock.
_STEP_BYTES = 512 << 10
# So many records are looked at for the first one that says when it is from.
_LOOKS = 16


class Effort(NamedTuple):
    """How much of a channel is read to count; of what is beyond, a sample is."""

    count_bytes: int
    sample_bytes: int


# For figures that are asked for every second.
_GLANCE = Effort(1 << 20, 64 << 10)


class Pending(NamedTuple):
    """What a subscriber has yet to read. ``oldest`` is the stamp of its next record."""

    messages: int
    estimated: bool
    oldest: datetime | None


def pending(
    directory: DataDirectory,
    view: ChannelView,
    max_record_bytes: int,
    effort: Effort | None = None,
    known: Mapping[int, Pending] | None = None,
) -> dict[int, Pending]:
    """Return what is pending at each position of a channel's subscribers.

    Args:
        effort: None reads as much as somebody who asks once has the patience for.
        known: what an earlier look has found, whose stamps hold good.

    Raises:
        StorageError: the channel cannot be read.
    """
    if effort is None:
        effort = Effort(_COUNT_BYTES, _SAMPLE_BYTES)
    known = known or {}
    offsets = {each.offset for each in view.subscribers if each.offset is not None}
    counts = _count(directory, view.channel, offsets, view.end, effort)
    found: dict[int, Pending] = {}
    pace = Pace()
    with Reader(directory, view.channel, max_record_bytes, known=True) as reader:
        for offset in offsets:
            before = known.get(offset)
            if offset >= view.end:
                oldest = None
            elif before is not None and before.oldest is not None and offset >= view.start:
                oldest = before.oldest
            else:
                oldest = _oldest(reader, offset, view.end)
            found[offset] = Pending(*counts[offset], oldest)
            pace.step()
    return found


def with_pending(
    stats: Stats, directory: DataDirectory, max_record_bytes: int, now: datetime
) -> Stats:
    """Return figures with how far behind each subscriber is, in messages and since when.

    Raises:
        StorageError: a channel cannot be read.
    """
    channels = []
    for channel in stats.channels:
        if any(each.lag_bytes for each in channel.subscribers):
            found = pending(directory, _view(channel), max_record_bytes, _GLANCE)
            subscribers = tuple(_with(each, found, now) for each in channel.subscribers)
            channel = replace(channel, subscribers=subscribers)
        else:
            subscribers = tuple(replace(each, lag_messages=0) for each in channel.subscribers)
            channel = replace(channel, subscribers=subscribers)
        channels.append(channel)
    return replace(stats, channels=tuple(channels))


def _view(channel: ChannelStats) -> ChannelView:
    subscribers = tuple(
        SubscriberView(
            channel.channel, each.subscriber_id, each.offset, each.lag_bytes, each.running
        )
        for each in channel.subscribers
    )
    return ChannelView(
        channel.channel,
        channel.segments,
        channel.disk_bytes,
        channel.start_offset,
        channel.end_offset,
        None,
        subscribers,
    )


def _with(
    subscriber: SubscriberStats, found: Mapping[int, Pending], now: datetime
) -> SubscriberStats:
    if subscriber.offset is None:
        return subscriber
    what = found[subscriber.offset]
    age_s = None if what.oldest is None else max(0.0, (now - what.oldest).total_seconds())
    return replace(
        subscriber,
        lag_messages=what.messages,
        lag_estimated=what.estimated,
        oldest_pending_s=age_s,
    )


def count_records(directory: DataDirectory, channel: str, start: int, end: int) -> int:
    """Return how many records begin between two boundaries, and let others run meanwhile.

    Raises:
        StorageError: they cannot be read.
    """
    total, pace = 0, Pace()
    while start < end:
        stop = min(end, start + _STEP_BYTES)
        total += directory.count_records(channel, start, stop)
        start = stop
        pace.step()
    return total


def estimate_records(
    directory: DataDirectory, channel: str, start: int, end: int, effort: Effort
) -> tuple[int, bool]:
    """Return how many records are between two boundaries, and whether that is an estimate.

    Raises:
        StorageError: they cannot be read.
    """
    if end - start <= effort.count_bytes:
        return count_records(directory, channel, start, end), False
    sample = count_records(directory, channel, start, start + effort.sample_bytes)
    return max(1, (end - start) * sample // effort.sample_bytes), True


def _count(
    directory: DataDirectory, channel: str, offsets: Iterable[int], end: int, effort: Effort
) -> dict[int, tuple[int, bool]]:
    """Count back from the end, each stretch once; tell whether some of it was estimated."""
    found: dict[int, tuple[int, bool]] = {}
    total, estimated, budget, high = 0, False, effort.count_bytes, end
    for offset in sorted(offsets, reverse=True):
        size = max(0, high - offset)
        count, guessed = estimate_records(
            directory, channel, offset, offset + size, effort._replace(count_bytes=budget)
        )
        total += count
        estimated = estimated or guessed
        budget -= 0 if guessed else size
        found[offset] = total, estimated
        high = min(high, offset)
    return found


def _oldest(reader: Reader, offset: int, end: int) -> datetime | None:
    records = reader.read(offset, end)
    for found, _ in zip(records, range(_LOOKS), strict=False):
        if found.fields is not None:
            try:
                return parse(found.fields["ts"])
            except ValueError:  # some other writer's idea of a time
                continue
    return None
