"""``keyop dead-letter``: the messages that subscribers gave up on."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click
import orjson

from keyop.cli.common import (
    ListByDefault,
    common_options,
    config_options,
    json_option,
    look_at,
    yes_option,
)
from keyop.cli.letters import print_details, print_letters
from keyop.cli.output import complain, confirm, json_line, plural, print_json, print_line
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
@click.argument("channel", required=False)
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
@json_option
@config_options
def list_(channel: str | None, offset: int, limit: int, as_json: bool, config: Config) -> None:
    """List the dead letters of CHANNEL, or of all channels, oldest first.

    Those that were requeued or purged are left out.

    \b
    Examples:
      keyop dead-letter
      keyop dead-letter list orders --limit 20 --json
    """
    directory = look_at(config)
    names = channels_with_dead_letters(directory) if channel is None else [channel]
    shown: list[DeadLetter] = []
    total = unreadable = 0
    for name in names:
        letters = DeadLetters(directory, name, config.storage.max_record_bytes)
        page = letters.page(max(0, offset - total), limit - len(shown))
        shown += page.letters
        total += page.total
        unreadable += page.unreadable
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
@click.argument("channel")
@click.argument("letter_id", metavar="ID")
@json_option
@config_options
def show(channel: str, letter_id: str, as_json: bool, config: Config) -> None:
    """Show dead letter ID of CHANNEL: why it failed, and the message.

    With --json the message is printed as its record stands in the log. What was no message is
    printed as base64, in "raw".

    \b
    Examples:
      keyop dead-letter show orders 3f2a
      keyop dead-letter show orders 3f2a --json | jq .original.payload
    """
    letters = DeadLetters(look_at(config), channel, config.storage.max_record_bytes)
    details = letters.show(letter_id)
    if as_json:
        original = details.original_json
        shown = {
            **asdict(details.letter),
            "original": None if original is None else orjson.Fragment(original),
            "raw": details.raw_base64,
        }
        click.echo(json_line(shown), nl=False)
        return
    print_details(details)


def wanted_ids(ids: tuple[str, ...], every: bool) -> tuple[str, ...] | None:
    """Return the ids that a command was given, or None for all.

    Raises:
        click.UsageError: neither was said, or both.
    """
    if bool(ids) == every:
        raise click.UsageError("give the IDs of dead letters, or --all")
    return None if every else ids


@command.command("requeue")
@click.argument("channel")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of the channel.")
@click.option("--to-channel", is_flag=True, help="To every subscriber, not the one that failed.")
@config_options
def requeue(
    channel: str, ids: tuple[str, ...], every: bool, to_channel: bool, config: Config
) -> int:
    """Send the messages of dead letters again.

    Each goes to the subscriber that gave up on it, at the end of CHANNEL; the others pass over
    it. Where the dead letter does not say who gave up, as in those of v0.11.0, it goes to
    everybody. A message keeps its id, and its payload to the byte. The dead letter is then left
    out of the list; if keyop is killed in the middle, a message may be sent twice.

    \b
    Examples:
      keyop dead-letter requeue orders 3f2a 77bc
      keyop dead-letter requeue orders --all
      keyop dead-letter requeue orders 3f2a --to-channel
    """
    wanted = wanted_ids(ids, every)
    letters = DeadLetters(look_at(config), channel, config.storage.max_record_bytes)
    done = Requeue(letters, config.storage.segment_bytes).requeue(wanted, to_channel)
    for refused in done.refused:
        complain(f"{refused.id} was not requeued: {refused.reason}")
    to = Counter(sent.subscriber for sent in done.sent)
    for subscriber, count in sorted(to.items(), key=lambda item: item[0] or ""):
        print_line(
            f"requeued {plural(count, 'message')} of {letters.channel} to "
            f"{'every subscriber' if subscriber is None else subscriber}"
        )
    if not done.sent and not done.refused:
        complain(f"no dead letters of {letters.channel}")
    return 1 if done.refused else 0


@command.command("purge")
@click.argument("channel")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of the channel.")
@yes_option
@config_options
def purge(channel: str, ids: tuple[str, ...], every: bool, yes: bool, config: Config) -> None:
    """Put dead letters away without sending their messages again.

    They are left out of the list from then on. Their bytes stay on the disk until the segment is
    deleted, or "keyop channels remove CHANNEL.dead-letter" removes them all.

    \b
    Examples:
      keyop dead-letter purge orders 3f2a
      keyop dead-letter purge orders --all --yes
    """
    wanted = wanted_ids(ids, every)
    letters = DeadLetters(look_at(config), channel, config.storage.max_record_bytes)
    chosen = None if wanted is None else letters.resolve(wanted)
    count = letters.count() if chosen is None else len(set(chosen))
    if not count:
        complain(f"no dead letters of {letters.channel}")
        return
    confirm(f"put away {plural(count, 'dead letter')} of {letters.channel}?", yes)
    purged = Requeue(letters, config.storage.segment_bytes).purge(chosen)
    print_line(f"purged {plural(purged, 'dead letter')} of {letters.channel}")
