"""Batches → records that may be stored → one append for each channel → acknowledgements."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import gevent
from gevent.event import Event

from keyop.backoff import worth_telling
from keyop.dedup import Dedup, Window
from keyop.errand import Crew, Errand
from keyop.errors import KeyopError, LogFailedError
from keyop.federation.admission import Admission, Admitted, MalformedError
from keyop.federation.selection import Recorder
from keyop.pace import Pace
from keyop.storage.store import Store

logger = logging.getLogger(__name__)

# A peer that sends more than this without waiting for acknowledgements waits, with all it sends.
MAX_QUEUED_BYTES = 8 << 20
# Batches that have come meanwhile are written together, so many bytes of them.
_MAX_COMMIT_BYTES = 256 << 10
# A peer that floods this one costs everybody else no more than that at each turn, of which a
# message of theirs needs several: to be read, stored, delivered and acknowledged.
_SLICE_S = 0.0004


# What Python keeps for a batch, and for each of its records, besides their bytes: those that are
# empty cost as well.
_BATCH_BYTES, _RECORD_BYTES = 128, 64


def _cost(records: list[bytes]) -> int:
    return _BATCH_BYTES + sum(map(len, records)) + _RECORD_BYTES * len(records)


class ReceiverCounters:
    """What has become of the records of one peer."""

    __slots__ = ("duplicates", "loops", "malformed", "stored", "violations")

    def __init__(self) -> None:
        self.stored = 0
        self.duplicates = 0
        self.loops = 0
        self.malformed = 0
        self.violations = 0

    @property
    def received(self) -> int:
        """Every record that has come and was dealt with."""
        return self.stored + self.duplicates + self.loops + self.malformed + self.violations


class Receiver:
    """Stores what a peer sends, and acknowledges it once it is written.

    Args:
        accepts: whether records of a channel are taken from this peer.
        note_forwarded: told the channel and the ids of what was stored.
        acknowledge: told the last id of each batch, in order, once the batch is written.
        failed: told that a batch could not be written: it is not acknowledged, and nothing after
            it is looked at.
        stored: told between which offsets of a channel nothing stands but what came from the peer.
    """

    def __init__(
        self,
        peer: str,
        instance_name: str,
        store: Store,
        dedup: Dedup,
        max_record_bytes: int,
        accepts: Callable[[str], bool],
        note: Recorder,
        note_forwarded: Callable[[str, list[str]], None],
        acknowledge: Callable[[str], None],
        failed: Callable[[Exception], None],
        crew: Crew | None = None,
        stored: Callable[[str, int, int], None] = lambda channel, start, end: None,
    ) -> None:
        self.counters = ReceiverCounters()
        self._peer = peer
        self._instance_name = instance_name
        self._store = store
        self._dedup = dedup
        self._admission = Admission(instance_name, peer, max_record_bytes)
        self._accepts = accepts
        self._note = note
        self._note_forwarded = note_forwarded
        self._acknowledge = acknowledge
        self._failed = failed
        self._stored = stored
        self._queue: deque[list[bytes]] = deque()
        self._queued_bytes = 0
        self._room = Event()
        self._errand = Errand(f"keyop-receiver-{peer}", self._work, crew)
        self._broken = False
        self.waits = False

    def receive(self, records: list[bytes]) -> None:
        """Take a batch; waits only where the peer has sent far more than was acknowledged."""
        size = _cost(records)
        while self._queued_bytes > MAX_QUEUED_BYTES and not self._broken:
            self._room.clear()
            self.waits = True
            self._room.wait()
        self.waits = False
        self._queue.append(records)
        self._queued_bytes += size
        self._errand.call()

    def _work(self) -> None:
        pace = Pace(_SLICE_S)
        while self._queue and not self._broken:
            batches = self._next_batches()
            try:
                last_ids, written = self._commit(batches, pace)
            # KeyopError and OSError are what a disk may do; anything else is a fault of keyop's
            # own, which must not leave the peer waiting for ever.
            except Exception as error:
                if not isinstance(error, (KeyopError, OSError)):
                    logger.exception("%s: storing a batch failed", self._peer)
                self._broken = True
                self._room.set()
                self._failed(error)
                return
            try:
                # Whoever was woken by what was written goes first, then the peer: it waits for no
                # single one. Nobody waits for the audit log.
                gevent.sleep(0)
                for last_id in last_ids:
                    self._acknowledge(last_id)
            finally:
                for channel, ids in written:
                    self._note_forwarded(channel, ids)
            self._room.set()
            pace.step()

    def _next_batches(self) -> list[list[bytes]]:
        batches, total = [], 0
        while self._queue and total < _MAX_COMMIT_BYTES:
            records = self._queue.popleft()
            size = _cost(records)
            total += size
            self._queued_bytes -= size
            batches.append(records)
        return batches

    def _commit(
        self, batches: list[list[bytes]], pace: Pace
    ) -> tuple[list[str], list[tuple[str, list[str]]]]:
        """Write what may be stored of some batches.

        Returns:
            The last id of each batch, and the ids that were written to each channel.
        """
        last_ids = []
        counters, admit = self.counters, self._admission.admit
        with _Commit(self._store, self._dedup, self._stored) as commit:
            for records in batches:
                last_id = ""
                for record in records:
                    try:
                        admitted = admit(record)
                    except MalformedError as error:
                        last_id = ""
                        self._skip_malformed(error)
                        continue
                    last_id = admitted.message_id
                    if self._is_welcome(admitted):
                        if commit.add(admitted):
                            counters.stored += 1
                        else:
                            counters.duplicates += 1
                    pace.step()
                last_ids.append(last_id)
            commit.write()
        return last_ids, commit.written

    def _skip_malformed(self, error: MalformedError) -> None:
        self.counters.malformed += 1
        if worth_telling(self.counters.malformed):
            logger.warning(
                "%s sent %d malformed records; the latest: %s",
                self._peer,
                self.counters.malformed,
                error,
            )

    def _is_welcome(self, admitted: Admitted) -> bool:
        """Policy first, so that what is not allowed does not count as seen; then loops."""
        head = admitted.head
        if not self._accepts(head.channel):
            self.counters.violations += 1
            self._note("policy_violation", head.channel, admitted.message_id)
            if worth_telling(self.counters.violations):
                logger.warning(
                    "%s sent %d records of channels that are not taken from it; the latest: %s",
                    self._peer,
                    self.counters.violations,
                    head.channel,
                )
            return False
        if head.origin == self._instance_name or self._instance_name in head.route:
            self.counters.loops += 1
            self._note("loop_dropped", head.channel, admitted.message_id)
            return False
        return True

    def stop(self) -> None:
        """End; what was not acknowledged comes again."""
        self._broken = True
        self._room.set()
        self._errand.stop()
        self._queue.clear()


class _Commit:
    """What one commit writes: new records of several channels, claimed while they are written.

    To be used as a context manager: it ends all claims, whatever happens.
    """

    def __init__(self, store: Store, dedup: Dedup, stored: Callable[[str, int, int], None]) -> None:
        self._store = store
        self._dedup = dedup
        self._stored = stored
        self._windows: dict[str, Window] = {}
        # New records of each channel, and the ids of those that have one.
        self._fresh: dict[str, list[Admitted]] = {}
        self._claimed: dict[str, set[str]] = {}
        # Ids of each channel that were seen before.
        self._repeated: dict[str, list[str]] = {}
        self._outcome = Event()
        self.written: list[tuple[str, list[str]]] = []

    def __enter__(self) -> _Commit:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_claims()

    def _end_claims(self) -> None:
        for channel, ids in self._claimed.items():
            self._windows[channel].end_claims(ids, self._outcome)
        self._claimed.clear()
        self._outcome = Event()

    def add(self, admitted: Admitted) -> bool:
        """Take a record if its id was not seen; return whether it was taken.

        Whose id is being written on another connection waits for the outcome, and holds nothing
        meanwhile: two that waited for each other would wait for ever.
        """
        channel, message_id = admitted.head.channel, admitted.message_id
        window = self._windows.get(channel)
        if window is None:
            window = self._window(channel)
        if message_id:
            if message_id in self._claimed[channel]:
                return False
            while (writing := window.pending.get(message_id)) is not None:
                self.write()
                writing.wait()
                window.refresh()
            if window.contains(message_id):
                self._repeated[channel].append(message_id)
                return False
            window.begin_claim(message_id, self._outcome)
            self._claimed[channel].add(message_id)
        self._fresh[channel].append(admitted)
        return True

    def _window(self, channel: str) -> Window:
        log = self._store.log(channel)
        log.open()
        window = self._dedup.window(log.directory, log.ends_at)
        window.refresh()
        self._fresh[channel], self._claimed[channel], self._repeated[channel] = [], set(), []
        self._windows[channel] = window
        return window

    def write(self) -> None:
        """Append what was taken so far, and end the claims to it.

        What was seen before is in the log as well then, under its sync policy.

        Raises:
            KeyopError: it could not be written; nothing of it counts as seen.
        """
        for channel, items in self._fresh.items():
            if not items:
                continue
            log = self._store.log(channel)
            data = b"".join([each.line for each in items])
            ids = [each.message_id for each in items]
            window = self._windows[channel]
            try:
                end = log.append(data)
            except LogFailedError:
                window.doubt(ids)
                raise
            # In one piece, without others' between: else it is read, to see what is whose.
            if window.wrote([each for each in ids if each], len(data), end):
                self._stored(channel, end - len(data), end)
            else:
                window.refresh()
            self.written.append((channel, ids))
        self._confirm_repeated()
        self._end_claims()
        for channel in self._windows:
            self._fresh[channel], self._claimed[channel] = [], set()

    def _confirm_repeated(self) -> None:
        """Whoever wrote these may have been stopped before they were on the disk."""
        for channel, ids in self._repeated.items():
            if ids:
                try:
                    self._store.log(channel).confirm(len(ids))
                except LogFailedError:
                    self._windows[channel].doubt(ids)
                    raise
                self._repeated[channel] = []
