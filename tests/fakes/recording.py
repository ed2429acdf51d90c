"""A file system that records what is done to it, and the states that a power cut may leave.

``RecordingFs`` works on real files and keeps a list of operations. ``crash_states`` replays a
prefix of that list on a model of a disk, and then throws away what nothing has made durable:

- A file's sectors of 512 bytes and its size become durable by an fsync of that file that has
  returned, as they were when it was called. Until then each of them is, independently, as any write
  since the last fsync left it. A sector is never torn; one that was lost reads as zeros.
- A directory's entries become durable by an fsync of that directory, and until then are,
  independently, as any operation left them. A file's fsync does nothing for its entry.
- A rename never leaves neither name: the new one holds what it held before or the file that was
  moved there, and the old one goes only once the new one is there (both may be). The exception is
  one between directories of which only the old one was synced.
- What a failed fsync covered is not saved by a later one, until it is written again.

So the model grants less than any one file system does: what holds here needs no favours.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count as counter
from random import Random
from typing import Any, Generic, Literal, TypeVar

from gevent.monkey import get_original

from keyop.fs import SYSTEM_FS, FileSystem

SECTOR = 512

T = TypeVar("T")
# Paths relative to the root, parents before children; a directory's content is None.
Tree = dict[str, bytes | None]
Survival = Literal["none", "all", "mixed"]


@dataclass(frozen=True)
class Initial:
    """What was there when recording began; all of it is durable."""

    tree: Tree = field(repr=False)


@dataclass(frozen=True)
class Open:
    """A descriptor, known by a handle that is never used again, as descriptors are."""

    handle: int
    path: str
    flags: int


@dataclass(frozen=True)
class Write:
    """Bytes that were written, by write or pwrite, and where they went."""

    handle: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    handle: int
    size: int


@dataclass(frozen=True)
class SyncBegin:
    """An fsync or fdatasync was called, of a file or of a directory."""

    handle: int
    sync: int


@dataclass(frozen=True)
class SyncEnd:
    """It returned, or raised."""

    sync: int
    ok: bool


@dataclass(frozen=True)
class Rename:
    source: str
    target: str


@dataclass(frozen=True)
class Unlink:
    path: str


@dataclass(frozen=True)
class Mkdir:
    path: str


@dataclass(frozen=True)
class Close:
    handle: int


@dataclass(frozen=True)
class Mark:
    """The test's note of what had been promised by then."""

    label: Any


Operation = (
    Initial | Open | Write | Truncate | SyncBegin | SyncEnd | Rename | Unlink | Mkdir | Close | Mark
)


