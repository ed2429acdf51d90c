"""Ctrl-C, taken where the program waits and so leaves nothing half done.

Python raises KeyboardInterrupt wherever it happens to be: behind the taking of a lock and before
the ``try`` that gives it back, or in a callback of the hub, for which others wait in vain then.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import gevent

# A program that computes for so long without waiting is interrupted where it is.
_PATIENCE_S = 0.25


@contextmanager
def interrupted_where_it_waits() -> Iterator[None]:
    """Have the first Ctrl-C raise KeyboardInterrupt in the calling greenlet, where that waits.

    If it does not wait soon, it is raised wherever the program is. The second one ends the process,
    as the first one does after this. Where Ctrl-C is ignored, it stays so. For the main greenlet of
    a program, once.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    interrupt = _Interrupt()
    try:
        yield
    finally:
        interrupt.end()


class _Interrupt:
    """The signals and the pipe."""

    def __init__(self) -> None:
        self._main: Any = gevent.getcurrent()
        self._raised = False
        hub = gevent.get_hub()
        self._hub_code = type(hub).run.__code__
        # What raises it in the hub, in the end, is no error that the hub is to report besides.
        hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)
        # A handler alone would not wake a hub that is about to wait.
        self._pipe, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        loop: Any = hub.loop  # gevent's stubs know less of it than its documentation
        self._watcher = loop.io(self._pipe, 1, ref=False, priority=loop.MAXPRI)
        self._watcher.start(self._woken)
        signal.signal(signal.SIGALRM, self._too_long)
        signal.signal(signal.SIGINT, self._interrupted)

    def _interrupted(self, _number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if frame is not None and frame.f_code is self._hub_code:
            # The hub is between two callbacks, so the main greenlet waits. The next one may be
            # what it waits for: the end of a pipe whose writer was interrupted as well.
            self._throw()
        else:
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)

    def _woken(self) -> None:
        """The hub runs, so the main greenlet waits."""
        if signal.SIGINT in os.read(self._pipe, 4096) and not self._raised:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._throw()

    def _throw(self) -> None:
        self._raised = True
        self._main.throw(KeyboardInterrupt)

    def _too_long(self, _number: int, _frame: object) -> None:
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def end(self) -> None:
        """What comes too late for the program must not end it while it exits."""
        self._raised = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
