"""The curves on their own: ``python -m keyop.bench.scaling``."""

from __future__ import annotations

import os
from typing import Any

import click
import orjson

from keyop.bench.scaling import run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Three points of each curve: does it run.")
@click.option("--only", metavar="NAME,…", help="Some curves only, by name.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--dir",
    "directory",
    type=click.Path(exists=True, file_okay=False, writable=True),
    default=".",
    show_default=True,
    help="Where to write.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option(
    "--plot",
    "pictures",
    type=click.Path(exists=True, file_okay=False, writable=True),
    help="Draw each curve into a file of this directory; needs matplotlib.",
)
def main(
    quick: bool,
    only: str | None,
    rounds: int,
    directory: str,
    as_json: bool,
    pictures: str | None,
) -> None:
    """Measure how the cost of a message grows, and with what.

    Each point is the median of several rounds, in a process of its own.

    Example: python -m keyop.bench.scaling --quick --only payload,segments
    """
    try:
        measured = run(directory, 0.05 if quick else 1.0, rounds, only.split(",") if only else None)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    curves = []
    for curve in measured:
        curves.append(curve)
        if not as_json:
            click.echo(_as_table(curve))
        if pictures:
            from keyop.bench.plots import draw_curve

            draw_curve(curve, os.path.join(pictures, f"{curve['measure']}.svg"))
    if as_json:
        click.echo(orjson.dumps({"curves": curves}, option=orjson.OPT_INDENT_2))


def _as_table(curve: dict[str, Any]) -> str:
    lines = [f"{curve['title']} ({curve['unit']})"]
    for series in curve["series"]:
        points = "  ".join(f"{each['x']:,}: {each['y']:.4g}" for each in series["points"])
        lines.append(f"  {series['name']:<28} {points}  (bend {series['bend']:.2f})")
    return "\n".join([*lines, *([f"  {curve['note']}"] if curve["note"] else [])])


if __name__ == "__main__":
    main()
