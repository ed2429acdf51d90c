"""Giving way in tight loops."""

from __future__ import annotations

import gevent
import pytest

import keyop.pace
from keyop.pace import SLICE_S, Pace


class Turns:
    """A monotonic clock and a sleep that only count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []
        monkeypatch.setattr(keyop.pace, "monotonic", lambda: self.now)
        monkeypatch.setattr(gevent, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += 1  # others may take long


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    return Turns(monkeypatch)


def test_keeps_going_within_the_slice(turns: Turns) -> None:
    """A loop that was just begun does not give way."""
    pace = Pace()
    turns.now += SLICE_S / 2
    pace.step()
    assert turns.sleeps == []


def test_gives_way_when_the_slice_is_used_up(turns: Turns) -> None:
    """It sleeps for more than nothing, because sleep(0) would never look at sockets."""
    pace = Pace()
    turns.now += SLICE_S * 1.01
    pace.step()
    assert len(turns.sleeps) == 1
    assert 0 < turns.sleeps[0] < 0.001


def test_a_new_slice_begins_after_the_others_ran(turns: Turns) -> None:
    """The time that the others took is not counted against the loop."""
    pace = Pace()
    turns.now += SLICE_S * 1.01
    pace.step()
    pace.step()
    assert len(turns.sleeps) == 1


def test_the_slice_is_shorter_than_two_milliseconds() -> None:
    """Everybody else runs at least every two milliseconds."""
    assert 0 < SLICE_S < 0.002
