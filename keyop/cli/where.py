"""``--where key=value``: which records a user means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from keyop.look.conditions import Condition, parse_condition

F = TypeVar("F", bound=Callable[..., Any])


def where_option(function: F) -> F:
    """Add ``--where``; the command is given a tuple of conditions."""
    return click.option(
        "--where",
        metavar="KEY=VALUE",
        type=_condition,
        multiple=True,
        help="Only records with that field, of the envelope or the payload; repeatable.",
    )(function)


def _condition(text: str) -> Condition:
    try:
        return parse_condition(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
