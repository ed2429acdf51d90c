"""``/metrics``: what the page shows, for Prometheus.

Figures of the data directory are the same whichever process is asked. What one process has done
carries its id as a label, so that several behind one address do not overwrite each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from keyop.latency import Percentiles
from keyop.look.sample import Sample
from keyop.stats import Stats
from keyop.version import __version__

_QUANTILES = {"0.5": "p50", "0.9": "p90", "0.99": "p99"}


class Metrics(Collector):
    """Collects when it is asked.

    Args:
        sample: tells how the data directory stands.
        stats: tells what this process has done.
    """

    def __init__(self, sample: Callable[[], Sample], stats: Callable[[], Stats]) -> None:
        self._sample = sample
        self._stats = stats
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return everything in the form that the client wants, and its content type.

        Args:
            accept: the header of that name.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        """Tell nothing beforehand: that would take a sample."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        stats = self._stats()
        info = GaugeMetricFamily(
            "keyop_info", "Which instance this is.", labels=["instance_name", "version"]
        )
        info.add_metric([stats.instance_name, __version__], 1)
        yield info
        yield from _of_the_directory(self._sample())
        yield from _of_this_process(stats)


def _of_the_directory(sample: Sample) -> Iterator[Metric]:
    if sample.disk_free_bytes is not None:
        yield GaugeMetricFamily(
            "keyop_disk_free_bytes", "Room on the disk.", value=sample.disk_free_bytes
        )
    labels = ["channel"]
    end = CounterMetricFamily(
        "keyop_channel_stream_bytes", "Everything ever appended to the channel.", labels=labels
    )
    disk = GaugeMetricFamily("keyop_channel_disk_bytes", "What is on the disk.", labels=labels)
    segments = GaugeMetricFamily("keyop_channel_segments", "Its files.", labels=labels)
    letters = GaugeMetricFamily(
        "keyop_channel_dead_letters", "Dead letters that wait.", labels=labels
    )
    both = ["channel", "subscriber"]
    position = CounterMetricFamily(
        "keyop_subscriber_position_bytes", "Up to where it has read.", labels=both
    )
    lag = GaugeMetricFamily("keyop_subscriber_lag_bytes", "What it has yet to read.", labels=both)
    pending = GaugeMetricFamily(
        "keyop_subscriber_lag_messages", "The same in messages, large ones estimated.", labels=both
    )
    age = GaugeMetricFamily(
        "keyop_subscriber_oldest_pending_seconds", "Age of its next message.", labels=both
    )
    running = GaugeMetricFamily(
        "keyop_subscriber_running", "1 if some process runs it.", labels=both
    )
    for row in sample.rows:
        end.add_metric([row.channel], row.end)
        disk.add_metric([row.channel], row.disk_bytes)
        segments.add_metric([row.channel], row.segments)
        if row.dead_letters is not None:
            letters.add_metric([row.channel], row.dead_letters)
        for each in row.positions:
            names = [row.channel, each.subscriber_id]
            for family, value in (
                (position, each.offset),
                (lag, each.lag_bytes),
                (pending, each.lag_messages),
                (age, each.oldest_pending_s),
                (running, each.running),
            ):
                if value is not None:
                    family.add_metric(names, float(value))
    yield from (end, disk, segments, letters, position, lag, pending, age, running)


def _of_this_process(stats: Stats) -> Iterator[Metric]:
    process = str(os.getpid())
    labels = ["process", "channel"]
    published = CounterMetricFamily("keyop_published", "Messages published.", labels=labels)
    waits = CounterMetricFamily(
        "keyop_full_disk_waits", "How often a publisher waited for room.", labels=labels
    )
    failed = GaugeMetricFamily("keyop_log_failed", "1 if the log has failed.", labels=labels)
    counters = {
        name: CounterMetricFamily(f"keyop_{name}", text, labels=[*labels, "subscriber"])
        for name, text in {
            "delivered": "Messages handled.",
            "retries": "Handlers called again.",
            "dead_letters": "Messages given up.",
            "corrupt": "Damaged records put aside.",
            "expired": "Messages left out for their age.",
            "dropped_bytes": "What retention dropped unread.",
        }.items()
    }
    for channel in stats.channels:
        names = [process, channel.channel]
        published.add_metric(names, channel.published)
        waits.add_metric(names, channel.waits)
        failed.add_metric(names, channel.failed is not None)
        for each in channel.subscribers:
            if each.running:
                for name, family in counters.items():
                    family.add_metric([*names, each.subscriber_id], getattr(each, name))
    yield from (published, waits, failed, *counters.values())
    yield from _of_peers(stats, process)
    latency = GaugeMetricFamily(
        "keyop_latency_seconds",
        "How long it took in the last minute.",
        labels=["process", "what", "quantile"],
    )
    for what in ("publish", "consume", "handler"):
        found: Percentiles = getattr(stats.latency, what)
        for quantile, name in _QUANTILES.items():
            value = getattr(found, name)
            if value is not None:
                latency.add_metric([process, what, quantile], value)
    yield latency


def _of_peers(stats: Stats, process: str) -> Iterator[Metric]:
    labels = ["process", "peer", "kind"]
    connected = GaugeMetricFamily("keyop_peer_connected", "1 if connected.", labels=labels)
    backlog = GaugeMetricFamily(
        "keyop_peer_backlog_bytes", "What has not arrived there.", labels=labels
    )
    round_trip = GaugeMetricFamily(
        "keyop_peer_round_trip_seconds", "From sending to being written.", labels=labels
    )
    failures = CounterMetricFamily("keyop_peer_failures", "Connections lost.", labels=labels)
    seen: set[tuple[str, str]] = set()
    for peer in stats.peers:
        if (peer.name, peer.kind) in seen:  # ephemeral clients may share a name
            continue
        seen.add((peer.name, peer.kind))
        names = [process, peer.name, peer.kind]
        connected.add_metric(names, peer.state == "connected")
        backlog.add_metric(names, peer.backlog_bytes)
        failures.add_metric(names, peer.failures)
        if peer.round_trip_s is not None:
            round_trip.add_metric(names, peer.round_trip_s)
    yield from (connected, backlog, round_trip, failures)
