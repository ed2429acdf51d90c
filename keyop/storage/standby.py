"""A role that one of several processes has, and another takes over when that one has ended."""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger

from keyop.backoff import worth_telling
from keyop.errors import KeyopError
from keyop.storage.locks import FileLock

_POLL_S = 0.25


def stand_by(
    lock: FileLock,
    take_over: Callable[[], None],
    wait: Callable[[float], object],
    logger: Logger,
    what: str,
) -> None:
    """Take over once the lock is free; what fails is told, and tried again.

    Args:
        take_over: called with the lock held. If it fails, it has given the lock back.
        wait: waits so many seconds; true if there is nothing to wait for any more.
        what: ``taking over``, and of what, for the log.
    """
    failures = 0
    while not wait(_POLL_S):
        try:
            if lock.try_acquire():
                take_over()
                return
        # Nothing may end the standby unseen.
        except Exception as error:
            failures += 1
            if worth_telling(failures):
                logger.error(
                    "%s failed, and is tried again: %s",
                    what,
                    str(error),  # whoever keeps the record does not keep a socket
                    exc_info=not isinstance(error, (KeyopError, OSError)),
                )
