"""The command ``bin/check-reliability``."""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import shutil
import tempfile
from pathlib import Path

import click
import gevent

from keyop.version import __version__

from . import (
    r01_publisher_kills,
    r02_consumer_kills,
    r03_power_loss,
    r04_failing_calls,
    r05_full_disk,
    r06_network,
    r07_fuzz,
    r08_strangers,
    r09_memory,
    r10_bit_flips,
    r11_processes,
    r12_gunicorn,
    r13_soak,
)
from .row import Row, Run, timed
from .table import as_lines, header

ROWS = {
    "R1": r01_publisher_kills,
    "R2": r02_consumer_kills,
    "R3": r03_power_loss,
    "R4": r04_failing_calls,
    "R5": r05_full_disk,
    "R6": r06_network,
    "R7": r07_fuzz,
    "R8": r08_strangers,
    "R9": r09_memory,
    "R10": r10_bit_flips,
    "R11": r11_processes,
    "R12": r12_gunicorn,
    "R13": r13_soak,
}
_MEMORY = Path("/dev/shm")


def run_row(name: str, directory: Path, seed: int, quick: bool) -> Row:
    """Run one row on new directories below this one; whatever goes wrong is in the row."""
    work = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
    in_memory = os.access(_MEMORY, os.W_OK)
    memory = Path(tempfile.mkdtemp(prefix=f"keyop-{name}-", dir=_MEMORY if in_memory else work))
    module = ROWS[name]
    try:
        return timed(name, module.TITLE, module.run, Run(work, memory, seed, quick))
    finally:
        for path in (work, memory):
            shutil.rmtree(path, ignore_errors=True)


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    names = value.upper().split(",") if value else list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise click.BadParameter(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    return names


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--quick", is_flag=True, help="A tenth of everything: minutes instead of more than an hour."
)
@click.option("--only", metavar="ROW,…", callback=_names, help="Some rows only.")
@click.option("--seed", type=int, help="Repeat the random choices of another run.")
@click.option("--dir", "directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
              default=tempfile.gettempdir(), help="Where to write.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.pass_context
def main(
    context: click.Context,
    quick: bool,
    only: list[str],
    seed: int | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Try to break what keyop guarantees, and count what broke.

    Processes are killed, the power fails (in a model of a disk), calls fail, disks are full, bits
    flip, networks are cut, peers are hostile. Exits with 1 if any row fails. It writes up to 2 GiB
    below --dir and removes it again.

    Example: bin/check-reliability --only R1,R3 --quick
    """
    # What keyop reports of the damage done here is not what this is about.
    logging.getLogger("keyop").addHandler(logging.NullHandler())
    logging.getLogger("keyop").propagate = False
    # A greenlet that fails is a problem of its row, which says so.
    gevent.get_hub().exception_stream = None
    seed = random.randrange(1 << 32) if seed is None else seed
    rows = []
    if not as_json:
        click.echo(f"keyop {__version__}, Python {platform.python_version()}, seed {seed}")
        click.echo(header())
    for name in only:
        rows.append(run_row(name, directory, seed, quick))
        if not as_json:
            for line in as_lines(rows[-1]):
                click.echo(line)
    passed = all(row.passed for row in rows)
    if as_json:
        result = {
            "keyop": __version__,
            "python": platform.python_version(),
            "machine": platform.platform(),
            "seed": seed,
            "quick": quick,
            "passed": passed,
            "rows": [row.as_json() for row in rows],
        }
        click.echo(json.dumps(result, indent=2))
    context.exit(not passed)
