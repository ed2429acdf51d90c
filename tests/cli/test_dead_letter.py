"""``keyop dead-letter``: looking at what failed, sending it again, putting it away."""

from __future__ import annotations

import base64
import json
import os
import pty
import signal
import zlib
from pathlib import Path

import pytest

from keyop.cli.letter_filter import WholeIds
from keyop.cli.letters import from_base64, pretty, unique_length
from keyop.errors import StorageError
from keyop.inspection import DataDirectory
from tests.integration.helpers import (
    Recorder,
    channel_dir,
    crc_holds,
    dead_letters,
    log_bytes,
    record,
    records,
    running,
    tree,
    wait_until,
    write_offset,
    write_segment,
)

from .helpers import Process, dead_letter, keyop, refused, wait_for, well

HOSTILE = "\x1b]0;x\x07 \x9b31m \u202e\nfake line"


def fail_all(data_dir: Path, *payloads: object, total: int | None = None) -> None:
    """Publish messages that their subscriber, billing, gives up on at once."""

    def refuse(_: object) -> None:
        raise ValueError("no")

    with running(data_dir) as messenger:
        subscription = messenger.subscribe(
            "orders", "billing", refuse, start="earliest", max_retries=0
        )
        for payload in payloads:
            messenger.publish("orders", "com.example.T", payload, correlation_id="c-1")
        wait_until(lambda: subscription.lag_bytes == 0)
    assert len(dead_letters(data_dir, "orders")) == (total or len(payloads))


def put(data_dir: Path, *lines: bytes, channel: str = "orders") -> None:
    """Write dead letters of a channel that is there, with a subscriber that knows it all."""
    write_segment(data_dir, channel, 0, record("first"))
    write_segment(data_dir, f"{channel}.dead-letter", 0, b"".join(lines))
    write_offset(data_dir, channel, "billing", len(record("first")))


def letter_ids(*args: object) -> list[str]:
    return [each["id"] for each in keyop("dead-letter", "list", *args, "--json").json["letters"]]


def several(data_dir: Path, count: int) -> list[str]:
    ids = [f"dead-{number:04}" for number in range(count)]
    put(data_dir, *(dead_letter(record(n), letter_id=each) for n, each in enumerate(ids)))
    return ids


# --- listing


def test_the_table(data_dir: Path) -> None:
    """A line for each, oldest first, with who failed, on what, and why."""
    put(data_dir, dead_letter(record(1)), dead_letter(record(2), letter_id="abcdefgh-2"))
    lines = well("dead-letter").lines
    assert lines[0].split() == (
        ["CHANNEL", "ID", "FAILED", "AT", "SUBSCRIBER", "TYPE", "RETRIES", "ERROR"]
    )
    assert " ".join(lines[1].split()) == (
        "orders dead-000 2026-01-02T03:04:06Z billing com.example.T 2 ValueError: no"
    )
    assert lines[2].split()[1] == "abcdefgh"


@pytest.mark.parametrize("channel", ["orders", "orders.dead-letter"])
def test_of_one_channel(data_dir: Path, channel: str) -> None:
    """A channel may be named with or without the ending."""
    put(data_dir, dead_letter(record(1)))
    put(data_dir, dead_letter(record(1), letter_id="other"), channel="notes")
    assert letter_ids(channel) == ["dead-0001"]
    assert letter_ids() == ["other", "dead-0001"]


def test_real_ones(data_dir: Path) -> None:
    """What a subscriber really writes is listed with all that it says."""
    fail_all(data_dir, {"n": 1})
    found = well("dead-letter", "list", "orders", "--json").json
    (letter,) = found["letters"]
    assert (found["total"], found["unreadable"]) == (1, 0)
    original = letter.pop("original")
    assert letter.pop("failed_at").endswith("Z")
    assert letter.pop("id") == records(data_dir, "orders.dead-letter")[0]["id"]
    assert letter == {
        "channel": "orders",
        "offset": 0,
        "subscriber": "billing",
        "retries": 0,
        "error": "ValueError: no",
    }
    (message,) = records(data_dir, "orders")
    assert original == {
        "id": message["id"],
        "payload_type": "com.example.T",
        "timestamp": message["ts"],
        "origin": "here",
        "correlation_id": "c-1",
        "service_name": "",
    }


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], range(5)),
        (["--limit", 2], range(2)),
        (["--offset", 3], range(3, 5)),
        (["--offset", 1, "--limit", 3], range(1, 4)),
        (["--offset", 9], range(0)),
    ],
)
def test_pages(data_dir: Path, args: list[object], expected: range) -> None:
    """A part of a long list can be asked for; how many there are is said."""
    ids = several(data_dir, 5)
    result = keyop("dead-letter", "list", "orders", *args)
    assert letter_ids("orders", *args) == [ids[number] for number in expected]
    assert [line.split()[1] for line in result.lines[1:]] == [ids[number] for number in expected]
    said = f"keyop: {len(expected)} of 5 of orders shown; see --offset and --limit\n"
    assert result.err == ("" if len(expected) == 5 else said)


