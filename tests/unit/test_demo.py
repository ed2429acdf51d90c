"""The demo's own parts: what it sends, and how it holds what arrived against that."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from keyop.demo.compare import compare
from keyop.demo.source import as_line, as_payload, copy_source, find_default


def held_against(tmp_path: Path, received: bytes) -> tuple[int, int, int, int, bool]:
    (tmp_path / "sent").write_bytes(b"a\nb\nc\n")
    (tmp_path / "received").write_bytes(received)
    found = compare(str(tmp_path / "sent"), str(tmp_path / "received"), 1.0)
    return found.lines, found.missing, found.twice, found.altered, found.in_order


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (b"0 a\n1 b\n2 c\n", (3, 0, 0, 0, True)),
        (b"0 a\n1 b\n1 b\n2 c\n", (3, 0, 1, 0, True)),
        (b"0 a\n2 c\n", (2, 1, 0, 0, True)),
        (b"1 b\n0 a\n2 c\n", (3, 0, 0, 0, False)),
        (b"0 a\n1 x\n2 c\n", (3, 0, 0, 1, True)),
        (b"", (0, 3, 0, 0, True)),
    ],
)
def test_compare(
    tmp_path: Path, received: bytes, expected: tuple[int, int, int, int, bool]
) -> None:
    """What is missing, altered, out of order or there twice is found."""
    assert held_against(tmp_path, received) == expected


@pytest.mark.parametrize("line", [b"text\n", b"\n", "é\u2028\n".encode(), b"\xff\xfe\n", b"a\r\n"])
def test_a_payload_holds_any_line(line: bytes) -> None:
    """Text or not, its bytes come back."""
    assert as_line(as_payload(7, line)) == line  # type: ignore[arg-type]


def test_a_file_is_copied(tmp_path: Path) -> None:
    """As many lines as allowed, the last one with a newline."""
    (tmp_path / "file").write_bytes(b"a\nb\nc")
    path = str(tmp_path / "file")
    whole = copy_source(path, io.BytesIO(), str(tmp_path / "copy"), 10)
    assert (whole.lines, (tmp_path / "copy").read_bytes()) == (3, b"a\nb\nc\n")
    assert copy_source(path, io.BytesIO(), str(tmp_path / "copy"), 2).lines == 2


def test_stdin_is_copied(tmp_path: Path) -> None:
    """A dash means stdin."""
    copied = copy_source("-", io.BytesIO(b"a\nb\n"), str(tmp_path / "copy"), 10)
    assert (copied.name, copied.lines) == ("stdin", 2)


def test_something_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest log that is large enough, else the sources of Python itself."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x\n")
    large.write_bytes(b"some line\n" * 300_000)
    monkeypatch.setattr("keyop.demo.source._LOGS", (str(small), str(large), "/none"))
    assert find_default() == str(large)
    assert copy_source(None, io.BytesIO(), str(tmp_path / "copy"), 50).name == str(large)
    large.unlink()
    assert find_default() is None
    copied = copy_source(None, io.BytesIO(), str(tmp_path / "copy"), 50)
    assert "Python" in copied.name
    assert copied.lines == 50
