"""R7: damaged frames, handshakes and records, without a network: none may crash anything.

Everything that reads what a peer sends is fed what is almost right. It may take it, or refuse it
with the one error that it promises; it must do so without keeping what it was fed.
"""

from __future__ import annotations

import json
import os
import traceback
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from gevent import socket

from keyop.errors import ProtocolError
from keyop.federation.admission import Admission, MalformedError
from keyop.names import check_channel
from keyop.transport.accept import Accepted, Listener
from keyop.transport.reader import StreamReader
from keyop.transport.websocket import Connection, WebSocketClosedError
from keyop.wire.frames import encode_batch
from keyop.wire.messages import CLIENT, HUB, Hello
from keyop.wire.session import Session, State
from tests.integration.helpers import crc_holds, record
from tests.transport.helpers import frame, tcp_pair

from .children import Child, arguments, say
from .mutations import mutated
from .row import Row, Run

TITLE = "fuzzed frames, handshakes and records"
_MAX_RSS = 64 << 20
_MAX_RECORD_BYTES = 4096
_MAX_MESSAGE_BYTES = 64 << 10
_PEER = "alpha"
# Of a hundred inputs; upgrades take sockets.
_SHARES = {"frames": 30, "upgrades": 3, "handshakes": 22, "batches": 10, "records": 35}
_SHOWN = 300
_PATIENCE_S = 3600.0


def run(run: Run) -> Row:
    """Feed a process a million inputs, or some thousands."""
    row = Row("R7", TITLE)
    row.count(crashes=0, refused=0, taken=0)
    with Child(
        "r07_fuzz", run.directory, seed=run.seed, count=run.either(100_000, 1_000_000)
    ) as fed:
        fed.wait_done(_PATIENCE_S)
        for line in fed.new_lines():
            what, *words = line.split(maxsplit=1)
            if what == "crash":
                row.count(crashes=1)
                row.problem(json.loads(words[0]))
            elif what == "rss":
                row.note(rss_growth_mib=int(words[0]) / (1 << 20))
                row.expect(int(words[0]) <= _MAX_RSS, f"memory grew by {int(words[0]):,} bytes")
            else:
                row.count(**{what: int(words[0])})
        row.expect("Traceback" not in fed.errors, fed.errors)
    row.expect(row.figures["refused"] and row.figures["taken"], "nothing was refused, or taken")
    return row


# -- in the process


