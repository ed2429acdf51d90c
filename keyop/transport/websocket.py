"""WebSocket messages over a stream: gevent-websocket's framing, hardened, for both sides.

What a stranger declares is checked before a byte of it is read; frames of one connection never
interleave; closing says why, and waits until that has arrived.
"""

from __future__ import annotations

import codecs
import io
import os
import struct
from collections import deque
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from geventwebsocket.websocket import Header, WebSocket

from keyop.errand import Errand
from keyop.logs import escape_control
from keyop.transport.masking import mask_bytes
from keyop.transport.reader import EndOfStreamError, StreamReader, TooMuchError
from keyop.transport.tls import Stream

NORMAL, GOING_AWAY, PROTOCOL_ERROR, WRONG_KIND, BAD_UTF8, TOO_BIG, INTERNAL_ERROR = (
    1000, 1001, 1002, 1003, 1007, 1009, 1011,
)  # fmt: skip
ABNORMAL = 1006
_NO_STATUS = 1005
_MAX_CONTROL_BYTES = 125
# Of pings that come faster than their answers go, the oldest are not answered.
_MAX_PONGS_DUE = 64
# Larger messages go in several frames, so that pings, pongs and a close pass in between.
_FRAGMENT_BYTES = 256 << 10
# How long a close may take. The peer may be sending: ending the connection at once would destroy
# the reason that it has not read yet. Or it does not read, and the reason cannot be sent.
DRAIN_S = 2.0


class WebSocketClosedError(ConnectionError):
    """The connection is closed: why (``code``, ``reason``), and whether by the other side."""

    def __init__(self, code: int, reason: str, remote: bool) -> None:
        super().__init__(f"closed ({code}{': ' + reason if reason else ''})")
        self.code = code
        self.reason = reason
        self.remote = remote


class _Violation(Exception):
    """The other side broke the protocol; ``args`` are the close code and what it did."""


class FrameHeader(Header):  # type: ignore[misc] # gevent-websocket has no annotations
    """A frame's header, checked as it is read."""

    __slots__ = ()

    @classmethod
    def read(cls, reader: StreamReader, masked: bool, room: int) -> FrameHeader:
        """Read a header.

        Args:
            masked: whether the other side has to mask.
            room: how many bytes of payload a frame may declare.
        """
        first, second = reader.read(2)
        header = cls(
            fin=bool(first & cls.FIN_MASK),
            opcode=first & cls.OPCODE_MASK,
            flags=first & cls.HEADER_FLAG_MASK,
            length=second & cls.LENGTH_MASK,
        )
        if header.flags:
            raise _Violation(PROTOCOL_ERROR, "reserved bits are set")
        if header.opcode not in _OPCODES:
            raise _Violation(PROTOCOL_ERROR, f"opcode {header.opcode} is reserved")
        if bool(second & cls.MASK_MASK) != masked:
            raise _Violation(PROTOCOL_ERROR, "a frame is masked wrongly")
        if header.opcode >= WebSocket.OPCODE_CLOSE:
            if not header.fin or header.length > _MAX_CONTROL_BYTES:
                raise _Violation(PROTOCOL_ERROR, "a control frame is fragmented or too long")
        elif header.length == 126:
            (header.length,) = struct.unpack("!H", reader.read(2))
        elif header.length == 127:
            (header.length,) = struct.unpack("!Q", reader.read(8))
        if header.length > room:
            raise _Violation(TOO_BIG, f"a frame of {header.length} bytes is too large")
        if masked:
            header.mask = reader.read(4)
        return header

    def unmask_payload(self, payload: bytes) -> bytes:
        """Return the payload in the clear."""
        return mask_bytes(payload, self.mask) if self.mask else payload

    mask_payload = unmask_payload


_OPCODES = {
    WebSocket.OPCODE_CONTINUATION,
    WebSocket.OPCODE_TEXT,
    WebSocket.OPCODE_BINARY,
    WebSocket.OPCODE_CLOSE,
    WebSocket.OPCODE_PING,
    WebSocket.OPCODE_PONG,
}


