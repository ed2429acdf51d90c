"""What comes on an open WebSocket connection, on either side of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from keyop.transport.reader import StreamReader
from keyop.transport.websocket import (
    ABNORMAL,
    BAD_UTF8,
    PROTOCOL_ERROR,
    TOO_BIG,
    Connection,
    WebSocketClosedError,
)
from tests.transport.helpers import CLOSE, PONG, Frame, Hand

from .streams import PIECES, WHOLE, Trickle

MAX_MESSAGE_BYTES = 1024
_STRANGER_BYTES = 256
_OWN_CODES = (PROTOCOL_ERROR, BAD_UTF8, TOO_BIG)


class Received(NamedTuple):
    """The messages that came, and how it ended."""

    messages: list[str | bytes]
    code: int
    reason: str
    remote: bool


def frames(data: bytes) -> None:
    """Feed both sides: what comes must not depend on the pieces that it comes in."""
    for client in (False, True):
        whole = receive(data, client)
        assert receive(data, client, PIECES) == whole, "in pieces it is something else"
        # A stranger is heard to the same end, or cut off on the way there.
        heard = receive(data, client, (16,), _STRANGER_BYTES)
        if len(data) <= _STRANGER_BYTES:
            assert heard == whole
        else:
            assert heard.messages == whole.messages[: len(heard.messages)]
        _check_round_trip(whole.messages, client)


def receive(
    data: bytes, client: bool, sizes: Sequence[int] = WHOLE, limit: int | None = None
) -> Received:
    """Return what a connection makes of these bytes, having checked what it answers."""
    stream: Any = Trickle(data, sizes)
    connection = Connection(stream, StreamReader(stream, limit), client, MAX_MESSAGE_BYTES)
    messages: list[str | bytes] = []
    try:
        while True:
            messages.append(connection.receive())
    except WebSocketClosedError as closed:
        received = Received(messages, closed.code, closed.reason, closed.remote)
    finally:
        connection.finish()
    for message in messages:
        size = len(message if isinstance(message, bytes) else message.encode())
        assert size <= MAX_MESSAGE_BYTES, f"a message of {size} bytes"
    assert received.remote or received.code in _OWN_CODES, received
    _check_answers(stream, client, received)
    return received


def _check_answers(stream: Trickle, client: bool, received: Received) -> None:
    """What was sent must be pongs and at most one close, the last thing of all."""
    assert stream.closed
    sent = sent_frames(bytes(stream.sent))
    closes = [number for number, each in enumerate(sent) if each.opcode == CLOSE]
    assert closes in ([], [len(sent) - 1]), sent
    assert bool(closes) == (received.code != ABNORMAL)
    for each in sent:
        assert each.opcode in (PONG, CLOSE), each
        assert each.fin
        assert each.masked == client
        assert len(each.payload) <= 125
    if closes and sent[-1].payload:
        assert received.code in (1005, sent[-1].close_code)
        assert len(sent[-1].close_reason) <= 123  # text, that is


def sent_frames(data: bytes) -> list[Frame]:
    """Return the frames that these bytes are, and nothing besides."""
    hand = Hand(Trickle(data), masks=False)
    found: list[Frame] = []
    size = 0
    while size < len(data):
        each = hand.read()
        head = 2 if len(each.payload) < 126 else 4 if len(each.payload) < 1 << 16 else 10
        size += head + len(each.payload) + 4 * each.masked
        found.append(each)
    assert size == len(data)
    return found


def _check_round_trip(messages: list[str | bytes], client: bool) -> None:
    """The messages, sent by the other side, must come as they were."""
    if not messages:
        return
    stream: Any = Trickle(b"")
    connection = Connection(stream, StreamReader(stream), not client, MAX_MESSAGE_BYTES)
    for message in messages:
        if isinstance(message, str):
            connection.send_text(message)
        else:
            connection.send_binary(message)
    sent = bytes(stream.sent)
    connection.drop()
    connection.finish()
    assert receive(sent, client).messages == messages
