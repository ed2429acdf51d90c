"""What ``keyop-bench --peers`` does with its options."""

from __future__ import annotations

import datetime
import os
import platform
import signal
from collections.abc import Sequence
from typing import Any

import click
import orjson

from keyop.bench.peers.contenders import CONTENDERS
from keyop.bench.peers.measures import MEASURES
from keyop.bench.peers.processes import ContenderError
from keyop.bench.peers.report import as_text, missing_as_text
from keyop.bench.peers.run import Peers
from keyop.version import __version__


def compare(
    workplace: str,
    scale: float,
    rounds: int,
    only: str | None,
    contenders: str | None,
    as_json: bool,
    plot: str | None,
) -> None:
    """Run the measures in that directory, and print what they find."""
    measures = _chosen("measure", only, {each.name: each for each in MEASURES})
    wanted = _chosen("contender", contenders, {each.key: each for each in CONTENDERS})
    missing = {each.key: each.why_missing() for each in wanted}
    present = [each for each in wanted if not missing[each.key]]
    peers = Peers(workplace, scale, rounds)
    # What runs is ended when this is, too.
    before = signal.signal(signal.SIGTERM, _interrupt)
    results = []
    try:
        for measure in measures:
            results.append(peers.measure(measure, present, _say))
            if not as_json:
                click.echo(as_text(results[-1]))
            if plot is not None:
                _draw(results[-1], plot)
    except ContenderError as error:
        raise click.ClickException(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    absent = [
        {"name": each.title, "why": missing[each.key]} for each in wanted if missing[each.key]
    ]
    if as_json:
        click.echo(orjson.dumps(_whole(results, absent), option=orjson.OPT_INDENT_2))
    else:
        for line in missing_as_text(absent):
            click.echo(line)


def _chosen(what: str, names: str | None, there: dict[str, Any]) -> Sequence[Any]:
    if names is None:
        return list(there.values())
    for name in names.split(","):
        if name not in there:
            raise click.UsageError(f"no {what} {name!r}; there are {', '.join(there)}")
    return [there[name] for name in there if name in names.split(",")]


def _say(word: str) -> None:
    """Tell a person who waits at a terminal what is going on."""
    if os.isatty(2):
        click.echo(f"\r\x1b[K{word}", nl=False, err=True)


def _draw(measure: dict[str, Any], directory: str) -> None:
    from keyop.bench.plots import draw_measure

    draw_measure(measure, os.path.join(directory, f"{measure['measure']}.svg"))


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _whole(results: list[dict[str, Any]], missing: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "measures": results,
        "missing": missing,
        "machine": platform.platform(),
        "keyop": __version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
