"""A data directory, and records, that v0.11.0 wrote: read, gone on with, and left as they are."""

from __future__ import annotations

import base64
import datetime
import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from keyop import Message, PayloadError
from keyop.clock import Clock
from keyop.testing import drain

from .helpers import (
    FAST_BACKOFF,
    GOLDEN,
    TS,
    Recorder,
    channel_dir,
    crc_holds,
    dead_letters,
    log_bytes,
    needs_golden,
    read_all,
    record,
    records,
    running,
    segments,
    stored_offset,
    tree,
    write_offset,
    write_segment,
)

pytestmark = needs_golden

# As it was recorded: segments of 4 KiB.
STORAGE = {"max_segment_bytes": 4096}
FIELDS = ["v", "id", "ts", "channel", "origin", "payload_type", "correlation_id", "service_name"]
CHANNELS = ["orders", "uplink"]
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A copy of the recorded data directory, with the modes that v0.11.0 gives."""
    copy = tmp_path / "data"
    shutil.copytree(GOLDEN / "datadir" / "client", copy)
    for directory, _, files in os.walk(copy):
        os.chmod(directory, 0o755)
        for name in files:
            os.chmod(os.path.join(directory, name), 0o644)
    return copy


def lines(data: Path, channel: str) -> list[bytes]:
    return log_bytes(data, channel).splitlines(True)


def offsets(data: Path, channel: str) -> list[int]:
    """The offset of each line of a channel, and of the end."""
    return [0, *itertools.accumulate(map(len, lines(data, channel)))]


def moment(ts: str) -> datetime.datetime:
    """Read a time as v0.11.0 writes it, to the microsecond."""
    match = re.fullmatch(r"(.{19})(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)", ts)
    assert match is not None
    zone = "+00:00" if match[3] == "Z" else match[3]
    whole = datetime.datetime.fromisoformat(match[1] + zone)
    return whole.replace(microsecond=int((match[2] or "0").ljust(6, "0")[:6]))


def assert_same(message: Message, fields: dict[str, Any]) -> None:
    """Compare what a handler got with the fields of the line."""
    assert message.id == fields["id"]
    assert message.origin == fields["origin"]
    assert message.payload_type == fields["payload_type"]
    assert message.payload == fields["payload"]
    assert message.correlation_id == fields.get("correlation_id", "")
    assert message.service_name == fields.get("service_name", "")
    assert message.timestamp == moment(fields["ts"])


def cases(name: str) -> pytest.MarkDecorator:
    """Run a test with each line of a recorded file; one skipped run where there is none."""
    path = GOLDEN / "envelopes" / f"{name}.jsonl"
    found = (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )
    return pytest.mark.parametrize("case", found or [{}], ids=lambda case: case.get("case", "none"))


# --- reading


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_line_of_every_segment_is_delivered(data: Path, channel: str) -> None:
    """A new subscriber gets each record of v0.11.0 in order, with its fields and its offset."""
    expected = [json.loads(line) for line in lines(data, channel)]
    starts = offsets(data, channel)[:-1]
    assert len(segments(data, channel)) > 1
    got = read_all(data, channel, len(expected), storage=STORAGE)
    for message, fields, offset in zip(got, expected, starts, strict=True):
        assert_same(message, fields)
        assert (message.channel, message.offset, message.attempt) == (channel, offset, 1)
    assert dead_letters(data, channel) == []


def test_mirror_resumes_where_it_stopped(data: Path) -> None:
    """The subscriber that v0.11.0 left at the end gets what comes now, and nothing old."""
    end = offsets(data, "orders")[-1]
    assert stored_offset(data, "orders", "mirror") == end
    seen = Recorder()
    with running(data, storage=STORAGE) as messenger:
        subscription = messenger.subscribe("orders", "mirror", seen, start="earliest")
        assert (subscription.offset, subscription.lag_bytes) == (end, 0)
        messenger.publish("orders", "com.acme.Order", {"order": "new"})
        assert seen.wait(1) == [{"order": "new"}]
    assert seen.messages[0].offset == end
    assert stored_offset(data, "orders", "mirror") == len(log_bytes(data, "orders"))


@pytest.mark.parametrize("behind", [1, 5, 15, 16, 20])
@pytest.mark.parametrize("form", [b"%d\n", b"%d", b"%020d\n"])
def test_mirror_resumes_in_the_middle(data: Path, behind: int, form: bytes) -> None:
    """From any record, in either segment, the rest arrives; the form of the file is its own."""
    starts = offsets(data, "orders")
    expected = [json.loads(line)["payload"] for line in lines(data, "orders")[behind:]]
    write_offset(data, "orders", "mirror", form % starts[behind])
    seen = Recorder()
    with running(data, storage=STORAGE) as messenger:
        messenger.subscribe("orders", "mirror", seen)
        drain(messenger)
    assert seen.payloads == expected
    assert [message.offset for message in seen.messages] == starts[behind:-1]


@pytest.mark.parametrize("channel", CHANNELS)
def test_stats_know_the_directory(data: Path, channel: str) -> None:
    """Segments, sizes and the position of ``mirror`` are those on the disk."""
    with running(data, storage=STORAGE) as messenger:
        messenger.start()
        found = {each.channel: each for each in messenger.stats().channels}
    assert set(found) == {"orders", "orders.dead-letter", "uplink"}
    end = offsets(data, channel)[-1]
    stats = found[channel]
    assert (stats.start_offset, stats.end_offset, stats.disk_bytes) == (0, end, end)
    assert stats.segments == len(segments(data, channel))
    assert stats.failed is None
    mirrors = [(each.subscriber_id, each.offset, each.lag_bytes) for each in stats.subscribers]
    assert mirrors == ([("mirror", end, 0)] if channel == "orders" else [])


def test_ids_count_as_seen(data: Path) -> None:
    """Publishing with the id of a record that v0.11.0 wrote writes nothing."""
    before = log_bytes(data, "orders")
    with running(data, storage=STORAGE) as messenger:
        for line in before.splitlines():
            message_id = json.loads(line)["id"]
            assert messenger.publish("orders", "t", 1, message_id=message_id) == message_id
    assert log_bytes(data, "orders") == before


# --- going on


@pytest.mark.parametrize("channel", CHANNELS)
def test_publishing_goes_on_behind_it(data: Path, channel: str) -> None:
    """New records follow the old ones: in the segment that was active, then in new ones."""
    before = [path.name for path in segments(data, channel)]
    old = lines(data, channel)
    with running(data, storage=STORAGE) as messenger:
        for n in range(40):
            messenger.publish(channel, "com.example.T", {"n": n, "note": "<&> é"})
    paths = segments(data, channel)
    assert [path.name for path in paths[: len(before)]] == before
    assert len(paths) > len(before)
    for this, following in itertools.pairwise(paths):
        assert int(this.stem) + this.stat().st_size == int(following.stem)
        assert this.stat().st_size <= 4096
    assert lines(data, channel)[: len(old)] == old
    got = read_all(data, channel, len(old) + 40, storage=STORAGE)
    assert [message.payload["n"] for message in got[len(old) :]] == list(range(40))
    assert [message.offset for message in got] == offsets(data, channel)[:-1]


def test_nothing_else_is_altered(data: Path) -> None:
    """Opening, reading and publishing change the active segment, by appending, and add locks.

    The position of a subscriber that does not run, sealed segments and audit files stay byte for
    byte; what is added is none of v0.11.0's business.
    """
    before = tree(data)
    with running(data, storage=STORAGE) as messenger:
        messenger.start()
        for channel in CHANNELS:
            messenger.publish(channel, "t", 1)
            messenger.stats()
    after = tree(data)
    active = {str(segments(data, channel)[-1].relative_to(data)) for channel in CHANNELS}
    for name, content in before.items():
        if name in active:
            assert after[name].startswith(content), name
            assert after[name].count(b"\n") == content.count(b"\n") + 1, name
        else:
            assert after[name] == content, name
    added = set(after) - set(before)
    assert not [name for name in added if name.endswith((".jsonl", ".offset"))]
    assert all(os.path.basename(name).startswith(".") or name.endswith(".lock") for name in added)


def test_opening_alone_alters_nothing(data: Path) -> None:
    """A start and an end without a call change no byte of what was there."""
    before = tree(data)
    with running(data, storage=STORAGE) as messenger:
        messenger.start()
    after = tree(data)
    assert {name: after.get(name) for name in before} == before


def test_sweep_keeps_to_the_rule(data: Path) -> None:
    """What every offset file is past may go; a channel without one keeps everything."""
    uplink = segments(data, "uplink")
    with running(data, storage=STORAGE) as messenger:
        messenger.start()
        write_offset(data, "orders", "other", 0)
        messenger.sweep()
        assert len(segments(data, "orders")) == 2
        (data / "subscribers" / "orders" / "other.offset").unlink()
        messenger.sweep()
        assert [path.name for path in segments(data, "orders")] == [f"{3886:020}.jsonl"]
        assert segments(data, "uplink") == uplink
        seen = Recorder()
        messenger.subscribe("orders", "mirror", seen)
        messenger.publish("orders", "t", "new")
        assert seen.wait(1) == ["new"]


def test_dead_letters_go_into_the_empty_log(data: Path) -> None:
    """The dead-letter channel that v0.11.0 left empty takes dead letters of its own records."""
    starts = offsets(data, "orders")
    write_offset(data, "orders", "mirror", b"%d\n" % starts[-2])

    def fail(message: Message) -> None:
        raise ValueError("no")

    with running(data, storage=STORAGE) as messenger:
        messenger.subscribe("orders", "mirror", fail, max_retries=0, retry_backoff=FAST_BACKOFF)
        drain(messenger)
    (letter,) = records(data, "orders.dead-letter")
    original = json.loads(lines(data, "orders")[-1])
    assert letter["payload"]["original"] == original
    assert letter["payload"]["subscriber"] == "mirror"
    assert letter["origin"] == original["origin"] == "hub1"
    assert letter["correlation_id"] == original["correlation_id"]
    assert [path.name for path in segments(data, "orders.dead-letter")] == [f"{0:020}.jsonl"]


def test_torn_tail_of_v0_11_0(data: Path) -> None:
    """A record that v0.11.0 was writing when it died is set aside, and nothing else."""
    whole = log_bytes(data, "uplink")
    torn = lines(data, "uplink")[0][:60]
    with open(segments(data, "uplink")[-1], "ab") as log:
        log.write(torn)
    with running(data, storage=STORAGE) as messenger:
        messenger.publish("uplink", "t", "new")
    assert log_bytes(data, "uplink").startswith(whole)
    assert records(data, "uplink")[-1]["payload"] == "new"
    (aside,) = channel_dir(data, "uplink").glob("*.torn-*")
    assert aside.read_bytes() == torn


# --- what we write


def test_field_order(data: Path) -> None:
    """A record of ours has v0.11.0's fields in its order, and behind them the checksum."""
    with running(data, name="client1", storage=STORAGE) as messenger:
        messenger.publish("orders", "com.acme.Order", {"b": 1, "a": 2})
        messenger.publish("orders", "com.acme.Order", 1, correlation_id="c", service_name="s")
        messenger.publish_batch("orders", [("com.acme.Order", None)], service_name="s")
    written = lines(data, "orders")[-3:]
    plain = [name for name in FIELDS if name not in ("correlation_id", "service_name")]
    assert list(json.loads(written[0])) == [*plain, "payload", "crc"]
    assert list(json.loads(written[1])) == [*FIELDS, "payload", "crc"]
    assert list(json.loads(written[2])) == [*plain, "service_name", "payload", "crc"]
    theirs = json.loads(lines(data, "uplink")[0])
    assert list(theirs) == [*plain, "payload"]
    for line in written:
        assert crc_holds(line)
        assert TS.fullmatch(json.loads(line)["ts"])
        assert json.loads(line)["origin"] == theirs["origin"] == "client1"
        # As v0.11.0 does, no spaces between the parts.
        assert line.startswith(b'{"v":1,"id":"')


