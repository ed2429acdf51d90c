"""How long things took in the last minute: percentiles from counts, in constant memory."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

from keyop.clock import Clock

# A minute is six slots; with the one that is being filled, seven are kept.
_SLOT_S = 10.0
_SLOTS = 7
# Each power of two nanoseconds has so many buckets, so a percentile is right to a sixteenth.
_STEPS = 8
_STEP_BITS = 3
# Longer than 2**45 ns, which are ten hours, counts as that.
_MAX_BITS = 45
_LONGEST_S = 2.0**_MAX_BITS / 1e9
_BUCKETS = (_MAX_BITS + 1) * _STEPS


@dataclass(frozen=True)
class Percentiles:
    """Of so many samples in the last minute, what half, nine in ten and 99 of 100 stayed below.

    In seconds, right to about 6 %; None where there was no sample.
    """

    count: int
    p50: float | None
    p90: float | None
    p99: float | None


class Latencies:
    """Counts durations by their size.

    Args:
        monotonic: tells the time, in seconds.
    """

    __slots__ = ("_counts", "_monotonic", "_slot_numbers")

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._slot_numbers = [-1] * _SLOTS
        self._counts = [array("L", bytes(8 * _BUCKETS)) for _ in range(_SLOTS)]

    def add(self, begun: float) -> None:
        """Count one that began at this time, in the clock's seconds, and ends now."""
        now = self._monotonic()
        self.add_seconds(now - begun, now)

    def add_seconds(self, seconds: float, now: float) -> None:
        """Count a duration; ``now`` is the clock's time."""
        number = int(now / _SLOT_S)
        slot = number % _SLOTS
        if self._slot_numbers[slot] != number:
            self._slot_numbers[slot] = number
            self._counts[slot] = array("L", bytes(8 * _BUCKETS))
        self._counts[slot][_bucket(seconds)] += 1

    def percentiles(self) -> Percentiles:
        """Return those of the last minute, and of up to ten seconds more."""
        newest = int(self._monotonic() / _SLOT_S)
        counts = [0] * _BUCKETS
        for number, slot in zip(self._slot_numbers, self._counts, strict=True):
            if newest - _SLOTS < number <= newest:
                counts = [total + more for total, more in zip(counts, slot, strict=True)]
        total = sum(counts)
        if not total:
            return Percentiles(0, None, None, None)
        below = list(accumulate(counts))

        def value(share: float) -> float:
            rank = share * total
            return _middle(next(index for index, count in enumerate(below) if count >= rank))

        return Percentiles(total, value(0.5), value(0.9), value(0.99))


def _bucket(seconds: float) -> int:
    nanoseconds = int(min(seconds, _LONGEST_S) * 1e9)
    if nanoseconds < _STEPS:  # also where the clock went back
        return 0
    bits = nanoseconds.bit_length()
    if bits > _MAX_BITS:
        return _BUCKETS - 1
    # The power of two, and the three bits that follow the first.
    return bits * _STEPS + (nanoseconds >> (bits - 1 - _STEP_BITS) & (_STEPS - 1))


def _middle(bucket: int) -> float:
    """Return a duration in the middle of a bucket, in seconds."""
    bits, step = divmod(bucket, _STEPS)
    if not bits:
        return 0.0
    return (2.0 ** (bits - 1)) * (1 + (step + 0.5) / _STEPS) / 1e9


class MessengerLatencies:
    """What a messenger measures.

    Of calls that come close together one in each slice of time is measured, so that it costs
    next to nothing; of others all.
    """

    def __init__(self, clock: Clock, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self.publish = Latencies(monotonic)
        self.consume = Latencies(monotonic)
        self.handler = Latencies(monotonic)

    def handled(self, published: datetime, begun: float) -> None:
        """A handler ends now that began at this time, with a message published at that moment."""
        now = self._monotonic()
        self.handler.add_seconds(now - begun, now)
        since_publish = self._clock.time_ns() / 1e9 - published.timestamp()
        self.consume.add_seconds(since_publish - (now - begun), now)
