"""Queues of one host on SQLite, as libraries; their readers poll."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from keyop.bench.peers.client import Client, Handle, Payload, batches, in_threads
from keyop.bench.peers.place import Place

_POLL_S = 0.001


class _Queue(Client):
    """What they have in common: one queue, one subscriber, which polls."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._lock = threading.Lock()

    @abstractmethod
    def _put(self, body: bytes) -> None:
        """Add one message; it is confirmed on return."""

    @abstractmethod
    def _take(self) -> tuple[Any, bytes | str] | None:
        """Return the next message and what acknowledges it, or None."""

    @abstractmethod
    def _acknowledge(self, taken: Any) -> None:
        """Have a message not come again."""

    def publish(self, payloads: Iterable[Payload]) -> None:
        for each in payloads:
            self._put(orjson.dumps(each))

    def batch(self, payloads: Sequence[Payload]) -> None:
        self.publish(payloads)

    def publish_together(self, payloads: Sequence[Payload]) -> None:
        def publish(share: Sequence[Payload]) -> None:
            for each in share:
                body = orjson.dumps(each)
                with self._lock:
                    self._put(body)

        in_threads(publish, payloads)

    def subscribe(self) -> None:
        """Nothing to do: what is published is kept for whoever takes it."""

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        ready()
        while True:
            taken = self._take()
            if taken is None:
                self.sleep(_POLL_S)
                continue
            last = handle(orjson.loads(taken[1]))
            self._acknowledge(taken[0])
            if last:
                return


class PersistQueueClient(_Queue):
    """persist-queue's SQLiteAckQueue."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from persistqueue import Empty, SQLiteAckQueue

        self._empty = Empty
        self._queue = SQLiteAckQueue(
            f"{place.directory}/queue", multithreading=True, serializer=_Bytes
        )

    def _put(self, body: bytes) -> None:
        self._queue.put(body)

    def _take(self) -> tuple[Any, bytes | str] | None:
        try:
            taken = self._queue.get(block=False, raw=True)
        except self._empty:
            return None
        return taken["pqid"], taken["data"]

    def _acknowledge(self, taken: Any) -> None:
        self._queue.ack(id=taken)

    def close(self) -> None:
        self._queue.close()


class _Bytes:
    """A serializer for what is serialized."""

    @staticmethod
    def dumps(value: bytes, **_options: object) -> bytes:
        return value

    @staticmethod
    def loads(value: bytes) -> bytes:
        return value


class LiteQueueClient(_Queue):
    """litequeue, whose database has synchronous=NORMAL unless it is told otherwise."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from litequeue import LiteQueue

        self._queue = LiteQueue(f"{place.directory}/queue.db", timeout=30)
        if place.power:
            self._queue.conn.execute("PRAGMA synchronous = FULL")

    def _put(self, body: bytes) -> None:
        self._queue.put(body.decode())

    def batch(self, payloads: Sequence[Payload]) -> None:
        for some in batches(payloads):
            with self._queue.transaction():
                self.publish(some)

    def _take(self) -> tuple[Any, bytes | str] | None:
        taken = self._queue.pop()
        return None if taken is None else (taken.message_id, taken.data)

    def _acknowledge(self, taken: Any) -> None:
        self._queue.done(taken)

    def close(self) -> None:
        self._queue.close()


class DiskCacheClient(_Queue):
    """diskcache's Deque: a message is looked at, handled, and then taken off."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from diskcache import Cache, Deque

        options = {"sqlite_synchronous": 2} if place.power else {}
        self._cache = Cache(f"{place.directory}/deque", eviction_policy="none", **options)
        self._deque = Deque.fromcache(self._cache)

    def _put(self, body: bytes) -> None:
        self._deque.append(body)

    def batch(self, payloads: Sequence[Payload]) -> None:
        for some in batches(payloads):
            with self._deque.transact():
                self.publish(some)

    def _take(self) -> tuple[Any, bytes | str] | None:
        try:
            return None, self._deque.peekleft()
        except IndexError:
            return None

    def _acknowledge(self, taken: Any) -> None:
        self._deque.popleft()

    def close(self) -> None:
        self._cache.close()
