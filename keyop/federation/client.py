"""The client: dials one hub, sends it what its log has, stores what it subscribes to, for good."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from OpenSSL import SSL

from keyop.audit import AuditEvent
from keyop.backoff import backoff_delay, worth_telling
from keyop.config import ClientHub
from keyop.errors import KeyopError
from keyop.federation.feed import Done
from keyop.federation.instance import Instance, Peer
from keyop.federation.link import Link
from keyop.federation.outbox import Outbox, position_id
from keyop.federation.receiver import Receiver
from keyop.federation.sender import Sender
from keyop.stats import PeerStats
from keyop.storage.watch import POLL_S
from keyop.transport.dial import dial
from keyop.transport.identity import CertificateError
from keyop.transport.websocket import GOING_AWAY, INTERNAL_ERROR, NORMAL, WebSocketClosedError
from keyop.wire.messages import CLIENT
from keyop.wire.session import NOT_ALLOWED, TAKEN_OVER, Greeted

logger = logging.getLogger(__name__)

# Only after so long a connection counts as good, and failures begin to count anew.
STEADY_S = 30.0
_STOP_S = 1.0


class Condition(Enum):
    """How a client and its hub stand."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"  # the hub could not be reached, or has gone; it will be tried again
    REFUSED = "refused"  # the hub does not want this instance; it is not tried again
    STOPPED = "stopped"


