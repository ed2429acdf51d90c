"""Errands: done once for calls that come together, by greenlets that may be a crew's."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event

from keyop.errand import Crew, Errand


@pytest.fixture(params=["alone", "crew"])
def crew(request: pytest.FixtureRequest) -> Iterator[Crew | None]:
    if request.param == "alone":
        yield None
        return
    crew = Crew(2)
    yield crew
    crew.close()


class Work:
    """Work that tells how often it was begun, and may be held."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.killed = 0
        self.started = Event()
        self.gate = Event()
        self.gate.set()

    def __call__(self) -> None:
        self.begun += 1
        self.started.set()
        try:
            self.gate.wait()
        except gevent.GreenletExit:
            self.killed += 1
            raise
        self.ended += 1


def settle(errand: Errand) -> None:
    with gevent.Timeout(5):
        while errand.running:
            gevent.sleep(0)


def test_calls_that_come_together_are_one(crew: Crew | None) -> None:
    work = Work()
    errand = Errand("e", work, crew)
    errand.call()
    errand.call()
    assert errand.running
    assert work.begun == 0  # never in the caller's own greenlet
    settle(errand)
    assert work.begun == 1


def test_a_call_while_it_works_makes_it_work_once_more(crew: Crew | None) -> None:
    work = Work()
    work.gate.clear()
    errand = Errand("e", work, crew)
    errand.call()
    work.started.wait(5)
    for _ in range(3):
        errand.call()
    assert work.begun == 1
    work.gate.set()
    settle(errand)
    assert work.begun == work.ended == 2


def test_a_stopped_errand_is_killed_where_it_is_and_does_nothing_more(crew: Crew | None) -> None:
    work = Work()
    work.gate.clear()
    errand = Errand("e", work, crew)
    errand.call()
    work.started.wait(5)
    errand.stop()
    assert (work.killed, work.ended, errand.running) == (1, 0, False)
    errand.call()
    gevent.sleep(0)
    assert work.begun == 1


def test_an_errand_stopped_before_it_begins_does_nothing(crew: Crew | None) -> None:
    work = Work()
    errand = Errand("e", work, crew)
    errand.call()
    errand.stop()
    assert (work.begun, errand.running) == (0, False)


def test_an_errand_may_stop_itself(crew: Crew | None) -> None:
    begun = []

    def work() -> None:
        begun.append(1)
        errand.call()
        errand.stop()

    errand = Errand("e", work, crew)
    errand.call()
    settle(errand)
    assert begun == [1]


def test_joining_waits_for_what_it_was_called_for() -> None:
    """``join`` returns once the work is done, at once where there is none."""
    work = Work()
    errand = Errand("e", work)
    errand.join()
    assert work.begun == 0
    errand.call()
    errand.join()
    assert (work.ended, errand.running) == (1, False)


def test_it_goes_on_after_work_that_was_killed(crew: Crew | None) -> None:
    """Whoever kills the greenlet, other than by ``stop``, does not end the errand."""
    work = Work()
    work.gate.clear()
    errand = Errand("e", work, crew)
    errand.call()
    work.started.wait(5)
    assert errand._greenlet is not None
    errand._greenlet.kill()
    assert (work.killed, errand.running) == (1, False)
    work.gate.set()
    errand.call()
    settle(errand)
    assert work.ended == 1


def test_a_crew_that_is_closing_loses_no_errand() -> None:
    """An errand that is sent while the idle are being ended is done by somebody else."""
    crew = Crew(2)
    first, second = Work(), Work()
    errand = Errand("e", first, crew)
    errand.call()
    settle(errand)
    # Runs before the idle greenlet is ended, and after that was decided.
    gevent.get_hub().loop.run_callback(Errand("late", second, crew).call)
    crew.close()
    with gevent.Timeout(5):
        while not second.ended:
            gevent.sleep(0)


def test_a_greenlet_of_a_crew_does_one_errand_after_another() -> None:
    crew = Crew()
    seen: list[gevent.Greenlet] = []
    errands = [Errand(f"e{n}", lambda: seen.append(gevent.getcurrent()), crew) for n in range(3)]
    for errand in errands:
        errand.call()
        settle(errand)
    assert len(set(seen)) == 1
    assert seen[0].name == "e2"
    crew.close()
    assert seen[0].dead


def test_no_more_wait_than_the_size_says() -> None:
    crew = Crew(2)
    works = [Work() for _ in range(5)]
    errands = [Errand("e", work, crew) for work in works]
    greenlets = []
    for errand, work in zip(errands, works, strict=True):
        work.gate.clear()
        errand.call()
        work.started.wait(5)
        greenlets.append(errand._greenlet)
    for errand, work in zip(errands, works, strict=True):
        work.gate.set()
        settle(errand)
    gevent.sleep(0)
    assert sum(not each.dead for each in greenlets if each is not None) == 2
    crew.close()


def test_what_kills_an_errand_never_reaches_the_next_one() -> None:
    """The kill is under way while the errand ends by itself, and its greenlet looks for work."""
    crew = Crew(1)
    first, second = Work(), Work()
    first.gate.clear()
    second.gate.clear()
    one, two = Errand("one", first, crew), Errand("two", second, crew)
    one.call()
    first.started.wait(5)
    first.gate.set()  # its greenlet runs on, and ends, before the kill arrives
    stopper = gevent.spawn(one.stop)
    two.call()
    second.started.wait(5)
    stopper.join()
    second.gate.set()
    settle(two)
    assert (second.killed, second.ended) == (0, 1)
    crew.close()


def test_a_kill_of_one_that_waits_takes_it_off_the_crew() -> None:
    crew = Crew(1)
    seen: list[gevent.Greenlet] = []
    errand = Errand("e", lambda: seen.append(gevent.getcurrent()), crew)
    errand.call()
    settle(errand)
    seen[0].kill()
    errand.call()
    settle(errand)
    assert len(seen) == 2
    assert seen[0] is not seen[1]
    crew.close()


def test_a_closed_crew_still_does_what_it_is_sent_and_ends() -> None:
    crew = Crew(4)
    work = Work()
    work.gate.clear()
    errand = Errand("e", work, crew)
    errand.call()
    work.started.wait(5)
    greenlet = errand._greenlet
    crew.close()
    work.gate.set()
    settle(errand)
    gevent.sleep(0)
    assert work.ended == 1
    assert greenlet is not None
    assert greenlet.dead
