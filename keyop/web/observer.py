"""Looking at a messenger and its data directory at fixed intervals, for all who ask."""

from __future__ import annotations

import logging
from time import monotonic

import gevent

from keyop.errors import KeyopError
from keyop.inspection import DataDirectory
from keyop.look.sample import Sample, Sampler
from keyop.web.history import INTERVAL_S, History
from keyop.web.host import Host

logger = logging.getLogger(__name__)

# Whoever asks again within this time is told the same.
_FRESH_S = 0.9


class Observer:
    """Takes samples from the first request on, until the messenger is closed."""

    def __init__(self, messenger: Host) -> None:
        self._messenger = messenger
        self.directory = DataDirectory(messenger.config.storage.data_dir)
        self.history = History()
        self._sampler: Sampler | None = None
        self._sample: Sample | None = None
        self._taken_at = 0.0
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin; nothing to do the second time.

        Raises:
            KeyopError: the messenger cannot be used.
        """
        if self._greenlet is None or self._greenlet.dead:
            self._messenger.start()
            self._greenlet = gevent.spawn(self._run)
            self._greenlet.name = "keyop-web-observer"

    def _run(self) -> None:
        while not self._messenger.wait_closing(INTERVAL_S):
            try:
                self.history.add(self.sample())
            except KeyopError as error:  # seen by whoever asks; it is tried again
                logger.debug("no sample: %s", error)

    def sample(self) -> Sample:
        """Return how everything stands, as of a second ago at the most.

        Raises:
            StorageError: the data directory cannot be read.
        """
        self.start()
        if self._sample is None or monotonic() - self._taken_at > _FRESH_S:
            if self._sampler is None:
                limit = self._messenger.config.storage.max_record_bytes
                self._sampler = Sampler(self.directory, limit)
            self._sample = self._sampler.take()
            self._taken_at = monotonic()
        return self._sample
