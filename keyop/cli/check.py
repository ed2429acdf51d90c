"""``keyop check``: is everything in a data directory as it should be?"""

from __future__ import annotations

from typing import Any

import click

from keyop.checking.directory import check_directory
from keyop.checking.problem import Problem, Report
from keyop.cli.common import config_options, json_option
from keyop.cli.output import human_bytes, plural, print_json, print_line
from keyop.cli.progress import Progress
from keyop.config import Config


@click.command("check")
@click.option("--repair", is_flag=True, help="Mend what can be mended without losing a record.")
@json_option
@config_options
def command(repair: bool, as_json: bool, config: Config) -> int:
    """Verify a data directory: its files, every record's checksum, every position.

    Each problem is printed with its path, what is wrong, and what to do about it. Programs may go
    on using the directory meanwhile. A note is worth knowing, and nothing is wrong. How long a
    record may be is what the configuration of -c says, else 10 MiB.

    --repair cuts off what a crash left of an unfinished record (keeping the bytes in a file beside
    the segment), deletes leftover temporary files, and moves positions that cannot be used: one
    that cannot be read to the earliest record, one past the end to the end, one inside a record
    to its beginning. It never touches a record, nor the position of a subscriber that runs.

    The exit status is 0 if all is well or was repaired, 1 if problems remain.

    \b
    Examples:
      keyop check
      keyop check --repair --data-dir /var/lib/app
      keyop check --json | jq '.problems[] | select(.note | not)'
    """
    with Progress("checking") as progress:
        report = check_directory(
            config.storage.data_dir, config.storage.max_record_bytes, repair, progress
        )
    if as_json:
        print_json(as_mapping(report))
    else:
        print_report(report)
    return 1 if report.remaining else 0


def as_mapping(report: Report) -> dict[str, Any]:
    """Return a report as ``--json`` shows it."""
    return {
        "data_dir": report.data_dir,
        "ok": not report.remaining,
        "channels": report.channels,
        "records": report.records,
        "disk_bytes": report.disk_bytes,
        "problems": [
            {
                "path": problem.path,
                "what": problem.what,
                "advice": problem.advice,
                "note": problem.note,
                "count": problem.count,
                "offsets": problem.offsets,
                "repairable": problem.repairable,
                "repaired": problem.repaired,
            }
            for problem in report.problems
        ],
    }


def print_report(report: Report) -> None:
    """Print a report for a person: what is wrong first."""
    for kind, problems in (
        ("problem", report.remaining),
        ("repaired", report.repaired),
        ("note", report.notes),
    ):
        for problem in problems:
            print_problem(kind, problem)
    found = [
        plural(len(report.remaining), "problem") if report.remaining else "no problems",
        f"{len(report.repaired):,} repaired" if report.repaired else "",
        plural(len(report.notes), "note") if report.notes else "",
    ]
    print_line(
        f"{plural(report.channels, 'channel')}, {plural(report.records, 'record')}, "
        f"{human_bytes(report.disk_bytes)}: {', '.join(filter(None, found))}"
    )


def print_problem(kind: str, problem: Problem) -> None:
    """Print one finding."""
    print_line(f"{kind:<9}{problem.path}")
    print_line(f"{'':<9}{problem.what}")
    if not problem.repaired:
        print_line(f"{'':<9}{problem.advice}")
