"""``keyop demo``, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def demo(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(ROOT / "bin" / "keyop"), "demo", *args]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=50, check=False)


def test_a_file(tmp_path: Path) -> None:
    """Every line arrives at both, although one of them was killed."""
    lines = b"".join(b"line %d\n" % number for number in range(5000))
    (tmp_path / "file").write_bytes(lines)
    done = demo(str(tmp_path / "file"), "--dir", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["perfect"]
    assert told["published"] == 5000
    assert told["killed_after"] >= 2000
    for name, seen in told["subscribers"].items():
        assert (seen["lines"], seen["missing"]) == (5000, 0), name
        text = (tmp_path / "out" / f"{name}.txt").read_bytes()
        assert b"4999 line 4999\n" in text


def test_stdin_for_people(tmp_path: Path) -> None:
    """Without --json it ends with a table and with where the files are."""
    done = demo("-", "--dir", str(tmp_path / "out"), stdin=b"a\nb\nc\n")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert "received by 'steady'" in text
    assert "SIGKILL" in text
    segment = next((tmp_path / "out" / "data" / "channels" / "demo").glob("*.jsonl"))
    assert str(segment.parent) in text


def test_too_little(tmp_path: Path) -> None:
    """One line is no demonstration."""
    done = demo("-", "--dir", str(tmp_path / "out"), stdin=b"a\n")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"two are needed" in done.stderr


def test_a_directory_that_was_used(tmp_path: Path) -> None:
    """Nothing of an earlier demo is overwritten."""
    (tmp_path / "data").mkdir()
    done = demo("-", "--dir", str(tmp_path), stdin=b"a\nb\n")
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """One line says so."""
    done = demo(str(tmp_path / "none"), "--dir", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"none" in done.stderr


def test_across_a_hub(tmp_path: Path) -> None:
    """Every line arrives once, although connections were cut and the hub was killed."""
    lines = b"".join(b"line %d\n" % number for number in range(5000))
    (tmp_path / "file").write_bytes(lines)
    done = demo("--federated", str(tmp_path / "file"), "--dir", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["perfect"]
    assert (told["published"], told["stored"]) == (5000, 5000)
    assert (told["received"]["lines"], told["received"]["twice"]) == (5000, 0)
    assert (tmp_path / "out" / "receiver.txt").read_bytes().endswith(b"4999 line 4999\n")


def test_across_a_hub_for_people(tmp_path: Path) -> None:
    """It ends with what was stored and received, and what has happened in between."""
    text = b"".join(b"%d\n" % number for number in range(100))
    done = demo("--federated", "-", "--dir", str(tmp_path / "out"), stdin=text)
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode()
    assert "received by 'receiver'" in out
    assert "cut 2 connections" in out
    assert "SIGKILL" in out
