"""What somebody sends who connects to a hub: the request that makes it a WebSocket connection."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gevent

from keyop.transport.accept import Accepted, Listener
from keyop.transport.dial import MAX_STRANGER_BYTES, accept_key
from keyop.transport.websocket import WebSocketClosedError

from .frames import MAX_MESSAGE_BYTES, Received, receive
from .streams import PIECES, WHOLE, Trickle

_PATIENCE_S = 20.0
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) [A-Za-z ]+\r\n")
_DATE = re.compile(rb"Date: [^\r]*\r\n")


class Outcome(NamedTuple):
    """What was answered, and what came over the connection, if there was one."""

    answer: bytes
    received: Received | None


class Door:
    """A hub's listener without a socket to listen on."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.received: list[Received] = []
        self.listener = Listener(
            "127.0.0.1:0",
            lambda: None,
            self._serve,
            lambda address, reason: self.refused.append(reason),
            4,
        )

    def _serve(self, accepted: Accepted) -> None:
        connection = accepted.connection
        assert (accepted.peer, accepted.certificate) == ("", None)
        accepted.known(MAX_MESSAGE_BYTES)
        messages: list[str | bytes] = []
        try:
            while True:
                messages.append(connection.receive())
        except WebSocketClosedError as closed:
            self.received.append(Received(messages, closed.code, closed.reason, closed.remote))
        finally:
            connection.finish()

    def enter(self, data: bytes, sizes: tuple[int, ...]) -> Outcome:
        """Come with these bytes; return what became of it."""
        self.refused.clear()
        self.received.clear()
        stream: Any = Trickle(data, sizes)
        self.listener.handle(stream, ("127.0.0.1", 1))
        with gevent.Timeout(_PATIENCE_S, AssertionError("the connection is not ended")):
            while not stream.closed:
                gevent.sleep(0)
        sent = bytes(stream.sent)
        assert len(self.listener.pending) == 0, "a stranger is left"
        if self.received:
            assert not self.refused
            answer = sent[: sent.index(b"\r\n\r\n") + 4]
        else:
            assert len(self.refused) == bool(data)
            answer = sent
        return Outcome(_DATE.sub(b"", answer), self.received[0] if self.received else None)

    def close(self) -> None:
        """Take nobody in any more."""
        self.listener.end(0.1)


@contextmanager
def upgrades(directory: Path) -> Iterator[Callable[[bytes], None]]:
    """Give what takes all that a stranger sends: a connection for a right request, or an error."""
    door = Door()

    def feed(data: bytes) -> None:
        whole = door.enter(data, WHOLE)
        if len(data) <= MAX_STRANGER_BYTES:
            assert door.enter(data, PIECES) == whole, "in pieces it is something else"
        if whole.received is not None:
            _check_upgrade(data, whole)
        elif whole.answer:
            found = _STATUS.match(whole.answer)
            assert found is not None, whole.answer[:200]
            assert 400 <= int(found[1]) < 500, found[0]
            assert len(whole.answer) < 2000

    try:
        yield feed
    finally:
        door.close()


def _check_upgrade(data: bytes, outcome: Outcome) -> None:
    """It must have been asked for as RFC 6455 has it, and what follows must be read as frames."""
    assert outcome.answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    # The head ends with an empty line, or with all that comes.
    lines = [*re.findall(rb"[^\n]*\n|[^\n]+", data), b"\n"]
    request = lines[0].decode("latin-1").split()
    assert request[0] == "GET"
    assert request[2:] == ["HTTP/1.1"]
    end = next(number for number, each in enumerate(lines) if number and each in (b"\r\n", b"\n"))
    head = b"".join(lines[1:end])
    for name in (b"upgrade", b"connection", b"sec-websocket-version", b"sec-websocket-key"):
        assert re.search(rb"(?im)^" + name + rb"[ \t]*:", head), name
    keys = re.findall(rb"[A-Za-z0-9+/]{22}==", head)
    accepts = [f"Sec-WebSocket-Accept: {accept_key(each.decode())}\r\n".encode() for each in keys]
    assert any(each in outcome.answer for each in accepts)
    assert all(len(base64.b64decode(each)) == 16 for each in keys)
    rest = data[sum(map(len, lines[: end + 1])) :]
    assert outcome.received == receive(rest, False)