class RecordingFs(FileSystem):
    """Does everything for real on ``inner`` and records, in ``ops``, what succeeded below ``root``.

    Safe to use from any thread: an operation and its record are one step, but for fsync, which
    records its call and its return, so that others go on meanwhile. Nothing outside of the root
    may be changed, because it would be missing from the states.
    """

    def __init__(self, root: str | os.PathLike[str], inner: FileSystem = SYSTEM_FS) -> None:
        self.root = os.path.abspath(root)
        self.ops: list[Operation] = [Initial(read_tree(self.root))]
        self._inner = inner
        # A lock of the operating system even where gevent has patched threading.
        self._lock = get_original("_thread", "allocate_lock")()
        self._numbers = counter()
        self._handles: dict[int, int] = {}
        # These change nothing on the disk. A flock may block, so it must not hold our lock.
        self.pread = inner.pread
        self.lseek = inner.lseek
        self.fstat = inner.fstat
        self.stat = inner.stat
        self.listdir = inner.listdir
        self.flock = inner.flock

    def mark(self, label: Any) -> None:
        """Note that something, say the acknowledgement of a record, happened at this point."""
        with self._lock:
            self.ops.append(Mark(label))

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        changes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        inside = self._is_inside(path)
        if changes and not inside:
            raise ValueError(f"not below {self.root}: {path}")
        with self._lock:
            fd = self._inner.open(path, flags, mode)
            if inside:
                handle = self._handles[fd] = next(self._numbers)
                self.ops.append(Open(handle, self._relative(path), flags))
        return fd

    def close(self, fd: int) -> None:
        with self._lock:
            handle = self._handles.pop(fd, None)
            if handle is not None:
                self.ops.append(Close(handle))
            self._inner.close(fd)

    def write(self, fd: int, data: Any) -> int:
        with self._lock:
            written = self._inner.write(fd, data)
            # O_APPEND or not, the position is now one past what was written.
            offset = os.lseek(fd, 0, os.SEEK_CUR) - written
            self._record_write(fd, offset, data, written)
        return written

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
            raise ValueError("Linux disregards the offset of a file that was opened to append")
        with self._lock:
            written = self._inner.pwrite(fd, data, offset)
            self._record_write(fd, offset, data, written)
        return written

    def ftruncate(self, fd: int, length: int) -> None:
        with self._lock:
            self._inner.ftruncate(fd, length)
            self.ops.append(Truncate(self._handles[fd], length))

    def fsync(self, fd: int) -> None:
        self._sync(self._inner.fsync, fd)

    def fdatasync(self, fd: int) -> None:
        self._sync(self._inner.fdatasync, fd)

    def rename(self, source: str, target: str) -> None:
        operation = Rename(self._relative(source), self._relative(target))
        with self._lock:
            self._inner.rename(source, target)
            self.ops.append(operation)

    def unlink(self, path: str) -> None:
        operation = Unlink(self._relative(path))
        with self._lock:
            self._inner.unlink(path)
            self.ops.append(operation)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        operation = Mkdir(self._relative(path))
        with self._lock:
            self._inner.mkdir(path, mode)
            self.ops.append(operation)

    def _record_write(self, fd: int, offset: int, data: Any, written: int) -> None:
        if written:
            kept = bytes(memoryview(data)[:written])
            self.ops.append(Write(self._handles[fd], offset, kept))

    def _sync(self, call: Callable[[int], None], fd: int) -> None:
        with self._lock:
            handle = self._handles.get(fd)
            sync = next(self._numbers)
            if handle is not None:
                self.ops.append(SyncBegin(handle, sync))
        ok = False
        try:
            call(fd)
            ok = True
        finally:
            if handle is not None:
                with self._lock:
                    self.ops.append(SyncEnd(sync, ok))

    def _is_inside(self, path: str) -> bool:
        return os.path.commonpath([self.root, os.path.abspath(path)]) == self.root

    def _relative(self, path: str) -> str:
        if not self._is_inside(path):
            raise ValueError(f"not below {self.root}: {path}")
        return os.path.relpath(os.path.abspath(path), self.root)


@dataclass(frozen=True)
class CrashState:
    """What a power cut left.

    ``prefix`` counts the operations done before it, ``last`` is the one right before it, and
    ``marks`` are the labels noted by then, in order. ``survives`` says what the cut spared of
    that which was not durable.
    """

    prefix: int
    last: Operation
    survives: Survival
    marks: list[Any] = field(repr=False)
    tree: Tree = field(repr=False)


def crash_states(ops: Iterable[Operation], rng: Random, count: int) -> Iterator[CrashState]:
    """Yield ``count`` states after power cuts, by rising prefix.

    The prefixes are spread evenly over the points at which something changed, each of which is
    visited if ``count`` allows. What is not durable survives as a whole in a quarter of the
    states, not at all in another, and in part in the rest.
    """
    ops = list(ops)
    points = [at + 1 for at, operation in enumerate(ops) if _changes(operation)]
    rounds, rest = divmod(count, len(points))
    done = 0
    disk = _Disk()
    for point in sorted(points * rounds + rng.sample(points, rest)):
        for at in range(done, point):
            disk.apply(at, ops[at])
        done = point
        yield disk.cut_power(ops[:point], rng, rng.choice(("none", "all", "mixed", "mixed")))


def crash_state(ops: Sequence[Operation], rng: Random, survives: Survival = "mixed") -> CrashState:
    """Return one state after all of ``ops``; slice them to cut the power earlier."""
    disk = _Disk()
    for at, operation in enumerate(ops):
        disk.apply(at, operation)
    return disk.cut_power(ops, rng, survives)


def materialise(state: CrashState, directory: str | os.PathLike[str]) -> None:
    """Write a state into a directory, which must be empty or missing.

    A file that has two names becomes two files.
    """
    os.makedirs(directory, exist_ok=True)
    if os.listdir(directory):
        raise ValueError(f"not empty: {directory}")
    for path, content in state.tree.items():
        path = os.path.join(directory, path)
        if content is None:
            os.mkdir(path, 0o700)
        else:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)


