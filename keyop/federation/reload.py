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

# Behind inotify, which does not tell of everything: another file system, a mode, a deletion.
_POLL_S = 0.5
# Whoever writes several files, or one in several steps, is given so long to finish, so many times.
_QUIET_S = 0.2
_MAX_QUIETS = 3
# Other files of the same directories may change all the time.
_PAUSE_S = 0.02

# What a file looks like from outside; empty where there is none.
_Look = tuple[int, ...]


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
        # The one that was read last, in use or not: a file that it names may come after it.
        self._config = config
        self._apply = apply
        self._failed = failed
        self._changed = Event()
        self._wanted = False
        # What this applies is told of as any other; it is followed already.
        self._applying = False
        self._seen: dict[str, _Look] = {}
        # By device and number: two names of one directory have one watch, and another directory
        # in the place of one needs a new one.
        self._directories: dict[_Look, Readers] = {}
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
        for readers in self._directories.values():
            self._watcher.unwatch(readers)
        self._directories.clear()

    def trigger(self) -> None:
        """Read the files now, changed or not; what becomes of it is logged."""
        self._wanted = True
        self._changed.set()

    def follow(self, config: Config) -> None:
        """Watch the files of another configuration, which is in use, instead."""
        if not self._applying:
            self._config = config
            self._seen = self._look()

    # -- what there is to see

    def _paths(self) -> list[str]:
        tls = self._config.tls
        named = (self._config.path, tls.cert, tls.key, tls.ca, tls.crl)
        return [os.path.abspath(path) for path in named if path]

    def _look(self) -> dict[str, _Look]:
        """Return what each file looks like, links followed."""
        paths = self._paths()
        # Before the files: what changes between the two is told of.
        self._watch(paths)
        return {path: _look_at(path) for path in paths}

    def _watch(self, paths: list[str]) -> None:
        """Watch the directories of the files, and those of what links lead to."""
        found = {}
        for path in paths:
            for each in (path, os.path.realpath(path)):
                directory = os.path.dirname(each)
                if identity := _look_at(directory)[:2]:
                    found[identity] = directory
        for identity in self._directories.keys() - found.keys():
            self._watcher.unwatch(self._directories.pop(identity))
        for identity in found.keys() - self._directories.keys():
            readers = self._directories[identity] = Readers()
            readers.events.add(self._changed)
            self._watcher.watch(found[identity], readers)

    # -- what is made of it

    def _run(self) -> None:
        while True:
            self._changed.wait(_POLL_S)
            self._changed.clear()
            # Nothing may end the watch unseen.
            try:
                self._reload_if_changed()
            except Exception:
                logger.exception("reloading failed")
            gevent.sleep(_PAUSE_S)

    def _reload_if_changed(self) -> None:
        now = self._look()
        if now == self._seen and not self._wanted:
            return
        for _ in range(_MAX_QUIETS):
            if self._wanted:
                break
            gevent.sleep(_QUIET_S)
            before, now = now, self._look()
            if now == before:
                break
        self._wanted = False
        self._seen = now
        self._reload()

    def _reload(self) -> None:
        try:
            if self._config.path:
                self._config = Config.load(self._config.path)
                # Of files that it names newly, what they look like before they are read.
                self._seen = {**self._look(), **self._seen}
                self._seen = {path: self._seen[path] for path in self._paths()}
            self._applying = True
            self._apply(self._config)
        except ConfigError as error:
            logger.error("the configuration was not reloaded, and the old one stays: %s", error)
            self._failed(str(error))
        else:
            logger.info("the configuration was reloaded")
        finally:
            self._applying = False


def _look_at(path: str) -> _Look:
    try:
        found = os.stat(path)
    except OSError:  # being replaced, or gone: either is a change
        return ()
    # The last one tells of a mode that changed as well, which may make a file readable.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
