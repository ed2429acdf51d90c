"""``keyop export`` and ``keyop import``: whole records out and in, and nothing twice."""

from __future__ import annotations

import json
import os
import pty
import signal
from pathlib import Path

import pytest

from keyop.cli.imported import check_line
from tests.integration.helpers import (
    crc_holds,
    log_bytes,
    record,
    records,
    running,
    segments,
    tree,
    write_segment,
)

from .helpers import Process, environment, keyop, refused, wait_for, well

LINES = [record(n, ts=f"2026-01-02T{n:02}:00:00Z") for n in range(6)]
ALL = b"".join(LINES)


def export(*args: object) -> str:
    return well("export", "orders", *args).out


# --- export


def test_lines_come_out_as_they_stand(data_dir: Path) -> None:
    """Byte for byte, across segments, with a checksum or without."""
    odd = record(raw='{"n":1.50e+3, "b":1e999}', crc=False)
    write_segment(data_dir, "orders", 0, ALL)
    write_segment(data_dir, "orders", len(ALL), odd)
    before = tree(data_dir)
    assert export().encode() == ALL + odd
    assert tree(data_dir) == before


@pytest.mark.parametrize(
    ("args", "chosen"),
    [
        (["--from", "2026-01-02T03:00:00Z"], slice(3, None)),
        (["--until", "2026-01-02T03:00:00Z"], slice(0, 3)),
        (["--from", len(LINES[0]), "--until", len(LINES[0]) * 2], slice(1, 2)),
        (["--where", "id=id-4"], slice(4, 5)),
        (["--from", "latest"], slice(0, 0)),
    ],
)
def test_a_part(data_dir: Path, args: list[object], chosen: slice) -> None:
    """--from, --until and --where choose, as in tail."""
    write_segment(data_dir, "orders", 0, ALL)
    assert export(*args).encode() == b"".join(LINES[chosen])


def test_what_is_damaged_is_left_out_and_named(data_dir: Path) -> None:
    """Whole records in and around damage come out; the exit status tells."""
    write_segment(
        data_dir, "orders", 0, b"x\n" * 11 + LINES[0][:-1] + b"junk\x1b" + LINES[1] + LINES[2]
    )
    result = keyop("export", "orders")
    assert result.status == 1
    assert result.out.encode() == b"".join(LINES[:3])
    lines = result.err.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("keyop: orders: left out at 0: not a JSON object")
    assert lines[-1] == "keyop: 12 places of orders left out in all"


def test_a_terminal_is_safe(data_dir: Path) -> None:
    """Only a terminal gets escapes."""
    line = record(raw='"\x9b\u202e"', id="a")
    write_segment(data_dir, "orders", 0, line)
    assert export().encode() == line
    here, there = pty.openpty()
    try:
        with Process("export", "orders", stdout=there, env=environment()) as process:
            assert process.popen.wait(30) == 0
        out = os.read(here, 4096).decode()
    finally:
        os.close(here)
        os.close(there)
    assert out == line.decode().replace("\x9b\u202e", "\\u009b\\u202e").replace("\n", "\r\n")


def test_pipes(data_dir: Path) -> None:
    """A reader that goes away ends it with 141; a full disk is a failure."""
    write_segment(data_dir, "orders", 0, b"".join(record("x" * 9000, id=f"{n}") for n in range(99)))
    with Process("export", "orders") as process:
        process.line()
        process.popen.stdout.close()
        assert process.popen.wait(30) == 141
        assert process.popen.stderr.read() == b""
    with open("/dev/full", "wb") as full, Process("export", "orders", stdout=full) as process:
        assert b"No space left on device" in process.popen.communicate(timeout=30)[1]
    assert process.popen.returncode == 1


def test_no_such_channel(data_dir: Path) -> None:
    """It is said, and nothing is written."""
    write_segment(data_dir, "orders", 0, ALL)
    assert refused(1, "export", "other").startswith("there is no channel 'other'")


# --- import


def test_there_and_back(data_dir: Path, tmp_path: Path) -> None:
    """What is exported and imported elsewhere is the same, byte for byte, and can be read."""
    with running(data_dir) as messenger:
        for payload in ({"n": 1}, "é\x1b", None, 2**63):
            messenger.publish("orders", "com.example.T", payload, correlation_id="c")
    out = export()
    other = tmp_path / "deep" / "other"
    result = well("import", "orders", "--data-dir", other, stdin=out.encode())
    assert result.out == "imported 4 messages to orders\n"
    assert log_bytes(other, "orders") == log_bytes(data_dir, "orders")
    assert well("check", "--data-dir", other).out.endswith("no problems\n")
    got = keyop(
        "subscribe", "orders", "--id", "a", "--from", "earliest", "--count", 4, "--data-dir", other
    )
    assert got.out == '{"n":1}\n"é\\u001b"\nnull\n9223372036854775808\n'


