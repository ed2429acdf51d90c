"""One run of a subscription: how many messages it takes, and how it ends."""

from __future__ import annotations

import errno
import os
import signal
from datetime import datetime, timezone
from typing import Any

import click
import gevent
import pytest

from keyop.cli.run import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, Run
from keyop.envelope import Message
from keyop.errors import RetryLater

MESSAGE = Message("id", "orders", "here", "t", 1, datetime.now(timezone.utc))


class Work:
    """Does what it is told; counts how often."""

    patience_s = 1.0

    def __init__(self, *outcomes: BaseException | None) -> None:
        self.broken = False
        self.done = 0
        self._outcomes = iter(outcomes)

    def __call__(self, message: Message) -> None:
        outcome = next(self._outcomes, None)
        if outcome is not None:
            raise outcome
        self.done += 1


class FakeSubscription:
    """A subscription that only remembers that it was told to stop."""

    subscriber_id = "a"
    channel = "orders"

    def __init__(self, running: bool = True) -> None:
        self.running = running
        self.told = 0

    def request_stop(self) -> None:
        self.told += 1


def run_with(work: Work, count: int | None = None, running: bool = True) -> Any:
    run = Run(work, count)
    run.subscription = FakeSubscription(running)  # type: ignore[assignment]
    return run


def test_so_many_and_no_more() -> None:
    """After the last one wanted the run ends well; whatever comes stays for the next run."""
    work = Work()
    run = run_with(work, 2)
    for _ in range(2):
        run.handle(MESSAGE)
    with pytest.raises(RetryLater):
        run.handle(MESSAGE)
    assert (work.done, run.wait(), run.subscription.told) == (2, 0, 1)


def test_several_at_once_are_not_too_many() -> None:
    """With handlers side by side, no more are begun than are wanted."""
    run = run_with(Work(), 1)
    refused: list[bool] = []

    def slow(_: Message) -> None:
        with pytest.raises(RetryLater):
            run.handle(MESSAGE)
        refused.append(True)

    run.work = slow
    run.handle(MESSAGE)
    assert refused == [True]


def test_a_failure_does_not_count() -> None:
    """A message whose work failed is not one of those wanted, until it succeeds."""
    work = Work(ValueError("no"))
    run = run_with(work, 1)
    with pytest.raises(ValueError, match="no"):
        run.handle(MESSAGE)
    run.handle(MESSAGE)
    assert (work.done, run.wait()) == (1, 0)


def test_a_broken_pipe_ends_it_without_an_error() -> None:
    """The message stays, and the exit status is as if by SIGPIPE."""
    run = run_with(Work(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    with pytest.raises(RetryLater):
        run.handle(MESSAGE)
    assert run.wait() == EXIT_BROKEN_PIPE


def test_a_full_disk_ends_it_with_the_error() -> None:
    """The message stays, and what went wrong is raised."""
    run = run_with(Work(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(RetryLater):
        run.handle(MESSAGE)
    with pytest.raises(OSError, match="No space left"):
        run.wait()


def test_a_reader_that_goes_away_while_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for now and then, so that an idle run does not stay for ever."""
    monkeypatch.setattr("keyop.cli.run._LOOK_S", 0.001)
    work = Work()
    run = run_with(work)
    work.broken = True
    assert run.wait() == EXIT_BROKEN_PIPE


def test_a_subscription_that_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was unsubscribed elsewhere, which is said."""
    monkeypatch.setattr("keyop.cli.run._LOOK_S", 0.001)
    with pytest.raises(click.ClickException, match="a of orders was unsubscribed"):
        run_with(Work(), running=False).wait()


def test_the_first_to_stop_it_decides() -> None:
    """A later reason changes nothing, and without a subscription there is nobody to tell."""
    run = Run(Work())
    run.stop(7)
    run.stop(8)
    run.subscription = FakeSubscription()  # type: ignore[assignment]
    assert run.wait() == 7


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGTERM, 0)]
)
def test_signals(number: int, status: int) -> None:
    """The first one stops the run; a second one would do what it does by default."""
    run = run_with(Work())
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with run.stopped_by_signals():
        os.kill(os.getpid(), number)
        assert run.wait() == status
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    gevent.sleep(0)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
