"""honker: streams on SQLite, whose library looks each millisecond whether the database changed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence

import honker

from keyop.bench.peers.client import Client, Handle, Payload, batches, in_threads
from keyop.bench.peers.place import CHANNEL, Place

_LAST = "SELECT coalesce(max(offset), 0) AS last FROM _honker_stream WHERE topic = ?"


class HonkerClient(Client):
    """A database in WAL mode with synchronous=NORMAL, which cannot be told otherwise."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._database = honker.open(f"{place.directory}/honker.db")
        self._stream = self._database.stream(CHANNEL)

    def publish(self, payloads: Iterable[Payload]) -> None:
        for each in payloads:
            self._stream.publish(each)

    def batch(self, payloads: Sequence[Payload]) -> None:
        for some in batches(payloads):
            with self._database.transaction() as transaction:
                for each in some:
                    self._stream.publish(each, tx=transaction)

    def publish_together(self, payloads: Sequence[Payload]) -> None:
        lock = threading.Lock()

        def publish(share: Sequence[Payload]) -> None:
            for each in share:
                with lock:
                    self._stream.publish(each)

        in_threads(publish, payloads)

    def subscribe(self) -> None:
        (row,) = self._database.query(_LAST, [CHANNEL])
        self._stream.save_offset(self.place.name, row["last"])

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        async def consume() -> None:
            name = self.place.name
            events = self._stream.subscribe(name, save_every_n=0, save_every_s=0)
            ready()
            async for event in events:
                last = handle(event.payload)
                self._stream.save_offset(name, event.offset)
                if last:
                    return

        asyncio.run(consume())

    def close(self) -> None:
        self._database.close()