def test_pages_over_channels(data_dir: Path) -> None:
    """Over several channels the numbers count on."""
    put(data_dir, *(dead_letter(record(n), letter_id=f"a-{n:06}") for n in range(3)), channel="a")
    put(data_dir, *(dead_letter(record(n), letter_id=f"b-{n:06}") for n in range(3)), channel="b")
    assert letter_ids("--offset", 2, "--limit", 2) == ["a-000002", "b-000000"]
    assert letter_ids("--offset", 4) == ["b-000001", "b-000002"]
    assert keyop("dead-letter", "--limit", "1").err.startswith("keyop: 1 of 6 shown")


def test_none(data_dir: Path) -> None:
    """That there are none is said beside the output, and is no error."""
    write_segment(data_dir, "orders", 0, record(1))
    assert keyop("dead-letter") == (0, "", "keyop: no dead letters\n")
    assert keyop("dead-letter", "list", "orders").err == "keyop: no dead letters of orders\n"
    assert well("dead-letter", "--json").json == {"total": 0, "unreadable": 0, "letters": []}


def test_only_dead_letters_are_left(data_dir: Path) -> None:
    """Where the channel itself is gone its dead letters are listed all the same."""
    write_segment(data_dir, "orders.dead-letter", 0, dead_letter(record(1)))
    assert letter_ids() == letter_ids("orders") == ["dead-0001"]


@pytest.mark.parametrize("command", [["list"], ["show", "x", "abcd"], ["requeue", "x", "--all"]])
def test_no_such_channel(data_dir: Path, command: list[str]) -> None:
    """A channel that is not there is an error."""
    put(data_dir, dead_letter(record(1)))
    name, *rest = command
    arguments = [each for each in rest if each != "x"]
    assert "there is no channel 'nope'" in refused(1, "dead-letter", name, "nope", *arguments)


def test_lines_that_are_no_records(data_dir: Path) -> None:
    """They are counted and left to check; whole records in a damaged line are found."""
    good, joined = dead_letter(record(1)), dead_letter(record(2), letter_id="dead-0002")
    put(
        data_dir,
        good[:-1] + b"\x0b" + joined,  # a flipped bit in the newline between two
        b"garbage\n",
        dead_letter(record(3), letter_id="x" * 300),
    )
    assert letter_ids("orders") == ["dead-0001", "dead-0002"]
    assert keyop("dead-letter", "list", "orders").err == (
        "keyop: 3 lines cannot be read, which 'keyop check' explains\n"
    )


def test_a_line_that_is_too_long_for_a_dead_letter(data_dir: Path, tmp_path: Path) -> None:
    """Where the limit was lowered, a longer one is counted as unreadable, not held in memory."""
    put(data_dir, dead_letter(record("x" * 300_000)), dead_letter(record(1), letter_id="dead-0002"))
    path = tmp_path / "small.yaml"
    path.write_text(f"storage: {{data_dir: {data_dir}, max_record_bytes: 1000}}\n")
    found = keyop("dead-letter", "list", "orders", "--json", "-c", path).json
    assert found["unreadable"] == 1
    assert [each["id"] for each in found["letters"]] == ["dead-0002"]


def test_a_gap_is_no_line(data_dir: Path) -> None:
    """Where a segment is missing, what is behind it is listed."""
    put(data_dir, dead_letter(record(1)))
    write_segment(
        data_dir, "orders.dead-letter", 10_000, dead_letter(record(2), letter_id="dead-0002")
    )
    found = keyop("dead-letter", "list", "orders", "--json").json
    assert (found["total"], found["unreadable"]) == (2, 0)


