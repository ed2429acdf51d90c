"""A messenger against the reference: whatever is done, in whatever order, both agree."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from keyop import Config, Message, Messenger, Subscription

from .reference import Record, Reference

CHANNEL = "orders"
TYPE = "com.example.T"
SEGMENT_BYTES = 700  # three records or so
SUBSCRIBERS = st.sampled_from(["a", "b", "c"])
OWN_IDS = st.sampled_from([f"own-{number}" for number in range(6)])
# A place in the log: a share of it, and whether at a record or inside it.
PLACES = st.tuples(st.floats(0, 1.2), st.booleans())
_PATIENCE_S = 20.0
_MEMORY = "/dev/shm"


def refuses(payload: Any) -> bool:
    """Tell whether handlers raise for this payload, so that it becomes a dead letter."""
    return bool(payload["n"] % 8 == 3)


class ChannelMachine(RuleBasedStateMachine):
    """One channel, up to three subscribers, and a messenger that is closed now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)
        self.data_dir = Path(self.root) / "data"
        self.directory = self.data_dir / "channels" / CHANNEL
        self.offsets = self.data_dir / "subscribers" / CHANNEL
        self.reference = Reference()
        self.count = 0
        # What the reference has yet to find in the log, in order, with the ids that are known.
        self.expected: list[tuple[str | None, Any]] = []
        self.seen_ids: set[str] | None = None
        self.got: dict[str, list[Any]] = {}
        self.running: dict[str, Subscription] = {}
        self.log_open = False
        self.messenger: Messenger | None = None

    @initialize(
        policy=st.sampled_from(["none", "periodic", "always"]),
        max_files=st.sampled_from([0, 0, 3]),
    )
    def begin(self, policy: str, max_files: int) -> None:
        self.max_files = max_files
        self.config = Config.from_dict(
            {
                "name": "here",
                "storage": {
                    "data_dir": str(self.data_dir),
                    "sync_policy": policy,
                    "max_segment_bytes": SEGMENT_BYTES,
                    "max_files": max_files,
                },
            }
        )
        self.open()

    # -- what is done

    def open(self) -> None:
        self.messenger = Messenger(self.config)
        self.messenger.start()
        self.log_open = False
        self.seen_ids = None

    def open_log(self) -> None:
        """Publishing and subscribing open the log, which mends what is broken."""
        if not self.log_open:
            self.log_open = True
            self.reference.cut_tail()
            self.reference.clamp()

    def payload(self) -> dict[str, Any]:
        self.count += 1
        return {"n": self.count, "pad": "x" * (self.count * 37 % 120)}

    @rule()
    def publish(self) -> None:
        payload = self.payload()
        self.open_log()
        self.reference.cut_tail()
        self.expected.append((self.messenger.publish(CHANNEL, TYPE, payload), payload))

    @rule(size=st.integers(1, 12))
    def publish_batch(self, size: int) -> None:
        batch = [self.payload() for _ in range(size)]
        self.open_log()
        self.reference.cut_tail()
        ids = self.messenger.publish_batch(CHANNEL, [(TYPE, payload) for payload in batch])
        self.expected += zip(ids, batch, strict=True)

    @rule(own_id=OWN_IDS)
    def publish_once(self, own_id: str) -> None:
        """Under an id that may have been used, in this process or before."""
        payload = self.payload()
        self.open_log()
        if self.seen_ids is None:
            self.seen_ids = {record.id for record in self.reference.left}
        assert self.messenger.publish(CHANNEL, TYPE, payload, message_id=own_id) == own_id
        if own_id not in self.seen_ids:
            self.reference.cut_tail()
            self.seen_ids.add(own_id)
            self.expected.append((own_id, payload))

    @rule(own_id=SUBSCRIBERS, start=st.one_of(st.sampled_from(["earliest", "latest"]), PLACES))
    def subscribe(self, own_id: str, start: Any) -> None:
        if own_id in self.running:
            return
        self.open_log()
        reference = self.reference
        position = self.place(start)
        reference.run(own_id, position)
        got = self.got[own_id] = []
        reference.readers[own_id].due = []
        reference.readers[own_id].dropped_bytes, before = 0, reference.readers[own_id]
        if before.position < reference.first:
            before.dropped_bytes = reference.first - before.position

        def handle(message: Message) -> None:
            got.append(message.payload)
            if refuses(message.payload):
                raise ValueError("meant to fail")

        self.running[own_id] = self.messenger.subscribe(
            CHANNEL,
            own_id,
            handle,
            start=start if isinstance(start, str) else position,
            max_retries=0,
            retry_backoff=(0.0, 0.0),
        )

    def place(self, place: Any) -> int:
        """Return the offset that a place means."""
        reference = self.reference
        if place == "earliest":
            return reference.first
        if place == "latest":
            return reference.end
        share, at_record = place
        offset = int(reference.end * share)
        return reference.boundary(offset) if at_record else offset

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        own_id = data.draw(st.sampled_from(sorted(self.running)))
        self.running.pop(own_id).stop()
        self.reference.readers[own_id].running = False

    @rule(own_id=SUBSCRIBERS)
    def unsubscribe(self, own_id: str) -> None:
        self.messenger.unsubscribe(CHANNEL, own_id)
        self.running.pop(own_id, None)
        self.reference.readers.pop(own_id, None)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), to=st.one_of(st.sampled_from(["earliest", "latest"]), PLACES))
    def seek(self, data: st.DataObject, to: Any) -> None:
        own_id = data.draw(st.sampled_from(sorted(self.running)))
        position = self.place(to)
        self.running[own_id].seek(to if isinstance(to, str) else position)
        self.reference.readers[own_id].position = self.reference.boundary(position)

    @rule()
    def sweep(self) -> None:
        before = self.starts()
        self.messenger.sweep()
        assert self.starts() == self.reference.sweep(before, self.max_files)

    @rule(past=st.lists(SUBSCRIBERS, max_size=2), crashed=st.booleans())
    def close_and_reopen(self, past: list[str], crashed: bool) -> None:
        """Also with positions that reached the disk while their records did not."""
        self.messenger.close()
        for own_id, reader in self.reference.readers.items():
            reader.running = False
            if own_id in past and crashed:
                self.write_position(own_id, self.reference.end + len(own_id) + 100)
        self.running.clear()
        self.open()

    # -- what others do

    def append(self, data: bytes) -> None:
        with open(self.directory / f"{self.starts()[-1]:020}.jsonl", "ab") as file:
            file.write(data)

    @precondition(lambda self: self.starts())
    @rule(size=st.integers(1, 150))
    def die_in_mid_record(self, size: int) -> None:
        """Another process writes a part of a record."""
        part = self.line("torn", {"n": 0, "pad": "x" * size})[:size]
        self.append(part)
        self.reference.unfinished += part

    @precondition(lambda self: self.starts() and not self.reference.unfinished)
    @rule(roll=st.booleans())
    def publish_elsewhere(self, roll: bool) -> None:
        """Another process appends a record, and may have rolled before."""
        payload = self.payload()
        if roll and self.size():
            start = self.starts()[-1] + self.size()
            with open(self.directory / ".lock", "r+b") as lock:
                lock.write(b"%020d" % start)
            (self.directory / f"{start:020}.jsonl").touch(mode=0o600)
        self.append(self.line(f"there-{self.count}", payload))
        self.expected.append((f"there-{self.count}", payload))

    @precondition(lambda self: set(self.reference.readers) - set(self.running))
    @rule(data=st.data(), place=PLACES)
    def move_position(self, data: st.DataObject, place: Any) -> None:
        """Somebody edits the position of a subscriber that does not run."""
        idle = set(self.reference.readers) - set(self.running)
        own_id = data.draw(st.sampled_from(sorted(idle)))
        self.write_position(own_id, min(self.place(place), self.reference.end))

    def write_position(self, own_id: str, position: int) -> None:
        (self.offsets / f"{own_id}.offset").write_bytes(b"%d\n" % position)
        self.reference.readers[own_id].position = position

    @staticmethod
    def line(own_id: str, payload: Any) -> bytes:
        fields = {
            "v": 1,
            "id": own_id,
            "ts": "2026-01-02T03:04:05Z",
            "channel": CHANNEL,
            "origin": "there",
            "payload_type": TYPE,
            "payload": payload,
        }
        body = json.dumps(fields, separators=(",", ":")).encode()[:-1]
        return body + b',"crc":"%08x"}\n' % zlib.crc32(body)

    # -- what must hold

    def starts(self) -> list[int]:
        return sorted(int(path.stem) for path in self.directory.glob("*.jsonl"))

    def size(self) -> int:
        return (self.directory / f"{self.starts()[-1]:020}.jsonl").stat().st_size

    @invariant()
    def both_agree(self) -> None:
        if self.messenger is None:
            return
        self.check_log()
        self.reference.deliver(refuses)
        self.wait_delivered()
        for own_id in self.running:
            reader = self.reference.readers[own_id]
            assert self.got[own_id] == reader.due
            assert self.running[own_id].counters.dropped_bytes == reader.dropped_bytes
            assert self.running[own_id].counters.corrupt == 0
        self.check_positions()
        letters = Counter(self.letters())
        due = Counter((own_id, payload["n"]) for own_id, payload in self.reference.letters)
        # The cap holds for the dead-letter channel too, which nobody reads here.
        assert letters <= due if self.max_files else letters == due
        torn = sorted(self.directory.glob("*.torn-*"))
        assert [path.read_bytes() for path in torn] == self.reference.torn

    def wait_delivered(self) -> None:
        end = self.reference.end
        deadline = time.monotonic() + _PATIENCE_S
        while any(each.offset != end for each in self.running.values()):
            assert time.monotonic() < deadline, f"{self.running} do not reach {end}"
            gevent.sleep(0.0005)

    def check_log(self) -> None:
        """Segments join, lines are whole, and the records are the reference's, in order."""
        reference = self.reference
        position = reference.first
        found: list[Record] = []
        rest = b""
        for start in self.starts():
            assert (start, rest) == (position, b"")
            content = (self.directory / f"{start:020}.jsonl").read_bytes()
            *lines, rest = content.split(b"\n")
            for line in lines:
                body, _, crc = line.rpartition(b',"crc":"')
                assert crc == b'%08x"}' % zlib.crc32(body)
                fields = json.loads(line)
                end = position + len(line) + 1
                found.append(Record(position, end, fields["id"], fields["payload"]))
                position = end
        assert rest == reference.unfinished
        known = reference.left
        assert found[: len(known)] == known
        assert [(each.id, each.payload) for each in found[len(known) :]] == self.expected
        reference.records += found[len(known) :]
        self.expected = []
        if self.log_open:
            assert (self.directory / ".lock").read_bytes()[:20] == b"%020d" % self.starts()[-1]

    def check_positions(self) -> None:
        saved = {path.stem: path.read_bytes() for path in self.offsets.glob("*.offset")}
        assert set(saved) == set(self.reference.readers)
        for own_id, content in saved.items():
            assert int(content) == self.reference.readers[own_id].position, own_id

    def letters(self) -> list[tuple[str, int]]:
        found = []
        for path in sorted(self.data_dir.glob(f"channels/{CHANNEL}.dead-letter/*.jsonl")):
            for line in path.read_bytes().splitlines():
                payload = json.loads(line)["payload"]
                found.append((payload["subscriber"], payload["original"]["payload"]["n"]))
        return found

    def teardown(self) -> None:
        if self.messenger is not None:
            self.messenger.close()
        shutil.rmtree(self.root)


TestChannel = ChannelMachine.TestCase
TestChannel.settings = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
