"""NATS JetStream: one stream on files, and a durable consumer for each subscriber."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Sequence

import nats
import orjson
from nats.aio.msg import Msg
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    ExternalStream,
    PubAck,
    StreamSource,
)

from keyop.bench.peers.client import Client, Handle, Payload, batches, shares
from keyop.bench.peers.place import CHANNEL, HOST, PUBLISHER, Place

_STREAM = "stream"
# How many messages may be under way: to the server unconfirmed, or from it unacknowledged.
_WINDOW = 1_000


class NatsClient(Client):
    """A connection, on an event loop that runs while something is done."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._connect())

    async def _connect(self) -> None:
        tls = None
        if certificate := self.place.certificate:
            tls = ssl.create_default_context(cafile=certificate.ca)
            tls.load_cert_chain(certificate.cert, certificate.key)
        scheme = "tls" if tls else "nats"
        self._nats = await nats.connect(
            f"{scheme}://{HOST}:{self.place.port}", tls=tls, allow_reconnect=False
        )
        self._stream = self._nats.jetstream(publish_async_max_pending=_WINDOW)
        if self.place.mirrors:
            near = ExternalStream(api=f"$JS.{PUBLISHER}.API")
            await self._stream.add_stream(
                name=_STREAM, mirror=StreamSource(name=_STREAM, external=near)
            )
        else:
            await self._stream.add_stream(name=_STREAM, subjects=[CHANNEL])

    def publish(self, payloads: Iterable[Payload]) -> None:
        self._loop.run_until_complete(self._publish(payloads))

    async def _publish(self, payloads: Iterable[Payload]) -> None:
        for each in payloads:
            await self._stream.publish(CHANNEL, orjson.dumps(each))

    def batch(self, payloads: Sequence[Payload]) -> None:
        async def publish() -> None:
            for some in batches(payloads):
                await asyncio.gather(*[await self._begin(each) for each in some])

        self._loop.run_until_complete(publish())

    async def _begin(self, payload: Payload) -> asyncio.Future[PubAck]:
        return await self._stream.publish_async(CHANNEL, orjson.dumps(payload))

    def stream(self, payloads: Sequence[Payload]) -> None:
        async def publish() -> None:
            for each in payloads:
                await self._begin(each)
            await self._stream.publish_async_completed()

        self._loop.run_until_complete(publish())

    def publish_together(self, payloads: Sequence[Payload]) -> None:
        async def publish() -> None:
            await asyncio.gather(*[self._publish(share) for share in shares(payloads)])

        self._loop.run_until_complete(publish())

    def subscribe(self) -> None:
        config = ConsumerConfig(
            durable_name=self.place.name,
            deliver_policy=DeliverPolicy.NEW,
            deliver_subject=f"deliver.{self.place.name}",
            ack_policy=AckPolicy.EXPLICIT,
            max_ack_pending=_WINDOW,
        )
        self._loop.run_until_complete(self._stream.add_consumer(_STREAM, config))

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        self._loop.run_until_complete(self._consume(handle, ready))

    async def _consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        done: asyncio.Future[None] = self._loop.create_future()

        async def handled(message: Msg) -> None:
            try:
                last = handle(orjson.loads(message.data))
                await message.ack()
            except Exception as error:  # the library would log it and go on
                done.set_exception(error)
                return
            if last:
                done.set_result(None)

        # The server delivers by itself: a fetch of many waits until it has them all, and a fetch of
        # each costs a round trip.
        config = (await self._stream.consumer_info(_STREAM, self.place.name)).config
        subscription = await self._stream.subscribe_bind(
            _STREAM, config, self.place.name, cb=handled, manual_ack=True
        )
        await self._nats.flush()
        ready()
        await done
        await self._nats.flush()
        await subscription.unsubscribe()

    def close(self) -> None:
        self._loop.run_until_complete(self._nats.close())
        self._loop.close()
