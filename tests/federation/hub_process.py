"""``bin/keyop-hub`` in a process of its own, as a user or a service manager starts it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from tests.cli.helpers import Process, Result

ROOT = Path(__file__).parents[2]
KEYOP_HUB = [sys.executable, str(ROOT / "bin" / "keyop-hub")]


def environment(**variables: str) -> dict[str, str]:
    """Return an environment in which the commands are found, and no data directory."""
    path = [str(ROOT / "bin"), os.path.dirname(sys.executable), "/usr/bin", "/bin"]
    made = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": os.pathsep.join(path), "COLUMNS": "100"}
    for name in ("KEYOP_DATA_DIR", "NOTIFY_SOCKET"):
        made.pop(name, None)
    return {**made, **variables}


def patiently(condition: Callable[[], Any], what: str, timeout: float = 30) -> Any:
    """Wait for what takes a while, letting other greenlets run, a test's own clients."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        gevent.sleep(0.02)
    return result


class HubProcess(Process):
    """A hub whose output goes to files in its working directory, so that it never waits."""

    def __init__(self, directory: Path, *args: object, **options: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._out, self._err = directory / "hub.out", directory / "hub.err"
        options = {"env": environment(), "stdin": subprocess.DEVNULL, **options}
        command = options.pop("command", KEYOP_HUB)
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            options = {"stdout": out, "stderr": err, **options}
            self.popen = subprocess.Popen([*command, *map(str, args)], cwd=directory, **options)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self, condition: Any, what: str) -> Any:
        """Wait for something while it runs, and the test's own clients go on."""

        def found() -> Any:
            ended = self.popen.poll() is not None
            result = condition()
            assert result or not ended, f"it ended with {self.popen.returncode}: {self.err}"
            return result

        return patiently(found, what)

    def address(self) -> str:
        """Wait until it listens; return where."""
        line = self.wait(lambda: "listens on" in self.out and "\n" in self.out, "it to listen")
        assert line
        return self.out.splitlines()[0].rpartition(" ")[2]

    def commands(self) -> tuple[str, str]:
        """Wait for the commands that it prints; return the one that follows, and the other."""

        def found() -> list[str]:
            lines = [line for line in self.out.splitlines(keepends=True) if line[:1] == " "]
            return lines if len(lines) == 2 and lines[1].endswith("\n") else []

        follow, publish = self.wait(found, "its commands")
        return follow.strip(), publish.strip()

    def options(self) -> list[str]:
        """Return what a command needs to reach an embedded hub."""
        words = shlex.split(self.commands()[0])
        return words[words.index("--hub") :]

    def has_said(self, text: str) -> None:
        """Wait until it has said something on stderr."""
        self.wait(lambda: text in self.err, f"{text!r} on stderr")

    def ended(self) -> Result:
        """Wait for its end."""
        patiently(lambda: self.popen.poll() is not None, "its end")
        return Result(self.popen.returncode, self.out, self.err)

    def stop(self, number: int = signal.SIGTERM) -> Result:
        """End it with a signal."""
        self.send(number)
        return self.ended()


def run_hub(directory: Path, *args: object, **options: Any) -> Result:
    """Run a hub that is expected to end by itself."""
    with HubProcess(directory, *args, **options) as hub:
        return hub.ended()


def shell(command: str, directory: Path, **variables: str) -> Process:
    """Start a command line as it stands, in a shell in some directory."""
    return ShellProcess(command, directory, environment(**variables))


class ShellProcess(Process):
    """One command line; a signal reaches the program itself."""

    def __init__(self, command: str, directory: Path, env: dict[str, str]) -> None:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.popen = subprocess.Popen(
            ["sh", "-c", f"exec {command}"], cwd=directory, env=env, bufsize=0, **pipes
        )
