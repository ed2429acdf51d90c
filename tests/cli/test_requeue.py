"""Requeueing as a library: after a crash, on a bad disk, and when two do it at once."""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyop.deadletters import DeadLetters, channels_with_dead_letters
from keyop.decode import decode
from keyop.done import DoneFile
from keyop.envelope import encode_again
from keyop.errors import (
    InvalidChannelNameError,
    KeyopError,
    PayloadError,
    PublishTimeoutError,
    ReservedChannelNameError,
    StorageError,
)
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.inspection import DataDirectory
from keyop.rawjson import members
from keyop.requeue import Requeue, Sent
from tests.fakes.faulty import FaultyFs
from tests.integration.helpers import (
    Recorder,
    Worker,
    channel_dir,
    log_bytes,
    record,
    records,
    running,
    segments,
    wait_until,
    write_offset,
    write_segment,
)

from .helpers import dead_letter

MAX = 10 << 20
SEGMENT = 256 << 20


def put(data_dir: Path, count: int, payload: object = None) -> list[str]:
    """Write so many dead letters of a channel."""
    ids = [f"dead-{number:05}" for number in range(count)]
    write_segment(data_dir, "orders", 0, record("first"))
    write_offset(data_dir, "orders", "billing", len(record("first")))
    lines = (
        dead_letter(record(n if payload is None else payload, id=f"m-{n}"), letter_id=each)
        for n, each in enumerate(ids)
    )
    write_segment(data_dir, "orders.dead-letter", 0, b"".join(lines))
    return ids


def letters(data_dir: Path, fs: FileSystem = SYSTEM_FS, max_bytes: int = MAX) -> DeadLetters:
    return DeadLetters(DataDirectory(str(data_dir), fs), "orders", max_bytes)


def requeue(data_dir: Path, fs: FileSystem = SYSTEM_FS, segment_bytes: int = SEGMENT) -> Requeue:
    return Requeue(letters(data_dir, fs), segment_bytes)


def sent_ids(data_dir: Path) -> list[str]:
    return [each["id"] for each in records(data_dir, "orders")[1:]]


def done_path(data_dir: Path) -> Path:
    return channel_dir(data_dir, "orders.dead-letter") / ".done"


# --- many, over several processes


def test_many(data_dir: Path) -> None:
    """More than one batch is sent in order, each once, and all are done with."""
    ids = put(data_dir, 2500)
    result = requeue(data_dir).requeue()
    assert result.sent == tuple(Sent(each, "billing") for each in ids)
    assert sent_ids(data_dir) == [f"m-{number}" for number in range(2500)]
    assert done_path(data_dir).read_text().split() == ids
    assert requeue(data_dir).requeue().sent == ()


def test_large_ones(data_dir: Path) -> None:
    """Batches are bounded in bytes too, and the log rolls as it does for everybody."""
    put(data_dir, 5, "x" * 2_000_000)
    assert len(requeue(data_dir, segment_bytes=5_000_000).requeue().sent) == 5
    assert len(segments(data_dir, "orders")) == 3
    assert sent_ids(data_dir) == [f"m-{number}" for number in range(5)]


def test_two_at_once(data_dir: Path) -> None:
    """Two greenlets, or processes, that requeue all never send one twice."""
    put(data_dir, 1000)
    first, second = requeue(data_dir), requeue(data_dir)
    jobs = [gevent.spawn(first.requeue), gevent.spawn(second.requeue)]
    gevent.joinall(jobs, raise_error=True)
    assert Counter(sent_ids(data_dir)) == Counter(f"m-{number}" for number in range(1000))
    assert sum(len(job.value.sent) for job in jobs) == 1000


def test_while_others_publish(data_dir: Path) -> None:
    """Records of publishers and requeued ones share the log whole, in whatever order."""
    put(data_dir, 500)
    code = """
    with make(max_segment_bytes=5000) as m:
        say("ready")
        for n in range(2000):
            m.publish("orders", "t", n)
    """
    with Worker(code, data_dir) as worker:
        worker.wait_line("ready")
        requeue(data_dir, segment_bytes=5000).requeue()
        worker.wait()
    assert len(records(data_dir, "orders")) == 1 + 500 + 2000


