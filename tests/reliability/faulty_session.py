"""A session on a file system that fails, which writes down what every call of it claimed."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gevent

from keyop import KeyopError, LogFailedError, Message, PublishTimeoutError
from keyop.testing import drain
from tests.fakes.faulty import Fault, FaultyFs

from .messengers import FAST_BACKOFF, make
from .reading import ChannelTail, payloads
from .row import Row
from .workload import CHANNEL, TYPE, is_whole, payload

_DEAD_LETTERS = f"{CHANNEL}.dead-letter"
_TIMEOUT_S = 0.25
_CLOSE_S = 4.0
# What a busy machine may add to a deadline.
_SLACK_S = 5.0
_PATIENCE_S = 30.0
_STEPS = 150
_REFUSED_EVERY = 10
# After so many publishes without a failure the session need not go on; one that never ends is
# ended after it has struck so often.
_AFTERWARDS, _STRIKES = 12, 4


class Claim(NamedTuple):
    """What a publish said of its messages: at least and at most so many are in the log."""

    numbers: range
    least: int
    most: int
    how: str


class Session:
    """Publishes one by one and in batches. The first of two subscribers refuses some messages."""

    def __init__(self, row: Row, what: str, data_dir: Path, policy: str) -> None:
        self.fs = FaultyFs()
        self._row = row
        self._what = what
        self._data_dir = data_dir
        self._messenger = make(data_dir, policy, fs=self.fs, max_segment_bytes=1500)
        self._came: dict[str, list[int]] = {"first": [], "second": []}
        self._claims: list[Claim] = []
        self._failed = False

    def run(self, faults: list[Fault]) -> None:
        """Go through the session, let all be well again, go on, and compare."""
        subscribing = [gevent.spawn(self._subscribe, own_id) for own_id in self._came]
        try:
            self._publish_until_struck(faults)
            self.fs.heal()
            self._recover()
            gevent.joinall(subscribing, timeout=_PATIENCE_S, raise_error=True)
            self._expect(all(each.dead for each in subscribing), "subscribe() hangs")
            for _ in range(3):
                self._publish(1, _PATIENCE_S)
                self._expect(self._claims[-1].how == "returned", f"at the end {self._claims[-1]}")
            drain(self._messenger, _PATIENCE_S)
        finally:
            self.fs.heal()
            gevent.killall(subscribing)
            with self._bounded("close()", _CLOSE_S):
                self._messenger.close(_CLOSE_S)
        self._expect(not self.fs.open_paths, f"left open: {self.fs.open_paths}")
        self._compare()

    def _expect(self, holds: object, what: str) -> None:
        self._row.expect(holds, f"{self._what}: {what}")

    @contextmanager
    def _bounded(self, what: str, limit_s: float) -> Iterator[None]:
        started = time.monotonic()
        try:
            with gevent.Timeout(limit_s + _PATIENCE_S):
                yield
        except gevent.Timeout:
            pass
        late_s = time.monotonic() - started - limit_s
        self._row.worst(worst_overrun_s=max(0.0, late_s))
        self._row.count(hangs=late_s > _SLACK_S)
        self._expect(late_s <= _SLACK_S, f"{what} took {late_s:.1f} s longer than its deadline")

    def _subscribe(self, own_id: str) -> None:
        """Try until it works: a subscriber that cannot be started is told so."""

        def handle(message: Message) -> None:
            self._expect(is_whole(message.payload), f"{own_id} got {message.payload}")
            n = message.payload["n"]
            self._came[own_id].append(n)
            if own_id == "first" and n % _REFUSED_EVERY == 0:
                raise ValueError("meant to fail")

        while True:
            try:
                self._messenger.subscribe(
                    CHANNEL,
                    own_id,
                    handle,
                    start="earliest",
                    max_retries=0,
                    retry_backoff=FAST_BACKOFF,
                )
            except KeyopError:
                gevent.sleep(0.005)
            else:
                return

    def _publish_until_struck(self, faults: list[Fault]) -> None:
        quiet = hits = 0
        for step in range(_STEPS):
            self._publish(4 if step % 7 == 3 else 1, _TIMEOUT_S)
            gevent.sleep(0)
            now = sum(fault.hits for fault in faults)
            quiet = quiet + 1 if now == hits else 0
            hits = now
            if hits >= _STRIKES:
                self.fs.heal()
            if hits and self._claims[-1].how == "LogFailedError" and quiet > 2:
                self._recover()
            if hits and quiet > _AFTERWARDS:
                return

    def _publish(self, count: int, timeout_s: float) -> None:
        first = self._claims[-1].numbers.stop if self._claims else 0
        numbers = range(first, first + count)
        messages = [(TYPE, payload("w", n, longest=200)) for n in numbers]
        least = most = 0
        with self._bounded("publish()", timeout_s):
            how = "hangs"
            try:
                if count == 1:
                    self._messenger.publish(CHANNEL, *messages[0], timeout=timeout_s)
                else:
                    self._messenger.publish_batch(CHANNEL, messages, timeout=timeout_s)
                how, least, most = "returned", count, count
            except LogFailedError:
                how, most = "LogFailedError", count
                self._failed = True
            except PublishTimeoutError as error:
                how, least, most = "PublishTimeoutError", int(error.written), int(error.written)
            except KeyopError as error:
                # Of a batch a prefix may be there.
                how, most = type(error).__name__, count if count > 1 else 0
        self._claims.append(Claim(numbers, least, most, how))
        self._row.count(published=how == "returned")

    def _recover(self) -> None:
        """Reopen what has failed. It may take some tries while calls still fail."""
        for _ in range(10):
            with self._bounded("reopen()", 1.0):
                for channel in self._messenger.stats().channels:
                    if channel.failed is not None:
                        self._failed = True
                        try:
                            self._messenger.reopen(channel.channel)
                        except KeyopError:
                            break
                else:
                    return

    def _compare(self) -> None:
        row = self._row
        tail = ChannelTail(self._data_dir, CHANNEL)
        tail.follow()
        for problem in tail.problems:
            # What a failed write left may be closed off as it is.
            self._expect(self._failed and "sealed segment" in problem, problem)
        logged = [entry.n for entry in tail.entries]
        self._expect(logged == sorted(set(logged)), "the log is out of order, or has some twice")
        there = set(logged)
        for claim in self._claims:
            found = [n for n in claim.numbers if n in there]
            row.count(lost=max(0, claim.least - len(found)), lies=len(found) > claim.most)
            self._expect(
                claim.least <= len(found) <= claim.most and found == [*claim.numbers][: len(found)],
                f"{claim}, but {found} are in the log",
            )
        for own_id, came in self._came.items():
            self._expect(came == logged, f"{own_id} got {_difference(came, logged)}")
            row.count(lost=len(there - set(came)))
        letters = Counter(
            letter["original"]["payload"]["n"]
            for letter in payloads(self._data_dir, _DEAD_LETTERS)
            if letter["original"] is not None
        )
        refused = {n for n in there if n % _REFUSED_EVERY == 0}
        self._expect(set(letters) == refused, f"dead letters {sorted(letters)} for {refused}")
        self._expect(
            self._failed or letters.total() == len(refused), f"some dead letters twice: {letters}"
        )


def _difference(came: list[int], expected: list[int]) -> Any:
    """Return where two lists part, with what follows in each."""
    pairs = itertools.zip_longest(came, expected)
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), 0)
    return f"{came[at : at + 5]} where {expected[at : at + 5]} was due"
