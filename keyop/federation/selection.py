"""What of a channel's lines goes to one peer, and what becomes of the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from keyop.deadletter import DeadLetterWriter
from keyop.decode import decode, strip_checksum
from keyop.envelope import UnknownVersionError
from keyop.errors import CorruptRecordError
from keyop.salvage import salvage

logger = logging.getLogger(__name__)

# What is left between two whole records where a flipped bit hit the newline.
_SEPARATOR_BYTES = 1


class Recorder(Protocol):
    """Takes notes for the audit log; never waits, never raises."""

    def __call__(
        self, event: str, channel: str = "", message_id: str = "", detail: str = ""
    ) -> None:
        """Note an event that concerns one peer."""


class UndeliverableError(Exception):
    """What the dead letter of a record that a peer cannot take gives as its reason."""


class Addressee(NamedTuple):
    """Whom a feed is for, and what it can take.

    ``max_record_bytes`` is that of a record without its newline. ``keeps`` says that it has a log
    of its own, and so needs nothing back that it has passed on; an ephemeral peer, which may share
    its name with others, gets that as well.
    """

    name: str
    max_record_bytes: int
    keeps: bool = True


class Selection:
    """Decides for one peer and one channel.

    Args:
        dead_letters: takes what the peer cannot; None for a channel of dead letters, and for a
            peer that keeps nothing.
    """

    def __init__(
        self,
        channel: str,
        addressee: Addressee,
        dead_letters: DeadLetterWriter | None,
        note: Recorder,
    ) -> None:
        self.addressee = addressee
        self.undeliverable = 0
        self._channel = channel
        # What does not hold these bytes is for the peer.
        self._marks = [b',"subscriber":"']
        if addressee.keeps:
            self._marks.append(f'"{addressee.name}"'.encode())
        self._dead_letters = dead_letters
        self._note = note

    @property
    def plain(self) -> tuple[Sequence[bytes], int]:
        """Sound lines without any of these bytes, and no longer than that, go as they stand."""
        return self._marks, self.addressee.max_record_bytes

    def of_line(self, line: bytes, position: int, torn: bool = False) -> Sequence[bytes]:
        """Return what to send of a line: one record, none, or those that a damaged line holds.

        Args:
            position: where the line begins.
            torn: it is the end of a sealed segment, and has no newline.

        Raises:
            KeyopError: what the peer cannot take could not be put aside.
        """
        if torn:
            reason = "the last line of a sealed segment has no end"
            return self._salvage(line, position, reason)
        return self._select_whole(line, position)

    def _select_whole(self, line: bytes, position: int) -> Sequence[bytes]:
        try:
            sound = strip_checksum(line)
            fields = None
            # Without a checksum it may be anything, which shows only when it is read.
            if sound is line or any(mark in line for mark in self._marks):
                fields = decode(line)
                if not self._is_for_peer(fields):
                    return ()
            if len(line) <= self.addressee.max_record_bytes:
                return (line,)
            if len(sound) <= self.addressee.max_record_bytes:
                return (sound,)
            return self._shorten(fields or decode(line), line, sound)
        except UnknownVersionError as error:
            if len(line) <= self.addressee.max_record_bytes:
                return (line,)  # which the peer may know
            self.put_aside(line, position, f"{error}, and {self._too_large(line)}")
        except CorruptRecordError as error:
            return self._salvage(line, position, str(error))
        return ()

    def _salvage(self, line: bytes, position: int, reason: str) -> Sequence[bytes]:
        """Put aside what of a damaged line is no record; return what to send of the rest."""
        pieces = salvage(line)
        records: list[bytes] = []
        for piece in pieces:
            if piece.whole and (len(pieces) > 1 or _is_record(line)):
                records += self._select_whole(piece.data, position)
            elif len(pieces) > 1 and len(piece.data) <= _SEPARATOR_BYTES:
                logger.error("%s at %d: a damaged newline", self._channel, position)
            else:
                self.put_aside(piece.data, position, reason)
        return records

    def _is_for_peer(self, fields: Mapping[str, Any]) -> bool:
        """Whether the peer has not had the record, and it is not one subscriber's alone."""
        if "subscriber" in fields:
            return False
        name, route = self.addressee.name, fields.get("route") or ()
        return not self.addressee.keeps or (fields["origin"] != name and name not in route)

    def _shorten(self, fields: Mapping[str, Any], line: bytes, sound: bytes) -> Sequence[bytes]:
        """Leave the route out where only it is too much; else the peer cannot take the record."""
        route = fields.get("route")
        if route:
            names = ",".join([f'"{name}"' for name in route])
            without = sound.replace(f',"route":[{names}]'.encode(), b"", 1)
            if len(without) <= self.addressee.max_record_bytes:
                return (without,)
        reason = self._too_large(sound)
        if self._dead_letters is not None:
            self._dead_letters.write_message(fields, line, 0, UndeliverableError(reason))
        self.undeliverable += 1
        logger.error("%s: undeliverable: %s", self._channel, reason)
        self._note("undeliverable", self._channel, fields["id"], reason)
        return ()

    def _too_large(self, record: bytes) -> str:
        name, limit = self.addressee.name, self.addressee.max_record_bytes
        return f"a record of {len(record)} bytes; {name} takes {limit}"

    def put_aside(self, data: bytes, position: int, reason: str) -> None:
        """Put bytes that are no record into the dead-letter channel, where there is one.

        Raises:
            KeyopError: that is not possible now.
        """
        if self._dead_letters is not None:
            self._dead_letters.write_damaged(data, f"at offset {position}: {reason}")
        self.undeliverable += 1
        logger.error("%s at %d: not a record: %s", self._channel, position, reason)
        self._note("undeliverable", self._channel, detail=reason)


def _is_record(line: bytes) -> bool:
    try:
        decode(line)
    except UnknownVersionError:
        pass
    except CorruptRecordError:
        return False
    return True
