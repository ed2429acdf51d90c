"""``keyop tail``: records without subscribing, found without reading all, damage shown as such."""

from __future__ import annotations

import json
import os
import pty
import signal
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from keyop.errors import StorageError
from keyop.fs import FileSystem
from keyop.inspection import DataDirectory
from keyop.look.records import Reader
from tests.integration.helpers import (
    channel_dir,
    log_bytes,
    record,
    running,
    tree,
    write_offset,
    write_segment,
)

from .helpers import Process, environment, keyop, refused, wait_for, well

MAX = 10 << 20


def hour(number: int, **fields: Any) -> bytes:
    return record(number, ts=f"2026-01-02T{number:02}:00:00Z", **fields)


def payloads(*args: object) -> list[Any]:
    return [each["payload"] for each in objects(*args)]


def objects(*args: object) -> list[Any]:
    return [json.loads(line) for line in well("tail", "orders", "--json", *args).lines]


@pytest.fixture
def day(data_dir: Path) -> bytes:
    """A channel with a record for each hour, in three segments."""
    lines = [hour(number) for number in range(24)]
    start = 0
    for part in (lines[:10], lines[10:20], lines[20:]):
        write_segment(data_dir, "orders", start, b"".join(part))
        start += len(b"".join(part))
    return b"".join(lines)


def test_the_last_ten(day: bytes) -> None:
    """Without options it is the last ten, each a line with its offset, time, type and payload."""
    lines = well("tail", "orders").lines
    assert [line.split()[-1] for line in lines] == [str(number) for number in range(14, 24)]
    assert lines[-1].split() == [
        str(len(day) - len(hour(23))),
        "2026-01-02T23:00:00Z",
        "com.example.T",
        "23",
    ]


def test_json_has_every_field(data_dir: Path) -> None:
    """With --json it is what subscribe prints, numbers digit for digit."""
    line = record(raw='{"n":1.50e+3,"big":1e999}', correlation_id="c", service_name="s")
    write_segment(data_dir, "orders", 0, line)
    out = well("tail", "orders", "--json").out
    assert '"payload":{"n":1.50e+3,"big":1e999}}' in out
    assert json.loads(out) == {
        "id": "id-0",
        "channel": "orders",
        "origin": "there",
        "payload_type": "com.example.T",
        "timestamp": "2026-01-02T03:04:05.12Z",
        "correlation_id": "c",
        "service_name": "s",
        "offset": 0,
        "payload": {"n": 1500.0, "big": float("inf")},
    }


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["-n", 3], [21, 22, 23]),
        (["-n", 0], []),
        (["-n", 99], list(range(24))),
        (["--from", "2026-01-02T21:30:00Z"], [22, 23]),
        (["--from", "2026-01-02T05:00:00Z", "-n", 2], [5, 6]),
        (["--from", "2026-01-02T05:00:00Z", "--until", "2026-01-02T07:00:00Z"], [5, 6]),
        (["--until", "2026-01-02T03:00:00Z"], [0, 1, 2]),
        (["--until", "2026-01-02T12:00:00Z", "-n", 2], [10, 11]),
        (["--from", 0, "--until", len(hour(0))], [0]),
        (["--from", len(hour(0)) + 5, "-n", 1], [1]),
        (["--from", "latest"], []),
        (["--from", "earliest", "-n", 1], [0]),
        (["--from", "2026-01-02T09:00:00Z", "--until", "earliest"], []),
        (["--from", 10**15], []),
    ],
)
def test_bounds(day: bytes, args: list[object], expected: list[int]) -> None:
    """-n, --from and --until choose: the last ones, or the first ones from a position on."""
    assert payloads(*args) == expected


