"""The command ``keyop-bench``."""

from __future__ import annotations

import platform
import shutil
import tempfile
from typing import Any

import click
import orjson

from keyop.bench.local import Bench
from keyop.bench.measure import Figure
from keyop.bench.watching import WatchingBench
from keyop.version import __version__


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A twentieth of the work: does it run, not how fast.")
@click.option("--only", metavar="NAME,…", help="Some figures only, by name.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Rounds of each figure, in turn; 7, with --peers 5, with --scaling 3.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(exists=True, file_okay=False, writable=True, resolve_path=True),
    default=".",
    show_default=True,
    help="Where to write.",
)
@click.option("--federation", is_flag=True, help="The figures of hubs and clients instead.")
@click.option("--peers", is_flag=True, help="keyop beside what else would be used, instead.")
@click.option("--scaling", is_flag=True, help="How costs grow, and with what, instead.")
@click.option("--contenders", metavar="NAME,…", help="With --peers: some only, by name.")
@click.option(
    "--plot",
    type=click.Path(exists=True, file_okay=False, writable=True, resolve_path=True),
    help="With --peers or --scaling: where to draw each picture, as NAME.svg or by-NAME.svg.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def main(
    quick: bool,
    only: str | None,
    rounds: int | None,
    directory: str,
    federation: bool,
    peers: bool,
    scaling: bool,
    contenders: str | None,
    plot: str | None,
    as_json: bool,
) -> None:
    """Measure keyop beside the physical limit on the same bytes, in one run.

    Each figure is the median of several rounds, keyop and its limit in turn, so that the ratio
    holds on a noisy machine. Payloads are JSON objects of 200 bytes. It writes up to 2 GiB below
    --dir and removes it again. The last column is what keyop's ratio is meant to reach, and MISS
    where it does not.

    Example: keyop-bench --only publish,batch --rounds 15

    With --peers, keyop does the same work as others do, each with its own client, in processes of
    its own, in the same durability class. What is not installed is named, and left out.

    Example: keyop-bench --peers --only publish,latency --contenders keyop,sqlite

    With --scaling, the cost of a message for some sizes of payloads, and for some numbers of
    channels, subscribers, peers, bytes to catch up with, and segments. It writes up to 12 GiB.
    """
    if contenders and not peers:
        raise click.UsageError("--contenders goes with --peers")
    if plot and not (peers or scaling):
        raise click.UsageError("--plot goes with --peers or --scaling")
    if federation + peers + scaling > 1:
        raise click.UsageError("only one of --federation, --peers and --scaling")
    rounds = rounds or (5 if peers else 3 if scaling else 7)
    workplace = tempfile.mkdtemp(prefix="keyop-bench-", dir=directory)
    figures: list[Figure] = []
    try:
        scale, rounds = (0.05, min(rounds, 2)) if quick else (1.0, rounds)
        if peers:
            # Not for the other figures, which need nothing of it.
            from keyop.bench.peers.command import compare

            compare(workplace, scale, rounds, only, contenders, as_json, plot)
            return
        if scaling:
            from keyop.bench.scaling.command import trace

            trace(workplace, scale, rounds, only, as_json, plot)
            return
        named = {
            name: measure
            for bench in _benches(federation, workplace, scale, rounds)
            for name, measure in bench.figures()
        }
        wanted = only.split(",") if only else list(named)
        unknown = [name for name in wanted if name not in named]
        if unknown:
            raise click.UsageError(f"no figure {unknown[0]!r}; there are {', '.join(named)}")
        for name in wanted:
            figures.append(named[name]())
            if not as_json:
                click.echo(figures[-1].as_line())
    finally:
        shutil.rmtree(workplace)
    if as_json:
        result = {
            "keyop": __version__,
            "python": platform.python_version(),
            "machine": platform.platform(),
            "figures": [figure.as_json() for figure in figures],
        }
        click.echo(orjson.dumps(result, option=orjson.OPT_INDENT_2))


def _benches(federation: bool, workplace: str, scale: float, rounds: int) -> list[Any]:
    if not federation:
        return [Bench(workplace, scale, rounds), WatchingBench(workplace, scale, rounds)]
    # TLS takes a while to load, and the other figures do not need it.
    from keyop.bench.federation import FederationBench

    return [FederationBench(workplace, scale, min(rounds, 3))]
