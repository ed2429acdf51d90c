"""RabbitMQ: one durable queue, persistent messages, publisher confirms."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson
import pika

from keyop.bench.peers.client import Client, Handle, Payload, in_threads
from keyop.bench.peers.place import CHANNEL, HOST, TOGETHER, Place

_WINDOW = 1_000
_PERSISTENT = pika.BasicProperties(delivery_mode=2)


class RabbitClient(Client):
    """A blocking connection; each of 64 publishers has its own, since they wait for it."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._connection = self._connected()
        self._confirming = self._channel(self._connection)
        self._others: list[Any] = []

    def _connected(self) -> Any:
        return pika.BlockingConnection(pika.ConnectionParameters(HOST, self.place.port))

    def _channel(self, connection: Any) -> Any:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(CHANNEL, durable=True)
        return channel

    def publish(self, payloads: Iterable[Payload]) -> None:
        _publish(self._confirming, payloads)

    def batch(self, payloads: Sequence[Payload]) -> None:
        """Fill the queue; not one of its measures, as the client confirms one at a time."""
        channel = self._connection.channel()
        _publish(channel, payloads)
        channel.queue_declare(CHANNEL, passive=True)  # answered after what was sent before it
        channel.close()

    def publish_together(self, payloads: Sequence[Payload]) -> None:
        while len(self._others) < TOGETHER:
            self._others.append(self._channel(self._connected()))
        channels: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for channel in self._others:
            channels.put(channel)
        in_threads(lambda share: _publish(channels.get(), share), payloads)

    def subscribe(self) -> None:
        """Nothing to do: the queue is there, and keeps what is published."""

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        channel = self._connection.channel()
        channel.basic_qos(prefetch_count=_WINDOW)

        def handled(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            last = handle(orjson.loads(body))
            channel.basic_ack(method.delivery_tag)
            if last:
                channel.stop_consuming()

        channel.basic_consume(CHANNEL, handled)
        ready()
        channel.start_consuming()
        channel.close()

    def close(self) -> None:
        for channel in self._others:
            channel.connection.close()
        self._connection.close()


def _publish(channel: Any, payloads: Iterable[Payload]) -> None:
    for each in payloads:
        channel.basic_publish("", CHANNEL, orjson.dumps(each), _PERSISTENT)
