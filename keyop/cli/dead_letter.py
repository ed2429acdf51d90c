"""``keyop dead-letter``: the messages that subscribers gave up on."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict

import click

from keyop.cli import complete
from keyop.cli.common import (
    ListByDefault,
    common_options,
    config_options,
    json_option,
    look_at,
    yes_option,
)
from keyop.cli.letter_filter import LetterFilter, WholeIds, filter_options
from keyop.cli.letters import print_details, print_letters
from keyop.cli.output import complain, confirm, json_line_with, plural, print_json, print_line
from keyop.config import Config
from keyop.deadletter_view import DeadLetter
from keyop.deadletters import DeadLetters, channels_with_dead_letters
from keyop.requeue import Requeue

_PAGE = 100


@click.group("dead-letter", cls=ListByDefault)
@common_options
def command() -> None:
    """Look at messages that subscribers gave up on; send them again or put them away.

    CHANNEL is the channel that a message failed in, with or without ".dead-letter" behind it. An
    ID is a dead letter's, or the first 4 characters of it or more, if no other begins so.

    \b
    Examples:
      keyop dead-letter list orders
      keyop dead-letter show orders 3f2a
      keyop dead-letter requeue orders 3f2a
      keyop dead-letter purge orders --all
    """


@command.command("list")
@click.argument("channel", required=False, shell_complete=complete.failed_channels)
@click.option(
    "--offset", metavar="N", type=click.IntRange(0), default=0, help="Leave out the first N."
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    default=_PAGE,
    show_default=True,
    help="Show at most N.",
)
@filter_options
@json_option
@config_options
def list_(
    channel: str | None,
    offset: int,
    limit: int,
    chosen: LetterFilter,
    as_json: bool,
    config: Config,
) -> None:
    """List the dead letters of CHANNEL, or of all channels, oldest first.

    Those that were requeued or purged are left out. With conditions only those are listed, and
    counted, for which all hold; --where looks into the message that failed, as in "keyop tail".

    \b
    Exit status:
      0    listed, none included
      1    there is no such channel, or it cannot be read
      2    called wrongly

    \b
    Examples:
      keyop dead-letter
      keyop dead-letter list orders --limit 20 --json
      keyop dead-letter list orders --subscriber billing --error timeout --since -2h
    """
    directory = look_at(config)
    names = channels_with_dead_letters(directory) if channel is None else [channel]
    shown: list[DeadLetter] = []
    total = unreadable = 0
    for name in names:
        letters = DeadLetters(directory, name, config.storage.max_record_bytes)
        for letter in chosen.letters(letters):
            if total >= offset and len(shown) < limit:
                shown.append(letter)
            total += 1
        unreadable += letters.unreadable
    if as_json:
        print_json(
            {
                "total": total,
                "unreadable": unreadable,
                "letters": [asdict(letter) for letter in shown],
            }
        )
        return
    if shown:
        print_letters(shown)
    where = "" if channel is None else f" of {channel}"
    if total > len(shown):
        complain(f"{len(shown):,} of {total:,}{where} shown; see --offset and --limit")
    elif not total:
        complain(f"no dead letters{where}")
    if unreadable:
        complain(f"{plural(unreadable, 'line')} cannot be read, which 'keyop check' explains")


@command.command("show")
@click.argument("channel", shell_complete=complete.failed_channels)
@click.argument("letter_id", metavar="ID")
@json_option
@config_options
def show(channel: str, letter_id: str, as_json: bool, config: Config) -> None:
    """Show dead letter ID of CHANNEL: why it failed, and the message.

    With --json the message is printed as its record stands in the log. What was no message is
    printed as base64, in "raw".

    \b
    Exit status:
      0    shown
      1    there is no such dead letter, or several begin so
      2    called wrongly

    \b
    Examples:
      keyop dead-letter show orders 3f2a
      keyop dead-letter show orders 3f2a --json | jq .original.payload
    """
    letters = DeadLetters(look_at(config), channel, config.storage.max_record_bytes)
    details = letters.show(letter_id)
    if as_json:
        shown = {**asdict(details.letter), "raw": details.raw_base64}
        del shown["original"]
        original = details.original_json or b"null"
        click.echo(json_line_with(shown, "original", original), nl=False)
        return
    print_details(details)


def check_choice(ids: tuple[str, ...], every: bool, chosen: LetterFilter) -> None:
    """Check that it was said which dead letters are meant.

    Raises:
        click.UsageError: it was not, or twice.
    """
    if bool(ids) == (every or bool(chosen)):
        raise click.UsageError("give the IDs of dead letters, or --all, or conditions")


def wanted_ids(letters: DeadLetters, ids: tuple[str, ...], chosen: LetterFilter) -> list[str]:
    """Return the whole ids of the dead letters that a command was given.

    Raises:
        StorageError: one is unknown or ambiguous, or the channel cannot be read.
    """
    found = letters.resolve(ids) if ids else [each.id for each in chosen.letters(letters)]
    return list(dict.fromkeys(found))


@command.command("requeue")
@click.argument("channel", shell_complete=complete.failed_channels)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of the channel.")
@filter_options
@click.option("--to-channel", is_flag=True, help="To every subscriber, not the one that failed.")
@yes_option
@config_options
def requeue(
    channel: str,
    ids: tuple[str, ...],
    every: bool,
    chosen: LetterFilter,
    to_channel: bool,
    yes: bool,
    config: Config,
) -> int:
    """Send the messages of dead letters again: those with an ID, those that fit, or all.

    Each goes to the subscriber that gave up on it, at the end of CHANNEL; the others pass over
    it. Where the dead letter does not say who gave up, as in those of v0.11.0, it goes to
    everybody. A message keeps its id, and its payload to the byte. The dead letter is then left
    out of the list; if keyop is killed in the middle, a message may be sent twice.

    With --all or conditions it says how many there are and asks, if stdin is a terminal: a script
    is not asked, because nothing is lost. Exit status: 0 sent, or nothing to send; 1 some could
    not be sent and stay, each named with the reason, or the answer was no; 2 called wrongly.

    \b
    Examples:
      keyop dead-letter requeue orders 3f2a 77bc
      keyop dead-letter requeue orders --all --yes
      keyop dead-letter requeue orders --subscriber billing --error timeout
      keyop dead-letter requeue orders 3f2a --to-channel
    """
    check_choice(ids, every, chosen)
    letters = WholeIds(look_at(config), channel, config.storage.max_record_bytes)
    wanted = wanted_ids(letters, ids, chosen)
    if not wanted:
        complain(f"no dead letters of {letters.channel}{' fit' if chosen else ''}")
        return 0
    if not ids and sys.stdin is not None and sys.stdin.isatty():
        to_whom = "every subscriber" if to_channel else "the subscribers that gave up on them"
        what = plural(len(wanted), "message")
        confirm(f"send {what} of {letters.channel} again to {to_whom}?", yes)
    done = Requeue(letters, config.storage.segment_bytes).requeue(wanted, to_channel)
    for refused in done.refused:
        complain(f"{refused.id} was not requeued: {refused.reason}")
    to = Counter(sent.subscriber for sent in done.sent)
    for subscriber, count in sorted(to.items(), key=lambda item: item[0] or ""):
        print_line(
            f"requeued {plural(count, 'message')} of {letters.channel} to "
            f"{'every subscriber' if subscriber is None else subscriber}"
        )
    return 1 if done.refused else 0


@command.command("purge")
@click.argument("channel", shell_complete=complete.failed_channels)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of the channel.")
@filter_options
@yes_option
@config_options
def purge(
    channel: str,
    ids: tuple[str, ...],
    every: bool,
    chosen: LetterFilter,
    yes: bool,
    config: Config,
) -> None:
    """Put dead letters away without sending their messages again.

    They are left out of the list from then on. Their bytes stay on the disk until the segment is
    deleted, or "keyop channels remove CHANNEL.dead-letter" removes them all. It asks first.

    \b
    Exit status:
      0    put away, or nothing to put away
      1    an ID is unknown, something cannot be written, or the answer was no
      2    called wrongly

    \b
    Examples:
      keyop dead-letter purge orders 3f2a
      keyop dead-letter purge orders --all --yes
      keyop dead-letter purge orders --until -30d
    """
    check_choice(ids, every, chosen)
    letters = WholeIds(look_at(config), channel, config.storage.max_record_bytes)
    wanted = wanted_ids(letters, ids, chosen)
    if not wanted:
        complain(f"no dead letters of {letters.channel}{' fit' if chosen else ''}")
        return
    confirm(f"put away {plural(len(wanted), 'dead letter')} of {letters.channel}?", yes)
    purged = Requeue(letters, config.storage.segment_bytes).purge(wanted)
    print_line(f"purged {plural(purged, 'dead letter')} of {letters.channel}")
