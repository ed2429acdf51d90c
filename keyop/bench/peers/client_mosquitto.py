"""MQTT with QoS 1 and persistent sessions; the client has a thread for its socket."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import orjson
from paho.mqtt.client import Client as Connection
from paho.mqtt.client import MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion

from keyop.bench.peers.client import Client, Handle, Payload, batches, in_threads
from keyop.bench.peers.place import CHANNEL, HOST, Place

_WINDOW = 1_000
_DEADLINE_S = 30.0


class MosquittoClient(Client):
    """A connection for publishing; consuming has one of its own, whose session persists."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._connection = self._connected(f"{place.name}-sends", clean=True)

    def _connected(
        self, name: str, clean: bool, received: Callable[[MQTTMessage], None] | None = None
    ) -> Connection:
        made = Connection(CallbackAPIVersion.VERSION2, client_id=name, clean_session=clean)
        made.max_inflight_messages_set(_WINDOW)
        if certificate := self.place.certificate:
            made.tls_set(certificate.ca, certificate.cert, certificate.key)
        if received is not None:
            made.on_message = lambda _client, _data, message: received(message)
        there = threading.Event()
        made.on_connect = lambda *_: there.set()
        made.connect(HOST, self.place.port)
        made.loop_start()
        if not there.wait(_DEADLINE_S):
            raise TimeoutError("the broker does not answer")
        return made

    def _begin(self, payload: Payload) -> MQTTMessageInfo:
        return self._connection.publish(CHANNEL, orjson.dumps(payload), qos=1)

    def publish(self, payloads: Iterable[Payload]) -> None:
        for each in payloads:
            _confirm(self._begin(each))

    def batch(self, payloads: Sequence[Payload]) -> None:
        for some in batches(payloads):
            for begun in [self._begin(each) for each in some]:
                _confirm(begun)

    def stream(self, payloads: Sequence[Payload]) -> None:
        begun: deque[MQTTMessageInfo] = deque()
        for each in payloads:
            begun.append(self._begin(each))
            if len(begun) == _WINDOW:
                _confirm(begun.popleft())
        for left in begun:
            _confirm(left)

    def publish_together(self, payloads: Sequence[Payload]) -> None:
        in_threads(self.publish, payloads)

    def subscribe(self) -> None:
        session = self._connected(self.place.name, clean=False)
        there = threading.Event()
        session.on_subscribe = lambda *_: there.set()
        session.subscribe(CHANNEL, qos=1)
        if not there.wait(_DEADLINE_S):
            raise TimeoutError("the broker does not confirm the subscription")
        _disconnect(session)

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def handled(message: MQTTMessage) -> None:
            # It is acknowledged when this returns.
            try:
                if handle(orjson.loads(message.payload)):
                    done.put(None)
            except Exception as error:  # it would end the client's thread and nothing else
                done.put(error)

        session = self._connected(self.place.name, clean=False, received=handled)
        ready()
        failed = done.get()
        _disconnect(session)
        if failed is not None:
            raise failed

    def close(self) -> None:
        _disconnect(self._connection)


def _confirm(begun: MQTTMessageInfo) -> None:
    """Wait until the broker has it."""
    begun.wait_for_publish(_DEADLINE_S)
    if not begun.is_published():  # it returns all the same when the time is over
        raise TimeoutError("the broker does not confirm a message")


def _disconnect(connection: Connection) -> None:
    connection.disconnect()
    connection.loop_stop()
