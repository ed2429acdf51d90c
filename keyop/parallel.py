"""Several handlers of one subscription at once, without losing the order that matters.

The position moves only over a prefix that is all done with, so a crash repeats at most as many
messages as may be in work.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from keyop.delivery import Delivery
from keyop.envelope import Message
from keyop.errand import end_greenlets
from keyop.errors import CorruptRecordError
from keyop.pace import Pace
from keyop.shared import SharedLines
from keyop.storage.cursor import Lines

logger = logging.getLogger(__name__)

_KILL_WAIT_S = 0.5
_BROKEN = "a handler's greenlet ended in the middle of a message"


class _Entry:
    """A record in work. ``end`` is the offset behind it."""

    __slots__ = ("done", "end", "line", "offset")

    def __init__(self, line: bytes, offset: int, end: int) -> None:
        self.line = line
        self.offset = offset
        self.end = end
        self.done = False


class ParallelDelivery:
    """Runs up to ``concurrency`` handlers; with a key, messages of one key one after the other."""

    def __init__(
        self,
        delivery: Delivery,
        concurrency: int,
        key: Callable[[Message], object] | None,
        commit: Callable[[int], None],
    ) -> None:
        self._delivery = delivery
        self._concurrency = concurrency
        self._key = key
        self._commit = commit
        # Oldest first. Its length, done entries included, is how far anybody may be ahead.
        self._window: deque[_Entry] = deque()
        self._queues: dict[object, deque[_Entry]] = {}
        self._changed = Event()
        self._broken = False
        self.workers: set[gevent.Greenlet[..., None]] = set()

    @property
    def busy(self) -> bool:
        """Whether a record is in work or waits for an older one to be done."""
        return bool(self._window)

    def deliver(
        self, found: Lines | SharedLines, pace: Pace, may_go_on: Callable[[], bool]
    ) -> None:
        """Hand lines to workers, waiting while the window is full."""
        offset = found.start
        for line in found.lines:
            self._wait_for_room(self._concurrency, may_go_on)
            if not may_go_on():
                return
            end = offset + len(line) + 1
            entry = _Entry(line, offset, end)
            key, keyed = self._key_of(entry)
            # In a damaged line may be records of any key, so it goes alone.
            alone = self._key is not None and not keyed
            if alone:
                self._wait_for_room(1, may_go_on)
                if not may_go_on():
                    return
            self._dispatch(entry, key, keyed, may_go_on)
            if alone:
                self._wait_for_room(1, may_go_on)
            offset = end
            pace.step()

    def _wait_for_room(self, size: int, may_go_on: Callable[[], bool]) -> None:
        """Wait until less than so many records are in the window, or nothing more is to go in.

        Raises:
            RuntimeError: a worker has ended in the middle of a record.
        """
        while len(self._window) >= size and not self._broken and may_go_on():
            self._changed.clear()
            self._changed.wait()
        if self._broken:
            raise RuntimeError(_BROKEN)

    def _dispatch(
        self, entry: _Entry, key: object, keyed: bool, may_go_on: Callable[[], bool]
    ) -> None:
        self._window.append(entry)
        if keyed and key in self._queues:
            self._queues[key].append(entry)
            return
        queue = deque([entry])
        if keyed:
            self._queues[key] = queue
        worker = gevent.spawn(self._work, queue, key, keyed, may_go_on)
        worker.name = f"keyop-worker-{self._delivery.channel}-{self._delivery.subscriber_id}"
        self.workers.add(worker)
        worker.rawlink(self.workers.discard)

    def _key_of(self, entry: _Entry) -> tuple[Any, bool]:
        """Return the record's key and whether it has one. One that is no record has none."""
        if self._key is None:
            return None, False
        try:
            key = self._key(self._delivery.message(entry.line, entry.offset))
            hash(key)
        except CorruptRecordError:
            return None, False
        # The user's class or key function failed. What has no key shares one queue, in order.
        except (Exception, gevent.Timeout) as error:
            logger.warning("%s: a message has no key: %s", self._delivery.channel, error)
            return _NoKey, True
        return key, True

    def _work(
        self, queue: deque[_Entry], key: object, keyed: bool, may_go_on: Callable[[], bool]
    ) -> None:
        ended = False
        try:
            while queue and may_go_on():
                entry = queue[0]
                if not self._delivery.deliver(entry.line, entry.offset):
                    break
                queue.popleft()
                entry.done = True
                self._advance()
            ended = True
        finally:
            if keyed:
                self._queues.pop(key, None)
            self._broken = self._broken or not ended
            self._changed.set()

    def _advance(self) -> None:
        end = None
        while self._window and self._window[0].done:
            end = self._window.popleft().end
        if end is not None:
            self._commit(end)
            self._changed.set()

    def wake(self) -> None:
        """Let whoever waits for room in the window look whether it may go on."""
        self._changed.set()

    def drain(self) -> None:
        """Wait until no worker runs, then forget what was not done with.

        Raises:
            RuntimeError: a worker has ended in the middle of a record, which must come again.
        """
        while self.workers:
            gevent.joinall(list(self.workers))
        broken = self._broken
        self._clear()
        if broken:
            raise RuntimeError(_BROKEN)

    def kill(self) -> None:
        """End the workers where they are; their records stay uncommitted."""
        end_greenlets(self.workers, _KILL_WAIT_S)
        self._clear()

    def _clear(self) -> None:
        self._window.clear()
        self._queues.clear()
        self._broken = False


class _NoKey:
    """The key of messages whose key function failed."""
