"""``keyop publish``: an argument, or lines of stdin, into a channel."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.integration.helpers import log_bytes, records

from .helpers import KEYOP, Process, keyop, refused, wait_for, well


def payloads(data_dir: Path, channel: str = "orders") -> list[object]:
    return [record["payload"] for record in records(data_dir, channel)]


def types(data_dir: Path, channel: str = "orders") -> list[str]:
    return [record["payload_type"] for record in records(data_dir, channel)]


def test_a_json_argument(data_dir: Path) -> None:
    """The argument is published as the value that it is, and the message's id is printed."""
    result = well("publish", "orders", '{"id": 7, "total": 12.5}')
    assert payloads(data_dir) == [{"id": 7, "total": 12.5}]
    assert types(data_dir) == ["keyop.json"]
    assert str(uuid.UUID(result.out.strip())) == records(data_dir, "orders")[0]["id"]


def test_a_text_argument(data_dir: Path) -> None:
    """With --text the argument is a string, even if it is JSON."""
    well("publish", "orders", "--text", "[1]", "-q")
    assert payloads(data_dir) == ["[1]"]
    assert types(data_dir) == ["keyop.text"]


def test_type_and_correlation_id(data_dir: Path) -> None:
    """Both are stamped on every message."""
    well("publish", "orders", "1", "-t", "com.example.T", "--correlation-id", "c-1", "-q")
    keyop("publish", "orders", "-t", "com.example.T", "--correlation-id", "c-1", stdin="a\n2\n")
    found = records(data_dir, "orders")
    assert {each["payload_type"] for each in found} == {"com.example.T"}
    assert {each["correlation_id"] for each in found} == {"c-1"}


@pytest.mark.parametrize("argument", [["-"], []])
def test_lines_of_stdin(data_dir: Path, argument: list[str]) -> None:
    """Each line is a message: the value if it is JSON, else a string; their number is said."""
    result = keyop("publish", "orders", *argument, stdin='{"a": 1}\nhello\n"x"\n12')
    assert result == (0, "", "keyop: published 4 messages to orders\n")
    assert payloads(data_dir) == [{"a": 1}, "hello", "x", 12]
    assert types(data_dir) == ["keyop.json", "keyop.text", "keyop.json", "keyop.json"]


def test_lines_as_text(data_dir: Path) -> None:
    """With --text every line is a string; an empty line is an empty string."""
    assert keyop("publish", "orders", "--text", "-q", stdin="1\n\n").err == ""
    assert payloads(data_dir) == ["1", ""]


def test_no_lines_at_all(data_dir: Path) -> None:
    """An empty stdin publishes nothing and is no error."""
    assert keyop("publish", "orders", stdin="") == (
        0,
        "",
        "keyop: published 0 messages to orders\n",
    )


@pytest.mark.parametrize("text", ["2^64", "nope", "{", "", "[1,]", "'a'"])
def test_an_argument_that_is_no_json_is_wrong_use(text: str, data_dir: Path) -> None:
    """The user is told about quoting and --text, and nothing is created."""
    line = refused(2, "publish", "orders", text)
    assert line.startswith("PAYLOAD is not JSON")
    assert "--text" in line
    assert not data_dir.exists()


@pytest.mark.parametrize("channel", ["..", "a/b", "", "x.dead-letter"])
def test_a_wrong_channel_creates_nothing(channel: str, data_dir: Path) -> None:
    """The name is checked before anything is done."""
    assert channel in refused(1, "publish", channel, "1")
    assert not data_dir.exists()


@pytest.mark.parametrize("number", [str(2**64), str(-(2**63) - 1)])
def test_numbers_are_exact_or_refused(number: str, data_dir: Path) -> None:
    """An integer that other readers could not hold is refused, never altered."""
    assert "cannot be written as JSON" in refused(1, "publish", "orders", "--", number)
    well("publish", "orders", "-q", "--", str(-(2**63)))
    assert payloads(data_dir) == [-(2**63)]


def test_the_line_at_fault_is_named(data_dir: Path) -> None:
    """What comes before a line that cannot be sent is sent, and the line has its number."""
    result = keyop("publish", "orders", stdin=f"1\n2\n{2**64}\n4\n")
    assert result.status == 1
    assert result.err.startswith("keyop: published 2 messages to orders\nkeyop: line 3 of stdin: ")
    assert payloads(data_dir) == [1, 2]


def test_a_line_that_is_no_utf8(data_dir: Path) -> None:
    """It is named with the byte, and what comes before it is sent."""
    result = keyop("publish", "orders", "-q", stdin=b"a\nb\xff\nc\n")
    assert result.err == "keyop: line 2 of stdin: not UTF-8: byte 0xff at position 1\n"
    assert payloads(data_dir) == ["a"]


