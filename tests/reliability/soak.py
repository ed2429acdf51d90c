"""A process under mixed load, which watches its own memory, descriptors and stalls.

Arguments: ``data_dir``, ``seconds``. Says ``sample {rss bytes} {descriptors}`` every second, then
``stalls {p50} {p99.9} {greatest}`` in seconds, and ``lost {count}`` messages of ``{published}``.
"""

from __future__ import annotations

import itertools
import os
import resource
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import gevent

from keyop import Config, Message, Messenger
from keyop.testing import drain

from .children import arguments, say
from .messengers import FAST_BACKOFF
from .stalls import Stalls
from .workload import TYPE, payload

_CHANNELS = ("orders", "invoices", "parcels")
_PAGE = resource.getpagesize()
_PATIENCE_S = 60.0


class Load:
    """Writers and subscribers of several kinds on one messenger."""

    def __init__(self, messenger: Messenger) -> None:
        self._messenger = messenger
        self._rng = Random(0)
        self.published = Counter[str]()
        self.delivered = Counter[str]()

    def start(self) -> list[gevent.Greenlet[..., Any]]:
        """Subscribe, and return the greenlets that keep everything busy."""
        subscribe = self._messenger.subscribe
        for channel in _CHANNELS:
            subscribe(channel, "plain", self._count)
            subscribe(channel, "parallel", self._take_time, concurrency=4)
            subscribe(channel, "refusing", self._refuse, max_retries=1, retry_backoff=FAST_BACKOFF)
            # What is read of the dead letters is deleted, like the rest.
            subscribe(f"{channel}.dead-letter", "plain", lambda message: None)
        works: list[tuple[Callable[[], object], float]] = [
            (self._publish, 0.002),
            (self._publish_once, 0.02),
            (self._publish_batch, 0.05),
            (self._come_and_go, 0.25),
            (self._messenger.sweep, 1.0),
            (self._messenger.stats, 1.0),
        ]
        return [gevent.spawn(self._repeat, *work) for work in works]

    def _repeat(self, do: Callable[[], object], every_s: float) -> None:
        while True:
            do()
            gevent.sleep(every_s)

    def _channel(self) -> str:
        return self._rng.choice(_CHANNELS)

    def _publish(self) -> None:
        channel = self._channel()
        self._messenger.publish(channel, TYPE, payload("one", self.published[channel]))
        self.published[channel] += 1

    def _publish_once(self) -> None:
        """Publish under an id of one's own, and again: that writes nothing."""
        channel = self._channel()
        own_id = f"own-{self.published.total()}"
        for _ in range(2):
            self._messenger.publish(channel, TYPE, payload("own", 0), message_id=own_id)
        self.published[channel] += 1

    def _publish_batch(self) -> None:
        channel = self._channel()
        batch = [(TYPE, payload("batch", n)) for n in range(self._rng.randint(2, 60))]
        self._messenger.publish_batch(channel, batch)
        self.published[channel] += len(batch)

    def _come_and_go(self) -> None:
        """Subscribe, seek, stop, subscribe again, unsubscribe."""
        channel = self._channel()
        subscription = self._messenger.subscribe(channel, "guest", lambda message: None)
        subscription.seek("earliest")
        gevent.sleep(0.02)
        subscription.stop()
        self._messenger.subscribe(channel, "guest", lambda message: None)
        self._messenger.unsubscribe(channel, "guest")

    def _count(self, message: Message) -> None:
        self.delivered[message.channel] += 1

    def _take_time(self, message: Message) -> None:
        gevent.sleep(0.0005)

    def _refuse(self, message: Message) -> None:
        if message.payload["n"] % 50 == 49:
            raise ValueError("meant to fail")


def main() -> None:
    args = arguments()
    storage = {"data_dir": args["data_dir"], "max_segment_bytes": 256 << 10}
    # Few ids are remembered, so that there is no filling up for minutes that looks like a leak.
    dedup = {"seen_id_lru_size": 2000}
    messenger = Messenger(Config.from_dict({"name": "soak", "storage": storage, "dedup": dedup}))
    load = Load(messenger)
    stalls = Stalls()
    working = [*load.start(), gevent.spawn(stalls.watch)]
    for second in itertools.count(1):
        gevent.sleep(1)
        say("sample", _rss_bytes(), len(os.listdir("/proc/self/fd")))
        for greenlet in working:
            if greenlet.dead:
                greenlet.get()
        if second >= args["seconds"]:
            break
    gevent.killall(working)
    drain(messenger, _PATIENCE_S)
    messenger.close()
    say("stalls", *(stalls.quantile(share) for share in (0.5, 0.999, 1)))
    say("lost", (load.published - load.delivered).total(), load.published.total())


def _rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE


if __name__ == "__main__":
    main()