def test_odd_dead_letters(data_dir: Path) -> None:
    """What a foreign writer left out or put elsewhere is empty, not an error."""
    put(
        data_dir,
        record(1, channel="orders.dead-letter", id="odd-0001"),
        record(raw='{"original":7,"retries":"x"}', channel="orders.dead-letter", id="odd-0002"),
        # Its checksum holds, but it is no envelope.
        sealed(b'{"v":1,"id":"odd-0003","payload":1'),
        sealed(b'{"v":1,"id":"odd-0004"'),
    )
    found = keyop("dead-letter", "list", "orders", "--json").json["letters"]
    assert [each["id"] for each in found] == [f"odd-000{n}" for n in range(1, 5)]
    for each in found:
        assert (each["subscriber"], each["retries"], each["error"]) == (None, 0, "")
        assert each["original"] is None
        assert keyop("dead-letter", "show", "orders", each["id"]).status == 0
    assert keyop("dead-letter", "requeue", "orders", "--all").err.count("not a message") == 4


def sealed(body: bytes) -> bytes:
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


def test_a_long_or_hostile_error(data_dir: Path) -> None:
    """Errors are cut to the table's width, and what a terminal would obey is escaped."""
    put(data_dir, dead_letter(record(1), error=HOSTILE + "x" * 100))
    result = well("dead-letter", "list", "orders")
    assert len(result.lines) == 2
    assert result.lines[1].endswith("…")
    assert not any(char in result.out for char in "\x1b\x07\x9b\u202e")


# --- showing


def test_showing_one(data_dir: Path) -> None:
    """All that is known, then the payload."""
    put(
        data_dir,
        dead_letter(
            record(raw='{"n": [1, "é"]}', correlation_id="c-1", service_name="s"),
            letter_id="dead-0001",
        ),
    )
    assert well("dead-letter", "show", "orders", "dead").lines == [
        "dead letter     dead-0001",
        "of channel      orders",
        "failed at       2026-01-02T03:04:06Z",
        "subscriber      billing",
        "retries         2",
        "error           ValueError: no",
        "message         id-0",
        "type            com.example.T",
        "published       2026-01-02T03:04:05.12Z by there",
        "correlation id  c-1",
        "service name    s",
        "payload         16 B",
        "{",
        '  "n": [',
        "    1,",
        '    "é"',
        "  ]",
        "}",
    ]


def test_showing_one_of_v0_11_0(data_dir: Path) -> None:
    """Without a subscriber and without a checksum, as v0.11.0 writes them."""
    put(data_dir, dead_letter(record(1, crc=False), subscriber=None, crc=False))
    lines = well("dead-letter", "show", "orders", "dead-0001").lines
    assert "subscriber      not recorded" in lines
    assert lines[-1] == "1"


def test_json_is_the_record_itself(data_dir: Path) -> None:
    """--json passes on the message to the byte, numbers that no parser holds included."""
    payload = '{"big":123456789012345678901234567890,"x": 1.50e+3,"inf":1e999}'
    put(data_dir, dead_letter(record(raw=payload)))
    out = well("dead-letter", "show", "orders", "dead", "--json").out
    assert f'"payload":{payload}' in out
    found = json.loads(out)
    assert found["original"]["id"] == "id-0"
    assert found["raw"] is None
    assert payload in well("dead-letter", "show", "orders", "dead").out


def test_what_was_no_message(data_dir: Path) -> None:
    """Its bytes are shown, safely; --json has them in base64."""
    data = b"\xffgarbage \x1b[31m"
    put(data_dir, dead_letter(None, raw=base64.b64encode(data).decode()))
    lines = well("dead-letter", "show", "orders", "dead").lines
    assert lines[-2:] == ["no message      14 B", "\\xffgarbage \\x1b[31m"]
    found = well("dead-letter", "show", "orders", "dead", "--json").json
    assert found["original"] is None
    assert base64.b64decode(found["raw"]) == data


