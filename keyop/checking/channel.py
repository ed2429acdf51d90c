"""One channel: are its files there, whole and in order, and is every line a record?"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator

from keyop.checking.positions import PositionCheck
from keyop.checking.problem import Modes, Problem, leftover, unreadable
from keyop.checking.scan import Bad, Findings, Scanner
from keyop.deadletter import max_dead_letter_bytes
from keyop.done import NAME as DONE_NAME
from keyop.errors import StorageError
from keyop.inspection import DataDirectory
from keyop.names import is_dead_letter
from keyop.storage.locks import LOCK_NAME
from keyop.storage.segment import (
    Segment,
    segment_name,
    segment_path,
    segment_start,
    set_torn_tail_aside,
    whole_size,
)

_TORN = re.compile(r"\d{20}\.jsonl\.torn-\d+", re.ASCII)


class ChannelCheck:
    """Checks one channel that may be in use.

    What looks wrong without its lock may be something in the making, so then it is looked at
    again under the lock. Nothing is created for that, unless something is to be repaired.
    """

    def __init__(
        self, directory: DataDirectory, channel: str, max_record_bytes: int, modes: Modes
    ) -> None:
        self._directory = directory
        self._fs = directory.fs
        self._channel = channel
        self._path = directory.channel_directory(channel)
        self._max_line_bytes = (
            max_dead_letter_bytes(max_record_bytes) if is_dead_letter(channel) else max_record_bytes
        )
        self._modes = modes
        self.segments: list[Segment] = []

    def run(self, repair: bool) -> list[Problem]:
        """Return what is wrong with the files, after mending what can be."""
        problems = list(self._look())
        if not any(problem.remains for problem in problems):
            return problems
        lock_path = f"{self._path}/{LOCK_NAME}"
        not_locked: list[Problem] = []
        if repair or os.path.exists(lock_path):
            try:
                with self._directory.locked(self._channel):
                    problems = list(self._look())
                    if repair:
                        for problem in problems:
                            problem.repair()
                return problems
            except StorageError as error:
                if repair:
                    advice = "nothing was repaired in this channel"
                    not_locked.append(Problem(lock_path, str(error), advice))
        seen = {problem.path for problem in problems}
        again = [problem for problem in self._look() if problem.certain or problem.path in seen]
        return again + not_locked

    # -- the files

    def _look(self) -> Iterator[Problem]:
        self.segments = []
        try:
            names = sorted(self._fs.listdir(self._path))
        except FileNotFoundError:
            names = []
        except OSError as error:
            yield unreadable(self._path, error)
            return
        for name in names:
            path = f"{self._path}/{name}"
            try:
                yield from self._look_at(path, name, self._fs.stat(path))
            except FileNotFoundError:  # deleted just now
                continue
            except OSError as error:
                yield unreadable(path, error)
        yield from self._look_at_order()
        yield from self._look_at_tail()
        yield from PositionCheck(self._directory, self._channel, self.segments, self._modes).look()

    def _look_at(self, path: str, name: str, status: os.stat_result) -> Iterator[Problem]:
        self._modes.see(path, status.st_mode)
        start = segment_start(name)
        is_ours = start is not None or name in (LOCK_NAME, DONE_NAME)
        if is_ours and not stat.S_ISREG(status.st_mode):
            yield Problem(path, "is not a file, but has the name of one", "move it away")
        elif start is not None:
            self.segments.append(Segment(start, status.st_size))
        elif name == DONE_NAME + ".tmp":
            what = "was left by a process that died while it rewrote .done"
            yield leftover(self._fs, path, what, ".done itself is whole")
        elif _TORN.fullmatch(name):
            yield Problem(
                path,
                f"holds {status.st_size} bytes that were cut off a segment, being no whole record",
                "delete it when you do not need it",
                note=True,
            )
        elif not is_ours:
            yield Problem(path, "is not keyop's", "move it away if nobody needs it", note=True)

    def _look_at_order(self) -> Iterator[Problem]:
        for before, after in itertools.pairwise(self.segments):
            path = segment_path(self._path, before.start)
            if before.end < after.start:
                yield Problem(
                    path,
                    f"{after.start - before.end} bytes are missing between it and "
                    f"{segment_name(after.start)}",
                    "put the missing segments back; otherwise subscribers go on after the gap "
                    "and count it as dropped",
                )
            elif before.end > after.start:
                yield Problem(
                    path,
                    f"reaches {before.end - after.start} bytes into {segment_name(after.start)}",
                    "two writers without a common lock, or a file copied from elsewhere: the "
                    "channel does not open until one of them is moved away",
                )

    def _look_at_tail(self) -> Iterator[Problem]:
        if not self.segments:
            return
        start, size = self.segments[-1]
        path = segment_path(self._path, start)
        try:
            with self._fs.opened(path, os.O_RDONLY | os.O_CLOEXEC) as fd:
                whole = whole_size(self._fs, fd, size)
        except FileNotFoundError:
            return
        except OSError as error:
            yield unreadable(path, error)
            return
        self.segments[-1] = Segment(start, whole)
        if whole != size:
            yield Problem(
                path,
                f"ends with {size - whole} bytes that are no whole record",
                "a process died while it wrote them, or the power failed; the next append or "
                "--repair puts them into a file beside it",
                offsets=(start + whole,),
                mend=lambda: self._cut_tail(path, start),
            )

    def _cut_tail(self, path: str, start: int) -> None:
        with self._fs.opened(path, os.O_RDWR | os.O_CLOEXEC) as fd:
            size = self._fs.lseek(fd, 0, os.SEEK_END)
            whole = whole_size(self._fs, fd, size)
            if whole != size:
                set_torn_tail_aside(self._fs, self._path, start, fd, whole, size)

    # -- the lines

    def scan(self, progress: Callable[[int], None]) -> Iterator[tuple[int, list[Problem]]]:
        """Read every segment; yield how many records each holds, and what is wrong with it."""
        for start, size in self.segments:
            path = segment_path(self._path, start)
            scanner = Scanner(self._fs, path, start, size, self._max_line_bytes, progress)
            try:
                findings = scanner.run()
            except OSError as error:
                yield scanner.findings.records, [unreadable(path, error)]
            else:
                yield findings.records, list(self._bad_lines(path, findings))

    def _bad_lines(self, path: str, findings: Findings) -> Iterator[Problem]:
        if findings.corrupt.count:
            yield _lines(
                path,
                findings.corrupt,
                "no record",
                "subscribers put it aside as a dead letter, deliver the whole records in it, and "
                "go on; nothing needs to be done, and this is said until its segment is deleted",
            )
        if findings.oversize.count:
            yield _lines(
                path,
                findings.oversize,
                f"longer than storage.max_record_bytes allows ({self._max_line_bytes})",
                "raise it before subscribers come here; otherwise they put it aside",
            )
        if findings.unknown.count:
            yield _lines(
                path,
                findings.unknown,
                "of another version",
                "a newer keyop wrote it; subscribers pass over it",
                note=True,
            )


def _lines(path: str, bad: Bad, what: str, advice: str, note: bool = False) -> Problem:
    shown = ", ".join(f"{offset} ({reason})" for offset, reason in bad.samples)
    more = "" if bad.count == len(bad.samples) else ", …"
    are = "1 line is" if bad.count == 1 else f"{bad.count} lines are"
    return Problem(
        path,
        f"{are} {what}, at {shown}{more}",
        advice,
        note,
        bad.count,
        tuple(offset for offset, _ in bad.samples),
    )
