"""What the integration tests share: waiting, recording, looking at a data directory, processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop import Config, Message, Messenger

ROOT = Path(__file__).parents[2]
GOLDEN = Path(os.environ.get("KEYOP_GOLDEN") or ROOT.parent / "shared" / "golden")

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the recorded v0.11.0 data is not there (set KEYOP_GOLDEN)"
)

FAST_BACKOFF = (0.001, 0.002)
DEAD_LETTER_TYPE = "com.keyop.messenger.DeadLetterPayload"
TS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z")


def wait_until(condition: Callable[[], Any], timeout: float = 5, what: str = "") -> Any:
    """Let other greenlets run until the condition holds; return what it returned."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or condition}"
        gevent.sleep(0.002)
    return result


def config(data_dir: Path, *, name: str = "here", **parts: Mapping[str, Any]) -> Config:
    """Return a configuration; each part is a mapping of its keys, as in a YAML file."""
    storage = {"data_dir": str(data_dir), **parts.pop("storage", {})}
    return Config.from_dict({"name": name, "storage": storage, **parts})


@contextmanager
def running(
    data_dir: Path, *, name: str = "here", seams: Mapping[str, Any] | None = None, **parts: Any
) -> Iterator[Messenger]:
    """Give a messenger on the directory, closed at the end of the block."""
    messenger = Messenger(config(data_dir, name=name, **parts), **(seams or {}))
    try:
        yield messenger
    finally:
        started = time.monotonic()
        messenger.close(timeout=8)
        assert time.monotonic() - started < 9, "close() took longer than its timeout"


class Recorder:
    """A handler that keeps what it is given; ``then`` runs after that and may raise."""

    def __init__(self, then: Callable[[Message], Any] | None = None) -> None:
        self.messages: list[Message] = []
        self._then = then

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        if self._then is not None:
            self._then(message)

    @property
    def payloads(self) -> list[Any]:
        return [message.payload for message in self.messages]

    @property
    def attempts(self) -> list[int]:
        return [message.attempt for message in self.messages]

    def wait(self, count: int, timeout: float = 5) -> list[Any]:
        """Wait for at least so many deliveries; return their payloads."""
        deadline = time.monotonic() + timeout
        while len(self.messages) < count:
            assert time.monotonic() < deadline, (
                f"{len(self.messages)} of {count} messages after {timeout} s"
            )
            gevent.sleep(0.002)
        return self.payloads


def read_all(data_dir: Path, channel: str, count: int, **parts: Any) -> list[Message]:
    """Return what a subscriber of its own gets from the start; exactly ``count`` messages."""
    seen = Recorder()
    with running(data_dir, **parts) as messenger:
        subscription = messenger.subscribe(channel, "read-all", seen, start="earliest")
        wait_until(lambda: subscription.lag_bytes == 0, what="the reader to reach the end")
        messenger.unsubscribe(channel, "read-all")
    assert len(seen.messages) == count, seen.payloads
    return seen.messages


# --- what lies on disk


def channel_dir(data_dir: Path, channel: str) -> Path:
    return data_dir / "channels" / channel


def segments(data_dir: Path, channel: str) -> list[Path]:
    """The channel's segment files in offset order."""
    return sorted(channel_dir(data_dir, channel).glob("*.jsonl"))


def log_bytes(data_dir: Path, channel: str) -> bytes:
    return b"".join(path.read_bytes() for path in segments(data_dir, channel))


def records(data_dir: Path, channel: str) -> list[dict[str, Any]]:
    """Every line of the channel, decoded."""
    return [json.loads(line) for line in log_bytes(data_dir, channel).splitlines()]


def dead_letters(data_dir: Path, channel: str) -> list[dict[str, Any]]:
    """The payloads of a channel's dead letters."""
    return [record["payload"] for record in records(data_dir, f"{channel}.dead-letter")]


def offset_path(data_dir: Path, channel: str, subscriber_id: str) -> Path:
    return data_dir / "subscribers" / channel / f"{subscriber_id}.offset"


def stored_offset(data_dir: Path, channel: str, subscriber_id: str) -> int:
    return int(offset_path(data_dir, channel, subscriber_id).read_bytes())


def write_offset(data_dir: Path, channel: str, subscriber_id: str, content: bytes | int) -> Path:
    path = offset_path(data_dir, channel, subscriber_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else b"%d\n" % content)
    return path


def write_segment(data_dir: Path, channel: str, start: int, content: bytes) -> Path:
    path = channel_dir(data_dir, channel) / f"{start:020}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def tree(data_dir: Path) -> dict[str, bytes | None]:
    """Every path below the directory with its content; None for a directory."""
    return {
        str(path.relative_to(data_dir)): None if path.is_dir() else path.read_bytes()
        for path in sorted(data_dir.rglob("*"))
    }


def record(
    payload: Any = 0, *, channel: str = "orders", crc: bool = True, raw: str | None = None, **fields
) -> bytes:
    """Return one line as format.md has it; ``raw`` is the payload's JSON, to the letter."""
    head: dict[str, Any] = {
        "v": 1,
        "id": f"id-{payload}",
        "ts": "2026-01-02T03:04:05.12Z",
        "channel": channel,
        "origin": "there",
        "payload_type": "com.example.T",
    }
    head.update(fields)
    body = raw if raw is not None else json.dumps(payload, separators=(",", ":"))
    line = f'{json.dumps(head, separators=(",", ":"))[:-1]},"payload":{body}'.encode()
    if crc:
        line += b',"crc":"%08x"' % zlib.crc32(line)
    return line + b"}\n"


def crc_holds(line: bytes) -> bool:
    """Check a line's ``crc`` field; it must be there."""
    match = re.fullmatch(rb'(.*),"crc":"([0-9a-f]{8})"\}\n', line, re.DOTALL)
    return match is not None and int(match[2], 16) == zlib.crc32(match[1])


# --- processes

PREAMBLE = """
import json, os, sys, time
import gevent
from keyop import *
import keyop
data_dir = sys.argv[1]
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def make(**storage):
    return Messenger(Config.from_dict(
        {"name": f"p{os.getpid()}", "storage": {"data_dir": data_dir, **storage}}))
def wait_for(path):
    deadline = time.monotonic() + 30
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            sys.exit("never told to go on")
        gevent.sleep(0.002)
"""


class Worker:
    """A Python process whose program is ``PREAMBLE`` and ``code``; it speaks with ``say``."""

    _count = 0

    def __init__(self, code: str, data_dir: Path, *args: Any) -> None:
        Worker._count += 1
        self._out = data_dir.parent / f"worker-{Worker._count}.out"
        self._err = data_dir.parent / f"worker-{Worker._count}.err"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    PREAMBLE + textwrap.dedent(code),
                    str(data_dir),
                    *map(str, args),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def lines(self) -> list[str]:
        return self._out.read_text().splitlines()

    def wait_line(self, start: str, timeout: float = 10) -> str:
        """Wait for a line that begins with ``start``; return the first one."""

        def found() -> str | None:
            line = next((line for line in self.lines if line.startswith(start)), None)
            if line is None and self.process.poll() is not None:
                raise AssertionError(
                    f"the process ended with {self.process.returncode} before {start!r}:\n"
                    + self._err.read_text()
                )
            return line

        return wait_until(found, timeout, f"the line {start!r}; {self.lines}")

    def wait(self, timeout: float = 20) -> None:
        """Wait for a good end."""
        wait_until(lambda: self.process.poll() is not None, timeout, "the process to end")
        assert self.process.returncode == 0, self._err.read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
