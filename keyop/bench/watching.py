"""What it costs to be watched: statistics on and asked for, against none at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from keyop.bench.local import Bench, payload
from keyop.bench.measure import Figure, rate_figure
from keyop.latency import MessengerLatencies
from keyop.messenger import Messenger

# As often as the operator's page asks.
_ASK_S = 1.0


class WatchingBench(Bench):
    """Runs its figures below one directory, as the others do."""

    def figures(self) -> Iterator[tuple[str, Callable[[], Figure]]]:
        """Yield each figure's name and what measures it."""
        yield "watched-publish", self.watched_publish
        yield "watched-delivery", self.watched_delivery

    def watched_publish(self) -> Figure:
        """One greenlet under ``periodic``, watched, against the same unwatched."""
        payloads = [payload(number) for number in range(self._count(50_000))]
        with self._messenger() as messenger:
            return self._against_unwatched(
                "publish, watched", messenger, lambda: self._publish_all(messenger, payloads)
            )

    def watched_delivery(self) -> Figure:
        """A backlog, watched, against the same unwatched."""
        total = self._count(100_000)
        with self._messenger() as messenger:
            self._fill(messenger, total)
            return self._against_unwatched(
                "delivery, watched", messenger, lambda: self._deliver_all(messenger, total)
            )

    def _against_unwatched(
        self, name: str, messenger: Messenger, measure: Callable[[], float]
    ) -> Figure:
        measure()

        def watched() -> float:
            with _asked(messenger):
                return measure()

        def unwatched() -> float:
            with _unmeasured(messenger):
                return measure()

        return rate_figure(name, "unwatched", 0.97, self._rounds, watched, unwatched)


@contextmanager
def _asked(messenger: Messenger) -> Iterator[None]:
    def ask() -> None:
        while True:
            messenger.stats()
            gevent.sleep(_ASK_S)

    asking = gevent.spawn(ask)
    try:
        yield
    finally:
        asking.kill()


@contextmanager
def _unmeasured(messenger: Messenger) -> Iterator[None]:
    """Have nothing measured meanwhile."""
    parts: list[Any] = [messenger._publisher, messenger._subscriptions]
    before: MessengerLatencies = messenger._latencies
    for part in parts:
        part._latencies = _Nothing()
    try:
        yield
    finally:
        for part in parts:
            part._latencies = before


class _Nothing:
    """In the place of what measures."""

    @property
    def publish(self) -> _Nothing:
        return self

    def add(self, begun: float) -> None:
        """Forget it."""

    def handled(self, published: object, begun: float) -> None:
        """Forget it."""