def test_a_second_import_adds_nothing(data_dir: Path) -> None:
    """Ids that the channel holds are left out, however far back they are."""
    conf = data_dir.parent / "c.yaml"
    conf.write_text(f"storage: {{data_dir: {data_dir}}}\ndedup: {{seen_id_lru_size: 1}}\n")
    well("import", "orders", "-c", conf, stdin=b"".join(LINES[:4]))
    result = well("import", "orders", "-c", conf, stdin=ALL + ALL)
    assert result.out == "imported 2 messages to orders; 10 were there already\n"
    assert log_bytes(data_dir, "orders") == ALL


def test_what_others_write_meanwhile_counts(data_dir: Path) -> None:
    """An id that is published after the channel was read is still found in the window."""
    write_segment(data_dir, "orders", 0, LINES[0])
    with Process("import", "orders") as process:
        with running(data_dir) as messenger:
            messenger.publish("orders", "t", 1, message_id="id-1")
        result = process.end(LINES[1])
    assert result.out == "imported 0 messages to orders; 1 were there already\n"


def test_a_missing_checksum_is_made(data_dir: Path) -> None:
    """A line of v0.11.0, or of an editor that ends lines with CR LF, becomes a record of ours."""
    line = record(raw='{"a": 1 }', crc=False)
    well("import", "orders", stdin=line[:-1] + b"\r\n\n" + LINES[1][:-1] + b"\r\n")
    first, second = log_bytes(data_dir, "orders").splitlines(keepends=True)
    assert crc_holds(first)
    assert first.startswith(line[:-2])
    assert second == LINES[1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"garbage\n", "not a JSON object"),
        (b"[1]\n", "not a JSON object"),
        (LINES[3].replace(b"there", b"thEre"), "the checksum does not match"),
        (record(1, v=2), "envelope version 2 is not known"),
        (record(1, id=""), "its id has 0 characters; use 1 to 255"),
        (record(1, id="x" * 256), "its id has 256 characters; use 1 to 255"),
        (record(1, channel="other"), "it is of channel 'other'; --rename takes it all the same"),
        (record(1, ts="today"), "'today' is not an RFC 3339 timestamp"),
        (record(raw="NaN"), "not a JSON object: NaN is not JSON"),
        (record("x" * 300, id="long"), "longer than 280 bytes"),
    ],
)
def test_a_bad_line(data_dir: Path, tmp_path: Path, line: bytes, why: str) -> None:
    """It ends the import with its number and the reason; of its batch nothing is written."""
    conf = tmp_path / "c.yaml"
    conf.write_text(f"storage: {{data_dir: {data_dir}, max_record_bytes: 280}}\n")
    if len(line) > 280 and b"xxxx" in line and "id has" in why:
        conf.write_text(f"storage: {{data_dir: {data_dir}}}\n")
    file = LINES[0] + LINES[1] + line + LINES[2]
    error = refused(1, "import", "orders", "-c", conf, stdin=file)
    assert error.startswith("line 3 of stdin: ")
    assert why in error
    assert error.endswith(
        "mend it and run the import again, or pass over such lines with --skip-bad"
    )
    assert not data_dir.exists()
    result = keyop("import", "orders", "-c", conf, "--skip-bad", stdin=file)
    assert result.out == "imported 3 messages to orders; 1 line passed over\n"
    assert result.err.startswith("keyop: line 3 of stdin passed over: ")
    assert log_bytes(data_dir, "orders") == b"".join(LINES[:3])