def small_records(data_dir: Path) -> Path:
    path = data_dir.parent / "small.yaml"
    path.write_text(f"storage: {{data_dir: {data_dir}, max_record_bytes: 400}}\n")
    return path


def test_a_line_that_is_too_long(data_dir: Path) -> None:
    """A line above the limit is never held whole; what comes before it is sent."""
    config = small_records(data_dir)
    result = keyop("publish", "orders", "-q", "-c", config, stdin="1\n" + "x" * 1000 + "\n2\n")
    assert result.err.startswith("keyop: line 2 of stdin: ")
    assert "max_record_bytes" in result.err
    assert payloads(data_dir) == [1]


def test_an_endless_line_is_not_waited_for(data_dir: Path) -> None:
    """Without a newline in sight it ends when the limit is passed, not at the end of input."""
    config = small_records(data_dir)
    with Process("publish", "orders", "-q", "-c", config) as process:
        process.popen.stdin.write(b"1\n" + b"x" * 500)
        process.popen.stdin.flush()
        assert process.error_line().startswith("keyop: line 2 of stdin: more than 400 bytes")
        assert process.popen.wait(20) == 1
    assert payloads(data_dir) == [1]


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in its place is named."""
    path = tmp_path / "file"
    path.touch()
    assert str(path) in refused(1, "publish", "orders", "1", "--data-dir", path)


def test_a_file_as_stdin(data_dir: Path, tmp_path: Path) -> None:
    """A regular file is read to its end."""
    path = tmp_path / "in"
    path.write_text("".join(f"{number}\n" for number in range(10_000)))
    with open(path, "rb") as stdin, Process("publish", "orders", stdin=stdin) as process:
        result = process.end()
    assert result.err == "keyop: published 10,000 messages to orders\n"
    assert payloads(data_dir) == list(range(10_000))


def test_a_pipe_as_stdin_sends_each_line_at_once(data_dir: Path) -> None:
    """A line is published when it comes, not when the pipe is closed or a buffer is full."""
    with Process("publish", "orders", "-") as process:
        for count in (1, 2):
            process.popen.stdin.write(b"%d\n" % count)
            process.popen.stdin.flush()
            wait_for(
                lambda count=count: log_bytes(data_dir, "orders").count(b"\n") == count,
                f"message {count}",
            )
        assert process.end().status == 0


def test_a_terminal_as_stdin_is_asked(data_dir: Path) -> None:
    """Whoever types is told how to end, and Ctrl-D ends."""
    master, slave = pty.openpty()
    try:
        with Process("publish", "orders", stdin=slave) as process:
            os.close(slave)
            assert process.error_line() == "keyop: one message per line, Ctrl-D ends"
            os.write(master, b"hello\n\x04")
            assert process.end() == (0, "", "keyop: published 1 message to orders\n")
    finally:
        os.close(master)
    assert payloads(data_dir) == ["hello"]


def test_no_stdin_at_all(data_dir: Path) -> None:
    """A closed stdin is said to be closed."""
    command = " ".join([*KEYOP, "publish", "orders", "-q", "<&-"])
    done = subprocess.run(command, shell=True, capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, b"keyop: stdin is closed\n")


def test_sigterm_ends_it(data_dir: Path) -> None:
    """A TERM while it waits for input ends it; what was sent is there."""
    with Process("publish", "orders", "-") as process:
        process.popen.stdin.write(b"1\n")
        process.popen.stdin.flush()
        wait_for(lambda: log_bytes(data_dir, "orders"), "the message")
        process.send(signal.SIGTERM)
        assert process.popen.wait(20) == -signal.SIGTERM
    assert json.loads(log_bytes(data_dir, "orders"))["payload"] == 1


def test_an_id_that_cannot_be_printed(data_dir: Path) -> None:
    """That it is published is said: whoever tries again would publish it twice."""
    with (
        open("/dev/full", "wb") as full,
        Process("publish", "orders", "1", stdout=full) as process,
    ):
        _, err = process.popen.communicate(timeout=30)
    assert process.popen.returncode == 1
    (found,) = records(data_dir, "orders")
    assert err.decode() == (
        "keyop: stdout cannot be written (No space left on device); "
        f"the message is published: {found['id']}\n"
    )


def test_a_configuration_with_a_page(data_dir: Path, tmp_path: Path) -> None:
    """A command on the side of what serves it does not, and does not fail where another does."""
    path = tmp_path / "served.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path.write_text(f"storage: {{data_dir: {data_dir}}}\nweb: {{listen_addr: '{address}'}}\n")
        well("publish", "orders", "1", "-q", "-c", path)
