"""What a peer sends to a hub once it is connected: hello, batches, acknowledgements, anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent

from keyop import Messenger
from keyop.fs import SYSTEM_FS
from keyop.storage.cursor import Cursor, Lines
from keyop.wire.frames import decode_batch
from keyop.wire.messages import HUB, Hello, decode_ack
from tests.integration.helpers import config, crc_holds
from tests.transport.helpers import BINARY, CLOSE, PING, PONG, TEXT, frame

from .frames import sent_frames
from .streams import WHOLE, Trickle
from .wire import mended as mended_batch

NAME, PEER = "here", "there"
CHANNELS = ("orders", "news")
MASK = bytes(4)
_HEAD = (
    b"GET / HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_PATIENCE_S = 20.0
# How often the other side, which has said everything, looks whether it is stored.
_POLL_S = 0.0002
_SWEEP_EVERY = 64


class _Patient(Trickle):
    """The other side does not go before what it has sent is stored."""

    def __init__(self, data: bytes, hub: Any) -> None:
        super().__init__(data, WHOLE)
        self._hub = hub

    def recv(self, size: int, how: int = 0) -> bytes:
        data = super().recv(size, how)
        if not data and not self.closed:
            gevent.sleep(_POLL_S)
            while self._hub_is_at_work():
                gevent.sleep(_POLL_S)
        return data

    def _hub_is_at_work(self) -> bool:
        receivers = [each.receiver for each in self._hub._clients]
        return any(each is not None and each._errand.running for each in receivers)


@contextmanager
def links(directory: Path) -> Iterator[Callable[[bytes], None]]:
    """Give what takes all that a peer sends: sound records of allowed channels are stored of it."""
    data_dir = directory / "data"
    peer = {"name": PEER, "publish": list(CHANNELS), "subscribe": list(CHANNELS)}
    made = config(
        data_dir,
        name=NAME,
        # So that nothing of the inputs before is remembered, or fills the disk.
        dedup={"seen_id_lru_size": 0},
        storage={"sync_policy": "none", "max_files": 2, "max_segment_bytes": 1 << 16},
        hub={"enabled": True, "listen_addr": "127.0.0.1:0", "allowed_peers": [peer]},
    )
    with Messenger(made) as messenger:
        messenger.start()
        hub: Any = messenger._federation.hub  # type: ignore[union-attr]
        cursors = {
            each: Cursor(SYSTEM_FS, str(data_dir / "channels" / each), 1 << 20) for each in CHANNELS
        }
        count = 0

        def feed(data: bytes) -> None:
            nonlocal count
            stream: Any = _Patient(_HEAD + data, hub)
            hub._listener.handle(stream, ("127.0.0.1", 1))
            with gevent.Timeout(_PATIENCE_S, AssertionError("the connection is not ended")):
                while not stream.closed or hub.connected:
                    gevent.sleep(0)
            assert len(hub._listener.pending) == 0
            _check_answers(bytes(stream.sent))
            names = os.listdir(data_dir / "channels")
            assert {each.removesuffix(".dead-letter") for each in names} <= set(CHANNELS)
            for channel in set(names) & set(CHANNELS):
                _check_stored(cursors[channel], channel)
            count += 1
            if count % _SWEEP_EVERY == 0:
                messenger.sweep()

        try:
            yield feed
        finally:
            for each in cursors.values():
                each.close()


def _check_answers(sent: bytes) -> None:
    """A hub says hello first, then acknowledges and sends batches."""
    head, _, rest = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    answers = [each for each in sent_frames(rest) if each.opcode not in (PING, PONG, CLOSE)]
    for number, each in enumerate(answers):
        assert each.opcode in (TEXT, BINARY)
        if each.opcode == BINARY:
            assert number
            decode_batch(each.payload)
        elif number:
            decode_ack(each.payload.decode())
        else:
            assert Hello.decode(each.payload.decode(), HUB).instance_name == NAME


def _check_stored(cursor: Cursor, channel: str) -> None:
    """What has come to a channel is whole lines, each with its checksum and this way in it."""
    while (found := cursor.read(look_around=True)) is not None:
        if isinstance(found, Lines):
            for line in found.lines:
                assert crc_holds(line + b"\n")
                assert b'"channel":"' + channel.encode() + b'"' in line
                assert b'"' + NAME.encode() + b'"],"payload":' in line


def mended(data: bytes) -> bytes:
    """Return frames of what looks like some, masked, with batches that are almost right."""
    pieces = []
    position = 0
    while position + 6 <= len(data):
        first, second = data[position], data[position + 1] & 0x7F
        extra = 2 if second == 126 else 8 if second == 127 else 0
        begin = position + 2 + extra + 4
        size = int.from_bytes(data[position + 2 : position + 2 + extra], "big") if extra else second
        payload = data[begin : begin + size]
        if first & 0xF == BINARY:
            payload = mended_batch(payload) or payload
        pieces.append(frame(first & 0xF, payload, fin=bool(first & 0x80), mask=MASK))
        position = begin + size
    return b"".join(pieces)
