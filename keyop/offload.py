"""Blocking system calls in threads of their own, so that the gevent hub never waits for a disk.

gevent's own pool, which also resolves host names, is left to the application.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool


class Job:
    """One call on its way through a thread. When it is done, ``value`` or ``error`` is set."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: Exception | None = None
        self._result: AsyncResult[None] | None = None

    @property
    def done(self) -> bool:
        """Whether the call has returned."""
        return self._result is not None and self._result.ready()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the call has returned; return whether it has. Others run meanwhile."""
        assert self._result is not None
        self._result.wait(timeout_s)
        return self._result.ready()

    def then(self, callback: Callable[[Job], None]) -> None:
        """Have ``callback(job)`` called in the gevent hub once the call has returned.

        It runs also when whoever waited was killed, and must not block.
        """
        assert self._result is not None
        self._result.rawlink(lambda _: callback(self))


class Offload:
    """A few threads for calls that may take long. Threads start when they are first needed."""

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._pool: ThreadPool | None = None

    def submit(self, function: Callable[..., object], *args: Any) -> Job:
        """Start ``function(*args)`` in a thread; wait for a free one if all are busy."""
        if self._pool is None:
            self._pool = ThreadPool(self._max_threads)
        job = Job()

        def run() -> None:
            # gevent would print an exception that left the thread; whoever waits gets it here.
            try:
                job.value = function(*args)
            except Exception as error:
                job.error = error

        job._result = self._pool.spawn(run)
        return job

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(*args)``, called in a thread, others running meanwhile.

        Raises:
            Exception: as the function did.
        """
        job = self.submit(function, *args)
        job.wait()
        if job.error is not None:
            raise job.error
        return job.value

    def close(self, timeout_s: float) -> bool:
        """End the threads; return whether all ended. One that hangs in a call is left behind."""
        pool, self._pool = self._pool, None
        if pool is None:
            return True
        closer = gevent.spawn(pool.kill)
        closer.join(max(timeout_s, 0.001))
        if closer.dead:
            return True
        closer.kill(block=False)
        return False
