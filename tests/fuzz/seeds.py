"""Small real inputs to begin with: what keyop itself writes, sends and is asked.

``python -m tests.fuzz.seeds`` writes those of ``seeds/`` anew. Where the recordings of v0.11.0 are
there, fuzzing begins with what is in them as well; they are not copied.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent import socket

from keyop import Message, Messenger
from keyop.testing import drain
from keyop.transport.dial import dial
from keyop.transport.reader import StreamReader
from keyop.transport.websocket import Connection
from keyop.wire.frames import encode_batch
from keyop.wire.messages import CLIENT, FEATURES, HUB, Hello, encode_ack
from tests.integration.helpers import config, log_bytes, offset_path, record
from tests.transport.helpers import BINARY, CONTINUATION, PING, TEXT, frame
from tests.wire.golden import CONVERSATIONS, GOLDEN, frames, lines

from .frames import MAX_MESSAGE_BYTES
from .links import MASK as NO_MASK
from .pages import TOKEN
from .records import with_checksum
from .segments import MAX_LINE_BYTES
from .streams import Trickle
from .targets import TARGETS
from .wire import ACCEPT, ACK, SEND, WAIT, conversation
from .wire import BINARY as BATCH_STEP
from .wire import TEXT as TEXT_STEP

HERE = Path(__file__).parent
SEEDS = HERE / "seeds"
_MASK = b"mask"
_COMMENTS = re.compile(rb"(?m)^ *#.*\n|^\n")


def seeds(name: str) -> list[bytes]:
    """Return the inputs to begin with for a target."""
    kept = [path.read_bytes() for path in sorted((SEEDS / name).iterdir())]
    return [each[: TARGETS[name].max_bytes] for each in kept + recorded(name)]


# -- of v0.11.0


def recorded(name: str) -> list[bytes]:
    """Return what the recordings hold for a target; nothing where they are not there."""
    found = _RECORDED.get(name)
    return [] if found is None else list(dict.fromkeys(found()))


def _recorded_frames() -> Iterator[bytes]:
    for each in CONVERSATIONS:
        for from_client in (True, False):
            mask = _MASK if from_client else None
            sent = [one for one in frames(each) if one.from_client == from_client]
            yield b"".join(frame(one.opcode, one.payload, fin=one.fin, mask=mask) for one in sent)


def _recorded_messages(opcode: int) -> Iterator[bytes]:
    for each in CONVERSATIONS:
        yield from (one.payload for one in frames(each) if one.opcode == opcode and one.fin)


def _recorded_batches() -> Iterator[bytes]:
    yield from _recorded_messages(BINARY)
    yield from (
        bytes.fromhex(case.get("hex", case.get("read_hex", "")))
        for case in lines("envelopes/framing.jsonl")
    )


def _recorded_records() -> Iterator[bytes]:
    for file, field in (
        ("decode_reencode", "in_b64"),
        ("envelope_encode", "line_b64"),
        ("payload_encode", "line_b64"),
    ):
        for case in lines(f"envelopes/{file}.jsonl"):
            if field in case:
                yield base64.b64decode(case[field])


def _recorded_segments() -> Iterator[bytes]:
    yield from (path.read_bytes() for path in sorted(GOLDEN.glob("datadir/*/channels/*/*.jsonl")))


def _recorded_offsets() -> Iterator[bytes]:
    yield from (path.read_bytes() for path in sorted(GOLDEN.glob("datadir/*/subscribers/*/*")))


def _recorded_upgrades() -> Iterator[bytes]:
    for each in CONVERSATIONS:
        for item in lines(f"wire/{each}"):
            if item["kind"] == "http" and item["dir"] == "c2s":
                yield "\r\n".join([*item["head"], "", ""]).encode()


def _configurations() -> Iterator[bytes]:
    for path in sorted((HERE.parents[1] / "conf").glob("*.yaml")):
        yield _COMMENTS.sub(b"", path.read_bytes())


_RECORDED = {
    "frames": _recorded_frames,
    "handshake": lambda: _recorded_messages(TEXT),
    "batch": _recorded_batches,
    "record": _recorded_records,
    "offset": _recorded_offsets,
    "segment": _recorded_segments,
    "config": _configurations,
    "upgrade": _recorded_upgrades,
    "letters": _recorded_segments,
}


# -- of keyop itself


def write() -> None:
    """Write the inputs that are kept."""
    with tempfile.TemporaryDirectory() as directory:
        made = _of_a_messenger(Path(directory))
    made["frames"] = list(_frames())
    made["handshake"] = list(_handshakes())
    made["upgrade"] = [_request(), _request() + _from_client()]
    made["link"] = list(_links(made["batch"][:3]))
    made["config"] = [each.encode() for each in _CONFIGS]
    made["page"] = _REQUESTS
    for name, inputs in made.items():
        kept = SEEDS / name
        kept.mkdir(parents=True, exist_ok=True)
        for path in kept.iterdir():
            path.unlink()
        for number, each in enumerate(inputs):
            (kept / f"{number:02}").write_bytes(each)


def _of_a_messenger(directory: Path) -> dict[str, list[bytes]]:
    """Publish, handle and refuse; return what lies on the disk, as inputs for several targets."""
    data_dir = directory / "data"

    def refuse(message: Message) -> None:
        raise ValueError("no such customer")

    with Messenger(config(data_dir, name="there")) as messenger:
        messenger.subscribe("orders", "billing", refuse, max_retries=0)
        send = messenger.publish
        send("orders", "com.example.T", {"n": 1, "x": [True, None, 2.5]}, message_id="message-1")
        send("orders", "com.example.T", "text", correlation_id="c-1", service_name="svc")
        send("orders", "com.example.T", {"ü": '\u2028 \\ "'}, message_id='an "id"')
        messenger.publish_batch("orders", [("t", []), ("t", 12345678901234567890)])
        drain(messenger)
    channel, letters = (log_bytes(data_dir, each) for each in ("orders", "orders.dead-letter"))
    found = channel.splitlines()
    unchecked = [each[:-18] + b"}" for each in found]
    routed = [_with(each, b'"route":["first","there"]') for each in found]
    own = _with(found[0], b'"subscriber":"reader"')
    torn = [channel[:-9], channel.replace(b"\n", b"\x0b", 1), channel + bytes(600)]
    longest = [_of_length(MAX_LINE_BYTES + more) for more in (-1, 0, 1)]
    return {
        "record": [channel, b"\n".join(unchecked), b"\n".join([*routed, own])],
        "segment": [channel, letters, *torn, *longest],
        "letters": [channel, letters, *torn, channel + letters],
        "batch": [
            encode_batch(found[:1]),
            *map(encode_batch, (found, unchecked, routed, [])),
        ],
        "offset": [
            offset_path(data_dir, "orders", "billing").read_bytes(),
            *(b"0\n", b"%020d\n" % 0, b""),
        ],
    }


def _with(line: bytes, field: bytes) -> bytes:
    """Return a record with a field more."""
    return with_checksum(line.replace(b',"payload":', b"," + field + b',"payload":', 1))


def _of_length(size: int) -> bytes:
    """Return a line of so many bytes without its newline, and one behind it."""
    empty = len(record("")) - 1
    return record("x" * (size - empty), id="id-") + record("behind")


def _from_client() -> bytes:
    """Return what a client sends: its hello, a batch, an acknowledgement, its leave."""
    sent: Any = Trickle(b"")
    connection = Connection(sent, StreamReader(sent), True, 1 << 16)
    connection.send_text(Hello("there", CLIENT, ("orders",), features=FEATURES).encode())
    connection.ping()
    connection.send_binary(encode_batch([b"{}"]))
    connection.send_text(encode_ack("message-1"))
    connection.close(1001, "shutting down")
    connection.finish()
    return bytes(sent.sent)


def _frames() -> Iterator[bytes]:
    yield _from_client()
    for mask in (None, _MASK):
        parts = (
            frame(TEXT, b"\xe2\x82", fin=False, mask=mask),
            frame(PING, b"now", mask=mask),
            frame(CONTINUATION, b"\xac", mask=mask),
            frame(BINARY, b"x" * 200, mask=mask),
        )
        yield b"".join(parts)
        yield frame(BINARY, declared=1 << 40, mask=mask)
        for size in (100, 101):  # as much as a message may have, and more
            first = frame(BINARY, bytes(MAX_MESSAGE_BYTES - 100), fin=False, mask=mask)
            yield first + frame(CONTINUATION, bytes(size), mask=mask)


def _links(batches: list[bytes]) -> Iterator[bytes]:
    """Return what clients of several kinds say, unmasked in effect, so that damage hits words."""
    hello = Hello("there", CLIENT, ("orders",), features=FEATURES, max_record_bytes=1 << 20)
    for each in (hello, Hello("there", CLIENT, ("orders", "news"), True), Hello("there", CLIENT)):
        said = [(TEXT, each.encode().encode()), (PING, b"now")]
        said += [(BINARY, batch) for batch in batches]
        yield b"".join(frame(opcode, payload, mask=NO_MASK) for opcode, payload in said)
    stranger, ack = Hello("stranger", CLIENT).encode(), encode_ack("of nothing")
    yield frame(TEXT, stranger.encode(), mask=NO_MASK) + frame(TEXT, ack.encode(), mask=NO_MASK)


def _handshakes() -> Iterator[bytes]:
    client = Hello("there", CLIENT, ("orders", "news"), True, FEATURES, 1 << 20).encode().encode()
    hub = Hello("there", HUB, features=FEATURES, max_record_bytes=1 << 20).encode().encode()
    ack = encode_ack("message-1").encode()
    yield from (client, hub, ack)
    rest = [
        *((SEND, b"{}"), (SEND, b"{}"), (TEXT_STEP, ack), (BATCH_STEP, encode_batch([b"{}"]))),
        *((ACK, b""), (WAIT, bytes(30)), (WAIT, bytes(50))),
    ]
    yield conversation([(TEXT_STEP, client), (ACCEPT, b""), *rest])
    yield conversation([(TEXT_STEP, hub), *rest])


def _request() -> bytes:
    """Return how a client asks for a connection."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1)
    with listening:
        client = gevent.spawn(_dial, f"127.0.0.1:{listening.getsockname()[1]}")
        accepted, _ = listening.accept()
        with accepted:
            asked = accepted.recv(1 << 16)
    client.join()
    return asked


