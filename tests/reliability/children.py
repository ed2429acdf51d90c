"""The processes that the scorecard starts and kills."""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.util import print_run_info

ROOT = Path(__file__).parents[2]
# Nothing that is waited for takes a fraction of this unless it hangs.
PATIENCE_S = 60.0
# The environment's variable that tells children which bug to have: see ``deliberate``.
BUG = "KEYOP_TEST_BUG"

_numbers = itertools.count(1)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Let other greenlets run until the condition holds; return what it returned.

    Raises:
        AssertionError: it did not within the time.
    """
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        gevent.sleep(0.001)
    return result


class Child:
    """A process that runs one of this package's modules with a mapping of arguments.

    It writes whole lines to ``out``, one ``write`` for each, so that none of them is torn.
    """

    def __init__(self, module: str, directory: Path, **args: Any) -> None:
        self.name = f"{module}-{next(_numbers)}"
        self.out = directory / f"{self.name}.out"
        self._err = directory / f"{self.name}.err"
        self._read_up_to = 0
        with open(self.out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.{module}", json.dumps(args, default=str)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # a Ctrl-C is the scorecard's, which ends them
            )

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return self._err.read_text(errors="replace")

    def has_spoken(self) -> bool:
        """Tell whether it has written anything."""
        return self.out.stat().st_size > 0

    def new_lines(self) -> list[str]:
        """Return the lines that it has written since the last call."""
        with open(self.out, "rb") as file:
            file.seek(self._read_up_to)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._read_up_to += whole
        return data[:whole].decode().splitlines()

    def wait_spoken(self) -> None:
        """Wait until it has written something.

        Raises:
            AssertionError: it ended before.
        """
        wait_for(lambda: self.has_spoken() or not self.alive, f"{self.name} to begin")
        if not self.has_spoken():
            raise AssertionError(f"{self.name} ended with {self.process.returncode}: {self.errors}")

    def wait_killed(self) -> None:
        """Wait for its death by SIGKILL.

        Raises:
            AssertionError: it ended in another way.
        """
        self._wait_end("to be killed", PATIENCE_S)
        if self.process.returncode != -signal.SIGKILL:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}: {self.errors}")

    def wait_done(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait for a good end.

        Raises:
            AssertionError: it failed, or did not end.
        """
        self._wait_end("to end", timeout_s)
        if self.process.returncode:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}: {self.errors}")

    def _wait_end(self, how: str, timeout_s: float) -> None:
        try:
            wait_for(lambda: not self.alive, f"{self.name} {how}", timeout_s)
        except AssertionError as error:
            # What everybody in there is doing: its greenlets, then its threads.
            for asking in (signal.SIGUSR1, signal.SIGUSR2):
                self.process.send_signal(asking)
                gevent.sleep(1)
            raise AssertionError(f"{error}\n{self.errors}") from None

    def kill(self) -> None:
        """Kill it, if it lives, and wait for its end."""
        if self.alive:
            self.process.kill()
        wait_for(lambda: not self.alive, f"{self.name} to die")

    def stop(self) -> None:
        """Ask it to end, by SIGTERM, and wait for a good end."""
        if self.alive:
            self.process.terminate()
        self.wait_done()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


# -- on the child's side


def arguments() -> dict[str, Any]:
    """Return what the parent gave, and get ready to be asked what everybody is doing."""
    gevent.signal_handler(signal.SIGUSR1, print_run_info, file=sys.stderr)
    faulthandler.register(signal.SIGUSR2)
    if BUG in os.environ:
        from .deliberate import switch_in_for_good

        switch_in_for_good(os.environ[BUG])
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def say(*words: object) -> None:
    """Write one line, at once."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())
