"""Connections against a peer whose frames are made by hand: what is taken, what is refused, how.

Each rule of docs/wire.md, "Frames", in both roles; then sending, closing, and peers that do not
read.
"""

from __future__ import annotations

import itertools
import socket as flags
import struct
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from keyop.transport import websocket
from keyop.transport.reader import StreamReader
from keyop.transport.websocket import Connection, WebSocketClosedError
from tests.wire.golden import Frame as RecordedFrame
from tests.wire.golden import each_conversation, frames

from .helpers import (
    BINARY,
    CLIENT,
    CLOSE,
    CONTINUATION,
    HUB,
    MASK,
    PING,
    PONG,
    TEXT,
    Hand,
    by_hand,
    close_payload,
    frame,
    small_pair,
    spawned,
    tcp_pair,
    wait_until,
)

LIMIT = 1 << 20
FRAGMENT = 256 << 10
each_role = pytest.mark.parametrize("role", [HUB, CLIENT])


def end_of(connection: Connection) -> WebSocketClosedError:
    """Receive until the connection ends; return how it did."""
    try:
        while True:
            connection.receive()
    except WebSocketClosedError as closed:
        return closed


def assert_refused(connection: Connection, hand: Hand, code: int) -> WebSocketClosedError:
    """The peer's fault is found, and it is told with this code."""
    closed = end_of(connection)
    assert (closed.code, closed.remote) == (code, False)
    told = hand.read_close()
    assert (told.close_code, told.close_reason) == (code, closed.reason)
    assert told.masked is not hand.masks
    assert closed.reason
    return closed


