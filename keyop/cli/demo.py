"""``keyop demo``: shows on a real file that nothing is lost when a subscriber is killed."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time

import click

from keyop.cli.common import common_options
from keyop.cli.output import complain, print_json, print_line, print_table, yes_no
from keyop.demo.run import KILLED, Demo, Outcome
from keyop.demo.source import LINE_LIMIT, Source, copy_source

_SHOW_EVERY_S = 0.05


@click.command("demo")
@click.argument("file", required=False)
@click.option(
    "--lines",
    "limit",
    metavar="N",
    type=click.IntRange(2),
    default=LINE_LIMIT,
    show_default=True,
    help="Send so many lines at the most.",
)
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Where to write; else a new temporary directory. What is written stays.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the outcome as JSON.")
@common_options
def command(file: str | None, limit: int, directory: str | None, as_json: bool) -> int:
    """Send FILE line by line through a channel, killing a subscriber half way.

    One process publishes, two others subscribe. One of those is killed with SIGKILL and started
    again, and in the end every line is held against FILE: whether it arrived, in order, and how
    often. FILE may be "-" for stdin; without it, a large file of this machine is taken.

    Exit status 0 if every line arrived, in order, and at most one a second time.

    \b
    Examples:
      keyop demo
      keyop demo /var/log/dpkg.log
      journalctl | keyop demo -
    """
    if directory is None:
        directory = tempfile.mkdtemp(prefix="keyop-demo-")
    else:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if os.path.exists(f"{directory}/data"):
            raise click.UsageError(f"{directory} holds a demo already; name a new directory")
    source = copy_source(file, sys.stdin.buffer, f"{directory}/sent.txt", limit)
    if source.lines < 2:
        raise click.UsageError(f"{source.name} has {source.lines} lines; two are needed at least")
    outcome = _run(directory, source, quiet=as_json)
    if as_json:
        print_json(_as_mapping(source, directory, outcome))
    else:
        _show(source, directory, outcome)
    return 0 if outcome.perfect else 1


def _run(directory: str, source: Source, quiet: bool) -> Outcome:
    if quiet:
        return Demo(directory, source, lambda delivered: None, lambda note: None).run()
    print_line(f"{source.lines:,} lines of {source.name}, to two subscribers:")
    shown = 0.0
    notes: list[str] = []
    total = 2 * source.lines
    with click.progressbar(length=total, label="delivered", file=sys.stderr, show_pos=True) as bar:

        def progress(delivered: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown > _SHOW_EVERY_S or delivered == total:
                shown = now
                bar.update(delivered - bar.pos)

        outcome = Demo(directory, source, progress, notes.append).run()
        bar.update(total - bar.pos)
    for note in notes:
        print_line(note)
    return outcome


def _as_mapping(source: Source, directory: str, outcome: Outcome) -> dict[str, object]:
    return {
        "source": source.name,
        "directory": directory,
        "published": outcome.published,
        "published_per_s": round(outcome.published / outcome.publish_s),
        "killed_after": outcome.struck_at,
        "away_s": round(outcome.away_s, 3),
        "subscribers": {
            name: {**each._asdict(), "per_s": round(each.rate)}
            for name, each in outcome.received.items()
        },
        "perfect": outcome.perfect,
    }


def _show(source: Source, directory: str, outcome: Outcome) -> None:
    click.echo()
    rows: list[list[object]] = [
        ["published", f"{outcome.published:,}", "", "", "",
         f"{outcome.published / outcome.publish_s:,.0f}"],
    ]  # fmt: skip
    for name, each in outcome.received.items():
        label = f"received by {name!r}"
        rows.append(
            [label, f"{each.lines:,}", f"{each.missing:,}", yes_no(each.in_order and
             not each.altered), f"{each.twice:,}", f"{each.rate:,.0f}"]
        )  # fmt: skip
    print_table(["", "lines", "missing", "in order, unaltered", "twice", "lines/s"], rows, " rr rr")
    click.echo()
    print_line(
        f"{KILLED!r} was killed after {outcome.struck_at:,} lines and back after "
        f"{outcome.away_s:.1f} s."
    )
    if outcome.received[KILLED].twice:
        print_line(
            "The message that it had handled, but not yet saved its position for, came again."
        )
    quoted = shlex.quote(directory)
    print_line("The files are yours to look at:")
    print_line(f"  head -2 {quoted}/data/channels/demo/*.jsonl")
    print_line(f"  cat {quoted}/data/subscribers/demo/*.offset")
    print_line(f"  rm -r {quoted}")
    if not outcome.perfect:
        complain("something was lost, altered, out of order, or came twice too often")
