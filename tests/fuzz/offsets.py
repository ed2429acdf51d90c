"""What is in the file of a subscriber's position."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from keyop.checking.directory import check_directory
from keyop.errors import OffsetError
from keyop.fs import SYSTEM_FS
from keyop.storage.offsets import OffsetFile, offset_path, read_all, read_offset
from keyop.storage.recovery import clamp_offsets
from keyop.storage.segment import segment_name
from tests.integration.helpers import record

from .checks import insist
from .places import Place

_LINES = [record(each) for each in range(3)]
_LOG = b"".join(_LINES)
_BOUNDARIES = {0, len(_LINES[0]), len(_LINES[0] + _LINES[1]), len(_LOG)}
_NAME = "reader"
_OFFSET = re.compile(rb"[0-9]{1,20}\n?")


@contextmanager
def offsets(directory: Path) -> Iterator[Callable[[bytes], None]]:
    """Give what takes contents of an offset file: a position, or an error and nothing changed."""
    place = Place(directory)
    path = place.offsets / f"{_NAME}.offset"
    segment = place.log / segment_name(0)

    def feed(data: bytes) -> None:
        expected = int(data) if _OFFSET.fullmatch(data) else None
        place.clear()
        segment.write_bytes(_LOG)
        path.write_bytes(data)
        assert _read(path) == expected
        ((name, found),) = read_all(SYSTEM_FS, str(place.offsets))
        assert name == _NAME
        assert (None if isinstance(found, OffsetError) else found) == expected

        clamp_offsets(SYSTEM_FS, str(place.offsets), len(_LOG))
        clamped = None if expected is None else min(expected, len(_LOG))
        assert _read(path) == clamped
        if clamped is None:
            assert path.read_bytes() == data
        _open_and_save(path, clamped)

        path.write_bytes(data)
        _repair(place, expected)
        assert place.files() <= {path.name, f"{_NAME}.lock", segment.name, ".lock"}

    yield feed


def _read(path: Path) -> int | None:
    try:
        offset = read_offset(SYSTEM_FS, str(path))
    except OffsetError as error:
        insist(str(path) in str(error), error)
        return None
    assert offset is not None
    return offset


def _open_and_save(path: Path, expected: int | None) -> None:
    """Open it as its subscriber does, and save another position in it."""
    before = path.read_bytes()
    file = OffsetFile(SYSTEM_FS, str(path))
    try:
        opened = file.open()
        assert opened == expected
        assert len(path.read_bytes()) == 21
        for offset in (7, 12345678901234567890, 0):
            file.save(offset)
            assert _read(path) == offset
    except OffsetError:
        assert expected is None
        assert path.read_bytes() == before
    finally:
        file.close()


def _repair(place: Place, expected: int | None) -> None:
    """After a repair the position is that of a record, and none was passed over."""
    report = check_directory(str(place.data_dir), 1 << 20, repair=True)
    assert all(each.repaired for each in report.problems if not each.note), report.problems
    repaired = _read(Path(offset_path(str(place.offsets), _NAME)))
    assert repaired in _BOUNDARIES
    whole = min(0 if expected is None else expected, len(_LOG))
    assert repaired == max(each for each in _BOUNDARIES if each <= whole)
    again = check_directory(str(place.data_dir), 1 << 20)
    assert [each for each in again.problems if not each.note] == []
