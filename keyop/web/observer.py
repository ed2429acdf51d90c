"""Looking at a messenger and its data directory at fixed intervals, for all who ask."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

import gevent
from gevent.lock import Semaphore

from keyop.errors import KeyopError
from keyop.inspection import DataDirectory
from keyop.look.lag import Effort
from keyop.look.sample import Sample, Sampler
from keyop.stats import Stats
from keyop.web.history import INTERVAL_S, History
from keyop.web.host import Host

logger = logging.getLogger(__name__)

# Whoever asks again within this time is told the same.
_FRESH_S = 0.9
# Every two seconds, of every channel: what is far behind is estimated.
_EFFORT = Effort(count_bytes=1 << 20, sample_bytes=64 << 10)


class Observer:
    """Takes samples from the first request on, until the messenger is closed."""

    def __init__(self, messenger: Host) -> None:
        self._messenger = messenger
        self.history = History()
        self._sampler: Sampler | None = None
        self._sample: Sample | None = None
        self._taken_at = 0.0
        self._stats: Stats | None = None
        self._stats_at = 0.0
        self._turn: Any = Semaphore(1)
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin; nothing to do the second time.

        Raises:
            KeyopError: the messenger cannot be used.
        """
        self._messenger.start()
        if self._greenlet is None or self._greenlet.dead:
            self._greenlet = gevent.spawn(self._run)
            self._greenlet.name = "keyop-web-observer"

    def _run(self) -> None:
        while not self._messenger.wait_closing(INTERVAL_S):
            try:
                self.history.add(self.sample())
            except KeyopError as error:  # seen by whoever asks; it is tried again
                logger.debug("no sample: %s", error)

    @property
    def sampler(self) -> Sampler:
        """What takes the samples.

        Raises:
            KeyopError: the messenger cannot be used.
        """
        self._messenger.start()  # which makes the data directory
        if self._sampler is None:
            storage = self._messenger.config.storage
            self._sampler = Sampler(
                DataDirectory(storage.data_dir), storage.max_record_bytes, _EFFORT
            )
        return self._sampler

    @property
    def directory(self) -> DataDirectory:
        """The messenger's data directory.

        Raises:
            KeyopError: the messenger cannot be used.
        """
        return self.sampler.directory

    def sample(self) -> Sample:
        """Return how everything stands, as of a second ago at the most.

        Raises:
            StorageError: the data directory cannot be read.
        """
        self.start()
        with self._turn:  # who comes meanwhile is told the same
            if self._sample is None or monotonic() - self._taken_at > _FRESH_S:
                self._sample = self.sampler.take()
                self._taken_at = monotonic()
            return self._sample

    def stats(self) -> Stats:
        """Return the messenger's own figures, as of a second ago at the most.

        Raises:
            KeyopError: the messenger cannot be used, or the data directory not be read.
        """
        self._messenger.start()
        if self._stats is None or monotonic() - self._stats_at > _FRESH_S:
            self._stats = self._messenger.stats(pending=False)
            self._stats_at = monotonic()
        return self._stats