class StoppedClock(Clock):
    """The wall clock shows one moment; everything else goes on."""

    def __init__(self, time: datetime.datetime, nanoseconds: int) -> None:
        seconds = (time - EPOCH) // datetime.timedelta(seconds=1)
        self._now = seconds * 1_000_000_000 + nanoseconds
        self.time_ns = lambda: self._now


def clock_at(ts: str) -> StoppedClock:
    match = re.search(r"\.(\d+)", ts)
    return StoppedClock(moment(ts), int((match[1] if match else "0").ljust(9, "0")))


@cases("envelope_encode")
def test_envelopes_are_written_alike(tmp_path: Path, case: dict[str, Any]) -> None:
    """With the same fields at the same moment, our line says what v0.11.0's says."""
    if "line_b64" not in case:
        pytest.skip("v0.11.0 refuses to write it")
    theirs = json.loads(base64.b64decode(case["line_b64"]))
    if theirs["v"] != 1 or not theirs["id"] or not theirs["origin"].isascii():
        pytest.skip("no field of ours may be so")
    if moment(theirs["ts"]) < EPOCH:
        pytest.skip("no clock shows this")
    with running(
        tmp_path, name=theirs["origin"], seams={"clock": clock_at(theirs["ts"])}
    ) as messenger:
        messenger.publish(
            theirs["channel"],
            theirs["payload_type"],
            theirs["payload"],
            message_id=theirs["id"],
            correlation_id=theirs.get("correlation_id"),
            service_name=theirs.get("service_name"),
        )
    (ours,) = records(tmp_path, theirs["channel"])
    del ours["crc"]
    assert list(ours) == list(theirs)
    if not theirs["ts"].endswith("Z"):  # ours is in UTC
        assert moment(ours.pop("ts")) == moment(theirs.pop("ts"))
    assert ours == theirs


