"""keyop's ephemeral clients: what they publish is kept by the hub, as by anybody else's server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gevent
from gevent.event import Event

from keyop.bench.local import PAYLOAD_TYPE
from keyop.bench.peers.client import Handle, Payload
from keyop.bench.peers.client_keyop import GeventClient
from keyop.bench.peers.place import CHANNEL, HOST, Place
from keyop.envelope import Message
from keyop.federation.ephemeral import EphemeralMessenger

# So many publishers wait for the hub at a time, which fills its window.
_PUBLISHERS = 1024


class KeyopGuest(GeventClient):
    """An ephemeral messenger."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        assert place.certificate is not None
        self._messenger = EphemeralMessenger(
            f"{HOST}:{place.port}", tls=vars(place.certificate), write_queue_size=_PUBLISHERS
        )

    def publish(self, payloads: Iterable[Payload]) -> None:
        send = self._messenger.publish
        for each in payloads:
            send(CHANNEL, PAYLOAD_TYPE, each)

    def batch(self, payloads: Sequence[Payload]) -> None:
        raise NotImplementedError("it has no batches")

    def publish_together(self, payloads: Sequence[Payload]) -> None:
        self.stream(payloads)

    def stream(self, payloads: Sequence[Payload]) -> None:
        greenlets = [
            gevent.spawn(self.publish, payloads[number::_PUBLISHERS])
            for number in range(min(_PUBLISHERS, len(payloads)))
        ]
        gevent.joinall(greenlets, raise_error=True)

    def subscribe(self) -> None:
        """Nothing is kept for one that is not there."""

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        done = Event()

        def handled(message: Message[Any]) -> None:
            if handle(message.payload):
                done.set()

        self._messenger.subscribe(CHANNEL, handled)
        self._messenger.connect()
        ready()
        done.wait()

    def close(self) -> None:
        self._messenger.close()