def test_a_hostile_one(data_dir: Path) -> None:
    """Nothing in a dead letter is obeyed by a terminal, or looks like a line of keyop's."""
    put(
        data_dir,
        dead_letter(
            record(HOSTILE, id=HOSTILE, payload_type=HOSTILE, origin=HOSTILE),
            error=HOSTILE,
            subscriber=HOSTILE,
        ),
    )
    for args in ([], ["--json"]):
        out = well("dead-letter", "show", "orders", "dead", *args).out
        assert not any(char in out for char in "\x1b\x07\x9b\u202e")
        assert not any(line.startswith("fake") for line in out.splitlines())


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        ("dea", "'dea' is too short; give 4 characters of the id, or more"),
        ("dead", "dead is ambiguous: dead-0000, dead-0001, dead-0002, dead-0003, dead-0004, …"),
        ("nope", "orders: dead letter nope is not there"),
        ("done", "orders: dead letter done was requeued or purged already"),
    ],
)
def test_ids_that_do_not_serve(data_dir: Path, wanted: str, what: str) -> None:
    """An id is found by its beginning if that is long enough and no other begins so."""
    several(data_dir, 7)
    (channel_dir(data_dir, "orders.dead-letter") / ".done").write_text("done-0001\n")
    for command in (["show"], ["requeue"], ["purge", "--yes"]):
        name, *options = command
        assert refused(1, "dead-letter", name, "orders", wanted, *options) == what


def test_a_whole_id_wins(data_dir: Path) -> None:
    """An id that others begin with can be named all the same."""
    put(
        data_dir,
        dead_letter(record(1), letter_id="dead"),
        dead_letter(record(2), letter_id="dead-2"),
    )
    assert "dead letter     dead\n" in well("dead-letter", "show", "orders", "dead").out


# --- sending again


def consume(data_dir: Path, subscriber_id: str, count: int) -> Recorder:
    """Let a subscriber handle all there is; exactly so many messages."""
    seen = Recorder()
    with running(data_dir) as messenger:
        subscription = messenger.subscribe("orders", subscriber_id, seen, start="earliest")
        wait_until(lambda: subscription.lag_bytes == 0)
    assert len(seen.messages) == count, seen.payloads
    return seen


def test_requeued_for_the_one_that_failed(data_dir: Path) -> None:
    """It alone gets the message again, as it was; the others pass over it."""
    write_offset(data_dir, "orders", "other", 0)
    fail_all(data_dir, {"n": 1}, {"n": 2})
    (first, second) = records(data_dir, "orders")
    result = well("dead-letter", "requeue", "orders", "--all")
    assert result.out == "requeued 2 messages of orders to billing\n"
    assert letter_ids("orders") == []
    assert consume(data_dir, "other", 2).payloads == [{"n": 1}, {"n": 2}]
    seen = consume(data_dir, "billing", 2)
    assert seen.payloads == [{"n": 1}, {"n": 2}]
    assert [message.id for message in seen.messages] == [first["id"], second["id"]]
    assert seen.messages[0].correlation_id == "c-1"
    assert seen.messages[0].origin == "here"


def test_a_running_subscriber_gets_it_at_once(data_dir: Path) -> None:
    """Requeueing from outside wakes the subscriber, whose handler works by now."""
    broken = True

    def handle(message: object) -> None:
        seen(message)
        if broken:
            raise ValueError("no")

    seen = Recorder()
    with running(data_dir) as messenger:
        messenger.subscribe("orders", "billing", handle, max_retries=0)
        messenger.publish("orders", "t", 1)
        wait_until(lambda: letter_ids("orders"))
        broken = False
        well("dead-letter", "requeue", "orders", "--all")
        assert seen.wait(2) == [1, 1]
        assert messenger.subscriptions()[0].counters.dead_letters == 1


def test_the_record(data_dir: Path) -> None:
    """The record sent keeps everything to the byte, but for its stamp; it has a checksum."""
    payload = '{"big":123456789012345678901234567890,"x": 1.50e+3, "inf":1e999,"t":"\\u003c"}'
    fields = {"id": "m-1", "origin": "elsewhere", "correlation_id": "c", "service_name": "s"}
    route = {"route": ["a", "b"], "unknown": 1}
    put(data_dir, dead_letter(record(raw=payload, crc=False, **fields, **route)))
    before = log_bytes(data_dir, "orders")
    well("dead-letter", "requeue", "orders", "dead-0001")
    line = log_bytes(data_dir, "orders")[len(before) :]
    assert crc_holds(line)
    assert line.endswith(f',"subscriber":"billing","payload":{payload}'.encode() + line[-19:])
    found = json.loads(line)
    assert found.pop("ts") > "2026-01-02T03:04:05.12Z"
    assert " ".join(found) == (
        "v id channel origin payload_type correlation_id service_name route subscriber payload crc"
    )
    assert {name: found[name] for name in fields} == fields
    assert found["route"] == ["a", "b"]


