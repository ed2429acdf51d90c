"""``keyop publish``: one message from the command line, or many from stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Protocol

import click
import orjson

from keyop.cli import complete
from keyop.cli.lines import LineError, LineTooLongError, read_chunks
from keyop.cli.output import complain, plural
from keyop.cli.remote import Remote, RemotePublisher, target_options
from keyop.config import Config
from keyop.errors import PayloadError, RecordTooLargeError
from keyop.messenger import Messenger
from keyop.names import check_publish_channel
from keyop.rawjson import as_value

JSON_TYPE = "keyop.json"
TEXT_TYPE = "keyop.text"


@click.command("publish")
@click.argument("channel", shell_complete=complete.channels)
@click.argument("payload", required=False)
@click.option(
    "-t",
    "--type",
    "payload_type",
    metavar="TYPE",
    help=f"Payload type; else {JSON_TYPE}, or {TEXT_TYPE} for what is sent as a string.",
)
@click.option("--text", is_flag=True, help="Send a string, whatever is in it.")
@click.option("--correlation-id", metavar="ID", help="Stamp the messages with this id.")
@click.option("-q", "--quiet", is_flag=True, help="Print neither the id nor the count.")
@target_options
def command(
    channel: str,
    payload: str | None,
    payload_type: str | None,
    text: bool,
    correlation_id: str | None,
    quiet: bool,
    config: Config,
    remote: Remote | None,
) -> None:
    """Publish PAYLOAD to CHANNEL, or each line of stdin as a message.

    PAYLOAD must be JSON unless --text is given; its message id is printed. Without PAYLOAD, or
    with "-", every line of stdin becomes a message at once: a line that is JSON is sent as that
    value, any other as a string. With --text every line is a string. A payload that begins with
    a minus comes behind "--".

    With --hub the messages go to a hub, and count as published when it has confirmed them.

    \b
    Exit status:
      0    all are published
      1    a message was refused, or could not be written or sent; those before it are published
      2    called wrongly, or PAYLOAD is not JSON
      130  Ctrl-C; how many were published is said

    \b
    Examples:
      keyop publish orders '{"id": 7, "total": 12.5}'
      keyop publish notes --text "hello, world"
      tail -f access.log | keyop publish access - --text
      keyop publish orders 7 --hub hub-1:7740 --cert me.crt --key me.key --ca ca.crt
    """
    check_publish_channel(channel)
    from_stdin = payload is None or payload == "-"
    value = payload if text or payload is None or from_stdin else parse_argument(payload)
    limit = config.storage.max_record_bytes
    with Messenger(config) if remote is None else RemotePublisher(remote) as messenger:
        sender = Sender(messenger, channel, payload_type, text, correlation_id, limit)
        if not from_stdin:
            try:
                message_id = sender.send_one(value)
            except KeyboardInterrupt:
                complain(f"not confirmed: the message may be in {channel}, or not")
                raise
            if not quiet:
                print_id(message_id)
            return
        try:
            sender.send_stdin()
        finally:
            if not quiet:
                complain(f"published {plural(sender.count, 'message')} to {channel}")


def print_id(message_id: str) -> None:
    """Write the id of a message that is published.

    Raises:
        click.ClickException: stdout cannot be written; whoever tries again must know that it was.
    """
    try:
        click.echo(message_id)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(
            f"stdout cannot be written ({error.strerror}); the message is published: {message_id}"
        ) from None


def parse_argument(payload: str) -> object:
    """Return the value of a PAYLOAD that must be JSON.

    Raises:
        click.UsageError: it is not.
    """
    try:
        return as_value(payload.encode())
    except ValueError as error:
        raise click.UsageError(
            f"PAYLOAD is not JSON: {error}; quote it for the shell, or send it as a string with "
            "--text"
        ) from None


class Publishes(Protocol):
    """Where messages go."""

    def publish(
        self, channel: str, payload_type: str, payload: Any, *, correlation_id: str | None = None
    ) -> str:
        """Publish one message."""

    def publish_batch(
        self,
        channel: str,
        messages: Iterable[tuple[str, Any]],
        *,
        correlation_id: str | None = None,
    ) -> list[str]:
        """Publish several."""


class Sender:
    """Turns text into messages of one channel. ``count`` of them are published so far."""

    def __init__(
        self,
        messenger: Publishes,
        channel: str,
        payload_type: str | None,
        text: bool,
        correlation_id: str | None,
        max_line_bytes: int,
    ) -> None:
        self.count = 0
        self._max_line_bytes = max_line_bytes
        self._messenger = messenger
        self._channel = channel
        self._types = (payload_type or JSON_TYPE, payload_type or TEXT_TYPE)
        self._text = text
        self._correlation_id = correlation_id

    def send_one(self, value: object) -> str:
        """Publish one payload; return its id."""
        message_id = self._messenger.publish(
            self._channel,
            self._types[self._text],
            value,
            correlation_id=self._correlation_id,
        )
        self.count += 1
        return message_id

    def send_stdin(self) -> None:
        """Publish each line of stdin, as many at once as have come.

        Raises:
            LineError: a line cannot be sent; all before it were.
        """
        if sys.stdin is not None and sys.stdin.isatty():
            complain("one message per line, Ctrl-D ends")
        try:
            for lines in read_chunks(self._max_line_bytes):
                self._send_lines(lines)
        except LineTooLongError as error:
            raise LineError(self.count + 1, str(error)) from None

    def _send_lines(self, lines: list[bytes]) -> None:
        batch: list[tuple[str, object]] = []
        for line in lines:
            try:
                batch.append(self._message(line))
            except UnicodeDecodeError as error:
                self._send(batch)
                reason = f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}"
                raise LineError(self.count + 1, reason) from None
        self._send(batch)

    def _message(self, line: bytes) -> tuple[str, object]:
        if not self._text:
            try:
                return self._types[False], as_value(line)
            except orjson.JSONDecodeError:
                pass
        return self._types[True], line.decode()

    def _send(self, batch: list[tuple[str, object]]) -> None:
        try:
            self._messenger.publish_batch(self._channel, batch, correlation_id=self._correlation_id)
            self.count += len(batch)
        except (PayloadError, RecordTooLargeError):
            # Nothing was written. What comes before the line at fault is, and the line is named.
            for payload_type, value in batch:
                try:
                    self._messenger.publish(
                        self._channel, payload_type, value, correlation_id=self._correlation_id
                    )
                except (PayloadError, RecordTooLargeError) as error:
                    raise LineError(self.count + 1, str(error)) from error
                self.count += 1
