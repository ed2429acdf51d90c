"""Who blocks the hub is named; nobody is who only was not given the processor."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.threadpool import ThreadPool

from keyop.delivery import Delivery
from keyop.monitor import Monitor, Watch

DEADLINE_S = 30.0
# What is too long, and how often is looked. A look that comes twice as late does not count.
QUICK = (0.15, 0.05)
# Unpatched, as in every test: it blocks.
block = time.sleep


class Kept(logging.Handler):
    """Keeps the records it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[list[Any]]:
    """What the monitor has logged."""
    kept = Kept()
    logger = logging.getLogger("keyop.monitor")
    logger.addHandler(kept)
    yield kept.records
    logger.removeHandler(kept)


@pytest.fixture
def watching() -> Iterator[Callable[..., tuple[Monitor, Watch]]]:
    """Make monitors with a watch of this hub, all of which are stopped in the end."""
    watches = []

    def make(*limits: float) -> tuple[Monitor, Watch]:
        monitor = Monitor(*limits)
        watch = monitor.watch()
        assert watch is not None
        watches.append(watch)
        return monitor, watch

    yield make
    for watch in watches:
        watch.stop()


def until(condition: Callable[[], Any], wait: Callable[[float], Any] = gevent.sleep) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        wait(0.005)


# -- with its thread


def test_a_greenlet_that_blocks_is_named(records: list[Any], watching: Any) -> None:
    """Once it is over, with how long it took and where it was."""
    _, watch = watching(*QUICK, 3600.0)

    def compute() -> None:
        until(lambda: watch.blocked is not None, wait=block)

    greenlet = gevent.spawn(compute)
    greenlet.name = "reckoner"
    greenlet.get()
    until(lambda: records)
    [record] = records
    assert "the greenlet reckoner" in record.getMessage()
    assert record.levelno == logging.WARNING
    assert record.greenlet == "reckoner"
    assert record.blocked_s >= QUICK[0]
    assert "in compute" in record.stack_info


def test_what_goes_on_is_named_meanwhile(records: list[Any], watching: Any) -> None:
    """A block that may never end is reported while it lasts, and not again when it ends."""
    watching(*QUICK, 0.3)
    until(lambda: records, wait=block)
    gevent.sleep(0.1)
    [record] = records
    assert "still" in record.getMessage()
    assert record.greenlet == "main"


def test_the_thread_ends_with_the_last_watch() -> None:
    """Every watch is undone by itself; after the last one nothing is left behind."""
    monitor = Monitor(3600.0, 0.01)
    first, second = monitor.watch(), monitor.watch()
    assert first is second is not None
    ended = monitor._ended
    first.stop()
    assert not ended
    second.stop()
    assert ended
    second.stop()  # nothing to do
    again = monitor.watch()
    assert again is not None
    assert again is not first
    again.stop()
    assert monitor._ended


def test_hubs_of_several_threads(records: list[Any], watching: Any) -> None:
    """Each thread has its own hub; one that blocks is no other one's fault."""
    monitor, own = watching(*QUICK, 3600.0)

    def elsewhere() -> str:
        other = monitor.watch()
        assert other is not None
        try:
            until(lambda: other.blocked is not None, wait=block)
            gevent.sleep(0.05)
            until(lambda: other.blocked is None)
        finally:
            other.stop()
        return other.blocked is None

    pool = ThreadPool(1)
    try:
        assert pool.spawn(elsewhere).get()
    finally:
        pool.kill()
    assert any("elsewhere" in record.stack_info for record in records)
    assert own.users == 1


def test_in_a_forked_child_it_begins_anew() -> None:
    """The child has no such thread: what it watches then is watched by a new one."""
    monitor = Monitor(*QUICK, 0.3)
    watch = monitor.watch()
    assert watch is not None
    child = os.fork()
    if child == 0:
        status = 1
        try:  # the child must not go on with the tests, whatever happens
            watch.stop()  # of the parent's: nothing to do
            mine = monitor.watch()
            assert mine is not None
            until(lambda: mine.blocked is not None, wait=block)
            mine.stop()
            assert monitor._ended
            status = 0
        finally:
            os._exit(status)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        watch.stop()


def test_switched_off_with_its_warnings() -> None:
    """Nothing runs where nobody would read it."""
    logger = logging.getLogger("keyop.monitor")
    logger.setLevel(logging.ERROR)
    try:
        assert Monitor().watch() is None
    finally:
        logger.setLevel(logging.NOTSET)


