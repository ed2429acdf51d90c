"""Little that would become much: lengths, fragments, batches and JSON made to cost a hub dear."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import socket

from keyop import EphemeralMessenger
from tests.federation.byhand import made
from tests.federation.rawpeers import RawGuest
from tests.reliability.hub_child import HubChild
from tests.transport.helpers import BINARY, CONTINUATION, PING, TEXT, frame

from .helpers import MIB, child_serves, stranger

GOOD, PEER = "beta", "alpha"
# What a hub takes unless it is told otherwise.
RECORD_BYTES = 10 * MIB
# What is refused may cost so much for a moment, whatever it says of itself.
SPARE_BYTES = 24 * MIB
TOO_BIG, PROTOCOL_ERROR, SKIPPED = 1009, 1002, 0
# A peer that is let in may have others wait for so long, with one record.
STALL_S = 2.0
NO_MASK = b"\0\0\0\0"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubChild]:
    """A hub in a process of its own, whose memory can be measured."""
    with HubChild(tmp_path_factory.mktemp("hub"), [PEER, GOOD]) as hub:
        child_serves(hub, GOOD)  # what the first one loads is nobody's cost
        yield hub
        hub.child.stop()
        assert "Traceback" not in hub.child.errors


def declares(opcode: int, length: int) -> Callable[[RawGuest], None]:
    return lambda guest: guest.send(opcode, b"x", declared=length, width=8)


def says(opcode: int, payload: bytes) -> Callable[[RawGuest], None]:
    return lambda guest: guest.raw(frame(opcode, payload, mask=NO_MASK))


def record(payload: bytes = b"0", unknown: bytes = b"") -> bytes:
    """Return a record with this payload, and a field that nobody knows."""
    line = made(channel="up", origin=PEER).replace(b'"payload":0', b'"payload":' + payload)
    return line.replace(b'"payload"', b'"x":' + unknown + b',"payload"') if unknown else line


def sends(line: bytes) -> Callable[[RawGuest], None]:
    """Send a record, in one frame, without the cost of a mask."""
    return says(BINARY, struct.pack(">I", len(line)) + line)


def in_fragments(size: int, count: int) -> Callable[[RawGuest], None]:
    """Send a message in so many fragments, and then its end."""

    def send(guest: RawGuest) -> None:
        guest.raw(frame(BINARY, b"\0" * size, fin=False, mask=NO_MASK))
        several = frame(CONTINUATION, b"\0" * size, fin=False, mask=NO_MASK) * 100
        for _ in range(count // 100):
            guest.raw(several)
        guest.raw(frame(CONTINUATION, b"", mask=NO_MASK))

    return send


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + b"1" + closing * depth


def many(item: bytes, size: int, end: bytes = b"1]") -> bytes:
    return b"[" + (item + b",") * (size // (len(item) + 1)) + end


HELLO = b'{"instance_name":"alpha","role":"client","version":"1","subscribe":%s}'
BOMBS: dict[str, tuple[bool, Callable[[RawGuest], None], int]] = {
    # Frames and fragments.
    "2^63 bytes, before the hello": (False, declares(TEXT, 1 << 63), TOO_BIG),
    "2^63 bytes": (True, declares(BINARY, 1 << 63), TOO_BIG),
    "2^64 - 1 bytes": (True, declares(BINARY, (1 << 64) - 1), TOO_BIG),
    "a continuation of 2^63 bytes": (
        True,
        lambda guest: (
            guest.send(BINARY, b"x", fin=False), declares(CONTINUATION, 1 << 63)(guest)
        )[1],
        TOO_BIG,
    ),
    "huge fragments": (True, in_fragments(MIB, 100), TOO_BIG),
    "many empty fragments": (True, in_fragments(0, 100_000), SKIPPED),
    "a ping of a megabyte": (True, says(PING, b"x" * MIB), PROTOCOL_ERROR),
    # Batches.
    "a record of 4 GiB": (True, says(BINARY, b"\xff\xff\xff\xff{}"), PROTOCOL_ERROR),
    "a record over the end": (True, says(BINARY, b"\0\0\0\3{}"), PROTOCOL_ERROR),
    "a record above the limit": (True, sends(record(b"1" * RECORD_BYTES)), SKIPPED),
    "millions of empty records": (True, says(BINARY, bytes(8 * MIB)), PROTOCOL_ERROR),
    # JSON.
    "a deep hello": (False, says(TEXT, HELLO % nested(4000)), PROTOCOL_ERROR),
    "a hello of many channels": (
        False, says(TEXT, HELLO % many(b'"x"', 12_000, b'"y"]')), PROTOCOL_ERROR,
    ),
    "a large hello": (False, says(TEXT, HELLO % many(b"[]", 20_000)), TOO_BIG),
    "a deep acknowledgement": (
        True, says(TEXT, b'{"last_id":' + nested(1500) + b"}"), PROTOCOL_ERROR,
    ),
    "a large acknowledgement": (True, says(TEXT, many(b"[]", 9 * MIB)), PROTOCOL_ERROR),
    "a deep payload": (True, sends(record(nested(100_000))), SKIPPED),
    "deep objects": (True, sends(record(nested(100_000, b'{"":', b"}"))), SKIPPED),
    "a deep field that nobody knows": (True, sends(record(unknown=nested(100_000))), SKIPPED),
    "a payload that is not closed": (True, sends(record(b"[" * (9 * MIB))), SKIPPED),
    "a number of a million digits": (True, sends(record(b"1" * MIB)), SKIPPED),
    "a number that is too large": (True, sends(record(b"1e" + b"9" * MIB)), SKIPPED),
    "digits behind the point": (True, sends(record(b"0." + b"1" * MIB)), SKIPPED),
    "a version of a million digits": (
        True, sends(record().replace(b'"v":1', b'"v":' + b"1" * MIB)), SKIPPED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_is_refused_before_it_costs_memory(hub: HubChild, bomb: str) -> None:
    """It is closed with its code, or passed over and acknowledged; and a good peer is served."""
    known, send, code = BOMBS[bomb]
    with stranger(hub.address, hub.securing(PEER)) as guest:
        if known:
            guest.greet(PEER)
        before = hub.forget_peak()
        try:
            send(guest)
        except OSError:  # the hub did not wait for the end of it
            pass
        if code:
            assert guest.closed()[0] == code
        else:
            assert "last_id" in guest.hear()
        assert hub.peak() - before < SPARE_BYTES + (3 * RECORD_BYTES if code == SKIPPED else 0)
    child_serves(hub, GOOD)


STALLS = {
    "millions of empty lists": record(many(b"[]", 9 * MIB)),
    "millions of empty lists, then no JSON": record(many(b"[]", 9 * MIB, b"\x80]")),
    "millions of numbers beyond a double": record(many(b"1e999", 9 * MIB)),
    "a field of millions of objects": record(unknown=many(b'{"":1}', 9 * MIB)),
    "a field of what looks like payloads": record(
        unknown=many(b"{}", 9 * MIB, b'{"":1,"payload":1},' * 8 + b"1]")
    ),
}


@pytest.mark.parametrize("bomb", STALLS)
def test_holds_nobody_up(hub: HubChild, bomb: str) -> None:
    """Whatever is in a record of the greatest size, others wait for a moment, and memory ends."""
    with (
        stranger(hub.address, hub.securing(PEER)) as guest,
        EphemeralMessenger(hub.address, tls=hub.tls(GOOD)) as good,
    ):
        guest.greet(PEER)
        good.connect(10)
        before = hub.forget_peak()
        sends(STALLS[bomb])(guest)
        heard = gevent.spawn(guest.hear)
        try:
            while not heard.ready():
                good.publish("good", "com.example.Good", 1, timeout=STALL_S)
                gevent.sleep(0.005)
            assert "last_id" in heard.get()
        finally:
            heard.kill()
        assert hub.peak() - before < 40 * RECORD_BYTES


UPGRADE = (
    "GET / HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Extensions: OFFER\r\n\r\n"
)


class TestCompression:
    """It is neither offered nor taken."""

    def test_is_not_agreed_on(self, hub: HubChild) -> None:
        """Whoever offers it in any form gets an answer without it."""
        host, port = hub.address.split(":")
        for offer in ("permessage-deflate", "permessage-deflate; client_max_window_bits, x-webkit"):
            secured = hub.securing(PEER)(socket.create_connection((host, int(port)), 10))
            secured.sendall(UPGRADE.replace("OFFER", offer).encode())
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += secured.recv(1000)
            secured.close()
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert not re.search(b"(?i)sec-websocket-extensions", answer)

    @pytest.mark.parametrize("known", [False, True])
    @pytest.mark.parametrize("opcode", [TEXT, BINARY, PING])
    def test_of_a_frame_is_a_violation(self, hub: HubChild, opcode: int, known: bool) -> None:
        """A frame that says that it is compressed ends the connection, and is not unpacked."""
        with stranger(hub.address, hub.securing(PEER)) as guest:
            if known:
                guest.greet(PEER)
            guest.send(opcode, b"\xaaV*\xcdK\xce\xcfMU\xb2R\x00\x00", reserved=0x40)
            assert guest.closed() == (1002, "reserved bits are set")