def test_a_purge_beside_a_requeue(data_dir: Path) -> None:
    """Each dead letter is either sent or put away."""
    put(data_dir, 1000)
    sender, purger = requeue(data_dir), requeue(data_dir)
    jobs = [gevent.spawn(sender.requeue), gevent.spawn(purger.purge)]
    gevent.joinall(jobs, raise_error=True)
    assert len(jobs[0].value.sent) + jobs[1].value == 1000
    assert len(sent_ids(data_dir)) == len(jobs[0].value.sent)


# --- crashes and disks


def test_a_crash_before_it_is_done_with(data_dir: Path) -> None:
    """If .done cannot be written the message was sent, is listed still, and may be sent twice."""
    put(data_dir, 2)
    fs = FaultyFs()
    fault = fs.fail("fsync", errno.EIO, path_contains=".done")
    with pytest.raises(StorageError, match=r"dead letters that were sent may be listed still"):
        requeue(data_dir, fs).requeue()
    assert fault.hits == 1
    done_path(data_dir).unlink()  # its bytes never reached the disk
    assert sent_ids(data_dir) == ["m-0", "m-1"]
    assert letters(data_dir).count() == 2
    requeue(data_dir).requeue()
    assert sent_ids(data_dir) == ["m-0", "m-1"] * 2


@pytest.mark.parametrize("operation", ["open", "write", "fdatasync", "fsync", "pread", "listdir"])
def test_nothing_is_lost_on_a_bad_disk(data_dir: Path, operation: str) -> None:
    """Whatever fails, and when: a message is in the log, or its dead letter is listed."""
    for nth in range(1, 60):
        for path in channel_dir(data_dir, "orders").glob("*"):
            path.unlink()
        for path in channel_dir(data_dir, "orders.dead-letter").glob(".done"):
            path.unlink()
        put(data_dir, 3)
        fs = FaultyFs()
        try:
            again = requeue(data_dir, fs)
            fs.fail(operation, errno.EIO, nth=nth)
            again.requeue()
            finished = True
        except KeyopError:
            finished = False
        left = {each.original.id for each in letters(data_dir).page().letters if each.original}
        whole = log_bytes(data_dir, "orders").split(b"\n")[1:-1]
        assert left | {decode(line)["id"] for line in whole} == {"m-0", "m-1", "m-2"}
        if finished and nth > 1:
            return
    pytest.fail("it never succeeds")


def test_sent_is_on_the_disk_before_it_is_done_with(data_dir: Path) -> None:
    """Under any sync policy of others: the record is synced first, then .done."""
    put(data_dir, 1)
    order: list[str] = []

    class Ordered(FileSystem):
        def __init__(self) -> None:
            self.paths: dict[int, str] = {}

        def open(self, path: str, flags: int, mode: int = 0o777) -> int:
            fd = SYSTEM_FS.open(path, flags, mode)
            self.paths[fd] = path
            return fd

        def write(self, fd: int, data: bytes) -> int:
            order.append("write " + self.paths[fd].rpartition("/")[2])
            return SYSTEM_FS.write(fd, data)

        def fdatasync(self, fd: int) -> None:
            order.append("sync " + self.paths[fd].rpartition("/")[2])
            SYSTEM_FS.fdatasync(fd)

        def fsync(self, fd: int) -> None:
            order.append("sync " + self.paths[fd].rpartition("/")[2])
            SYSTEM_FS.fsync(fd)

    requeue(data_dir, Ordered()).requeue()
    name = f"{0:020}.jsonl"
    wanted = [f"write {name}", f"sync {name}", "write .done", "sync .done"]
    assert [each for each in order if each in wanted] == wanted
    assert order.index("sync orders.dead-letter") > order.index("sync .done")


