"""``keyop stats``: totals, and a line for each channel."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from keyop.look.sample import free_bytes, total
from tests.integration.helpers import (
    log_bytes,
    record,
    running,
    write_offset,
    write_segment,
)

from .helpers import Process, dead_letter, environment, keyop, refused, well


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
    assert totals.pop("oldest_pending_s") > 0
    assert totals == {
        "channels": 3,
        "segments": 4,
        "disk_bytes": sum(sizes.values()) + dead,
        "subscribers": 2,
        "running": 0,
        "largest_lag_bytes": sizes["orders"],
        "dead_letters": 2,
        "bytes_per_s": None,
        "messages_per_s": None,
    }
    assert stats["data_dir"] == str(filled)
    orders = stats["channels"][1]
    billing, mail = orders.pop("positions")
    assert orders.pop("oldest_pending_s") == billing.pop("oldest_pending_s") > 0
    assert billing == {
        "subscriber_id": "billing",
        "kind": "local",
        "running": False,
        "offset": 0,
        "lag_bytes": sizes["orders"],
        "lag_messages": 2,
        "lag_estimated": False,
        "read_bytes_per_s": None,
    }
    assert (mail["lag_bytes"], mail["lag_messages"]) == (sizes["orders"] - 100, 2)
    assert orders == {
        "channel": "orders",
        "segments": 2,
        "disk_bytes": sizes["orders"],
        "start": 0,
        "end": sizes["orders"],
        "subscribers": 2,
        "running": 0,
        "largest_lag_bytes": sizes["orders"],
        "lag_messages": 2,
        "lag_estimated": False,
        "dead_letters": 2,
        "bytes_per_s": None,
        "messages_per_s": None,
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
        ["orders", f"{orders}", "B", "2", f"{orders}", "2", "0", f"{orders}", "B", "2", "0s", "2"]
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
    monkeypatch.setattr("keyop.look.sample.free_bytes", lambda _: None)
    lines = well("stats").lines
    assert lines[2].startswith("subscribers     2, ? running, largest lag ")
    assert lines[4] == "disk            ? free"
    assert lines[8].split()[-5:] == ["?", "?", "?", "0s", "2"]


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


# --- lag and rates


def test_the_oldest_pending_message(data_dir: Path) -> None:
    """Its age is shown, past what is damaged; messages that wait are counted from each position."""
    hour_ago = (datetime.now(timezone.utc) - timedelta(hours=1, minutes=1)).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )
    lines = [record(1), record(2), b"x\n", record(3, ts=hour_ago), record(4)]
    write_segment(data_dir, "orders", 0, b"".join(lines))
    write_offset(data_dir, "orders", "a", len(lines[0] + lines[1]))
    write_offset(data_dir, "orders", "b", len(b"".join(lines[:4])))
    write_offset(data_dir, "orders", "c", len(b"".join(lines)))
    positions = well("stats", "--json").json["channels"][0]["positions"]
    assert [each["lag_messages"] for each in positions] == [3, 1, 0]
    assert 3660 <= positions[0]["oldest_pending_s"] < 3660 + 600
    assert positions[2]["oldest_pending_s"] is None
    write_offset(data_dir, "orders", "b", len(b"".join(lines)))
    assert re.search(r" 3 +1h\d\dm ", well("stats").lines[-1])


def test_a_long_lag_is_estimated(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a budget the rest is reckoned from a sample, and marked."""
    monkeypatch.setattr("keyop.look.lag._COUNT_BYTES", 20_000)
    monkeypatch.setattr("keyop.look.lag._SAMPLE_BYTES", 5_000)
    line = record("x" * 50, id="a")
    write_segment(data_dir, "orders", 0, line * 1000)
    write_offset(data_dir, "orders", "far", 0)
    write_offset(data_dir, "orders", "near", len(line) * 990)
    far, near = well("stats", "--json").json["channels"][0]["positions"]
    assert (near["lag_messages"], near["lag_estimated"]) == (10, False)
    assert far["lag_estimated"]
    assert 900 < far["lag_messages"] < 1100
    assert "~" in well("stats").lines[-1]


