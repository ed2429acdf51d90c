"""What ``keyop subscribe`` does with a message: writes it to stdout, or runs a command."""

from __future__ import annotations

import os
import signal
from typing import Any

from gevent import subprocess

from keyop.cli.lines import LineWriter
from keyop.cli.output import json_line
from keyop.envelope import Message


def as_mapping(message: Message) -> dict[str, Any]:
    """Return a message as ``--json`` shows it."""
    return {
        "id": message.id,
        "channel": message.channel,
        "origin": message.origin,
        "payload_type": message.payload_type,
        "timestamp": message.timestamp,
        "correlation_id": message.correlation_id,
        "service_name": message.service_name,
        "offset": message.offset,
        "attempt": message.attempt,
        "payload": message.payload,
    }


class Printer:
    """Writes messages to stdout, as payloads or whole."""

    # A reader that has stopped reading is not waited for.
    patience_s = 1.0

    def __init__(self, whole: bool) -> None:
        self._whole = whole
        self._writer = LineWriter()

    def __call__(self, message: Message) -> None:
        """Write one message.

        Raises:
            OSError: it was not written, or not all of it.
        """
        self._writer.write(json_line(as_mapping(message) if self._whole else message.payload))

    @property
    def broken(self) -> bool:
        """Whether nobody reads any more."""
        return self._writer.broken


class CommandFailedError(Exception):
    """The command ended with another exit status than 0."""


class Executor:
    """Runs a command of the shell for each message.

    The command is in a session of its own: a Ctrl-C reaches keyop alone, which lets it end.
    """

    patience_s = 10.0
    broken = False

    def __init__(self, program: str) -> None:
        self._program = program

    def __call__(self, message: Message) -> None:
        """Run the command and wait for it; a greenlet that is killed meanwhile kills it.

        Raises:
            CommandFailedError: it did not end with 0.
            OSError: it could not be started.
        """
        # The operator's own command line; what comes from outside is its stdin and environment.
        process = subprocess.Popen(
            self._program,
            shell=True,  # nosec B604
            stdin=subprocess.PIPE,
            env={**os.environb, **_environment(message)},
            start_new_session=True,
        )
        try:
            process.communicate(json_line(message.payload))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        status = process.returncode
        if status:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
            raise CommandFailedError(f"the command {how}")


def _environment(message: Message) -> dict[bytes, bytes]:
    values = {
        "CHANNEL": message.channel,
        "ID": message.id,
        "TYPE": message.payload_type,
        "OFFSET": str(message.offset),
        "ATTEMPT": str(message.attempt),
        "TIMESTAMP": message.timestamp.isoformat().replace("+00:00", "Z"),
        "ORIGIN": message.origin,
        "CORRELATION_ID": message.correlation_id,
        "SERVICE_NAME": message.service_name,
    }
    # No environment can hold a NUL.
    return {
        b"KEYOP_" + name.encode(): value.encode("utf-8", "replace").replace(b"\0", b"")
        for name, value in values.items()
    }
