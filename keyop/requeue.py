"""Sending dead letters again, and putting them away for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.deadletter_view import Record, original_json, read_letter
from keyop.deadletters import DeadLetters
from keyop.decode import decode
from keyop.envelope import encode_again
from keyop.errors import KeyopError, StorageError
from keyop.inspection import Locked
from keyop.rawjson import members
from keyop.storage.environment import LogOptions
from keyop.storage.log import Log
from keyop.storage.offsets import list_ids
from keyop.storage.retention import RetentionOptions
from keyop.storage.store import Store, StoreOptions

TIMEOUT_S = 10.0
# The dead-letter channel is locked while so many are sent again; subscribers that give up on a
# message meanwhile wait.
_BATCH_LETTERS = 1024
_BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class Sent:
    """A message that was sent again: to one subscriber, or with None to everybody."""

    id: str
    subscriber: str | None


@dataclass(frozen=True)
class Refused:
    """A dead letter that cannot be sent again, and why not."""

    id: str
    reason: str


@dataclass(frozen=True)
class Requeued:
    """What became of each dead letter."""

    sent: tuple[Sent, ...]
    refused: tuple[Refused, ...]


class _CannotSendError(Exception):
    """The message of this dead letter cannot be sent again."""


class Requeue:
    """Takes dead letters of one channel out of the list.

    What is sent again keeps its id, origin and the bytes of its payload; it is stamped now. Its
    dead letter counts as done with once it is on the disk, so a crash in between may send it
    twice, and never loses it.

    Args:
        segment_bytes: size at which a segment is rolled.
    """

    def __init__(
        self, letters: DeadLetters, segment_bytes: int, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._letters = letters
        self._directory = letters.directory
        self._segment_bytes = segment_bytes
        self._clock = clock

    def purge(self, wanted: Sequence[str] | None = None) -> int:
        """Put dead letters away without sending them again; return how many.

        Args:
            wanted: ids or beginnings of ids; None for all.

        Raises:
            StorageError: an id is unknown or ambiguous, and nothing was changed; or a file
                cannot be read or written.
        """
        ids, stale = self._choose(wanted)
        count = 0
        for batch in self._batches(ids):
            with self._directory.locked(self._letters.log_channel) as locked:
                fresh = [record.id for record in self._not_done(batch)]
                self._mark(locked, fresh)
                count += len(fresh)
        self._drop(stale)
        return count

    def requeue(self, wanted: Sequence[str] | None = None, to_channel: bool = False) -> Requeued:
        """Send the messages of dead letters again, each to the subscriber that gave up on it.

        Args:
            wanted: ids or beginnings of ids; None for all.
            to_channel: send to all subscribers of the channel. Where the dead letter does not
                say who gave up, that is so anyway.

        Raises:
            StorageError: an id is unknown or ambiguous, and nothing was changed; or a file
                cannot be read or written.
            PublishTimeoutError: somebody held the channel's lock, or the disk was full. Those
                that were sent before count as done with.
        """
        ids, stale = self._choose(wanted)
        sent: list[Sent] = []
        refused: list[Refused] = []
        options = StoreOptions(LogOptions(self._segment_bytes, "always"), 0, RetentionOptions())
        # Not opened as a messenger's is: it needs no background work.
        store = Store(self._directory.path, options, self._directory.fs, self._clock)
        try:
            log = store.log(self._letters.channel)
            for batch in self._batches(ids):
                # Two who requeue at once must not send the same ones.
                with self._directory.locked(self._letters.log_channel) as locked:
                    done, cannot = self._send(log, self._not_done(batch), to_channel)
                    self._mark(locked, [each.id for each in done])
                sent += done
                refused += cannot
        finally:
            store.close(monotonic() + TIMEOUT_S)
        self._drop(stale)
        return Requeued(tuple(sent), tuple(refused))

    def _choose(self, wanted: Sequence[str] | None) -> tuple[set[str], set[str]]:
        """Return the ids meant, and those in the file whose dead letters retention has deleted."""
        with self._directory.reading():
            # Read before the look at the channel, which then finds every letter that is in it.
            stale = self._letters.done.read()
        done = frozenset(stale)
        waiting = set()
        for record in self._letters.records():
            stale.discard(record.id)
            if record.id not in done:
                waiting.add(record.id)
        if self._letters.unreadable:
            # They may be what some of the ids mark, under a limit that was higher then.
            stale.clear()
        return waiting if wanted is None else set(self._letters.resolve(wanted)), stale

    def _batches(self, ids: set[str]) -> Iterator[list[Record]]:
        batch: list[Record] = []
        size = 0
        for record in self._letters.waiting():
            if record.id not in ids:
                continue
            batch.append(record)
            size += len(record.line)
            if len(batch) == _BATCH_LETTERS or size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _not_done(self, batch: list[Record]) -> list[Record]:
        with self._directory.reading():
            done = self._letters.done.read()
        return [record for record in batch if record.id not in done]

    def _send(
        self, log: Log, batch: list[Record], to_channel: bool
    ) -> tuple[list[Sent], list[Refused]]:
        with self._directory.reading():
            known = list_ids(
                self._directory.fs, self._directory.offsets_directory(self._letters.channel)
            )
        sent: list[Sent] = []
        refused: list[Refused] = []
        lines: list[bytes] = []
        for record in batch:
            subscriber = None if to_channel else read_letter(record, log.channel).subscriber
            try:
                if subscriber is not None and subscriber not in known:
                    raise _CannotSendError(
                        f"{subscriber} does not subscribe to {self._letters.channel} any more; "
                        "--to-channel sends it to everybody"
                    )
                lines.append(self._line_again(record, subscriber))
            except _CannotSendError as error:
                refused.append(Refused(record.id, str(error)))
            else:
                sent.append(Sent(record.id, subscriber))
        if lines:
            log.append(b"".join(lines), monotonic() + TIMEOUT_S)
        return sent, refused

    def _line_again(self, record: Record, subscriber: str | None) -> bytes:
        original = original_json(record)
        if original is None:
            raise _CannotSendError("what failed is not a message, so there is nothing to send")
        try:
            fields, payload = decode(original), members(original)["payload"]
            line = encode_again(
                fields, self._letters.channel, payload, self._clock.time_ns(), subscriber
            )
        except (KeyopError, ValueError, KeyError) as error:
            raise _CannotSendError(f"its original is not a record: {error}") from None
        if len(line) > self._letters.max_record_bytes:
            raise _CannotSendError(
                f"the record would have {len(line)} bytes; storage.max_record_bytes allows "
                f"{self._letters.max_record_bytes}"
            )
        return line

    def _mark(self, locked: Locked, ids: list[str]) -> None:
        if ids:
            self._change(locked, lambda: self._letters.done.add(ids))

    def _drop(self, stale: set[str]) -> None:
        """Forget ids whose dead letters are gone, so that the file does not grow for ever."""
        if stale:
            with self._directory.locked(self._letters.log_channel) as locked:
                self._change(
                    locked,
                    lambda: self._letters.done.write(self._letters.done.read() - stale),
                )

    def _change(self, locked: Locked, change: Callable[[], None]) -> None:
        try:
            locked.threads.run(change)
        except OSError as error:
            raise StorageError(
                f"{error.filename or self._letters.done.path} cannot be written: {error.strerror}; "
                "dead letters that were sent may be listed still"
            ) from error