def main() -> None:
    args = arguments()
    rng = Random(args["seed"])
    fuzzers = Fuzzers(rng)
    kinds = [getattr(fuzzers, name) for name, share in _SHARES.items() for _ in range(share)]
    before = _rss()
    counts = {"refused": 0, "taken": 0}
    for number in range(args["count"]):
        fuzz: Callable[[], bool] = kinds[number % len(kinds)]
        try:
            taken = fuzz()
        except Exception:
            text = f"input {number}: {fuzzers.data[:_SHOWN]!r}\n{traceback.format_exc()}"
            say("crash", json.dumps(text))
        else:
            counts["taken" if taken else "refused"] += 1
    say("rss", _rss() - before)
    for name, count in counts.items():
        say(name, count)
    for name, share in _SHARES.items():
        say(name, args["count"] * share // len(kinds))
    fuzzers.close()


def _rss() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Stream:
    """A connection on which these bytes come, in pieces, and what is sent is forgotten."""

    def __init__(self, rng: Random, data: bytes) -> None:
        self._rng = rng
        self._data = data

    def recv(self, size: int) -> bytes:
        size = min(size, self._rng.choice((1, 7, 1 << 16, 1 << 16)))
        data, self._data = self._data[:size], self._data[size:]
        return data

    def send(self, data: bytes | memoryview) -> int:
        return len(data)

    def sendall(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        self._data = b""


class Fuzzers:
    """Each returns whether what it made was taken. ``data`` is what was made last."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.data = b""
        self._admission = Admission("hub", _PEER, _MAX_RECORD_BYTES)
        self._records = [
            record(0, crc=True),
            record({"a": [1, 2.5, "x\n"]}, correlation_id="c-1", service_name="svc"),
            record("text", crc=False, route=["a", _PEER]),
            record([], ts="2026-11-23T09:22:37Z", id="short", zz={"a": 1, "payload": 2}),
            record(None, raw="[" * 300 + "]" * 300),
        ]
        self._hellos = [
            Hello(_PEER, role, ("orders", "x"), True, ("window", "crc"), 1 << 20).encode().encode()
            for role in (CLIENT, HUB)
        ]
        self._served: list[Accepted] = []
        self._listener = Listener(
            "127.0.0.1:0", lambda: None, self._serve, lambda address, reason: None, 8
        )

    def close(self) -> None:
        self._listener.end(1.0)

    def frames(self) -> bool:
        """Frames, on either side of a connection."""
        rng, client = self._rng, self._rng.random() < 0.5
        mask = None if client else rng.randbytes(4)
        sent = b"".join(
            frame(
                rng.choice((0, 1, 2, 2, 8, 9, 10)),
                rng.choice((b"", b"x" * 125, b"\x03\xe8", b"x" * 200, b"\xe2\x82")),
                fin=rng.random() < 0.7,
                mask=mask,
            )
            for _ in range(rng.randint(1, 5))
        )
        self.data = mutated(rng, sent)
        stream: Any = _Stream(rng, self.data)
        connection = Connection(stream, StreamReader(stream), client, _MAX_MESSAGE_BYTES)
        taken = False
        try:
            while True:
                message = connection.receive()
                _insist(len(message) <= _MAX_MESSAGE_BYTES)
                taken = True
        except WebSocketClosedError as closed:
            _insist(1000 <= closed.code <= 4999)
        finally:
            connection.finish()
        return taken

    def upgrades(self) -> bool:
        """The request that makes a stranger's connection into a WebSocket one."""
        head = (
            b"GET / HTTP/1.1\r\nHost: hub:7740\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.data = mutated(self._rng, head)
        near, far = tcp_pair()
        self._served.clear()
        with far:
            far.sendall(self.data)
            far.shutdown(socket.SHUT_WR)
            self._listener.handle(near, ("127.0.0.1", 1))
            try:
                while far.recv(1 << 16):
                    pass
            except ConnectionError:  # closed before all of it was read
                pass
        return bool(self._served)

    def _serve(self, accepted: Accepted) -> None:
        self._served.append(accepted)
        accepted.connection.drop()
        accepted.connection.finish()

    def handshakes(self) -> bool:
        """The hello of either side, and the acknowledgements that follow it."""
        rng, role = self._rng, self._rng.choice((CLIENT, HUB))
        session = Session(Hello("hub", role), 8, 0.0)
        self.data = mutated(rng, self._hellos[role == CLIENT])
        try:
            session.receive(self.data.decode("utf-8", "replace"), 0.0)
            if session.state is State.DECIDING:
                session.accept()
            session.send_batch([b"{}"], "token")
            self.data = mutated(rng, b'{"last_id":"0b5e9a4c-0000-4000-8000-000000000000"}')
            session.receive(self.data.decode("utf-8", "replace"), 0.0)
        except ProtocolError as error:
            _insist(session.state is State.CLOSED and error.code in (1002, 1003))
            return False
        return True

    def batches(self) -> bool:
        """The records' lengths in a binary message."""
        session = Session(Hello("hub", HUB), 8, 0.0)
        session.receive(self._hellos[0].decode(), 0.0)
        session.accept()
        whole = [line.rstrip(b"\n") for line in self._rng.sample(self._records, 3)]
        self.data = mutated(self._rng, encode_batch(whole))
        try:
            event: Any = session.receive(self.data, 0.0)
        except ProtocolError as error:
            _insist(error.code == 1002)
            return False
        _insist(sum(4 + len(each) for each in event.records) == len(self.data))
        return True

    def records(self) -> bool:
        """A record, which becomes one sound line or nothing. One admission sees all of them."""
        rng = self._rng
        line = mutated(rng, rng.choice(self._records).rstrip(b"\n"))
        if rng.random() < 0.3:  # a right checksum, so that what is inside is looked at
            line = line[:-1] + b',"crc":"%08x"}' % zlib.crc32(line[:-1])
        self.data = line
        try:
            stored = self._admission.admit(line).line
        except MalformedError:
            return False
        _insist(len(stored) <= _MAX_RECORD_BYTES and stored.find(b"\n") == len(stored) - 1)
        _insist(crc_holds(stored))
        head = json.loads(stored[: stored.index(b',"payload":')] + b"}")
        check_channel(head["channel"])
        _insist(head["route"][-1] == "hub")
        return True


def _insist(holds: bool) -> None:
    if not holds:
        raise AssertionError("it was taken, or refused, in another way than it should be")


if __name__ == "__main__":
    main()