class Connection(WebSocket):  # type: ignore[misc] # as above
    """An open WebSocket connection. One greenlet reads; any may send.

    Args:
        client: whether this side masks, and the other one must not.
        max_message_bytes: the largest message that is taken; may be changed at any time.
    """

    __slots__ = (
        "_client",
        "_close_received",
        "_close_sent",
        "_closed_by",
        "_due",
        "_farewell",
        "_reader",
        "_sending",
        "_signs_of_life",
        "_stream",
        "_timer",
        "_torn",
        "_unsent",
        "max_message_bytes",
    )

    def __init__(
        self, stream: Stream, reader: StreamReader, client: bool, max_message_bytes: int
    ) -> None:
        super().__init__(None, _Ends(stream, reader), None)
        self._stream = stream
        self._reader = reader
        self._client = client
        self._sending = BoundedSemaphore(1)
        # Why this side closes, once it does; from then on, nothing but that is sent.
        self._close_sent: tuple[int, str] | None = None
        self._farewell = b""
        self._close_received = False
        self._closed_by: WebSocketClosedError | None = None
        self._timer: Any = None
        # What is left of a frame whose sender was stopped; whoever sends next sends it first.
        self._unsent = memoryview(b"")
        # A message whose sender was stopped between two of its frames.
        self._torn = False
        self.max_message_bytes = max_message_bytes
        # Who reads never waits for a send, nor does who looks after many connections: pings, pongs
        # and the close have a greenlet of their own when they are due.
        self._due: deque[tuple[bytes, int]] = deque(maxlen=_MAX_PONGS_DUE)
        self._signs_of_life = Errand("keyop-ping", self._send_due)

    def __del__(self) -> None:
        """Nothing is sent for a connection that was forgotten; its owner closes it."""

    @property
    def heard_at(self) -> float:
        """When bytes came last, in ``time.monotonic()`` seconds."""
        return self._reader.heard_at

    def trust(self, max_message_bytes: int) -> None:
        """The other side is no stranger any more: it may send messages of up to so many bytes."""
        self._reader.lift_limit()
        self.max_message_bytes = max_message_bytes

    # -- receiving

    def receive(self) -> str | bytes:
        """Return the next message: text or binary.

        Pings are answered on the way. Once this side has closed, messages that were under way are
        passed over.

        Raises:
            WebSocketClosedError: the connection is closed, by either side, cleanly or not; it
                needs :meth:`finish` still.
        """
        if self._closed_by is not None:
            raise self._closed_by
        try:
            while True:
                message = self.read_message()
                if self._close_sent is None:
                    return message
        except _Violation as violation:
            self._closed_by = self._fail(*violation.args)
        except TooMuchError as error:
            self._closed_by = self._fail(TOO_BIG, error.strerror or "")
        except WebSocketClosedError as closed:
            self._closed_by = closed
        except OSError as error:
            if self._close_sent is not None:
                self._closed_by = WebSocketClosedError(*self._close_sent, False)
            else:
                self._closed_by = WebSocketClosedError(ABNORMAL, _words(error), True)
                self._closed_by.__cause__ = error
        raise self._closed_by

    def _fail(self, code: int, reason: str) -> WebSocketClosedError:
        self.close(code, reason)
        return WebSocketClosedError(code, reason, False)

    def read_message(self) -> str | bytes:
        """Read one message, however many frames it comes in."""
        opcode, size = 0, 0
        whole: _Binary | _Text | None = None
        while True:
            room = max(_MAX_CONTROL_BYTES, self.max_message_bytes - size)
            header = FrameHeader.read(self._reader, not self._client, room)
            payload = header.unmask_payload(self._reader.read(header.length))
            if header.opcode >= self.OPCODE_CLOSE:
                self._take_control(header.opcode, payload)
                continue
            if bool(opcode) == bool(header.opcode):
                raise _Violation(PROTOCOL_ERROR, "fragments of messages are mixed")
            opcode = opcode or header.opcode
            size += len(payload)
            if size > self.max_message_bytes:
                raise _Violation(TOO_BIG, f"a message of more than {self.max_message_bytes} bytes")
            if whole is None:
                if header.fin and opcode == self.OPCODE_BINARY:
                    return payload
                whole = _Binary() if opcode == self.OPCODE_BINARY else _Text()
            whole.add(payload, header.fin)
            if header.fin:
                return whole.value()

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == self.OPCODE_PING:
            self._due.append((payload, self.OPCODE_PONG))
            self._signs_of_life.call()
        elif opcode == self.OPCODE_CLOSE:
            code, reason = _parse_close(payload)
            self._close_received = True
            if self._close_sent is not None:  # this is the answer
                raise WebSocketClosedError(*self._close_sent, False)
            self.close(NORMAL if code == _NO_STATUS else code, reason)
            raise WebSocketClosedError(code, reason, True)

    # -- sending

    def send_frame(self, message: bytes, opcode: int) -> None:
        """Send one message whole, after those of others.

        Raises:
            OSError: it was not sent, or not all of it.
        """
        with self._sending:
            if self._close_sent is not None:
                raise WebSocketClosedError(*self._close_sent, False)
            if self._torn:
                raise ConnectionError("a message before this one was cut short")
            self._write_due()  # a pong does not come after what answers a later message
            if len(message) <= _FRAGMENT_BYTES:
                self._write(message, opcode)
                return
            self._torn = True
            rest = memoryview(message)
            while len(rest) > _FRAGMENT_BYTES:
                self._write(bytes(rest[:_FRAGMENT_BYTES]), opcode, last=False)
                opcode, rest = self.OPCODE_CONTINUATION, rest[_FRAGMENT_BYTES:]
                self._write_due()
                if self._close_sent is not None:
                    raise WebSocketClosedError(*self._close_sent, False)
            self._write(bytes(rest), opcode)
            self._torn = False

    def _write(self, message: bytes, opcode: int, last: bool = True) -> None:
        self._flush()
        mask = os.urandom(4) if self._client else b""
        header = Header.encode_header(last, opcode, mask, len(message), 0)
        self._unsent = memoryview(bytes(header) + (mask_bytes(message, mask) if mask else message))
        self._flush()

    def _flush(self) -> None:
        while self._unsent:
            self._unsent = self._unsent[self._stream.send(self._unsent) :]

    def _send_due(self) -> None:
        try:
            with self._sending:
                self._write_due()
                if self._farewell:
                    farewell, self._farewell = self._farewell, b""
                    self._write(farewell, self.OPCODE_CLOSE)
        except OSError:
            # Whoever reads finds out. What cannot be said goodbye to is gone.
            if self._close_sent is not None:
                self._stream.close()

    def _write_due(self) -> None:
        """Send the pings and pongs that are due, between two frames."""
        while self._due and self._close_sent is None:
            self._write(*self._due.popleft())

    def send_text(self, text: str) -> None:
        """Send a text message.

        Raises:
            OSError: it was not sent, or not all of it.
        """
        self.send_frame(text.encode(), self.OPCODE_TEXT)

    def send_binary(self, data: bytes) -> None:
        """Send a binary message.

        Raises:
            OSError: it was not sent, or not all of it.
        """
        self.send_frame(data, self.OPCODE_BINARY)

    def ping(self) -> None:
        """Ask the other side for a sign of life, without waiting."""
        self._due.append((b"", self.OPCODE_PING))
        self._signs_of_life.call()

    def drop(self) -> None:
        """End the connection without a word to the other side, which does not listen."""
        self._stream.close()

    # -- ending

    def close(self, code: int = NORMAL, message: str = "") -> None:
        """Tell the other side why this ends, without waiting: neither for room nor for an answer.

        Whoever reads goes on until the answer has come, and then calls :meth:`finish`. After two
        seconds the connection ends in any case.
        """
        if self._close_sent is not None:
            return
        reason = message.encode()[: _MAX_CONTROL_BYTES - 2].decode("utf-8", "ignore")
        self._close_sent = code, reason
        self._farewell = struct.pack("!H", code) + reason.encode()
        self._timer = gevent.get_hub().loop.timer(DRAIN_S)
        self._timer.start(self._stream.close)
        self._signs_of_life.call()

    def finish(self) -> None:
        """Give the stream back, once the other side has read why; called by whoever reads."""
        try:
            if self._closed_by is None or self._closed_by.code != ABNORMAL:
                self.close()
                # A client leaves it to the hub to end the connection: RFC 6455, section 7.1.1.
                if self._client or not self._close_received:
                    self._drain()
                self._signs_of_life.join()
        finally:
            if self._timer is not None:
                self._timer.close()
            self._stream.close()
            self._signs_of_life.stop()

    def _drain(self) -> None:
        """Read and forget what was under way, until the other side ends or time is up."""
        try:
            while self._stream.recv(1 << 16):
                pass
        except OSError:
            pass


