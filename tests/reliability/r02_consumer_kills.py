"""R2: a consuming process dies by ``kill -9``, again and again, while messages keep coming.

Three subscribers live in it: a plain one, one whose handler fails now and then, so that dead
letters are written, and one with four handlers at a time. What all have read is deleted meanwhile.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import gevent

from keyop import Messenger

from .children import Child, wait_for
from .messengers import POLICIES, make
from .reading import payloads
from .row import Row, Run
from .workload import CHANNEL, TYPE, payload

TITLE = "kill -9 of a consuming process"
_FAIL_EVERY = 9
_CONCURRENCY = 4
_SUBSCRIBERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "failing": {"fail_every": _FAIL_EVERY},
    "parallel": {"concurrency": _CONCURRENCY},
}
# How many messages may come again after a kill.
_MAY_REPEAT = {"plain": 1, "failing": 1, "parallel": _CONCURRENCY}
_GROUP = 50


def run(run: Run) -> Row:
    """Kill consumers in groups, one for each sync policy in turn."""
    row = Row("R2", TITLE)
    row.count(kills=0, published=0, handled=0, lost=0, torn=0, duplicates=0)
    kills = run.either(50, 500)
    size = min(_GROUP, kills // len(POLICIES))
    for index, first in enumerate(range(0, kills, size)):
        directory = run.directory / f"group-{index}"
        directory.mkdir()
        policy = POLICIES[index % len(POLICIES)]
        _Group(row, directory, policy, run.rng("R2", index)).run(min(size, kills - first))
    return row


class _Group:
    """Kills on one data directory, into which this process publishes."""

    def __init__(self, row: Row, directory: Path, policy: str, rng: Random) -> None:
        self._row = row
        self._directory = directory
        self._data_dir = directory / "data"
        self._policy = policy
        self._rng = rng
        self._publishing = True
        self._published = 0
        self._handled = {own_id: Counter[int]() for own_id in _SUBSCRIBERS}
        self._last = dict.fromkeys(_SUBSCRIBERS, -1)

    def run(self, kills: int) -> None:
        with make(self._data_dir, self._policy) as messenger:
            for own_id in _SUBSCRIBERS:
                messenger.subscribe(CHANNEL, own_id, print).stop()
            publisher = gevent.spawn(self._publish, messenger)
            try:
                for number in range(kills):
                    self._kill_one(number)
                    messenger.sweep()
            finally:
                self._publishing = False
                publisher.join()
            publisher.get()
            with self._consumer() as child:
                end = messenger.subscribe(CHANNEL, "end", print, start="latest").offset
                wait_for(lambda: self._position() >= end, "the last consumer to read it all")
                child.stop()
                self._take(child.new_lines(), "the end")
        self._check_all(kills)

    def _publish(self, messenger: Messenger) -> None:
        while self._publishing:
            numbers = range(self._published, self._published + self._rng.randint(1, 9))
            messenger.publish_batch(CHANNEL, [(TYPE, payload("driver", n)) for n in numbers])
            self._published = numbers.stop
            gevent.sleep(0.004)

    def _position(self) -> int:
        directory = self._data_dir / "subscribers" / CHANNEL
        return min(int((directory / f"{own_id}.offset").read_bytes()) for own_id in _SUBSCRIBERS)

    def _consumer(self, **more: Any) -> Child:
        return Child(
            "consumer",
            self._directory,
            data_dir=self._data_dir,
            policy=self._policy,
            subscribers=_SUBSCRIBERS,
            **more,
        )

    def _kill_one(self, number: int) -> None:
        rng = self._rng
        how = rng.choice(("inside", "outside", "early"))
        kill_at = rng.choice((rng.randint(1, 60), rng.randint(1, 3000)))
        more = {"kill_at": kill_at, "share": rng.random()} if how == "inside" else {}
        with self._consumer(**more) as child:
            if how == "inside":
                child.wait_killed()
            elif how == "outside":
                child.wait_spoken()
                gevent.sleep(rng.uniform(0, 0.05))
            else:
                gevent.sleep(rng.uniform(0.1, 0.3))
            child.kill()
            self._take(child.new_lines(), f"kill {number} under {self._policy}")
        self._row.count(kills=1)

    def _take(self, lines: list[str], when: str) -> None:
        """Count what one consumer was given."""
        repeated = Counter[str]()
        for line in lines:
            own_id, *words = line.split()
            if own_id in ("?", "!"):
                continue
            if own_id == "torn":
                self._row.count(torn=1)
                self._row.problem(f"{when}: {line}")
                continue
            n = int(words[2])
            if n in self._handled[own_id]:
                repeated[own_id] += 1
            elif own_id != "parallel":
                self._check_order(own_id, n, when)
            self._handled[own_id][n] += 1
            self._row.count(handled=1)
        for own_id, times in repeated.items():
            self._row.count(duplicates=times)
            self._row.worst(most_duplicates_per_kill=times)
            self._row.expect(
                times <= _MAY_REPEAT[own_id], f"{when}: {times} messages came again to {own_id}"
            )

    def _check_order(self, own_id: str, n: int, when: str) -> None:
        expected = self._last[own_id] + 1
        if own_id == "failing" and expected % _FAIL_EVERY == 0:
            expected += 1
        self._row.expect(n == expected, f"{when}: {own_id} got {n} where {expected} was due")
        self._last[own_id] = n

    def _check_all(self, kills: int) -> None:
        row = self._row
        row.count(published=self._published)
        failing = set(range(0, self._published, _FAIL_EVERY))
        for own_id, handled in self._handled.items():
            due = set(range(self._published)) - (failing if own_id == "failing" else set())
            lost = sorted(due - set(handled))
            row.count(lost=len(lost))
            row.expect(not lost, f"{own_id} never got {lost[:10]}, {len(lost)} in all")
        letters = Counter(
            letter["original"]["payload"]["n"]
            for letter in payloads(self._data_dir, f"{CHANNEL}.dead-letter")
        )
        row.count(dead_letters=letters.total(), lost=len(failing - set(letters)))
        row.expect(set(letters) == failing, "the dead letters are not those that failed")
        row.expect(
            letters.total() - len(letters) <= kills, "more dead letters came twice than were kills"
        )
