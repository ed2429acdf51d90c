"""Lines from stdin and to stdout, of pipes, files and whatever else is put in their place."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click
import gevent
import pytest
from gevent.socket import wait_read

from keyop import PayloadError
from keyop.cli import lines as lines_module
from keyop.cli.lines import LineError, LineTooLongError, LineWriter, read_chunks
from keyop.cli.program import _give_up_stdout
from keyop.cli.publish import Sender
from keyop.rawjson import as_value


@pytest.fixture
def pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A pipe's ends, unbuffered."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", 0) as reader, os.fdopen(write_end, "wb", 0) as writer:
        yield reader, writer


def as_stream(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, name, value)


# --- in


def test_lines_come_as_they_are_written(
    pipe: tuple[IO[bytes], IO[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line is there once its newline is; waiting for more lets others run."""
    reader, writer = pipe
    as_stream("stdin", reader, monkeypatch)
    chunks = read_chunks(100)
    writer.write(b"one\ntw")
    assert next(chunks) == [b"one"]
    ticks: list[int] = []
    gevent.spawn(lambda: (ticks.append(1), writer.write(b"o\nthree\nrest"), writer.close()))
    assert next(chunks) == [b"two", b"three"]
    assert ticks == [1]
    assert list(chunks) == [[b"rest"]]


def test_a_shared_pipe(pipe: tuple[IO[bytes], IO[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody else took what had come between the waiting and the reading, it waits on."""
    reader, writer = pipe
    as_stream("stdin", reader, monkeypatch)
    os.set_blocking(reader.fileno(), False)
    wait = lines_module.wait_read
    takers = iter([True])

    def wait_and_lose(fd: int) -> None:
        wait(fd)
        if next(takers, False):
            os.read(fd, 100)
            gevent.spawn(lambda: (writer.write(b"two\n"), writer.close()))

    monkeypatch.setattr(lines_module, "wait_read", wait_and_lose)
    writer.write(b"one\n")
    assert list(read_chunks(100)) == [[b"two"]]


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular file ends where it ends, with or without a newline."""
    path = tmp_path / "in"
    for content, lines in ((b"a\nb", [b"a", b"b"]), (b"a\n", [b"a"]), (b"", []), (b"\n", [b""])):
        path.write_bytes(content)
        with open(path, "rb") as file:
            as_stream("stdin", file, monkeypatch)
            assert [line for chunk in read_chunks(100) for line in chunk] == lines


def test_what_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without a descriptor serves too."""
    as_stream("stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")), monkeypatch)
    assert list(read_chunks(100)) == [[b"a", b"b"]]


def test_too_long_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines before it are returned, it is not."""
    as_stream("stdin", io.TextIOWrapper(io.BytesIO(b"a\n" + b"x" * 101)), monkeypatch)
    chunks = read_chunks(100)
    assert next(chunks) == [b"a"]
    with pytest.raises(LineTooLongError, match="more than 100 bytes"):
        next(chunks)


@pytest.mark.parametrize(
    ("name", "use"), [("stdin", lambda: next(read_chunks(9))), ("stdout", LineWriter)]
)
def test_closed_streams_are_said_to_be(
    name: str, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without the stream gets a reason, not an internal error."""
    as_stream(name, None, monkeypatch)
    with pytest.raises(click.ClickException, match=f"{name} is closed"):
        use()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1", 1),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b'{"a":[1.5,null]}', {"a": [1.5, None]}),
    ],
)
def test_values_are_exact(text: bytes, value: object) -> None:
    """Integers keep their digits, also those beyond 64 bits."""
    assert as_value(text) == value


def test_values_too_deep_for_one_parser() -> None:
    """What is too deep for the exact parser is what the other one makes of it."""
    text = b"[" * 1000 + b"1234567890123456789" + b"]" * 1000
    value: Any = as_value(text)
    for _ in range(1000):
        (value,) = value
    assert value == 1234567890123456789


# --- out


def test_a_slow_reader_keeps_nobody_else_waiting(
    pipe: tuple[IO[bytes], IO[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a pipe is full, only who writes waits; lines of two writers do not mix."""
    reader, writer = pipe
    as_stream("stdout", writer, monkeypatch)
    out = LineWriter()
    lines = [letter * 200_000 + b"\n" for letter in (b"a", b"b")]
    jobs = [gevent.spawn(out.write, line) for line in lines]
    gevent.sleep(0.01)
    assert not any(job.dead for job in jobs)
    got = b""
    while len(got) < 400_002:
        wait_read(reader.fileno())
        got += os.read(reader.fileno(), 65536)
    gevent.joinall(jobs, raise_error=True)
    assert got == b"".join(lines)
    assert not out.broken


def test_a_shared_non_blocking_pipe(
    pipe: tuple[IO[bytes], IO[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another process made the pipe non-blocking, it is waited for all the same."""
    reader, writer = pipe
    as_stream("stdout", writer, monkeypatch)
    out = LineWriter()
    refusals = iter([True])
    write = os.write

    def refuse_once(fd: int, data: bytes) -> int:
        if next(refusals, False):
            raise BlockingIOError
        return write(fd, data)

    monkeypatch.setattr("keyop.cli.lines.os.write", refuse_once)
    out.write(b"line\n")
    assert os.read(reader.fileno(), 100) == b"line\n"


def test_a_reader_that_went_away(
    pipe: tuple[IO[bytes], IO[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed without writing, and writing fails."""
    reader, writer = pipe
    as_stream("stdout", writer, monkeypatch)
    out = LineWriter()
    assert not out.broken
    reader.close()
    assert out.broken
    with pytest.raises(BrokenPipeError):
        out.write(b"x\n")


def test_a_file_is_never_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes into a file has no reader to lose."""
    with open(tmp_path / "out", "wb") as file:
        as_stream("stdout", file, monkeypatch)
        out = LineWriter()
        out.write(b"x\n")
        assert not out.broken
    assert (tmp_path / "out").read_bytes() == b"x\n"


def test_giving_up_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still written afterwards goes nowhere; a stream that is no file is let be."""
    with open(tmp_path / "out", "w") as file:
        as_stream("stdout", file, monkeypatch)
        _give_up_stdout()
        file.write("lost")
    assert (tmp_path / "out").read_text() == ""
    as_stream("stdout", io.StringIO(), monkeypatch)
    _give_up_stdout()


# --- between the two


def test_a_batch_that_is_refused_names_its_line() -> None:
    """What the messenger refuses as a whole is sent one by one up to the line at fault."""

    class Refusing:
        def __init__(self) -> None:
            self.sent: list[object] = []

        def publish_batch(self, *_: object, **__: object) -> None:
            raise PayloadError("no")

        def publish(self, channel: str, payload_type: str, value: object, **_: object) -> str:
            if value == "bad":
                raise PayloadError("bad value")
            self.sent.append(value)
            return "id"

    messenger = Refusing()
    sender = Sender(messenger, "orders", None, True, None, 1 << 20)  # type: ignore[arg-type]
    with pytest.raises(LineError, match="line 3 of stdin: bad value"):
        sender._send_lines([b"a", b"b", b"bad", b"c"])
    assert messenger.sent == ["a", "b"]
    messenger.sent.clear()
    sender._send_lines([b"c"])  # refused together, accepted alone
    assert messenger.sent == ["c"]
