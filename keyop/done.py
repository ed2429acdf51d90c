"""Which dead letters are done with: requeued or purged, by id, in one file of their channel."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable

from keyop.fs import FileSystem

NAME = ".done"
# An id of somebody else's may hold anything; one that is not plain is written as JSON.
_PLAIN = re.compile(r"[!#-~][!-~]*")
_READ_BYTES = 1 << 20


class DoneFile:
    """The ids, one on a line. Reading needs no lock; whoever changes it holds the channel's."""

    def __init__(self, fs: FileSystem, directory: str) -> None:
        self._fs = fs
        self.path = f"{directory}/{NAME}"

    def read(self) -> set[str]:
        """Return the ids.

        What a power cut left of the last line is no id, so at worst its dead letter is listed
        again.

        Raises:
            OSError: the file cannot be read.
        """
        pieces = []
        try:
            with self._fs.opened(self.path, os.O_RDONLY | os.O_CLOEXEC) as fd:
                position = 0
                while data := self._fs.pread(fd, _READ_BYTES, position):
                    pieces.append(data)
                    position += len(data)
        except FileNotFoundError:
            return set()
        lines = b"".join(pieces).decode("utf-8", "replace").split("\n")
        return {each for each in map(_parse, lines) if each is not None}

    def add(self, ids: Iterable[str]) -> None:
        """Append ids, which are on the disk when this returns.

        Raises:
            OSError: which of them are there is unknown.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        data = _encode(ids)
        with self._fs.opened(self.path, flags) as fd:
            size = self._fs.lseek(fd, 0, os.SEEK_END)
            if size and self._fs.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data
            self._fs.write_all(fd, data)
            self._fs.fsync(fd)
        if not size:
            self._fs.fsync_dir(os.path.dirname(self.path))

    def write(self, ids: Iterable[str]) -> None:
        """Put these ids in place of all that are there, as a whole or not at all.

        Raises:
            OSError: as :meth:`FileSystem.replace_file`.
        """
        self._fs.replace_file(self.path, _encode(sorted(ids)))


def _encode(ids: Iterable[str]) -> bytes:
    return "".join(
        (each if _PLAIN.fullmatch(each) else json.dumps(each)) + "\n" for each in ids
    ).encode()


def _parse(line: str) -> str | None:
    if not line.startswith('"'):
        return line or None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
