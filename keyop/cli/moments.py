"""What a user types for a position in a channel, as option types: see :mod:`keyop.look.moments`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

import click

from keyop.look import moments
from keyop.storage.position import Position

T = TypeVar("T")


def moment(text: str) -> Position:
    """Return the position meant by ``earliest``, ``latest`` or a time."""
    return _checked(moments.moment, text)


def place(text: str) -> Position:
    """Return the position meant by what :func:`moment` takes, or by an offset."""
    return _checked(moments.place, text)


def time(text: str) -> datetime:
    """Return the moment that a text means; one without a zone is local."""
    return _checked(moments.time, text)


def _checked(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
