"""The last ten minutes of every channel, for the plots."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable

from keyop.look.sample import Sample
from keyop.pace import Pace

INTERVAL_S = 2.0
_LENGTH = 300
# More channels than this have no plots of their own: the sums have.
_MAX_CHANNELS = 500
_NAMES = ("messages_per_s", "bytes_per_s", "lag_bytes")

Values = tuple[float | None, float | None, float | None]


class History:
    """Values at fixed intervals, the oldest forgotten; NaN where there is none."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._times = array("d")
        self._channels: dict[str, tuple[array[float], ...]] = {}
        self._total = tuple(array("f") for _ in _NAMES)

    def add(self, sample: Sample) -> None:
        """Take in how things are now; where time has passed without, there is a gap."""
        now = self._now()
        if self._times and now <= self._times[-1]:  # somebody has set the clock
            self._forget()
        if self._times and now - self._times[-1] > 2.5 * INTERVAL_S:
            self._append(self._times[-1] + INTERVAL_S, {}, (None, None, None))
        values: dict[str, Values] = {
            row.channel: (row.messages_per_s, row.bytes_per_s, row.largest_lag_bytes)
            for row in sample.rows
        }
        totals = sample.totals
        self._append(now, values, tuple(totals[name] for name in _TOTALS))

    def _forget(self) -> None:
        for each in (self._times, *self._total):
            del each[:]
        self._channels.clear()

    def _append(self, moment: float, values: dict[str, Values], total: Values) -> None:
        self._times.append(moment)
        _push(self._total, total)
        for channel, series in list(self._channels.items()):
            _push(series, values.pop(channel, (None, None, None)))
            if all(map(math.isnan, series[0])) and all(map(math.isnan, series[2])):
                del self._channels[channel]  # it was removed ten minutes ago
        for channel, latest in values.items():
            if len(self._channels) >= _MAX_CHANNELS:
                break
            before = array("f", [math.nan] * (len(self._times) - 1))
            series = self._channels[channel] = tuple(array("f", before) for _ in _NAMES)
            _push(series, latest)
        if len(self._times) > _LENGTH:
            for each in (self._times, *self._total):
                del each[0]
            for series in self._channels.values():
                for each in series:
                    del each[0]

    def as_json(self) -> dict[str, object]:
        """Return everything as what JSON can hold; others run meanwhile."""
        pace = Pace()
        # All of them as of now: they must be of one length.
        times, total = self._times[:], _copy(self._total)
        series = {name: _copy(each) for name, each in self._channels.items()}
        channels = {}
        for name, each in series.items():
            channels[name] = _as_json(each)
            pace.step()
        return {
            "interval_s": INTERVAL_S,
            "times": [round(moment, 1) for moment in times],
            "total": _as_json(total),
            "channels": channels,
        }


_TOTALS = ("messages_per_s", "bytes_per_s", "largest_lag_bytes")


def _copy(series: tuple[array[float], ...]) -> tuple[array[float], ...]:
    return tuple(each[:] for each in series)


def _push(series: tuple[array[float], ...], values: Values) -> None:
    for each, value in zip(series, values, strict=True):
        each.append(math.nan if value is None else value)


def _as_json(series: tuple[array[float], ...]) -> dict[str, list[float | None]]:
    return {
        name: [None if math.isnan(value) else round(value, 3) for value in values]
        for name, values in zip(_NAMES, series, strict=True)
    }
