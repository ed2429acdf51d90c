"""``keyop demo``: shows on a real file that nothing is lost when a process is killed."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TypeVar

import click

from keyop.cli.common import common_options
from keyop.cli.output import complain, print_json, print_line, print_table, yes_no
from keyop.demo.compare import Received
from keyop.demo.run import KILLED, Demo, Outcome
from keyop.demo.source import LINE_LIMIT, Source, copy_source

_SHOW_EVERY_S = 0.05
_HEADERS = ["", "lines", "missing", "in order, unaltered", "twice", "lines/s"]

Progress = Callable[[int], None]
Say = Callable[[str], None]
T = TypeVar("T")


@click.command("demo")
@click.argument("file", required=False)
@click.option(
    "--federated", is_flag=True, help="Across a hub, whose connections are cut and which is killed."
)
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
def command(
    file: str | None, federated: bool, limit: int, directory: str | None, as_json: bool
) -> int:
    """Send FILE line by line through a channel, killing a subscriber half way.

    One process publishes, two others subscribe. One of those is killed with SIGKILL and started
    again, and in the end every line is held against FILE: whether it arrived, in order, and how
    often. FILE may be "-" for stdin; without it, a large file of this machine is taken.

    With --federated, one instance publishes and another subscribes, each with a data directory of
    its own, and a hub between them, over mutual TLS. Their connections are cut, then the hub is
    killed with SIGKILL and started again.

    Exit status 0 if every line arrived, in order, and (but for one message that the killed
    subscriber had in hand) once.

    \b
    Examples:
      keyop demo
      keyop demo --federated /var/log/dpkg.log
      journalctl | keyop demo -
    """
    if directory is None:
        directory = tempfile.mkdtemp(prefix="keyop-demo-")
    else:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if os.listdir(directory):
            raise click.UsageError(f"{directory} is not empty; name a new directory")
    source = copy_source(file, sys.stdin.buffer, f"{directory}/sent.txt", limit)
    if source.lines < 2:
        raise click.UsageError(f"{source.name} has {source.lines} lines; two are needed at least")
    if federated:
        return _federated(directory, source, as_json)
    return _local(directory, source, as_json)


def _local(directory: str, source: Source, as_json: bool) -> int:
    def run(progress: Progress, say: Say) -> Outcome:
        return Demo(directory, source, progress, say).run()

    title = f"{source.lines:,} lines of {source.name}, to two subscribers:"
    outcome = run(_ignore, _ignore) if as_json else _shown(title, 2 * source.lines, run)
    if as_json:
        subscribers = {name: _details(each) for name, each in outcome.received.items()}
        _print_json(
            source,
            directory,
            outcome.published,
            outcome.publish_s,
            killed_after=outcome.struck_at,
            away_s=round(outcome.away_s, 3),
            subscribers=subscribers,
            perfect=outcome.perfect,
        )
        return 0 if outcome.perfect else 1
    rows = [_published(outcome.published, outcome.publish_s)]
    rows += [_received(f"received by {name!r}", each) for name, each in outcome.received.items()]
    _print_rows(rows)
    print_line(
        f"{KILLED!r} was killed after {outcome.struck_at:,} lines and back after "
        f"{outcome.away_s:.1f} s."
    )
    if outcome.received[KILLED].twice:
        print_line(
            "The message that it had handled, but not yet saved its position for, came again."
        )
    _print_files(directory, "data/channels/demo/*.jsonl", "data/subscribers/demo/*.offset")
    return _verdict(outcome.perfect)


def _federated(directory: str, source: Source, as_json: bool) -> int:
    # TLS takes a while to load, and the other demo does not need it.
    from keyop.demo.federated import HUB, RECEIVER, FederatedDemo, FederatedOutcome

    def run(progress: Progress, say: Say) -> FederatedOutcome:
        return FederatedDemo(directory, source, progress, say).run()

    title = f"{source.lines:,} lines of {source.name}, through a hub over mutual TLS:"
    outcome = run(_ignore, _ignore) if as_json else _shown(title, source.lines, run)
    if as_json:
        _print_json(
            source,
            directory,
            outcome.published,
            outcome.publish_s,
            cut_after=outcome.cut_at,
            killed_after=outcome.killed_at,
            away_s=round(outcome.away_s, 3),
            stored=outcome.stored,
            received=_details(outcome.received),
            perfect=outcome.perfect,
        )
        return 0 if outcome.perfect else 1
    _print_rows(
        [
            _published(outcome.published, outcome.publish_s),
            ["stored by the hub", f"{outcome.stored:,}", "", "", "", ""],
            _received(f"received by {RECEIVER!r}", outcome.received),
        ]
    )
    print_line(
        f"The connections were cut after {outcome.cut_at:,} lines; the {HUB} was killed after "
        f"{outcome.killed_at:,} and back after {outcome.away_s:.1f} s."
    )
    _print_files(directory, "hub/channels/demo/*.jsonl", "*/subscribers/demo/*.offset")
    return _verdict(outcome.perfect)


def _ignore(_: object) -> None:
    """Show nothing."""


def _shown(title: str, total: int, run: Callable[[Progress, Say], T]) -> T:
    """Run a demo under a progress bar; return its outcome."""
    print_line(title)
    shown = 0.0
    notes: list[str] = []
    with click.progressbar(length=total, label="delivered", file=sys.stderr, show_pos=True) as bar:

        def progress(delivered: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown > _SHOW_EVERY_S or delivered == total:
                shown = now
                bar.update(delivered - bar.pos)

        outcome = run(progress, notes.append)
        bar.update(total - bar.pos)
    for note in notes:
        print_line(note)
    return outcome


def _print_json(
    source: Source, directory: str, published: int, publish_s: float, **more: object
) -> None:
    print_json(
        {
            "source": source.name,
            "directory": directory,
            "published": published,
            "published_per_s": round(published / publish_s),
            **more,
        }
    )


def _details(received: Received) -> dict[str, object]:
    return {**received._asdict(), "per_s": round(received.rate)}


def _published(count: int, seconds: float) -> list[str]:
    return ["published", f"{count:,}", "", "", "", f"{count / seconds:,.0f}"]


def _received(label: str, each: Received) -> list[str]:
    sound = yes_no(each.in_order and not each.altered)
    counts = [f"{number:,.0f}" for number in (each.lines, each.missing, each.twice, each.rate)]
    return [label, *counts[:2], sound, *counts[2:]]


def _print_rows(rows: list[list[str]]) -> None:
    click.echo()
    print_table(_HEADERS, rows, " rr rr")
    click.echo()


def _print_files(directory: str, segments: str, positions: str) -> None:
    quoted = shlex.quote(directory)
    print_line("The files are yours to look at:")
    print_line(f"  head -2 {quoted}/{segments}")
    print_line(f"  cat {quoted}/{positions}")
    print_line(f"  rm -r {quoted}")


def _verdict(perfect: bool) -> int:
    if not perfect:
        complain("something was lost, altered, out of order, or came twice too often")
    return 0 if perfect else 1
