"""How the cost of a message grows, and with what: curves, each point in a process of its own."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from keyop.bench.scaling.curve import as_json
from keyop.bench.scaling.process import run_point

# The modules of this package that measure something; imported when they are needed, because what
# some of them import would count as memory of all others. Of each, ``prepare`` makes the data once
# for every x, below a directory of its own. Then ``MEASURES`` are measured, each in a new process
# that is told the directory, x and the scale. ``refusal`` says why one cannot be.
STUDIES = ("payload", "channels", "subscribers", "peers", "backlog", "segments")
# At a smaller scale than 1.
_QUICK_POINTS = 3


def run(
    directory: str, scale: float, rounds: int, only: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the curves, as they are measured, of all studies or of those named.

    Args:
        directory: below which data is written, and removed again.
        scale: share of the full counts; below 1, of each study the smallest three points only.
        rounds: how often each point is measured, in turn with the others.

    Raises:
        ValueError: there is no study of a name.
    """
    wanted = list(STUDIES) if only is None else only
    for name in wanted:
        if name not in STUDIES:
            raise ValueError(f"no curve {name!r}; there are {', '.join(STUDIES)}")
    return (each for name in wanted for each in _curves(name, directory, scale, rounds))


def _curves(name: str, directory: str, scale: float, rounds: int) -> Iterator[dict[str, Any]]:
    study: Any = importlib.import_module(f"{__name__}.{name}")
    xs: Sequence[int] = study.XS if scale >= 1 else study.XS[:_QUICK_POINTS]
    left_out = {
        (x, measure): reason
        for x in xs
        for measure in study.MEASURES
        if (reason := study.refusal(directory, x, measure))
    }
    results: dict[int, list[dict[str, float]]] = {x: [] for x in xs}
    with ExitStack() as stack:
        places = {}
        for x in xs:
            if any((x, measure) not in left_out for measure in study.MEASURES):
                place = tempfile.TemporaryDirectory(prefix="keyop-bench-", dir=directory)
                places[x] = stack.enter_context(place)
                study.prepare(places[x], x, scale)
        if scale >= 1:
            os.sync()  # or the disk would be busy with what was prepared
        # All points in each round, so that a drift of the machine bends no curve.
        for _ in range(rounds):
            for x, place_of_x in places.items():
                measured: dict[str, float] = {}
                for measure in study.MEASURES:
                    if (x, measure) not in left_out:
                        measured |= run_point(study.__name__, measure, place_of_x, x, scale)
                results[x].append(measured)
    reasons = list(dict.fromkeys(left_out.values()))
    for curve in study.CURVES:
        yield as_json(curve, results, reasons)
