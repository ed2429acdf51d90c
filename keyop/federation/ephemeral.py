"""A client without a data directory: publishes to a hub and waits, receives what comes."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from types import TracebackType
from typing import Any

import gevent
from gevent.event import Event

from keyop.backoff import backoff_delay
from keyop.clock import seconds_left
from keyop.config import TLSConfig
from keyop.config_rules import dial_address
from keyop.context import current_correlation_id, current_service_name
from keyop.decode import strip_checksum
from keyop.envelope import EnvelopeWriter
from keyop.errand import end_greenlets
from keyop.errors import (
    ConnectionLostError,
    EphemeralClosedError,
    ForkedError,
    HandshakeRejectedError,
    KeyopError,
    PublishTimeoutError,
    RecordTooLargeError,
)
from keyop.federation.link import Link
from keyop.federation.live import LiveHandler, LiveReceiver, LiveSubscription
from keyop.federation.outgoing import Outgoing
from keyop.names import check_channel, check_publish_channel, instance_name_fault
from keyop.payloads import PayloadRegistry, encode_payload
from keyop.transport.contexts import SERVER_AUTH, Credentials
from keyop.transport.dial import dial
from keyop.transport.identity import CertificateError
from keyop.transport.tls import TLSError
from keyop.transport.websocket import NORMAL, WebSocketClosedError
from keyop.wire.messages import CLIENT, FEATURES, V0_11_MAX_RECORD_BYTES, Hello
from keyop.wire.session import NOT_ALLOWED, Greeted, Session

logger = logging.getLogger(__name__)

_WINDOW_BATCHES = 8
_MAX_RECORD_BYTES = 10 << 20
# What every hub takes, whatever its own limit of a batch.
_LARGEST_BATCH_BYTES = 1 << 20
_TICK_S = 1.0
_CLOSE_S = 2.0
_KILL_S = 1.0
_MORE = "subscribing to more"


class EphemeralMessenger:
    """Publishes to a hub and receives live, keeping nothing.

    Constructing one does no I/O. The first publish connects, if ``connect`` has not.

    Args:
        hub_addr: ``host:port`` or ``[IPv6]:port``.
        instance_name: the origin of what is published; otherwise the certificate's common name,
            or the host's name.
        tls: certificates, as a ``TLSConfig`` or a mapping of its fields; None for a plain
            connection.
        subscribe: channels to receive besides those of :meth:`subscribe`.
        auto_reconnect: dial again when the connection is lost, with backoff.
        max_batch_bytes: of one batch, at most 1 MiB, unless a single record is larger.
        write_queue_size: how many messages may wait to be sent; a further publish waits.
        on_fatal: told the error after which nothing more will happen: the hub's refusal, or the
            loss of the connection without ``auto_reconnect``.

    Raises:
        ConfigError: ``tls`` is wrong.
        ValueError: a name or a number makes no sense.
    """

    def __init__(
        self,
        hub_addr: str,
        *,
        instance_name: str | None = None,
        tls: TLSConfig | Mapping[str, Any] | None = None,
        subscribe: Iterable[str] = (),
        auto_reconnect: bool = False,
        reconnect_base_ms: int = 500,
        reconnect_max_ms: int = 60_000,
        reconnect_jitter: float = 0.2,
        max_batch_bytes: int = 65_536,
        write_queue_size: int = 256,
        on_fatal: Callable[[KeyopError], object] | None = None,
    ) -> None:
        fault = None if instance_name is None else instance_name_fault(instance_name)
        if fault is not None:
            raise ValueError(f"instance_name {fault}")
        try:
            if not dial_address(hub_addr):
                raise ValueError("'' is not host:port")
        except ValueError as error:
            raise ValueError(f"hub_addr: {error}") from None
        if write_queue_size < 1 or max_batch_bytes < 1:
            raise ValueError("write_queue_size and max_batch_bytes must be at least 1")
        if reconnect_base_ms < 0 or reconnect_max_ms < 0 or not 0 <= reconnect_jitter <= 1:
            raise ValueError("reconnect times must be from 0 on, and the jitter from 0 to 1")
        if isinstance(tls, Mapping):
            tls = TLSConfig.from_dict(tls)
        self.hub_addr = hub_addr
        self._tls = tls if tls is not None and tls.configured else None
        self._instance_name = instance_name
        self._channels = list(dict.fromkeys(check_channel(name) for name in subscribe))
        # Those that stood in the last hello.
        self._asked_for: tuple[str, ...] = ()
        self._auto_reconnect = auto_reconnect
        self._backoff = (reconnect_base_ms / 1000, reconnect_max_ms / 1000, reconnect_jitter)
        self._outgoing = Outgoing(write_queue_size, min(max_batch_bytes, _LARGEST_BATCH_BYTES))
        self._on_fatal = on_fatal
        self._registry = PayloadRegistry()
        self._subscriptions: dict[str, LiveSubscription] = {}
        self._connected = Event()
        self._writer: EnvelopeWriter | None = None
        self._link: Link | None = None
        self._fatal: KeyopError | None = None
        self._trouble = "not connected"
        self._max_record_bytes = V0_11_MAX_RECORD_BYTES
        self._greenlets: list[gevent.Greenlet[[], None]] = []
        self._pid = 0
        self._closed = False

    # -- life

    @property
    def instance_name(self) -> str:
        """The origin of what is published; known once connected, if the certificate gives it."""
        return self._instance_name or socket.gethostname()

    def __enter__(self) -> EphemeralMessenger:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def connect(self, timeout: float | None = None) -> None:
        """Connect and wait until the hub has answered; nothing to do if connected.

        Raises:
            HandshakeRejectedError: the hub refuses this instance, or this one the hub.
            ConnectionLostError: the hub cannot be reached, and is not tried again.
            TimeoutError: it was not reached in time; with ``auto_reconnect`` it is tried on.
            EphemeralClosedError: the messenger was closed.
        """
        self._check_usable()
        if not self._greenlets:
            self._pid = os.getpid()
            for name, run in (("connection", self._run), ("keeper", self._keep)):
                greenlet = gevent.spawn(run)
                greenlet.name = f"keyop-ephemeral-{name}"
                self._greenlets.append(greenlet)
        if not self._connected.wait(timeout):
            raise TimeoutError(
                f"{self.hub_addr}: not connected within {timeout:g} s: {self._trouble}"
            )
        self._check_usable()

    def check(self) -> None:
        """Raise what has ended this messenger, if anything has.

        Raises:
            HandshakeRejectedError, ConnectionLostError, EphemeralClosedError: why.
        """
        self._check_usable()

    def _check_usable(self) -> None:
        if self._closed:
            raise EphemeralClosedError("the ephemeral messenger is closed")
        if self._fatal is not None:
            raise self._fatal
        if self._pid not in (0, os.getpid()):
            raise ForkedError(
                f"this ephemeral messenger was connected in process {self._pid}, and this is "
                f"process {os.getpid()}: make one in each process"
            )

    def close(self) -> None:
        """Send what waits, if that takes a moment only, then end; calling it twice is safe.

        Publishers that still wait get ``EphemeralClosedError``.
        """
        if self._closed:
            return
        deadline = monotonic() + _CLOSE_S
        while self._outgoing.busy and self._is_open() and monotonic() < deadline:
            gevent.sleep(0.005)
        self._closed = True
        link = self._link
        if link is not None:
            link.close(NORMAL, "closed")
        if self._greenlets:
            if link is not None and gevent.getcurrent() is not self._greenlets[0]:
                self._greenlets[0].join(_CLOSE_S)
            others = [each for each in self._greenlets if each is not gevent.getcurrent()]
            end_greenlets(others, _KILL_S)
        self._outgoing.end(EphemeralClosedError("the ephemeral messenger was closed"))
        self._connected.set()  # so that whoever waits sees that it is closed
        for subscription in self._subscriptions.values():
            subscription.stop()

    # -- subscribing

    def subscribe(self, channel: str, handler: LiveHandler) -> None:
        """Call ``handler(message)`` with what is published to a channel from now on.

        A message whose handler raises is reported and gone. While connected, a channel that was
        not named before makes the connection begin anew.
        """
        self._check_usable()
        channel = check_channel(channel)
        if not callable(handler):
            raise TypeError(f"the handler must be callable, not {type(handler).__name__}")
        if channel in self._subscriptions:
            raise ValueError(f"{channel} has a handler already")
        self._subscriptions[channel] = LiveSubscription(channel, handler, self._registry)
        if channel not in self._channels:
            self._channels.append(channel)
            if self._is_open():
                self._begin_anew()

    def _begin_anew(self) -> None:
        link = self._link
        assert link is not None
        self._outgoing.detach()  # what is published meanwhile waits for the next connection
        while self._outgoing.unconfirmed and self._link is link and link.open:
            gevent.sleep(0.005)
        if self._link is link:
            self._connected.clear()
            link.close(NORMAL, _MORE)
        self._connected.wait()
        self._check_usable()

    def register_payload_type(
        self, payload_type: str, cls: type[Any] | Callable[[Any], Any]
    ) -> None:
        """Deliver payloads of this type as instances of ``cls``.

        Raises:
            PayloadTypeAlreadyRegisteredError: the type has a class already, which stays.
        """
        self._registry.register(payload_type, cls)

    # -- publishing

    def publish(
        self,
        channel: str,
        payload_type: str,
        payload: Any,
        *,
        correlation_id: str | None = None,
        service_name: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Send one message; return its id once the hub has it on its disk.

        Args:
            timeout: seconds for the whole call, connecting included.

        Raises:
            ConnectionLostError: the connection ended before the hub had confirmed: the message may
                or may not have arrived.
            PublishTimeoutError: not confirmed in time; ``written`` is False if it was not sent, and
                True if it may arrive.
            RecordTooLargeError: the hub does not take so large a record.
            HandshakeRejectedError, EphemeralClosedError: nothing was sent.
        """
        self._check_usable()
        deadline = None if timeout is None else monotonic() + timeout
        check_publish_channel(channel)
        data = encode_payload(payload)
        if not self._connected.is_set():
            try:
                self.connect(seconds_left(deadline))
            except TimeoutError as error:
                raise PublishTimeoutError(str(error)) from None
        assert self._writer is not None
        if correlation_id is None:
            correlation_id = current_correlation_id.get()
        if service_name is None:
            service_name = current_service_name.get()
        message_id, line = self._writer.encode(
            channel, payload_type, data, correlation_id, service_name
        )
        record = line[:-1]
        if len(record) > self._max_record_bytes:
            record = strip_checksum(record)
        if len(record) > self._max_record_bytes:
            raise RecordTooLargeError(
                f"the record has {len(record)} bytes; the hub takes {self._max_record_bytes}"
            )
        self._outgoing.put(record, deadline)
        return message_id

    # -- the connection

    def _is_open(self) -> bool:
        return self._link is not None and self._link.open

    def _run(self) -> None:
        failures = 0
        while not self._closed:
            begun = monotonic()
            error = self._connect_once()
            if self._closed:
                return
            on_purpose = error is None
            if error is not None:
                self._trouble = str(error)
                if isinstance(error, HandshakeRejectedError) or not self._auto_reconnect:
                    self._give_up(error)
                    return
                self._outgoing.fail(error)
                logger.warning("%s", error)
            failures = 0 if on_purpose or monotonic() - begun > 30 else failures + 1
            if failures:
                gevent.sleep(backoff_delay(failures, *self._backoff))

    def _connect_once(self) -> KeyopError | None:
        """Be connected until that ends; return why, None if it was on purpose."""
        try:
            credentials = (
                None
                if self._tls is None
                else Credentials.load(
                    self._tls.cert,
                    self._tls.key,
                    self._tls.ca,
                    self._tls.crl,
                    self._tls.min_version,
                )
            )
            context = credentials.context(SERVER_AUTH) if credentials else None
            dialled = dial(self.hub_addr, context)
        except (CertificateError, TLSError) as error:
            return HandshakeRejectedError(f"{self.hub_addr}: {error}")
        except KeyopError as error:  # the files cannot be used
            return HandshakeRejectedError(str(error))
        except OSError as error:
            return ConnectionLostError(f"{self.hub_addr} cannot be reached: {error}")
        # Nothing may end it unseen, or publishers would wait for ever.
        except Exception as error:
            logger.exception("%s: dialling failed", self.hub_addr)
            return ConnectionLostError(f"{self.hub_addr}: {error}")
        if self._instance_name is None and credentials is not None:
            self._instance_name = credentials.name
        self._asked_for = tuple(self._channels)
        hello = Hello(
            self.instance_name, CLIENT, self._asked_for, True, FEATURES, _MAX_RECORD_BYTES
        )
        session = Session(hello, _WINDOW_BATCHES, monotonic())
        link = self._link = Link(dialled.connection, session)
        link.receiver = LiveReceiver(self._subscriptions, link.acknowledge)
        link.sender = self._outgoing
        try:
            link.connection.send_text(session.greeting())
            return self._why(link, link.run(lambda greeted: self._greeted(link, greeted)))
        except OSError as error:
            return ConnectionLostError(f"{self.hub_addr}: {error}")
        except Exception as error:  # as above
            logger.exception("%s: the connection failed", self.hub_addr)
            return ConnectionLostError(f"{self.hub_addr}: {error}")
        finally:
            self._connected.clear()
            self._link = None
            link.connection.finish()

    def _why(self, link: Link, closed: WebSocketClosedError) -> KeyopError | None:
        if closed.code == NOT_ALLOWED:
            return HandshakeRejectedError(f"{self.hub_addr}: {closed.reason}")
        cause, greeted = closed.__cause__, link.session.peer is not None
        if isinstance(cause, TLSError) and not greeted:  # in TLS 1.3 it comes with the first read
            return HandshakeRejectedError(f"{self.hub_addr}: {cause}")
        if not closed.remote and closed.code == NORMAL:
            return None
        return ConnectionLostError(f"{self.hub_addr}: {closed}")

    def _greeted(self, link: Link, greeted: Greeted) -> None:
        if self._asked_for != tuple(self._channels):  # there are more since
            link.close(NORMAL, _MORE)
            return
        self._max_record_bytes = greeted.hello.max_record_bytes
        link.connection.trust(_MAX_RECORD_BYTES + (1 << 20))
        if self._writer is None:
            self._writer = EnvelopeWriter(self.instance_name)
        self._connected.set()
        self._outgoing.attach(link.session, link.connection)

    def _give_up(self, error: KeyopError) -> None:
        self._fatal = error
        self._outgoing.end(error)
        self._connected.set()  # so that whoever waits sees why
        logger.error("%s", error)
        if self._on_fatal is not None:
            try:
                self._on_fatal(error)
            except (Exception, gevent.Timeout):  # a user's own code
                logger.exception("on_fatal failed")

    def _keep(self) -> None:
        while True:
            gevent.sleep(_TICK_S)
            if self._link is not None:
                self._link.tick()