def _dial(address: str) -> None:
    try:
        dial(address, None)
    except OSError:  # nobody answers
        pass


_CONFIGS = [
    "name: here\nstorage: {data_dir: ./data, retention: 7d, sync_policy: always}\n",
    "storage:\n  data_dir: &d x\n  max_files: 0x10\nhub:\n  enabled: true\n"
    "  listen_addr: '[::1]:7740'\n  allowed_peers:\n  - &p {name: a, publish: [on, 2024]}\n"
    "  - {<<: *p, name: b}\n",
    '# comment\nclient:\n  enabled: yes\n  hubs:\n    - addr: "h\\u00e9:1"\n      name: ~\n'
    "web: {listen_addr: ':80', token: !!str abcdefgh12}\ntls: {min_version: 1.2}\n",
]
_AT = b"GET /api/v1/channels/orders/"
_POST = b"POST /api/v1/channels/orders/dead-letters/"
_JSON_HEAD = b"\nHost: localhost\nContent-Type: application/json; charset=utf-8\n\n"
_REQUESTS = [
    b"GET / HTTP/1.1\nHost: localhost:8080\nAccept: text/html",
    b"HEAD /static/page.js\nHost: 127.0.0.1",
    b"GET /healthz",
    b"GET /api/v1/overview\nHost: [::1]:80\nRemote-Addr: ::1",
    b"GET /api/v1/history\nAuthorization: Bearer " + TOKEN.encode(),
    b"GET /metrics\nAccept: application/openmetrics-text; version=1.0.0; escaping=dots",
    _AT + b"messages?from=earliest&limit=2&where=payload.n=1&text=message",
    _AT + b"messages?before=300&where=correlation_id=c-1",
    _AT + b"messages?from=2026-01-02T03:04:05.5Z",
    _AT + b"messages?from=-1h30m&where=id=%22message-1%22",
    _AT + b"events?from=0\nLast-Event-ID: 150",
    _AT + b"dead-letters?limit=1&after=letter-1",
    b"GET /api/v1/channels/orders.dead-letter/messages?from=17",
    _POST + b"requeue" + _JSON_HEAD + b'{"ids":["letter-1","lett"],"to":"channel"}',
    _POST + b"requeue" + _JSON_HEAD + b'{"all":true,"to":"subscriber"}',
    _POST + b"purge\nSec-Fetch-Site: same-origin" + _JSON_HEAD + b'{"ids":["letter-3"]}',
    b"POST /api/v1/login\nOrigin: http://localhost" + _JSON_HEAD + b'{"token":"a-token-of-ours"}',
    b"POST /api/v1/logout\nCookie: keyop-0=1; a=b" + _JSON_HEAD + b"{}",
]

if __name__ == "__main__":
    write()