def read_tree(directory: str | os.PathLike[str]) -> Tree:
    """Return what is below a directory, in the form of ``CrashState.tree``."""
    tree: Tree = {}
    for parent, directories, files in os.walk(directory):
        prefix = os.path.relpath(parent, directory)
        for name in sorted(directories):
            tree[os.path.normpath(os.path.join(prefix, name))] = None
        for name in sorted(files):
            with open(os.path.join(parent, name), "rb") as file:
                tree[os.path.normpath(os.path.join(prefix, name))] = file.read()
    return tree


def _changes(operation: Operation) -> bool:
    """Tell whether a power cut after the operation may differ from one before it."""
    if isinstance(operation, Open):
        return bool(operation.flags & (os.O_CREAT | os.O_TRUNC))
    return not isinstance(operation, (SyncBegin, Close))


class _Version(Generic[T]):
    """A value that a cell was given by the operation number ``at`` and that is not durable."""

    def __init__(self, at: int, value: T) -> None:
        self.at = at
        self.value = value
        self.doomed = False
        # For the end of a renamed file's old name: where its new one came to be.
        self.needs: tuple[_Cell[Any], _Version[Any]] | None = None


class _Cell(Generic[T]):
    """What the disk changes as a whole: a sector, a size, or an entry of a directory."""

    def __init__(self, durable: T) -> None:
        self.durable = durable
        self.pending: list[_Version[T]] = []

    @property
    def current(self) -> T:
        """The value that a running process sees."""
        return self.pending[-1].value if self.pending else self.durable

    def change(self, at: int, value: T) -> _Version[T]:
        version = _Version(at, value)
        self.pending.append(version)
        return version

    def commit(self, before: int, ok: bool) -> None:
        """An fsync that was called at operation number ``before`` has ended."""
        covered = [version for version in self.pending if version.at < before]
        if not ok:
            # The kernel takes what it could not write for clean and does not write it again.
            for version in covered:
                version.doomed = True
        elif any(not version.doomed for version in covered):
            self.durable = covered[-1].value
            del self.pending[: len(covered)]

    def pick(self, rng: Random, survives: Survival) -> int:
        """Choose how many of the pending values were reached; the last of them is on the disk."""
        last = len(self.pending)
        if last and survives == "mixed":
            return rng.choice((0, last, rng.randint(0, last)))
        return last if survives == "all" else 0

    def after(self, reached: int) -> T:
        return self.pending[reached - 1].value if reached else self.durable


