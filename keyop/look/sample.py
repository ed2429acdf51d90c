"""Figures of a data directory at one moment, and what changed since an earlier one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from keyop.channel_view import ChannelView, SubscriberView
from keyop.inspection import DataDirectory
from keyop.look.lag import Effort, Pending, count_records, estimate_records, pending
from keyop.look.letters import WaitingLetters
from keyop.names import dead_letter_channel, is_dead_letter
from keyop.pace import Pace


@dataclass(frozen=True)
class PositionRow:
    """One subscriber. What cannot be seen is None; ``lag_estimated`` says so of a count.

    ``read_bytes_per_s`` is None unless there was an earlier sample.
    """

    subscriber_id: str
    kind: str
    running: bool | None
    offset: int | None
    lag_bytes: int | None
    lag_messages: int | None
    lag_estimated: bool
    oldest_pending_s: float | None
    read_bytes_per_s: float | None


@dataclass(frozen=True)
class Row:
    """One channel. ``running`` and the lag are None where they cannot be seen.

    The lag is that of the subscriber that is furthest behind. ``dead_letters`` are those of the
    channel; of a dead-letter channel itself, None. Rates are None unless there was an earlier
    sample.
    """

    channel: str
    segments: int
    disk_bytes: int
    start: int
    end: int
    subscribers: int
    running: int | None
    largest_lag_bytes: int | None
    lag_messages: int | None
    lag_estimated: bool
    oldest_pending_s: float | None
    dead_letters: int | None
    bytes_per_s: float | None
    messages_per_s: float | None
    positions: tuple[PositionRow, ...]


@dataclass(frozen=True)
class Sample:
    """All channels at one moment. ``interval_s`` is since the sample that rates refer to."""

    time: datetime
    interval_s: float | None
    disk_free_bytes: int | None
    rows: tuple[Row, ...]
    slowest: SubscriberView | None

    @property
    def totals(self) -> dict[str, Any]:
        """The sums over all channels; None where a part is not known."""
        rows = self.rows
        return {
            "channels": len(rows),
            "segments": sum(each.segments for each in rows),
            "disk_bytes": sum(each.disk_bytes for each in rows),
            "disk_free_bytes": self.disk_free_bytes,
            "subscribers": sum(each.subscribers for each in rows),
            "running": total(each.running for each in rows),
            "largest_lag_bytes": None if self.slowest is None else self.slowest.lag_bytes,
            "oldest_pending_s": max(
                (each.oldest_pending_s for each in rows if each.oldest_pending_s is not None),
                default=None,
            ),
            "dead_letters": sum(each.dead_letters or 0 for each in rows),
            "bytes_per_s": total(each.bytes_per_s for each in rows),
            "messages_per_s": total(each.messages_per_s for each in rows),
        }


@dataclass
class Sampler:
    """Takes samples of one data directory; each but the first has rates since the one before.

    ``effort`` bounds what is read of each channel to count messages; with None, rates are exact,
    and lags as exact as :func:`keyop.look.lag.pending` has them.
    """

    directory: DataDirectory
    max_record_bytes: int
    effort: Effort | None = None
    _before: dict[str, ChannelView] = field(default_factory=dict)
    _before_s: float | None = None
    _behind: dict[str, dict[int, Pending]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.letters = WaitingLetters(self.directory, self.max_record_bytes)

    def take(self) -> Sample:
        """Look at everything. Others run meanwhile; only one greenlet may do so at a time.

        Raises:
            StorageError: the data directory cannot be read.
        """
        now_s, now = time.monotonic(), datetime.now(timezone.utc)
        pace = Pace()
        found = self.directory.channels(progress=lambda done, names: pace.step())
        views = [view for view in found if not view.abandoned]
        interval_s = None if self._before_s is None else now_s - self._before_s
        by_name = {view.channel: view for view in views}
        rows = []
        for view in views:
            rows.append(self._row(view, by_name, interval_s, now))
            pace.step()
        self._before, self._before_s = by_name, now_s
        self._behind = {name: self._behind[name] for name in by_name}
        return Sample(
            now, interval_s, free_bytes(self.directory.path), tuple(rows), slowest_subscriber(views)
        )

    def _row(
        self,
        view: ChannelView,
        views: dict[str, ChannelView],
        interval_s: float | None,
        now: datetime,
    ) -> Row:
        behind = self._behind[view.channel] = pending(
            self.directory,
            view,
            self.max_record_bytes,
            self.effort,
            self._behind.get(view.channel),
        )
        before = self._before.get(view.channel)
        known = () if before is None else before.subscribers
        offsets = {each.subscriber_id: each.offset for each in known}
        positions = tuple(
            _position(each, behind, offsets.get(each.subscriber_id), interval_s, now)
            for each in view.subscribers
        )
        slowest = max(
            positions,
            key=lambda each: (each.lag_bytes is None, each.lag_bytes or 0),
            default=None,
        )
        bytes_per_s = messages_per_s = None
        if interval_s is not None:
            begin = view.start if before is None else max(before.end, view.start)
            bytes_per_s = max(0, view.end - begin) / interval_s
            messages_per_s = self._count(view.channel, begin, view.end) / interval_s
        return Row(
            view.channel,
            view.segments,
            view.disk_bytes,
            view.start,
            view.end,
            len(view.subscribers),
            total(each.running for each in view.subscribers),
            None if slowest is None else slowest.lag_bytes,
            None if slowest is None else slowest.lag_messages,
            slowest is not None and slowest.lag_estimated,
            max(
                (each.oldest_pending_s for each in positions if each.oldest_pending_s is not None),
                default=None,
            ),
            self._dead_letters(view.channel, views),
            bytes_per_s,
            messages_per_s,
            positions,
        )

    def _dead_letters(self, channel: str, views: dict[str, ChannelView]) -> int | None:
        if is_dead_letter(channel):
            return None
        log = views.get(dead_letter_channel(channel))
        if log is None:
            return 0
        return self.letters.count(channel, log.start, log.end)

    def _count(self, channel: str, begin: int, end: int) -> int:
        if self.effort is None:
            return count_records(self.directory, channel, begin, end)
        return estimate_records(self.directory, channel, begin, end, self.effort)[0]


def _position(
    view: SubscriberView,
    behind: dict[int, Pending],
    before: int | None,
    interval_s: float | None,
    now: datetime,
) -> PositionRow:
    what = None if view.offset is None else behind[view.offset]
    rate = None
    if interval_s is not None and view.offset is not None and before is not None:
        rate = max(0, view.offset - before) / interval_s
    age = None if what is None or what.oldest is None else (now - what.oldest).total_seconds()
    return PositionRow(
        view.subscriber_id,
        view.kind,
        view.running,
        view.offset,
        view.lag_bytes,
        None if what is None else what.messages,
        what is not None and what.estimated,
        None if age is None else max(0.0, age),
        rate,
    )


def total(counts: Iterable[Any]) -> Any:
    """Return a sum, or None if a part of it is not known."""
    known = 0
    for count in counts:
        if count is None:
            return None
        known += count
    return known


def slowest_subscriber(views: list[ChannelView]) -> SubscriberView | None:
    """Return the subscriber that is furthest behind of those whose position can be read."""
    found = [each for view in views for each in view.subscribers if each.lag_bytes is not None]
    return max(found, key=lambda each: each.lag_bytes or 0, default=None)


def free_bytes(path: str) -> int | None:
    """Return how much room the disk has left; None where that cannot be seen."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
