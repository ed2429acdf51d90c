"""What an operator should know of first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from keyop.config import Config
from keyop.look.sample import Sample
from keyop.stats import Stats

_LEAST_FREE_BYTES = 256 << 20
_LEAST_FREE_SHARE = 0.03
# Where the configuration names no bound, a subscriber is behind whose next message is so old.
_OLD_S = 300.0
_LAG_BYTES = 256 << 20


@dataclass(frozen=True)
class Trouble:
    """One thing that is not as it should be. ``level`` is ``warning`` or ``error``."""

    kind: str
    level: str
    text: str
    channel: str | None = None
    peer: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold, without what it does not speak of."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def find_troubles(
    config: Config,
    sample: Sample,
    stats: Stats,
    disk_total_bytes: int | None,
    certificate_expires: datetime | None,
) -> list[Trouble]:
    """Return everything that is wrong now, errors first."""
    found = [
        *_of_the_disk(sample.disk_free_bytes, disk_total_bytes),
        *_of_the_certificate(config, certificate_expires),
        *_of_channels(config, sample, stats),
        *_of_peers(stats),
    ]
    return sorted(found, key=lambda each: each.level != "error")


def _of_the_disk(free: int | None, total: int | None) -> Iterator[Trouble]:
    if free is None or total is None:
        return
    if free < 1 << 20:
        yield Trouble("disk", "error", "the disk is full: publishers wait")
    elif free < _LEAST_FREE_BYTES or free < total * _LEAST_FREE_SHARE:
        yield Trouble("disk", "warning", f"the disk has {free >> 20} MiB left")


def _of_the_certificate(config: Config, expires: datetime | None) -> Iterator[Trouble]:
    if expires is None:
        return
    days = (expires - datetime.now(timezone.utc)).total_seconds() / 86400
    if days <= 0:
        yield Trouble("certificate", "error", f"the certificate has expired at {expires}")
    elif days < config.tls.expiry_warn_days:
        yield Trouble("certificate", "warning", f"the certificate expires in {days:.0f} days")


def _of_channels(config: Config, sample: Sample, stats: Stats) -> Iterator[Trouble]:
    limit = config.storage.max_subscriber_lag_mb << 20 or _LAG_BYTES
    for channel in stats.channels:
        if channel.failed is not None:
            yield Trouble("log", "error", f"the log has failed: {channel.failed}", channel.channel)
        for subscriber in channel.subscribers:
            if subscriber.corrupt:
                text = f"{subscriber.subscriber_id} has met {subscriber.corrupt} damaged records"
                yield Trouble("damage", "warning", text, channel.channel)
            if subscriber.offset is None:
                text = f"the position of {subscriber.subscriber_id} cannot be read"
                yield Trouble("damage", "error", text, channel.channel)
    for row in sample.rows:
        if row.dead_letters:
            text = f"{row.dead_letters} dead letters wait for somebody to look at them"
            yield Trouble("dead_letters", "warning", text, row.channel)
        for each in row.positions:
            behind, age_s = each.lag_bytes or 0, each.oldest_pending_s or 0.0
            if behind > limit or (behind and age_s > _OLD_S):
                since = f", and its next message is {age_s:.0f} s old" if age_s else ""
                text = f"{each.subscriber_id} is {behind} bytes behind{since}"
                yield Trouble("lag", "warning", text, row.channel)


def _of_peers(stats: Stats) -> Iterator[Trouble]:
    for peer in stats.peers:
        if peer.kind == "hub" and peer.state == "refused":
            yield Trouble(
                "peer", "error", f"{peer.name} refuses us: {peer.detail}", None, peer.name
            )
        elif peer.kind == "hub" and peer.state != "connected":
            why = f": {peer.detail}" if peer.detail else ""
            yield Trouble("peer", "warning", f"{peer.name} is not connected{why}", None, peer.name)
        elif peer.state == "away" and peer.backlog_bytes:
            text = f"{peer.name} is away; {peer.backlog_bytes} bytes wait for it"
            yield Trouble("peer", "warning", text, None, peer.name)
