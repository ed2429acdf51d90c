"""Reading a segment from end to end: is every line a record?"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from zlib import crc32

from keyop.decode import decode
from keyop.envelope import CRC_MARK, CRC_SUFFIX_BYTES, UnknownVersionError
from keyop.errors import CorruptRecordError
from keyop.fs import FileSystem

# So many bytes are read at once, and of a longer line no more are in memory.
CHUNK_BYTES = 1 << 20
MAX_SAMPLES = 10
# What keyop writes before a payload. With it and the checksum a line needs no parser.
_HEAD = re.compile(
    rb'\{"v":1,"id":"[^"\\]*","ts":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z"'
    rb',"channel":"[^"\\]*","origin":"[^"\\]*","payload_type":"[^"\\]*"'
    rb'(?:,"(?:correlation_id|service_name)":"[^"\\]*")*'
    rb'(?:,"route":\["[^"\\]*"(?:,"[^"\\]*")*\])?(?:,"subscriber":"[^"\\]*")?,"payload":'
)
_HEAD_BYTES = 4096
_NO_END = "it has no end"


@dataclass
class Bad:
    """Lines with one kind of fault: how many, and where some of them begin, with the reason."""

    count: int = 0
    samples: list[tuple[int, str]] = field(default_factory=list)

    def add(self, offset: int, reason: str) -> None:
        """Count one."""
        self.count += 1
        if len(self.samples) < MAX_SAMPLES:
            self.samples.append((offset, reason))


@dataclass
class Findings:
    """What is in a segment. ``records`` counts the sound ones."""

    records: int = 0
    corrupt: Bad = field(default_factory=Bad)
    oversize: Bad = field(default_factory=Bad)
    unknown: Bad = field(default_factory=Bad)


class Scanner:
    """Reads one segment.

    Args:
        start: the offset of its first byte.
        size: how much of it to read; the rest may be in the making.
        max_line_bytes: a line with its newline must not be longer.
        progress: told about bytes as they are read.
    """

    def __init__(
        self,
        fs: FileSystem,
        path: str,
        start: int,
        size: int,
        max_line_bytes: int,
        progress: Callable[[int], None],
    ) -> None:
        self._fs = fs
        self._path = path
        self._start = start
        self._size = size
        self._max_line_bytes = max_line_bytes
        self._progress = progress
        self.findings = Findings()

    def run(self) -> Findings:
        """Read it and return what was found; nothing if the segment was deleted meanwhile.

        Raises:
            OSError: it cannot be read.
        """
        try:
            with self._fs.opened(self._path, os.O_RDONLY | os.O_CLOEXEC) as fd:
                self._scan(fd)
        except FileNotFoundError:
            pass
        return self.findings

    def _scan(self, fd: int) -> None:
        position = 0
        while position < self._size:
            data = self._fs.pread(fd, min(CHUNK_BYTES, self._size - position), position)
            end = data.rfind(b"\n")
            if end >= 0:
                self._check_lines(data[:end].split(b"\n"), self._start + position)
                advance = end + 1
            elif len(data) == CHUNK_BYTES:
                advance = self._check_long_line(fd, position)
            else:
                # Of a sealed segment. What the active one has behind its last newline was not
                # to be read.
                if data:
                    self.findings.corrupt.add(self._start + position, _NO_END)
                advance = self._size - position
            position += advance
            self._progress(advance)

    def _check_lines(self, lines: list[bytes], offset: int) -> None:
        """Check whole lines, of which there may be millions."""
        sound = 0
        limit, is_ours = self._max_line_bytes, _HEAD.match
        for line in lines:
            size = len(line)
            if (
                line[-18:-10] == CRC_MARK
                and b'%08x"}' % crc32(line[:-18]) == line[-10:]
                and size < limit
                and is_ours(line)
            ):
                sound += 1
            else:
                self._check_line(line, offset)
            offset += size + 1
        self.findings.records += sound

    def _check_line(self, line: bytes, offset: int) -> None:
        if len(line) >= self._max_line_bytes:
            self._oversize(offset, len(line))
            return
        try:
            decode(line)
        except UnknownVersionError as error:
            self.findings.unknown.add(offset, str(error))
        except CorruptRecordError as error:
            self.findings.corrupt.add(offset, str(error))
        else:
            self.findings.records += 1

    def _oversize(self, offset: int, size: int) -> None:
        self.findings.oversize.add(offset, f"{size + 1} bytes")

    def _check_long_line(self, fd: int, position: int) -> int:
        """Check a line that fills a chunk, without holding it; return its size with newline."""
        start = position
        crc, held = 0, b""
        head = self._fs.pread(fd, _HEAD_BYTES, position)
        newline = -1
        while newline < 0 and position < self._size:
            data = self._fs.pread(fd, min(CHUNK_BYTES, self._size - position), position)
            if not data:
                break
            newline = data.find(b"\n")
            part = data if newline < 0 else data[:newline]
            position += len(part)
            # The checksum is of all but the last bytes, which hold it.
            held += part
            crc = crc32(held[:-CRC_SUFFIX_BYTES], crc)
            held = held[-CRC_SUFFIX_BYTES:]
        size = position - start
        if newline < 0:
            self.findings.corrupt.add(self._start + start, _NO_END)
            return self._size - start
        if size >= self._max_line_bytes:
            self._oversize(self._start + start, size)
        elif _HEAD.match(head) and held == CRC_MARK + b'%08x"}' % crc:
            self.findings.records += 1
        else:
            self._check_line(self._fs.pread(fd, size, start), self._start + start)
        return size + 1