def test_so_long_ago(data_dir: Path) -> None:
    """-1h30m means so long before now."""
    now = datetime.now(timezone.utc)
    stamps = [now - timedelta(minutes=minutes) for minutes in (100, 80, 5)]
    lines = [record(n, ts=stamp.strftime("%Y-%m-%dT%H:%M:%SZ")) for n, stamp in enumerate(stamps)]
    write_segment(data_dir, "orders", 0, b"".join(lines))
    assert payloads("--from", "-1h30m") == [1, 2]
    assert payloads("--from", "-99999w") == [0, 1, 2]
    assert payloads("--from", "-1d", "--until", "-60m") == [0, 1]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["n=1"], [0]),
        (["payload.n=1"], [0]),
        (["n=1.0"], [0]),
        (["n=true"], [2]),
        (["name=1"], [1]),
        (["name=x=y"], [2]),
        (["list.1.a=null"], [1]),
        (["list.9.a=null"], []),
        (["list.x=null"], []),
        (["a.b=dotted"], [0]),
        (["n.more=1"], []),
        (["payload_type=com.example.U"], [1]),
        (["id=id-2"], [2]),
        (["correlation_id=c", "kind=k"], [0]),
        (["correlation_id=c"], [0, 1]),
        (["service_name=s"], []),
        ([f"n={2**70}"], [3]),
        (['payload="text"'], [4]),
        (["payload=text"], [4]),
        (["kind="], [3]),
        (['list={"a"'], []),
    ],
)
def test_where(data_dir: Path, where: list[str], expected: list[int]) -> None:
    """Conditions look into envelope and payload, compare as JSON does, and must all hold."""
    lines = [
        record({"n": 1, "a.b": "dotted", "kind": "k"}, id="id-0", correlation_id="c"),
        record(
            {"name": "1", "list": [0, {"a": None}]},
            id="id-1",
            correlation_id="c",
            payload_type="com.example.U",
        ),
        record({"n": True, "name": "x=y"}, id="id-2"),
        record({"n": 2**70, "kind": ""}, id="id-3"),
        record("text", id="id-4"),
        b"garbage\n",
    ]
    write_segment(data_dir, "orders", 0, b"".join(lines))
    options = [part for each in where for part in ("--where", each)]
    assert [each["id"] for each in objects(*options)] == [f"id-{n}" for n in expected]


def test_the_last_that_match(data_dir: Path) -> None:
    """With --where, -n counts those that match, however far back they are."""
    lines = [record({"n": n, "odd": n % 2 == 1, "x": "x" * 900}, id=f"{n}") for n in range(500)]
    write_segment(data_dir, "orders", 0, b"".join(lines[:250]))
    write_segment(data_dir, "orders", len(b"".join(lines[:250])), b"".join(lines[250:]))
    assert [each["n"] for each in payloads("-n", 3, "--where", "odd=false")] == [494, 496, 498]
    assert [each["n"] for each in payloads("--where", "n=3")] == [3]
    assert payloads("--where", "n=-1") == []


def test_damage_is_shown_and_passed_over(data_dir: Path) -> None:
    """What is no record is shown in its place; whole records around and in it are shown too."""
    flipped = record(2).replace(b"there", b"thEre")
    joined = record(3)[:-1] + b"\x1b[31m" + record(4)
    future = record(5, v=2)
    write_segment(data_dir, "orders", 0, record(1) + flipped + b"\n" + joined + future + record(6))
    shown = objects()
    assert [each.get("payload", "damaged") for each in shown] == (
        [1, "damaged", "damaged", 3, "damaged", 4, "damaged", 6]
    )
    assert shown[1] == {
        "channel": "orders",
        "offset": len(record(1)),
        "end": len(record(1)) + len(flipped),
        "damaged": "the checksum does not match",
    }
    assert shown[6]["damaged"] == "envelope version 2 is not known"
    lines = well("tail", "orders").lines
    assert "damaged" in lines[4]
    assert lines[4].endswith("\\x1b[31m")
    assert payloads("--where", "origin=there") == [1, 3, 4, 6]


def test_a_gap_a_long_record_and_a_torn_end(data_dir: Path, tmp_path: Path) -> None:
    """Missing bytes, a record beyond the limit and an unfinished one are told apart."""
    conf = tmp_path / "c.yaml"
    conf.write_text(f"storage: {{data_dir: {data_dir}, max_record_bytes: 400}}\n")
    write_segment(data_dir, "orders", 0, record(1) + record("x" * 200_000, id="long") + b'{"v":1,')
    write_segment(data_dir, "orders", 300_000, record(2) + b'{"v":1,"id')
    lines = objects("-c", conf)
    assert [each.get("payload") or each["damaged"].split(":")[0] for each in lines] == (
        [1, "longer than storage.max_record_bytes allows", "unfinished", 2]
    )


