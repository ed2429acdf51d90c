"""The process of a measure: ``worker CONTENDER MEASURE ROLE JSON`` prints a JSON line per step.

It imports nothing but its contender's client and orjson, so that no other's modules count.
"""

from __future__ import annotations

import importlib
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from keyop.bench.peers.client import Client, Handle, Payload
from keyop.bench.peers.place import TOGETHER, Certificate, Place

_LONGEST = 500_000
_WARM = 20
_SEED = 20


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        client: the contender's client, ``module:class``.
        payloads: a file with a thousand of them, a JSON list.
        seconds: how long the measured part is to take, about.
        count: how many messages, where the parent knows.
        port: where the publisher of a latency is told what was handled.
    """

    client: str
    payloads: str
    seconds: float
    count: int = 0
    port: int = 0


class Worker:
    """Each method is a measure's role."""

    def __init__(self, client: Client, job: Job, made: list[Payload]) -> None:
        self._client = client
        self._job = job
        self._made = made

    def alone(self, measure: str) -> None:
        """Measure what one process does."""
        {
            "publish": lambda: self._rate(self._client.publish),
            "batch": lambda: self._rate(self._client.batch),
            "publish-64": lambda: self._rate(self._client.publish_together),
            "backlog": self._backlog,
            "memory": self._memory,
            "first-message": self._first,
        }[measure]()

    def publisher(self, measure: str) -> None:
        """Publish for others."""
        if "latency" in measure:
            self._one_by_one(measure)
        else:
            self._go()
            begun = time.monotonic_ns()
            self._client.stream(self._payloads(self._job.count))
            tell(begun=begun)
            # A client that sends from its log must live until all have it.
            self._client.await_word()

    def subscriber(self, measure: str) -> None:
        """Handle what another process publishes: tell each over UDP, or when all was handled."""
        self._client.subscribe()
        handle: Handle = _Counting(self._job.count)
        if "latency" in measure:
            telling = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            telling.connect(("127.0.0.1", self._job.port))

            def tell_that(_payload: Payload) -> bool:
                telling.send(b"%d" % time.monotonic_ns())
                return False

            handle = tell_that
        self._client.consume(handle, tell)
        tell(ended=time.monotonic_ns())
        self._client.await_word()

    # -- rates

    def _payloads(self, count: int) -> list[Payload]:
        return [self._made[number % len(self._made)] for number in range(count)]

    def _go(self, **words: Any) -> None:
        """Tell that all is prepared, and wait to be let."""
        tell(**words)
        self._client.await_word()

    def _calibrated(
        self, work: Callable[[int], object], prepare: Callable[[int], object] = int
    ) -> int:
        """Return how many messages take about as long as wanted; what it tries warms up, too."""
        count, taken = TOGETHER // 4, 0.0
        while taken < self._job.seconds / 8 and count < _LONGEST:
            count *= 4
            prepare(count)
            begun = time.perf_counter()
            work(count)
            taken = time.perf_counter() - begun
        wanted = min(_LONGEST, int(count / taken * self._job.seconds))
        return max(TOGETHER, wanted // TOGETHER * TOGETHER)

    def _rate(self, publish: Callable[[Sequence[Payload]], object]) -> None:
        count = self._calibrated(lambda some: publish(self._payloads(some)))
        payloads = self._payloads(count)
        self._go()
        tell(count=count, seconds=seconds(lambda: publish(payloads)))

    def _backlog(self) -> None:
        def consume(count: int) -> None:
            self._client.consume(_Counting(count), _nothing)

        def fill(count: int) -> None:
            self._client.batch(self._payloads(count))

        self._client.subscribe()
        count = self._calibrated(consume, fill)
        fill(count)
        self._go()
        tell(count=count, seconds=seconds(lambda: consume(count)))

    # -- latency

    def _one_by_one(self, measure: str) -> None:
        told = self._client.socket()
        self._go(port=told.getsockname()[1])
        taken: list[float] = []
        idle = random.Random(_SEED) if measure.endswith("idle") else None  # nosec B311
        deadline = time.monotonic() + self._job.seconds

        def payloads() -> Iterator[Payload]:
            while time.monotonic() < deadline or len(taken) < 2 * _WARM:
                if idle:
                    self._client.sleep(idle.uniform(0.005, 0.015))
                begun = time.monotonic_ns()
                yield self._made[0]
                taken.append((int(told.recv(64)) - begun) / 1e3)

        self._client.publish(payloads())
        told.close()
        tell(taken=taken[_WARM:])

    # -- one process, whole

    def _memory(self) -> None:
        self._client.subscribe()
        self._client.batch(self._payloads(self._job.count))
        self._client.consume(_Counting(self._job.count), _nothing)
        self._go()

    def _first(self) -> None:
        self._client.subscribe()
        self._client.publish(self._made[:1])
        handled = 0

        def handle(_payload: Payload) -> bool:
            nonlocal handled
            handled = time.monotonic_ns()
            return True

        self._client.consume(handle, _nothing)
        tell(handled=handled)


class _Counting:
    """Counts what is handled."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __call__(self, payload: Payload) -> bool:
        self._left -= 1
        return not self._left


def _nothing() -> None:
    """Nobody waits for it."""


def tell(**words: Any) -> None:
    """Print a line for the parent."""
    sys.stdout.buffer.write(orjson.dumps(words) + b"\n")
    sys.stdout.buffer.flush()


def seconds(work: Callable[[], object]) -> float:
    """Return how long ``work()`` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """Connect, do one role of one measure, disconnect."""
    _contender, measure, role, text = sys.argv[1:]
    told = orjson.loads(text)
    job = Job(**told["job"])
    certificate = told["place"].pop("certificate")
    place = Place(**told["place"], certificate=certificate and Certificate(**certificate))
    with open(job.payloads, "rb") as file:
        made = orjson.loads(file.read())
    module, _, name = job.client.partition(":")
    client = getattr(importlib.import_module(module), name)(place)
    getattr(Worker(client, job, made), role)(measure)
    client.close()


if __name__ == "__main__":
    main()
