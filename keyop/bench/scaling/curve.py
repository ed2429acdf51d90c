"""From the results of the points to curves: what is drawn, and how far each bends up."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# The results of one point, a round each, by their names.
Results = Sequence[Mapping[str, float]]


class Series(NamedTuple):
    """A line of a curve: ``key`` is the result that it shows.

    Results called ``key.other`` stand in the line's points as ``other``.
    """

    key: str
    name: str


class Curve(NamedTuple):
    """What one picture shows, in one unit.

    Its bend is the largest y ÷ the y at the x ``bend_from``, or at the smallest if that was not
    measured. With ``per_x`` each y is divided by its x before, as it is a total for all of them.
    """

    measure: str
    title: str
    x_name: str
    x_unit: str
    unit: str
    series: tuple[Series, ...]
    note: str = ""
    bend_from: int = 0
    per_x: bool = False


def as_json(
    curve: Curve, results: Mapping[int, Results], left_out: Sequence[str]
) -> dict[str, Any]:
    """Return the curve as plain data: ``series`` with ``points``, and the ``bend`` of the worst.

    Args:
        results: by x. A line has no point where a result is missing.
        left_out: why points are missing, for the note.
    """
    series: list[dict[str, Any]] = [
        {"name": each.name, "points": points, "bend": _bend(curve, points)}
        for each in curve.series
        if (points := _points(each.key, results))
    ]
    return {
        "measure": curve.measure,
        "title": curve.title,
        "x_name": curve.x_name,
        "x_unit": curve.x_unit,
        "unit": curve.unit,
        "series": series,
        "bend": max((each["bend"] for each in series), default=1.0),
        "note": " ".join([curve.note, *left_out]).strip(),
    }


def _points(key: str, results: Mapping[int, Results]) -> list[dict[str, Any]]:
    points = []
    for x, rounds in results.items():
        values = [each[key] for each in rounds if key in each]
        if not values:
            continue
        point: dict[str, Any] = {"x": x, "y": statistics.median(values), "rounds": values}
        for name in rounds[0]:
            if name.startswith(f"{key}."):
                point[name.removeprefix(f"{key}.")] = statistics.median(
                    each[name] for each in rounds
                )
        points.append(point)
    return points


def _bend(curve: Curve, points: Sequence[Mapping[str, Any]]) -> float:
    costs = {each["x"]: each["y"] / (each["x"] if curve.per_x else 1) for each in points}
    begin = curve.bend_from if curve.bend_from in costs else min(costs)
    bend: float = max(cost for x, cost in costs.items() if x >= begin) / costs[begin]
    return bend
