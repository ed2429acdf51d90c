"""The demo's course: one process publishes, two subscribe, one of those is killed and returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import orjson

from keyop.demo.compare import Received, compare
from keyop.demo.processes import Child, Watch, ended
from keyop.demo.source import Source

STEADY, KILLED = "steady", "unlucky"
# The one to be killed is struck when it has so much of the whole, while more is waiting for it.
_STRIKE_AT = 0.4


def as_json(data_dir: str) -> str:
    """Return the configuration of a process that uses this data directory."""
    return orjson.dumps({"storage": {"data_dir": data_dir}}).decode()


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
        self._say = say
        self.targets = {name: f"{directory}/{name}.txt" for name in (STEADY, KILLED)}
        self._watch = Watch(self.targets, source.lines, progress)

    def run(self) -> Outcome:
        """Do it, and hold what arrived against what was sent.

        Raises:
            DemoError: a process did not start, or stopped delivering.
        """
        source = self._source
        with ExitStack() as running:
            subscribers = {name: self._subscriber(name, running) for name in self.targets}
            half = max(1, source.lines // 2)
            args = ("publish", as_json(self.data_dir), source.path, str(half))
            publisher = running.enter_context(ended(Child(*args)))
            struck_at = self._watch.wait_for(KILLED, int(source.lines * _STRIKE_AT))
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
            taken = {name: self._watch.wait_until_done(name) for name in self.targets}
        taken[KILLED] = max(0.0, taken[KILLED] - away_s)
        received = {
            name: compare(source.path, path, taken[name]) for name, path in self.targets.items()
        }
        return Outcome(int(published), float(publish_s), struck_at, away_s, received)

    def _subscriber(self, name: str, running: ExitStack) -> Child:
        child = Child("subscribe", as_json(self.data_dir), name, self.targets[name])
        running.enter_context(ended(child))
        child.hear("ready")
        return child
