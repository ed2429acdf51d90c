"""The curves of ``keyop.bench.scaling`` in their quick form, and the pictures of both kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from keyop.bench.plots import draw_curve, draw_measure
from keyop.bench.scaling.curve import Curve, Series, as_json

BENCH = Path(__file__).parents[2] / "bin" / "keyop-bench"
MIB = 1 << 20
POINTS = {
    "payload": [100, 300, 1024],
    "channels-open": [1, 10, 100],
    "channels-memory": [1, 10, 100],
    "channels-publish": [1, 10, 100],
    "channels-idle": [1, 10, 100],
    "subscribers": [1, 10, 100],
    "peers": [1, 3, 10],
    "backlog": [MIB, 16 * MIB, 128 * MIB],
    "backlog-memory": [MIB, 16 * MIB, 128 * MIB],
    "segments": [1, 10, 100],
    "segments-open": [1, 10, 100],
}


def scaling(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH), "--scaling", "--quick", "--rounds", "1", *options],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def texts(path: Path) -> str:
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return "\n".join(root.itertext())


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    place = tmp_path_factory.mktemp("place")
    done = scaling("--dir", str(place), "--json")
    assert done.returncode == 0, done.stderr
    assert os.listdir(place) == []
    made: list[dict[str, Any]] = json.loads(done.stdout)["curves"]
    return made


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib keeps the files of the fonts open that it has used once."""
    pytest.importorskip("matplotlib")
    draw_measure(measure(True), str(tmp_path_factory.mktemp("fonts") / "all.svg"))


@pytest.mark.patience(120)
def test_quick(curves: list[dict[str, Any]]) -> None:
    """Each curve has positive points where it should; nothing is left behind."""
    assert [each["measure"] for each in curves] == list(POINTS)
    for curve in curves:
        assert curve["series"]
        assert curve["bend"] > 0
        for series in curve["series"]:
            assert [each["x"] for each in series["points"]] == POINTS[curve["measure"]]
            for point in series["points"]:
                assert point["rounds"] == [point["y"]]
                assert point["y"] > 0


@pytest.mark.patience(120)
def test_curves_drawn(tmp_path: Path, fonts: None, curves: list[dict[str, Any]]) -> None:
    """Each picture has its title and the name of each line."""
    for curve in curves:
        path = tmp_path / f"{curve['measure']}.svg"
        draw_curve(curve, str(path))
        drawn = texts(path)
        for text in (curve["title"], *(series["name"] for series in curve["series"])):
            assert text in drawn


def test_plot(tmp_path: Path, fonts: None) -> None:
    """The command draws into a directory what it measures."""
    place, pictures = tmp_path / "place", tmp_path / "pictures"
    place.mkdir()
    pictures.mkdir()
    done = scaling("--dir", str(place), "--only", "subscribers", "--plot", str(pictures))
    assert done.returncode == 0, done.stderr
    assert os.listdir(place) == []
    assert os.listdir(pictures) == ["by-subscribers.svg"]
    assert "subscribers" in texts(pictures / "by-subscribers.svg")


def test_for_people(tmp_path: Path) -> None:
    """A line for each series, with what it costs per message and how far it bends."""
    done = scaling("--dir", str(tmp_path), "--only", "payload")
    assert done.returncode == 0, done.stderr
    title, publish, *_ = done.stdout.splitlines()
    assert title == "Cost of a message by the size of its payload (µs per message)"
    assert "publish, one greenlet" in publish
    assert "(bend " in publish


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "speed"], "no curve 'speed'; there are payload, channels"),
        (["--only", "payload,speed"], "no curve 'speed'"),
        (["--rounds", "0"], "0 is not in the range x>=1"),
    ],
)
def test_called_wrongly(tmp_path: Path, options: list[str], said: str) -> None:
    """It is refused before anything is measured."""
    done = scaling("--dir", str(tmp_path), *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("per_x", "bend_from", "bend"),
    [(False, 0, 4.0), (True, 0, 1.0), (False, 10, 2.0), (True, 10, 1.0), (False, 7, 4.0)],
)
def test_bend(per_x: bool, bend_from: int, bend: float) -> None:
    """It is the largest y (or y of each x) ÷ the one where it begins."""
    curve = Curve("m", "t", "x", "", "µs", (Series("y", "a"),), "", bend_from, per_x)
    results = {1: [{"y": 1.0}], 10: [{"y": 2.0}], 20: [{"y": 4.0}]}
    assert as_json(curve, results, [])["bend"] == bend


def test_points() -> None:
    """A point is the median of its rounds; one that was left out is missing, with its reason."""
    curve = Curve("m", "t", "x", "", "µs", (Series("a", "A"), Series("b", "B")), "Note.")
    results = {
        1: [{"a": 3.0, "a.rate": 7.0, "b": 5.0}, {"a": 1.0, "a.rate": 9.0, "b": 5.0}],
        10: [{"b": 5.0}, {"b": 5.0}],
    }
    made = as_json(curve, results, ["Left out: a at 10."])
    first, second = made["series"]
    assert first["points"] == [{"x": 1, "y": 2.0, "rounds": [3.0, 1.0], "rate": 8.0}]
    assert [each["x"] for each in second["points"]] == [1, 10]
    assert made["note"] == "Note. Left out: a at 10."


def measure(more_is_better: bool) -> dict[str, Any]:
    results: list[dict[str, Any]] = [
        {"name": "slow <&>", "version": "1.0", "median": 10.0, "rounds": [9.0, 10.0, 12.0]},
        {"name": "keyop", "version": "2.0", "median": 90.0, "rounds": [80.0, 90.0], "p99": 180.0},
        {"name": "third", "version": "", "median": 20.0, "rounds": [], "note": "in memory only"},
    ]
    return {
        "measure": "m",
        "title": "What is compared",
        "unit": "messages/s",
        "more_is_better": more_is_better,
        "durability": "none",
        "results": results,
    }


@pytest.mark.parametrize("more_is_better", [True, False])
def test_bars(tmp_path: Path, fonts: None, more_is_better: bool) -> None:
    """The picture has every name and value, and is the same again for the same figures."""
    paths = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in paths:
        draw_measure(measure(more_is_better), str(path))
    drawn = texts(paths[0])
    for text in (
        "keyop",
        "slow <&>",
        "third",
        "in memory only",
        "90 (p99 180)",
        "kept: none",
    ):
        assert text in drawn
    better = "more is better" if more_is_better else "less is better"
    assert better in drawn
    # From the bottom up, so the best one comes last.
    best, worst = ("keyop", "slow") if more_is_better else ("slow", "keyop")
    assert drawn.index(worst) < drawn.index(best)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_curve_without_a_point(tmp_path: Path, fonts: None) -> None:
    """Series may have points at different x."""
    curve = Curve("m", "Title", "things", "", "µs", (Series("a", "A"), Series("b", "B")))
    results = {1: [{"a": 3.0, "b": 5.0}], 10: [{"b": 6.0}]}
    draw_curve(as_json(curve, results, []), str(tmp_path / "curve.svg"))
    drawn = texts(tmp_path / "curve.svg")
    assert all(text in drawn for text in ("Title", "Things", "A", "B", "µs", "10"))