@cases("envelope_encode")
def test_envelopes_are_read(tmp_path: Path, case: dict[str, Any]) -> None:
    """A line of v0.11.0 among ours is delivered with its fields; another version is passed over."""
    if "line_b64" not in case:
        pytest.skip("v0.11.0 refuses to write it")
    line = base64.b64decode(case["line_b64"]).rstrip(b"\n") + b"\n"
    write_segment(tmp_path, "orders", 0, record("before") + line + record("after"))
    fields = json.loads(line)
    known = fields["v"] == 1
    got = read_all(tmp_path, "orders", 3 if known else 2)
    assert (got[0].payload, got[-1].payload) == ("before", "after")
    if known:
        assert_same(got[1], fields)
    # Neither is at fault; the line stays where it is.
    assert dead_letters(tmp_path, "orders") == []
    assert line in log_bytes(tmp_path, "orders")


@cases("payload_encode")
def test_payloads_are_written_alike(tmp_path: Path, case: dict[str, Any]) -> None:
    """The same value makes the same JSON value in the record, keys in the order given."""
    unholdable: dict[str, Any] = {"inf": float("inf"), "chan": object()}
    if case.get("case") in unholdable:
        with running(tmp_path) as messenger, pytest.raises(PayloadError):
            messenger.publish("ch", "t", unholdable[case["case"]])
        return
    if "line_b64" not in case:
        pytest.skip("v0.11.0 refuses to write it, and there is no such value here")
    theirs = json.loads(base64.b64decode(case["line_b64"]).decode("utf-8", "replace"))
    with running(tmp_path, name="origin", seams={"clock": clock_at(theirs["ts"])}) as messenger:

        def publish() -> None:
            messenger.publish("ch", "t", theirs["payload"], message_id=theirs["id"])

        if case["case"] == "raw_bignum":  # more digits than 64 bits hold
            with pytest.raises(PayloadError):
                publish()
            theirs["payload"]["i"] = 1
        publish()
    (ours,) = records(tmp_path, "ch")
    del ours["crc"]
    # Order of keys, kinds of numbers and all: 1 is not 1.0 here.
    assert json.dumps(ours) == json.dumps(theirs)


