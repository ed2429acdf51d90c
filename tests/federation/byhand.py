"""The other side by hand: a client of a hub, and a hub for clients, that do as the test says."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gevent
from gevent.event import Event
from gevent.queue import Queue

from keyop.transport.accept import Accepted, Listener
from keyop.transport.contexts import CLIENT_AUTH, SERVER_AUTH, Credentials
from keyop.transport.dial import dial
from keyop.transport.websocket import Connection, WebSocketClosedError
from keyop.wire.frames import decode_batch, encode_batch
from tests.integration.helpers import record

from .helpers import Instances

WAIT_S = 10.0
LARGEST = 64 << 20


def made(payload: Any = 0, **fields: Any) -> bytes:
    """Return a record as v0.11.0 sends it, with an id of its own unless there is one."""
    fields.setdefault("id", str(uuid.uuid4()))
    return record(payload, crc=False, **fields).rstrip(b"\n")


class Hand:
    """One open connection, and what is sent and read on it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        connection.trust(LARGEST)

    def say(self, **fields: Any) -> None:
        """Send a text message."""
        self.connection.send_text(json.dumps(fields))

    def send(self, *records: bytes) -> None:
        """Send a batch."""
        self.connection.send_binary(encode_batch(records))

    def read(self, timeout: float = WAIT_S) -> str | bytes:
        """Return the next message.

        Raises:
            WebSocketClosedError: there is none any more.
        """
        with gevent.Timeout(timeout, AssertionError(f"nothing came within {timeout} s")):
            return self.connection.receive()

    def hear(self) -> dict[str, Any]:
        """Return the next message, which is text."""
        message = self.read()
        assert isinstance(message, str), message[:200]
        heard: dict[str, Any] = json.loads(message)
        return heard

    def acknowledged(self, last_id: str = "") -> str:
        """Wait for an acknowledgement; return the id in it."""
        heard = self.hear()
        assert list(heard) == ["last_id"], heard
        return str(heard["last_id"])

    def take(self, acknowledge: bool = True) -> list[bytes]:
        """Return the records of the next batch; acknowledge it unless told not to."""
        message = self.read()
        assert isinstance(message, bytes), message
        records = decode_batch(message)
        if acknowledge:
            self.say(last_id=json.loads(records[-1])["id"])
        return records

    def take_until(self, count: int) -> list[Any]:
        """Take batches until there are so many records; return their payloads."""
        payloads: list[Any] = []
        while len(payloads) < count:
            payloads += [json.loads(each)["payload"] for each in self.take()]
        return payloads

    def closed(self) -> WebSocketClosedError:
        """Wait for the end, whatever comes before it; return how it came."""
        try:
            while True:
                self.read()
        except WebSocketClosedError as closed:
            return closed
        finally:
            self.drop()

    def drop(self) -> None:
        """End it, without a word if it is open."""
        self.connection.drop()
        self.connection.finish()


class PeerByHand(Hand):
    """A client of a hub.

    Args:
        hello: fields of its hello beside those of a v0.11.0 client that subscribes to nothing;
            those that are None are left out.
    """

    def __init__(self, instances: Instances, name: str, address: str, **hello: Any) -> None:
        tls = instances.tls(name)
        context = Credentials.load(**tls).context(SERVER_AUTH)
        super().__init__(dial(address, context).connection)
        self.name = name
        fields = {"instance_name": name, "role": "client", "version": "1", **hello}
        self.fields = {key: value for key, value in fields.items() if value is not None}

    def greet(self) -> dict[str, Any]:
        """Send the hello; return the hub's.

        Raises:
            WebSocketClosedError: it did not answer.
        """
        self.say(**self.fields)
        return self.hear()


class HubByHand:
    """A hub: keeps the connections that come, for the test to take.

    Args:
        tls: the files of its certificate; None for plain connections.
    """

    def __init__(self, tls: dict[str, str] | None, address: str = "127.0.0.1:0") -> None:
        context = Credentials.load(**tls).context(CLIENT_AUTH) if tls else None
        self.refused: list[str] = []
        self._arrived: Queue[Hand] = Queue()
        self._leaving: list[Callable[[], None]] = []
        self._listener = Listener(
            address,
            lambda: context,
            self._serve,
            lambda address, reason: self.refused.append(reason),
            128,
        )
        self._listener.start()
        self.address = f"127.0.0.1:{self._listener.server_port}"

    def _serve(self, accepted: Accepted) -> None:
        done = Event()
        self._leaving.append(done.set)
        accepted.known(LARGEST)
        self._arrived.put(Hand(accepted.connection))
        done.wait()
        accepted.connection.drop()
        accepted.connection.finish()

    def next(self, timeout: float = WAIT_S) -> Hand:
        """Wait for a connection."""
        hand: Hand = self._arrived.get(timeout=timeout)
        return hand

    def answer(self, hand: Hand, **fields: Any) -> dict[str, Any]:
        """Take a client's hello and send this hub's; return the client's."""
        heard = hand.hear()
        hand.say(**{"instance_name": "hub", "role": "hub", "version": "1", **fields})
        return heard

    @property
    def arrived(self) -> int:
        """How many connections wait to be taken."""
        return self._arrived.qsize()

    def close(self) -> None:
        for leave in self._leaving:
            leave()
        self._listener.end(2.0)


def ids(records: Iterable[bytes]) -> list[str]:
    return [json.loads(each)["id"] for each in records]


def split(records: Sequence[bytes], size: int) -> list[Sequence[bytes]]:
    return [records[start : start + size] for start in range(0, len(records), size)]
