"""The correlation id and the service name of a greenlet."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar, copy_context

import gevent
import pytest

from keyop.context import (
    correlation_id,
    current_correlation_id,
    current_service_name,
    service_name,
)

BOTH = pytest.mark.parametrize(
    ("manager", "current"),
    [(correlation_id, current_correlation_id), (service_name, current_service_name)],
)
Manager = Callable[[str], AbstractContextManager[None]]


@BOTH
def test_holds_inside_and_ends_outside(manager: Manager, current: ContextVar[str]) -> None:
    """Blocks nest; each gives the value before it back."""
    assert current.get() == ""
    with manager("outer"):
        with manager("inner"):
            assert current.get() == "inner"
        assert current.get() == "outer"
    assert current.get() == ""


@BOTH
def test_an_error_ends_it(manager: Manager, current: ContextVar[str]) -> None:
    """A block that fails gives the value before it back."""
    with pytest.raises(KeyError), manager("x"):
        raise KeyError
    assert current.get() == ""


@BOTH
def test_a_new_greenlet_begins_without(manager: Manager, current: ContextVar[str]) -> None:
    """What is spawned inside a block has its value only if it is given a copy of the context."""
    with manager("x"):
        spawned = gevent.spawn(current.get)
        with_copy = gevent.spawn(copy_context().run, current.get)
    assert spawned.get() == ""
    assert with_copy.get() == "x"


@BOTH
def test_greenlets_do_not_share_it(manager: Manager, current: ContextVar[str]) -> None:
    """A block in one greenlet is not seen by another that runs meanwhile."""

    def inside() -> None:
        with manager("x"):
            gevent.sleep(0)

    spawned = gevent.spawn(inside)
    gevent.sleep(0)
    assert current.get() == ""
    spawned.get()


def test_the_two_are_independent() -> None:
    """A correlation id says nothing about the service."""
    with correlation_id("c"), service_name("s"):
        assert (current_correlation_id.get(), current_service_name.get()) == ("c", "s")