def test_no_thread_can_be_started(
    records: list[Any], watching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messenger works all the same; that nobody watches is said."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("keyop.monitor._start_thread", refuse)
    watching()
    assert [each.getMessage() for each in records] == [
        "nobody watches for what blocks the process: can't start new thread"
    ]


# -- looking, by hand: the thread sleeps for an hour


@pytest.fixture
def by_hand(watching: Any) -> tuple[Monitor, Watch]:
    """A monitor whose looks a test takes itself, and its watch; more than a second is too long."""
    return watching(1.0, 3600.0, 10.0)


def test_a_short_block_is_nobodys_business(records: list[Any], by_hand: Any) -> None:
    """Up to the limit, nothing is looked at."""
    monitor, watch = by_hand
    monitor.look(watch.beat + 0.9, 0.25, 0.25)
    assert watch.blocked is None


def test_nobody_is_blamed_for_a_machine_that_stood_still(records: list[Any], by_hand: Any) -> None:
    """Where the monitor could not look either, and nobody used the processor: a new count."""
    monitor, watch = by_hand
    now = watch.beat + 9000.0
    monitor.look(now, 9000.0, 0.1)
    assert watch.blocked is None
    monitor.look(now + 0.9, 0.9, 0.0)
    assert watch.blocked is None
    monitor.look(now + 1.1, 0.2, 0.0)
    assert watch.blocked is not None


def test_a_block_goes_on_while_the_machine_stands_still(records: list[Any], by_hand: Any) -> None:
    """What was found is not taken for over because there was a pause in between."""
    monitor, watch = by_hand
    monitor.look(watch.beat + 2.0, 0.25, 0.0)
    found = watch.blocked
    monitor.look(watch.beat + 9000.0, 8998.0, 0.1)
    assert watch.blocked is found is not None
    assert "still" in records[0].getMessage()


def test_what_keeps_the_interpreter_is_found(records: list[Any], by_hand: Any) -> None:
    """A call that lets no thread run, as of a regular expression, uses the processor."""
    monitor, watch = by_hand
    monitor.look(watch.beat + 9000.0, 9000.0, 8900.0)
    assert watch.blocked is not None
    assert "in test_what_keeps_the_interpreter_is_found" in watch.blocked.stack


def test_the_same_is_named_once_a_minute(records: list[Any], by_hand: Any) -> None:
    """Each block after the first of a place is counted only."""
    monitor, watch = by_hand
    for number in range(3):
        monitor.look(watch.beat + 2.0, 0.25, 0.0)
        assert watch.blocked is not None
        watch.beat += 3.0
        monitor.look(watch.beat, 0.25, 0.0)
        assert watch.blocked is None, number
    assert len(records) == 1
    assert "for 3.0 s" in records[0].getMessage()


def test_a_block_that_ends_with_the_watch_is_named(records: list[Any], by_hand: Any) -> None:
    """Whoever blocks and then closes the messenger does not go unnamed."""
    monitor, watch = by_hand
    monitor.look(watch.beat + 2.0, 0.25, 0.0)
    watch.stop()
    assert len(records) == 1


def test_a_log_handler_that_fails_ends_no_watch(by_hand: Any) -> None:
    """The next look is taken as if nothing had happened."""

    class Failing(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("full")

    monitor, watch = by_hand
    logger, failing = logging.getLogger("keyop.monitor"), Failing(logging.WARNING)
    logger.addHandler(failing)
    try:
        monitor.look(watch.beat + 2.0, 0.25, 0.0)
        watch.beat += 3.0
        monitor.look(watch.beat, 0.25, 0.0)
        monitor.look(watch.beat + 2.0, 0.25, 0.0)
    finally:
        logger.removeHandler(failing)
    assert watch.blocked is not None


class Handling:
    """Handlers of several kinds."""

    def __call__(self, message: object) -> None: ...

    def method(self, message: object) -> None: ...


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        (Handling().method, f"{__name__}.Handling.method"),
        (Handling(), f"{__name__}.Handling"),
        (partial(Handling.method, Handling()), f"{__name__}.Handling.method"),
        (print, "builtins.print"),
        ([].append, "list.append"),
    ],
)
def test_what_a_handler_is_called(handler: Any, name: str) -> None:
    """As the program calls it, whatever kind of callable it is."""
    nothing: Any = None
    delivery = Delivery("c", "s", handler, nothing, nothing, nothing, 1, nothing, nothing)
    assert delivery.handler_name == name
