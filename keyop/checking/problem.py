"""What is found wrong, what to do about it, and whether that was done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from keyop.errors import KeyopError
from keyop.fs import FileSystem


@dataclass
class Problem:
    """One finding. A ``note`` is worth knowing, and nothing is wrong.

    ``offsets`` are the places of some of the ``count`` lines that are at fault. ``mend`` is None
    where nothing can be repaired; it is called while the channel's lock is held. What is
    ``certain`` cannot be something that another process is in the middle of.
    """

    path: str
    what: str
    advice: str
    note: bool = False
    count: int = 1
    offsets: tuple[int, ...] = ()
    mend: Callable[[], None] | None = field(default=None, repr=False, compare=False)
    repaired: bool = False
    certain: bool = False

    @property
    def repairable(self) -> bool:
        """Whether ``--repair`` mends it."""
        return self.mend is not None

    @property
    def remains(self) -> bool:
        """Whether something is still wrong."""
        return not self.note and not self.repaired

    def repair(self) -> None:
        """Mend it if that is possible; otherwise ``advice`` says why it was not."""
        if self.mend is None:
            return
        try:
            self.mend()
        except (OSError, KeyopError) as error:
            self.advice = f"not repaired: {error_text(error)}"
        else:
            self.repaired = True


@dataclass
class Report:
    """What a check found. ``disk_bytes`` counts segments."""

    data_dir: str
    channels: int = 0
    records: int = 0
    disk_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def remaining(self) -> list[Problem]:
        """The problems that are still there; notes are none."""
        return [problem for problem in self.problems if problem.remains]

    @property
    def repaired(self) -> list[Problem]:
        """Those that were mended."""
        return [problem for problem in self.problems if problem.repaired]

    @property
    def notes(self) -> list[Problem]:
        """What is worth knowing."""
        return [problem for problem in self.problems if problem.note]


def error_text(error: BaseException) -> str:
    """Return an error without the path, which is named beside it."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def unreadable(path: str, error: OSError) -> Problem:
    """Return the problem that a path cannot be looked at."""
    advice = (
        "run the check as the user who owns the data directory"
        if isinstance(error, PermissionError)
        else "see what the file system or the disk says"
    )
    what = f"cannot be read: {error_text(error)}"
    return Problem(error.filename or path, what, advice, certain=True)


def leftover(fs: FileSystem, path: str, what: str, advice: str) -> Problem:
    """Return the problem that a file was left behind, which is mended by deleting it."""

    def delete() -> None:
        try:
            fs.unlink(path)
        except FileNotFoundError:  # another repair has used the name since
            pass

    return Problem(path, what, f"{advice}; --repair deletes this", mend=delete)


class Modes:
    """Files and directories that others than their owner may use, which v0.11.0 makes."""

    def __init__(self) -> None:
        self._wide: dict[str, bool] = {}

    def see(self, path: str, mode: int) -> None:
        """Take note of a path's mode, as ``stat`` returns it."""
        if mode & 0o077:
            self._wide[path] = mode & 0o170000 == 0o040000

    def problems(self, data_dir: str) -> list[Problem]:
        """Return one note on all of them, if there are any."""
        if not self._wide:
            return []
        directories = sum(self._wide.values())
        example = next(iter(self._wide))
        return [
            Problem(
                data_dir,
                f"{len(self._wide) - directories} files and {directories} directories may be used "
                f"by others than their owner, such as {example}",
                f"chmod -R go= {data_dir} makes messages private",
                note=True,
            )
        ]
