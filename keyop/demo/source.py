"""The lines that the demo sends: a file of the user's, stdin, or something large that lies here."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

LINE_LIMIT = 200_000
# Below this, the source tree makes the better demonstration.
_WORTH_BYTES = 2 << 20
_LOGS = (
    "/var/log/dpkg.log",
    "/var/log/pacman.log",
    "/var/log/dnf.log",
    "/var/log/syslog",
    "/var/log/messages",
    "/var/lib/dpkg/status",
)


class Source(NamedTuple):
    """A copy of the lines to send: what they are, where they lie, how many there are."""

    name: str
    path: str
    lines: int


def copy_source(file: str | None, stdin: IO[bytes], target: str, limit: int) -> Source:
    """Copy at most ``limit`` lines to ``target``, so that they stay what they are meanwhile.

    Args:
        file: a path, ``-`` for stdin, or None for what :func:`find_default` finds.

    Raises:
        OSError: the file cannot be read, or the copy not be written.
    """
    if file == "-":
        return _copy("stdin", stdin, target, limit)
    if file is not None:
        with open(file, "rb") as lines:
            return _copy(file, lines, target, limit)
    found = find_default()
    if found is not None:
        with open(found, "rb") as lines:
            return _copy(found, lines, target, limit)
    library = sysconfig.get_path("stdlib")
    return _copy(f"the Python sources in {library}", _source_tree(Path(library)), target, limit)


def find_default() -> str | None:
    """Return the largest of the logs that many machines have, if one is large and readable."""
    sizes = {path: os.path.getsize(path) for path in _LOGS if os.access(path, os.R_OK)}
    largest = max(sizes, key=lambda path: sizes[path], default=None)
    return largest if largest is not None and sizes[largest] >= _WORTH_BYTES else None


def _source_tree(root: Path) -> Iterator[bytes]:
    for path in sorted(root.rglob("*.py")):
        yield from path.read_bytes().splitlines(keepends=True)


def _copy(name: str, lines: Iterable[bytes], target: str, limit: int) -> Source:
    count = 0
    with open(target, "wb") as copy:
        for line in islice(lines, limit):
            copy.write(line if line.endswith(b"\n") else line + b"\n")
            count += 1
    return Source(name, target, count)


def as_payload(number: int, line: bytes) -> dict[str, object]:
    """Return a line as a payload from which :func:`as_line` gets its bytes back."""
    text = line.removesuffix(b"\n")
    try:
        return {"line": number, "text": text.decode()}
    except UnicodeDecodeError:
        return {"line": number, "latin1": text.decode("latin-1")}


def as_line(payload: dict[str, str]) -> bytes:
    """Return the bytes of the line that a payload holds, newline included."""
    if "text" in payload:
        return payload["text"].encode() + b"\n"
    return payload["latin1"].encode("latin-1") + b"\n"
