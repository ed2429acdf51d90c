"""Federation of one messenger: hub and clients together, in one process of a data directory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from time import monotonic

import gevent
from OpenSSL import SSL

from keyop.audit import AuditEvent, AuditLog
from keyop.brief import reason
from keyop.clock import Clock
from keyop.config import ClientHub, Config, TLSConfig
from keyop.dedup import Dedup
from keyop.envelope import EnvelopeWriter
from keyop.errand import end_greenlets
from keyop.errors import ConfigError, KeyopError
from keyop.federation.client import HubClient
from keyop.federation.hub import Hub
from keyop.federation.instance import Instance
from keyop.federation.outbox import settle_positions
from keyop.federation.stale import forget_stale_positions
from keyop.stats import PeerStats
from keyop.storage.locks import FileLock
from keyop.storage.standby import stand_by
from keyop.storage.store import Store
from keyop.transport.contexts import SERVER_AUTH, Credentials

logger = logging.getLogger(__name__)

_MAX_STALE_SWEEP_S = 60.0
# After a start, peers have so long to come back before the first sweep, however long they were
# away: it may be that the hub was.
_STALE_GRACE_S = 600.0
_EXPIRY_LOOK_S = 24 * 3600.0
# How long a reload waits for the goodbye of a hub that left the configuration.
_LEAVE_S = 3.0
# How long, behind a deadline, something that was killed may take to end.
_END_S = 0.5
_MIB = 1 << 20
# What a hub that runs cannot change.
_FIXED_HUB_KEYS = ("enabled", "listen_addr", "max_pending", "fed_client_offset_ttl")


class Federation:
    """Runs the hub and the clients of a configuration, while no other process does.

    Another one on the same data directory stands by, and takes over when this one ends.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        store: Store,
        dedup: Dedup,
        writer: EnvelopeWriter,
        clock: Clock,
    ) -> None:
        self.config = config
        self._name = name
        self._store = store
        self._dedup = dedup
        self._writer = writer
        self._clock = clock
        self._lock = FileLock(store.fs, f"{store.data_dir}/.federation.lock")
        self._credentials: Credentials | None = None
        self._context: SSL.Context | None = None
        self._instance: Instance | None = None
        self.hub: Hub | None = None
        self.clients: list[HubClient] = []
        self._standby: gevent.Greenlet[[], None] | None = None
        self._greenlets: list[gevent.Greenlet[[], None]] = []

    # -- life

    @property
    def active(self) -> bool:
        """Whether this process is the one that federates."""
        return self._lock.held

    @property
    def hub_addr(self) -> str:
        """Where the hub listens; empty without one, or while another process has it."""
        return self.hub.address if self.hub is not None else ""

    def start(self) -> None:
        """Begin, or stand by where another process federates.

        Raises:
            ConfigError: a certificate cannot be used, or the hub's address not be listened on.
            KeyopError, OSError: the data directory cannot be used.
        """
        self._credentials = load_credentials(self.config.tls)
        if self._lock.try_acquire():
            self._begin()
        else:
            logger.info("another process federates; this one stands by")
            self._standby = self._spawn("standby", self._stand_by)

    def _stand_by(self) -> None:
        stand_by(self._lock, self._take_over, self._clock.sleep, logger, "taking over")

    def _take_over(self) -> None:
        logger.info("the process that federated has ended; this one takes over")
        self._begin()

    def _begin(self) -> None:
        config = self.config
        audit = AuditLog(
            self._store.data_dir,
            config.audit.max_size_mb * _MIB,
            config.audit.max_files,
            self._store.fs,
            self._clock,
        )
        instance = self._instance = Instance(
            self._name, config, self._store, self._dedup, self._writer, audit, self._clock
        )
        self._context = self._credentials.context(SERVER_AUTH) if self._credentials else None
        try:
            instance.start()
            settle_positions(instance, config.client.hubs)
            if config.hub.enabled:
                self.hub = self._start_hub(instance)
                if config.hub.fed_client_offset_ttl:
                    self._greenlets.append(self._spawn("stale", self._forget_stale))
            for hub in _dialled(config):
                self._start_client(instance, hub)
            if self._credentials is not None:
                self._greenlets.append(self._spawn("expiry", self._watch_expiry))
        except BaseException:
            self._end(monotonic() + 1.0)
            raise

    def _start_client(self, instance: Instance, hub: ClientHub) -> None:
        client = HubClient(instance, hub, lambda: self._context)
        client.start()
        self.clients.append(client)

    def _start_hub(self, instance: Instance) -> Hub:
        hub = Hub(instance, self.config.hub, self._credentials)
        try:
            hub.start()
        except OSError as error:
            raise ConfigError(
                f"hub.listen_addr: cannot listen on {self.config.hub.listen_addr}: {reason(error)}"
            ) from error
        return hub

    def _forget_stale(self) -> None:
        ttl_s = self.config.hub.fed_client_offset_ttl
        self._clock.sleep(min(_STALE_GRACE_S, ttl_s))
        while True:
            try:
                forget_stale_positions(self._store, ttl_s, self._clock)
            except (KeyopError, OSError) as error:
                logger.error("positions of peers cannot be swept: %s", error)
            self._clock.sleep(min(_MAX_STALE_SWEEP_S, ttl_s / 4))

    def _watch_expiry(self) -> None:
        while True:
            self._warn_of_expiry()
            self._clock.sleep(_EXPIRY_LOOK_S)

    def _warn_of_expiry(self) -> None:
        credentials, tls = self._credentials, self.config.tls
        if credentials is None:
            return
        left_s = credentials.expires.timestamp() - self._clock.time_ns() / 1e9
        if left_s <= 0:
            logger.error("%s: the certificate has expired at %s", tls.cert, credentials.expires)
        elif left_s < tls.expiry_warn_days * 24 * 3600:
            logger.warning(
                "%s: the certificate expires at %s, in %d days",
                tls.cert,
                credentials.expires,
                left_s // (24 * 3600),
            )

    @staticmethod
    def _spawn(name: str, run: Callable[[], None]) -> gevent.Greenlet[[], None]:
        greenlet = gevent.spawn(run)
        greenlet.name = f"keyop-federation-{name}"
        return greenlet

    def stop(self, deadline: float) -> None:
        """Say goodbye to everybody, and end; what was not acknowledged is sent another time.

        Args:
            deadline: in ``time.monotonic()`` seconds.
        """
        if self._standby is not None:
            self._standby.kill(timeout=1.0)
            self._standby = None
        self._end(deadline)

    def _end(self, deadline: float) -> None:
        end_greenlets(self._greenlets, 1.0)
        self._greenlets.clear()
        ending = [gevent.spawn(client.stop, deadline) for client in self.clients]
        if self.hub is not None:
            ending.append(gevent.spawn(self.hub.stop, deadline))
        gevent.joinall(ending, timeout=max(0.0, deadline - monotonic()))
        end_greenlets(ending, _END_S)
        self.clients.clear()
        self.hub = None
        if self._instance is not None:
            self._instance.stop(max(0.1, deadline - monotonic()))
            self._instance = None
        self._lock.release()

    # -- reload

    def stats(self) -> list[PeerStats]:
        """Return how each peer stands that is connected, and each hub that is dialled."""
        found = [client.stats() for client in self.clients]
        return found if self.hub is None else found + self.hub.stats()

    @property
    def certificate_expires(self) -> datetime | None:
        """When the own certificate ends, aware, in UTC; None without one."""
        return None if self._credentials is None else self._credentials.expires

    def apply(self, config: Config) -> None:
        """Go over to another configuration, as far as that is possible while running.

        Raises:
            ConfigError: its certificates cannot be used; nothing was changed.
        """
        try:
            credentials = load_credentials(config.tls)
        except ConfigError as error:
            self._note(AuditEvent.TLS_RELOAD_FAILED, str(error))
            raise
        changed = credentials != self._credentials
        before, self.config = self.config, config
        self._credentials = credentials
        for key in _FIXED_HUB_KEYS:
            if getattr(config.hub, key) != getattr(before.hub, key):
                logger.warning("hub.%s: what was changed applies after the next start", key)
        if not self.active:
            return
        self._context = credentials.context(SERVER_AUTH) if credentials else None
        if changed:
            self._note(AuditEvent.TLS_RELOADED)
            self._warn_of_expiry()
        if config.hub != before.hub or config.client != before.client:
            self._note(AuditEvent.POLICY_RELOADED)
        if self.hub is not None:
            self.hub.apply(config.hub, credentials)
        self._apply_hubs(config, changed)

    def _apply_hubs(self, config: Config, reconnect: bool) -> None:
        """Go over to the hubs of a configuration: leave some, stay with others, add some."""
        hubs = {hub.offset_name: hub for hub in _dialled(config)}
        left = [client for client in self.clients if client.hub.offset_name not in hubs]
        for client in self.clients:
            hub = hubs.pop(client.hub.offset_name, None)
            if hub is not None:
                client.apply(hub)
                if reconnect:
                    client.reconnect()
        if not left and not hubs:
            return
        self.clients = [client for client in self.clients if client not in left]
        deadline = monotonic() + _LEAVE_S
        gevent.joinall([gevent.spawn(client.stop, deadline) for client in left])
        instance = self._instance
        if instance is None:  # stopped meanwhile
            return
        try:
            # Behind the goodbyes, which give the positions back.
            settle_positions(instance, config.client.hubs)
            for hub in hubs.values():
                self._start_client(instance, hub)
        except (KeyopError, OSError) as error:
            logger.error("client.hubs: not all of it could be applied: %s", error)

    def reload_failed(self, reason: str) -> None:
        """A configuration could not be used, and the old one stays."""
        self._note(AuditEvent.POLICY_RELOAD_FAILED, reason)

    def _note(self, event: AuditEvent, detail: str = "") -> None:
        if self._instance is not None:
            self._instance.audit.record(event, detail=detail)


def _dialled(config: Config) -> tuple[ClientHub, ...]:
    return config.client.hubs if config.client.enabled else ()


def load_credentials(tls: TLSConfig) -> Credentials | None:
    """Return what the TLS files hold; None if none is configured.

    Raises:
        ConfigError: they cannot be used.
    """
    if not tls.configured:
        return None
    return Credentials.load(tls.cert, tls.key, tls.ca, tls.crl, tls.min_version)
