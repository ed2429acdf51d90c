"""Progress bars: on a terminal, on stderr, and only for what takes a while."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from keyop.cli.progress import Progress
from tests.integration.helpers import record, write_segment

from .helpers import ROOT, dead_letter, environment


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar on stderr, only on a terminal and only after a moment."""
    monkeypatch.setattr("keyop.cli.progress._PATIENCE_S", 0)
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        with Progress("checking") as progress:
            progress(10, 100)
            progress(100, 100)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("checking" in captured.err) == terminal
    monkeypatch.setattr("keyop.cli.progress._PATIENCE_S", 1000)
    with Progress("checking") as progress:
        progress(100, 100)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("args", "label"),
    [
        (["channels", "--count"], "counting"),
        (["dead-letter", "list"], "looking"),
        (["tail", "a", "--where", "x=1"], "searching"),
        (["export", "a"], "exporting"),
        (["replay", "a", "--into", "b", "--yes"], "replaying"),
        (["import", "b", "--dry-run", "--rename"], "importing"),
    ],
)
def test_every_long_command_shows_progress(
    data_dir: Path, tmp_path: Path, args: list[str], label: str
) -> None:
    """What reads a channel shows a bar on a terminal, and only there."""
    write_segment(data_dir, "a", 0, b"".join(record(n) for n in range(9)))
    write_segment(data_dir, "a.dead-letter", 0, dead_letter(record(1), channel="a"))
    program = (
        "from keyop.cli import progress; progress._PATIENCE_S = 0; "
        "from keyop.cli.main import main; main()"
    )
    (tmp_path / "lines").write_bytes(record(1))
    here, there = pty.openpty()
    try:
        with open(tmp_path / "lines", "rb") as lines:
            done = subprocess.run(
                [sys.executable, "-c", program, *args],
                stdin=lines,
                stdout=subprocess.PIPE,
                stderr=there,
                cwd=ROOT,
                env=environment(TERM="xterm"),
                timeout=50,
                check=False,
            )
        err = os.read(here, 65536).decode()
    finally:
        os.close(here)
        os.close(there)
    assert done.returncode == 0, err
    assert label in err
    assert "100%" in err
    assert label.encode() not in done.stdout
