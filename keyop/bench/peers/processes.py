"""Servers and workers: started, waited for with a deadline, and ended by their process id."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from keyop.bench.peers.place import HOST

_START_S = 30.0
_ANSWER_S = 120.0
_END_S = 10.0
_LOOK_S = 0.01
_SHOWN_LINES = 5


class ContenderError(Exception):
    """A contender's server or process has failed; says whose, and what it said last."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probing:
        probing.bind((HOST, 0))
        port: int = probing.getsockname()[1]
    return port


class Process:
    """A child whose stderr, and stdout if nobody reads it, goes to a file."""

    def __init__(
        self,
        whose: str,
        command: Sequence[str],
        log: str,
        talks: bool = False,
        env: dict[str, str] | None = None,
    ) -> None:
        self._whose = whose
        self._log = log
        self._pending = b""
        with open(log, "ab") as file:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else file,
                stderr=file,
                env=env,
            )
        self.pid = self._child.pid

    def await_port(self, port: int) -> None:
        """Wait until it listens.

        Raises:
            ContenderError: it ended, or does not listen after half a minute.
        """

        def listens() -> bool:
            with socket.socket() as probing:
                return probing.connect_ex((HOST, port)) == 0

        self.wait_until(listens, "listen")

    def wait_until(self, reached: Callable[[], bool], what: str) -> None:
        """Wait until ``reached()``, with the errors of ``await_port``."""
        deadline = time.monotonic() + _START_S
        while not reached():
            if self._child.poll() is not None:
                raise self.failed(f"ended with status {self._child.returncode}")
            if time.monotonic() > deadline:
                raise self.failed(f"does not {what} within {_START_S:g} s")
            time.sleep(_LOOK_S)

    def tell(self, word: bytes = b"go") -> None:
        """Send a line to it."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(word + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self.failed(f"ended with status {self._child.wait()}") from None

    def hear(self) -> Any:
        """Return the next line that it prints, parsed.

        Raises:
            ContenderError: it ended, or says nothing for two minutes.
        """
        assert self._child.stdout is not None
        fd = self._child.stdout.fileno()
        deadline = time.monotonic() + _ANSWER_S
        while b"\n" not in self._pending:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self.failed(f"says nothing for {_ANSWER_S:g} s")
            data = os.read(fd, 1 << 16)
            if not data:
                raise self.failed(f"ended with status {self._child.wait()}")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return orjson.loads(line)

    def terminate(self) -> None:
        """Have it end at once, where it waits for nothing on stdin."""
        self._child.terminate()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:  # nobody waits for what it is doing
            self.terminate()
        self.end()

    def end(self) -> None:
        """End it: by the end of its stdin if it has one, by SIGTERM, by SIGKILL at last."""
        if self._child.stdin is not None:
            try:
                self._child.stdin.close()
            except BrokenPipeError:
                pass  # what could not be said to it any more
        else:
            self._child.terminate()
        for then in (self._child.terminate, self._child.kill):
            try:
                self._child.wait(_END_S)
                break
            except subprocess.TimeoutExpired:
                then()
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()

    def failed(self, how: str) -> ContenderError:
        """Return an error that names it and what it said last."""
        with open(self._log, encoding="utf-8", errors="replace") as file:
            said = "\n".join(file.read().splitlines()[-_SHOWN_LINES:])
        return ContenderError(f"{self._whose} {how}{': ' if said else ''}{said}")


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
        children = [int(child) for child in file.read().split()]
    return [pid, *(each for child in children for each in family(child))]


def resident_kib(pid: int) -> int:
    """Return what a process holds in memory, in KiB."""
    with open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
