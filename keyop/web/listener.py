"""keyop's own listener: the page where nobody else serves it."""

from __future__ import annotations

import logging

import gevent
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from keyop.config_rules import split_address
from keyop.errors import ConfigError
from keyop.forks import drop_in_children, keep_in_children
from keyop.fs import FileSystem
from keyop.storage.locks import FileLock
from keyop.web.application import app
from keyop.web.host import Host

logger = logging.getLogger(__name__)

# An operator's page has a few readers; each that follows a channel keeps one.
_MAX_CONNECTIONS = 256
# Whoever sends a request slower than that is not one of them.
_IDLE_S = 30.0
_STANDBY_POLL_S = 0.25


class _Handler(WSGIHandler):
    """One connection, whose silence is not waited for."""

    def handle(self) -> None:
        self.socket.settimeout(_IDLE_S)
        super().handle()


class WebListener:
    """Serves ``web.listen_addr`` from ``start`` to ``stop``.

    Of several processes on one data directory one does; another takes over when it has ended.
    """

    def __init__(self, messenger: Host, fs: FileSystem) -> None:
        self._messenger = messenger
        self._lock = FileLock(fs, f"{messenger.config.storage.data_dir}/.web.lock")
        self._server: WSGIServer | None = None
        self._standby: gevent.Greenlet[[], None] | None = None

    @property
    def address(self) -> str:
        """Where it listens, ``host:port``; empty if it does not."""
        if self._server is None:
            return ""
        host, port = str(self._server.server_host), self._server.server_port
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """Listen, or stand by where another process does.

        Raises:
            ConfigError: the address cannot be listened on.
            OSError: the data directory cannot be used.
        """
        if self._lock.try_acquire():
            self._listen()
            return
        logger.info("another process serves the page; this one stands by")
        self._standby = gevent.spawn(self._stand_by)
        self._standby.name = "keyop-web-standby"

    def _stand_by(self) -> None:
        while not self._messenger.wait_closing(_STANDBY_POLL_S):
            try:
                if self._lock.try_acquire():
                    self._listen()
                    return
            except (ConfigError, OSError) as error:
                logger.error("taking over the page failed, and is tried again: %s", error)

    def _listen(self) -> None:
        listen = self._messenger.config.web.listen_addr
        host, port = split_address(listen)
        server = WSGIServer(
            (host, port),
            app(self._messenger),
            spawn=Pool(_MAX_CONNECTIONS),
            log=None,
            error_log=logger,
            handler_class=_Handler,
            environ={"SERVER_NAME": host},
        )
        try:
            server.start()
        except OSError as error:
            self._lock.release()
            raise ConfigError(
                f"web.listen_addr: {listen} cannot be listened on: {error}"
            ) from error
        self._server = server
        drop_in_children(self)
        logger.debug("the page is at http://%s/", self.address)

    def stop(self, timeout_s: float) -> None:
        """End; requests have so long to be answered."""
        if self._standby is not None:
            self._standby.kill()
            self._standby = None
        server, self._server = self._server, None
        if server is not None:
            keep_in_children(self)
            server.stop(timeout=timeout_s)
        self._lock.release()

    def drop_in_child(self) -> None:
        """In a forked child: close the listening socket, which is the parent's."""
        server, self._server = self._server, None
        if server is not None:
            server.socket.close()
