"""A connection without a network: what comes is there already, and what is sent is kept."""

from __future__ import annotations

import errno
import itertools
import socket as flags
from collections.abc import Sequence

WHOLE = (1 << 16,)
# The same bytes in uneven pieces, which end within whatever they can end within.
PIECES = (1, 1, 2, 1, 3, 1, 1, 90)
_PEEK = int(flags.MSG_PEEK)


class Trickle:
    """A stream on which these bytes come in pieces of these sizes, in turn, and then the end."""

    def __init__(self, data: bytes, sizes: Sequence[int] = WHOLE) -> None:
        self._data = data
        self._sizes = itertools.cycle(sizes)
        self.sent = bytearray()
        self.closed = False

    def recv(self, size: int, how: int = 0) -> bytes:
        if how & _PEEK:
            return self._data[:size]
        size = min(size, next(self._sizes))
        data, self._data = self._data[:size], self._data[size:]
        return data

    def send(self, data: bytes | memoryview) -> int:
        if self.closed:
            raise OSError(errno.EBADF, "the stream is closed")
        self.sent += data
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.send(data)

    def setsockopt(self, *option: int) -> None:
        """Nothing to set."""

    def close(self) -> None:
        self.closed = True
        self._data = b""
