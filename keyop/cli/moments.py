"""What a user types for a position in a channel."""

from __future__ import annotations

from datetime import datetime

import click

from keyop.storage.position import Position


def moment(text: str) -> Position:
    """Return the position meant by ``earliest``, ``latest`` or a time; one without a zone is local.

    Raises:
        click.BadParameter: it is none of them.
    """
    if text in ("earliest", "latest"):
        return text
    # Python 3.10 does not know Z.
    iso = text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text
    try:
        return datetime.fromisoformat(iso).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is not 'earliest', 'latest' or a time such as 2026-01-31T15:00 (local) or "
            "2026-01-31T14:00:00Z"
        ) from None
