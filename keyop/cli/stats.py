"""``keyop stats``: how much there is, how far it has been read, what failed, and how fast."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from itertools import count as counting
from typing import Any

import click
import gevent

from keyop.cli.common import config_options, json_option, look_at
from keyop.cli.output import human_bytes, human_seconds, json_line, plural, print_json, table_lines
from keyop.config import Config
from keyop.logs import escape_control
from keyop.look.sample import Row, Sample, Sampler

_DEFAULT_INTERVAL_S = 2.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"


def seconds(text: str) -> float:
    """Return how long an interval is.

    Raises:
        click.BadParameter: it is no number of seconds, or none that makes sense.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 86_400:  # nor is NaN
        raise click.BadParameter(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return value


@click.command("stats")
@click.option("-w", "--watch", is_flag=True, help="Go on until Ctrl-C; on a terminal, in place.")
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=seconds,
    help=f"How long rates are taken over; with --watch otherwise {_DEFAULT_INTERVAL_S:g}.",
)
@click.option(
    "--count", metavar="N", type=click.IntRange(1), help="With --watch: end after N intervals."
)
@json_option
@config_options
def command(
    watch: bool, interval_s: float | None, count: int | None, as_json: bool, config: Config
) -> None:
    """Show totals of a data directory, and a line for each channel.

    RUNNING counts subscribers that a process of this machine runs. LARGEST LAG is how much the
    slowest subscriber has yet to read, MESSAGES how many that are ("~" where more than 32 MiB are
    pending and it is estimated), and OLDEST how long ago the oldest message that somebody has
    yet to read was published. DEAD LETTERS are those neither requeued nor purged. "?" is what
    cannot be seen, "-" what there is not.

    With --interval it waits so long, and adds how many messages a second were appended meanwhile,
    IN/S. With --watch it goes on: a terminal is redrawn after each interval, a pipe gets one table
    after the other. With --json a single object is printed, or with --watch one object on one line
    after each interval. It has every subscriber with its own lag, in "positions".

    Nothing is locked or written.

    \b
    Exit status:
      0    shown
      1    there is no data directory, or it cannot be read
      2    called wrongly
      130  Ctrl-C, which is how --watch ends
      141  the reader of the output went away

    \b
    Examples:
      keyop stats
      keyop stats --watch
      keyop stats --json | jq .totals.largest_lag_bytes
      keyop stats --watch --interval 10 --json | jq -c '[.time, .totals.messages_per_s]'
    """
    if count is not None and not watch:
        raise click.UsageError("--count is for --watch")
    sampler = Sampler(look_at(config), config.storage.max_record_bytes)
    sample = sampler.take()
    if watch:
        _watch(sampler, sample, interval_s or _DEFAULT_INTERVAL_S, count, as_json)
        return
    if interval_s is not None:
        gevent.sleep(interval_s)
        sample = sampler.take()
    if as_json:
        print_json(as_mapping(sampler, sample))
    else:
        click.echo("\n".join(text_lines(sampler, sample)))


def _watch(
    sampler: Sampler, sample: Sample, interval_s: float, count: int | None, as_json: bool
) -> None:
    terminal = sys.stdout is not None and sys.stdout.isatty()
    if terminal and not as_json:
        _redraw(text_lines(sampler, sample))
    for number in counting(1):
        gevent.sleep(interval_s)
        sample = sampler.take()
        if as_json:
            click.echo(json_line(as_mapping(sampler, sample)), nl=False)
        elif terminal:
            _redraw(text_lines(sampler, sample))
        else:
            click.echo("\n".join([*text_lines(sampler, sample), ""]))
        if number == count:
            return


def _redraw(lines: list[str]) -> None:
    """Show lines in place of what is on the terminal; what does not fit is left out."""
    room = shutil.get_terminal_size().lines - 1
    if len(lines) > room:
        lines = [*lines[: room - 1], f"… {len(lines) - room + 1} more"]
    click.echo(_HOME_AND_CLEAR + "\n".join(lines))


def as_mapping(sampler: Sampler, sample: Sample) -> dict[str, Any]:
    """Return a sample as ``--json`` shows it."""
    return {
        "data_dir": sampler.directory.path,
        "time": sample.time.isoformat().replace("+00:00", "Z"),
        "interval_s": sample.interval_s,
        "totals": sample.totals,
        "channels": [asdict(each) for each in sample.rows],
    }


def text_lines(sampler: Sampler, sample: Sample) -> list[str]:
    """Return a sample for a person."""
    lines = total_lines(sampler.directory.path, sample)
    return [*lines, "", *row_lines(sample)] if sample.rows else lines


def total_lines(path: str, sample: Sample) -> list[str]:
    """Return the totals for a person."""
    totals, slowest = sample.totals, sample.slowest
    running = "?" if totals["running"] is None else f"{totals['running']:,}"
    subscribers = f"{totals['subscribers']:,}, {running} running"
    if slowest is not None and slowest.lag_bytes:
        subscribers += (
            f", largest lag {human_bytes(slowest.lag_bytes)} ({slowest.subscriber_id} of "
            f"{slowest.channel})"
        )
    rows = [
        ("data directory", path),
        (
            "channels",
            f"{totals['channels']:,}, {human_bytes(totals['disk_bytes'])} in "
            f"{plural(totals['segments'], 'segment')}",
        ),
        ("subscribers", subscribers),
        ("dead letters", f"{totals['dead_letters']:,}"),
        ("disk", f"{human_bytes(totals['disk_free_bytes'])} free"),
    ]
    if sample.interval_s is not None:
        rate = (
            f"{rate_text(totals['messages_per_s'])} messages/s, "
            f"{human_bytes(round(totals['bytes_per_s']))}/s over {sample.interval_s:.1f} s"
        )
        rows.append(("appended", rate))
    return [escape_control(f"{name:<15} {value}") for name, value in rows]


def row_lines(sample: Sample) -> list[str]:
    """Return the table of channels."""
    headers = [
        *("CHANNEL", "SIZE", "SEGMENTS", "END", "SUBSCRIBERS", "RUNNING"),
        *("LARGEST LAG", "MESSAGES", "OLDEST", "DEAD LETTERS"),
    ]
    rows = [row_cells(each) for each in sample.rows]
    if sample.interval_s is not None:
        headers.append("IN/S")
        for cells, each in zip(rows, sample.rows, strict=True):
            cells.append(rate_text(each.messages_per_s or 0.0))
    return table_lines(headers, rows, "l" + "r" * (len(headers) - 1))


def row_cells(row: Row) -> list[object]:
    """Return what the table says of one channel."""
    lag, messages = "-", "-"
    if row.subscribers:
        lag = human_bytes(row.largest_lag_bytes)
        about = "~" if row.lag_estimated else ""
        messages = "?" if row.lag_messages is None else f"{about}{row.lag_messages:,}"
    return [
        row.channel,
        human_bytes(row.disk_bytes),
        row.segments,
        row.end,
        row.subscribers,
        "?" if row.running is None else row.running,
        lag,
        messages,
        "-" if row.oldest_pending_s is None else human_seconds(row.oldest_pending_s),
        "-" if row.dead_letters is None else row.dead_letters,
    ]


def rate_text(rate: float) -> str:
    """Return a number per second: small ones with a digit behind the point."""
    return f"{rate:,.0f}" if rate >= 100 or rate == 0 else f"{rate:.1f}"
