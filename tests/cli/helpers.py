"""What the tests of the command line share: running it, in this process and in others."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from click.testing import CliRunner

from keyop.cli.main import cli

ROOT = Path(__file__).parents[2]
KEYOP = [sys.executable, str(ROOT / "bin" / "keyop")]

# click up to 8.1 mixes the two streams unless it is told not to.
_KEPT_APART = "mix_stderr" in inspect.signature(CliRunner).parameters


class Result(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def keyop(*args: object, stdin: str | bytes | None = None) -> Result:
    """Run a command in this process; anything but a clean exit fails the test."""
    runner = CliRunner(mix_stderr=False) if _KEPT_APART else CliRunner()
    result = runner.invoke(cli, [str(arg) for arg in args], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def well(*args: object, stdin: str | bytes | None = None) -> Result:
    """Run a command that must succeed without a word on stderr."""
    result = keyop(*args, stdin=stdin)
    assert (result.status, result.err) == (0, ""), result
    return result


def refused(status: int, *args: object, stdin: str | bytes | None = None) -> str:
    """Run a command that must fail with one line on stderr; return that line."""
    result = keyop(*args, stdin=stdin)
    assert result.status == status, result
    assert result.out == "", result
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("keyop: "), result.err
    assert "Traceback" not in result.err
    return result.err.removeprefix("keyop: ").rstrip("\n")


class Process:
    """``bin/keyop`` in a process of its own, with pipes."""

    def __init__(self, *args: object, **options: Any) -> None:
        options = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            # What is read line by line must not take more than the line from the pipe.
            "bufsize": 0,
            **options,
        }
        self.popen = subprocess.Popen([*KEYOP, *map(str, args)], **options)

    def line(self) -> str:
        """Wait for a line of its stdout."""
        line = self.popen.stdout.readline().decode()
        assert line, f"it ended: {self.popen.stderr.read().decode()}"
        return line.rstrip("\n")

    def error_line(self) -> str:
        """Wait for a line of its stderr."""
        return self.popen.stderr.readline().decode().rstrip("\n")

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def send_and_see(self, number: int) -> None:
        """Send a signal; return when the process has taken it, and takes another one as it is."""
        self.send(number)
        wait_for(lambda: not self._catches(number), "the signal to be taken")

    def _catches(self, number: int) -> bool:
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        return bool(caught >> (number - 1) & 1)

    def end(self, stdin: bytes | None = None) -> Result:
        """Wait for its end."""
        out, err = self.popen.communicate(stdin, timeout=30)
        return Result(self.popen.returncode, out.decode(), err.decode())

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(10)
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 20) -> Any:
    """Wait for something that another process does."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.005)
    return result


def dead_letter(
    original: bytes | None,
    *,
    subscriber: str | None = "billing",
    letter_id: str = "dead-0001",
    channel: str = "orders",
    error: str = "ValueError: no",
    raw: str | None = None,
    crc: bool = True,
) -> bytes:
    """Return a line of a dead-letter channel; without ``subscriber``, one as v0.11.0 writes it."""
    from tests.integration.helpers import DEAD_LETTER_TYPE, record

    if original is not None:
        original = original.rstrip(b"\n")
        if original[-18:-10] == b',"crc":"':
            original = original[:-18] + b"}"
    body = '{"original":' + ("null" if original is None else original.decode())
    body += f',"retries":2,"last_error":{json.dumps(error)},"failed_at":"2026-01-02T03:04:06Z"'
    if subscriber is not None:
        body += f',"subscriber":{orjson.dumps(subscriber).decode()}'
    if raw is not None:
        body += f',"raw":{json.dumps(raw)}'
    return record(
        channel=f"{channel}.dead-letter",
        id=letter_id,
        payload_type=DEAD_LETTER_TYPE,
        raw=body + "}",
        crc=crc,
    )


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, **variables}
