"""The demo's processes, and how far they are."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
from gevent import subprocess

from keyop.errors import KeyopError

_LOOK_S = 0.01
_START_S = 30.0
# Without a line for so long, something is wrong.
_PATIENCE_S = 30.0


class DemoError(KeyopError):
    """A process of the demo did not do what it should have; the files stay for a look."""


class Child:
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


class Tail:
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


class Watch:
    """Watches files grow that subscribers write, line by line.

    Args:
        targets: the file of each subscriber.
        lines: how many each will have in the end.
        progress: told how many lines there are in all.
    """

    def __init__(
        self, targets: dict[str, str], lines: int, progress: Callable[[int], None]
    ) -> None:
        self._targets = targets
        self._tails = {name: Tail(path) for name, path in targets.items()}
        self._lines = lines
        self._progress = progress

    def _look(self) -> int:
        delivered = sum(tail.look() for tail in self._tails.values())
        self._progress(min(delivered, len(self._tails) * self._lines))
        return delivered

    def wait_for(self, name: str, lines: int) -> int:
        """Wait until a subscriber has so many lines; return how many it has.

        Raises:
            DemoError: it gets no more.
        """
        before, deadline = -1, 0.0
        while (seen := self._tails[name].lines) < lines or before < 0:
            delivered = self._look()
            if delivered != before:
                before, deadline = delivered, time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline:
                raise DemoError(f"{name!r} got {seen:,} lines, then none for {_PATIENCE_S:g} s")
            gevent.sleep(_LOOK_S)
        return seen

    def wait_until_done(self, name: str) -> float:
        """Wait until a subscriber has the last line; return the seconds since its first."""
        self.wait_for(name, self._lines)
        ended = os.stat(self._targets[name]).st_mtime - time.time() + time.monotonic()
        return max(0.0, ended - self._tails[name].begun)


@contextmanager
def ended(child: Child) -> Iterator[Child]:
    """Have a process ended with the block."""
    try:
        yield child
    finally:
        child.close()
