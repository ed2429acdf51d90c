"""``bin/keyop-bench`` in its quick form: that every figure is measured, not how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCAL = (
    "publish,batch,always,backlog,latency,memory,stall,two-writers,watched-publish,watched-delivery"
)
# The same as from one client, with ten, takes half a minute.
FEDERATION = "to-hub,from-hub,round,idle,silent,start"


def bench(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "bin" / "keyop-bench"), "--dir", str(directory), *options],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )


@pytest.mark.parametrize("options", [["--only", LOCAL], ["--federation", "--only", FEDERATION]])
def test_quick(tmp_path: Path, options: list[str]) -> None:
    """Each figure has a value, a limit and a ratio; nothing is left behind."""
    done = bench(tmp_path, "--quick", "--json", *options)
    assert done.returncode == 0, done.stderr
    figures: list[dict[str, Any]] = json.loads(done.stdout)["figures"]
    assert len(figures) == len(options[-1].split(","))
    for figure in figures:
        assert figure["keyop"] > 0
        assert figure["limit"] > 0
        assert figure["ratio"] > 0
    assert os.listdir(tmp_path) == []


def test_for_people(tmp_path: Path) -> None:
    """A line for each figure, with its goal."""
    done = bench(tmp_path, "--quick", "--only", "batch")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "publish_batch of 64" in line
    assert "goal" in line


def test_an_unknown_figure(tmp_path: Path) -> None:
    """It is refused with the names that there are."""
    done = bench(tmp_path, "--quick", "--only", "nothing")
    assert done.returncode == 2
    assert "there are publish, batch" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rounds", "0"], "0 is not in the range x>=1"),
        (["--dir", "/nonexistent"], "Directory '/nonexistent' does not exist"),
        (["--only", "speed"], "no figure 'speed'; there are publish, batch"),
    ],
)
def test_called_wrongly(tmp_path: Path, options: list[str], said: str) -> None:
    """One line says what is wrong, and nothing is measured."""
    done = bench(tmp_path, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