@each_role
class TestMessages:
    @pytest.mark.parametrize(
        "size", [0, 1, 125, 126, 127, 1023, 1024, 65_535, 65_536, 65_537, LIMIT]
    )
    def test_binary_of_every_kind_of_length(self, role: str, size: int) -> None:
        """A message is taken as it is, whatever the form of its length, up to the limit."""
        data = bytes(range(256)) * (size // 256 + 1)
        with by_hand(role) as (connection, hand), spawned(hand.send, BINARY, data[:size]):
            assert connection.receive() == data[:size]

    @pytest.mark.parametrize("text", ["", "hello", "κόσμε 😀\u2028\x00", "x" * 70_000])
    def test_text(self, role: str, text: str) -> None:
        """Text comes as text."""
        with by_hand(role) as (connection, hand), spawned(hand.send, TEXT, text.encode()):
            assert connection.receive() == text

    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_fragments_of_any_size(self, role: str, size: int) -> None:
        """A message may come in pieces, empty ones among them, and text may be cut anywhere."""
        text = "aé😀\u2028"
        for opcode, whole in ((TEXT, text), (BINARY, text.encode())):
            data = text.encode()
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            with by_hand(role) as (connection, hand):
                for number, piece in enumerate([b"", *pieces]):
                    hand.send(opcode if not number else CONTINUATION, piece, fin=False)
                hand.send(CONTINUATION, b"")
                hand.send(opcode, b"next")
                assert connection.receive() == whole
                assert connection.receive() == ("next" if opcode == TEXT else b"next")

    def test_pings_between_fragments(self, role: str) -> None:
        """Control frames may stand between a message's fragments; pings are answered in order."""
        with by_hand(role) as (connection, hand):
            hand.send(TEXT, b"on", fin=False)
            hand.send(PING, b"1")
            hand.send(CONTINUATION, b"e", fin=False)
            hand.send(PONG, b"nobody asked")
            hand.send(PING, b"2" * 125)
            hand.send(CONTINUATION)
            assert connection.receive() == "one"
            answers = [hand.read(), hand.read()]
            assert [(each.opcode, each.payload) for each in answers] == [
                (PONG, b"1"),
                (PONG, b"2" * 125),
            ]
            assert all(each.masked is not hand.masks for each in answers)

    def test_a_pong_comes_before_what_answers_later_messages(self, role: str) -> None:
        """Whoever answers a message at once does not overtake the pong that is due before."""
        with by_hand(role) as (connection, hand):
            hand.send(PING, b"p")
            hand.send(TEXT, b"question")
            assert connection.receive() == "question"
            connection.send_text("answer")
            assert [hand.read().opcode, hand.read().opcode] == [PONG, TEXT]

    def test_many_small_fragments(self, role: str) -> None:
        """A message of thousands of fragments costs about what it holds, and empty ones nothing."""
        count = 40_000
        mask = MASK if role == HUB else None
        one, none = (
            frame(CONTINUATION, b"x", fin=False, mask=mask),
            frame(CONTINUATION, fin=False, mask=mask),
        )
        data = frame(BINARY, b"x", fin=False, mask=mask) + (one + none) * (count // 2)
        data += frame(CONTINUATION, b"!", mask=mask)

        class Fed:
            """A stream that gives what it has, 64 KiB at a time."""

            position = 0

            def recv(self, size: int) -> bytes:
                self.position += size
                return data[self.position - size : self.position]

            def sendall(self, data: bytes) -> None: ...

        stream: Any = Fed()
        connection = Connection(stream, StreamReader(stream), role == CLIENT, LIMIT)
        tracemalloc.start()
        try:
            message = connection.receive()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert message == b"x" * (count // 2 + 1) + b"!"
        assert peak < 250_000


def replay(recorded: list[RecordedFrame], from_client: bool, size: int) -> Iterator[bytes]:
    """Give the frames of one side as v0.11.0 sends them: larger ones in fragments."""
    mask = MASK if from_client else None
    for each in recorded:
        if each.from_client is not from_client:
            continue
        if each.opcode == CLOSE or len(each.payload) <= size:
            yield frame(each.opcode, each.payload, mask=mask)
            continue
        pieces = [each.payload[at : at + size] for at in range(0, len(each.payload), size)]
        for number, piece in enumerate(pieces):
            yield frame(CONTINUATION if number else each.opcode, piece, fin=False, mask=mask)
        yield frame(CONTINUATION, mask=mask)


class TestV0110:
    @each_conversation
    @pytest.mark.parametrize("size", [64, 4096])
    def test_a_recorded_conversation(self, conversation: str, size: int) -> None:
        """Both sides' frames are taken, in fragments with an empty last one as v0.11.0 sends."""
        recorded = frames(conversation)
        for role in (HUB, CLIENT):
            with by_hand(role) as (connection, hand):
                for data in replay(recorded, role == HUB, size):
                    hand.raw(data)
                for each in recorded:
                    if each.from_client is (role == HUB) and each.opcode != CLOSE:
                        message = connection.receive()
                        data = message.encode() if isinstance(message, str) else message
                        assert data == each.payload
                if conversation == "04_rejected_4403.jsonl":
                    assert end_of(connection).code == 4403

    def test_a_large_batch_of_its_client(self) -> None:
        """Frames of 4,096 bytes, the last one short."""
        data = bytes(range(256)) * 300
        with by_hand(HUB) as (connection, hand):
            hand.send(BINARY, data[:4096], fin=False)
            for at in range(4096, len(data) - 4096, 4096):
                hand.send(CONTINUATION, data[at : at + 4096], fin=False)
            hand.send(CONTINUATION, data[len(data) - len(data) % 4096 :])
            assert connection.receive() == data

    def test_a_large_batch_of_its_hub(self) -> None:
        """One large frame, and an empty one behind it."""
        data = bytes(range(256)) * 256
        with by_hand(CLIENT) as (connection, hand):
            hand.send(BINARY, data, fin=False)
            hand.send(CONTINUATION)
            assert connection.receive() == data


@each_role
class TestLengths:
    @pytest.mark.parametrize(
        "declared", [LIMIT + 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    )
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_too_long_is_seen_in_the_header(self, role: str, declared: int, opcode: int) -> None:
        """1009 from the length alone: neither a byte of payload nor even the mask is waited for."""
        header = frame(opcode, declared=declared, mask=MASK if role == HUB else None)
        with by_hand(role) as (connection, hand):
            hand.raw(header[:10])
            assert_refused(connection, hand, 1009)

    def test_nothing_is_allocated(self, role: str) -> None:
        """A declared length costs no memory; other parts of this process take some meanwhile."""
        declared = 1 << 28
        with by_hand(role) as (connection, hand):
            hand.raw(frame(BINARY, declared=declared, mask=MASK if role == HUB else None)[:10])
            tracemalloc.start()
            try:
                assert_refused(connection, hand, 1009)
                assert tracemalloc.get_traced_memory()[1] < declared / 16
            finally:
                tracemalloc.stop()

    @pytest.mark.parametrize("limit", [0, 1, 100, 124, 125, 126, 1000, 65_535, 65_536])
    def test_the_limit_exactly(self, role: str, limit: int) -> None:
        """As many bytes as may be, and one more, in one frame."""
        with by_hand(role, limit) as (connection, hand):
            hand.send(BINARY, b"x" * limit)
            assert connection.receive() == b"x" * limit
            hand.send(BINARY, b"x" * (limit + 1))
            assert_refused(connection, hand, 1009)

    @pytest.mark.parametrize("limit", [1, 100, 1000])
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_the_limit_is_of_the_whole(self, role: str, limit: int, opcode: int) -> None:
        """Fragments count together: the limit in all is taken, one byte more is not."""
        with by_hand(role, limit) as (connection, hand):
            hand.send(opcode, b"x" * (limit - 1), fin=False)
            hand.send(CONTINUATION, b"x")
            assert len(connection.receive()) == limit
            hand.send(opcode, b"x" * limit, fin=False)
            hand.send(CONTINUATION, fin=False)
            hand.send(CONTINUATION, b"x", fin=False)
            assert_refused(connection, hand, 1009)

    def test_a_large_fragment_is_seen_in_its_header(self, role: str) -> None:
        """What a fragment may declare is what the fragments before it have left."""
        with by_hand(role, 1000) as (connection, hand):
            hand.send(BINARY, b"x" * 600, fin=False)
            hand.raw(frame(CONTINUATION, declared=401, mask=MASK if role == HUB else None)[:4])
            assert_refused(connection, hand, 1009)

    def test_a_ping_is_no_part_of_it(self, role: str) -> None:
        """Control frames may be longer than a message may."""
        with by_hand(role, 3) as (connection, hand):
            hand.send(BINARY, b"ab", fin=False)
            hand.send(PING, b"p" * 125)
            hand.send(CONTINUATION, b"c")
            assert connection.receive() == b"abc"
            assert hand.read().payload == b"p" * 125

    def test_the_limit_rises_with_trust(self, role: str) -> None:
        """A stranger's limits, of a message and in all, are lifted once it is known."""
        with by_hand(role, 1000, limit=2000) as (connection, hand):
            hand.send(BINARY, b"x" * 900)
            assert connection.receive() == b"x" * 900
            connection.trust(50_000)
            hand.send(BINARY, b"x" * 50_000)
            assert connection.receive() == b"x" * 50_000
            hand.raw(frame(BINARY, declared=50_001, mask=MASK if role == HUB else None))
            assert_refused(connection, hand, 1009)

    def test_too_much_before_trust(self, role: str) -> None:
        """More bytes in all than a stranger may send: 1009, whatever they are."""
        with by_hand(role, 1000, limit=2000) as (connection, hand):
            for _ in range(4):
                hand.send(PING, b"x" * 125)
            hand.send(TEXT, b"x" * 900)
            assert connection.receive() == "x" * 900
            hand.send(TEXT, b"x" * 900)
            assert_refused(connection, hand, 1009)


@each_role
class TestForm:
    def test_masked_wrongly(self, role: str) -> None:
        """A client has to mask, a hub must not: 1002 from the header."""
        wrong = None if role == HUB else MASK
        for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
            with by_hand(role) as (connection, hand):
                hand.send(opcode, b"", mask=wrong)
                assert_refused(connection, hand, 1002)

    @pytest.mark.parametrize("reserved", [0x10, 0x20, 0x40, 0x70])
    @pytest.mark.parametrize("opcode", [TEXT, BINARY, CONTINUATION, PING, CLOSE])
    def test_reserved_bits(self, role: str, reserved: int, opcode: int) -> None:
        """No extension was agreed on, compression neither: 1002."""
        with by_hand(role) as (connection, hand):
            hand.send(opcode, b"", reserved=reserved)
            assert_refused(connection, hand, 1002)

    @pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
    def test_reserved_opcodes(self, role: str, opcode: int) -> None:
        """Frames of a kind that does not exist: 1002."""
        with by_hand(role) as (connection, hand):
            hand.send(opcode, b"x")
            assert_refused(connection, hand, 1002)

    @pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
    def test_fragmented_control_frames(self, role: str, opcode: int) -> None:
        """A control frame is whole: 1002."""
        with by_hand(role) as (connection, hand):
            hand.send(opcode, close_payload(1000), fin=False)
            assert_refused(connection, hand, 1002)

    @pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
    @pytest.mark.parametrize(("size", "width"), [(126, 2), (70_000, 8), (5, 2), (5, 8)])
    def test_long_control_frames(self, role: str, opcode: int, size: int, width: int) -> None:
        """A control frame has up to 125 bytes, and no longer form of its length: 1002."""
        header = frame(opcode, declared=size, width=width, mask=MASK if role == HUB else None)
        with by_hand(role) as (connection, hand):
            hand.raw(header[:2])
            assert_refused(connection, hand, 1002)

    @pytest.mark.parametrize("fin", [True, False])
    def test_a_continuation_of_nothing(self, role: str, fin: bool) -> None:
        """A message does not begin with a continuation: 1002."""
        with by_hand(role) as (connection, hand):
            hand.send(CONTINUATION, b"x", fin=fin)
            assert_refused(connection, hand, 1002)

    @pytest.mark.parametrize("first", [TEXT, BINARY])
    @pytest.mark.parametrize("second", [TEXT, BINARY])
    def test_a_message_within_a_message(self, role: str, first: int, second: int) -> None:
        """Another message before the first one has ended: 1002."""
        with by_hand(role) as (connection, hand):
            hand.send(first, b"x", fin=False)
            hand.send(PING, b"does not count")
            hand.send(second, b"y")
            assert_refused(connection, hand, 1002)

    def test_a_continuation_behind_a_whole_message(self, role: str) -> None:
        """A message that has ended does not go on."""
        with by_hand(role) as (connection, hand):
            hand.send(TEXT, b"x")
            hand.send(CONTINUATION, b"y")
            assert connection.receive() == "x"
            assert_refused(connection, hand, 1002)


BAD_UTF8 = [
    b"\xff",
    b"a\x80",
    b"\xc0\xaf",  # a longer form than needed
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",  # half of a surrogate pair
    b"\xed\xa0\xbd\xed\xb8\x80",  # both halves
    b"\xf4\x90\x80\x80",  # beyond the last code point
    b"\xf8\x88\x80\x80\x80",
    b"abc\xe2\x82",  # cut off
]


@each_role
class TestUtf8:
    @pytest.mark.parametrize("data", BAD_UTF8)
    def test_in_one_frame(self, role: str, data: bytes) -> None:
        """Text that is not UTF-8: 1007."""
        with by_hand(role) as (connection, hand):
            hand.send(TEXT, data)
            assert_refused(connection, hand, 1007)

    @pytest.mark.parametrize("data", BAD_UTF8)
    def test_across_fragments(self, role: str, data: bytes) -> None:
        """Wherever it is cut, with empty fragments in between: 1007."""
        for cut in range(len(data) + 1):
            with by_hand(role) as (connection, hand):
                hand.send(TEXT, data[:cut], fin=False)
                hand.send(CONTINUATION, b"", fin=False)
                hand.send(CONTINUATION, data[cut:])
                assert_refused(connection, hand, 1007)

    def test_it_is_seen_before_the_end(self, role: str) -> None:
        """A fragment that cannot become text is refused at once, however long the message is."""
        with by_hand(role) as (connection, hand):
            hand.send(TEXT, b"fine \xff", fin=False)
            assert_refused(connection, hand, 1007)

    def test_binary_messages_may_hold_anything(self, role: str) -> None:
        """Only text has to be text."""
        for data in BAD_UTF8:
            with by_hand(role) as (connection, hand):
                hand.send(BINARY, data[:1], fin=False)
                hand.send(CONTINUATION, data[1:])
                assert connection.receive() == data


@each_role
class TestCloseOfThePeer:
    GOOD = (
        1000,
        1001,
        1002,
        1003,
        1007,
        1008,
        1009,
        1010,
        1011,
        1012,
        1013,
        1014,
        3000,
        4403,
        4999,
    )
    BAD = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)

    @pytest.mark.parametrize("code", GOOD)
    @pytest.mark.parametrize("reason", ["", "why", "é😀", "x" * 123])
    def test_is_answered(self, role: str, code: int, reason: str) -> None:
        """The code comes back, and the connection has ended, by the other side."""
        with by_hand(role) as (connection, hand):
            hand.send(CLOSE, close_payload(code, reason.encode()[:123]))
            closed = end_of(connection)
            assert (closed.code, closed.reason, closed.remote) == (code, reason, True)
            assert hand.read_close().close_code == code
            # Again, it is the same end.
            assert end_of(connection) is closed

    def test_without_a_code(self, role: str) -> None:
        """A close frame may be empty; it is answered with 1000."""
        with by_hand(role) as (connection, hand):
            hand.send(CLOSE)
            closed = end_of(connection)
            assert (closed.code, closed.remote) == (1005, True)
            assert hand.read_close().close_code == 1000

    @pytest.mark.parametrize("code", BAD)
    def test_with_a_code_that_may_not_be(self, role: str, code: int) -> None:
        """A code that is reserved, or stands for no close frame at all: 1002."""
        with by_hand(role) as (connection, hand):
            hand.send(CLOSE, close_payload(code))
            assert_refused(connection, hand, 1002)

    def test_with_half_a_code(self, role: str) -> None:
        """One byte is no code: 1002."""
        with by_hand(role) as (connection, hand):
            hand.send(CLOSE, b"\x03")
            assert_refused(connection, hand, 1002)

    @pytest.mark.parametrize("reason", [b"\xff", b"ok\xc3", b"\xed\xa0\x80"])
    def test_with_a_reason_that_is_no_text(self, role: str, reason: bytes) -> None:
        """A reason is UTF-8: 1007."""
        with by_hand(role) as (connection, hand):
            hand.send(CLOSE, close_payload(1000, reason))
            assert_refused(connection, hand, 1007)

    def test_between_fragments(self, role: str) -> None:
        """A close may come in the middle of a message, which is not delivered."""
        with by_hand(role) as (connection, hand):
            hand.send(TEXT, b"not all", fin=False)
            hand.send(CLOSE, close_payload(1001))
            assert end_of(connection).code == 1001

    def test_nothing_is_read_behind_it(self, role: str) -> None:
        """What follows a close frame is nobody's."""
        with by_hand(role) as (connection, hand):
            hand.send(CLOSE, close_payload(1000))
            hand.send(TEXT, b"more")
            assert end_of(connection).code == 1000
            with pytest.raises(WebSocketClosedError):
                connection.receive()

    def test_nothing_is_sent_behind_the_answer(self, role: str) -> None:
        """Whoever sends is told why it ended."""
        with by_hand(role) as (connection, hand):
            hand.send(CLOSE, close_payload(4409, b"taken over"))
            end_of(connection)
            with pytest.raises(WebSocketClosedError, match="4409: taken over"):
                connection.send_text("x")
            with pytest.raises(WebSocketClosedError):
                connection.send_binary(b"x" * 1_000_000)


@each_role
class TestEndsWithoutAClose:
    @pytest.mark.parametrize("size", range(9))
    def test_in_the_middle_of_a_frame(self, role: str, size: int) -> None:
        """An end at any byte is reported as 1006, from the other side, without a goodbye."""
        data = frame(BINARY, b"abc" * 50, mask=MASK if role == HUB else None)
        with by_hand(role) as (connection, hand):
            hand.raw(data[:size])
            hand.close()
            closed = end_of(connection)
            assert (closed.code, closed.remote) == (1006, True)
            assert "without a goodbye" in str(closed)
            assert closed.__cause__ is not None

    def test_broken(self, role: str) -> None:
        """What the system says of a broken connection is the reason."""
        near, far = tcp_pair()
        with by_hand(role, sockets=lambda: (near, far)) as (connection, hand):
            connection.send_text("never read")
            # With something unread, the end is a reset.
            hand.stream.recv(1, flags.MSG_PEEK)
            hand.close()
            closed = end_of(connection)
            assert (closed.code, closed.reason) == (1006, "Connection reset by peer")

    def test_finish_does_not_wait(self, role: str) -> None:
        """There is nobody to say goodbye to."""
        with by_hand(role) as (connection, hand):
            hand.close()
            end_of(connection)
            begun = time.monotonic()
            connection.finish()
            assert time.monotonic() - begun < 1

    def test_dropped(self, role: str) -> None:
        """``drop`` ends it without a word, also while somebody receives."""
        with by_hand(role) as (connection, hand):
            with spawned(end_of, connection) as receiving:
                gevent.sleep(0)
                connection.drop()
                assert receiving.get(timeout=10).code == 1006
            with pytest.raises(EOFError):
                hand.read()

    def test_forgotten(self, role: str) -> None:
        """A connection that is no longer referred to sends nothing: its stream has an owner."""
        with by_hand(role) as (_, hand), by_hand(role) as (other, _):
            del other
        hand.close()


@each_role
class TestSending:
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, FRAGMENT])
    def test_one_frame(self, role: str, size: int) -> None:
        """A message of up to 256 KiB is one frame, masked by a client only, each mask another."""
        data = bytes(range(256)) * (size // 256 + 1)
        with by_hand(role) as (connection, hand):
            with spawned(connection.send_binary, data[:size]):
                assert hand.read() == (BINARY, data[:size], True, role == CLIENT)
            connection.send_text("né")
            assert hand.read() == (TEXT, "né".encode(), True, role == CLIENT)

    @pytest.mark.parametrize("size", [FRAGMENT + 1, 2 * FRAGMENT, 3 * FRAGMENT + 17])
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_large_messages_in_several(self, role: str, size: int, opcode: int) -> None:
        """A larger one is several frames of 256 KiB, and whole again on the other side."""
        data = b"0123456789abcdef" * (size // 16 + 1)
        with by_hand(role) as (connection, hand):
            send = connection.send_binary if opcode == BINARY else connection.send_text
            with spawned(send, data[:size] if opcode == BINARY else data[:size].decode()):
                found = [hand.read()]
                while not found[-1].fin:
                    found.append(hand.read())
            assert b"".join(each.payload for each in found) == data[:size]
            assert [each.opcode for each in found] == [opcode, *[CONTINUATION] * (len(found) - 1)]
            assert all(len(each.payload) == FRAGMENT for each in found[:-1])
            assert found[-1].payload

    def test_pings_pass_between(self, role: str) -> None:
        """A ping, or the answer to one, does not wait for the end of a large message."""
        with by_hand(role, 100) as (connection, hand):
            with spawned(connection.send_binary, b"x" * (20 * FRAGMENT)) as sending:
                assert hand.read().opcode == BINARY
                connection.ping()
                found = []
                while not found or not found[-1].fin or found[-1].opcode == PING:
                    found.append(hand.read())
                sending.get(timeout=10)
            assert PING in [each.opcode for each in found[:-1]]

    def test_a_ping(self, role: str) -> None:
        """``ping`` sends one without waiting."""
        with by_hand(role) as (connection, hand):
            connection.ping()
            assert hand.read() == (PING, b"", True, role == CLIENT)

    def test_many_senders_at_once(self, role: str) -> None:
        """Frames of one connection never interleave, nor do the fragments of messages."""
        sizes = [1, 100, 70_000, 3 * FRAGMENT, 5, FRAGMENT + 1]
        messages = {bytes([65 + number]) * size for number, size in enumerate(sizes * 2)}
        with by_hand(role) as (connection, hand):
            senders = [
                gevent.spawn(
                    connection.send_binary if number % 2 else connection.send_text,
                    message if number % 2 else message.decode(),
                )
                for number, message in enumerate(messages)
            ]
            for _ in range(5):
                connection.ping()
            got, pings = set(), 0
            while len(got) < len(messages) or pings < 5:
                pieces = [hand.read()]
                while not pieces[-1].fin or pieces[-1].opcode == PING:
                    if pieces[-1].opcode == PING:
                        pieces.pop()
                        pings += 1
                        if not pieces and len(got) == len(messages) and pings == 5:
                            break
                    pieces.append(hand.read())
                if pieces:
                    assert [each.opcode for each in pieces[1:]] == [CONTINUATION] * (
                        len(pieces) - 1
                    )
                    got.add(b"".join(each.payload for each in pieces))
            gevent.joinall(senders, timeout=10, raise_error=True)
            assert got == messages

    def test_two_connections_full_of_both_ways(self, role: str) -> None:
        """Both sides send and receive at once, more than any buffer holds, and nobody stands."""
        near, far = tcp_pair()
        count, data = 60, b"d" * 200_000
        sides = [
            Connection(near, StreamReader(near), role == CLIENT, LIMIT),
            Connection(far, StreamReader(far), role != CLIENT, LIMIT),
        ]

        def send(connection: Connection) -> None:
            for _ in range(count):
                connection.send_binary(data)

        def receive(connection: Connection) -> bool:
            return all(connection.receive() == data for _ in range(count))

        greenlets = [gevent.spawn(do, side) for do in (send, receive) for side in sides]
        assert len(gevent.joinall(greenlets, timeout=30, raise_error=True)) == 4
        assert greenlets[2].value is greenlets[3].value is True
        sides[0].close()
        endings = [gevent.spawn(end_of, side) for side in sides]
        gevent.joinall(endings, timeout=10, raise_error=True)
        gevent.joinall([gevent.spawn(side.finish) for side in sides], timeout=10)


def fill(connection: Connection, size: int) -> gevent.Greenlet[..., Any]:
    """Send more than a small pair holds; return the greenlet that stands in the middle of it."""
    sender = gevent.spawn(connection.send_frame, b"f" * size, BINARY)
    wait_until(lambda: connection._unsent)
    assert not sender.dead
    return sender


@each_role
class TestSendersThatAreStopped:
    def test_in_the_middle_of_a_frame(self, role: str) -> None:
        """What is left of the frame goes first, whoever sends next: nothing is ever torn."""
        with by_hand(role, sockets=small_pair) as (connection, hand):
            fill(connection, FRAGMENT).kill()
            connection.ping()
            connection.close(4409, "taken over")
            assert hand.read() == (BINARY, b"f" * FRAGMENT, True, role == CLIENT)
            assert hand_reads_close(hand) == (4409, "taken over")

    def test_between_the_frames_of_a_message(self, role: str) -> None:
        """A message that was begun and cannot be ended is the last one; the close still comes."""
        with by_hand(role, sockets=small_pair) as (connection, hand):
            fill(connection, 2 * FRAGMENT).kill()
            with pytest.raises(ConnectionError, match="cut short"):
                connection.send_text("another")
            connection.close(1001, "shutting down")
            assert hand.read() == (BINARY, b"f" * FRAGMENT, False, role == CLIENT)
            assert hand_reads_close(hand) == (1001, "shutting down")

    def test_by_a_timeout(self, role: str) -> None:
        """A sender that gives up leaves the connection usable, once the peer reads."""
        with by_hand(role, sockets=small_pair) as (connection, hand):
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
                connection.send_binary(b"f" * FRAGMENT)
            with spawned(connection.send_text, "then this"):
                assert hand.read() == (BINARY, b"f" * FRAGMENT, True, role == CLIENT)
                assert hand.read().payload == b"then this"


def hand_reads_close(hand: Hand) -> tuple[int, str]:
    told = hand.read_close()
    return told.close_code, told.close_reason


@each_role
class TestClosing:
    def test_says_why(self, role: str) -> None:
        """The peer is told code and reason; its answer ends it, and whoever receives sees ours."""
        with by_hand(role) as (connection, hand):
            connection.close(4403, "not in allowlist")
            assert hand_reads_close(hand) == (4403, "not in allowlist")
            hand.send(CLOSE, close_payload(1000, b"so be it"))
            closed = end_of(connection)
            assert (closed.code, closed.reason, closed.remote) == (4403, "not in allowlist", False)
            assert str(closed) == "closed (4403: not in allowlist)"

    def test_once(self, role: str) -> None:
        """The first reason counts."""
        with by_hand(role) as (connection, hand):
            connection.close(1001, "first")
            connection.close(1011, "second")
            assert hand_reads_close(hand) == (1001, "first")
            hand.send(CLOSE, close_payload(1001))
            assert end_of(connection).reason == "first"
            hand.stream.shutdown(flags.SHUT_WR)
            connection.finish()
            assert hand.at_end()

    def test_a_long_reason(self, role: str) -> None:
        """A reason is cut to what a control frame holds, at the end of a character."""
        with by_hand(role) as (connection, hand):
            connection.close(1002, "é" * 100)
            assert hand_reads_close(hand) == (1002, "é" * 61)

    def test_messages_under_way_are_passed_over(self, role: str) -> None:
        """What the peer had sent before it read of the close is nobody's; its faults neither."""
        with by_hand(role) as (connection, hand):
            connection.close(1001)
            hand.send(TEXT, b"too late")
            hand.send(PING, b"too late as well")
            hand.send(BINARY, b"x" * 100_000)
            hand.send(CLOSE, close_payload(1001))
            assert end_of(connection).code == 1001
            assert hand.read().opcode == CLOSE
            hand.stream.shutdown(flags.SHUT_WR)
            connection.finish()
            assert hand.at_end()

    def test_a_fault_after_it(self, role: str) -> None:
        """A peer that breaks the protocol after the close is not told again."""
        with by_hand(role) as (connection, hand):
            connection.close(4403, "no")
            hand.send(7, b"x")
            assert end_of(connection).code == 1002
            assert hand_reads_close(hand) == (4403, "no")
            hand.close()
            connection.finish()

    def test_a_peer_that_just_ends(self, role: str) -> None:
        """v0.11.0 may end without an answer: the reason is ours all the same."""
        with by_hand(role) as (connection, hand):
            connection.close(1001, "shutting down")
            hand.close()
            closed = end_of(connection)
            assert (closed.code, closed.remote) == (1001, False)

    def test_finish_alone(self, role: str) -> None:
        """Whoever only gives the connection back says goodbye with 1000."""
        with by_hand(role) as (connection, hand), spawned(connection.finish) as finishing:
            assert hand_reads_close(hand) == (1000, "")
            hand.close()
            finishing.join(timeout=10)
            assert finishing.successful()

    def test_finish_twice(self, role: str) -> None:
        """Giving it back twice is safe."""
        with by_hand(role) as (connection, hand):
            hand.close()
            connection.finish()
            connection.finish()

    def test_it_waits_for_nobody(self, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
        """A peer that does not read cannot hold ``close`` up, only the end, and that not long."""
        monkeypatch.setattr(websocket, "DRAIN_S", 0.5)
        with by_hand(role, sockets=small_pair) as (connection, _):
            sender = fill(connection, FRAGMENT)
            begun = time.monotonic()
            connection.close(1001, "shutting down")
            assert time.monotonic() - begun < 0.4
            assert end_of(connection).code == 1001
            connection.finish()
            assert 0.5 <= time.monotonic() - begun < 5
            with pytest.raises(OSError):
                sender.get(timeout=10)

    def test_a_hundred_of_them(self, role: str) -> None:
        """Closing a hundred connections whose peers do not read takes no longer than one."""
        sockets = [small_pair() for _ in range(100)]
        connections = [
            Connection(near, StreamReader(near), role == CLIENT, 100) for near, _ in sockets
        ]
        senders = [fill(each, FRAGMENT) for each in connections]
        begun = time.monotonic()
        for each in connections:
            each.close(1001)
        assert time.monotonic() - begun < 1
        for each in connections:
            each.drop()
            each.finish()
        for _, far in sockets:
            far.close()
        for sender in senders:
            with pytest.raises(OSError):
                sender.get(timeout=10)

    def test_in_the_middle_of_a_large_message(self, role: str) -> None:
        """A close does not wait for the rest of a large message, whose sender is told."""
        with by_hand(role, sockets=small_pair) as (connection, hand):
            sender = fill(connection, 20 * FRAGMENT)
            connection.close(4409, "taken over")
            size, opcode = 0, BINARY
            while opcode != CLOSE:
                found = hand.read()
                size, opcode = size + len(found.payload), found.opcode
            assert found.close_code == 4409
            assert size < 2 * FRAGMENT
            with pytest.raises(WebSocketClosedError, match="taken over"):
                sender.get(timeout=10)

    def test_a_timeout_of_the_caller_is_its_own(self, role: str) -> None:
        """Closing catches nobody else's timeout."""
        with by_hand(role, sockets=small_pair) as (connection, _):
            fill(connection, FRAGMENT).kill()
            connection.close()
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
                connection.finish()


class TestTheLastWord:
    """Who of the two ends the connection itself: RFC 6455, section 7.1.1."""

    def test_a_hub_ends_it_at_once(self) -> None:
        """Once both have closed, the hub ends it, whoever was first."""
        for first in (True, False):
            with by_hand(HUB) as (connection, hand):
                if first:
                    connection.close()
                hand.send(CLOSE, close_payload(1000))
                end_of(connection)
                begun = time.monotonic()
                connection.finish()
                assert time.monotonic() - begun < 1
                assert hand_reads_close(hand)[0] == 1000
                assert hand.at_end()

    def test_a_client_leaves_that_to_the_hub(self) -> None:
        """A client waits for the hub to end it."""
        for first in (True, False):
            with by_hand(CLIENT) as (connection, hand):
                if first:
                    connection.close()
                hand.send(CLOSE, close_payload(1000))
                end_of(connection)
                with spawned(connection.finish) as finishing:
                    assert hand_reads_close(hand)[0] == 1000
                    gevent.sleep(0.05)
                    assert not finishing.dead
                    hand.close()
                    finishing.join(timeout=1)
                    assert finishing.dead

    def test_but_not_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A hub that never ends it is waited for as long as any close is."""
        monkeypatch.setattr(websocket, "DRAIN_S", 0.1)
        with by_hand(CLIENT) as (connection, hand):
            hand.send(CLOSE, close_payload(1000))
            end_of(connection)
            connection.finish()
            assert hand_reads_close(hand)[0] == 1000
            assert hand.at_end()

    def test_a_peer_that_answers_never(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer that goes on sending and never answers is left."""
        monkeypatch.setattr(websocket, "DRAIN_S", 0.2)
        for role in (HUB, CLIENT):
            with by_hand(role, sockets=tcp_pair) as (connection, hand):

                def chatter(hand: Hand = hand) -> None:
                    while True:
                        hand.send(PING, b"still here")
                        gevent.sleep(0.001)

                with spawned(chatter):
                    connection.close(1001)
                    assert end_of(connection).code == 1001
                    connection.finish()


class TestTheCodeArrives:
    """A close code reaches a peer that is still sending: 100 of 100."""

    @each_role
    def test_a_peer_of_ours(self, role: str) -> None:
        """Both are connections of this library, and one sends as fast as it can."""
        for number in range(100):
            near, far = tcp_pair()
            closing = Connection(near, StreamReader(near), role == CLIENT, LIMIT)
            sending = Connection(far, StreamReader(far), role != CLIENT, LIMIT)

            def send(connection: Connection = sending) -> None:
                try:
                    while True:
                        connection.send_binary(b"x" * 65_536)
                except OSError:
                    pass

            with spawned(send):
                for _ in range(number % 4):
                    closing.receive()
                closing.close(4400 + number, "enough")
                with spawned(end_of, closing) as ours, spawned(end_of, sending) as theirs:
                    assert theirs.get(timeout=10).code == 4400 + number
                    with spawned(sending.finish) as finishing:
                        assert ours.get(timeout=10).code == 4400 + number
                        closing.finish()
                        finishing.join(timeout=10)

    @each_role
    def test_a_peer_that_reads_late(self, role: str) -> None:
        """The peer sends on long after it was told, and reads only then."""
        for number in range(100):
            with by_hand(role, sockets=tcp_pair) as (connection, hand):

                def end(connection: Connection = connection) -> None:
                    end_of(connection)
                    connection.finish()

                connection.close(4400 + number, "enough")
                with spawned(end) as ending:
                    for _ in range(20):
                        hand.send(BINARY, b"x" * 8192)
                        gevent.sleep(0)
                    assert hand_reads_close(hand) == (4400 + number, "enough")
                    hand.send(CLOSE, close_payload(1000))
                    hand.close()
                    ending.join(timeout=10)
                    assert ending.dead


@each_role
class TestSignsOfLife:
    def test_pongs_never_hold_up_the_reader(self, role: str) -> None:
        """A peer that sends pings and reads nothing is read all the same, and costs little."""
        with by_hand(role, sockets=small_pair) as (connection, hand):

            def flood() -> None:
                data = frame(PING, b"p" * 125, mask=MASK if role == HUB else None) * 100
                for _ in range(200):
                    hand.raw(data)
                hand.send(TEXT, b"the end")

            stuck = fill(connection, FRAGMENT)
            with spawned(flood):
                assert connection.receive() == "the end"
            assert not stuck.dead
            assert len(connection._due) == 64
            connection.drop()
            with pytest.raises(OSError):
                stuck.get(timeout=10)

    def test_the_latest_pings_are_answered(self, role: str) -> None:
        """Of pings that come faster than their answers go, the oldest have none."""
        with by_hand(role, sockets=small_pair) as (connection, hand):
            fill(connection, FRAGMENT)
            for number in range(100):
                hand.send(PING, b"%d" % number)
            hand.send(TEXT, b"x")
            assert connection.receive() == "x"
            found = []
            while b"99" not in found:
                found.append(hand.read().payload)
            assert found == [b"f" * FRAGMENT, *[b"%d" % number for number in range(36, 100)]]

    def test_when_bytes_came(self, role: str) -> None:
        """Part of a large message is a sign of life as well: it may take longer than a minute."""
        with by_hand(role) as (connection, hand):
            before = connection.heard_at
            data = frame(BINARY, b"x" * 1000, mask=MASK if role == HUB else None)
            with spawned(connection.receive) as receiving:
                for at in range(0, len(data) - 200, 200):
                    gevent.sleep(0.003)
                    hand.raw(data[at : at + 200])
                    wait_until(lambda before=before: connection.heard_at > before)
                    before = connection.heard_at
                assert not receiving.dead

    def test_after_the_close(self, role: str) -> None:
        """Neither pings nor pongs are sent once the connection closes."""
        with by_hand(role) as (connection, hand):
            connection.close(1001)
            connection.ping()
            hand.send(PING, b"x")
            hand.send(CLOSE, close_payload(1001))
            end_of(connection)
            with spawned(connection.finish):
                assert hand.read().opcode == CLOSE
                hand.close()

    def test_on_a_broken_connection(self, role: str) -> None:
        """A ping that cannot be sent is the reader's to find out about."""
        with by_hand(role, sockets=tcp_pair) as (connection, hand):
            hand.close()
            for _ in range(5):
                connection.ping()
                gevent.sleep(0.002)
            assert end_of(connection).code == 1006

    def test_a_close_on_a_broken_connection(self, role: str) -> None:
        """Where the goodbye cannot be said, the stream is given back at once."""
        with by_hand(role, sockets=tcp_pair) as (connection, hand):
            hand.close()
            wait_until(lambda: breaks(connection))
            connection.close(1001)
            begun = time.monotonic()
            connection.finish()
            assert time.monotonic() - begun < 1


def breaks(connection: Connection) -> bool:
    """Send until it cannot be sent."""
    try:
        connection.send_text("x")
    except OSError:
        return True
    return False


def test_the_errors_words() -> None:
    """An end says its code, and its reason where there is one."""
    assert str(WebSocketClosedError(1000, "", False)) == "closed (1000)"
    assert str(WebSocketClosedError(1011, "cannot write", True)) == "closed (1011: cannot write)"


def test_waiting_costs_others_nothing() -> None:
    """A connection that waits for a peer lets every other greenlet run."""
    with by_hand(HUB) as (connection, hand), spawned(connection.receive) as receiving:
        ran = Event()
        with spawned(ran.set):
            assert ran.wait(5)
        hand.send(TEXT, struct.pack("!H", 0x4142))
        assert receiving.get(timeout=10) == "AB"


def test_roles_differ_in_masking_alone() -> None:
    """What a client sends, a hub takes, and the other way round: every kind of frame."""
    near, far = tcp_pair()
    client = Connection(near, StreamReader(near), True, LIMIT)
    hub = Connection(far, StreamReader(far), False, LIMIT)
    for one, other in itertools.permutations((client, hub)):
        one.ping()
        one.send_text("text")
        one.send_binary(b"x" * 70_000)
        assert [other.receive(), other.receive()] == ["text", b"x" * 70_000]
    client.close(1001, "bye")
    with spawned(end_of, hub) as at_hub, spawned(end_of, client) as at_client:
        assert at_hub.get(timeout=10).remote
        with spawned(hub.finish):
            assert not at_client.get(timeout=10).remote
            client.finish()