def test_rates_over_an_interval(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was appended and read between two looks, each second of it."""
    write_segment(data_dir, "orders", 0, record(1))
    write_offset(data_dir, "orders", "a", 0)
    both = record(1) + record(2) + record(3)

    def meanwhile(_: float) -> None:
        write_segment(data_dir, "orders", 0, both)
        write_offset(data_dir, "orders", "a", len(both))
        write_segment(data_dir, "new", 0, record(9))

    monkeypatch.setattr("keyop.cli.stats.gevent.sleep", meanwhile)
    stats = well("stats", "--interval", 1, "--json").json
    new, orders = stats["channels"]
    seconds = stats["interval_s"]
    assert orders["messages_per_s"] * seconds == pytest.approx(2)
    assert orders["bytes_per_s"] * seconds == pytest.approx(len(both) - len(record(1)))
    assert orders["positions"][0]["read_bytes_per_s"] * seconds == pytest.approx(len(both))
    assert new["messages_per_s"] * seconds == pytest.approx(1)
    assert stats["totals"]["messages_per_s"] * seconds == pytest.approx(3)
    lines = well("stats", "--interval", 1).lines
    assert lines[5].startswith("appended        ")
    assert "IN/S" in lines[7]


def test_watching_into_a_pipe(filled: Path) -> None:
    """One object a line after each interval; what is done with is counted anew."""
    with Process("stats", "--watch", "--interval", 0.1, "--json") as process:
        latest = json.loads(process.line())
        assert latest["interval_s"] >= 0.1
        assert latest["totals"]["messages_per_s"] == 0
        assert latest["totals"]["dead_letters"] == 2
        with running(filled) as messenger:
            messenger.publish_batch("orders", [("t", n) for n in range(5)])
        well("dead-letter", "purge", "orders", "dead-0002", "--yes")
        appended = 0
        while appended < 5 or latest["totals"]["dead_letters"] > 1:  # its lines have an end: HANG_S
            latest = json.loads(process.line())
            appended += round(latest["totals"]["messages_per_s"] * latest["interval_s"])
    assert appended == 5


def test_watching_as_text(filled: Path) -> None:
    """A pipe gets a table after each interval, without control characters."""
    result = keyop("stats", "-w", "--interval", 0.1, "--count", 2)
    assert result.out.count("data directory") == 2
    assert "\x1b" not in result.out


def test_ctrl_c_ends_watching(filled: Path) -> None:
    """It ends with 130 and no word."""
    with Process("stats", "--watch", "--interval", 0.1, "--json") as process:
        process.line()
        process.send(signal.SIGINT)
        result = process.end()
    assert (result.status, result.err) == (130, "")


def test_a_reader_that_goes_away_ends_watching(filled: Path) -> None:
    """It ends with 141."""
    with Process("stats", "--watch", "--interval", 0.1) as process:
        process.line()
        process.popen.stdout.close()
        assert process.popen.wait(30) == 141
        assert process.popen.stderr.read() == b""


def test_a_terminal_is_redrawn(filled: Path) -> None:
    """It shows at once, then in place; what has no room is left out."""
    here, there = pty.openpty()
    env = environment(LINES="6")
    try:
        with Process(
            "stats", "--watch", "--interval", 0.1, "--count", 1, stdout=there, env=env
        ) as process:
            assert process.popen.wait(30) == 0
        out = b""
        while select.select([here], [], [], 0)[0]:
            out += os.read(here, 65536)
    finally:
        os.close(here)
        os.close(there)
    first, second = out.decode().split("\x1b[H\x1b[J")[1:]
    assert "appended" not in first
    assert first.count("\n") == 5
    assert first.rstrip().endswith("… 6 more")
    assert second.rstrip().endswith("… 7 more")


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--count", 2], "--count is for --watch"),
        (["--watch", "--interval", 0], "Invalid value for '--interval'"),
        (["--watch", "--interval", "nan"], "Invalid value for '--interval'"),
    ],
)
def test_wrong_use(args: list[object], what: str) -> None:
    """Wrong use ends with 2."""
    assert refused(2, "stats", *args).startswith(what)
