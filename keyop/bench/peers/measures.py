"""What is measured: each measure runs one round of one contender and returns a sample."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from keyop.bench.measure import percentile
from keyop.bench.peers.contender import NEAR, Contender
from keyop.bench.peers.place import PUBLISHER, SERVER, SUBSCRIBERS, Certificate, Place
from keyop.bench.peers.processes import ContenderError, Process, resident_kib
from keyop.bench.peers.syncs import SyncCounter
from keyop.bench.peers.worker import Job

PROCESS = "survives the process"
POWER = "survives power loss"
_BARE = str(Path(__file__).with_name("bare.py"))
_ROOT = str(Path(__file__).parents[3])


@dataclass(frozen=True)
class Sample:
    """What a round has found: a rate, a time or a size; ``p99`` of latencies.

    Attributes:
        syncs: how many for each message, where they were counted.
        note: why they could not be.
        count: how many messages the measured part had.
    """

    value: float
    p99: float | None = None
    syncs: float | None = None
    note: str = ""
    count: int = 0


@dataclass(frozen=True)
class Round:
    """One round of one contender.

    Attributes:
        directory: empty, for this round alone.
        job: what the workers are told, but for their client's name.
        certificates: by name, for measures over TLS.
        traced: whether to count syncs; it makes the round slow.
    """

    contender: Contender
    measure: Measure
    directory: str
    job: Job
    certificates: dict[str, Certificate]
    traced: bool = False

    @contextmanager
    def serving(self) -> Iterator[tuple[Place, list[int]]]:
        """Run the contender's server, where it has one."""
        certificate = self.certificates[SERVER] if self.measure.tls else None
        power = self.measure.durability == POWER
        with self.contender.serving(self.directory, power, certificate) as serving:
            yield serving

    def worker(self, stack: ExitStack, place: Place, role: str, name: str, job: Job) -> Process:
        """Start a worker."""
        certificate = self.certificates[name] if place.certificate else None
        told = {
            "place": asdict(replace(place, name=name, certificate=certificate)),
            "job": asdict(replace(job, client=self.contender.client)),
        }
        # Everything of keyop counts as keyop's, nothing of it as another's.
        how = ["-m", "keyop.bench.peers.worker"] if "keyop" in self.contender.modules else [_BARE]
        path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        process = Process(
            f"{self.contender.key}: its {role} of {self.measure.name}",
            [sys.executable, *how, self.contender.key, self.measure.name, role,
             orjson.dumps(told).decode()],
            f"{self.directory}/{name}.log",
            talks=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        return stack.enter_context(process)


@dataclass(frozen=True)
class Measure:
    """A thing to measure; ``run`` does one round."""

    name: str
    title: str
    unit: str
    more_is_better: bool
    durability: str
    run: Callable[[Round], Sample]
    tls: bool = False
    counts_syncs: bool = False


def _alone(turn: Round) -> Sample:
    """One process that publishes, or consumes a backlog."""
    with turn.serving() as (place, pids), ExitStack() as stack:
        worker = turn.worker(stack, place, "alone", PUBLISHER, turn.job)
        worker.hear()
        counter = SyncCounter([*pids, worker.pid], turn.directory) if turn.traced else None
        if counter:
            stack.callback(counter.end)
        worker.tell()
        told = worker.hear()
        count = told["count"]
        sample = Sample(count / told["seconds"], count=count)
        if counter is None:
            return sample
        calls = counter.end()
        if calls is None:
            return replace(sample, note=counter.why_not)
        if calls == 0 and turn.measure.durability == POWER:
            raise ContenderError(
                f"{turn.contender.key} was to survive a power loss, and synced nothing"
            )
        return replace(sample, syncs=calls / count)


def _latency(turn: Round) -> Sample:
    """One process publishes, another one handles, one message after the other."""
    with turn.serving() as (place, _), ExitStack() as stack:
        publisher = turn.worker(stack, place, "publisher", PUBLISHER, turn.job)
        job = replace(turn.job, port=publisher.hear()["port"])
        subscriber = turn.worker(stack, place, "subscriber", SUBSCRIBERS[0], job)
        stack.callback(subscriber.terminate)  # it waits for messages only
        subscriber.hear()
        publisher.tell()
        taken = publisher.hear()["taken"]
        return Sample(percentile(taken, 0.5), percentile(taken, 0.99), count=len(taken))


def _fan_out(subscribers: int) -> Callable[[Round], Sample]:
    def run(turn: Round) -> Sample:
        """One process publishes; the round ends when each subscriber has handled all."""
        with turn.serving() as (place, _), ExitStack() as stack:
            started = [
                turn.worker(stack, place, "subscriber", name, turn.job)
                for name in SUBSCRIBERS[:subscribers]
            ]
            for each in started:
                each.hear()
            publisher = turn.worker(stack, place, "publisher", PUBLISHER, turn.job)
            publisher.hear()
            return _until_handled(turn, publisher, started)

    return run


def _until_handled(turn: Round, publisher: Process, subscribers: list[Process]) -> Sample:
    """Let a publisher go that is ready, as its subscribers are; return what they handle in all."""
    publisher.tell()
    begun = publisher.hear()["begun"]
    ended = max(each.hear()["ended"] for each in subscribers)
    rate = turn.job.count * len(subscribers) / ((ended - begun) / 1e9)
    return Sample(rate, count=turn.job.count)


def _near(turn: Round) -> Sample:
    """One process publishes to what keeps it and hands it on to the server, and so on as above."""
    with ExitStack() as stack:
        far, _ = stack.enter_context(turn.serving())
        certificate = turn.certificates[PUBLISHER]
        near = stack.enter_context(turn.contender.near_serving(far, certificate))
        publisher = turn.worker(stack, near, "publisher", PUBLISHER, turn.job)
        publisher.hear()
        place = replace(far, mirrors=turn.contender.near is not None)
        subscriber = turn.worker(stack, place, "subscriber", SUBSCRIBERS[0], turn.job)
        subscriber.hear()
        return _until_handled(turn, publisher, [subscriber])


def _memory(turn: Round) -> Sample:
    """What a server and a client hold after some messages went through them."""
    with turn.serving() as (place, pids), ExitStack() as stack:
        worker = turn.worker(stack, place, "alone", PUBLISHER, turn.job)
        worker.hear()
        return Sample(sum(map(resident_kib, [*pids, worker.pid])), count=turn.job.count)


def _first(turn: Round) -> Sample:
    """A new process, from its exec to the message that it handles first."""
    with turn.serving() as (place, _), ExitStack() as stack:
        begun = time.monotonic_ns()
        worker = turn.worker(stack, place, "alone", PUBLISHER, turn.job)
        return Sample((worker.hear()["handled"] - begun) / 1e9, count=1)


MEMORY_MESSAGES = 20_000

MEASURES = [
    Measure("publish", "One publisher, each message confirmed before the next", "messages/s",
            True, PROCESS, _alone, counts_syncs=True),
    Measure("batch", "One publisher, 64 messages at a time", "messages/s",
            True, PROCESS, _alone, counts_syncs=True),
    Measure("publish-64", "64 publishers, each waiting for its own confirmation", "messages/s",
            True, POWER, _alone, counts_syncs=True),
    Measure("backlog", "Consuming a backlog, each message acknowledged", "messages/s",
            True, PROCESS, _alone),
    Measure("latency", "Publish to handler in another process", "µs", False, PROCESS, _latency),
    Measure("latency-idle", "The same, after 5 to 15 ms of idle", "µs", False, PROCESS, _latency),
    Measure("mtls-one", "Client to server to one subscriber, mutual TLS", "messages/s",
            True, PROCESS, _fan_out(1), tls=True),
    Measure("mtls-ten", "Client to server to ten subscribers, mutual TLS, in all", "messages/s",
            True, PROCESS, _fan_out(10), tls=True),
    Measure(NEAR, "Client with a log of its own to server to one subscriber, mutual TLS",
            "messages/s", True, PROCESS, _near, tls=True),
    Measure("mtls-latency", "Client to handler of another client, mutual TLS", "µs",
            False, PROCESS, _latency, tls=True),
    Measure("memory", f"Server and client after {MEMORY_MESSAGES:,} messages", "KiB",
            False, PROCESS, _memory),
    Measure("first-message", "From exec of Python to the first message handled", "s",
            False, PROCESS, _first),
]  # fmt: skip
