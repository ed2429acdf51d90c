"""A subscription: cursor → delivery → offset, in a greenlet of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import gevent
from gevent.event import Event

from keyop.checkpoint import Checkpoint
from keyop.decode import decode
from keyop.delivery import Counters, Delivery
from keyop.envelope import Message
from keyop.errors import (
    CorruptRecordError,
    KeyopError,
    OffsetError,
    StorageError,
    SubscriberInUseError,
    WrongThreadError,
)
from keyop.forks import get_ident
from keyop.pace import Pace
from keyop.parallel import ParallelDelivery
from keyop.poller import Poller
from keyop.shared import SharedLines, SharedReads
from keyop.storage.claim import Claim
from keyop.storage.cursor import Cursor, Lines, Skipped
from keyop.storage.log import Log
from keyop.storage.position import Position, check_position, resolve
from keyop.storage.segment import list_segments
from keyop.storage.store import Store
from keyop.timestamps import parse
from keyop.wakeup import Wakeup

logger = logging.getLogger(__name__)

STANDBY_POLL_S = 0.25
# What a failed read or an unexpected error of a subscription waits before it is tried again.
_TROUBLE_WAIT_S = 1.0
# So seldom is looked for what nothing shows, such as a segment that no keyop has made.
_LOOK_ANYWAY = 10


class SubscriptionOptions(NamedTuple):
    """How one subscription starts and saves. ``flush_interval_s`` 0 saves after each message."""

    start: Position
    not_before: datetime | None
    concurrency: int
    key: Callable[[Message], object] | None
    standby: bool
    flush_interval_s: float
    sync_each: bool
    max_line_bytes: int
    durable: bool
    lag_warning_bytes: int


class Subscription:
    """A running subscriber of a channel; made by ``Messenger.subscribe``."""

    def __init__(
        self,
        store: Store,
        log: Log,
        delivery: Delivery,
        leaving: Event,
        shared: SharedReads,
        poller: Poller,
        options: SubscriptionOptions,
        on_end: Callable[[Subscription], None],
        predecessor: Subscription | None = None,
    ) -> None:
        self.channel = delivery.channel
        self.subscriber_id = delivery.subscriber_id
        self._store = store
        self._fs = store.fs
        self._log = log
        self._delivery = delivery
        self._stopping = Event()
        # Ends waits of the delivery: set to stop, or to go on elsewhere.
        self._leaving = leaving
        self._options = options
        self._on_end = on_end
        self._predecessor = predecessor
        # Where to begin without a position.
        self._start: Callable[[], int] = self._resolve_start
        self._claim = Claim(store, log, self.subscriber_id)
        self._checkpoint = Checkpoint(
            self._claim,
            self.subscriber_id,
            options.flush_interval_s,
            options.sync_each,
            self._stopping,
        )
        self._shared = shared
        self._cursor = Cursor(
            store.fs, log.directory, options.max_line_bytes, is_active=log.active_since
        )
        self._parallel = (
            ParallelDelivery(delivery, options.concurrency, options.key, self._checkpoint.commit)
            if options.concurrency > 1
            else None
        )
        self._forget = False
        # Why the position is still there, after an end that was to delete it.
        self.not_deleted: OSError | None = None
        # The claim is held a moment before its position is known here.
        self._active = False
        self._warned_of_lag = False
        self._woken = Wakeup()
        # What no wake-up tells of is looked for every now and then: behind a gap, or where
        # inotify does not serve. Wake-ups must not put that off.
        self._look_around = True
        self._poller = poller
        self._looks = 0
        self._pace = Pace()
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._thread = get_ident()

    # -- what it is

    def __repr__(self) -> str:
        return f"<Subscription {self.subscriber_id!r} of {self.channel!r} at {self.offset}>"

    @property
    def offset(self) -> int:
        """The global byte offset of the next message that is not done with."""
        return self._checkpoint.offset

    @property
    def lag_bytes(self) -> int:
        """How many bytes of the log lie behind the offset."""
        return max(0, self._end() - self.offset)

    @property
    def active(self) -> bool:
        """Whether it holds the subscriber id; a standby does not yet, a stopped one no longer."""
        return self._active and self._claim.held

    @property
    def running(self) -> bool:
        """Whether its greenlet lives, as a holder or as a standby."""
        return self._greenlet is not None and not self._greenlet.dead

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    @property
    def counters(self) -> Counters:
        """What it has done since it started."""
        return self._delivery.counters

    def _check_thread(self) -> None:
        if get_ident() != self._thread:
            raise WrongThreadError(
                f"this subscription belongs to thread {self._thread} and was used from thread "
                f"{get_ident()}; gevent objects work in one thread only, so hand the work over"
            )

    def _end(self) -> int:
        segments = list_segments(self._fs, self._log.directory)
        return segments[-1].end if segments else 0

    def owns_current_greenlet(self) -> bool:
        """Whether the caller is this subscription's own handler."""
        current = gevent.getcurrent()
        if current is self._greenlet:
            return True
        return self._parallel is not None and current in self._parallel.workers

    # -- starting

    def start(self) -> None:
        """Take the subscriber id, store the starting position, start delivering.

        Raises:
            SubscriberInUseError: another subscription holds the id, and this is no standby.
            OffsetError: the position cannot be read; it was not changed.
            StorageError: the channel cannot be opened.
        """
        self._log.open()
        if self._predecessor is not None:
            # Where it was deleted, what is published from now on is not missed.
            try:
                start = self._resolve_start()
            except OSError as error:
                raise StorageError(f"{self.channel} cannot be read: {error}") from error
            self._start = lambda: start
        elif not self._take() and not self._options.standby:
            raise SubscriberInUseError(
                f"{self.subscriber_id!r} already subscribes to {self.channel!r}, here or in "
                "another process; stop it, choose another id, or wait (standby=True, --standby)"
            )
        self._greenlet = gevent.spawn(self._run)
        self._greenlet.name = f"keyop-subscriber-{self.channel}-{self.subscriber_id}"

    def _resolve_start(self) -> int:
        options = self._options
        return resolve(self._fs, self._log.directory, options.start, options.max_line_bytes)

    def _take(self, must_exist: bool = False) -> bool:
        """Take the id and its position; return whether the id was free."""
        offset = self._claim.take(self._start, must_exist)
        if offset is None:
            return False
        self._checkpoint.offset = offset
        self._active = True
        return True

    def _wait_for_lease(self) -> bool:
        """As a standby: wait until the holder has gone; return False if told to stop instead."""
        if self._predecessor is not None:
            either: list[Any] = [self._predecessor._greenlet, self._stopping]
            gevent.wait(either, count=1)
        while not self._stopping.is_set():
            try:
                # Whoever replaces one that was unsubscribed does not miss its position.
                if self._take(must_exist=self._predecessor is None):
                    return True
            except OffsetError as error:
                logger.warning(
                    "%s: the standby of %s stops: %s", self.channel, self.subscriber_id, error
                )
                return False
            except KeyopError as error:
                logger.error("%s: standby %s: %s", self.channel, self.subscriber_id, error)
            self._stopping.wait(STANDBY_POLL_S)
        return False

    # -- running

    def _run(self) -> None:
        try:
            if not self._active and not self._wait_for_lease():
                return
            self._log.readers.events.add(self._woken)
            self._poller.add(self._look)
            self._shared.join(self._log.directory, self)
            while not self._stopping.is_set():
                try:
                    self._store.watcher.watch(self._log.directory, self._log.readers)
                    self._deliver_from(self._checkpoint.offset)
                except (OSError, KeyopError) as error:
                    logger.error("%s: %s: %s", self.channel, self.subscriber_id, error)
                # Nothing may end a subscription unseen: what is not foreseen is reported, and
                # delivery goes on at the saved position.
                except (Exception, gevent.Timeout):
                    logger.exception("%s: %s failed", self.channel, self.subscriber_id)
                else:
                    continue
                if self._parallel is not None:
                    self._parallel.kill()
                self._stopping.wait(_TROUBLE_WAIT_S)
        finally:
            if not self._stopping.is_set():
                logger.error("%s: %s was killed", self.channel, self.subscriber_id)
            self._release()

    def _look(self) -> None:
        """Every second: read, unless what is cheap to see shows that nothing is new.

        And save what has been done while a handler takes long.
        """
        self._checkpoint.save_meanwhile()
        self._looks += 1
        if self._looks % _LOOK_ANYWAY == 0 or self._cursor.behind or self._log.has_foreign_news():
            self._look_around = True
            self._woken.set()

    def _deliver_from(self, position: int) -> None:
        """Deliver until told to stop or to go elsewhere."""
        self._checkpoint.moved = False
        if not self._stopping.is_set():
            self._leaving.clear()
        opened = self._checkpoint.offset = self._cursor.open(position)
        if opened > position:
            self.counters.dropped_bytes += opened - position
            logger.error(
                "%s: %s lost %d bytes, which retention dropped before they were read",
                self.channel,
                self.subscriber_id,
                opened - position,
            )
        elif opened < position:
            logger.warning(
                "%s: the position of %s, %d, was not at a record; it is %d now",
                self.channel,
                self.subscriber_id,
                position,
                opened,
            )
        self._look_around = True
        pace = self._pace = Pace()
        while not self._stopping.is_set() and not self._checkpoint.moved:
            self._woken.clear()
            found = self._read()
            if found is None:
                idle = self._parallel is None or not self._parallel.busy
                self._woken.wait(self._checkpoint.save_if_due() if idle else None)
                pace.renew()
                continue
            if not isinstance(found, Skipped):
                if self._options.not_before is not None:
                    found = self._pass_over_old(found, pace)
                self._warn_of_lag(found.start)
                if self._parallel is None:
                    self._delivery.deliver_lines(
                        found, self._checkpoint.commit, pace, self._may_go_on
                    )
                else:
                    self._parallel.deliver(found, pace, self._may_go_on)
            elif self._parallel is not None:
                self._parallel.drain()
                if self._may_go_on() and self._delivery.skip(found):
                    self._checkpoint.commit(found.end)
            elif self._delivery.skip(found):
                self._checkpoint.commit(found.end)
        if self._parallel is not None:
            self._parallel.drain()

    def _read(self) -> Lines | SharedLines | Skipped | None:
        """Return what comes next, as the cursor does; where many read, once for all of them."""
        cursor, look_around = self._cursor, self._look_around
        self._look_around = False
        if not self._shared.are_many(cursor.directory):
            return cursor.read(look_around)
        position, wakes = cursor.position, self._log.readers.wakes
        shared = self._shared.find(cursor.directory, position)
        if shared is not None and cursor.skip_to(shared.start, shared.end):
            return shared
        if not look_around and self._shared.is_end(cursor.directory, position, wakes):
            return None
        found = cursor.read(look_around)
        if found is None:
            self._shared.found_end(cursor.directory, position, wakes)
        return self._shared.add(cursor.directory, found) if isinstance(found, Lines) else found

    def _may_go_on(self) -> bool:
        return not self._stopping.is_set() and not self._checkpoint.moved

    def _pass_over_old(self, found: Lines | SharedLines, pace: Pace) -> Lines:
        """Leave out records older than ``max_age``, until the first that is not.

        What is no record has no age, and is put aside as it would be anywhere else.
        """
        oldest = self._options.not_before
        assert oldest is not None
        offset = found.start
        for index, line in enumerate(found.lines):
            try:
                if parse(decode(line)["ts"]) >= oldest:
                    self._options = self._options._replace(not_before=None)
                    return Lines(offset, found.lines[index:])
                self.counters.expired += 1
            except CorruptRecordError:
                if not self._delivery.deliver(line, offset):
                    break
            offset += len(line) + 1
            pace.step()
            if not self._may_go_on():
                break
        self._checkpoint.commit(offset)
        return Lines(offset, [])

    def _warn_of_lag(self, position: int) -> None:
        limit = self._options.lag_warning_bytes
        lag = self._log.end - position
        if limit and lag > limit and not self._warned_of_lag:
            self._warned_of_lag = True
            logger.warning("%s: %s lags by %d bytes", self.channel, self.subscriber_id, lag)
        elif self._warned_of_lag and lag < limit // 2:
            self._warned_of_lag = False

    # -- moving

    def seek(self, position: Position) -> None:
        """Go on from another position: ``"earliest"``, ``"latest"``, a ``datetime`` or an offset.

        The position is stored when this returns. A message being handled ends first, without
        moving it.

        Raises:
            ValueError: it is not a position.
            WrongThreadError: called from another OS thread than the messenger's.
            SubscriberInUseError: this subscription does not hold the id (a standby, or stopped).
            StorageError: the channel cannot be read, or the position not be stored.
        """
        self._check_thread()
        wanted = check_position(position)
        self._check_active()
        try:
            offset = resolve(self._fs, self._log.directory, wanted, self._options.max_line_bytes)
            self._check_active()  # it may have stopped meanwhile
            self._options = self._options._replace(not_before=None)
            self._checkpoint.move(offset)
            self._leaving.set()
            self._wake()
            self._checkpoint.sync()
        except OSError as error:
            raise OffsetError(f"{self.channel}: cannot seek: {error}") from error

    def _check_active(self) -> None:
        if not self.active:
            raise SubscriberInUseError(
                f"{self.subscriber_id!r} of {self.channel!r} is not this subscription's to move: "
                "it waits for another holder, or has stopped"
            )

    # -- stopping

    def stop(self, timeout: float | None = 10.0) -> None:
        """Stop delivering and give the id back; the position stays.

        A running handler ends first and its message counts. One that takes longer than
        ``timeout`` seconds is killed, and its message comes again. From inside the handler this
        returns at once, and the subscription ends when the handler does.

        Raises:
            WrongThreadError: called from another OS thread than the messenger's.
        """
        self._check_thread()
        self.request_stop()
        if not self.owns_current_greenlet():
            self.join(timeout)
            if self.running:
                self.kill()

    def request_stop(self, forget: bool = False) -> None:
        """Tell the subscription to end, without waiting.

        Args:
            forget: delete the position as well.
        """
        if forget:
            self._forget = self._checkpoint.moved = True
        self._end_waits()
        self._wake()

    def _end_waits(self) -> None:
        self._stopping.set()
        self._leaving.set()

    def _wake(self) -> None:
        self._woken.set()
        self._pace.until = 0.0  # so that the loop looks after the message it has
        if self._parallel is not None:
            self._parallel.wake()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the subscription has ended; return whether it has."""
        if self._greenlet is None:
            return True
        self._greenlet.join(timeout)
        return self._greenlet.dead

    def kill(self, timeout: float = 0.5) -> None:
        """End the subscription in the middle of a handler, whose message stays uncommitted."""
        if self._greenlet is not None:
            self._greenlet.kill(timeout=timeout)
            if not self._greenlet.dead:
                # A handler that survives its death: whatever it does, this is over.
                self._release(in_time=False)

    def _release(self, in_time: bool = True) -> None:
        """Give back everything that the subscription holds.

        Args:
            in_time: whether there is time to wait for a disk that may hang.
        """
        self._poller.discard(self._look)
        self._shared.leave(self._log.directory, self)
        self._log.readers.events.discard(self._woken)
        if not self._log.readers.events:
            self._store.watcher.unwatch(self._log.readers)
        if self._parallel is not None:
            self._parallel.kill()
        self._cursor.close()
        self._active = False
        if self._claim.held:
            self._end_waits()
            if not self._forget:
                self._checkpoint.save(in_time)
            self.not_deleted = self._claim.release(self._forget)
        self._on_end(self)

    def drop_in_child(self) -> None:
        """In a forked child: end before the next message."""
        self._end_waits()
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
