"""What the tests of connections share: pairs of sockets, a peer whose frames are made by hand."""

from __future__ import annotations

import socket as flags
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gevent
from gevent import socket

from keyop.transport.masking import mask_bytes
from keyop.transport.reader import StreamReader
from keyop.transport.websocket import Connection

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
HUB, CLIENT = "hub", "client"
MASK = b"\x12\x34\xa5\xff"


def wait_until(condition: Callable[[], Any], timeout: float = 20, what: str = "") -> Any:
    """Let other greenlets run until the condition holds; return what it returned."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or condition}"
        gevent.sleep(0.002)
    return result


def tcp_pair(buffer_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection on loopback; 0 leaves the buffers to the system."""
    with socket.socket() as listening, socket.socket() as near:
        if buffer_bytes:
            near.setsockopt(flags.SOL_SOCKET, flags.SO_SNDBUF, buffer_bytes)
            listening.setsockopt(flags.SOL_SOCKET, flags.SO_RCVBUF, buffer_bytes)
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        near.connect(listening.getsockname())
        far, _ = listening.accept()
        near = near.dup()
    for each in (near, far):
        each.setsockopt(flags.IPPROTO_TCP, flags.TCP_NODELAY, 1)
    return near, far


def small_pair() -> tuple[socket.socket, socket.socket]:
    """Return a TCP connection whose first end can send no more than some 100 KB unread."""
    return tcp_pair(16 << 10)


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    mask: bytes | None = None,
    reserved: int = 0,
    declared: int | None = None,
    width: int | None = None,
) -> bytes:
    """Return one frame.

    Args:
        mask: four bytes, or None for no masking.
        reserved: the reserved bits, as they stand in the first byte.
        declared: another length than the payload has.
        width: how many bytes the length takes in place of the fewest: 0, 2 or 8.
    """
    length = len(payload) if declared is None else declared
    if width is None:
        width = 0 if length < 126 else 2 if length < 1 << 16 else 8
    code = {0: length, 2: 126, 8: 127}[width]
    data = bytes([(0x80 if fin else 0) | reserved | opcode, (0x80 if mask else 0) | code])
    data += {0: b"", 2: struct.pack("!H", length & 0xFFFF), 8: struct.pack("!Q", length)}[width]
    return data + (mask + mask_bytes(payload, mask) if mask else payload)


class Frame(NamedTuple):
    """One frame, as it came, in the clear."""

    opcode: int
    payload: bytes
    fin: bool
    masked: bool

    @property
    def close_code(self) -> int:
        assert self.opcode == CLOSE, self
        return int(struct.unpack("!H", self.payload[:2])[0])

    @property
    def close_reason(self) -> str:
        return self.payload[2:].decode()


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", code) + reason


class Hand:
    """The other side of a connection: sends what it is told to, right or wrong, and reads frames.

    Args:
        masks: whether it is a client, which has to mask.
    """

    def __init__(self, stream: Any, masks: bool) -> None:
        self.stream = stream
        self.masks = masks

    def raw(self, data: bytes) -> None:
        self.stream.sendall(data)

    def send(self, opcode: int, payload: bytes = b"", **changes: Any) -> None:
        """Send a frame, masked as this side has to unless told otherwise."""
        changes.setdefault("mask", MASK if self.masks else None)
        self.raw(frame(opcode, payload, **changes))

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.stream.recv(min(size - len(data), 1 << 16))
            if not piece:
                raise EOFError(f"{len(data)} of {size} bytes")
            data += piece
        return data

    def read(self) -> Frame:
        """Return the next frame.

        Raises:
            EOFError: the connection has ended.
        """
        first, second = self.exactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self.exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.exactly(8))
        mask = self.exactly(4) if second & 0x80 else b""
        payload = self.exactly(length)
        assert not first & 0x70
        return Frame(
            first & 0x0F,
            mask_bytes(payload, mask) if mask else payload,
            bool(first & 0x80),
            bool(mask),
        )

    def read_close(self) -> Frame:
        """Return the close frame that comes, whatever comes before it."""
        while (found := self.read()).opcode != CLOSE:
            pass
        return found

    def at_end(self) -> bool:
        """Wait for the end, and tell whether nothing came before it."""
        try:
            return self.stream.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.stream.close()


@contextmanager
def by_hand(
    role: str,
    max_message_bytes: int = 1 << 20,
    limit: int | None = None,
    sockets: Callable[[], tuple[Any, Any]] = socket.socketpair,
) -> Iterator[tuple[Connection, Hand]]:
    """Give a connection in a role, and its other side by hand; both are closed at the end."""
    near, far = sockets()
    connection = Connection(near, StreamReader(near, limit), role == CLIENT, max_message_bytes)
    hand = Hand(far, role == HUB)
    try:
        yield connection, hand
    finally:
        hand.close()
        connection.drop()
        connection.finish()


@contextmanager
def spawned(function: Callable[..., Any], *args: Any) -> Iterator[gevent.Greenlet[..., Any]]:
    """Run something beside the block, and kill it at the end."""
    greenlet = gevent.spawn(function, *args)
    try:
        yield greenlet
    finally:
        greenlet.kill()
