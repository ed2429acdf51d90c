"""Which cursors keep their descriptors at the end of the log: those that have just read."""

from __future__ import annotations

from keyop.storage.cursor import Cursor

# Where many cursors wait, descriptors are scarcer than the time that opening takes.
SIZE = 64


class WarmCursors:
    """Some cursors that have read lately; their descriptors are closed when they cool."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._round = 0
        # In which round each was kept last.
        self._kept: dict[Cursor, int] = {}

    def keep(self, cursor: Cursor) -> None:
        """A cursor has read to the end of its log, and may have more to read soon."""
        if cursor not in self._kept and len(self._kept) >= self._size:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            oldest.close()
        self._kept[cursor] = self._round

    def discard(self, cursor: Cursor) -> None:
        """A cursor reads no more; close it."""
        self._kept.pop(cursor, None)
        cursor.close()

    def cool(self) -> None:
        """Close what was not kept again since this was called last."""
        for cursor in [each for each, kept in self._kept.items() if kept < self._round]:
            self.discard(cursor)
        self._round += 1
