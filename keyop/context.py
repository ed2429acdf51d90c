"""The correlation id and the service name of the current greenlet.

Kept in context variables, of which every greenlet has its own: one that is spawned inside a block
begins without. ``gevent.spawn(contextvars.copy_context().run, function)`` takes them along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

current_correlation_id: ContextVar[str] = ContextVar("keyop_correlation_id", default="")
current_service_name: ContextVar[str] = ContextVar("keyop_service_name", default="")


@contextmanager
def correlation_id(value: str) -> Iterator[None]:
    """Stamp every publish inside the ``with`` block with this correlation id.

    An argument of ``publish`` wins over it. Inside a handler the id of the message being handled
    is current already.
    """
    token = current_correlation_id.set(value)
    try:
        yield
    finally:
        current_correlation_id.reset(token)


@contextmanager
def service_name(value: str) -> Iterator[None]:
    """Stamp every publish inside the ``with`` block with this service name.

    An argument of ``publish`` wins over it.
    """
    token = current_service_name.set(value)
    try:
        yield
    finally:
        current_service_name.reset(token)
