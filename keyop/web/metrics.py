"""``/metrics``: what the page shows, for Prometheus.

Figures of the data directory are the same whichever process is asked. What one process has done
carries its id as a label, so that several behind one address do not overwrite each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from keyop.latency import Percentiles
from keyop.look.sample import PositionRow, Row, Sample
from keyop.pace import Pace
from keyop.stats import ChannelStats, PeerStats, Stats
from keyop.version import __version__

_QUANTILES = {"0.5": "p50", "0.9": "p90", "0.99": "p99"}
# So many samples are written between two looks at the clock.
_PIECE = 100

_Kind = type[CounterMetricFamily] | type[GaugeMetricFamily]
# The values of the labels, and the sample's own; None where there is none.
_Value = tuple[list[str], float | None]


class _Family(NamedTuple):
    """All samples of one name."""

    kind: _Kind
    name: str
    text: str
    labels: list[str]
    values: Iterable[_Value]

    def pieces(self) -> Iterator[Metric]:
        """Yield them, some at a time; at least one piece, which may have none."""
        values = ((labels, value) for labels, value in self.values if value is not None)
        first = True
        while (some := list(islice(values, _PIECE))) or first:
            piece = self.kind(self.name, self.text, labels=self.labels)
            for labels, value in some:
                piece.add_metric(labels, float(value))
            yield piece
            first = False


class _Piece(Collector):
    """What an encoder takes."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


class Metrics:
    """Collects when it is asked.

    Args:
        sample: tells how the data directory stands.
        stats: tells what this process has done.
    """

    def __init__(self, sample: Callable[[], Sample], stats: Callable[[], Stats]) -> None:
        self._sample = sample
        self._stats = stats

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return everything in the form that the client wants, and its content type.

        Thousands of samples take a while; others run meanwhile.

        Args:
            accept: the header of that name.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        end = b"# EOF\n" if content_type.startswith("application/openmetrics-text") else b""
        written: list[bytes] = []
        pace = Pace()
        for family in _families(self._sample(), self._stats()):
            for number, piece in enumerate(family.pieces()):
                text: bytes = encode(_Piece(piece)).removesuffix(end)
                if number:  # the name was introduced before
                    lines = text.splitlines(keepends=True)
                    text = b"".join(line for line in lines if not line.startswith(b"# "))
                written.append(text)
                pace.step()
        return b"".join(written) + end, content_type


def _families(sample: Sample, stats: Stats) -> Iterator[_Family]:
    info = [([stats.instance_name, __version__], 1.0)]
    yield _gauge("info", "Which instance this is.", ["instance_name", "version"], info)
    yield from _of_the_directory(sample)
    yield from _of_this_process(stats, str(os.getpid()))


def _gauge(name: str, text: str, labels: list[str], values: Iterable[_Value]) -> _Family:
    return _Family(GaugeMetricFamily, f"keyop_{name}", text, labels, values)


def _counter(name: str, text: str, labels: list[str], values: Iterable[_Value]) -> _Family:
    return _Family(CounterMetricFamily, f"keyop_{name}", text, labels, values)