@pytest.mark.parametrize("subscriber", ["billing", None])
def test_requeued_for_everybody(data_dir: Path, subscriber: str | None) -> None:
    """With --to-channel, or where v0.11.0 did not say who failed, every subscriber gets it."""
    put(data_dir, dead_letter(record(7), subscriber=subscriber))
    write_offset(data_dir, "orders", "other", len(record("first")))
    arguments = ["--to-channel"] if subscriber else []
    result = well("dead-letter", "requeue", "orders", "dead-0001", *arguments)
    assert result.out == "requeued 1 message of orders to every subscriber\n"
    assert consume(data_dir, "billing", 1).payloads == consume(data_dir, "other", 1).payloads


def test_requeued_again(data_dir: Path) -> None:
    """A message that fails again is a new dead letter, and goes to whoever failed last."""
    fail_all(data_dir, 1)
    well("dead-letter", "requeue", "orders", "--all")
    fail_all(data_dir, 2, total=3)
    well("dead-letter", "requeue", "orders", "--all")
    found = [each.get("subscriber") for each in records(data_dir, "orders")]
    assert found == [None, "billing", None, "billing", "billing"]


def test_some_of_them(data_dir: Path) -> None:
    """Those that were named are sent, in the order in which they failed; the others stay."""
    several(data_dir, 4)
    well("dead-letter", "requeue", "orders", "dead-0003", "dead-0001", "dead-0003")
    assert letter_ids("orders") == ["dead-0000", "dead-0002"]
    assert [each["payload"] for each in records(data_dir, "orders")[1:]] == [1, 3]


def test_what_cannot_be_sent_again(data_dir: Path) -> None:
    """Each is named with the reason and stays; the others are sent; exit status 1."""
    put(
        data_dir,
        dead_letter(None, letter_id="bad-bytes", raw="eA=="),
        dead_letter(record(1), letter_id="good-0001"),
        dead_letter(record(2), letter_id="gone-0001", subscriber="gone"),
        dead_letter(b'{"v":2,"payload":1}', letter_id="new-0001"),
        dead_letter(record(3, id=7), letter_id="odd-0001"),
        dead_letter(record(3, id="\ud83d"), letter_id="sur-0001"),
    )
    result = keyop("dead-letter", "requeue", "orders", "--all")
    assert result.status == 1
    # Half a character was replaced when the record was read.
    assert result.out == "requeued 2 messages of orders to billing\n"
    reasons = dict(line.split(" was not requeued: ") for line in result.err.splitlines())
    assert reasons["keyop: bad-bytes"].startswith("what failed is not a message")
    assert reasons["keyop: gone-0001"] == (
        "gone does not subscribe to orders any more; --to-channel sends it to everybody"
    )
    assert "envelope version 2 is not known" in reasons["keyop: new-0001"]
    assert "id is not a string" in reasons["keyop: odd-0001"]
    assert letter_ids("orders") == ["bad-bytes", "gone-0001", "new-0001", "odd-0001"]


def test_one_that_would_be_too_large(data_dir: Path, tmp_path: Path) -> None:
    """A record at the very limit may not fit with its new stamp; it stays, and why is said."""
    line = record("x" * 200, crc=False)
    put(data_dir, dead_letter(line))
    path = tmp_path / "small.yaml"
    path.write_text(f"storage: {{data_dir: {data_dir}, max_record_bytes: {len(line)}}}\n")
    result = keyop("dead-letter", "requeue", "orders", "--all", "-c", path)
    assert result.status == 1
    assert f"storage.max_record_bytes allows {len(line)}" in result.err
    assert letter_ids("orders") == ["dead-0001"]


@pytest.mark.parametrize("command", ["requeue", "purge"])
@pytest.mark.parametrize("args", [[], ["dead-0001", "--all"]])
def test_which_ones_must_be_said(data_dir: Path, command: str, args: list[str]) -> None:
    """Neither ids nor --all, or both, is wrong use."""
    put(data_dir, dead_letter(record(1)))
    line = refused(2, "dead-letter", command, "orders", *args)
    assert line.startswith("give the IDs of dead letters, or --all")


@pytest.mark.parametrize("command", [["requeue"], ["purge", "--yes"]])
def test_all_of_none(data_dir: Path, command: list[str]) -> None:
    """With nothing to do nothing is done, which is no error."""
    write_segment(data_dir, "orders", 0, record(1))
    before = tree(data_dir)
    result = keyop("dead-letter", *command, "orders", "--all")
    assert result == (0, "", "keyop: no dead letters of orders\n")
    assert tree(data_dir) == before


