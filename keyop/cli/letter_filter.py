"""Which dead letters a user means: by who failed, how, when, and what the message holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, NamedTuple

import click

from keyop.cli.moments import time
from keyop.cli.progress import Progress
from keyop.cli.where import where_option
from keyop.deadletter_view import DeadLetter, Record, read_letter
from keyop.deadletters import MIN_PREFIX_CHARACTERS, DeadLetters
from keyop.decode import decode
from keyop.errors import CorruptRecordError
from keyop.look.conditions import Condition, all_hold
from keyop.timestamps import parse


class LetterFilter(NamedTuple):
    """Conditions that must all hold; what is None or empty is no condition."""

    subscriber: str | None = None
    error: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    where: tuple[Condition, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any condition."""
        return self != LetterFilter()

    def letters(self, letters: DeadLetters) -> Iterator[DeadLetter]:
        """Yield those that are meant, oldest first.

        Raises:
            StorageError: the channel cannot be read.
        """
        segments = letters.directory.segments(letters.log_channel)
        begin, end = (segments[0].start, segments[-1].end) if segments else (0, 0)
        with Progress("looking") as progress:
            for record in letters.waiting():
                progress(record.offset + len(record.line) + 1 - begin, end - begin)
                letter = read_letter(record, letters.channel)
                if self._fits(letter) and (not self.where or self._original_fits(record)):
                    yield letter

    def _fits(self, letter: DeadLetter) -> bool:
        return (
            self.subscriber in (None, letter.subscriber)
            and (self.error or "").lower() in letter.error.lower()
            and self._fits_time(letter.failed_at)
        )

    def _fits_time(self, failed_at: str) -> bool:
        if self.since is None and self.until is None:
            return True
        try:
            moment = parse(failed_at)
        except ValueError:  # nobody knows when
            return False
        return (self.since is None or moment >= self.since) and (
            self.until is None or moment < self.until
        )

    def _original_fits(self, record: Record) -> bool:
        try:
            original = decode(record.line)["payload"]["original"]
        except (CorruptRecordError, KeyError, TypeError):  # somebody else's idea of a dead letter
            return False
        return isinstance(original, dict) and all_hold(self.where, original)


class WholeIds(DeadLetters):
    """Dead letters of which many are named by their whole ids, which need no search each."""

    def resolve(self, wanted: Sequence[str]) -> list[str]:
        """Return the whole ids of some that may be abbreviated.

        Raises:
            StorageError: one is unknown, is done with, is too short or fits several.
        """
        whole = {record.id for record in self.waiting()}
        if whole.issuperset(wanted) and min(map(len, wanted), default=0) >= MIN_PREFIX_CHARACTERS:
            return list(wanted)
        return super().resolve(wanted)


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a filter; the command is given ``chosen``."""

    @click.option("--subscriber", metavar="ID", help="Only those that this one gave up on.")
    @click.option("--error", metavar="TEXT", help="Only those whose error holds this text.")
    @click.option(
        "--since", metavar="TIME", type=time, help="Only those that failed then or later: -2h."
    )
    @click.option("--until", metavar="TIME", type=time, help="Only those that failed before then.")
    @where_option
    @wraps(function)
    def wrapper(
        *args: Any,
        subscriber: str | None,
        error: str | None,
        since: datetime | None,
        until: datetime | None,
        where: tuple[Condition, ...],
        **kwargs: Any,
    ) -> Any:
        chosen = LetterFilter(subscriber, error, since, until, where)
        return function(*args, chosen=chosen, **kwargs)

    return wrapper