class HubClient:
    """Keeps one hub connected from ``start`` to ``stop``.

    Args:
        context: returns the TLS context for the next connection, or None for plain ones.
    """

    def __init__(
        self, instance: Instance, hub: ClientHub, context: Callable[[], SSL.Context | None]
    ) -> None:
        self.hub = hub
        self.condition = Condition.STOPPED
        self.trouble = ""
        self.connects = 0
        self.failures = 0
        self._instance = instance
        self._context = context
        self._outbox = Outbox(instance, hub)
        self._link: Link | None = None
        self._peer: Peer | None = None
        self._sender: Sender | None = None
        self._receiver: Receiver | None = None
        self._name = ""
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._finder: gevent.Greenlet[[], None] | None = None
        self._stopping = Event()
        self._retry = Event()
        self._failures = 0
        # Channels that cannot be sent just now, and why.
        self._lacks: dict[str, str] = {}
        self._adding: Any = Semaphore(1)

    # -- life

    def start(self) -> None:
        """Make the positions, and begin to dial; a hub that is down keeps nobody waiting.

        Raises:
            StorageError: the positions cannot be made.
        """
        self._outbox.open()
        self._greenlet = gevent.spawn(self._run)
        self._greenlet.name = f"keyop-client-{self.hub.offset_name}"
        self._finder = gevent.spawn(self._find_channels)
        self._finder.name = f"keyop-client-finder-{self.hub.offset_name}"

    def stop(self, deadline: float) -> None:
        """Say goodbye and end.

        Args:
            deadline: in ``time.monotonic()`` seconds.
        """
        self._stopping.set()
        self._retry.set()
        if self._finder is not None:
            self._finder.kill(timeout=_STOP_S)
        link, greenlet = self._link, self._greenlet
        if link is not None:
            link.close(GOING_AWAY, "shutting down")
        if greenlet is not None:
            try:
                if link is not None:  # else there is nobody to say goodbye to, only a hub to reach
                    greenlet.join(max(0.0, deadline - monotonic()))
            finally:  # also where time is up for whoever runs this
                greenlet.kill(block=False)
                self.condition = Condition.STOPPED
            greenlet.join(_STOP_S)

    def stats(self) -> PeerStats:
        """Return how the hub and this instance stand."""
        link, sender, receiver = self._link, self._sender, self._receiver
        connected = self.condition is Condition.CONNECTED and link is not None
        return PeerStats(
            self._name or self.hub.name or self.hub.addr,
            "hub",
            self.hub.addr,
            self.condition.value,
            self.trouble,
            connected_s=monotonic() - link.opened_at if connected and link is not None else None,
            position_id=position_id(self.hub),
            reconnects=max(0, self.connects - 1),
            failures=self.failures,
            round_trip_s=None if sender is None else sender.round_trip_s,
            received=0 if receiver is None else receiver.counters.received,
            **(Done() if sender is None else sender.done)._asdict(),
        )

    def apply(self, hub: ClientHub) -> None:
        """Go over to other channels, at once; a hub that had refused is tried again."""
        before, self.hub = self.hub, hub
        self._outbox.hub = hub
        if self._link is not None and before.addr != hub.addr:
            self._link.close(NORMAL, "the hub is elsewhere")
        elif self._link is not None and before.subscribe != hub.subscribe:
            self._link.close(NORMAL, "subscribing to other channels")
        elif self._sender is not None:
            for channel in list(self._sender.feeds):
                if not self._outbox.holds(channel):
                    self._sender.remove(channel)
            self._add_feeds()
        self._retry.set()

    def reconnect(self) -> None:
        """Dial again, with the certificates of now."""
        if self._link is not None:
            self._link.close(NORMAL, "other certificates")
        self._retry.set()

    # -- connecting

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._retry.clear()
            wait_s = self._connect_once()
            if self._stopping.is_set():
                break
            if wait_s is None:
                self._retry.wait()
                self._failures = 0
            else:
                self._retry.wait(wait_s)
        self.condition = Condition.STOPPED

    def _connect_once(self) -> float | None:
        """Connect, and be connected until that ends; return how long to wait, None for good."""
        self.condition = Condition.CONNECTING
        hub, context = self.hub, self._context()
        try:
            dialled = dial(hub.addr, context, hub.name)
        except (OSError, CertificateError) as error:
            return self._failed(str(error))
        # Nothing may end a client unseen: whatever it is, it is reported and tried again.
        except Exception as error:
            logger.exception("%s: dialling failed", self.hub.addr)
            return self._failed(str(error))
        if self.hub.addr != hub.addr or self._context() is not context:  # a reload came meanwhile
            dialled.connection.drop()
            dialled.connection.finish()
            return 0.0
        instance = self._instance
        hello = instance.hello(CLIENT, self.hub.subscribe)
        link = self._link = Link(dialled.connection, instance.session(hello))
        begun = monotonic()
        instance.links.add(link)
        try:
            link.connection.send_text(link.session.greeting())
            closed = link.run(lambda greeted: self._greeted(link, dialled.peer, greeted))
        except OSError as error:
            closed = WebSocketClosedError(1006, str(error), True)
        except Exception as error:  # as above
            logger.exception("%s: the connection failed", self.hub.addr)
            closed = WebSocketClosedError(INTERNAL_ERROR, str(error), False)
        finally:
            instance.forget(link)
            self._link = self._sender = self._receiver = None
            dialled.connection.finish()
        return self._ended(closed, monotonic() - begun)

    def _failed(self, reason: str) -> float:
        self._failures += 1
        self.failures += 1
        if reason != self.trouble or worth_telling(self._failures):
            logger.warning("%s cannot be reached: %s", self.hub.addr, reason)
        self.trouble, self.condition = reason, Condition.WAITING
        return self._backoff()

    def _backoff(self) -> float:
        options = self._instance.config.federation
        return backoff_delay(
            max(1, self._failures),
            options.reconnect_base_ms / 1000,
            options.reconnect_max_ms / 1000,
            options.reconnect_jitter,
        )

    def _ended(self, closed: WebSocketClosedError, lasted_s: float) -> float | None:
        if self._peer is not None:
            self._note(AuditEvent.PEER_DISCONNECTED, str(closed))
            self._peer = None
        self.trouble = str(closed)
        if self._stopping.is_set():
            return 0.0
        if closed.code == NOT_ALLOWED:
            self.condition = Condition.REFUSED
            logger.error(
                "%s refuses this instance: %s; it is not tried again before the configuration is "
                "reloaded",
                self.hub.addr,
                closed.reason,
            )
            return None
        self.condition = Condition.WAITING
        if not closed.remote and closed.code == NORMAL:  # on purpose: apply, reconnect
            return 0.0
        self.failures += 1
        logger.warning("%s: %s", self.hub.addr, closed)
        if closed.code == TAKEN_OVER:
            return self._instance.config.federation.reconnect_max_ms / 1000
        self._failures = 1 if lasted_s >= STEADY_S else self._failures + 1
        return self._backoff()

    def _greeted(self, link: Link, certified: str, greeted: Greeted) -> None:
        instance, hello = self._instance, greeted.hello
        peer = self._peer = Peer(
            certified or hello.instance_name, self.hub.addr, hello.max_record_bytes
        )
        link.connection.trust(instance.max_message_bytes)
        self._name = peer.name
        link.receiver = self._receiver = instance.receiver(
            link, peer, lambda channel: channel in self.hub.subscribe
        )
        link.sender = self._sender = instance.sender(link, peer)
        self.condition, self.trouble = Condition.CONNECTED, ""
        self.connects += 1
        self._note(AuditEvent.PEER_CONNECTED)
        logger.info("connected to %s at %s", peer.name, self.hub.addr)
        self._add_feeds()

    # -- what is sent

    def _add_feeds(self) -> None:
        with self._adding:  # the hello and a new channel may come at the same time
            link, peer = self._link, self._peer
            if link is not None and peer is not None and self._sender is not None:
                self._add_feeds_to(link, self._sender, peer)

    def _add_feeds_to(self, link: Link, sender: Sender, peer: Peer) -> None:
        for channel in self._outbox.channels():
            if channel in sender.feeds or not link.open:
                continue
            try:
                feed = self._instance.feed(
                    channel, peer, position_id(self.hub), self._outbox.start, sender
                )
            except (KeyopError, OSError) as error:
                self._note_lack(channel, error)
                continue
            self._lacks.pop(channel, None)
            if link.open:
                sender.add(feed)
            else:
                feed.close()

    def _note_lack(self, channel: str, error: Exception) -> None:
        """It is tried again every second, and told once."""
        if self._lacks.get(channel) != str(error):
            name = self._name or self.hub.addr
            logger.error("%s cannot be sent to %s: %s", channel, name, error)
        self._lacks[channel] = str(error)

    def _find_channels(self) -> None:
        """Look for channels that have come into being, here or in another process."""
        opened = self._instance.store.opened_channel
        while True:
            opened.clear()
            opened.wait(POLL_S)
            try:
                for channel, error in self._outbox.make_positions().items():
                    self._note_lack(channel, error)
                self._add_feeds()
            # Nothing may end it unseen: channels that come later would never be sent.
            except Exception as fault:
                expected = isinstance(fault, (KeyopError, OSError))
                logger.error("%s: %s", self.hub.addr, fault, exc_info=not expected)

    def _note(self, event: AuditEvent, detail: str = "") -> None:
        assert self._peer is not None
        self._instance.audit.record(
            event, peer=self._peer.name, peer_addr=self._peer.address, detail=detail
        )
