"""``keyop stats``: totals, and a line for each channel."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyop.cli.stats import free_bytes, total
from tests.integration.helpers import (
    log_bytes,
    record,
    running,
    write_offset,
    write_segment,
)

from .helpers import dead_letter, keyop, well


@pytest.fixture
def filled(data_dir: Path) -> Path:
    """Two channels, one with subscribers and dead letters, of which one is done with."""
    with running(data_dir, storage={"max_segment_bytes": 200}) as messenger:
        messenger.publish("orders", "t", 1)
        messenger.publish("orders", "t", 2)
        messenger.publish("notes", "t", 1)
    write_offset(data_dir, "orders", "billing", 0)
    write_offset(data_dir, "orders", "mail", 100)
    write_segment(
        data_dir,
        "orders.dead-letter",
        0,
        b"".join(dead_letter(record(n), letter_id=f"dead-{n:04}") for n in range(3)),
    )
    (data_dir / "channels" / "orders.dead-letter" / ".done").write_text("dead-0001\n")
    return data_dir


def test_json(filled: Path) -> None:
    """--json has totals and channels, sizes in bytes."""
    stats = well("stats", "--json").json
    sizes = {name: len(log_bytes(filled, name)) for name in ("notes", "orders")}
    dead = len(log_bytes(filled, "orders.dead-letter"))
    totals = stats["totals"]
    assert totals.pop("disk_free_bytes") > 0
    assert totals == {
        "channels": 3,
        "segments": 4,
        "disk_bytes": sum(sizes.values()) + dead,
        "subscribers": 2,
        "running": 0,
        "largest_lag_bytes": sizes["orders"],
        "dead_letters": 2,
    }
    assert stats["data_dir"] == str(filled)
    assert stats["channels"][1] == {
        "channel": "orders",
        "segments": 2,
        "disk_bytes": sizes["orders"],
        "start": 0,
        "end": sizes["orders"],
        "subscribers": 2,
        "running": 0,
        "largest_lag_bytes": sizes["orders"],
        "dead_letters": 2,
    }
    assert [each["dead_letters"] for each in stats["channels"]] == [0, 2, None]


def test_for_people(filled: Path) -> None:
    """The totals come first, with who is furthest behind, then the table."""
    lines = well("stats").lines
    orders = len(log_bytes(filled, "orders"))
    assert lines[0] == f"data directory  {filled}"
    assert lines[1].startswith("channels        3, ")
    assert lines[1].endswith(" in 4 segments")
    assert lines[2] == (f"subscribers     2, 0 running, largest lag {orders} B (billing of orders)")
    assert lines[3] == "dead letters    2"
    assert lines[4].endswith(" free")
    assert lines[5] == ""
    assert lines[6].split()[:2] == ["CHANNEL", "SIZE"]
    assert lines[8].split() == (
        ["orders", f"{orders}", "B", "2", f"{orders}", "2", "0", f"{orders}", "B", "2"]
    )
    assert lines[9].split()[-1] == "-"


def test_of_nothing(data_dir: Path) -> None:
    """An empty directory has totals of nothing, and no table."""
    with running(data_dir) as messenger:
        messenger.start()
    lines = well("stats").lines
    assert lines[2] == "subscribers     0, 0 running"
    assert len(lines) == 5
    assert well("stats", "--json").json["totals"]["largest_lag_bytes"] is None


def test_everybody_has_read_everything(data_dir: Path) -> None:
    """No lag is not worth a word."""
    write_segment(data_dir, "orders", 0, record(1))
    write_offset(data_dir, "orders", "a", len(record(1)))
    assert well("stats").lines[2] == "subscribers     1, 0 running"


def test_what_is_not_known(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where locks or the disk's room cannot be seen, that is a question mark."""
    monkeypatch.setattr("keyop.held._PROC_LOCKS", "/nonexistent")
    (filled / "subscribers" / "orders" / "billing.lock").touch()
    write_offset(filled, "orders", "mail", b"")
    monkeypatch.setattr("keyop.cli.stats.free_bytes", lambda _: None)
    lines = well("stats").lines
    assert lines[2].startswith("subscribers     2, ? running, largest lag ")
    assert lines[4] == "disk            ? free"
    assert lines[8].split()[-3:] == ["?", "?", "2"]


def test_sums_of_the_unknown_are_unknown() -> None:
    """A sum with a part that is not known says nothing."""
    assert total([1, 2]) == 3
    assert total([1, None]) is None
    assert free_bytes("/nonexistent") is None


def test_lines_that_are_no_records_are_not_counted(data_dir: Path) -> None:
    """A damaged dead letter is the business of check."""
    write_segment(data_dir, "orders", 0, record(1))
    write_segment(data_dir, "orders.dead-letter", 0, dead_letter(record(1)) + b"garbage\n")
    assert keyop("stats", "--json").json["totals"]["dead_letters"] == 1
