"""``keyop tail``: the records of a channel, the last ones or any, without subscribing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import islice

import click
from gevent.event import Event

from keyop.cli import complete
from keyop.cli.colours import Palette
from keyop.cli.common import config_options, json_option, look_at
from keyop.cli.lines import LineWriter
from keyop.cli.moments import place
from keyop.cli.output import human_bytes, json_line, json_line_with, json_text
from keyop.cli.progress import Progress
from keyop.cli.where import where_option
from keyop.config import Config
from keyop.inspection import DataDirectory, is_directory
from keyop.logs import escape_control
from keyop.look.conditions import Condition, all_hold
from keyop.look.records import Found, Reader, raw_payload
from keyop.storage.position import Position
from keyop.storage.readers import Readers
from keyop.storage.watch import POLL_S, Watcher

_LAST = 10
_DAMAGED_BYTES = 80


@click.command("tail")
@click.argument("channel", shell_complete=complete.channels)
@click.option(
    "-n",
    "--lines",
    "count",
    metavar="N",
    type=click.IntRange(0),
    help=f"At most N records: the last ones, or with --from the first ones.  [default: {_LAST}; "
    "with --from all]",
)
@click.option(
    "--from",
    "start",
    metavar="POSITION",
    type=place,
    help="Begin there: earliest, latest, a TIME, -10m (ten minutes ago) or an offset.",
)
@click.option(
    "--until", "end", metavar="POSITION", type=place, help="End before there; else at the end."
)
@where_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@json_option
@config_options
def command(
    channel: str,
    count: int | None,
    start: Position | None,
    end: Position | None,
    where: tuple[Condition, ...],
    follow: bool,
    as_json: bool,
    config: Config,
) -> None:
    """Show the last records of CHANNEL, or those from a position on.

    Nothing is subscribed, locked or written: programs that use the data directory do not notice.
    Each record is a line: its offset, its time, its type and its payload. With --json it is an
    object with all fields, and numbers have the digits that the record has. What is damaged is
    shown as such, in its place, and passed over; with --where it is left out.

    A POSITION is "earliest", "latest", an offset in bytes, a time such as 2026-01-31T15:00 (local)
    or 2026-01-31T14:00:00Z, or how long ago: -90s, -10m, -1h30m, -7d. Times are found by halving,
    so records are taken to be in the order of their times, as those of one host are.

    KEY of --where is a field of the envelope (id, payload_type, origin, correlation_id, ...) or a
    path into the payload, its parts joined by dots, a number being a place in a list; "payload."
    in front always means the payload. VALUE is compared as JSON where it is JSON, and with texts
    as it is. All conditions must hold.

    \b
    Exit status:
      0    shown, damaged records and none at all included
      1    there is no such channel, or it cannot be read
      2    called wrongly
      130  Ctrl-C, which is how --follow ends
      141  the reader of the output went away

    \b
    Examples:
      keyop tail orders
      keyop tail orders -n 100 --where customer.id=7 --where payload_type=com.example.Order
      keyop tail orders --from -10m --follow
      keyop tail orders --from 2026-01-31T14:00Z --until 2026-01-31T15:00Z --json | jq .payload
    """
    if follow and end is not None:
        raise click.UsageError("--follow has no end, so it cannot have --until")
    write = LineWriter()
    palette = Palette()

    def show(found: Found) -> bytes:
        if as_json:
            return as_json_line(channel, found)
        return in_colour(palette, found).encode() + b"\n"

    directory = look_at(config)
    with Reader(directory, channel, config.storage.max_record_bytes) as reader:

        def accept(found: Found) -> bool:
            return all_hold(where, found.fields)

        # The end first: what is appended meanwhile lies behind both.
        stop = reader.resolve("latest" if end is None else end)
        begin = min(stop, reader.resolve("earliest" if start is None else start))
        if start is None:
            last = _LAST if count is None else count
            with Progress("searching") as progress:
                begin = reader.start_of_last(last, begin, stop, accept if where else None, progress)
            count = None
        records = (
            follow_channel(directory, reader, begin, write) if follow else reader.read(begin, stop)
        )
        with closing(records):
            for found in islice(filter(accept, records), count):
                write.write(show(found))


def follow_channel(
    directory: DataDirectory, reader: Reader, begin: int, output: LineWriter
) -> Generator[Found, None, None]:
    """Yield what is in a channel from an offset on and what is appended to it, for ever.

    Raises:
        BrokenPipeError: nobody reads the output any more.
    """
    grown = Event()
    readers = Readers()
    readers.events.add(grown)
    watcher = Watcher()
    try:
        watching = _watch(watcher, directory, reader.channel, readers)
        yield from reader.read(begin)
        while True:
            grown.wait(POLL_S)
            grown.clear()
            if output.broken:
                raise BrokenPipeError
            watching = watching or _watch(watcher, directory, reader.channel, readers)
            yield from reader.read_on()
    finally:
        watcher.close()


def _watch(watcher: Watcher, directory: DataDirectory, channel: str, readers: Readers) -> bool:
    """Watch a channel's directory, if it is there; return whether there is nothing left to try."""
    path = directory.channel_directory(channel)
    if not is_directory(directory.fs, path):
        return False
    watcher.watch(path, readers)  # where it cannot, which was said then, the poll serves
    return True


def as_json_line(channel: str, found: Found) -> bytes:
    """Return a record, or what is none, as ``--json`` shows it."""
    fields = found.fields
    if fields is None:
        what = {"offset": found.offset, "end": found.end, "damaged": found.damage}
        return json_line({"channel": channel, **what})
    envelope = {
        "id": fields["id"],
        "channel": channel,
        "origin": fields["origin"],
        "payload_type": fields["payload_type"],
        "timestamp": fields["ts"],
        "correlation_id": fields.get("correlation_id", ""),
        "service_name": fields.get("service_name", ""),
        "offset": found.offset,
    }
    return json_line_with(envelope, "payload", raw_payload(found.line))


def in_colour(palette: Palette, found: Found) -> str:
    """Return a record, or what is none, as one line for a person."""
    offset = palette.dim(f"{found.offset:>10}")
    fields = found.fields
    if fields is None:
        size = human_bytes(found.end - found.offset)
        text = escape_control(found.line[:_DAMAGED_BYTES].decode("utf-8", "backslashreplace"))
        return (
            f"{offset}  {palette.alarm('damaged')}  {size}, {escape_control(found.damage)}: {text}"
        )
    return (
        f"{offset}  {palette.dim(escape_control(fields['ts']))}  "
        f"{palette.name(escape_control(fields['payload_type']))}  "
        f"{json_text(raw_payload(found.line))}"
    )
