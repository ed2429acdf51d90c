"""The hub: lets allowed clients in, stores what they send, sends them what they subscribe to."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from time import monotonic

import gevent
from cryptography import x509

from keyop.audit import AuditEvent
from keyop.config import HubConfig
from keyop.config_rules import join_address
from keyop.errors import KeyopError, SubscriberInUseError
from keyop.federation.feed import Done, Feed
from keyop.federation.instance import Instance, Peer
from keyop.federation.limits import Limits
from keyop.federation.link import Link
from keyop.federation.policy import Policy, Rights
from keyop.federation.receiver import Receiver
from keyop.federation.sender import Sender
from keyop.names import PEER_PREFIX
from keyop.stats import PeerStats
from keyop.transport.accept import Accepted, Listener
from keyop.transport.contexts import CLIENT_AUTH, Credentials
from keyop.transport.websocket import GOING_AWAY, INTERNAL_ERROR
from keyop.wire.messages import HUB, Hello
from keyop.wire.session import NOT_ALLOWED, TAKEN_OVER, TRY_AGAIN_LATER, Greeted, State

logger = logging.getLogger(__name__)

# How long a position is waited for that a link which ends still holds.
_CLAIM_WAIT_S = 2.0
_CLAIM_POLL_S = 0.02
# How often it is tried again to send what could not be.
_MEND_S = 1.0
_NOT_LISTED = "not in allowlist"
# Of the channels that a client has asked for in vain, so many are named.
_NAMED = 10


class _Client:
    """A client that was let in."""

    def __init__(
        self, link: Link, peer: Peer, hello: Hello, certificate: x509.Certificate | None
    ) -> None:
        self.link = link
        self.peer = peer
        self.hello = hello
        self.certificate = certificate
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        # Channels that it may have and that cannot be sent just now, and why.
        self.lacks: dict[str, str] = {}

    @property
    def position_id(self) -> str | None:
        """Under which its positions are kept; an ephemeral one has none."""
        return None if self.hello.ephemeral else f"{PEER_PREFIX}{self.peer.name}"

    def stats(self) -> PeerStats:
        """Return how it stands."""
        sender, receiver = self.sender, self.receiver
        return PeerStats(
            self.peer.name,
            "ephemeral" if self.hello.ephemeral else "client",
            self.peer.address,
            "connected",
            connected_s=monotonic() - self.link.opened_at,
            position_id=self.position_id,
            backlog_bytes=0 if sender is None else sender.backlog_bytes,
            round_trip_s=None if sender is None else sender.round_trip_s,
            received=0 if receiver is None else receiver.counters.received,
            **(Done() if sender is None else sender.done)._asdict(),
        )


class Hub:
    """Serves clients from ``start`` to ``stop``. One in a data directory.

    Args:
        credentials: None for plain connections, where clients are whoever they say.
    """

    def __init__(
        self, instance: Instance, config: HubConfig, credentials: Credentials | None
    ) -> None:
        self._instance = instance
        self._config = config
        self._policy = Policy(config)
        self._limits = Limits(instance.store, config)
        self._credentials = credentials
        self._context = credentials.context(CLIENT_AUTH) if credentials else None
        self._listener: Listener | None = None
        self._clients: set[_Client] = set()
        self._durable: dict[str, _Client] = {}
        self._mender: gevent.Greenlet[[], None] | None = None

    # -- life

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._listener = Listener(
            self._config.listen_addr,
            lambda: self._context,
            self._serve,
            self._refused,
            self._config.max_pending,
        )
        self._listener.start()
        self._mender = gevent.spawn(self._mend)
        self._mender.name = "keyop-hub-mender"
        if self._context is None:
            logger.warning(
                "the hub at %s uses no TLS: whoever reaches it may be anybody", self.address
            )

    @property
    def address(self) -> str:
        """Where it listens, ``host:port``; empty if it does not."""
        if self._listener is None:
            return ""
        return join_address(*self._listener.address[:2])

    @property
    def connected(self) -> list[Peer]:
        """The clients that are connected."""
        return [client.peer for client in self._clients]

    def stats(self) -> list[PeerStats]:
        """Return how each client stands that was let in."""
        return [client.stats() for client in self._clients]

    def stop(self, deadline: float) -> None:
        """Say goodbye to every client (1001) and stop listening.

        Args:
            deadline: in ``time.monotonic()`` seconds.
        """
        if self._listener is None:
            return
        self._listener.stop_listening()
        if self._mender is not None:
            self._mender.kill(block=False)
        for client in list(self._clients):
            self._note(client.peer, AuditEvent.CLIENT_DRAIN)
            client.link.close(GOING_AWAY, "shutting down")
        self._listener.end(max(0.0, deadline - monotonic()))
        self._listener = None

    # -- one client, from its hello to its end

    def _refused(self, address: str, reason: str) -> None:
        logger.warning("%s was refused: %s", address, reason)
        self._instance.audit.record(AuditEvent.CLIENT_REJECTED, peer_addr=address, detail=reason)

    def _serve(self, accepted: Accepted) -> None:
        instance = self._instance
        link = Link(accepted.connection, instance.session(instance.hello(HUB)))
        instance.links.add(link)
        clients: list[_Client] = []
        try:
            closed = link.run(lambda greeted: self._greet(accepted, link, greeted, clients))
        # Nothing may end a connection unseen, or another one with it.
        except Exception:
            logger.exception("the connection of %s failed", accepted.address)
        else:
            for client in clients:
                self._note(client.peer, AuditEvent.PEER_DISCONNECTED, detail=str(closed))
                logger.info("%s at %s: %s", client.peer.name, client.peer.address, closed)
            if not clients:
                self._left_early(accepted, link, closed.reason)
        finally:
            instance.forget(link)
            for client in clients:
                self._clients.discard(client)
                if self._durable.get(client.peer.name) is client:
                    del self._durable[client.peer.name]

    def _left_early(self, accepted: Accepted, link: Link, reason: str) -> None:
        if link.session.peer is None:  # no hello, or not a good one
            self._refused(accepted.address, reason)

    def _greet(
        self, accepted: Accepted, link: Link, greeted: Greeted, joined: list[_Client]
    ) -> None:
        """Let a client in, which joins those, or close its link."""
        hello = greeted.hello
        name = accepted.peer or hello.instance_name
        peer = Peer(name, accepted.address, hello.max_record_bytes)
        policy = self._policy
        rights, refusal = policy.rights(name), self._refusal(name, accepted.certificate)
        if rights is None or refusal is not None:
            self._reject(link, peer, NOT_ALLOWED, refusal or _NOT_LISTED)
            return
        client = _Client(link, peer, hello, accepted.certificate)
        excess = self._excess(client)
        if excess is not None:
            self._reject(link, peer, TRY_AGAIN_LATER, excess)
            return
        joined.append(client)
        self._clients.add(client)
        if not hello.ephemeral:
            self._take_over(client)
        try:
            self._let_in(client, accepted, policy, rights)
        except (KeyopError, OSError) as error:
            logger.error("%s at %s cannot be served: %s", name, peer.address, error)
            link.close(INTERNAL_ERROR, "cannot be served")

    def _refusal(self, name: str, certificate: x509.Certificate | None) -> str | None:
        """Say why a client may not be connected; None if it may.

        Its certificate was verified before, but perhaps not with the credentials of now.
        """
        if self._policy.rights(name) is None:
            return _NOT_LISTED
        if self._credentials is None or certificate is None:
            return None
        return self._credentials.refusal(certificate)

    def _excess(self, client: _Client) -> str | None:
        """Say why a client would be one too many; None if it would not."""
        name = client.peer.name
        if client.hello.ephemeral:
            same = sum(each.peer.name == name and each.hello.ephemeral for each in self._clients)
            crowded = self._limits.crowded(same)
            if crowded is not None:
                return crowded
        elif name in self._durable:  # whose place it takes
            return None
        return self._limits.full(len(self._clients))

    def _reject(self, link: Link, peer: Peer, code: int, reason: str) -> None:
        logger.warning("%s at %s was refused: %s", peer.name, peer.address, reason)
        self._note(peer, AuditEvent.CLIENT_REJECTED, detail=reason)
        link.close(code, reason)

    def _take_over(self, client: _Client) -> None:
        """Be the only durable connection of this name: the older one ends, its readers first."""
        older = self._durable.get(client.peer.name)
        self._durable[client.peer.name] = client
        if older is not None:
            older.link.stop()
            older.link.close(TAKEN_OVER, "taken over by another connection of this name")
            logger.warning(
                "%s at %s takes over from %s",
                client.peer.name,
                client.peer.address,
                older.peer.address,
            )

    def _let_in(self, client: _Client, accepted: Accepted, policy: Policy, rights: Rights) -> None:
        instance, link = self._instance, client.link

        def accepts(channel: str) -> bool:
            now = self._policy.rights(client.peer.name)
            if now is None or not now.may_publish(channel):
                return False
            return self._limits.may_use(client.peer.name, channel)

        link.receiver = client.receiver = instance.receiver(link, client.peer, accepts)
        sender = link.sender = client.sender = instance.sender(link, client.peer)
        # The positions are taken before the hello, so that what is published after it is sent.
        feeds = self._feeds(client, rights.effective(client.hello.subscribe))
        try:
            if link.session.state is not State.DECIDING:  # taken over, or gone, meanwhile
                return
            accepted.known(instance.max_message_bytes)
            link.connection.send_text(link.session.accept())
            while feeds:
                sender.add(feeds.pop(0))
        finally:
            for feed in feeds:
                feed.close()
        self._note(client.peer, AuditEvent.CLIENT_CONNECTED)
        logger.info("%s connected from %s", client.peer.name, client.peer.address)
        self._report_withheld(client, rights)
        if policy is not self._policy:  # there was a reload meanwhile
            self._restrict(client)
            self._extend(client)

    def _report_withheld(self, client: _Client, rights: Rights) -> None:
        """Say which channels a client has asked for in vain: it is not told."""
        asked = client.hello.subscribe
        withheld = sorted(set(asked) - set(rights.effective(asked)))
        if withheld:
            named = ", ".join(withheld[:_NAMED]) + (", …" if len(withheld) > _NAMED else "")
            logger.warning("%s may not be sent what it subscribes to: %s", client.peer.name, named)
            self._note(client.peer, AuditEvent.POLICY_VIOLATION, f"may not be sent {named}")

    def _feeds(self, client: _Client, channels: Iterable[str]) -> list[Feed]:
        feeds: list[Feed] = []
        try:
            for channel in channels:
                feed = self._try_feed(client, channel)
                if feed is not None:
                    feeds.append(feed)
        except BaseException:
            for feed in feeds:
                feed.close()
            raise
        return feeds

    def _try_feed(self, client: _Client, channel: str) -> Feed | None:
        """Return a feed; None where there cannot be one, which keeps the client from no other."""
        try:
            feed = self._feed(client, channel)
        except (KeyopError, OSError) as error:
            if client.lacks.get(channel) != str(error):
                logger.error("%s cannot be sent to %s: %s", channel, client.peer.name, error)
            client.lacks[channel] = str(error)
            return None
        client.lacks.pop(channel, None)
        return feed

    def _feed(self, client: _Client, channel: str) -> Feed:
        instance, sender = self._instance, client.sender
        assert sender is not None
        self._limits.check_use(client.peer.name, channel)
        position_id = client.position_id
        deadline = monotonic() + _CLAIM_WAIT_S
        while True:
            try:
                return instance.feed(channel, client.peer, position_id, instance.end_of, sender)
            except SubscriberInUseError:  # of a link that was taken over, and ends
                if monotonic() > deadline:
                    raise
                gevent.sleep(_CLAIM_POLL_S)

    # -- reload

    def apply(self, config: HubConfig, credentials: Credentials | None) -> None:
        """Go over to another allowlist and other certificates, for live connections as well.

        Who is not allowed any more, or whose certificate would be refused now, is closed with
        4403; channels that were taken from a client stop, and those that it was given begin.
        """
        self._config = self._limits.config = config
        self._policy = Policy(config)
        if credentials is not self._credentials:
            self._credentials = credentials
            self._context = credentials.context(CLIENT_AUTH) if credentials else None
        # What is taken away first: what is given may have to wait.
        for client in list(self._clients):
            self._restrict(client)
        for client in list(self._clients):
            self._extend(client)

    def _restrict(self, client: _Client) -> None:
        """Take away what a client may not have any more: channels, or its connection."""
        rights = self._policy.rights(client.peer.name)
        refusal = self._refusal(client.peer.name, client.certificate)
        if rights is None or refusal is not None:
            self._reject(client.link, client.peer, NOT_ALLOWED, refusal or _NOT_LISTED)
            return
        if client.sender is not None:
            wanted = rights.effective(client.hello.subscribe)
            for channel in set(client.sender.feeds) - set(wanted):
                client.sender.remove(channel)

    def _extend(self, client: _Client) -> None:
        """Give a client the channels that it may have now and has not yet."""
        rights = self._policy.rights(client.peer.name)
        if rights is not None:
            self._add(client, rights.effective(client.hello.subscribe))

    def _add(self, client: _Client, channels: Iterable[str]) -> None:
        sender = client.sender
        if sender is None:
            return
        for channel in channels:
            if channel not in sender.feeds and client.link.open:
                feed = self._try_feed(client, channel)
                if feed is not None and channel in sender.feeds:  # somebody else came first
                    feed.close()
                elif feed is not None:
                    sender.add(feed)

    def _mend(self) -> None:
        """Try again, every now and then, to send what could not be."""
        while True:
            gevent.sleep(_MEND_S)
            for client in list(self._clients):
                rights = self._policy.rights(client.peer.name)
                if rights is not None and client.lacks:
                    # Nothing may end this unseen.
                    try:
                        self._add(client, rights.effective(list(client.lacks)))
                    except Exception:
                        logger.exception("%s: adding channels failed", client.peer.name)

    def _note(self, peer: Peer, event: AuditEvent, detail: str = "") -> None:
        self._instance.audit.record(event, peer=peer.name, peer_addr=peer.address, detail=detail)
