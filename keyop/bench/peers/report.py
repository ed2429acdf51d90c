"""The results for people: a table for each measure, keyop first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def as_text(measure: dict[str, Any]) -> str:
    """Return a table of one measure; each but keyop's line has keyop's ratio to it."""
    head = f"{measure['title']} ({measure['measure']}; {measure['durability']})"
    return "\n".join([head, *_lines(measure)])


def _lines(measure: dict[str, Any]) -> Iterator[str]:
    results = measure["results"]
    ours = next((each["median"] for each in results if each["name"] == "keyop"), None)
    width = max((len(each["name"]) for each in results), default=0)
    notes = []
    for each in results:
        line = f"  {each['name']:<{width}}  {number(each['median']):>9} {measure['unit']}"
        if "p99" in each:
            line += f", p99 {number(each['p99']):>9}"
        if each.get("syncs_per_message") is not None:
            line += f", {each['syncs_per_message']:.2g} syncs each"
        if ours is not None and each["name"] != "keyop":
            line += f"  keyop {number(ours / each['median'])} ×"
        yield line
        if "note" in each:
            notes.append(f"    {each['name']}: {each['note']}")
    yield from notes


def number(value: float) -> str:
    """Return three digits that count, thousands set apart."""
    return f"{float(f'{value:.3g}'):,.10g}"


def missing_as_text(missing: list[dict[str, str]]) -> list[str]:
    """Return a line for each contender that is not here."""
    return [f"not compared with {each['name']}: {each['why']}" for each in missing]
