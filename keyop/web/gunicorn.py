"""Hooks for gunicorn's gevent workers.

They are imported in gunicorn's configuration file:

    from keyop.web.gunicorn import post_fork, worker_exit

A program works without them. With them, a worker that is told to end hands its subscriptions to
other workers and ends its event streams at once, while it still answers the requests it has; and
it closes its messengers instead of just ending.
"""

from __future__ import annotations

import os
import time
from typing import Any

import gevent

from keyop.messenger import CLOSE_TIMEOUT_S, running_messengers

# How often it is looked whether the worker was told to end: gunicorn has no hook for SIGTERM.
_LOOK_EVERY_S = 0.1
# Of the time after which gunicorn kills a worker, so much is left for it to end.
_RESERVE_S = 1.0
_MIN_CLOSE_S = 0.5

_told_at: float | None = None


def post_fork(server: Any, worker: Any) -> None:
    """Watch the worker, and stop delivering as soon as it is told to end.

    Requests in flight go on, and may publish.
    """
    if not _has_gevent(worker):
        server.log.warning(
            "keyop: %s never runs keyop's greenlets, so nothing is delivered; use -k gevent",
            type(worker).__name__,
        )
        return
    watcher = gevent.spawn(_watch, worker)
    watcher.name = "keyop-gunicorn-watcher"


def _has_gevent(worker: Any) -> bool:
    return any(each.__module__ == "gunicorn.workers.ggevent" for each in type(worker).__mro__)


def _watch(worker: Any) -> None:
    global _told_at
    while worker.alive:
        gevent.sleep(_LOOK_EVERY_S)
    _told_at = time.monotonic()
    for messenger in running_messengers():
        messenger.stop_delivering()


def worker_exit(server: Any, worker: Any) -> None:
    """Close the messengers of a worker that ends, in the time that gunicorn leaves for it.

    A handler that takes longer is killed, and its message comes again.
    """
    if os.getpid() != worker.pid:
        return  # the master tells of a worker that has gone
    deadline = time.monotonic() + _time_to_close(worker)
    for messenger in running_messengers():
        messenger.close(timeout=max(_MIN_CLOSE_S, deadline - time.monotonic()))


def _time_to_close(worker: Any) -> float:
    """Return the seconds until gunicorn's patience with this worker ends, at most the usual."""
    since = 0.0 if _told_at is None else time.monotonic() - _told_at
    left = worker.cfg.graceful_timeout - since
    if worker.cfg.timeout:  # from now on nothing tells gunicorn that the worker lives
        left = min(left, worker.cfg.timeout)
    return float(min(CLOSE_TIMEOUT_S, left - _RESERVE_S))
