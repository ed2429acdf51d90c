"""R1: a publishing process dies by ``kill -9``, again and again.

Half of them are killed from outside at any moment, half kill themselves in the middle of one of
their own file operations. Meanwhile a subscriber in this process, which lives on, reads the log.
Then recorded sessions are cut off after every single operation, and in the middle of writes.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from random import Random

import gevent

from keyop import Message, Messenger
from tests.fakes.recording import (
    CrashState,
    Open,
    Operation,
    RecordingFs,
    Write,
    crash_state,
    materialise,
)

from .children import Child, wait_for
from .killed_everywhere import killed_everywhere
from .messengers import POLICIES, keep_everything, make
from .promises import Promises
from .reading import ChannelTail
from .recordings import record
from .row import Row, Run
from .workload import CHANNEL, TYPE, Sequences, is_whole, payload

TITLE = "kill -9 of a publishing process"
_GROUP = 25
_LANES = 2


def run(run: Run) -> Row:
    """Kill publishers in groups, each on a directory of its own, two groups at a time."""
    row = Row("R1", TITLE)
    row.count(kills=0, acknowledged=0, delivered=0, lost=0, torn=0, duplicates=0)
    kills = run.either(100, 1000)
    group_kills = min(_GROUP, kills // len(POLICIES))
    groups = []
    while sum(groups) < kills:
        groups.append(min(group_kills, kills - sum(groups)))

    def lane(number: int) -> None:
        for index in range(number, len(groups), _LANES):
            directory = run.directory / f"group-{index}"
            directory.mkdir()
            rng = run.rng("R1", index)
            _Group(row, directory, POLICIES[index % len(POLICIES)], rng).run(groups[index])

    lanes = [gevent.spawn(lane, number) for number in range(_LANES)]
    try:
        gevent.joinall(lanes, raise_error=True)
    finally:
        gevent.killall(lanes)
    killed_everywhere(row, run)
    _killed_in_mid_write(row, run)
    return row


class _Group:
    """Kills on one data directory."""

    def __init__(self, row: Row, directory: Path, policy: str, rng: Random) -> None:
        self._row = row
        self._directory = directory
        self._data_dir = directory / "data"
        self._policy = policy
        self._rng = rng
        self._tail = ChannelTail(self._data_dir, CHANNEL)
        self._logged = Sequences()
        self._delivered: list[tuple[int, str]] = []
        self._torn = 0
        self._own = 0

    def run(self, kills: int) -> None:
        with make(self._data_dir, self._policy) as reader:
            keep_everything(reader)
            reader.subscribe(CHANNEL, "reader", self._take, start="earliest")
            for number in range(kills):
                self._kill_one(f"p{number}")
                # Mended by a process that runs, or by the next one that opens the log.
                if self._rng.random() < 0.5 or number == kills - 1:
                    reader.publish(CHANNEL, TYPE, payload("reader", self._own))
                    self._own += 1
                    self._check_log({"reader": self._own - 1}, "the reader's own message")
            self._compare(reader)

    def _take(self, message: Message) -> None:
        self._torn += not is_whole(message.payload)
        self._delivered.append((message.offset, message.id))

    def _kill_one(self, by: str) -> None:
        inside = self._rng.random() < 0.5
        # Opening takes the first dozens; the others are spread over some segments.
        kill_at = self._rng.choice((self._rng.randint(1, 60), self._rng.randint(1, 3000)))
        with Child(
            "publisher",
            self._directory,
            data_dir=self._data_dir,
            policy=self._policy,
            by=by,
            greenlets=3,
            segment_bytes=4096,
            kill_at=kill_at if inside else None,
            share=self._rng.random(),
        ) as child:
            if inside:
                child.wait_killed()
            else:
                child.wait_spoken()
                gevent.sleep(self._rng.uniform(0, 0.03))
                child.kill()
            acknowledged: dict[str, int] = {}
            lines = child.new_lines()
            for line in lines:
                writer, n, _ = line.split()
                acknowledged[writer] = int(n)
        self._row.count(kills=1, acknowledged=len(lines))
        self._check_log(acknowledged, f"{by} under {self._policy}")

    def _check_log(self, acknowledged: dict[str, int], when: str) -> None:
        for entry in self._tail.follow():
            wrong = self._logged.take(entry.by, entry.n)
            self._row.expect(not wrong, f"the log after the death of {when}: {wrong}")
        for writer, n in acknowledged.items():
            lost = self._logged.missing(writer, n + 1)
            self._row.count(lost=lost)
            self._row.expect(not lost, f"{when}: {lost} acknowledged of {writer} are not there")

    def _compare(self, reader: Messenger) -> None:
        row, tail = self._row, self._tail
        row.count(lost=self._logged.lost, duplicates=self._logged.duplicates)
        for problem in tail.problems:
            row.problem(problem)
        expected = [(entry.offset, entry.id) for entry in tail.entries]
        wait_for(lambda: len(self._delivered) >= len(expected), "the reader to read it all", 30)
        row.count(delivered=len(self._delivered), torn=self._torn)
        row.expect(not self._torn, f"{self._torn} messages were not delivered as published")
        row.expect(self._delivered == expected, "what was delivered is not what is in the log")
        again: list[tuple[int, str]] = []
        reader.subscribe(
            CHANNEL, "again", lambda each: again.append((each.offset, each.id)), start="earliest"
        )
        wait_for(lambda: len(again) >= len(expected), "a new reader to read it all", 30)
        row.expect(again == expected, "what a new reader gets is not what is in the log")
        row.worst(most_segments=tail.segments)


def _killed_in_mid_write(row: Row, run: Run) -> None:
    """Recover from writes of which a part of a record got into the log.

    Few kills hit one. No later record may run into that part, which is kept beside the log.
    """
    row.count(killed_in_mid_write=0)
    policy, rng = "periodic", run.rng("mid-write")
    operations = record(run.memory / "mid-write", policy, rng, sweeping=False).operations
    writes = _writes(operations)
    for at in rng.sample(writes, min(run.either(50, 500), len(writes))):
        state = _cut_off(operations, at, rng)
        where = f"killed in the middle of operation {at}, {state.last}"[:300]
        directory = run.memory / f"mid-write-{at}"
        materialise(state, directory)
        row.count(killed_in_mid_write=1)
        try:
            promises = Promises(row, policy, [state.marks], where, killed=True)
            promises.check(directory, RecordingFs(directory), 1)
        except Exception as error:  # whatever it is, the other writes are looked at too
            row.problem(f"{where}: {type(error).__name__}: {error}")
        tail = ChannelTail(directory, CHANNEL)
        tail.follow()
        for problem in tail.problems:
            row.problem(f"{where}: {problem}")
        kept = list(tail.directory.glob("*.torn-*"))
        row.expect(len(kept) == 1, f"{where}: what was cut off is in {kept}")
        shutil.rmtree(directory)


def _writes(operations: list[Operation]) -> list[int]:
    """Return which operations wrote to the channel's segments."""
    paths = {each.handle: Path(each.path) for each in operations if isinstance(each, Open)}
    return [
        at
        for at, each in enumerate(operations)
        if isinstance(each, Write) and paths[each.handle].match(f"channels/{CHANNEL}/*.jsonl")
    ]


def _cut_off(operations: list[Operation], at: int, rng: Random) -> CrashState:
    """Return what was there when an operation, a write, had got as far as into a record."""
    write = operations[at]
    assert isinstance(write, Write)
    inside = [end for end in range(1, len(write.data)) if write.data[end - 1 : end] != b"\n"]
    part = dataclasses.replace(write, data=write.data[: rng.choice(inside)])
    return crash_state([*operations[:at], part], rng, "all")
