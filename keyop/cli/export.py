"""``keyop export``: the records of a channel, whole, for ``keyop import`` and other programs."""

from __future__ import annotations

import sys

import click

from keyop.cli import complete
from keyop.cli.common import config_options, look_at
from keyop.cli.lines import LineWriter
from keyop.cli.moments import place
from keyop.cli.output import complain, json_text, plural
from keyop.cli.progress import Progress
from keyop.cli.where import where_option
from keyop.config import Config
from keyop.look.conditions import Condition, all_hold
from keyop.look.records import Reader
from keyop.storage.position import Position

_BUFFER_BYTES = 1 << 20
_SHOWN_PROBLEMS = 10


@click.command("export")
@click.argument("channel", shell_complete=complete.channels)
@click.option("--from", "start", metavar="POSITION", type=place, help="Begin there; else all.")
@click.option(
    "--until", "end", metavar="POSITION", type=place, help="End before there; else at the end."
)
@where_option
@config_options
def command(
    channel: str,
    start: Position | None,
    end: Position | None,
    where: tuple[Condition, ...],
    config: Config,
) -> int:
    """Write the records of CHANNEL to stdout as they stand in the log, one on a line.

    A line is a whole envelope with its checksum, byte for byte, which "keyop import" takes. What
    is appended after the start is not exported. Nothing is locked or written, so programs may go
    on using the data directory. Positions of subscribers are not part of it. POSITION and
    --where are as in "keyop tail".

    What is damaged is left out and named on stderr; whole records in and around it are exported.
    On a terminal, characters that it would obey are escaped, which spoils their checksums.

    \b
    Exit status:
      0    all is exported
      1    something was damaged, or cannot be read or written
      2    called wrongly
      130  Ctrl-C
      141  the reader of the output went away

    \b
    Examples:
      keyop export orders > orders.jsonl
      keyop export orders --from -1d --where customer.id=7 | jq .payload
      keyop export orders | ssh backup 'keyop import orders'
    """
    # Not the stream's own buffer: unbuffered Python may write a part of what it is given.
    output = LineWriter()
    for_people = sys.stdout.isatty()
    damaged = 0
    with (
        Reader(look_at(config), channel, config.storage.max_record_bytes) as reader,
        Progress("exporting") as progress,
    ):
        stop = reader.resolve("latest" if end is None else end)
        begin = min(stop, reader.resolve("earliest" if start is None else start))
        pieces: list[bytes] = []
        size = 0
        for found in reader.read(begin, stop):
            progress(min(found.end, stop) - begin, stop - begin)
            if found.fields is None:
                damaged += 1
                if damaged <= _SHOWN_PROBLEMS:
                    complain(f"{channel}: left out at {found.offset}: {found.damage}")
            elif all_hold(where, found.fields):
                line = json_text(found.line).encode() if for_people else found.line
                pieces += (line, b"\n")
                size += len(line)
            if size > _BUFFER_BYTES:
                output.write(b"".join(pieces))
                pieces, size = [], 0
        output.write(b"".join(pieces))
    if damaged > _SHOWN_PROBLEMS:
        complain(f"{plural(damaged, 'place')} of {channel} left out in all")
    return 1 if damaged else 0
