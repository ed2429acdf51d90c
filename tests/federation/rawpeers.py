"""The other side, frame by frame, with an HTTP head of its own: what v0.11.0 puts on the wire."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent import socket
from gevent.queue import Queue
from gevent.server import StreamServer

from keyop.transport.dial import accept_key
from tests.transport.helpers import BINARY, PING, PONG, TEXT, Frame, Hand

# Whatever is waited for comes within a fraction of this, or never.
PATIENCE_S = 20.0

Wrap = Callable[[Any], Any]


def pack(*records: bytes) -> bytes:
    """Return a batch; the records may have their newlines."""
    lines = [each.rstrip(b"\n") for each in records]
    return b"".join(struct.pack(">I", len(line)) + line for line in lines)


def unpack(batch: bytes) -> list[bytes]:
    records = []
    while batch:
        (size,) = struct.unpack(">I", batch[:4])
        assert len(batch) >= 4 + size
        records.append(batch[4 : 4 + size])
        batch = batch[4 + size :]
    return records


class RawPeer(Hand):
    """One side of a connection, whose frames are made and read by hand."""

    def say(self, **fields: Any) -> None:
        """Send a text message."""
        self.send(TEXT, json.dumps(fields).encode())

    def batch(self, *records: bytes) -> None:
        self.send(BINARY, pack(*records))

    def frame(self) -> Frame:
        """Return the next frame, as it comes."""
        with gevent.Timeout(PATIENCE_S, AssertionError("no frame came")):
            return self.read()

    def message(self) -> Frame:
        """Return the next message, its fragments joined; pings are answered on the way."""
        found = self._data_frame()
        payload = found.payload
        while not found.fin:
            found = self._data_frame()
            payload += found.payload
        return found._replace(payload=payload)

    def _data_frame(self) -> Frame:
        while (found := self.frame()).opcode in (PING, PONG):
            if found.opcode == PING:
                self.send(PONG, found.payload)
        return found

    def hear(self) -> Any:
        """Return the next message, which is text."""
        found = self.message()
        assert found.opcode == TEXT, found
        return json.loads(found.payload)

    def take(self) -> list[bytes]:
        """Return the records of the next batch."""
        return unpack(self.message().payload)

    def closed(self) -> tuple[int, str]:
        """Return code and reason of the close frame that comes, whatever comes before it."""
        with gevent.Timeout(PATIENCE_S, AssertionError("no close came")):
            found = self.read_close()
        return found.close_code, found.close_reason

    def stays_silent(self, seconds: float = 0.15) -> None:
        """Insist that nothing comes for a while; what comes later than that is missed."""
        with gevent.Timeout(seconds, False):
            raise AssertionError(f"{self._data_frame()} came")


def _read_head(stream: Any) -> list[str]:
    # Byte by byte: frames may follow at once.
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        if not byte:
            raise EOFError(data)
        data += byte
    return data.decode("latin-1").split("\r\n")[:-2]


class RawGuest(RawPeer):
    """A client of a hub, connected and upgraded, that has said nothing yet.

    Args:
        wrap: puts TLS around the socket.
    """

    def __init__(self, address: str, wrap: Wrap | None = None) -> None:
        host, port = address.rsplit(":", 1)
        stream: Any = socket.create_connection((host, int(port)), PATIENCE_S)
        try:
            if wrap is not None:
                stream = wrap(stream)
            key = base64.b64encode(os.urandom(16)).decode()
            head = (
                "GET / HTTP/1.1",
                f"Host: {address}",
                "User-Agent: Go-http-client/1.1",
                "Connection: Upgrade",
                f"Sec-WebSocket-Key: {key}",
                "Sec-WebSocket-Version: 13",
                "Upgrade: websocket",
                "",
                "",
            )
            stream.sendall("\r\n".join(head).encode())
            answer = _read_head(stream)
            assert answer[0].startswith("HTTP/1.1 101 "), answer
            assert f"Sec-WebSocket-Accept: {accept_key(key)}" in answer
        except BaseException:
            stream.close()
            raise
        super().__init__(stream, masks=True)

    def greet(self, name: str, *subscribe: str, **more: Any) -> Any:
        """Say hello as v0.11.0 does, but for what is added; return the hub's."""
        if subscribe:
            more = {"subscribe": subscribe, **more}
        self.say(instance_name=name, role="client", version="1", **more)
        return self.hear()


@contextmanager
def raw_guest(address: str, *hello: str, wrap: Wrap | None = None) -> Iterator[RawGuest]:
    """Give a client; it has said hello with this name and these channels, if any is given."""
    guest = RawGuest(address, wrap)
    try:
        if hello:
            guest.greet(*hello)
        yield guest
    finally:
        guest.close()


class RawHub:
    """Listens, upgrades, and hands out connections in the order in which they come."""

    def __init__(self, wrap: Wrap | None = None) -> None:
        self._wrap = wrap
        self._came: Queue[RawPeer] = Queue()
        self._streams: list[Any] = []
        self._server = StreamServer(("127.0.0.1", 0), self._accept)
        self._server.start()
        self.address = f"127.0.0.1:{self._server.server_port}"

    def _accept(self, stream: Any, _: object) -> None:
        stream = stream.dup()  # the server closes its own when this returns
        self._streams.append(stream)
        try:
            if self._wrap is not None:
                stream = self._streams[-1] = self._wrap(stream)
            head = _read_head(stream)
            (key,) = (each for each in head if each.lower().startswith("sec-websocket-key:"))
            answer = (
                "HTTP/1.1 101 Switching Protocols",
                "Upgrade: websocket",
                "Connection: Upgrade",
                f"Sec-WebSocket-Accept: {accept_key(key.split(':', 1)[1].strip())}",
                "",
                "",
            )
            stream.sendall("\r\n".join(answer).encode())
        except (OSError, EOFError):
            return
        self._came.put(RawPeer(stream, masks=False))

    def next(self) -> RawPeer:
        """Wait for the next connection."""
        with gevent.Timeout(PATIENCE_S, AssertionError("nobody came")):
            return self._came.get()

    @property
    def waiting(self) -> int:
        """How many connections nobody has taken yet."""
        return self._came.qsize()

    def stop(self) -> None:
        """End, with every connection."""
        self._server.stop(timeout=0.1)
        for stream in self._streams:
            stream.close()


@contextmanager
def raw_hub(wrap: Wrap | None = None) -> Iterator[RawHub]:
    """Give a hub. To be left before its clients close, who would wait for its goodbye."""
    hub = RawHub(wrap)
    try:
        yield hub
    finally:
        hub.stop()