# --- putting away


def test_purging(data_dir: Path) -> None:
    """What was purged is listed no more, is not sent, and its bytes stay where they are."""
    several(data_dir, 3)
    before = log_bytes(data_dir, "orders"), log_bytes(data_dir, "orders.dead-letter")
    result = well("dead-letter", "purge", "orders", "dead-0001", "--yes")
    assert result.out == "purged 1 dead letter of orders\n"
    assert letter_ids("orders") == ["dead-0000", "dead-0002"]
    assert well("dead-letter", "purge", "orders", "--all", "--yes").out == (
        "purged 2 dead letters of orders\n"
    )
    assert letter_ids("orders") == []
    assert (log_bytes(data_dir, "orders"), log_bytes(data_dir, "orders.dead-letter")) == before


def test_purging_is_asked_for(data_dir: Path) -> None:
    """Without --yes it asks how many; no changes nothing."""
    several(data_dir, 3)
    before = tree(data_dir)
    result = keyop("dead-letter", "purge", "orders", "--all", stdin="n\n")
    assert result.status == 1
    assert result.err.startswith("put away 3 dead letters of orders?")
    assert tree(data_dir) == before
    assert keyop("dead-letter", "purge", "orders", "dead-0002", stdin="y\n").status == 0
    assert letter_ids("orders") == ["dead-0000", "dead-0001"]


# --- parts


@pytest.mark.parametrize(
    ("ids", "length"),
    [([], 8), (["abc"], 8), (["abcdefgh1", "abcdefgh2"], 9), (["abcdefgh", "abcdefghi"], 9)],
)
def test_ids_are_shown_as_long_as_they_must_be(ids: list[str], length: int) -> None:
    """So many characters that no two look the same, 8 at least."""
    assert unique_length(ids) == length


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (b'{"a":1}', '{\n  "a": 1\n}'),
        (b"[" * 5000 + b"]" * 5000, "[" * 5000 + "]" * 5000),
        (b"9" * 5000, "9" * 5000),
        (b'"\xff\x9b"', '"\\xff\\x9b"'),
    ],
    ids=["plain", "deep", "long number", "no UTF-8"],
)
def test_payloads_beyond_a_parser_are_shown_as_they_are(payload: bytes, shown: str) -> None:
    """What Python cannot read is not hidden."""
    assert pretty(payload) == shown


def test_base64_of_somebody_else() -> None:
    """What is no base64 is shown as it is."""
    assert from_base64("eA==") == b"x"
    assert from_base64("e*A=é") == "e*A=é".encode()


# --- conditions


@pytest.fixture
def mixed(data_dir: Path) -> None:
    """Four dead letters that differ, and one whose original is nothing."""
    late = dead_letter(record({"n": 4}, id="m4"), letter_id="dead-0004", subscriber="mail")
    put(
        data_dir,
        dead_letter(record({"n": 1}, id="m1"), letter_id="dead-0001", error="Timeout: slow"),
        dead_letter(record({"n": 2}, id="m2", payload_type="U"), letter_id="dead-0002"),
        dead_letter(record({"n": 3}, id="m3"), letter_id="dead-0003", subscriber="mail"),
        dead_letter(None, letter_id="dead-0005", raw="AAAA"),
        _at(late, "2026-03-01T00:00:00Z"),
        dead_letter(record({"n": 6}, id="m6"), letter_id="dead-0006", subscriber=None),
    )
    write_offset(data_dir, "orders", "mail", 0)


def _at(line: bytes, failed_at: str) -> bytes:
    body = line[:-19].replace(b"2026-01-02T03:04:06Z", failed_at.encode())
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--subscriber", "mail"], "34"),
        (["--error", "timeout"], "1"),
        (["--where", "n=2"], "2"),
        (["--where", "payload_type=com.example.T", "--subscriber", "billing"], "1"),
        (["--where", "id=m6"], "6"),
        (["--since", "2026-02-01T00:00:00Z"], "4"),
        (["--until", "2026-02-01T00:00:00Z", "--subscriber", "mail"], "3"),
        (["--since", "-1d"], ""),
        (["--error", "nothing of the kind"], ""),
    ],
)
def test_conditions(mixed: None, options: list[str], expected: str) -> None:
    """Who failed, how, when, and fields of the message choose what is listed and counted."""
    found = well("dead-letter", "list", "orders", *options, "--json").json
    assert [each["id"][-1] for each in found["letters"]] == list(expected)
    assert found["total"] == len(expected)