class _Binary:
    """A message that comes in several frames, in one buffer: pieces cost more than they hold."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, payload: bytes, last: bool) -> None:
        self._data += payload

    def value(self) -> bytes:
        return bytes(self._data)


class _Text:
    """A text message, checked as it comes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = io.StringIO()

    def add(self, payload: bytes, last: bool) -> None:
        try:
            self._text.write(self._decoder.decode(payload, last))
        except UnicodeDecodeError:
            raise _Violation(BAD_UTF8, "text that is not UTF-8") from None

    def value(self) -> str:
        return self._text.getvalue()


class _Ends:
    """The two ends of a stream, as gevent-websocket wants them."""

    def __init__(self, stream: Stream, reader: StreamReader) -> None:
        self.read = reader.read
        self.write = stream.sendall


def _parse_close(payload: bytes) -> tuple[int, str]:
    if not payload:
        return _NO_STATUS, ""
    if len(payload) == 1:
        raise _Violation(PROTOCOL_ERROR, "a close frame with half a code")
    (code,) = struct.unpack("!H", payload[:2])
    try:
        reason = payload[2:].decode()
    except UnicodeDecodeError:
        raise _Violation(BAD_UTF8, "a reason that is not UTF-8") from None
    known = 1000 <= code <= 1003 or 1007 <= code <= 1014
    if not (known or 3000 <= code <= 4999):
        raise _Violation(PROTOCOL_ERROR, f"close code {code}")
    return code, escape_control(reason)  # it goes into logs, of whichever kind


def _words(error: OSError) -> str:
    if isinstance(error, EndOfStreamError):
        return "the connection ended without a goodbye"
    return error.strerror or str(error)