def _of_the_directory(sample: Sample) -> Iterator[_Family]:
    yield _gauge("disk_free_bytes", "Room on the disk.", [], [([], sample.disk_free_bytes)])

    def of_channels(value: Callable[[Row], float | None]) -> Iterator[_Value]:
        return (([row.channel], value(row)) for row in sample.rows)

    labels = ["channel"]
    text = "Everything ever appended to the channel."
    yield _counter("channel_stream_bytes", text, labels, of_channels(lambda row: row.end))
    text = "What is on the disk."
    yield _gauge("channel_disk_bytes", text, labels, of_channels(lambda row: row.disk_bytes))
    yield _gauge("channel_segments", "Its files.", labels, of_channels(lambda row: row.segments))
    text = "Dead letters that wait."
    yield _gauge("channel_dead_letters", text, labels, of_channels(lambda row: row.dead_letters))

    def of_positions(value: Callable[[PositionRow], float | None]) -> Iterator[_Value]:
        for row in sample.rows:
            for each in row.positions:
                yield [row.channel, each.subscriber_id], value(each)

    labels = ["channel", "subscriber"]
    text = "Up to where it has read."
    yield _counter("subscriber_position_bytes", text, labels, of_positions(lambda row: row.offset))
    text = "What it has yet to read."
    yield _gauge("subscriber_lag_bytes", text, labels, of_positions(lambda row: row.lag_bytes))
    text = "The same in messages, many of them estimated."
    behind = of_positions(lambda row: row.lag_messages)
    yield _gauge("subscriber_lag_messages", text, labels, behind)
    text = "Age of its next message."
    ages = of_positions(lambda row: row.oldest_pending_s)
    yield _gauge("subscriber_oldest_pending_seconds", text, labels, ages)
    text = "1 if some process runs it."
    yield _gauge("subscriber_running", text, labels, of_positions(lambda row: row.running))


def _of_this_process(stats: Stats, process: str) -> Iterator[_Family]:
    def of_channels(value: Callable[[ChannelStats], float]) -> Iterator[_Value]:
        return (([process, each.channel], value(each)) for each in stats.channels)

    labels = ["process", "channel"]
    text = "Messages published."
    yield _counter("published", text, labels, of_channels(lambda each: each.published))
    text = "How often a publisher waited for room."
    yield _counter("full_disk_waits", text, labels, of_channels(lambda each: each.waits))
    text = "1 if the log has failed."
    yield _gauge("log_failed", text, labels, of_channels(lambda each: each.failed is not None))

    def of_subscribers(name: str) -> Iterator[_Value]:
        for channel in stats.channels:
            for each in channel.subscribers:
                if each.running:
                    yield [process, channel.channel, each.subscriber_id], getattr(each, name)

    for name, text in _COUNTERS.items():
        yield _counter(name, text, [*labels, "subscriber"], of_subscribers(name))
    yield from _of_peers(stats, process)
    yield _gauge(
        "latency_seconds",
        "How long it took in the last minute.",
        ["process", "what", "quantile"],
        _latencies(stats, process),
    )


_COUNTERS = {
    "delivered": "Messages handled.",
    "retries": "Handlers called again.",
    "dead_letters": "Messages given up.",
    "corrupt": "Damaged records put aside.",
    "expired": "Messages left out for their age.",
    "dropped_bytes": "What retention dropped unread.",
}


def _latencies(stats: Stats, process: str) -> Iterator[_Value]:
    for what in ("publish", "consume", "handler"):
        found: Percentiles = getattr(stats.latency, what)
        for quantile, name in _QUANTILES.items():
            yield [process, what, quantile], getattr(found, name)


def _of_peers(stats: Stats, process: str) -> Iterator[_Family]:
    # Ephemeral clients may share a name.
    peers = {(each.name, each.kind): each for each in reversed(stats.peers)}

    def of_peers(value: Callable[[PeerStats], float | None]) -> Iterator[_Value]:
        return (([process, *names], value(each)) for names, each in peers.items())

    labels = ["process", "peer", "kind"]
    connected = of_peers(lambda each: each.state == "connected")
    yield _gauge("peer_connected", "1 if connected.", labels, connected)
    text = "What has not arrived there."
    yield _gauge("peer_backlog_bytes", text, labels, of_peers(lambda each: each.backlog_bytes))
    text = "From sending to being written."
    round_trips = of_peers(lambda each: each.round_trip_s)
    yield _gauge("peer_round_trip_seconds", text, labels, round_trips)
    text = "Connections lost."
    yield _counter("peer_failures", text, labels, of_peers(lambda each: each.failures))
    text = "What was dropped before it was sent, on this connection."
    dropped = of_peers(lambda each: each.dropped_bytes)
    yield _counter("peer_dropped_bytes", text, labels, dropped)
    text = "Records too large for it, on this connection."
    yield _counter("peer_undeliverable", text, labels, of_peers(lambda each: each.undeliverable))
