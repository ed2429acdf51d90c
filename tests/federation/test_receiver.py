"""What a peer sends: stored whole, once, and acknowledged only then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gevent
import orjson
import pytest

from keyop.dedup import Dedup
from keyop.federation.receiver import Receiver
from keyop.fs import FileSystem
from keyop.storage.environment import LogOptions
from keyop.storage.retention import RetentionOptions
from keyop.storage.store import Store, StoreOptions

MAX_RECORD_BYTES = 1 << 20


def record(message_id: str, channel: str = "alerts", origin: str = "peer") -> bytes:
    return orjson.dumps(
        {
            "v": 1,
            "id": message_id,
            "ts": "2026-01-02T03:04:05.000000006Z",
            "channel": channel,
            "origin": origin,
            "payload_type": "json",
            "payload": {"id": message_id},
        }
    )


class Receiving:
    """A receiver that stores below a directory, and what it said."""

    def __init__(self, data_dir: Path) -> None:
        self.store = Store(
            str(data_dir),
            StoreOptions(LogOptions(1 << 24, "none"), 0, RetentionOptions()),
            FileSystem(),
        )
        self.dedup = Dedup(FileSystem(), 1000, MAX_RECORD_BYTES)
        self.acknowledged: list[str] = []
        self.failures: list[Exception] = []
        self.notes: list[tuple[str, str, str]] = []
        self.receiver = Receiver(
            "peer",
            "here",
            self.store,
            self.dedup,
            MAX_RECORD_BYTES,
            accepts=lambda channel: channel != "secret",
            note=self._note,
            note_forwarded=lambda channel, ids: None,
            acknowledge=self.acknowledged.append,
            failed=self.failures.append,
        )

    def _note(self, event: str, channel: str = "", message_id: str = "", detail: str = "") -> None:
        self.notes.append((event, channel, message_id))

    def stored(self, channel: str = "alerts") -> list[str]:
        segments = sorted(Path(self.store.channel_directory(channel)).glob("*.jsonl"))
        return [
            orjson.loads(line)["id"] for each in segments for line in each.read_bytes().splitlines()
        ]

    def wait_acknowledged(self, message_id: str) -> None:
        with gevent.Timeout(10):
            while message_id not in self.acknowledged:
                assert not self.failures, self.failures
                gevent.sleep(0.001)

    def close(self) -> None:
        self.receiver.stop()
        self.dedup.close()
        self.store.close(0)


@pytest.fixture
def receiving(tmp_path: Path) -> Iterator[Receiving]:
    made = Receiving(tmp_path / "data")
    yield made
    made.close()


def test_the_first_batch_of_a_new_channel_is_stored_whole(receiving: Receiving) -> None:
    ids = [f"m{number}" for number in range(50)]
    receiving.receiver.receive([record(each) for each in ids])
    receiving.wait_acknowledged(ids[-1])
    assert receiving.stored() == ids
    assert receiving.receiver.counters.stored == 50


def test_several_new_channels_in_one_batch(receiving: Receiving) -> None:
    receiving.receiver.receive(
        [record(f"{channel}{number}", channel) for number in range(10) for channel in "abc"]
    )
    receiving.wait_acknowledged("c9")
    for channel in "abc":
        assert receiving.stored(channel) == [f"{channel}{number}" for number in range(10)]


def test_an_id_twice_in_one_batch_is_stored_once(receiving: Receiving) -> None:
    receiving.receiver.receive([record("one"), record("one"), record("two"), record("one")])
    receiving.wait_acknowledged("one")
    assert receiving.stored() == ["one", "two"]
    assert receiving.receiver.counters.duplicates == 2


def test_a_batch_that_comes_again_is_acknowledged_and_not_stored(receiving: Receiving) -> None:
    batch = [record("one"), record("two")]
    receiving.receiver.receive(batch)
    receiving.wait_acknowledged("two")
    receiving.acknowledged.clear()
    receiving.receiver.receive(batch)
    receiving.wait_acknowledged("two")
    assert receiving.stored() == ["one", "two"]


def test_what_policy_drops_does_not_count_as_seen(receiving: Receiving) -> None:
    receiving.receiver.receive([record("one", "secret"), record("one")])
    receiving.wait_acknowledged("one")
    assert receiving.stored() == ["one"]
    assert receiving.notes == [("policy_violation", "secret", "one")]


def test_what_has_been_here_is_dropped(receiving: Receiving) -> None:
    receiving.receiver.receive([record("mine", origin="here"), record("one")])
    receiving.wait_acknowledged("one")
    assert receiving.stored() == ["one"]
    assert receiving.notes == [("loop_dropped", "alerts", "mine")]
    assert receiving.receiver.counters.loops == 1