def test_batches_before_a_bad_line_are_in(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is said, and running it again with the line mended goes on there."""
    monkeypatch.setattr("keyop.cli.appender._BATCH_RECORDS", 2)
    error = refused(1, "import", "orders", stdin=b"".join(LINES[:5]) + b"x\n" + LINES[5])
    assert error.startswith("line 6 of stdin: not a JSON object")
    assert "; lines up to 4 are in; " in error
    assert log_bytes(data_dir, "orders") == b"".join(LINES[:4])
    assert well("import", "orders", stdin=ALL).out == (
        "imported 2 messages to orders; 4 were there already\n"
    )
    assert log_bytes(data_dir, "orders") == ALL


def test_many_bad_lines_are_counted(data_dir: Path) -> None:
    """Only the first ones are named."""
    result = keyop("import", "orders", "--skip-bad", stdin=b"x\n" * 30 + LINES[0])
    assert len(result.err.splitlines()) == 10
    assert result.out == "imported 1 message to orders; 30 lines passed over\n"


def test_rename(data_dir: Path) -> None:
    """A record of another channel becomes one of this, all else to the letter."""
    line = record(raw='{"n":1.50e+3}', id="a", channel="old", route=["hub"], correlation_id="c")
    well("import", "orders", "--rename", stdin=line)
    (stored,) = log_bytes(data_dir, "orders").splitlines(keepends=True)
    assert crc_holds(stored)
    assert stored[:-19] == line[:-19].replace(b'"channel":"old"', b'"channel":"orders"')
    twice = record(raw='1,"payload":2', channel="old", crc=False).rstrip()
    data = check_line(twice, 1, "orders", True, 1000).data
    assert crc_holds(data)
    assert json.loads(data)["payload"] == 2


def test_a_dry_run(data_dir: Path) -> None:
    """It checks everything and changes nothing."""
    assert well("import", "orders", "--dry-run", stdin=ALL).out == (
        "would import 6 messages to orders\n"
    )
    assert not data_dir.exists()
    write_segment(data_dir, "orders", 0, LINES[0])
    before = tree(data_dir)
    assert well("import", "orders", "--dry-run", stdin=ALL).out == (
        "would import 5 messages to orders; 1 were there already\n"
    )
    assert refused(1, "import", "orders", "--dry-run", stdin=b"x\n").startswith("line 1 of stdin")
    assert tree(data_dir) == before


@pytest.mark.parametrize("stdin", [b"", b"\n\n"])
def test_nothing(data_dir: Path, stdin: bytes) -> None:
    """Nothing to import is no error and creates nothing."""
    assert well("import", "orders", stdin=stdin).out == "imported 0 messages to orders\n"
    assert not data_dir.exists()


def test_names_are_checked(data_dir: Path) -> None:
    """A reserved or impossible channel is refused before anything is read."""
    assert "dead-letter" in refused(1, "import", "orders.dead-letter", stdin=ALL)
    assert refused(1, "import", "a/b", stdin=ALL)
    assert not data_dir.exists()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """The error names it."""
    (tmp_path / "file").touch()
    error = refused(1, "import", "orders", "--data-dir", tmp_path / "file" / "d", stdin=ALL)
    assert "file" in error


def test_a_long_file_through_a_pipe_with_rolls(data_dir: Path, tmp_path: Path) -> None:
    """A thousand records from a pipe into small segments come out the same."""
    conf = tmp_path / "c.yaml"
    conf.write_text(f"storage: {{data_dir: {data_dir}, max_segment_bytes: 20000}}\n")
    file = b"".join(record(n) for n in range(3000))
    with Process("import", "orders", "-c", conf) as process:
        assert process.end(file).out == "imported 3,000 messages to orders\n"
    assert log_bytes(data_dir, "orders") == file
    assert len(segments(data_dir, "orders")) > 10


def test_killed_or_interrupted_and_run_again(data_dir: Path) -> None:
    """After kill -9 or Ctrl-C in the middle, the same file again completes it, nothing twice."""
    file = b"".join(record("x" * 2000, id=f"m{n}") for n in range(4000))
    for number in (signal.SIGKILL, signal.SIGINT):
        with Process("import", "orders") as process:
            process.popen.stdin.write(file[: len(file) * 2 // 3])
            wait_for(
                lambda: data_dir.exists() and log_bytes(data_dir, "orders"), "something to be in"
            )
            process.send(number)
            result = process.popen.communicate(timeout=30)
            assert process.popen.returncode in (-number, 130), result
    assert keyop("import", "orders", stdin=file).status == 0
    ids = [each["id"] for each in records(data_dir, "orders")]
    assert ids == [f"m{n}" for n in range(4000)]


def test_export_into_import(data_dir: Path, tmp_path: Path) -> None:
    """The two make a pipe."""
    write_segment(data_dir, "orders", 0, ALL)
    other = tmp_path / "other"
    with Process("export", "orders") as source:
        arguments = ("import", "orders", "--data-dir", other)
        with Process(*arguments, stdin=source.popen.stdout) as sink:
            assert sink.end().out == "imported 6 messages to orders\n"
        assert source.popen.wait(30) == 0
    assert log_bytes(other, "orders") == ALL
    assert json.loads(log_bytes(other, "orders").splitlines()[0])["id"] == "id-0"
