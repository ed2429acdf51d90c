"""Waking one greenlet, or all that wait for one thing."""

from __future__ import annotations

import time

import gevent
import pytest

from keyop.wakeup import Gate, Wakeup


def test_set_before_waiting() -> None:
    """Who waits for what is set already does not wait."""
    wakeup = Wakeup()
    wakeup.set()
    assert wakeup.is_set()
    wakeup.wait()
    wakeup.clear()
    assert not wakeup.is_set()


def test_set_while_waiting() -> None:
    """The waiting greenlet goes on in the next turn, once, however often it was set."""
    wakeup = Wakeup()
    turns = []

    def wait() -> None:
        while len(turns) < 2:
            wakeup.wait()
            wakeup.clear()
            turns.append(len(turns))

    greenlet = gevent.spawn(wait)
    gevent.sleep(0)
    wakeup.set()
    wakeup.set()
    assert turns == []
    gevent.sleep(0)
    gevent.sleep(0)
    assert turns == [0]
    wakeup.set()
    greenlet.join()
    assert turns == [0, 1]


def test_not_in_time() -> None:
    """Waiting ends with the timeout, and what is not set stays so; a later set is not lost."""
    wakeup = Wakeup()
    begun = time.monotonic()
    wakeup.wait(0.01)
    assert time.monotonic() - begun >= 0.009
    assert not wakeup.is_set()
    wakeup.set()
    wakeup.wait(60)


def test_set_in_time() -> None:
    """A timeout that is not reached has no effect later."""
    wakeup = Wakeup()
    gevent.spawn(wakeup.set)
    wakeup.wait(60)
    assert wakeup.is_set()


def test_killed_after_it_was_woken() -> None:
    """A kill that comes with the wake-up ends the greenlet, and disturbs nobody."""
    wakeup = Wakeup()
    greenlet = gevent.spawn(wakeup.wait)
    gevent.sleep(0)
    wakeup.set()
    greenlet.kill()
    assert greenlet.dead
    wakeup.clear()
    other = gevent.spawn(wakeup.wait)
    gevent.sleep(0)
    assert not other.ready()
    wakeup.set()
    other.join()


def test_a_gate_lets_all_through() -> None:
    """All who wait go on, in the order in which they came; whoever comes later does not wait."""
    gate = Gate()
    passed: list[int] = []
    greenlets = [
        gevent.spawn(lambda number=number: gate.wait() and passed.append(number))
        for number in range(5)
    ]
    gevent.sleep(0)
    assert passed == []
    gate.open()
    gevent.joinall(greenlets)
    assert passed == [0, 1, 2, 3, 4]
    assert gate.wait()


@pytest.mark.parametrize("timeout_s", [0.0, 0.001])
def test_a_gate_that_stays_shut(timeout_s: float) -> None:
    """Who waits in vain is told; opening it later harms nobody."""
    gate = Gate()
    assert not gate.wait(timeout_s)
    killed = gevent.spawn(gate.wait)
    gevent.sleep(0)
    killed.kill()
    gate.open()
    gevent.sleep(0)
    assert gate.wait(timeout_s)
