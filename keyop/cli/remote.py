"""A hub in place of a data directory: ``--hub`` and its certificates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click
import gevent

from keyop.cli.common import config_options
from keyop.config_rules import dial_address
from keyop.errors import KeyopError, PayloadError, RecordTooLargeError
from keyop.federation.ephemeral import EphemeralMessenger
from keyop.names import instance_name_fault

# How many messages are on their way at once; the library's own queue holds as many.
_AT_ONCE = 256
_CONNECT_S = 15.0


@dataclass(frozen=True)
class Remote:
    """A hub, and what is shown to it."""

    address: str
    tls: dict[str, str]
    name: str | None

    def messenger(self, auto_reconnect: bool = False) -> EphemeralMessenger:
        """Return an ephemeral messenger, not connected yet."""
        return EphemeralMessenger(
            self.address, tls=self.tls, instance_name=self.name, auto_reconnect=auto_reconnect
        )


def target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a data directory and of a hub; the command is given both.

    ``remote`` is None unless ``--hub`` is there.
    """

    @click.option("--hub", metavar="ADDR", help="A hub instead of a data directory, host:port.")
    @click.option("--cert", metavar="FILE", default="", help="With --hub: the certificate to show.")
    @click.option("--key", metavar="FILE", default="", help="With --hub: the key of --cert.")
    @click.option("--ca", metavar="FILE", default="", help="With --hub: the authority of both.")
    @click.option("--as", "name", metavar="NAME", help="With --hub: this instance's name.")
    @wraps(function)
    def wrapper(
        *args: Any, hub: str | None, cert: str, key: str, ca: str, name: str | None, **kwargs: Any
    ) -> Any:
        tls = {"cert": cert, "key": key, "ca": ca}
        remote = None
        if hub is not None:
            context = click.get_current_context()
            for other in ("data_dir", "config_file"):
                if context.params.get(other) is not None:
                    raise click.UsageError("give --hub or a data directory, not both")
            try:
                if not dial_address(hub):
                    raise ValueError("'' is not host:port")
            except ValueError as error:
                raise click.UsageError(f"--hub: {error}") from None
            fault = None if name is None else instance_name_fault(name)
            if fault is not None:
                raise click.UsageError(f"--as: {fault}")
            given = [option for option, value in tls.items() if value]
            if given and len(given) < len(tls):
                missing = next(option for option, value in tls.items() if not value)
                raise click.UsageError(f"--{given[0]} needs --{missing} beside it")
            remote = Remote(hub, tls, name)
        elif name is not None or any(tls.values()):
            raise click.UsageError("--cert, --key, --ca and --as are for --hub")
        return function(*args, remote=remote, **kwargs)

    return config_options(wrapper)


class RemotePublisher:
    """Publishes to a hub as a messenger does to its data directory; connects when it is made.

    Raises:
        KeyopError: the hub cannot be reached, or refuses this instance.
        TimeoutError: it does not answer.
    """

    def __init__(self, remote: Remote) -> None:
        # Ids of what was sent of a batch that was given up; its sender goes through it once more.
        self._sent: deque[str] = deque()
        self._refused = False
        self._messenger = remote.messenger()
        try:
            self._messenger.connect(_CONNECT_S)
        except BaseException:
            self._messenger.close()
            raise

    def __enter__(self) -> RemotePublisher:
        return self

    def __exit__(self, *_: object) -> None:
        self._messenger.close()

    def publish(
        self, channel: str, payload_type: str, payload: Any, *, correlation_id: str | None = None
    ) -> str:
        """Publish one message; return its id once the hub has it on its disk."""
        if self._sent:
            return self._sent.popleft()
        return self._messenger.publish(
            channel, payload_type, payload, correlation_id=correlation_id
        )

    def publish_batch(
        self,
        channel: str,
        messages: Iterable[tuple[str, Any]],
        *,
        correlation_id: str | None = None,
    ) -> list[str]:
        """Publish several, in their order, many of them on their way at once.

        Raises:
            PayloadError, RecordTooLargeError: one cannot be sent. Those before it were, and no
                others; publishing the same messages again one by one sends none of them twice.
            KeyopError: the connection is lost, and what the hub had not confirmed yet may or may
                not have arrived.
        """
        pairs = list(messages)
        ids: list[str] = []
        for start in range(0, len(pairs), _AT_ONCE):
            sending = [
                gevent.spawn(self._try, channel, pair, correlation_id)
                for pair in pairs[start : start + _AT_ONCE]
            ]
            gevent.joinall(sending)
            for each in sending:
                outcome = each.get()
                if isinstance(outcome, (PayloadError, RecordTooLargeError)):
                    self._sent, self._refused = deque(ids), False
                    raise outcome
                if isinstance(outcome, KeyopError):
                    raise outcome
                ids.append(outcome)
        return ids

    def _try(
        self, channel: str, pair: tuple[str, Any], correlation_id: str | None
    ) -> str | KeyopError:
        """Publish one message; return its id, or why there is none.

        These start in order, and a message is checked before it waits for anything: so none goes
        that is behind one that cannot.
        """
        if self._refused:
            return KeyopError("it comes behind a message that cannot be sent")
        try:
            return self._messenger.publish(channel, *pair, correlation_id=correlation_id)
        except (PayloadError, RecordTooLargeError) as error:
            self._refused = True
            return error
        except KeyopError as error:
            return error
