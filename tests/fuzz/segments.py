"""What is in a segment: as the last one, which is recovered, and as a sealed one."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gevent.event import Event

from keyop.clock import SYSTEM_CLOCK
from keyop.deadletter import DeadLetterWriter
from keyop.decode import EnvelopeReader, decode
from keyop.delivery import Delivery, RetryPolicy
from keyop.envelope import EnvelopeWriter, Message
from keyop.errors import CorruptRecordError
from keyop.fs import SYSTEM_FS
from keyop.inspection import DataDirectory
from keyop.latency import MessengerLatencies
from keyop.look.records import Found, Reader
from keyop.pace import Pace
from keyop.payloads import PayloadRegistry
from keyop.salvage import salvage
from keyop.storage.cursor import Cursor, Lines, Skipped
from keyop.storage.recovery import recover
from keyop.storage.segment import segment_name
from tests.integration.helpers import record

from .places import CHANNEL, Place
from .records import check_decoding

# Small ones, so that an input need not be large to go beyond them.
MAX_LINE_BYTES = 2400
_CHUNK_BYTES = 256
_READER = "reader"
# Behind a sealed segment, or so many bytes further behind, with a gap between them.
_NEXT = record("next", id="next")
_GAP_BYTES = 10


@contextmanager
def segments(directory: Path) -> Iterator[Callable[[bytes], None]]:
    """Give what takes contents of a segment: whole records are delivered, and reading ends."""
    place = Place(directory)

    def feed(data: bytes) -> None:
        _as_the_last(place, data)
        _as_a_sealed_one(place, data, _GAP_BYTES if len(data) % 2 else 0)

    yield feed


def _as_the_last(place: Place, data: bytes) -> None:
    whole, torn = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
    place.clear()
    path = place.log / segment_name(0)
    path.write_bytes(data)
    opened = recover(SYSTEM_FS, str(place.log), str(place.offsets), True)
    os.close(opened.fd)
    assert (opened.start, opened.size) == (0, len(whole))
    assert path.read_bytes() == whole
    aside = place.log / f"{path.name}.torn-0"
    assert (aside.read_bytes() if aside.exists() else b"") == torn
    _check_reading(place, whole, [])
    assert place.files() == {path.name, *([aside.name] if torn else [])}


def _as_a_sealed_one(place: Place, data: bytes, gap: int) -> None:
    place.clear()
    after = len(data) + gap
    (place.log / segment_name(0)).write_bytes(data)
    (place.log / segment_name(after)).write_bytes(_NEXT)
    if not after:  # the next one has taken its place
        return
    opened = recover(SYSTEM_FS, str(place.log), str(place.offsets), True)
    os.close(opened.fd)
    assert (opened.start, opened.size) == (after, len(_NEXT))
    assert (place.log / segment_name(0)).read_bytes() == data
    _check_reading(place, data, [(after, "next")])
    assert place.files() == {segment_name(0), segment_name(after)}


def _check_reading(place: Place, data: bytes, behind: list[tuple[int, str]]) -> None:
    """All who read the channel must find the whole records in ``data``, and those behind it."""
    whole, _, unfinished = data.rpartition(b"\n")
    delivered_of = [
        *_whole_records(whole, MAX_LINE_BYTES),
        *_saved(unfinished[:MAX_LINE_BYTES], len(data) - len(unfinished)),
    ]
    end = len(data) if not behind else behind[0][0] + len(_NEXT)
    for fails in (False, True):
        delivered, letters = _deliver(place, end, fails)
        assert delivered == [*delivered_of, *behind]
        for each in letters:
            _check_letter(each, data)
    # Whoever only looks sees longer ones too, and nothing in what is unfinished.
    looked = [
        (found.offset, found.fields["id"]) for found in _look(place, end) if _is_for_reader(found)
    ]
    assert looked == [*_whole_records(whole, len(data) + 1), *behind]


def _is_for_reader(found: Found) -> bool:
    return found.fields is not None and found.fields.get("subscriber", _READER) == _READER


def _whole_records(lines: bytes, limit: int) -> list[tuple[int, str]]:
    """Return where records are in lines shorter than the limit, and their ids."""
    found = []
    offset = 0
    for line in lines.split(b"\n"):
        if len(line) < limit:
            fields = check_decoding(line, EnvelopeReader())
            found += _saved(line, offset) if fields is None else _of_the_reader(fields, offset)
        offset += len(line) + 1
    return found


def _saved(line: bytes, offset: int) -> list[tuple[int, str]]:
    """Return where whole records are in a damaged line that begins at this offset."""
    found = []
    for piece in salvage(line):
        if piece.whole:
            try:
                fields = decode(piece.data)
            except CorruptRecordError:
                continue
            found += _of_the_reader(fields, offset + piece.start)
    return found


def _of_the_reader(fields: dict[str, Any], offset: int) -> list[tuple[int, str]]:
    return [(offset, fields["id"])] if fields.get("subscriber", _READER) == _READER else []


def _deliver(
    place: Place, end: int, fails: bool
) -> tuple[list[tuple[int, str]], list[dict[str, Any]]]:
    """Return offsets and ids of what is delivered, and the dead letters; all must be done with."""
    delivered: list[tuple[int, str]] = []
    written: list[bytes] = []
    done = [0]

    def handle(message: Message) -> None:
        delivered.append((message.offset, message.id))
        if fails:
            raise ValueError("meant to fail")

    writer = DeadLetterWriter(
        CHANNEL, _READER, EnvelopeWriter("here"), written.append, SYSTEM_CLOCK
    )
    delivery = Delivery(
        CHANNEL,
        _READER,
        handle,
        PayloadRegistry(),
        RetryPolicy(0, 0.0, 0.0),
        writer,
        MAX_LINE_BYTES,
        Event(),
        MessengerLatencies(SYSTEM_CLOCK),
    )
    for found in _read(place):
        assert found.start == done[-1]
        if isinstance(found, Lines):
            delivery.deliver_lines(found, done.append, Pace(), lambda: True)
        else:
            assert delivery.skip(found)
            done.append(found.end)
    assert done[-1] == end, "it stops before the end"
    assert done == sorted(done)
    assert len(written) == delivery.counters.dead_letters >= fails * len(delivered)
    return delivered, [decode(line[:-1]) for line in written]


def _read(place: Place) -> Iterator[Lines | Skipped]:
    cursor = Cursor(SYSTEM_FS, str(place.log), MAX_LINE_BYTES, _CHUNK_BYTES)
    try:
        cursor.open(0)
        while (found := cursor.read(look_around=True)) is not None:
            assert cursor.position > found.start, "it goes round in circles"
            yield found
    finally:
        cursor.close()


def _look(place: Place, end: int) -> Iterator[Found]:
    """Yield what the page and the commands show of it."""
    directory = DataDirectory(str(place.data_dir))
    with Reader(directory, CHANNEL, MAX_LINE_BYTES) as reader:
        assert reader.bounds() == (0, end)
        position = 0
        for found in reader.read(0):
            assert found.offset == position
            assert found.end > position or not found.line
            position = found.end
            yield found
        assert position == end


def _check_letter(fields: dict[str, Any], data: bytes) -> None:
    """A dead letter holds what was in the log."""
    payload = fields["payload"]
    assert payload["subscriber"] == _READER
    if payload["original"] is None:
        raw = base64.b64decode(payload["raw"], validate=True)
        assert raw in data or raw in _NEXT
