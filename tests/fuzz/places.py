"""A data directory for many inputs, one after the other, and a disk that nobody waits for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from keyop.fs import SYSTEM_FS

CHANNEL = "orders"


@contextmanager
def quick_disk() -> Iterator[None]:
    """Bring nothing to the disk meanwhile: no power fails here."""

    def at_once(fd: int) -> None:
        pass

    with mock.patch.multiple(SYSTEM_FS, fsync=at_once, fdatasync=at_once):
        yield


class Place:
    """A data directory with one channel, emptied before each input."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data_dir = root / "data"
        self.log = self.data_dir / "channels" / CHANNEL
        self.offsets = self.data_dir / "subscribers" / CHANNEL
        for each in (self.log, self.offsets):
            each.mkdir(0o700, parents=True)

    def clear(self) -> None:
        """Remove every file of the channel."""
        for directory in (self.log, self.offsets):
            for name in os.listdir(directory):
                os.unlink(directory / name)

    def files(self) -> set[str]:
        """Return the names of the channel's files; there must be nothing but the channel."""
        assert os.listdir(self.root) == ["data"]
        assert sorted(os.listdir(self.data_dir)) == ["channels", "subscribers"]
        for each in (self.log, self.offsets):
            assert os.listdir(each.parent) == [CHANNEL]
        return {*os.listdir(self.log), *os.listdir(self.offsets)}
