"""Exact reads from a stream, with a bound on what a stranger may send."""

from __future__ import annotations

import errno
from time import monotonic

from keyop.pace import Pace
from keyop.transport.tls import RECORD_BYTES, Stream


class TooMuchError(OSError):
    """The other side has sent more than it may before it is known."""


class EndOfStreamError(ConnectionError):
    """The connection ended in the middle of something."""


class StreamReader:
    """A buffered reader of a stream. ``limit`` is how many bytes it takes in all, None for any."""

    closed = False  # a part of a file's interface; the stream has another owner

    def __init__(self, stream: Stream, limit: int | None = None) -> None:
        self._stream = stream
        self._buffer = b""
        self._position = 0
        self._left = limit
        self._pace = Pace()
        # When bytes came last, in ``time.monotonic()`` seconds.
        self.heard_at = monotonic()

    def lift_limit(self) -> None:
        """The other side is known now: any number of bytes may come."""
        self._left = None

    def _fill(self) -> bool:
        """Append what has come to the buffer; return whether anything has."""
        # Where bytes come faster than they are read, reading them never waits.
        self._pace.step()
        data = self._stream.recv(4 * RECORD_BYTES)
        self.heard_at = monotonic()
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise TooMuchError(errno.EMSGSIZE, "too many bytes before the handshake was done")
        self._buffer = self._buffer[self._position :] + data
        self._position = 0
        return bool(data)

    def read(self, size: int) -> bytes:
        """Return exactly ``size`` bytes.

        Raises:
            EndOfStreamError: the stream ends before.
            OSError: it breaks.
        """
        end = self._position + size
        if end <= len(self._buffer):
            data = self._buffer[self._position : end]
            self._position = end
            return data
        pieces = [self._buffer[self._position :]]
        missing = size - len(pieces[0])
        self._buffer, self._position = b"", 0
        while missing > 0:
            if not self._fill():
                raise EndOfStreamError("the connection ended")
            piece = self._buffer[:missing]
            self._position = len(piece)
            missing -= len(piece)
            pieces.append(piece)
            if missing:
                self._buffer, self._position = b"", 0
        return b"".join(pieces)

    def readline(self, limit: int = -1) -> bytes:
        """Return a line with its newline, at most ``limit`` bytes of it; what is left at the end.

        Raises:
            OSError: the stream breaks.
        """
        while True:
            newline = self._buffer.find(b"\n", self._position)
            end = len(self._buffer) if newline < 0 else newline + 1
            if 0 <= limit <= end - self._position:
                end = self._position + limit
            elif newline < 0 and self._fill():
                continue
            else:
                end = len(self._buffer) if newline < 0 else newline + 1
            line = self._buffer[self._position : end]
            self._position = end
            return line

    def close(self) -> None:
        """Nothing to do, as for ``closed``."""
