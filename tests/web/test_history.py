"""The last ten minutes: fixed intervals, gaps, channels that come and go, clocks that are set."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import gevent
import pytest

from keyop.look.sample import Row, Sample
from keyop.web import history
from keyop.web.history import History

EMPTY = {"messages_per_s": [], "bytes_per_s": [], "lag_bytes": []}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def row(channel: str, rate: float | None = 1.0, lag: int | None = 0) -> Row:
    bytes_per_s = None if rate is None else 100 * rate
    return Row(
        channel, 1, 10, 0, 10, 1, 1, lag, lag, False, None, 0, bytes_per_s, rate, positions=()
    )


def sample(*rows: Row) -> Sample:
    return Sample(datetime.now(timezone.utc), 2.0, None, rows, None)


def seen(clock: Clock, *samples: Sample) -> History:
    """Return the history of samples two seconds apart."""
    found = History(clock)
    for each in samples:
        found.add(each)
        clock.now += 2
    return found


def of(found: History, channel: str, name: str = "messages_per_s") -> Any:
    channels: Any = found.as_json()["channels"]
    return channels[channel][name]


def test_nothing_yet() -> None:
    assert History().as_json() == {"interval_s": 2.0, "times": [], "channels": {}, "total": EMPTY}


def test_values(clock: Clock) -> None:
    found = seen(clock, sample(row("a", None)), sample(row("a", 1.5, 7), row("b", 2, 9)))
    shown: Any = found.as_json()
    assert shown["times"] == [1000.0, 1002.0]
    assert shown["channels"] == {
        "a": {"messages_per_s": [None, 1.5], "bytes_per_s": [None, 150.0], "lag_bytes": [0, 7]},
        "b": {"messages_per_s": [None, 2.0], "bytes_per_s": [None, 200.0], "lag_bytes": [None, 9]},
    }
    assert shown["total"]["messages_per_s"] == [None, 3.5]
    assert shown["total"]["bytes_per_s"] == [None, 350.0]


def test_a_gap(clock: Clock) -> None:
    """Where nobody looked for a while, no line is drawn across."""
    found = seen(clock, sample(row("a")))
    clock.now += 60
    found.add(sample(row("a")))
    assert found.as_json()["times"] == [1000.0, 1002.0, 1062.0]
    assert of(found, "a") == [1.0, None, 1.0]


def test_ten_minutes(clock: Clock) -> None:
    """What is older goes; a channel that is gone, when nothing of it is left."""
    found = seen(clock, sample(row("a"), row("b")), *[sample(row("a"))] * 299)
    assert of(found, "b") == [1.0] + [None] * 299
    for _ in range(2):
        found.add(sample(row("a")))
        clock.now += 2
    shown: Any = found.as_json()
    assert len(shown["times"]) == len(shown["channels"]["a"]["lag_bytes"]) == 300
    assert "b" not in shown["channels"]


def test_a_clock_that_is_set_back(clock: Clock) -> None:
    """Times always rise, as a plot needs them to."""
    found = seen(clock, sample(row("a")), sample(row("a")))
    clock.now = 500
    found.add(sample(row("a", 9)))
    assert found.as_json()["times"] == [500.0]
    assert of(found, "a") == [9.0]


def test_too_many_channels(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums have all of them."""
    monkeypatch.setattr(history, "_MAX_CHANNELS", 2)
    found = seen(clock, sample(row("a"), row("b"), row("c")))
    shown: Any = found.as_json()
    assert set(shown["channels"]) == {"a", "b"}
    assert shown["total"]["messages_per_s"] == [3.0]


def test_others_run_meanwhile(clock: Clock) -> None:
    """Also one that adds: all series that are shown are of one length."""
    rows = [row(f"c{number}") for number in range(100)]
    found = seen(clock, *[sample(*rows)] * 300)

    def add() -> None:
        clock.now += 2
        found.add(sample(*rows))

    adding = gevent.spawn(add)
    shown: Any = found.as_json()
    adding.join()
    lengths = {len(values) for each in shown["channels"].values() for values in each.values()}
    assert lengths == {len(shown["times"])} == {300}
