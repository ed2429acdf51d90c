"""Noticing that the configuration or a certificate has changed, and going over to it once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import gevent
from gevent.event import Event

from keyop.config import Config
from keyop.errors import ConfigError
from keyop.storage.readers import Readers
from keyop.storage.watch import Watcher

logger = logging.getLogger(__name__)

# Behind inotify, which does not tell of everything: another file system, a link's target.
_POLL_S = 1.0
# Whoever writes several files, or one in several steps, is given so long to finish.
_QUIET_S = 0.2

_Look = tuple[tuple[str, int, int, int], ...]


class Reloader:
    """Watches the files of a configuration, the certificates that it names included.

    Args:
        config: the one in use; without a file of its own, only its certificates are watched.
        apply: goes over to a configuration; ``ConfigError`` if that cannot be used.
        failed: told why a changed configuration was not used.
    """

    def __init__(
        self,
        watcher: Watcher,
        config: Config,
        apply: Callable[[Config], None],
        failed: Callable[[str], None],
    ) -> None:
        self._watcher = watcher
        self._config = config
        self._apply = apply
        self._failed = failed
        self._changed = Event()
        self._wanted = False
        self._seen: _Look = ()
        self._readers: dict[str, Readers] = {}
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._seen = self._look()
        self._greenlet = gevent.spawn(self._run)
        self._greenlet.name = "keyop-reloader"

    def stop(self) -> None:
        """End."""
        if self._greenlet is not None:
            self._greenlet.kill()
        for readers in self._readers.values():
            self._watcher.unwatch(readers)
        self._readers.clear()

    def trigger(self) -> None:
        """Read the files now, changed or not; what becomes of it is logged."""
        self._wanted = True
        self._changed.set()

    def _paths(self) -> list[str]:
        tls = self._config.tls
        named = (self._config.path, tls.cert, tls.key, tls.ca, tls.crl)
        return [os.path.abspath(path) for path in named if path]

    def _look(self) -> _Look:
        """Return what the files look like from outside, links followed."""
        seen = []
        for path in self._paths():
            directory = os.path.dirname(path)
            if directory not in self._readers:
                readers = self._readers[directory] = Readers()
                readers.events.add(self._changed)
                if os.path.isdir(directory):
                    self._watcher.watch(directory, readers)
            try:
                status = os.stat(path)
            except OSError:  # being replaced, or gone: either is a change
                seen.append((path, 0, 0, 0))
            else:
                seen.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(seen)

    def _run(self) -> None:
        while True:
            self._changed.wait(_POLL_S)
            self._changed.clear()
            now = self._look()
            if now == self._seen and not self._wanted:
                continue
            while not self._wanted:
                gevent.sleep(_QUIET_S)
                before, now = now, self._look()
                if now == before:
                    break
            self._wanted = False
            self._seen = now
            self._reload()

    def _reload(self) -> None:
        try:
            config = Config.load(self._config.path) if self._config.path else self._config
            self._apply(config)
        except ConfigError as error:
            logger.error("the configuration was not reloaded, and the old one stays: %s", error)
            self._failed(str(error))
        # Nothing may end the watch unseen.
        except Exception:
            logger.exception("reloading failed")
        else:
            self._config = config
            logger.info("the configuration was reloaded")