class _File:
    def __init__(self, content: bytes = b"") -> None:
        self.size = _Cell(len(content))
        # Durable, but for the sectors that have a cell. What is past its end reads as zeros.
        self._clean = bytearray(content)
        self._dirty: dict[int, _Cell[bytes]] = {}

    def write(self, at: int, offset: int, data: bytes) -> None:
        end = offset + len(data)
        for number in range(offset // SECTOR, -(-end // SECTOR)):
            start = number * SECTOR
            first, last = max(offset, start), min(end, start + SECTOR)
            cell = self._cell(number)
            old, new = cell.current, data[first - offset : last - offset]
            cell.change(at, old[: first - start] + new + old[last - start :])
        if end > self.size.current:
            self.size.change(at, end)

    def truncate(self, at: int, size: int) -> None:
        for number in range(size // SECTOR, -(-self.size.current // SECTOR)):
            cell = self._cell(number)
            kept = max(0, size - number * SECTOR)
            cell.change(at, cell.current[:kept].ljust(SECTOR, b"\0"))
        if size != self.size.current:
            self.size.change(at, size)

    def commit(self, before: int, ok: bool) -> None:
        self.size.commit(before, ok)
        for number, cell in list(self._dirty.items()):
            cell.commit(before, ok)
            if not cell.pending:
                self._put(self._clean, number, cell.durable)
                del self._dirty[number]

    def left(self, rng: Random, survives: Survival) -> bytes:
        """Return the content after a power cut."""
        if survives == "mixed":
            survives = rng.choice(("none", "all", "mixed"))
        content = bytearray(self._clean)
        for number, cell in self._dirty.items():
            self._put(content, number, cell.after(cell.pick(rng, survives)))
        size = self.size.after(self.size.pick(rng, survives))
        return bytes(content[:size].ljust(size, b"\0"))

    def _cell(self, number: int) -> _Cell[bytes]:
        if number not in self._dirty:
            start = number * SECTOR
            durable = bytes(self._clean[start : start + SECTOR]).ljust(SECTOR, b"\0")
            self._dirty[number] = _Cell(durable)
        return self._dirty[number]

    @staticmethod
    def _put(content: bytearray, number: int, sector: bytes) -> None:
        start = number * SECTOR
        content.extend(bytes(max(0, start - len(content))))
        content[start : start + SECTOR] = sector


class _Directory:
    def __init__(self) -> None:
        self.entries: dict[str, _Cell[_Node | None]] = {}

    def cell(self, name: str) -> _Cell[_Node | None]:
        return self.entries.setdefault(name, _Cell(None))

    def commit(self, before: int, ok: bool) -> None:
        for cell in self.entries.values():
            cell.commit(before, ok)


_Node = _File | _Directory
_Reached = dict[_Cell[_Node | None], int]


class _Disk:
    """The files and directories, as a process sees them and as far as they are durable."""

    def __init__(self) -> None:
        self._root = _Directory()
        self._directories = [self._root]
        self._handles: dict[int, _Node] = {}
        self._syncs: dict[int, tuple[_Node, int]] = {}
        self._marks: list[Any] = []

    def apply(self, at: int, operation: Operation) -> None:
        """Do the operation, which is number ``at`` of all."""
        match operation:
            case Initial(tree):
                for path, content in tree.items():
                    self._cell(path).durable = self._new_node(content)
            case Open(handle, path, flags):
                self._handles[handle] = self._open(at, path, flags)
            case Write(handle, offset, data):
                self._file(handle).write(at, offset, data)
            case Truncate(handle, size):
                self._file(handle).truncate(at, size)
            case SyncBegin(handle, sync):
                self._syncs[sync] = self._handles[handle], at
            case SyncEnd(sync, ok):
                node, began = self._syncs.pop(sync)
                node.commit(began, ok)
            case Rename(source, target):
                if source != target:
                    old, new = self._cell(source), self._cell(target)
                    moved = new.change(at, old.current)
                    old.change(at, None).needs = new, moved
            case Unlink(path):
                self._cell(path).change(at, None)
            case Mkdir(path):
                self._cell(path).change(at, self._new_node(None))
            case Close(handle):
                del self._handles[handle]
            case Mark(label):
                self._marks.append(label)

    def cut_power(self, ops: Sequence[Operation], rng: Random, survives: Survival) -> CrashState:
        """Choose what survives; ``ops`` are the operations that were applied."""
        reached = {
            cell: cell.pick(rng, survives)
            for directory in self._directories
            for cell in directory.entries.values()
        }
        _keep_renamed(reached)
        tree: Tree = {}
        contents: dict[_File, bytes] = {}

        def visit(directory: _Directory, prefix: str) -> None:
            for name, cell in directory.entries.items():
                node = cell.after(reached[cell])
                if isinstance(node, _Directory):
                    tree[prefix + name] = None
                    visit(node, prefix + name + "/")
                elif node is not None:
                    if node not in contents:
                        contents[node] = node.left(rng, survives)
                    tree[prefix + name] = contents[node]

        visit(self._root, "")
        return CrashState(len(ops), ops[-1], survives, list(self._marks), tree)

    def _open(self, at: int, path: str, flags: int) -> _Node:
        if path == ".":
            return self._root
        cell = self._cell(path)
        if cell.current is None:  # it was opened, so it was created
            cell.change(at, self._new_node(b""))
        node = cell.current
        assert node is not None
        if flags & os.O_TRUNC and isinstance(node, _File):
            node.truncate(at, 0)
        return node

    def _new_node(self, content: bytes | None) -> _Node:
        if content is not None:
            return _File(content)
        self._directories.append(_Directory())
        return self._directories[-1]

    def _file(self, handle: int) -> _File:
        node = self._handles[handle]
        assert isinstance(node, _File)
        return node

    def _cell(self, path: str) -> _Cell[_Node | None]:
        directory = self._root
        *parents, name = path.split("/")
        for parent in parents:
            node = directory.entries[parent].current
            assert isinstance(node, _Directory)
            directory = node
        return directory.cell(name)


def _keep_renamed(reached: _Reached) -> None:
    """Let old names live on whose files' new names did not reach the disk."""
    settled = False
    while not settled:
        settled = True
        for cell in reached:
            # Bringing one old name back may undo the new name of an earlier rename.
            for number, version in enumerate(cell.pending[: reached[cell]]):
                if version.needs is None:
                    continue
                new, moved = version.needs
                if moved in new.pending[reached[new] :]:
                    reached[cell] = number
                    settled = False
                    break
