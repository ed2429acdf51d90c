"""How long greenlets wait for others of their process that do not give way."""

from __future__ import annotations

import os
import time
from array import array

import gevent

_EVERY_S = 0.002
_BUCKET_S = 0.0001
_BUCKETS = 20_000


class Stalls:
    """Sleeps again and again, and counts by how much it was woken too late.

    What this thread waited for a processor, which other processes had, is not counted where the
    kernel tells it (``/proc/thread-self/schedstat``). The counts take the same memory from the
    start.
    """

    def __init__(self) -> None:
        self._counts = array("L", bytes(array("L").itemsize * _BUCKETS))

    def watch(self) -> None:
        """Count until killed."""
        try:
            fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except FileNotFoundError:
            fd = os.open(os.devnull, os.O_RDONLY)
        try:
            while True:
                waited_s, started = _waited_for_processor(fd), time.monotonic()
                gevent.sleep(_EVERY_S)
                late_s = time.monotonic() - started - _EVERY_S
                late_s -= _waited_for_processor(fd) - waited_s
                bucket = min(max(0, round(late_s / _BUCKET_S)), _BUCKETS - 1)
                self._counts[bucket] += 1
        finally:
            os.close(fd)

    def quantile(self, share: float) -> float:
        """Return the seconds that this share of the stalls did not exceed."""
        left = share * sum(self._counts)
        for bucket, count in enumerate(self._counts):
            left -= count
            if left <= 0:
                return bucket * _BUCKET_S
        return 0.0


def _waited_for_processor(fd: int) -> float:
    words = os.pread(fd, 100, 0).split()
    return int(words[1]) / 1e9 if words else 0.0
