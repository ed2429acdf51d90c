"""R11: several processes publish to one channel, with rolls, while one subscriber id consumes it.

The id is held by one process at a time, with a standby. Its holder is killed, again and again.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from random import Random

import gevent

from .children import Child, wait_for
from .messengers import keep_everything, make
from .reading import ChannelTail, saved_offsets
from .row import Row, Run
from .workload import CHANNEL, Sequences

TITLE = "processes publish together; the holder of a lease dies"
TAKEOVER_S = 2.0
_SUBSCRIBER = "worker"
_POLICY = "periodic"
_PATIENCE_S = 600.0


def run(run: Run) -> Row:
    """Publish from so many processes so many messages each, on a new directory each time."""
    row = Row("R11", TITLE)
    row.count(acknowledged=0, delivered=0, lost=0, overlapping=0, duplicates=0, kills=0)
    quick, full = ((2, 5000), (4, 5000), (4, 10_000)), ((2, 50_000), (4, 50_000), (4, 100_000))
    for processes, count in run.either(quick, full):
        directory = run.directory / f"{processes}-{count}"
        directory.mkdir()
        rng = run.rng("R11", processes, count)
        with ExitStack() as children:
            together = _Together(row, directory, children, run.either(8 << 10, 32 << 10))
            together.publish(processes, count)
            together.kill_holders(run.either(2, 10), rng)
            together.finish(processes, count)
    return row


class _Together:
    """Publishers and consumers on one data directory."""

    def __init__(self, row: Row, directory: Path, children: ExitStack, segment_bytes: int) -> None:
        self._row = row
        self._directory = directory
        self._data_dir = directory / "data"
        self._children = children
        self._segment_bytes = segment_bytes
        self._publishers: list[Child] = []
        self._consumers: list[Child] = []
        self._killed: set[str] = set()
        self._subscribed: set[str] = set()
        # Of each consumer that got hold of the id: when, and the offsets that it was given.
        self._held: dict[str, float] = {}
        self._came: dict[str, list[int]] = {}

    def publish(self, processes: int, count: int) -> None:
        """Start a consumer and a standby, then the publishers."""
        with make(self._data_dir, _POLICY) as messenger:
            keep_everything(messenger)
        self._add_consumer()
        wait_for(self._holder, "a first holder")
        self._add_consumer()
        for number in range(processes):
            publisher = Child(
                "publisher",
                self._directory,
                data_dir=self._data_dir,
                policy=_POLICY,
                by=f"p{number}",
                greenlets=1,
                count=count,
                batch=10,
                segment_bytes=self._segment_bytes,
            )
            self._publishers.append(self._children.enter_context(publisher))

    def _add_consumer(self) -> None:
        consumer = Child(
            "consumer",
            self._directory,
            data_dir=self._data_dir,
            policy=_POLICY,
            subscribers={_SUBSCRIBER: {}},
            standby=True,
        )
        self._consumers.append(self._children.enter_context(consumer))
        self._came[consumer.name] = []

    def _listen(self, consumer: Child) -> None:
        for line in consumer.new_lines():
            own_id, *words = line.split()
            if own_id == "?":
                self._subscribed.add(consumer.name)
            elif own_id == "!":
                self._held[consumer.name] = float(words[1])
            elif own_id == "torn":
                self._row.problem(line)
            else:
                self._came[consumer.name].append(int(words[0]))

    def _holder(self) -> Child | None:
        """Return who has the id, if anybody has.

        Raises:
            AssertionError: two have it at once, or a consumer has failed.
        """
        for consumer in self._consumers:
            self._listen(consumer)
            if consumer.name not in self._killed:
                errors = consumer.errors
                # The latter is how gevent ends its report of a greenlet that has died.
                failed = not consumer.alive or " failed with " in errors
                assert not failed, f"{consumer.name} has failed: {errors}"
        holders = [each for each in self._consumers if each.alive and each.name in self._held]
        if len(holders) > 1:
            names = " and ".join(each.name for each in holders)
            raise AssertionError(f"{names} have the id {_SUBSCRIBER!r} at once")
        return holders[0] if holders else None

    def _standby_waits(self) -> bool:
        self._holder()
        return any(
            each.alive and each.name in self._subscribed and each.name not in self._held
            for each in self._consumers
        )

    def kill_holders(self, times: int, rng: Random) -> None:
        """Kill whoever holds the id, and see how soon the standby has it."""
        for _ in range(times):
            gevent.sleep(rng.uniform(0.1, 0.5))
            wait_for(self._standby_waits, "a standby to wait for its turn")
            holder = wait_for(self._holder, "a holder")
            killed = time.monotonic()
            self._killed.add(holder.name)
            holder.kill()
            self._row.count(kills=1)
            after = wait_for(self._holder, "a standby to take over")
            took_s = self._held[after.name] - killed
            self._row.worst(worst_takeover_s=took_s)
            self._row.expect(took_s < TAKEOVER_S, f"the standby took over after {took_s:.2f} s")
            self._add_consumer()

    def finish(self, processes: int, count: int) -> None:
        """Let everybody finish, and compare what was published, logged and delivered."""
        for publisher in self._publishers:
            publisher.wait_done(_PATIENCE_S)
        row = self._row
        tail = ChannelTail(self._data_dir, CHANNEL)
        tail.follow()
        for problem in tail.problems:
            row.problem(problem)
        row.count(overlapping=sum("segment" in problem for problem in tail.problems))
        logged = Sequences()
        for entry in tail.entries:
            wrong = logged.take(entry.by, entry.n)
            row.expect(not wrong, f"in the log: {wrong}")
        for publisher in self._publishers:
            acknowledged = len(publisher.new_lines())
            row.count(acknowledged=acknowledged)
            row.expect(acknowledged == count, f"{acknowledged} of {count} acknowledged")
        due = processes * count
        row.count(lost=max(0, due - len(tail.entries)))
        row.expect(len(tail.entries) == due, f"{len(tail.entries)} of {due} are in the log")
        row.worst(most_segments=tail.segments)
        if tail.problems:  # nobody need get to the end of a log that is not sound
            return
        wait_for(
            lambda: saved_offsets(self._data_dir, CHANNEL)[_SUBSCRIBER] >= tail.position,
            "the consumer to reach the end",
            _PATIENCE_S,
        )
        for consumer in self._consumers:
            if consumer.alive:
                consumer.stop()
            self._listen(consumer)
        self._check_delivered([entry.offset for entry in tail.entries])

    def _check_delivered(self, offsets: list[int]) -> None:
        row = self._row
        index = {offset: number for number, offset in enumerate(offsets)}
        due = 0
        for name in sorted(self._held, key=lambda name: self._held[name]):
            came = [index.get(offset, -1) for offset in self._came[name]]
            if not came:
                continue
            row.count(delivered=len(came), duplicates=max(0, due - came[0]))
            row.expect(due - 1 <= came[0] <= due, f"{name} began with {came[0]}, {due} was due")
            row.expect(came == [*range(came[0], came[-1] + 1)], f"{name}: not in log order")
            due = max(due, came[-1] + 1)
        lost = len(offsets) - due
        row.count(lost=lost)
        row.expect(not lost, f"{lost} at the end were not delivered")
