"""``keyop channels``: what channels there are, and removing one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from keyop.channel_view import ChannelView
from keyop.cli import complete
from keyop.cli.common import (
    ListByDefault,
    common_options,
    config_options,
    json_option,
    look_at,
    yes_option,
)
from keyop.cli.output import (
    complain,
    confirm,
    human_bytes,
    plural,
    print_json,
    print_line,
    print_table,
)
from keyop.cli.progress import Progress
from keyop.config import Config
from keyop.errors import StorageError
from keyop.names import check_channel
from keyop.removal import remove_channel


@click.group("channels", cls=ListByDefault)
@common_options
def command() -> None:
    """List the channels of a data directory, or remove one.

    \b
    Examples:
      keyop channels
      keyop channels list --count --json
      keyop channels remove orders
    """


@command.command("list")
@click.option("--count", is_flag=True, help="Count the records, which reads all of them.")
@json_option
@config_options
def list_(count: bool, as_json: bool, config: Config) -> None:
    """List the channels.

    START and END are byte offsets: the channel holds what lies between them. LARGEST LAG is how
    many bytes the slowest subscriber has yet to read; "?" if a position cannot be read, which
    "keyop check" explains.

    \b
    Exit status:
      0    listed, none included
      1    there is no data directory, or it cannot be read
      2    called wrongly

    \b
    Examples:
      keyop channels
      keyop channels list --count --data-dir /var/lib/app
    """
    directory = look_at(config)
    with Progress("counting" if count else "looking") as progress:
        found = directory.channels(count, progress)
    views = [view for view in found if not view.abandoned]
    if as_json:
        print_json([as_mapping(view) for view in views])
        return
    if not views:
        complain(f"no channels in {directory.path}")
        return
    headers = ["CHANNEL", "SEGMENTS", "SIZE", "START", "END", "SUBSCRIBERS", "LARGEST LAG"]
    rows = [
        [
            view.channel,
            view.segments,
            human_bytes(view.disk_bytes),
            view.start,
            view.end,
            len(view.subscribers),
            largest_lag(view),
        ]
        for view in views
    ]
    if count:
        headers.insert(5, "RECORDS")
        for row, view in zip(rows, views, strict=True):
            row.insert(5, f"{view.records:,}")
    print_table(headers, rows, "l" + "r" * (len(headers) - 1))


def as_mapping(view: ChannelView) -> dict[str, Any]:
    """Return a channel as ``--json`` shows it."""
    lag = view.largest_lag
    return {**asdict(view), "largest_lag_bytes": None if lag is None else lag.lag_bytes}


def largest_lag(view: ChannelView) -> str:
    """Return a channel's largest lag as a table shows it."""
    lag = view.largest_lag
    return "-" if lag is None else human_bytes(lag.lag_bytes)


@command.command("remove")
@click.argument("channel", shell_complete=complete.channels)
@click.option("--force", is_flag=True, help="Even if a subscriber runs or has not read all.")
@yes_option
@config_options
def remove(channel: str, force: bool, yes: bool, config: Config) -> None:
    """Remove the records of CHANNEL and the positions of its subscribers.

    Other processes may have the channel open: what they publish next goes to an empty segment
    that begins where the removed ones ended, so no offset is used twice. Subscribers that come
    back begin anew. With --force the position of a subscriber that runs stays, and what it had
    not read it counts as dropped. Dead letters are a channel of their own, CHANNEL.dead-letter.

    \b
    Exit status:
      0    removed
      1    there is no such channel, somebody runs or lags, or the answer was no
      2    called wrongly

    \b
    Examples:
      keyop channels remove orders
      keyop channels remove orders.dead-letter --yes
    """
    check_channel(channel)
    directory = look_at(config)
    view = directory.channel(channel)
    if view.abandoned:
        raise StorageError(f"there is no channel {channel!r} in {directory.path}")
    confirm(
        f"remove {human_bytes(view.disk_bytes)} of {channel} and "
        f"{plural(len(view.subscribers), 'position')}?",
        yes,
    )
    removed = remove_channel(directory, channel, force)
    print_line(
        f"removed {human_bytes(removed.disk_bytes)} in {plural(removed.segments, 'segment')} of "
        f"{channel} and {plural(len(removed.subscribers), 'position')}"
    )
    for subscriber_id in removed.kept:
        complain(f"{subscriber_id} runs, so its position stays")
