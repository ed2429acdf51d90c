"""A TCP proxy between instances: a network that is cut, stalls, crawls and flips bits on demand."""

from __future__ import annotations

import socket as flags
import struct
from types import TracebackType

import gevent
from gevent.event import Event
from gevent.server import StreamServer
from gevent.socket import create_connection, socket

# From whoever dialled to the target, and back.
UP, DOWN = "up", "down"
BOTH = (UP, DOWN)

_CHUNK_BYTES = 64 << 10
# A slow network passes on so many pieces in a second.
_PIECES_PER_S = 50


class _Connection:
    """One that was dialled, and what passes it on."""

    def __init__(self, near: socket, far: socket) -> None:
        self.ends = (near, far)
        self.abandoned = False

    def cut(self) -> None:
        """End it as a network does: what is under way is gone, and nobody is told goodbye."""
        for end in self.ends:
            try:
                end.setsockopt(flags.SOL_SOCKET, flags.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(flags.SHUT_RD)  # wakes whoever reads it
            except OSError:
                pass
            end.close()


class Proxy:
    """Passes bytes on to ``target``, ``host:port``, which may change at any time.

    Without a target, or where nobody answers there, connections end at once. For greenlets of one
    thread.

    Attributes:
        address: where it listens.
        connections: how many were passed on to the target so far.
        passed: bytes in each direction so far.
        cuts: how many connections ``cut_after`` has cut so far.
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.connections = 0
        self.passed = {UP: 0, DOWN: 0}
        self.cuts = 0
        self._open: set[_Connection] = set()
        self._moving = {UP: Event(), DOWN: Event()}
        self._rates: dict[str, float | None] = {UP: None, DOWN: None}
        self._flips = {UP: 0, DOWN: 0}
        # Cut when so many more bytes have passed in a direction.
        self._left: dict[str, int | None] = {UP: None, DOWN: None}
        self.go_on()
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._passing: set[gevent.Greenlet[..., None]] = set()

    # -- what the network does

    def cut(self) -> int:
        """Cut every connection, in the middle of whatever passes; return how many."""
        count = len(self._open)
        for each in list(self._open):
            each.cut()
        return count

    def cut_after(self, direction: str, size: int) -> None:
        """Cut whichever connection passes the last of so many bytes more, once."""
        self._left[direction] = size

    def abandon(self) -> None:
        """Nothing passes on the connections there are any more, and nobody is told; new ones work.

        What a router that was switched off leaves: both sides believe in the connection.
        """
        for each in self._open:
            each.abandoned = True

    def stall(self, *directions: str) -> None:
        """Nothing passes in these directions (both, if none is named) before ``go_on``."""
        for direction in directions or BOTH:
            self._moving[direction].clear()

    def slow(self, bytes_per_s: float, *directions: str) -> None:
        """Pass on no more than so many bytes in a second, on each connection."""
        for direction in directions or BOTH:
            self._rates[direction] = bytes_per_s

    def go_on(self) -> None:
        """Neither stall nor be slow any more."""
        for direction in BOTH:
            self._moving[direction].set()
            self._rates[direction] = None

    def flip(self, direction: str, count: int = 1) -> None:
        """Flip a bit in the next so many pieces that pass."""
        self._flips[direction] += count

    @property
    def unflipped(self) -> int:
        """How many pieces are still to come in which a bit is to be flipped."""
        return sum(self._flips.values())

    @property
    def open(self) -> int:
        """How many connections there are that something passes on."""
        return sum(not each.abandoned for each in self._open)

    # -- passing on

    def _serve(self, near: socket, _: object) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            far = create_connection((host, int(port)), 5)
        except (OSError, ValueError):
            near.close()
            return
        far.settimeout(None)
        for end in (near, far):
            end.setsockopt(flags.IPPROTO_TCP, flags.TCP_NODELAY, 1)
        self.connections += 1
        connection = _Connection(near, far)
        self._open.add(connection)
        passing = [
            gevent.spawn(self._pass, connection, near, far, UP),
            gevent.spawn(self._pass, connection, far, near, DOWN),
        ]
        self._passing.update(passing)
        try:
            gevent.joinall(passing)
        finally:
            gevent.killall(passing)
            self._passing.difference_update(passing)
            self._open.discard(connection)
            for end in connection.ends:
                end.close()

    def _pass(self, connection: _Connection, source: socket, sink: socket, direction: str) -> None:
        try:
            while data := source.recv(self._piece(direction)):
                data = self._flipped(data, direction)
                rate = self._rates[direction]
                if rate is not None:
                    gevent.sleep(len(data) / rate)
                self._moving[direction].wait()
                if connection.abandoned:
                    Event().wait()
                last = self._count(direction, len(data))
                sink.sendall(data[:last])
                self.passed[direction] += len(data[:last])
                if last is not None:
                    connection.cut()
                    return
            sink.shutdown(flags.SHUT_WR)
        except OSError:
            connection.cut()

    def _count(self, direction: str, size: int) -> int | None:
        """Return how many of these bytes still pass before a cut; None if there is none in them."""
        left = self._left[direction]
        if left is None or left > size:
            self._left[direction] = None if left is None else left - size
            return None
        self._left[direction] = None
        self.cuts += 1
        return left

    def _piece(self, direction: str) -> int:
        rate = self._rates[direction]
        return _CHUNK_BYTES if rate is None else max(1, int(rate / _PIECES_PER_S))

    def _flipped(self, data: bytes, direction: str) -> bytes:
        if not self._flips[direction]:
            return data
        self._flips[direction] -= 1
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]

    # -- life

    def close(self) -> None:
        """End, with every connection."""
        self._server.stop(timeout=0.1)
        self.cut()
        gevent.killall(list(self._passing))

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