def test_requeue_those_that_fit(data_dir: Path, mixed: None) -> None:
    """Conditions choose what is sent again; the others stay."""
    result = well("dead-letter", "requeue", "orders", "--subscriber", "mail")
    assert result.out == "requeued 2 messages of orders to mail\n"
    assert [each["id"] for each in records(data_dir, "orders")[1:]] == ["m3", "m4"]
    assert letter_ids("orders") == [f"dead-000{n}" for n in (1, 2, 5, 6)]
    none = keyop("dead-letter", "requeue", "orders", "--subscriber", "mail")
    assert none == (0, "", "keyop: no dead letters of orders fit\n")


def test_purge_those_that_fit(data_dir: Path, mixed: None) -> None:
    """Conditions choose what is put away, after asking."""
    result = keyop("dead-letter", "purge", "orders", "--error", "slow", stdin="y\n")
    assert "put away 1 dead letter of orders?" in result.err
    assert "dead-0001" not in letter_ids("orders")
    none = keyop("dead-letter", "purge", "orders", "--error", "slow", "--yes")
    assert none == (0, "", "keyop: no dead letters of orders fit\n")


@pytest.mark.parametrize("command", ["requeue", "purge"])
@pytest.mark.parametrize(
    "args", [["dead-0001", "--subscriber", "mail"], ["--all", "dead-0001", "--error", "x"]]
)
def test_ids_and_conditions_do_not_mix(mixed: None, command: str, args: list[str]) -> None:
    """An id is meant whatever it is, so conditions beside it are a mistake."""
    assert refused(2, "dead-letter", command, "orders", *args).startswith("give the IDs")


@pytest.mark.parametrize(("answer", "sent"), [(b"n\n", 0), (b"y\n", 6)])
def test_requeue_asks_a_person(data_dir: Path, answer: bytes, sent: int) -> None:
    """On a terminal it says how many there are and asks; no changes nothing."""
    several(data_dir, 6)
    here, there = pty.openpty()
    try:
        with Process("dead-letter", "requeue", "orders", "--all", stdin=there) as process:
            os.write(here, answer)
            err = process.popen.communicate(timeout=30)[1]
    finally:
        os.close(here)
        os.close(there)
    assert b"send 6 messages of orders again to the subscribers that gave up on them?" in err
    assert process.popen.returncode == (0 if sent else 1)
    assert len(records(data_dir, "orders")) == 1 + sent


def test_ctrl_c_is_an_answer(data_dir: Path) -> None:
    """It changes nothing, and the exit status is that of Ctrl-C."""
    several(data_dir, 6)
    here, there = pty.openpty()
    try:
        with Process("dead-letter", "requeue", "orders", "--all", stdin=there) as process:
            asked = b""
            while b"]: " not in asked:
                asked += process.popen.stderr.read(1)
            # Between writing the question and waiting for the answer Python looks for no signals.
            stat = Path(f"/proc/{process.popen.pid}/stat")
            wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "it to wait")
            process.send(signal.SIGINT)
            err = process.popen.communicate(timeout=30)[1]
    finally:
        os.close(here)
        os.close(there)
    assert err == b"\nkeyop: aborted; nothing was changed\n"
    assert process.popen.returncode == 130
    assert len(records(data_dir, "orders")) == 1


def test_a_dead_letter_with_text_that_no_encoding_holds(data_dir: Path) -> None:
    """With half a character in its error, the message is still shown whole, as JSON."""
    line = dead_letter(record(raw='{"n":1.50}'), error="\ud800")
    put(data_dir, line)
    out = well("dead-letter", "show", "orders", "dead-0001", "--json").out
    assert '"payload":{"n":1.50}' in out
    assert json.loads(out)["error"] == "\ufffd"


def test_many_are_chosen_in_one_look(data_dir: Path) -> None:
    """Whole ids need no search each: abbreviations do, and unknown ones are refused."""
    ids = several(data_dir, 20)
    letters = WholeIds(DataDirectory(str(data_dir)), "orders", 10 << 20)
    assert letters.resolve(ids) == ids
    assert letters.resolve(["dead-0001", "dead-0002"[:9]]) == ["dead-0001", "dead-0002"]
    with pytest.raises(StorageError, match="is not there"):
        letters.resolve([*ids, "other"])
    with pytest.raises(StorageError, match="ambiguous"):
        letters.resolve(["dead-001"])
