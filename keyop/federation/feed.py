"""One channel on its way to one peer: what was read of it, what was sent, what has arrived."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from keyop.errors import KeyopError
from keyop.federation.pages import Page, Pages, Portion
from keyop.federation.selection import Recorder, Selection
from keyop.storage.claim import Claim
from keyop.storage.cursor import Cursor, Lines, Skipped
from keyop.storage.log import Log
from keyop.storage.warm import WarmCursors
from keyop.wire.frames import LENGTH_BYTES, MAX_BATCH_RECORDS, encode_batch

logger = logging.getLogger(__name__)

# So many batches that are not full are sent before the first of them has arrived. With one, each
# would cost the way there and back.
_SMALL_UNDER_WAY = 2


class Done(NamedTuple):
    """What has become of the records for a peer.

    ``dropped_bytes`` went with old segments before they were sent; what is ``undeliverable`` was
    too large for the peer, and became dead letters if that keeps a position.
    """

    sent: int = 0
    dropped_bytes: int = 0
    undeliverable: int = 0


class Feed:
    """Reads a channel for a peer, from a position that is saved when records have arrived.

    Args:
        claim: where the position is kept; None for an ephemeral peer.
        warm: decides for how long the cursor keeps its descriptor.
        pages: what other feeds of the channel may have read already.
        position: where to begin.
        selection: decides what of a line goes to the peer.
        on_data: told that there may be something to take.
    """

    def __init__(
        self,
        log: Log,
        cursor: Cursor,
        warm: WarmCursors,
        pages: Pages,
        claim: Claim | None,
        position: int,
        selection: Selection,
        note: Recorder,
        on_data: Callable[[Feed], None],
    ) -> None:
        self.channel = log.channel
        self._sent = 0
        self._dropped_bytes = 0
        self._log = log
        self._cursor = cursor
        self._warm = warm
        self._pages = pages
        self._claim = claim
        self._selection = selection
        self._note = note
        self._on_data = on_data
        self._lines: list[bytes] = []
        # Where all of these lines are for the peer as they stand.
        self._page: Page | None = None
        self._index = 0
        # What to send of the line at the index, where that was found out and had no room.
        self._selected: Sequence[bytes] | None = None
        # The only line is the end of a sealed segment, and has no newline.
        self._torn = False
        # Bytes without a record that are still to be put aside.
        self._skipped: Skipped | None = None
        # The next byte to look at, the end of what was sent, the end of what has arrived.
        self.position = position
        self.sent_to = position
        self.acknowledged_to = position
        # Nothing between the end of what was sent and here is for the peer.
        self._passed_to = position
        # Batches that were sent and have not arrived.
        self._batches = 0
        self._look_around = True
        self._opened = False

    # -- waking: a feed stands among the readers of its log, as an event does

    def open(self) -> None:
        """Begin: be woken from now on, and look whether there is something already."""
        self._log.readers.events.add(self)
        self._on_data(self)

    def set(self) -> None:
        """Something may have been appended."""
        self._on_data(self)

    def look_around(self) -> None:
        """As :meth:`set`, and look beyond the end of the segment: what no wake-up tells of."""
        self._look_around = True
        self._on_data(self)

    def pass_over(self, start: int, end: int) -> bool:
        """Go on behind what came from the peer itself, if it is what would be read next.

        Returns:
            Whether nothing more is there.
        """
        if (
            self.position != start
            or self._index < len(self._lines)
            or not self._selection.addressee.keeps
            or not self._opened
            or self._skipped
            or not self._cursor.skip_to(start, end)
        ):
            return False
        self.position = end
        self.passed()
        return not self._look_around and self._log.ends_at(end)

    # -- reading

    def take(self, room: int) -> Portion | None:
        """Return records for the next batch; None if there is nothing more just now.

        There is none in it where everything that was read is not for this peer. ``position`` is
        then behind it all the same. It takes what one read gives and no more, so that whoever
        calls can give way in between.

        Args:
            room: bytes that the batch may have; a larger record comes alone.

        Raises:
            OSError: the channel cannot be read.
            KeyopError: what the peer cannot take could not be put aside. What is before it was
                returned by an earlier call.
        """
        if self._index >= len(self._lines) and not self._read():
            return None
        page = self._page
        if page is not None:
            before = self._index
            self._index, portion = page.portion(before, room)
            self.position += page.length(before, self._index)
            return portion
        records = self._take_each(room)
        return Portion(len(records), encode_batch(records))

    def _take_each(self, room: int) -> list[bytes]:
        records: list[bytes] = []
        size = 0
        moved = False
        while self._index < len(self._lines):
            line = self._lines[self._index]
            try:
                selected = self._selected
                if selected is None:
                    selected = self._selection.of_line(line, self.position, self._torn)
            except (OSError, KeyopError):
                if not moved:
                    raise
                return records
            for record in selected:
                size += len(record) + LENGTH_BYTES
            if records and (size > room or len(records) >= MAX_BATCH_RECORDS):
                self._selected = selected
                return records
            records += selected
            self._selected = None
            self._index += 1
            self.position += len(line) + (not self._torn)
            moved = True
        return records

    def _read(self) -> bool:
        if not self._opened:
            self._begin()
        if self._turn_page():
            return True
        found = self._skipped or self._cursor.read(self._look_around)
        self._look_around = False
        if found is None:
            self._warm.keep(self._cursor)
            return False
        self._index, self._torn, self._page = 0, False, None
        if isinstance(found, Lines):
            self._lines, self.position = found.lines, found.start
            self._open_page(self._pages.add(self._cursor.directory, found))
        elif found.reason == "torn":
            self._lines, self.position = [found.head], found.start
            self._torn = True
        else:
            self._skipped = found  # until that has been done
            self._pass_over(found)
            self._skipped = None
            self._lines, self.position = [], found.end
        return True

    def _turn_page(self) -> bool:
        """Go on with what another feed has read, if it has."""
        page = self._pages.find(self._cursor.directory, self._cursor.position)
        if page is None or self._skipped or not self._cursor.skip_to(page.start, page.end):
            return False
        self._index, self._torn = 0, False
        self._lines, self.position = page.lines, page.start
        self._open_page(page)
        return True

    def _open_page(self, page: Page | None) -> None:
        suits = page is not None and page.suits(*self._selection.plain)
        self._page = page if suits else None

    def _begin(self) -> None:
        opened = self._cursor.open(self.position)
        if opened > self.position:
            self._report_gap(self.position, opened)
        self.position = self.sent_to = self.acknowledged_to = self._passed_to = opened
        self._opened = True

    def _report_gap(self, start: int, end: int) -> None:
        self._dropped_bytes += end - start
        text = f"{end - start} bytes from {start} on are gone, and were not sent"
        logger.error("%s: %s: %s", self.channel, self._selection.addressee.name, text)
        self._note("replay_gap", self.channel, detail=text)

    def _pass_over(self, skipped: Skipped) -> None:
        if skipped.reason == "gap":
            self._report_gap(skipped.start, skipped.end)
        else:
            size = skipped.end - skipped.start
            reason = f"a line of {size} bytes at {skipped.start}"
            self._selection.put_aside(skipped.head, self.position, reason)

    # -- sending

    @property
    def under_way(self) -> bool:
        """Whether something was sent that has not arrived yet."""
        return self.acknowledged_to < self.sent_to

    @property
    def done(self) -> Done:
        """What it has done since it began."""
        return Done(self._sent, self._dropped_bytes, self._selection.undeliverable)

    @property
    def backlog_bytes(self) -> int:
        """How much of the log has not arrived, as far as this process has seen it grow."""
        return max(0, self._log.end - self.acknowledged_to)

    def had_better_wait(self, room: int) -> bool:
        """Whether more should come together first: less than a batch is there, and some are sent.

        Who is busy with what was sent gets no more, but larger batches.
        """
        return self._batches >= _SMALL_UNDER_WAY and self._log.end - self.position < room

    def sent(self, count: int) -> None:
        """So many records, up to the position, are on their way."""
        self._batches += 1
        self._sent += count
        self.sent_to = self.position

    def passed(self) -> None:
        """Nothing up to the position was for this peer."""
        self._passed_to = self.position
        if not self.under_way:
            self.sent_to = self.position
            self.acknowledged(self.position)

    def acknowledged(self, end: int, count: int = 0) -> None:
        """Everything before this offset is with the peer, or was not for it.

        Args:
            count: of the records in the batch that has arrived; 0 if none has.
        """
        self._batches -= bool(count)
        if end == self.sent_to:
            end = max(end, self._passed_to)
        self.acknowledged_to = end
        if self._claim is not None:
            try:
                self._claim.save(end)
            except OSError as error:  # the next one saves more; what is sent again is known there
                logger.error("%s cannot be written: %s", self._claim.path, error)

    def close(self, forget: bool = False) -> None:
        """End, giving descriptors and the position back; what was not acknowledged comes again."""
        self._log.readers.events.discard(self)
        self._warm.discard(self._cursor)
        if self._claim is not None:
            if self._opened and not forget:
                self.acknowledged(self.acknowledged_to)  # the file's time says when the peer left
            self._claim.release(forget)
