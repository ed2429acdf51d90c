"""Pictures of what was measured, with matplotlib: bars for peers, curves for what grows.

They are SVG, and the same bytes for the same figures.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

# Of Okabe and Ito, which colour-blind people tell apart; keyop's comes first.
_OWN = "#0072B2"
_OTHERS = "#B4B4B4"
_OUTLIER = "#D55E00"
_LINES = (_OWN, _OUTLIER, "#009E73", "#CC79A7", "#E69F00")
_MARKERS = "osD^v"
_TEXT, _FAINT = "#222222", "#666666"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "keyop",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _FAINT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}
_WIDTH_IN = 8.0
_LINE_CHARACTERS, _NOTE_CHARACTERS = 84, 34
# The share of the width that a character at the end of a bar takes, and what is before the first.
_CHARACTER, _GAP = 0.017, 0.03


def draw_measure(measure: Mapping[str, Any], path: str) -> None:
    """Draw one measure of several programs as horizontal bars, the best one on top.

    Args:
        measure: ``measure``, ``title``, ``unit``, ``more_is_better``, ``durability`` and
            ``results``: each with ``name``, ``median``, ``rounds``, and perhaps ``p99`` and
            ``note``.
        path: the file; its suffix, ``.svg`` or ``.png``, says what it becomes.
    """
    # The worst first: the lowest bar is drawn first.
    results = sorted(
        measure["results"], key=lambda each: each["median"], reverse=not measure["more_is_better"]
    )
    figure, axes = _axes(1.5 + 0.44 * len(results))
    room = 0.0
    for place, each in enumerate(results):
        own = each["name"].startswith("keyop")
        rounds = each["rounds"] or [each["median"]]
        axes.barh(place, each["median"], 0.62, color=_OWN if own else _OTHERS, zorder=2)
        axes.hlines(place, min(rounds), max(rounds), color=_TEXT, lw=1.2, zorder=3)
        axes.vlines([min(rounds), max(rounds)], place - 0.12, place + 0.12, color=_TEXT, lw=1.2)
        end = max(rounds)
        text = _number(each["median"])
        if each.get("p99"):
            axes.plot(each["p99"], place, marker="D", ms=5, color=_OUTLIER, zorder=4)
            end = max(end, each["p99"])
            text += f" (p99 {_number(each['p99'])})"
        axes.annotate(
            text, (end, place), (8, 0), textcoords="offset points", va="center", color=_TEXT
        )
        room = max(room, end / (1 - _GAP - _CHARACTER * len(text)))
    axes.set_yticks(range(len(results)), [_label(each) for each in results])
    axes.set_xlim(0, room)
    axes.xaxis.set_major_formatter(_plain)
    axes.tick_params(axis="y", length=0)
    better = "more" if measure["more_is_better"] else "less"
    under = [f"{measure['unit']}; {better} is better"]
    if measure.get("durability"):
        under.append(f"kept: {measure['durability']}")
    if any(each.get("p99") for each in results):
        under.append("diamonds: 99th percentile")
    # From the left of the figure: beside long names, the axes leave no room for them.
    axes.locator_params(axis="x", nbins=5)
    figure.suptitle(measure["title"], x=0.01, ha="left", fontweight="bold", color=_TEXT)
    figure.supxlabel(
        textwrap.fill("; ".join(under), _LINE_CHARACTERS), x=0.01, ha="left", fontsize="medium"
    )
    _save(figure, path)


def draw_curve(curve: Mapping[str, Any], path: str) -> None:
    """Draw a curve of ``keyop.bench.scaling``, both axes logarithmic, a line for each series.

    Args:
        path: as for :func:`draw_measure`.
    """
    figure, axes = _axes(4.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for number, series in enumerate(curve["series"]):
        points = series["points"]
        xs = [each["x"] for each in points]
        colour = _LINES[number % len(_LINES)]
        axes.fill_between(
            xs,
            [min(each["rounds"]) for each in points],
            [max(each["rounds"]) for each in points],
            color=colour,
            alpha=0.15,
            lw=0,
        )
        axes.plot(
            xs,
            [each["y"] for each in points],
            color=colour,
            marker=_MARKERS[number % len(_MARKERS)],
            ms=5,
            label=series["name"],
        )
    axes.grid(True, which="major", color="#E4E4E4", lw=0.8)
    xs = sorted({each["x"] for series in curve["series"] for each in series["points"]})
    axes.set_xticks(xs, [_amount(x, curve["x_unit"]) for x in xs])
    axes.tick_params(axis="x", which="minor", length=0)
    axes.xaxis.set_minor_formatter("")
    axes.yaxis.set_major_formatter(_plain)
    axes.yaxis.set_minor_formatter(_few if _span(curve) < 10 else "")
    unit = "" if curve["x_unit"] in ("", "bytes") else f" ({curve['x_unit']})"
    name = curve["x_name"][:1].upper() + curve["x_name"][1:]
    axes.set_ylabel(curve["unit"])
    axes.legend(frameon=False)
    axes.set_title(curve["title"], loc="left", fontweight="bold", color=_TEXT)
    under = f"{name}{unit}. {curve['note']}"
    axes.set_xlabel(textwrap.fill(under, _LINE_CHARACTERS), loc="left")
    _save(figure, path)


def _axes(height_in: float) -> tuple[Any, Any]:
    """Return a figure with one pair of axes, without what says nothing."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure: Any = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        axes = figure.add_subplot()
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: str) -> None:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        kind = path.rsplit(".", 1)[-1]
        # The date would make another file of the same figures.
        figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _label(result: Mapping[str, Any]) -> str:
    note = textwrap.wrap(result.get("note") or "", _NOTE_CHARACTERS)
    return "\n".join([result["name"], *note])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(value: float, _: object = None) -> str:
    """Return a tick's text, without powers of ten."""
    return f"{value:,.10g}"


def _few(value: float, _: object = None) -> str:
    """Return the text of a tick between powers of ten, of which few are told."""
    return _plain(value) if f"{value:e}"[0] in "25" else ""


def _span(curve: Mapping[str, Any]) -> float:
    """Return the largest y ÷ the smallest."""
    ys = [y for series in curve["series"] for each in series["points"] for y in each["rounds"]]
    return float(max(ys) / min(ys))


def _amount(x: int, unit: str) -> str:
    """Return an x in words; of bytes, as KiB, MiB or GiB."""
    if unit == "bytes":
        for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if x >= 1 << power:
                return f"{x / (1 << power):,g} {name}"
        return f"{x} B"
    return f"{x:,}"
