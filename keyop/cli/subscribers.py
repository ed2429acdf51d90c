"""``keyop subscribers``: who reads a channel and how far, and forgetting a position."""

from __future__ import annotations

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
from keyop.cli.output import (
    complain,
    confirm,
    human_bytes,
    print_json,
    print_line,
    print_table,
    yes_no,
)
from keyop.config import Config
from keyop.names import check_channel
from keyop.removal import check_position_id, remove_subscriber


@click.group("subscribers", cls=ListByDefault)
@common_options
def command() -> None:
    """List subscribers and how far they have read, or forget one.

    \b
    Examples:
      keyop subscribers
      keyop subscribers orders
      keyop subscribers remove orders billing
    """


@command.command("list")
@click.argument("channel", required=False, shell_complete=complete.channels)
@json_option
@config_options
def list_(channel: str | None, as_json: bool, config: Config) -> None:
    """List the subscribers, of CHANNEL only or of all channels.

    OFFSET is the next byte that a subscriber reads, LAG how many bytes it has yet to read, and
    RUNNING whether a process of this machine runs it ("?" where that cannot be seen). KIND is
    local, or peer or hub for what federation has sent to one.

    \b
    Exit status:
      0    listed, none included
      1    there is no such channel or data directory, or it cannot be read
      2    called wrongly

    \b
    Examples:
      keyop subscribers
      keyop subscribers list orders --json
    """
    directory = look_at(config)
    views = directory.channels() if channel is None else [directory.channel(channel)]
    found = [each for view in views for each in view.subscribers]
    if as_json:
        print_json([{**asdict(each), "kind": each.kind} for each in found])
        return
    if not found:
        complain(f"no subscribers {'in ' + directory.path if channel is None else 'of ' + channel}")
        return
    print_table(
        ["CHANNEL", "SUBSCRIBER", "KIND", "OFFSET", "LAG", "RUNNING"],
        [
            (
                each.channel,
                each.subscriber_id,
                each.kind,
                "?" if each.offset is None else each.offset,
                human_bytes(each.lag_bytes),
                yes_no(each.running),
            )
            for each in found
        ],
        "lllrrl",
    )
    for each in found:
        if each.problem is not None:
            complain(each.problem)


@command.command("remove")
@click.argument("channel", shell_complete=complete.channels)
@click.argument("subscriber_id", metavar="ID", shell_complete=complete.subscribers)
@yes_option
@config_options
def remove(channel: str, subscriber_id: str, yes: bool, config: Config) -> None:
    """Forget the position of subscriber ID in CHANNEL.

    What it has not read then keeps no segment from being deleted. If it subscribes again it is a
    new subscriber. One that runs is refused: stop it first. ID may be one of federation, "fed-"
    and a peer's name or "fedout-" and a hub's.

    \b
    Exit status:
      0    forgotten
      1    there is no such position, its subscriber runs, or the answer was no
      2    called wrongly

    \b
    Examples:
      keyop subscribers remove orders billing
      keyop subscribers remove orders fed-reporting-host --yes
    """
    check_channel(channel)
    check_position_id(subscriber_id)
    directory = look_at(config)
    confirm(f"forget the position of {subscriber_id} in {channel}?", yes)
    remove_subscriber(directory, channel, subscriber_id)
    print_line(f"removed {subscriber_id} of {channel}")