@cases("payload_encode")
def test_payloads_are_read(tmp_path: Path, case: dict[str, Any]) -> None:
    """Whatever v0.11.0 wrote as a payload reaches a handler; what 64 bits hold unaltered."""
    if "line_b64" not in case:
        pytest.skip("v0.11.0 refuses to write it")
    line = base64.b64decode(case["line_b64"]).rstrip(b"\n") + b"\n"
    write_segment(tmp_path, "ch", 0, line)
    (message,) = read_all(tmp_path, "ch", 1)
    expected = json.loads(line.decode("utf-8", "replace"))["payload"]
    if case["case"] == "raw_bignum":
        expected["i"] = pytest.approx(expected["i"])
    assert message.payload == expected
    assert dead_letters(tmp_path, "ch") == []


# A line that v0.11.0 takes, with null for its payload, though it writes none such.
TAKEN_THERE_ONLY = {"08_no_payload"}


@cases("decode_reencode")
def test_odd_lines(tmp_path: Path, case: dict[str, Any]) -> None:
    """Of odd lines, those that v0.11.0 takes are delivered; the rest takes nobody along.

    A line that is refused goes to the dead letters, byte for byte, but for one of another
    version, which is only passed over.
    """
    line = base64.b64decode(case["in_b64"])
    write_segment(tmp_path, "orders", 0, record("before") + line + b"\n" + record("after"))
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, start="earliest")
        drain(messenger)
    assert (seen.payloads[0], seen.payloads[-1]) == ("before", "after")
    letters = dead_letters(tmp_path, "orders")
    if case["case"] == "10_v2":
        assert (len(seen.messages), letters) == (2, [])
    elif "error" in case or case["case"] in TAKEN_THERE_ONLY:
        assert len(seen.messages) == 2
        if line:  # of an empty line there is nothing to keep
            (letter,) = letters
            assert letter["original"] is None
            assert base64.b64decode(letter["raw"]).rstrip(b"\n") == line
    else:
        assert letters == []
        stored = json.loads(base64.b64decode(case["out_b64"]).decode("utf-8", "replace"))
        assert len(seen.messages) == 3
        assert_same(seen.messages[1], stored)


def test_control_events_of_the_audit_are_left_alone(data: Path) -> None:
    """The audit files of v0.11.0 are whole lines of JSON before and after."""
    before = {path.name: path.read_bytes() for path in (data / "audit").iterdir()}
    with running(data, storage=STORAGE) as messenger:
        messenger.publish("uplink", "t", 1)
    after = {path.name: path.read_bytes() for path in (data / "audit").iterdir()}
    for name, content in before.items():
        assert after[name].startswith(content)
        assert all(json.loads(line) for line in after[name].splitlines())
