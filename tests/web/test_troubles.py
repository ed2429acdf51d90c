"""What an operator is warned of, and what not."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from keyop import ChannelStats, Config, Stats, SubscriberStats
from keyop.latency import Percentiles
from keyop.look.sample import PositionRow, Row, Sample
from keyop.stats import LatencyStats, PeerStats
from keyop.web.troubles import Trouble, find_troubles

MIB = 1 << 20
NONE = Percentiles(0, None, None, None)
NOW = datetime.now(timezone.utc)


def stats(*channels: ChannelStats, peers: tuple[PeerStats, ...] = ()) -> Stats:
    return Stats("here", "/data", channels, LatencyStats(NONE, NONE, NONE), peers)


def channel(*subscribers: SubscriberStats, failed: str | None = None) -> ChannelStats:
    return ChannelStats("orders", 0, 10, 10, 1, failed, subscribers)


def sample(
    *positions: PositionRow, dead_letters: int | None = 0, free: int | None = None
) -> Sample:
    rows = Row("orders", 1, 10, 0, 10, 1, 1, 0, 0, False, None, dead_letters, None, None, positions)
    return Sample(NOW, None, free, (rows,), None)


def position(lag: int | None, age_s: float | None = None) -> PositionRow:
    return PositionRow("billing", "local", True, 0, lag, None, False, age_s, None)


def found(
    of_sample: Sample | None = None,
    of_stats: Stats | None = None,
    total: int | None = None,
    expires: datetime | None = None,
    **storage: Any,
) -> list[Trouble]:
    return find_troubles(
        Config.from_dict({"storage": {"data_dir": "d", **storage}}),
        of_sample or sample(),
        of_stats or stats(),
        total,
        expires,
    )


def test_all_is_well() -> None:
    well = stats(channel(SubscriberStats("billing", 10, 0, True, delivered=5, retries=2)))
    quiet = sample(position(10, 1.0), position(None), free=500 * 1024 * MIB)
    assert found(quiet, well, 1000 * 1024 * MIB, NOW + timedelta(days=31)) == []


@pytest.mark.parametrize(
    ("free", "total", "level", "says"),
    [
        (0, 1000 * MIB, "error", "full"),
        (200 * MIB, 1000 * MIB, "warning", "200 MiB"),
        (2000 * MIB, 100_000 * MIB, "warning", "2000 MiB"),
    ],
)
def test_the_disk(free: int, total: int, level: str, says: str) -> None:
    (trouble,) = found(sample(free=free), total=total)
    assert (trouble.kind, trouble.level) == ("disk", level)
    assert says in trouble.text


def test_a_disk_that_cannot_be_seen() -> None:
    assert found(sample(free=None), total=10) == found(sample(free=0), total=None) == []


@pytest.mark.parametrize(
    ("left", "level", "says"),
    [(timedelta(hours=-1), "error", "has expired"), (timedelta(days=2.1), "warning", "2 days")],
)
def test_the_certificate(left: timedelta, level: str, says: str) -> None:
    (trouble,) = found(expires=NOW + left)
    assert (trouble.kind, trouble.level) == ("certificate", level)
    assert says in trouble.text


def test_a_failed_log() -> None:
    (trouble,) = found(of_stats=stats(channel(failed="Input/output error")))
    assert trouble.as_json() == {
        "kind": "log",
        "level": "error",
        "text": "the log has failed: Input/output error",
        "channel": "orders",
    }


def test_damage() -> None:
    """Met on the way, or in a position."""
    damaged = channel(SubscriberStats("a", 1, 0, True, corrupt=3), SubscriberStats("b", None, None))
    troubles = found(of_stats=stats(damaged))
    assert [(each.kind, each.level, each.channel) for each in troubles] == [
        ("damage", "error", "orders"),
        ("damage", "warning", "orders"),
    ]
    assert "b cannot be read" in troubles[0].text
    assert "a has met 3 damaged" in troubles[1].text


def test_dead_letters() -> None:
    (trouble,) = found(sample(dead_letters=7))
    assert (trouble.kind, trouble.level, trouble.channel) == ("dead_letters", "warning", "orders")
    assert "7 dead letters" in trouble.text
    assert found(sample(dead_letters=None)) == []


@pytest.mark.parametrize(
    ("lag", "age_s", "limit_mb", "is_behind"),
    [
        (513 * MIB, 1.0, 512, True),
        (511 * MIB, 1.0, 512, False),
        (511 * MIB, 1.0, 0, True),  # where the configuration names no bound
        (1, 301.0, 512, True),
        (0, 301.0, 512, False),
        (None, None, 512, False),
    ],
)
def test_lag(lag: int | None, age_s: float | None, limit_mb: int, is_behind: bool) -> None:
    """Too much, or too old."""
    troubles = found(sample(position(lag, age_s)), max_subscriber_lag_mb=limit_mb)
    assert [each.kind for each in troubles] == ["lag"] * is_behind
    if troubles:
        assert f"billing is {lag} bytes behind" in troubles[0].text


@pytest.mark.parametrize(
    ("peer", "level", "says"),
    [
        (PeerStats("h", "hub", "a:1", "refused", "not in allowlist"), "error", "h refuses us: not"),
        (PeerStats("h", "hub", "a:1", "waiting", "timed out"), "warning", "not connected: timed"),
        (PeerStats("h", "hub", "a:1", "connecting"), "warning", "h is not connected"),
        (PeerStats("c", "client", "", "away", backlog_bytes=5), "warning", "5 bytes wait"),
        (PeerStats("c", "client", "", "away"), None, ""),
        (PeerStats("h", "hub", "a:1", "connected"), None, ""),
        (PeerStats("e", "ephemeral", "a:1", "connected", backlog_bytes=5), None, ""),
    ],
)
def test_peers(peer: PeerStats, level: str | None, says: str) -> None:
    troubles = found(of_stats=stats(peers=(peer,)))
    assert [each.level for each in troubles] == ([] if level is None else [level])
    for each in troubles:
        assert (each.kind, each.peer) == ("peer", peer.name)
        assert says in each.text


def test_errors_come_first() -> None:
    troubles = found(
        sample(position(1, 999.0), dead_letters=1, free=0), stats(channel(failed="x")), MIB
    )
    assert [each.level for each in troubles] == ["error", "error", "warning", "warning"]
