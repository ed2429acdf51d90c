"""What must not survive a fork, and what no other thread may use.

Locks belong to an open file that parent and child share: a child that keeps the descriptor keeps
the lock held after its parent has died, and one that unlocks it takes it from its parent. So in a
forked child, every object entered here drops what it holds, before anything else runs.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from gevent.monkey import get_original

# Under monkey patching, threading's own would tell greenlets apart, not threads.
get_ident = get_original("_thread", "get_ident")


class DropsInChild(Protocol):
    """Something that holds what a forked child must not keep."""

    def drop_in_child(self) -> None:
        """Close descriptors without unlocking, flushing or waiting."""


_held: weakref.WeakSet[DropsInChild] = weakref.WeakSet()


def drop_in_children(holder: DropsInChild) -> None:
    """Have ``holder.drop_in_child()`` called in every child that is forked from now on."""
    _held.add(holder)


def keep_in_children(holder: DropsInChild) -> None:
    """Undo :func:`drop_in_children`, once there is nothing left to drop."""
    _held.discard(holder)


def _in_child() -> None:
    failures = []
    for holder in list(_held):
        try:
            holder.drop_in_child()
        except OSError as error:  # the others must be dropped all the same
            failures.append(error)
    _held.clear()
    if failures:
        raise failures[0]  # reported by the interpreter; the fork goes on


os.register_at_fork(after_in_child=_in_child)