def test_a_full_disk_is_not_waited_for_for_ever(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with an error, nothing was sent, and everything is listed still."""
    monkeypatch.setattr("keyop.requeue.TIMEOUT_S", 0.2)
    put(data_dir, 2)
    fs = FaultyFs()
    again = requeue(data_dir, fs)
    (channel_dir(data_dir, "orders") / ".lock").touch()
    (channel_dir(data_dir, "orders.dead-letter") / ".lock").touch()
    fs.full = True
    with pytest.raises(PublishTimeoutError):
        again.requeue()
    assert sent_ids(data_dir) == []
    assert letters(data_dir).count() == 2


# --- what is done with


def test_ids_of_letters_that_are_gone_are_dropped(data_dir: Path) -> None:
    """What retention deleted needs no mark; the file does not grow for ever."""
    ids = put(data_dir, 3)
    done_path(data_dir).write_text("gone-1\ngone-2\n" + ids[0] + "\n")
    requeue(data_dir).purge([ids[1]])
    assert sorted(done_path(data_dir).read_text().split()) == ids[:2]
    assert letters(data_dir).count() == 1


def test_ids_of_letters_that_cannot_be_read_are_kept(data_dir: Path) -> None:
    """One too long for the limit of this run is still done with under that of the next."""
    ids = put(data_dir, 2, "x" * 300_000)
    requeue(data_dir).purge([ids[0]])
    assert Requeue(letters(data_dir, max_bytes=5000), SEGMENT).purge() == 0
    assert letters(data_dir).count() == 1
    assert requeue(data_dir).purge() == 1


def test_ids_marked_meanwhile_are_kept(data_dir: Path) -> None:
    """A mark that another process makes between the look and the rewriting is not dropped."""
    ids = put(data_dir, 3)
    done_path(data_dir).write_text("gone-1\n")
    again = requeue(data_dir)
    _, stale = again._choose(None)
    DoneFile(SYSTEM_FS, str(done_path(data_dir).parent)).add([ids[2]])
    again._drop(stale)
    assert done_path(data_dir).read_text() == ids[2] + "\n"


def test_purged_by_somebody_else_meanwhile(data_dir: Path) -> None:
    """One that was put away between the choice and the lock counts for the other."""
    ids = put(data_dir, 2)
    again = requeue(data_dir)
    original = again._not_done

    def not_done(batch: list) -> list:
        requeue(data_dir)._letters.done.add([ids[0]])
        return original(batch)

    again._not_done = not_done  # type: ignore[method-assign]
    assert again.purge() == 1


def test_shown_while_it_is_purged(data_dir: Path) -> None:
    """One that goes while it is looked for is said to have gone just now."""
    ids = put(data_dir, 1)
    found = letters(data_dir)
    found.resolve = lambda wanted: [*wanted]  # type: ignore[method-assign]
    found.done.add(ids)
    with pytest.raises(StorageError, match="requeued or purged just now"):
        found.show(ids[0])


def test_all_that_are_done_with(data_dir: Path) -> None:
    """A batch in which nothing is left to do writes nothing."""
    ids = put(data_dir, 1)
    again = requeue(data_dir)
    again._not_done = lambda batch: []  # type: ignore[method-assign,assignment]
    assert again.requeue().sent == ()
    assert again.purge(ids) == 0
    assert not done_path(data_dir).exists()


@pytest.fixture
def done(tmp_path: Path) -> Iterator[DoneFile]:
    return DoneFile(SYSTEM_FS, str(tmp_path))


def test_a_torn_last_line_does_no_harm(tmp_path: Path, done: DoneFile) -> None:
    """What a power cut left of an id is no id, and does not spoil the next one."""
    (tmp_path / ".done").write_bytes(b"one\ntwo\nthr")
    assert done.read() >= {"one", "two"}
    done.add(["four"])
    assert done.read() >= {"one", "two", "four"}
    (tmp_path / ".done").write_bytes(b"one\n\0\0\0")
    assert "one" in done.read()


def test_no_file_means_no_ids(done: DoneFile) -> None:
    """Before the first is done with there is no file."""
    assert done.read() == set()


def test_the_file_is_private_and_plain(tmp_path: Path, done: DoneFile) -> None:
    """One id on a line, in a file of mode 0600."""
    done.add(["b", "a"])
    done.add(["c"])
    assert (tmp_path / ".done").read_bytes() == b"b\na\nc\n"
    assert (tmp_path / ".done").stat().st_mode & 0o777 == 0o600
    done.write({"z", "a"})
    assert (tmp_path / ".done").read_bytes() == b"a\nz\n"


@given(st.lists(st.sets(st.text(max_size=20), max_size=5), max_size=4))
def test_any_id_survives(tmp_path_factory: pytest.TempPathFactory, parts: list[set[str]]) -> None:
    """Ids of foreign writers may hold anything: newlines, quotes, nothing at all."""
    done = DoneFile(SYSTEM_FS, str(tmp_path_factory.mktemp("done")))
    for part in parts:
        done.add(part)
    assert done.read() == set().union(*parts)


@pytest.mark.parametrize("line", ['"', '"a', "[1]", '"a" x'])
def test_odd_lines(tmp_path: Path, done: DoneFile, line: str) -> None:
    """A line in another form is passed over, or an id that nobody has."""
    (tmp_path / ".done").write_text(f"{line}\nfine\n")
    assert "fine" in done.read()


# --- names


def test_channels_that_have_dead_letters(data_dir: Path) -> None:
    """They are named without the ending."""
    put(data_dir, 1)
    assert channels_with_dead_letters(DataDirectory(str(data_dir))) == ["orders"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("../x", InvalidChannelNameError),
        (".dead-letter", InvalidChannelNameError),
        ("x.dead-letter.dead-letter", ReservedChannelNameError),
    ],
)
def test_names_are_checked(data_dir: Path, name: str, error: type[Exception]) -> None:
    """A name never leads out of the data directory, nor to dead letters of dead letters."""
    put(data_dir, 1)
    with pytest.raises(error):
        DeadLetters(DataDirectory(str(data_dir)), name, MAX)


# --- the record


FIELDS = {"id": "m", "origin": "o", "payload_type": "t"}


@pytest.mark.parametrize("route", [None, [], "a", [1], ["a", 2]])
def test_a_route_that_is_none_is_left_out(route: object) -> None:
    """Only a list of names is passed on."""
    line = encode_again({**FIELDS, "route": route}, "orders", b"1", 0)
    assert b"route" not in line
    assert decode(line[:-1])["payload"] == 1


def test_empty_fields_are_left_out() -> None:
    """As when a record is written for the first time."""
    line = encode_again({**FIELDS, "correlation_id": "", "service_name": "s"}, "orders", b"1", 1)
    assert list(json.loads(line)) == (
        ["v", "id", "ts", "channel", "origin", "payload_type", "service_name", "payload", "crc"]
    )
    assert json.loads(line)["ts"] == "1970-01-01T00:00:00.000000001Z"


def test_a_field_that_cannot_be_held_is_refused() -> None:
    """Half a surrogate pair has no form in UTF-8."""
    with pytest.raises(PayloadError):
        encode_again({**FIELDS, "origin": "\ud83d"}, "orders", b"1", 0)


# --- JSON as it is written

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
STYLES = [{}, {"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": False}]


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.sampled_from(STYLES))
def test_members_are_found_where_they_stand(value: dict, style: dict) -> None:
    """Each value is the text that stands there, whatever blanks, quotes or brackets are around."""
    text = json.dumps(value, **style).encode("utf-8", "replace")
    found = members(text)
    assert list(found) == list(json.loads(text))
    for name, part in found.items():
        assert part in text
        assert json.loads(part) == json.loads(text)[name]


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"1", b"{", b'{"a"', b'{"a":', b'{"a":[', b'{"a":"', b'{"a":1 2}', b'{"a" 1}'],
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    """Nothing is made up of a text that is cut off or something else."""
    with pytest.raises(ValueError):
        members(text)


def test_depth_costs_nothing() -> None:
    """A value is passed over, not parsed, however deep it is."""
    deep = b"[" * 100_000 + b"]" * 100_000
    assert members(b'{"a":' + deep + b',"b":"\\"}"}') == {"a": deep, "b": b'"\\"}"'}


def test_a_requeued_record_is_passed_over_by_others(data_dir: Path) -> None:
    """It counts as nothing for them: neither delivered nor failed."""
    put(data_dir, 1)
    requeue(data_dir).requeue()
    write_offset(data_dir, "orders", "other", len(record("first")))
    seen = Recorder()
    with running(data_dir) as messenger:
        subscription = messenger.subscribe("orders", "other", seen)
        wait_until(lambda: subscription.lag_bytes == 0)
        assert subscription.counters.delivered == 0
        several = messenger.subscribe("orders", "many", seen, start="earliest", concurrency=3)
        wait_until(lambda: several.lag_bytes == 0)
    assert seen.payloads == ["first"]
