"""``keyop stats``: how much there is, how far it has been read, and what failed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import click

from keyop.channel_view import ChannelView, SubscriberView
from keyop.cli.common import config_options, json_option, look_at
from keyop.cli.output import human_bytes, plural, print_json, print_line, print_table
from keyop.config import Config
from keyop.deadletters import DeadLetters
from keyop.inspection import DataDirectory
from keyop.names import dead_letter_channel, is_dead_letter


@dataclass(frozen=True)
class Row:
    """One channel. ``running`` and the lag are None where they cannot be seen.

    ``dead_letters`` are those of the channel; of a dead-letter channel itself, None.
    """

    channel: str
    segments: int
    disk_bytes: int
    start: int
    end: int
    subscribers: int
    running: int | None
    largest_lag_bytes: int | None
    dead_letters: int | None


@click.command("stats")
@json_option
@config_options
def command(as_json: bool, config: Config) -> None:
    """Show totals of a data directory, and a line for each channel.

    RUNNING counts subscribers that a process of this machine runs, LARGEST LAG is how much the
    slowest subscriber has yet to read, and DEAD LETTERS are those neither requeued nor purged.

    \b
    Examples:
      keyop stats
      keyop stats --json | jq .totals.largest_lag_bytes
    """
    directory = look_at(config)
    views = [view for view in directory.channels() if not view.abandoned]
    rows = [row(directory, view, views, config.storage.max_record_bytes) for view in views]
    slowest = slowest_subscriber(views)
    totals = {
        "channels": len(rows),
        "segments": sum(each.segments for each in rows),
        "disk_bytes": sum(each.disk_bytes for each in rows),
        "disk_free_bytes": free_bytes(directory.path),
        "subscribers": sum(each.subscribers for each in rows),
        "running": total(each.running for each in rows),
        "largest_lag_bytes": None if slowest is None else slowest.lag_bytes,
        "dead_letters": sum(each.dead_letters or 0 for each in rows),
    }
    if as_json:
        print_json(
            {
                "data_dir": directory.path,
                "totals": totals,
                "channels": [asdict(each) for each in rows],
            }
        )
        return
    print_totals(directory.path, totals, slowest)
    if rows:
        click.echo()
        print_rows(rows)


def row(
    directory: DataDirectory, view: ChannelView, views: list[ChannelView], max_record_bytes: int
) -> Row:
    """Return the figures of one channel."""
    lag = view.largest_lag
    dead_letters: int | None = 0
    if is_dead_letter(view.channel):
        dead_letters = None
    elif any(each.channel == dead_letter_channel(view.channel) for each in views):
        dead_letters = DeadLetters(directory, view.channel, max_record_bytes).count()
    return Row(
        view.channel,
        view.segments,
        view.disk_bytes,
        view.start,
        view.end,
        len(view.subscribers),
        total(each.running for each in view.subscribers),
        None if lag is None else lag.lag_bytes,
        dead_letters,
    )


def total(counts: Iterable[int | None]) -> int | None:
    """Return a sum, or None if a part of it is not known."""
    known = 0
    for count in counts:
        if count is None:
            return None
        known += count
    return known


def slowest_subscriber(views: list[ChannelView]) -> SubscriberView | None:
    """Return the subscriber that is furthest behind of those whose position can be read."""
    found = [each for view in views for each in view.subscribers if each.lag_bytes is not None]
    return max(found, key=lambda each: each.lag_bytes or 0, default=None)


def free_bytes(path: str) -> int | None:
    """Return how much room the disk has left; None where that cannot be seen."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def print_totals(path: str, totals: dict[str, Any], slowest: SubscriberView | None) -> None:
    """Print the totals for a person."""
    running = "?" if totals["running"] is None else f"{totals['running']:,}"
    subscribers = f"{totals['subscribers']:,}, {running} running"
    if slowest is not None and slowest.lag_bytes:
        subscribers += (
            f", largest lag {human_bytes(slowest.lag_bytes)} ({slowest.subscriber_id} of "
            f"{slowest.channel})"
        )
    for name, value in (
        ("data directory", path),
        (
            "channels",
            f"{totals['channels']:,}, {human_bytes(totals['disk_bytes'])} in "
            f"{plural(totals['segments'], 'segment')}",
        ),
        ("subscribers", subscribers),
        ("dead letters", f"{totals['dead_letters']:,}"),
        ("disk", f"{human_bytes(totals['disk_free_bytes'])} free"),
    ):
        print_line(f"{name:<15} {value}")


def print_rows(rows: list[Row]) -> None:
    """Print the table of channels."""
    print_table(
        [
            "CHANNEL",
            "SIZE",
            "SEGMENTS",
            "END",
            "SUBSCRIBERS",
            "RUNNING",
            "LARGEST LAG",
            "DEAD LETTERS",
        ],
        [
            (
                each.channel,
                human_bytes(each.disk_bytes),
                each.segments,
                each.end,
                each.subscribers,
                "?" if each.running is None else each.running,
                human_bytes(each.largest_lag_bytes) if each.subscribers else "-",
                "-" if each.dead_letters is None else each.dead_letters,
            )
            for each in rows
        ],
        "lrrrrrrr",
    )
