"""Reads a channel from its files, as format.md has them, without a line of keyop's own code."""

from __future__ import annotations

import itertools
import json
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from .workload import is_whole

_LINE = re.compile(rb'(.*),"crc":"([0-9a-f]{8})"\}', re.DOTALL)


class Entry(NamedTuple):
    """A record: where it begins, its id, and the writer and number in its payload."""

    offset: int
    id: str
    by: str
    n: int


class ChannelTail:
    """Follows a channel. ``problems`` holds whatever a sound log could not contain."""

    def __init__(self, data_dir: Path, channel: str) -> None:
        self.directory = data_dir / "channels" / channel
        self.position = 0
        self.entries: list[Entry] = []
        self.problems: list[str] = []
        self.segments = 0
        self._ids: set[str] = set()

    def segment_starts(self) -> dict[int, int]:
        """Return the start and size of each segment, in order."""
        found = {}
        for path in sorted(self.directory.glob("*.jsonl")):
            found[int(path.stem)] = path.stat().st_size
        return found

    def follow(self) -> list[Entry]:
        """Read the whole lines that were added since the last call.

        To be called while nobody rolls: the listing and the sizes are taken one after the other.
        """
        new: list[Entry] = []
        segments = self.segment_starts()
        starts = list(segments)
        self.segments = max(self.segments, len(starts))
        for start, after in itertools.pairwise(starts):
            end = start + segments[start]
            problem = f"segment {start} ends at {end}, the next begins at {after}"
            if end != after and problem not in self.problems:
                self.problems.append(problem)
        for start, size in segments.items():
            if start + size <= self.position:
                continue
            with open(self.directory / f"{start:020}.jsonl", "rb") as file:
                file.seek(max(0, self.position - start))
                self.position = max(self.position, start)
                data = file.read()
            *lines, rest = data.split(b"\n")
            for line in lines:
                new += self._read(line)
                self.position += len(line) + 1
            if rest and start != starts[-1]:
                self.problems.append(f"the sealed segment {start} has no newline at its end")
                if _is_sound(rest):  # only that is missing
                    new += self._read(rest)
        self.entries += new
        return new

    def _read(self, line: bytes) -> list[Entry]:
        if not _is_sound(line):
            self.problems.append(f"no sound record at {self.position}: {line[:80]!r}")
            return []
        fields = json.loads(line)
        if not is_whole(fields["payload"]):
            self.problems.append(f"not as it was published, at {self.position}: {line[:80]!r}")
            return []
        if fields["id"] in self._ids:
            self.problems.append(f"the id {fields['id']} is there twice")
        self._ids.add(fields["id"])
        found = fields["payload"]
        return [Entry(self.position, fields["id"], found["by"], found["n"])]


def saved_offsets(data_dir: Path, channel: str) -> dict[str, int]:
    """Return the position in each of the channel's offset files."""
    directory = data_dir / "subscribers" / channel
    return {path.stem: int(path.read_bytes()) for path in sorted(directory.glob("*.offset"))}


def payloads(data_dir: Path, channel: str) -> list[Any]:
    """Return the payloads of a channel's sound records, in order, whatever lies between them."""
    found = []
    for path in sorted((data_dir / "channels" / channel).glob("*.jsonl")):
        lines = path.read_bytes().split(b"\n")[:-1]
        found += [json.loads(line)["payload"] for line in lines if _is_sound(line)]
    return found


def _is_sound(line: bytes) -> bool:
    match = _LINE.fullmatch(line)
    return match is not None and int(match[2], 16) == zlib.crc32(match[1])
