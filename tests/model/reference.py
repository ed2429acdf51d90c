"""A channel as plain Python has it: a list of records, and a number for each subscriber."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Record(NamedTuple):
    """What is in the log: its first byte, one past its last, its id and payload."""

    start: int
    end: int
    id: str
    payload: Any


@dataclass
class Reader:
    """A subscriber: its position, whether it runs, and all that it should have got so far."""

    position: int
    running: bool = False
    due: list[Any] = field(default_factory=list)
    dropped_bytes: int = 0


class Reference:
    """What a channel must hold and deliver. Records get their offsets when they are seen."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        # The first offset that has not been deleted.
        self.first = 0
        self.readers: dict[str, Reader] = {}
        self.letters: list[tuple[str, Any]] = []
        self.torn: list[bytes] = []
        self.unfinished = b""

    @property
    def end(self) -> int:
        """One past the last whole record."""
        return self.records[-1].end if self.records else 0

    @property
    def left(self) -> list[Record]:
        """The records that have not been deleted."""
        return [record for record in self.records if record.start >= self.first]

    def boundary(self, position: int) -> int:
        """Return the beginning of the record that a position names or is in."""
        starts = [record.start for record in self.records]
        if position >= self.end:
            return self.end
        return max(self.first, starts[bisect_right(starts, position) - 1])

    def cut_tail(self) -> None:
        """Whoever may append puts the tail in order first."""
        if self.unfinished:
            self.torn.append(self.unfinished)
            self.unfinished = b""

    def clamp(self) -> None:
        """Whoever opens the log moves positions back to its end."""
        for reader in self.readers.values():
            reader.position = min(reader.position, self.end)

    def run(self, own_id: str, position: int | None = None) -> None:
        """Start a subscriber, at this position if it has none of its own."""
        reader = self.readers.get(own_id)
        if reader is None:
            reader = self.readers[own_id] = Reader(self.boundary(position or 0))
        elif reader.position < self.first:
            reader.dropped_bytes += self.first - reader.position
        reader.running = True

    def deliver(self, refuses: Any) -> None:
        """Let everybody who runs read to the end."""
        for own_id, reader in self.readers.items():
            if reader.running:
                start = self.boundary(reader.position)
                new = [record.payload for record in self.left if record.start >= start]
                reader.due += new
                self.letters += [(own_id, payload) for payload in new if refuses(payload)]
                reader.position = self.end

    def sweep(self, starts: list[int], max_files: int) -> list[int]:
        """Delete what everybody has read and what is too much; return the starts that stay."""
        positions = [reader.position for reader in self.readers.values()]
        while len(starts) > 1:
            read = bool(positions) and min(positions) >= starts[1]
            if not read and not (max_files and len(starts) > max_files):
                break
            starts = starts[1:]
            self.first = starts[0]
        return starts