def test_nothing_reaches_a_terminal_raw(data_dir: Path) -> None:
    """Whatever a record holds, its line has no control character and no reversed text."""
    hostile = "\x1b]0;x\x07\x9b\u202e\x7f"
    line = record(hostile, payload_type=hostile, ts="2026-01-02T03:04:05Z").replace(
        b',"payload":', b',"payload":\r\t', 1
    )
    write_segment(data_dir, "orders", 0, line + hostile.encode() + b"\xff\n")
    for option in ([], ["--json"]):
        out = keyop("tail", "orders", *option).out
        assert [char for char in out if char != "\n" and not char.isprintable()] == []
        assert out.count("\n") == 2


def test_a_lone_surrogate(data_dir: Path) -> None:
    """Half a character, which JSON can spell and UTF-8 cannot, is replaced, as by v0.11.0."""
    body = record(raw='{"n":12345678901234567890123}', correlation_id="\ud800", crc=False)
    write_segment(data_dir, "orders", 0, body)
    assert objects()[0]["correlation_id"] == "\ufffd"
    assert payloads() == [{"n": 12345678901234567890123}]
    assert well("tail", "orders").out.endswith('{"n":12345678901234567890123}\n')


class CountingFiles(FileSystem):
    """Counts the bytes that are read."""

    count = 0

    def pread(self, fd: int, size: int, position: int) -> bytes:
        data = super().pread(fd, size, position)
        self.count += len(data)
        return data


def test_the_place_is_found_without_reading_all(data_dir: Path) -> None:
    """The last records and a time cost a few looks, not the channel."""
    number = start = 0
    for _ in range(16):
        lines = []
        for _ in range(300):
            stamp = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=number)
            lines.append(
                record("x" * 3000, id=f"{number}", ts=stamp.strftime("%Y-%m-%dT%H:%M:%SZ"))
            )
            number += 1
        write_segment(data_dir, "orders", start, b"".join(lines))
        start += len(b"".join(lines))
    fs = CountingFiles()
    with Reader(DataDirectory(str(data_dir), fs), "orders", MAX) as reader:
        begin, end = reader.bounds()
        assert (begin, end) == (0, start)
        at = reader.start_of_last(10, begin, end, None, lambda *_: None)
        assert [found.fields["id"] for found in reader.read(at, end) if found.fields] == (
            [str(n) for n in range(number - 10, number)]
        )
        assert fs.count < 1 << 20
        moment = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=1234)
        found = next(reader.read(reader.resolve(moment), end))
        assert found.fields is not None
        assert found.fields["id"] == "1234"
        assert fs.count < 4 << 20 < end


def test_it_changes_nothing(data_dir: Path) -> None:
    """It takes no lock, not even one that another process holds for ever, and writes nothing."""
    with running(data_dir) as messenger:
        messenger.publish("orders", "t", 1)
        before = tree(data_dir)
        with (
            DataDirectory(str(data_dir)).locked("orders"),
            Process("tail", "orders", "--json") as process,
        ):
            assert process.end().json["payload"] == 1
        assert tree(data_dir) == before


def test_retention_deletes_meanwhile(data_dir: Path, day: bytes) -> None:
    """A segment that goes away under a reader is passed over; what is left is shown."""
    with Reader(DataDirectory(str(data_dir)), "orders", MAX) as reader:
        records = reader.read(0)
        first = next(records)
        assert first.offset == 0
        for path in sorted(channel_dir(data_dir, "orders").iterdir())[:2]:
            path.unlink()
        rest = [found for found in records if found.fields]
    shown = [found.fields["payload"] for found in rest if found.fields]
    assert shown[-4:] == [20, 21, 22, 23]
    with Reader(DataDirectory(str(data_dir)), "orders", MAX) as reader:
        assert next(reader.read(0)).offset == len(b"".join(map(hour, range(20))))


