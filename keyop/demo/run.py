"""The demo's course: one process publishes, two subscribe, one of those is killed and returns."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import gevent
from gevent import subprocess

from keyop.demo.source import Source
from keyop.errors import KeyopError

STEADY, KILLED = "steady", "unlucky"
# The one to be killed is struck when it has so much of the whole, while more is waiting for it.
_STRIKE_AT = 0.4
_LOOK_S = 0.01
_START_S = 30.0
# Without a line for so long, something is wrong.
_PATIENCE_S = 30.0


class DemoError(KeyopError):
    """A process of the demo did not do what it should have; the files stay for a look."""


class Received(NamedTuple):
    """What one subscriber got, held against the lines that were sent."""

    lines: int
    missing: int
    twice: int
    altered: int
    in_order: bool
    seconds: float

    @property
    def rate(self) -> float:
        """Deliveries in a second."""
        return (self.lines + self.twice) / self.seconds if self.seconds else 0.0

    @property
    def perfect(self) -> bool:
        """Whether every line came, unaltered and in order."""
        return self.in_order and not self.missing and not self.altered


class Outcome(NamedTuple):
    """How the demo ended. ``struck_at`` is the number of lines that the killed one had."""

    published: int
    publish_s: float
    struck_at: int
    away_s: float
    received: dict[str, Received]

    @property
    def perfect(self) -> bool:
        """Whether every subscriber got everything, in order, and the killed one at most once more.

        A process that is killed between handling a message and saving its position gets that one
        message again.
        """
        return all(
            each.perfect and each.twice <= (name == KILLED) for name, each in self.received.items()
        )


class _Child:
    """A process of the demo. It ends when its stdin is closed."""

    def __init__(self, *args: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "keyop.demo.worker", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def hear(self, word: str) -> list[str]:
        """Wait for a line that begins with this word; return the others on it."""
        try:
            with gevent.Timeout(_START_S):
                line = self._stdout.readline().decode()
        except gevent.Timeout:
            line = ""
        heard, *rest = line.split() or [""]
        if heard != word:
            raise DemoError(f"a process said {line!r} when it should have said {word!r}")
        return rest

    def go_on(self) -> None:
        """Let it do the second half."""
        self._stdin.write(b"\n")
        self._stdin.flush()

    def kill(self) -> None:
        """End it at once, wherever it is."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Let it end well; kill it if it does not."""
        self._stdin.close()
        if self._process.wait(timeout=_START_S) is None:
            self.kill()
        self._stdout.close()


class _Tail:
    """Counts the lines of a growing file, reading each byte once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._read = 0
        self.lines = 0
        # When the first of them was seen, in ``time.monotonic()`` seconds.
        self.begun = 0.0

    def look(self) -> int:
        """Return how many lines there are by now."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return 0
        if data and not self._read:
            self.begun = time.monotonic()
        self._read += len(data)
        self.lines += data.count(b"\n")
        return self.lines


class Demo:
    """One run, in ``directory``, which keeps everything that was written.

    Args:
        progress: told how many of the lines have been delivered so far, of both subscribers.
        say: told what happens, one line at a time.
    """

    def __init__(
        self,
        directory: str,
        source: Source,
        progress: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        self.data_dir = f"{directory}/data"
        self._source = source
        self._progress = progress
        self._say = say
        self.targets = {name: f"{directory}/{name}.txt" for name in (STEADY, KILLED)}
        self._tails = {name: _Tail(path) for name, path in self.targets.items()}

    def run(self) -> Outcome:
        """Do it, and hold what arrived against what was sent.

        Raises:
            DemoError: a process did not start, or stopped delivering.
        """
        source = self._source
        with ExitStack() as running:
            subscribers = {name: self._subscriber(name, running) for name in self.targets}
            half = max(1, source.lines // 2)
            args = ("publish", self.data_dir, source.path, str(half))
            publisher = running.enter_context(_ended(_Child(*args)))
            struck_at = self._wait_for(KILLED, int(source.lines * _STRIKE_AT))
            subscribers[KILLED].kill()
            struck = time.monotonic()
            self._say(f"killed {KILLED!r} (SIGKILL) after {struck_at:,} lines")
            if source.lines > half:
                publisher.hear("half")
                publisher.go_on()
            published, publish_s = publisher.hear("published")
            self._say(f"published the rest meanwhile; starting {KILLED!r} again")
            self._subscriber(KILLED, running)
            away_s = time.monotonic() - struck
            taken = {name: self._wait_until_done(name) for name in self.targets}
        taken[KILLED] = max(0.0, taken[KILLED] - away_s)
        received = {
            name: compare(source.path, path, taken[name]) for name, path in self.targets.items()
        }
        return Outcome(int(published), float(publish_s), struck_at, away_s, received)

    def _subscriber(self, name: str, running: ExitStack) -> _Child:
        child = _Child("subscribe", self.data_dir, name, self.targets[name])
        running.enter_context(_ended(child))
        child.hear("ready")
        return child

    def _look(self) -> int:
        delivered = sum(tail.look() for tail in self._tails.values())
        self._progress(min(delivered, 2 * self._source.lines))
        return delivered

    def _wait_for(self, name: str, lines: int) -> int:
        before, deadline = -1, 0.0
        while (seen := self._tails[name].lines) < lines or before < 0:
            delivered = self._look()
            if delivered != before:
                before, deadline = delivered, time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline:
                raise DemoError(f"{name!r} got {seen:,} lines, then none for {_PATIENCE_S:g} s")
            gevent.sleep(_LOOK_S)
        return seen

    def _wait_until_done(self, name: str) -> float:
        """Wait until a subscriber has the last line; return the seconds since its first."""
        self._wait_for(name, self._source.lines)
        ended = os.stat(self.targets[name]).st_mtime - time.time() + time.monotonic()
        return max(0.0, ended - self._tails[name].begun)


@contextmanager
def _ended(child: _Child) -> Iterator[_Child]:
    try:
        yield child
    finally:
        child.close()


def compare(source: str, received: str, seconds: float) -> Received:
    """Hold the lines that arrived, with their numbers, against those that were sent."""
    with open(source, "rb") as file:
        sent = file.readlines()
    seen = bytearray(len(sent))
    twice = altered = 0
    latest = -1
    in_order = True
    with open(received, "rb") as file:
        for line in file:
            number_text, _, text = line.partition(b" ")
            number = int(number_text)
            altered += text != sent[number]
            if seen[number]:
                twice += 1
                continue
            seen[number] = 1
            in_order = in_order and number > latest
            latest = number
    count = sum(seen)
    return Received(count, len(sent) - count, twice, altered, in_order, seconds)
