"""Lines from stdin as they come, and lines to stdout, letting other greenlets run meanwhile.

Neither descriptor is made non-blocking, because a terminal or a pipe is shared with others, which
would find theirs changed too.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable, Iterator

import click
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original
from gevent.socket import wait_read, wait_write

_READ_BYTES = 256 << 10
# A pipe that poll calls writable takes so many bytes without blocking: POSIX, "PIPE_BUF".
_ATOMIC_BYTES = select.PIPE_BUF

_poll = get_original("select", "poll")


class LineError(click.ClickException):
    """A line of stdin cannot be sent."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number} of stdin: {reason}")


class LineTooLongError(Exception):
    """A line has more bytes than a record may have; nothing of it was returned."""


def read_chunks(max_line_bytes: int) -> Iterator[list[bytes]]:
    """Yield the lines of stdin, without their newlines, in groups as they become available.

    Raises:
        LineTooLongError: after all lines before that one.
    """
    read = _stdin_reader()
    pieces: list[bytes] = []
    size = 0
    while data := read():
        end = data.rfind(b"\n")
        if end >= 0:
            pieces.append(data[:end])
            lines = b"".join(pieces).split(b"\n")
            pieces, size, data = [], 0, data[end + 1 :]
            yield lines
        pieces.append(data)
        size += len(data)
        if size > max_line_bytes:
            raise LineTooLongError(
                f"more than {max_line_bytes} bytes, which storage.max_record_bytes allows"
            )
    if size:
        yield [b"".join(pieces)]


def read_lines(max_line_bytes: int) -> Iterator[bytes | None]:
    """Yield the lines of stdin, without their newlines; None for one that is too long."""
    read = _stdin_reader()
    pieces: list[bytes] = []
    size = 0
    while data := read():
        *ends, rest = data.split(b"\n")
        for end in ends:
            size += len(end)
            yield b"".join([*pieces, end]) if size <= max_line_bytes else None
            pieces, size = [], 0
        size += len(rest)
        # Of a line that is too long nothing is kept.
        pieces = [*pieces, rest] if size <= max_line_bytes else []
    if size:
        yield b"".join(pieces) if size <= max_line_bytes else None


def stdin_size() -> int | None:
    """Return how many bytes stdin has, if it is a file."""
    try:
        status = os.fstat(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError):  # closed, or not a file: a test's
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _stdin_reader() -> Callable[[], bytes]:
    """Return a function that returns what stdin has, waiting for something; b"" at its end."""
    if sys.stdin is None:
        raise click.ClickException("stdin is closed")
    try:
        fd = sys.stdin.fileno()
    except (OSError, ValueError):  # not a file: a test's
        buffer = sys.stdin.buffer
        return lambda: buffer.read(_READ_BYTES)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return lambda: os.read(fd, _READ_BYTES)

    def read() -> bytes:
        while True:
            wait_read(fd)
            try:
                return os.read(fd, _READ_BYTES)
            except BlockingIOError:  # somebody else who has it open read it first
                continue

    return read


class LineWriter:
    """Writes lines to stdout, whole, one after the other, only as fast as its reader reads."""

    def __init__(self) -> None:
        self._turn = BoundedSemaphore()
        self._fd = -1
        self._waits = False
        if sys.stdout is None:
            raise click.ClickException("stdout is closed")
        try:
            self._fd = sys.stdout.fileno()
        except (OSError, ValueError):  # not a file: a test's
            self._buffer = sys.stdout.buffer
            return
        self._waits = not stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._poll = _poll()
        self._poll.register(self._fd, select.POLLOUT)

    def write(self, line: bytes) -> None:
        """Write one line; only the calling greenlet waits.

        Raises:
            OSError: not all of it was written; a broken pipe is one.
        """
        with self._turn:
            if self._fd < 0:
                self._buffer.write(line)
                self._buffer.flush()
                return
            while line:
                if not self._waits:
                    line = line[os.write(self._fd, line) :]
                    continue
                if not self._poll.poll(0):
                    wait_write(self._fd)
                try:
                    line = line[os.write(self._fd, line[:_ATOMIC_BYTES]) :]
                except BlockingIOError:
                    wait_write(self._fd)

    @property
    def broken(self) -> bool:
        """Whether nobody reads what is written any more."""
        if not self._waits:
            return False
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in self._poll.poll(0))
