"""Redis Streams: a stream, and a consumer group for each subscriber."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson
import redis

from keyop.bench.peers.client import Client, Handle, Payload, batches, in_threads
from keyop.bench.peers.place import CHANNEL, HOST, TOGETHER, Place

_BLOCK_MS = 1_000
_PIPELINE = 512


class RedisClient(Client):
    """A pool of connections, for threads to share."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        options: dict[str, Any] = {}
        if place.certificate:
            options = {
                "ssl": True,
                "ssl_certfile": place.certificate.cert,
                "ssl_keyfile": place.certificate.key,
                "ssl_ca_certs": place.certificate.ca,
            }
        # Its annotations are those of the synchronous and the asynchronous client at once.
        self._redis: Any = redis.Redis(HOST, place.port, max_connections=TOGETHER + 1, **options)

    def publish(self, payloads: Iterable[Payload]) -> None:
        for each in payloads:
            self._redis.xadd(CHANNEL, {"body": orjson.dumps(each)})

    def batch(self, payloads: Sequence[Payload]) -> None:
        self._publish_many(payloads, TOGETHER)

    def stream(self, payloads: Sequence[Payload]) -> None:
        self._publish_many(payloads, _PIPELINE)

    def _publish_many(self, payloads: Sequence[Payload], size: int) -> None:
        for some in batches(payloads, size):
            pipeline = self._redis.pipeline(transaction=False)
            for each in some:
                pipeline.xadd(CHANNEL, {"body": orjson.dumps(each)})
            pipeline.execute()

    def publish_together(self, payloads: Sequence[Payload]) -> None:
        in_threads(self.publish, payloads)

    def subscribe(self) -> None:
        self._redis.xgroup_create(CHANNEL, self.place.name, id="$", mkstream=True)

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        name = self.place.name
        ready()
        while True:
            answer = self._redis.xreadgroup(
                name, "only", {CHANNEL: ">"}, count=TOGETHER, block=_BLOCK_MS
            )
            for _, messages in _streams(answer):
                for identity, fields in messages:
                    last = handle(orjson.loads(fields[b"body"]))
                    self._redis.xack(CHANNEL, name, identity)
                    if last:
                        return

    def close(self) -> None:
        self._redis.close()


def _streams(answer: Any) -> list[Any]:
    """Return the streams of an answer, which is a mapping in protocol 3 and pairs in 2."""
    if isinstance(answer, dict):
        return [(name, pages[0] if pages else []) for name, pages in answer.items()]
    return list(answer or ())
