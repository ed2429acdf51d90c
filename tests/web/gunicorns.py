"""A real gunicorn in a process of its own, and a client for it that cooperates."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import gevent.socket

from keyop.storage.offsets import lease_path

ROOT = Path(__file__).parents[2]
PATIENCE_S = 45.0
# What a request may end with when its worker is killed, or was just about to end.
CUT = (OSError, http.client.HTTPException)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Let other greenlets run until the condition holds; return what it returned."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        gevent.sleep(0.02)
    return result


class Answer(NamedTuple):
    """What a request was answered with."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class _Connection(http.client.HTTPConnection):
    """One that lets other greenlets run."""

    def connect(self) -> None:
        self.sock = gevent.socket.create_connection((self.host, self.port), self.timeout)


class Gunicorn:
    """gunicorn on a free port of 127.0.0.1, until the end of a block.

    The port is taken, and listened on, before gunicorn starts: whoever connects too early waits.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        program: str = "gunicorn",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory
        self._log = directory / "gunicorn.log"
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            self.port: int = listener.getsockname()[1]
            with open(self._log, "ab") as log:
                self.process = subprocess.Popen(
                    [
                        sys.executable, "-m", program, *arguments,
                        "--bind", f"fd://{listener.fileno()}", "--no-control-socket",
                    ],
                    cwd=directory,
                    env={
                        **os.environ,
                        **(env or {}),
                        "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)]),
                    },
                    pass_fds=[listener.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )  # fmt: skip

    @property
    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

    @property
    def workers(self) -> set[int]:
        """The ids of the worker processes that live."""
        pid = self.process.pid
        with suppress(FileNotFoundError):
            return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        return set()

    def wait_workers(self, count: int, without: set[int] | None = None) -> set[int]:
        """Wait until so many workers can be told to end, none of those given; return them."""

        def found() -> set[int]:
            assert self.process.poll() is None, self.log
            workers = self.workers
            if len(workers) != count or workers & (without or set()):
                return set()
            return workers if all(map(_obeys, workers)) else set()

        return wait_for(found, f"{count} workers; {self.log}")

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and give the response, whose body is still to be read."""
        connection = _Connection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer; raises one of ``CUT`` where there is none."""
        with self.open(method, path, body, headers) as response:
            return Answer(response.status, response.headers, response.read())

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """Ask it to end, by SIGTERM; return its status."""
        self.process.send_signal(signal.SIGTERM)
        wait_for(lambda: self.process.poll() is not None, f"gunicorn to end; {self.log}", timeout_s)
        return int(self.process.returncode)

    def __enter__(self) -> Gunicorn:
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.workers
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        for pid in workers:
            # A worker ends by itself when its master has gone; nothing is left to that.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, workers)), "the workers to die")


def _obeys(pid: int) -> bool:
    """Tell whether a worker has its signal handlers: a SIGTERM that comes earlier is lost."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    # The master, whose handlers it has at first, does not catch this one.
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGABRT - 1) & 1)


def alive(pid: int) -> bool:
    """Tell whether there is a process of that id which has not ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def holder(data_dir: Path, channel: str, subscriber_id: str) -> int | None:
    """Return the id of the process that holds a subscriber's lease, as the kernel has it."""
    lease = Path(lease_path(str(data_dir / "subscribers" / channel), subscriber_id))
    if not lease.exists():
        return None
    held = rf": FLOCK +ADVISORY +WRITE (\d+) \S+:{lease.stat().st_ino} "
    found = re.search(held, Path("/proc/locks").read_text())
    return None if found is None else int(found[1])
