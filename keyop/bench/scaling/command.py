"""What ``keyop-bench --scaling`` does with its options."""

from __future__ import annotations

import os
from typing import Any

import click
import orjson

from keyop.bench.scaling import run


def trace(
    workplace: str, scale: float, rounds: int, only: str | None, as_json: bool, plot: str | None
) -> None:
    """Measure the curves in that directory, and print them."""
    try:
        measured = run(workplace, scale, rounds, only.split(",") if only else None)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    curves = []
    for curve in measured:
        curves.append(curve)
        if not as_json:
            click.echo(_as_table(curve))
        if plot:
            from keyop.bench.plots import draw_curve

            draw_curve(curve, os.path.join(plot, f"by-{curve['measure']}.svg"))
    if as_json:
        click.echo(orjson.dumps({"curves": curves}, option=orjson.OPT_INDENT_2))


def _as_table(curve: dict[str, Any]) -> str:
    lines = [f"{curve['title']} ({curve['unit']})"]
    for series in curve["series"]:
        points = "  ".join(f"{each['x']:,}: {each['y']:.4g}" for each in series["points"])
        lines.append(f"  {series['name']:<28} {points}  (bend {series['bend']:.2f})")
    return "\n".join([*lines, *([f"  {curve['note']}"] if curve["note"] else [])])
