"""One greenlet that looks for all."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from keyop import poller
from keyop.poller import Poller


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "POLL_S", 0.001)


def test_it_looks_for_all_and_again() -> None:
    """Each look is called until it is discarded; the greenlet ends with the last."""
    made = Poller(lambda: None)
    counts = [0, 0]
    often_enough = Event()

    def first() -> None:
        counts[0] += 1

    def second() -> None:
        counts[1] += 1
        if counts[1] == 3:
            made.discard(first)
            made.discard(first)
        if counts[1] == 6:
            often_enough.set()

    made.add(first)
    made.add(second)
    assert often_enough.wait(10)
    assert 2 <= counts[0] <= 3
    made.discard(second)
    greenlet = made._greenlet
    assert greenlet is None
    gevent.sleep(0)
    seen = counts[1]
    made.add(first)
    before = counts[0]
    while counts[0] < before + 2:
        gevent.sleep(0.001)
    assert counts[1] == seen
    made.discard(first)


def test_one_that_is_discarded_by_another() -> None:
    """It is not called any more in the same round."""
    tidied: list[None] = []
    made = Poller(lambda: tidied.append(None))
    called = Event()
    later = Event()

    def first() -> None:
        made.discard(later.set)
        called.set()

    made.add(first)
    made.add(later.set)
    assert called.wait(10)
    while len(tidied) < 2:
        gevent.sleep(0.001)
    assert not later.is_set()
    made.discard(first)
