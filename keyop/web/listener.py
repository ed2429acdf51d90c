"""keyop's own listener: the page where nobody else serves it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import gevent

from keyop.brief import reason
from keyop.config_rules import join_address, split_address
from keyop.errors import ConfigError
from keyop.forks import drop_in_children, keep_in_children
from keyop.fs import FileSystem
from keyop.storage.locks import FileLock
from keyop.storage.standby import stand_by
from keyop.web.host import Host
from keyop.web.http import Environ, StartResponse
from keyop.web.server import Server

logger = logging.getLogger(__name__)


class WebListener:
    """Serves ``web.listen_addr`` from ``start`` to ``stop``.

    Of several processes on one data directory one does; another takes over when it has ended.
    """

    def __init__(self, messenger: Host, fs: FileSystem) -> None:
        self._messenger = messenger
        self._lock = FileLock(fs, f"{messenger.config.storage.data_dir}/.web.lock")
        self._server: Server | None = None
        self._application: Callable[..., Iterable[bytes]] | None = None
        self._standby: gevent.Greenlet[[], None] | None = None

    @property
    def address(self) -> str:
        """Where it listens, ``host:port``; empty if it does not."""
        if self._server is None:
            return ""
        return join_address(*self._server.address[:2])

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
        wait = self._messenger.wait_closing
        stand_by(self._lock, self._listen, wait, logger, "taking over the page")

    def _listen(self) -> None:
        listen = self._messenger.config.web.listen_addr
        server = Server(split_address(listen), self._answer)
        why = ""
        try:
            server.start()
        except OSError as error:
            why = reason(error)
        finally:
            if not server.started:
                self._lock.release()
        if why:  # not inside: whoever keeps the error would keep the socket with it
            raise ConfigError(f"web.listen_addr: cannot listen on {listen}: {why}")
        self._server = server
        drop_in_children(self)
        logger.debug("the page is at http://%s/", self.address)

    def _answer(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._application is None:
            # When it is first asked for: it takes a while to load, and a hub should start at once.
            from keyop.web.application import app

            self._application = app(self._messenger)
        return self._application(environ, start_response)

    def stop(self, timeout_s: float) -> None:
        """End; requests have so long to be answered."""
        if self._standby is not None:
            self._standby.kill()
            self._standby = None
        server, self._server = self._server, None
        if server is not None:
            keep_in_children(self)
            server.end(timeout_s)
        self._lock.release()

    def drop_in_child(self) -> None:
        """In a forked child: the listening socket and all connections are the parent's."""
        server, self._server = self._server, None
        if server is not None:
            server.drop_in_child()
