"""keyop: messengers on one data directory, or clients of a hub."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gevent
import gevent.socket
from gevent.event import Event
from gevent.os import tp_read

from keyop.bench.local import PAYLOAD_TYPE
from keyop.bench.peers.client import Client, Handle, Payload, batches, shares
from keyop.bench.peers.place import CHANNEL, HOST, PUBLISHER, Place
from keyop.config import Config
from keyop.envelope import Message
from keyop.messenger import Messenger

_LOOK_S = 0.002


class GeventClient(Client):
    """Waits in gevent's loop."""

    def sleep(self, seconds: float) -> None:
        gevent.sleep(seconds)

    def socket(self) -> socket.socket:
        made: Any = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((HOST, 0))
        answering: socket.socket = made
        return answering

    def await_word(self) -> None:
        tp_read(0, 1 << 10)


class KeyopClient(GeventClient):
    """A messenger."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._messenger = Messenger(Config.from_dict(_config(place)))
        self._messenger.start()
        if place.port:
            self._await_hub()

    def publish(self, payloads: Iterable[Payload]) -> None:
        send = self._messenger.publish
        for each in payloads:
            send(CHANNEL, PAYLOAD_TYPE, each)

    def batch(self, payloads: Sequence[Payload]) -> None:
        for some in batches(payloads):
            self._messenger.publish_batch(CHANNEL, [(PAYLOAD_TYPE, each) for each in some])

    def publish_together(self, payloads: Sequence[Payload]) -> None:
        greenlets = [gevent.spawn(self.publish, share) for share in shares(payloads)]
        gevent.joinall(greenlets, raise_error=True)

    def subscribe(self) -> None:
        self._messenger.subscribe(CHANNEL, self.place.name, _nothing).stop()

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        done = Event()

        def handled(message: Message) -> None:
            if handle(message.payload):
                done.set()

        subscription = self._messenger.subscribe(CHANNEL, self.place.name, handled)
        ready()
        done.wait()
        subscription.stop()

    def _await_hub(self) -> None:
        federation = self._messenger._federation
        assert federation is not None
        while not all(client.condition.value == "connected" for client in federation.clients):
            gevent.sleep(_LOOK_S)

    def close(self) -> None:
        self._messenger.close()


def _nothing(message: Message) -> None:
    """For a subscription that is there to be stopped at once."""


def _config(place: Place) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": place.name,
        "storage": {
            # A client of a hub has a directory of its own; without a hub, all share one.
            "data_dir": f"{place.directory}/{place.name if place.port else 'data'}",
            "sync_policy": "always" if place.power else "periodic",
        },
    }
    if place.port and place.certificate:
        takes = place.name != PUBLISHER
        config["tls"] = vars(place.certificate)
        config["client"] = {
            "enabled": True,
            "hubs": [
                {
                    "addr": f"{HOST}:{place.port}",
                    "subscribe": [CHANNEL] if takes else [],
                    "publish": ["none"] if takes else [],
                }
            ],
        }
    return config
