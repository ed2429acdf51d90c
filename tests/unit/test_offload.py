"""Blocking calls in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import gevent
import pytest
from gevent.monkey import get_original

from keyop.offload import Job, Offload

allocate_lock = get_original("_thread", "allocate_lock")
get_ident = get_original("_thread", "get_ident")


class Gate:
    """Something that blocks its thread until it is opened."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def wait(self) -> str:
        assert self._lock.acquire(timeout=30)
        self._lock.release()
        return "passed"

    def open(self) -> None:
        self._lock.release()


@pytest.fixture
def offload() -> Iterator[Offload]:
    threads = Offload(2)
    yield threads
    assert threads.close(10)


def refuse() -> None:
    raise KeyError("no")


def test_the_value_comes_back(offload: Offload) -> None:
    """From another thread."""
    assert offload.run(divmod, 7, 2) == (3, 1)
    assert offload.run(get_ident) != get_ident()


def test_the_error_comes_back(offload: Offload, capfd: pytest.CaptureFixture[str]) -> None:
    """It is raised to who waits, and not printed by the thread."""
    with pytest.raises(KeyError, match="no"):
        offload.run(refuse)
    job = offload.submit(refuse)
    assert job.wait(10)
    assert isinstance(job.error, KeyError)
    assert job.value is None
    assert "Traceback" not in capfd.readouterr().err


def test_others_run_meanwhile(offload: Offload) -> None:
    """A call that blocks holds up only who waits for it."""
    gate = Gate()
    waiting = gevent.spawn(offload.run, gate.wait)
    gevent.sleep(0.005)
    assert not waiting.ready()
    gate.open()
    assert waiting.get(timeout=10) == "passed"


def test_waiting_for_a_while(offload: Offload) -> None:
    """A wait that was too short says so; the call goes on."""
    gate = Gate()
    job = offload.submit(gate.wait)
    assert not job.wait(0.005)
    assert not job.done
    gate.open()
    assert job.wait(10)
    assert job.done
    assert job.value == "passed"


def test_not_yet_submitted() -> None:
    """A job that nobody runs is not done."""
    assert not Job().done


def test_callbacks(offload: Offload) -> None:
    """They are called once each, with the job, also when it was done before."""
    called = []
    gate = Gate()
    job = offload.submit(gate.wait)
    job.then(called.append)
    gate.open()
    job.wait(10)
    gevent.sleep(0)
    job.then(called.append)
    gevent.sleep(0)
    assert called == [job, job]


def test_callbacks_run_though_the_waiter_was_killed(offload: Offload) -> None:
    """Whoever waited may be gone by then."""
    called = []
    gate = Gate()

    def wait() -> None:
        job = offload.submit(gate.wait)
        job.then(called.append)
        job.wait()

    waiting = gevent.spawn(wait)
    gevent.sleep(0.005)
    waiting.kill()
    gate.open()
    for _ in range(1000):
        if called:
            break
        gevent.sleep(0.002)
    assert called[0].value == "passed"


def test_no_more_threads_than_allowed(offload: Offload) -> None:
    """The third waits until one of the two is free."""
    gates = [Gate() for _ in range(3)]
    waiting = [gevent.spawn(offload.run, gate.wait) for gate in gates]
    gates[2].open()
    gevent.sleep(0.005)
    assert not waiting[2].ready()
    gates[0].open()
    assert waiting[2].get(timeout=10) == "passed"
    gates[1].open()
    gevent.joinall(waiting, timeout=10)


class TestClose:
    def test_never_used(self) -> None:
        """There is nothing to end."""
        assert Offload(1).close(0)

    def test_ends_the_threads(self) -> None:
        """And it may be used again."""
        offload = Offload(2)
        before = threading.active_count()
        for _ in range(2):
            assert offload.run(int) == 0
            assert offload.close(10)
        assert threading.active_count() <= before

    def test_a_call_that_hangs(self) -> None:
        """It is left behind, and the deadline kept; a negative one counts as passed."""
        offload = Offload(1)
        gate = Gate()
        job = offload.submit(gate.wait)
        gevent.sleep(0.002)
        assert not offload.close(-1)
        gate.open()
        assert job.wait(10)