def test_a_channel_without_records(data_dir: Path) -> None:
    """One that has only subscribers is empty; one that is not there is an error that says so."""
    write_offset(data_dir, "orders", "a", 0)
    assert well("tail", "orders").out == ""
    assert well("tail", "orders", "--from", "-1d").out == ""
    assert refused(1, "tail", "other").startswith("there is no channel 'other' in ")
    with pytest.raises(StorageError):
        Reader(DataDirectory(str(data_dir)), "other", MAX)


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--from", "noon"], "Invalid value for '--from': 'noon' is not 'earliest', 'latest', an"),
        (["--until", "-10x"], "Invalid value for '--until': '-10x' is not"),
        (["--where", "x"], "Invalid value for '--where': 'x' is not KEY=VALUE"),
        (["--where", "a..b=1"], "Invalid value for '--where'"),
        (["-n", "-1"], "Invalid value for '-n'"),
        (["--follow", "--until", "latest"], "--follow has no end"),
    ],
)
def test_wrong_use(args: list[str], what: str) -> None:
    """Wrong use ends with 2 and says what would be right."""
    assert refused(2, "tail", "orders", *args).startswith(what)


# --- following, and a terminal


def test_following(data_dir: Path) -> None:
    """What another process appends is shown as it comes, across a roll; Ctrl-C ends with 130."""
    with running(data_dir, storage={"max_segment_bytes": 300}) as messenger:
        messenger.publish("orders", "t", 0)
        with Process("tail", "orders", "-f", "-n", 1, "--json") as process:
            assert json.loads(process.line())["payload"] == 0
            for number in range(1, 6):
                messenger.publish("orders", "t", number)
                assert json.loads(process.line())["payload"] == number
            process.send(signal.SIGINT)
            assert process.end() == (130, "", "")


def test_following_a_channel_that_is_not_there_yet(data_dir: Path) -> None:
    """A channel that has only a subscriber is followed from its first record on."""
    write_offset(data_dir, "orders", "a", 0)
    with Process("tail", "orders", "-f", "--json", "-n", 0) as process:
        # It must be waiting before the first record comes, or -n 0 would leave that out.
        wait_for(lambda: _waits(process), "it to wait")
        with running(data_dir) as messenger:
            messenger.publish("orders", "t", 1)
            assert json.loads(process.line())["payload"] == 1
        process.send(signal.SIGINT)
        assert process.end().status == 130


def _waits(process: Process) -> bool:
    """Whether it waits in its event loop."""
    return "epoll" in Path(f"/proc/{process.popen.pid}/wchan").read_text() or (
        "ep_poll" in Path(f"/proc/{process.popen.pid}/wchan").read_text()
    )


def test_following_ends_after_so_many(data_dir: Path) -> None:
    """With --from and -n, following ends after N records."""
    write_segment(data_dir, "orders", 0, record(1))
    with Process("tail", "orders", "-f", "--from", "earliest", "-n", 2, "--json") as process:
        assert json.loads(process.line())["payload"] == 1
        well("publish", "orders", "2", "-q")
        result = process.end()
    assert result.status == 0
    assert result.json["payload"] == 2


def test_a_reader_that_goes_away_ends_following(data_dir: Path) -> None:
    """A closed pipe ends it with 141 without a word, even if nothing more is appended."""
    write_segment(data_dir, "orders", 0, record(1))
    with Process("tail", "orders", "-f") as process:
        process.line()
        process.popen.stdout.close()
        assert process.popen.wait(30) == 141
        assert process.popen.stderr.read() == b""


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_on_a_terminal_only(
    data_dir: Path, variables: dict[str, str], coloured: bool
) -> None:
    """A terminal gets colours unless NO_COLOR is set."""
    write_segment(data_dir, "orders", 0, record(1))
    env = environment(TERM="xterm", **variables)
    if coloured:
        env.pop("NO_COLOR", None)
    here, there = pty.openpty()
    try:
        with Process("tail", "orders", stdout=there, env=env) as process:
            assert process.popen.wait(30) == 0
        out = os.read(here, 4096)
    finally:
        os.close(here)
        os.close(there)
    assert (b"\x1b[" in out) == coloured
    assert b"com.example.T" in out
    assert log_bytes(data_dir, "orders") == record(1)
