"""One run of ``keyop subscribe``: counts, and knows when to stop and with which exit status."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

import click
import gevent
from gevent.event import Event

from keyop.cli.output import complain
from keyop.cli.remote import Remote
from keyop.envelope import Message
from keyop.errors import RetryLater
from keyop.federation.ephemeral import EphemeralMessenger
from keyop.subscriber import Subscription

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
# How often it is looked whether stdout still has a reader and the subscription still runs.
_LOOK_S = 0.5
_POLL_S = 0.01


class Work(Protocol):
    """What is done with a message. ``patience_s`` is how long a stop waits for it to end."""

    patience_s: float

    @property
    def broken(self) -> bool:
        """Whether nothing more can be done, for good."""

    def __call__(self, message: Message) -> None:
        """Do it, or raise."""


class Run:
    """Hands messages to ``work`` until ``count`` of them are done, or something says stop."""

    def __init__(self, work: Work, count: int | None = None) -> None:
        self.work = work
        self.subscription: Subscription | None = None
        self._left = count
        self._in_work = 0
        self._stop = Event()
        self._status = 0
        self._error: Exception | None = None

    def stop(self, status: int = 0) -> None:
        """Take no further message; the first to say so decides on the exit status."""
        if not self._stop.is_set():
            self._status = status
            self._stop.set()
        if self.subscription is not None:
            self.subscription.request_stop()

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """For the time of a block, stop on the first Ctrl-C or SIGTERM; the second one kills."""
        numbers = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: 0}
        before = {number: signal.getsignal(number) for number in numbers}

        def stop(status: int) -> None:
            for watcher in watchers:
                watcher.cancel()
            for number in numbers:
                signal.signal(number, signal.SIG_DFL)
            self.stop(status)

        watchers = [gevent.signal_handler(each, stop, status) for each, status in numbers.items()]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle(self, message: Message) -> None:
        """Handle one message, unless it is one too many or there is no reader any more.

        Raises:
            RetryLater: it was not handled, and stays.
            Exception: the work failed.
        """
        if self._stop.is_set() or (self._left is not None and self._in_work >= self._left):
            raise RetryLater
        self._in_work += 1
        try:
            self.work(message)
        except OSError as error:
            # stdout takes nothing more, or the command cannot be started. The message is not at
            # fault, so it must neither count as failed nor be lost.
            if not isinstance(error, BrokenPipeError):
                self._error = error
            self.stop(EXIT_BROKEN_PIPE)
            raise RetryLater from None
        finally:
            self._in_work -= 1
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self.stop()

    def wait(self) -> int:
        """Wait until it is time to stop; return the exit status.

        Raises:
            click.ClickException: the subscription ended by itself.
            OSError: stdout cannot be written to, or a command not be started.
        """
        assert self.subscription is not None
        while not self._stop.wait(_LOOK_S):
            if not self.subscription.running:
                raise click.ClickException(
                    f"{self.subscription.subscriber_id} of {self.subscription.channel} was "
                    "unsubscribed by another process"
                )
            if self.work.broken:
                self.stop(EXIT_BROKEN_PIPE)
        if self._error is not None:
            raise self._error
        return self._status


class LiveRun(Run):
    """As a run, of a hub's messages as they come: nothing is kept, so nothing comes again."""

    def __init__(self, work: Work, count: int | None = None) -> None:
        super().__init__(work, count)
        self._messenger: EphemeralMessenger | None = None

    def run(self, remote: Remote, channel: str) -> int:
        """Connect, and hand messages to the work until it is time to stop.

        Raises:
            KeyopError: the hub refuses this instance.
            OSError: stdout cannot be written to, or a command not be started.
        """
        messenger = self._messenger = remote.messenger(auto_reconnect=True)
        with self.stopped_by_signals():
            try:
                messenger.subscribe(channel, self.handle_live)
                if self._connect(messenger):
                    complain(f"following {channel} at {remote.address}")
                return self.wait()
            finally:
                self._let_end()
                messenger.close()

    def _connect(self, messenger: EphemeralMessenger) -> bool:
        """Connect, however long that takes; tell whether it did before it was time to stop."""
        while not self._stop.is_set():
            try:
                messenger.connect(_LOOK_S)
                return True
            except TimeoutError:  # it is tried on
                if self.work.broken:
                    self.stop(EXIT_BROKEN_PIPE)
        return False

    def _let_end(self) -> None:
        """Wait for the work that is under way, as long as its patience lasts."""
        deadline = monotonic() + self.work.patience_s
        while self._in_work and monotonic() < deadline:
            gevent.sleep(_POLL_S)

    def handle_live(self, message: Message) -> None:
        """Handle one message, unless it is one too many."""
        try:
            self.handle(message)
        except RetryLater:
            pass

    def wait(self) -> int:
        """Wait until it is time to stop; return the exit status.

        Raises:
            KeyopError: the hub refuses this instance.
            OSError: stdout cannot be written to, or a command not be started.
        """
        assert self._messenger is not None
        while not self._stop.wait(_LOOK_S):
            self._messenger.check()
            if self.work.broken:
                self.stop(EXIT_BROKEN_PIPE)
        if self._error is not None:
            raise self._error
        return self._status
