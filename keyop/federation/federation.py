"""Federation of one messenger: hub and clients together, in one process of a data directory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

import gevent
from OpenSSL import SSL

from keyop.audit import AuditEvent, AuditLog
from keyop.clock import Clock
from keyop.config import Config, TLSConfig
from keyop.dedup import Dedup
from keyop.envelope import EnvelopeWriter
from keyop.errors import ConfigError, KeyopError
from keyop.federation.client import HubClient
from keyop.federation.hub import Hub
from keyop.federation.instance import Instance
from keyop.federation.outbox import settle_positions
from keyop.federation.stale import forget_stale_positions
from keyop.storage.locks import FileLock
from keyop.storage.store import Store
from keyop.transport.contexts import SERVER_AUTH, Credentials

logger = logging.getLogger(__name__)

_STANDBY_POLL_S = 0.25
_MAX_STALE_SWEEP_S = 60.0
_MIB = 1 << 20


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
            self._spawn("standby", self._stand_by)

    def _stand_by(self) -> None:
        while True:
            self._clock.sleep(_STANDBY_POLL_S)
            try:
                if self._lock.try_acquire():
                    logger.info("the process that federated has ended; this one takes over")
                    self._begin()
                    return
            except (KeyopError, OSError) as error:
                logger.error("taking over failed, and is tried again: %s", error)

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
            hubs = config.client.hubs if config.client.enabled else ()
            settle_positions(instance, hubs)
            if config.hub.enabled:
                self.hub = self._start_hub(instance)
                if config.hub.fed_client_offset_ttl:
                    self._spawn("stale", self._forget_stale)
            for hub in hubs:
                client = HubClient(instance, hub, lambda: self._context)
                client.start()
                self.clients.append(client)
        except BaseException:
            self.stop(monotonic() + 1.0)
            raise

    def _start_hub(self, instance: Instance) -> Hub:
        hub = Hub(instance, self.config.hub, self._credentials)
        try:
            hub.start()
        except OSError as error:
            raise ConfigError(
                f"hub.listen_addr: cannot listen on {self.config.hub.listen_addr}: "
                f"{error.strerror or error}"
            ) from error
        return hub

    def _forget_stale(self) -> None:
        ttl_s = self.config.hub.fed_client_offset_ttl
        while True:
            self._clock.sleep(min(_MAX_STALE_SWEEP_S, ttl_s / 4))
            try:
                forget_stale_positions(self._store, ttl_s, self._clock)
            except (KeyopError, OSError) as error:
                logger.error("positions of peers cannot be swept: %s", error)

    def _spawn(self, name: str, run: Callable[[], None]) -> None:
        greenlet = gevent.spawn(run)
        greenlet.name = f"keyop-federation-{name}"
        self._greenlets.append(greenlet)

    def stop(self, deadline: float) -> None:
        """Say goodbye to everybody, and end; what was not acknowledged is sent another time.

        Args:
            deadline: in ``time.monotonic()`` seconds.
        """
        gevent.killall(self._greenlets, timeout=1.0)
        self._greenlets.clear()
        ending = [gevent.spawn(client.stop, deadline) for client in self.clients]
        if self.hub is not None:
            ending.append(gevent.spawn(self.hub.stop, deadline))
        gevent.joinall(ending, timeout=max(0.0, deadline - monotonic()))
        gevent.killall(ending, timeout=0.5)
        self.clients.clear()
        self.hub = None
        if self._instance is not None:
            self._instance.stop(max(0.1, deadline - monotonic()))
            self._instance = None
        self._lock.release()

    # -- reload

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
        if not self.active:
            return
        self._context = credentials.context(SERVER_AUTH) if credentials else None
        if self.hub is not None:
            self.hub.apply(config.hub, credentials)
        hubs = {hub.offset_name: hub for hub in config.client.hubs}
        for client in self.clients:
            hub = hubs.get(client.hub.offset_name)
            if hub is not None and (hub != client.hub or changed):
                client.apply(hub)
        if changed:
            self._note(AuditEvent.TLS_RELOADED)
        if config.hub != before.hub or config.client != before.client:
            self._note(AuditEvent.POLICY_RELOADED)

    def reload_failed(self, reason: str) -> None:
        """A configuration could not be used, and the old one stays."""
        self._note(AuditEvent.POLICY_RELOAD_FAILED, reason)

    def _note(self, event: AuditEvent, detail: str = "") -> None:
        if self._instance is not None:
            self._instance.audit.record(event, detail=detail)


def load_credentials(tls: TLSConfig) -> Credentials | None:
    """Return what the TLS files hold; None if none is configured.

    Raises:
        ConfigError: they cannot be used.
    """
    if not tls.configured:
        return None
    return Credentials.load(tls.cert, tls.key, tls.ca, tls.crl, tls.min_version)
