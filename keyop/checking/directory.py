"""The whole data directory, channel by channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from keyop.checking.channel import ChannelCheck
from keyop.checking.problem import Modes, Problem, Report, unreadable
from keyop.errors import InvalidChannelNameError, StorageError
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.inspection import DataDirectory
from keyop.names import check_channel

_KINDS = ("channels", "subscribers")
_OTHERS = (".federation.lock", ".sweeper.lock", "audit")


def check_directory(
    path: str,
    max_record_bytes: int,
    repair: bool = False,
    progress: Callable[[int, int], None] | None = None,
    fs: FileSystem = SYSTEM_FS,
) -> Report:
    """Verify a data directory that may be in use; say what is wrong with it.

    Args:
        max_record_bytes: ``storage.max_record_bytes``.
        repair: mend what can be mended without losing a record. A position is not touched while
            its subscriber runs.
        progress: told how many bytes are read, and how many there are.

    Raises:
        StorageError: there is no data directory.
    """
    check = _DirectoryCheck(path, max_record_bytes, fs)
    return check.run(repair, progress)


class _DirectoryCheck:
    def __init__(self, path: str, max_record_bytes: int, fs: FileSystem) -> None:
        self._fs = fs
        self._max_record_bytes = max_record_bytes
        self._modes = Modes()
        self._report = Report(path)
        try:
            self._directory: DataDirectory | None = DataDirectory(path, fs)
        except StorageError as error:
            # A file or a missing permission in place of the directories is a finding.
            cause = error.__cause__
            if not isinstance(cause, OSError):
                raise
            self._directory = None
            self._add([_not_a_directory(path, cause)])

    def run(self, repair: bool, progress: Callable[[int, int], None] | None) -> Report:
        report, directory = self._report, self._directory
        if directory is None:
            return report
        self._add(self._look_at_top(directory))
        channels = [
            ChannelCheck(directory, name, self._max_record_bytes, self._modes)
            for name in self._names(directory)
        ]
        report.channels = len(channels)
        for channel in channels:
            self._add(channel.run(repair))
            report.disk_bytes += sum(segment.size for segment in channel.segments)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, report.disk_bytes)

        for channel in channels:
            for records, problems in channel.scan(advance):
                report.records += records
                self._add(problems)
        self._add(self._modes.problems(directory.path))
        return report

    def _add(self, problems: list[Problem]) -> None:
        self._report.problems += problems

    def _look_at_top(self, directory: DataDirectory) -> list[Problem]:
        problems = []
        for name in ("", *_KINDS, *_OTHERS):
            path = f"{directory.path}/{name}".rstrip("/")
            try:
                self._modes.see(path, self._fs.stat(path).st_mode)
            except FileNotFoundError:
                continue
            except OSError as error:
                problems.append(unreadable(path, error))
        return problems

    def _names(self, directory: DataDirectory) -> list[str]:
        """Return the channels' names, reporting whatever else is where channels are."""
        found: set[str] = set()
        for kind in _KINDS:
            parent = f"{directory.path}/{kind}"
            try:
                names = sorted(self._fs.listdir(parent))
            except FileNotFoundError:
                continue
            except OSError as error:
                self._add([unreadable(parent, error)])
                continue
            for name in names:
                problems = list(self._look_at_channel(f"{parent}/{name}", name))
                self._add(problems)
                if not problems:
                    found.add(name)
        return sorted(found)

    def _look_at_channel(self, path: str, name: str) -> Iterator[Problem]:
        try:
            check_channel(name)
            self._fs.is_dir(path)
            self._modes.see(path, self._fs.stat(path).st_mode)
        except InvalidChannelNameError:
            yield Problem(
                path, "is not keyop's: no channel has that name", "move it away", note=True
            )
        except OSError as error:
            yield _not_a_directory(path, error)


def _not_a_directory(path: str, error: OSError) -> Problem:
    if isinstance(error, NotADirectoryError):
        return Problem(
            error.filename or path, "is a file where a directory should be", "move it away"
        )
    return unreadable(path, error)
