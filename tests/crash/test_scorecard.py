"""Every row of the scorecard, a tenth of it; bin/check-reliability runs the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.main import ROWS, run_row
from tests.reliability.row import Row
from tests.reliability.table import as_lines, header

ROOT = Path(__file__).parents[2]
LAUNCHER = [sys.executable, str(ROOT / "bin" / "check-reliability")]
SEED = int(os.environ.get("KEYOP_SEED", "1"))


@pytest.mark.patience(300)
@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, tmp_path: Path) -> None:
    """Nothing is lost, torn or late, whatever the row does."""
    row = run_row(name, tmp_path, SEED, quick=True)
    assert row.passed, "\n".join(as_lines(row))
    assert row.figures
    assert list(tmp_path.iterdir()) == []


def test_a_failing_row_is_told() -> None:
    """Its problems are shown, the first twenty of them, and how many more there are."""
    row = Row("R0", "nothing")
    row.count(lost=3)
    for number in range(30):
        row.problem(f"problem {number}")
    lines = list(as_lines(row))
    assert "FAIL" in lines[0]
    assert lines[0].index("3") < header().index("torn")
    assert sum("! problem" in line for line in lines) == 20
    assert "10 more" in lines[-1]
    assert row.as_json()["problem_count"] == 30


def launch(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAUNCHER, *args], capture_output=True, text=True, timeout=50)


def test_launcher(tmp_path: Path) -> None:
    """It prints a table, or JSON, for the rows that were asked for, and leaves nothing behind."""
    done = launch("--quick", "--only", "r10", "--seed", "7", "--dir", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed 7" in done.stdout
    assert "R10" in done.stdout
    assert "pass" in done.stdout
    done = launch("--quick", "--only", "R10", "--seed", "7", "--json", "--dir", str(tmp_path))
    result = json.loads(done.stdout)
    assert result["passed"] is True
    assert result["seed"] == 7
    (row,) = result["rows"]
    assert row["row"] == "R10"
    assert row["figures"]["flips"] > 1000
    assert row["problems"] == []
    assert list(tmp_path.iterdir()) == []


def test_launcher_fails(tmp_path: Path) -> None:
    """A row that fails makes it exit with 1; one that is not there, with 2."""
    assert launch("--only", "R99").returncode == 2
    script = (
        "import sys; from tests.reliability import main, r10_bit_flips as row\n"
        "def broken(run): raise RuntimeError('broken off')\n"
        "row.run = broken\n"
        "main.main(sys.argv[1:])\n"
    )
    args = ["--quick", "--only", "R10", "--dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", script, *args], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    assert "broken off" in done.stdout
    assert list(tmp_path.iterdir()) == []
