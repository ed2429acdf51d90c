"""How far behind subscribers are: in messages, and since when."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from keyop.channel_view import ChannelView
from keyop.inspection import DataDirectory
from keyop.look.records import Reader
from keyop.timestamps import parse

# So much of a channel is read to count what is pending; what is beyond is estimated.
_COUNT_BYTES = 32 << 20
_SAMPLE_BYTES = 1 << 20
# So many records are looked at for the first one that says when it is from.
_LOOKS = 16


class Pending(NamedTuple):
    """What a subscriber has yet to read. ``oldest`` is the stamp of its next record."""

    messages: int
    estimated: bool
    oldest: datetime | None


def pending(
    directory: DataDirectory, view: ChannelView, max_record_bytes: int
) -> dict[int, Pending]:
    """Return what is pending at each position of a channel's subscribers.

    Raises:
        StorageError: the channel cannot be read.
    """
    offsets = {each.offset for each in view.subscribers if each.offset is not None}
    counts = _count(directory, view.channel, offsets, view.end)
    with Reader(directory, view.channel, max_record_bytes) as reader:
        return {
            offset: Pending(*counts[offset], _oldest(reader, offset, view.end))
            for offset in offsets
        }


def _count(
    directory: DataDirectory, channel: str, offsets: Iterable[int], end: int
) -> dict[int, tuple[int, bool]]:
    """Count back from the end, each stretch once; tell whether some of it was estimated."""
    found: dict[int, tuple[int, bool]] = {}
    total, estimated, budget, high = 0, False, _COUNT_BYTES, end
    for offset in sorted(offsets, reverse=True):
        size = max(0, high - offset)
        if size <= budget:
            total += directory.count_records(channel, offset, high)
            budget -= size
        else:
            sample = directory.count_records(channel, offset, offset + _SAMPLE_BYTES)
            total += max(1, size * sample // _SAMPLE_BYTES)
            estimated = True
        found[offset] = total, estimated
        high = min(high, offset)
    return found


def _oldest(reader: Reader, offset: int, end: int) -> datetime | None:
    records = reader.read(offset, end)
    for found, _ in zip(records, range(_LOOKS), strict=False):
        if found.fields is not None:
            return parse(found.fields["ts"])
    return None
