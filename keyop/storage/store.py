"""The logs of one data directory: opening and closing them, the fsync ticker, the sweeper."""

from __future__ import annotations

import logging
import resource
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import gevent
from gevent.event import Event

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.errand import end_greenlets
from keyop.errors import StorageError
from keyop.fs import FileSystem
from keyop.names import check_channel
from keyop.offload import Offload
from keyop.pace import Pace
from keyop.storage.active import ActiveSegment
from keyop.storage.environment import Closing, Environment, LogOptions, LogThreads
from keyop.storage.locks import LOCK_NAME, ChannelLock, FileLock
from keyop.storage.log import Log
from keyop.storage.offsets import OffsetFile
from keyop.storage.retention import Plan, RetentionOptions, sweep_channel
from keyop.storage.segment import list_starts
from keyop.storage.syncing import Unsynced, handfuls, sync_all, sync_together
from keyop.storage.watch import Watcher

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 30.0
_RACY_NS = 1_000_000_000
# An open log holds three descriptors: of its segment, its lock, and the memory that shows the
# lock's hint. Half of the process's limit may be theirs.
_DESCRIPTORS_PER_LOG = 3
_MIN_OPEN_LOGS = 16
# Where all are in use, so many are synced together to be closed.
_SYNCED_TOGETHER = 16
_FILE_THREADS = 4
_LOCK_THREADS = 8


class StoreOptions(NamedTuple):
    """How a data directory is kept. ``sync_interval_s`` is the ticker's, under ``periodic``."""

    log: LogOptions
    sync_interval_s: float
    retention: RetentionOptions


def _max_open_logs() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 20
    return max(_MIN_OPEN_LOGS, soft // 2 // _DESCRIPTORS_PER_LOG)


class Store:
    """All channels below a data directory, for one messenger."""

    def __init__(
        self, data_dir: str, options: StoreOptions, fs: FileSystem, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.data_dir = data_dir
        self.fs = fs
        self._clock = clock
        self.options = options
        self.threads = LogThreads(Offload(_FILE_THREADS), Offload(_LOCK_THREADS))
        self.watcher = Watcher()
        self.closing = Closing(Event(), Event())
        self.positions: set[OffsetFile] = set()
        # What has something to sync.
        self.unsynced_positions: set[OffsetFile] = set()
        self._unsynced_logs: set[Log] = set()
        self._logs: dict[str, Log] = {}
        # Set when a channel was opened here, which may have created it.
        self.opened_channel = Event()
        self._environment = Environment(
            fs, options.log, self.threads, self.closing, self.opened_channel
        )
        self._offsets_directories: set[str] = set()
        self._seen_channels: set[str] = set()
        # Those whose directories were there, and durable, when the messenger started.
        self._durable_channels: frozenset[str] = frozenset()
        # When a channel's directory was last found to hold less than two segments.
        self._small_since: dict[str, int] = {}
        self._max_open = _max_open_logs()
        # The logs that may be open, and their ends when they were looked at last; those that were
        # not used for long come first.
        self._open_logs: OrderedDict[Log, int] = OrderedDict()
        self._greenlets: list[gevent.Greenlet[[], None]] = []
        self._sweeper_lock = FileLock(fs, f"{data_dir}/.sweeper.lock")

    # -- where things are

    def channel_directory(self, channel: str) -> str:
        """Return where a channel's segments are."""
        return f"{self.data_dir}/channels/{channel}"

    def offsets_directory(self, channel: str) -> str:
        """Return where the positions of a channel's subscribers are."""
        return f"{self.data_dir}/subscribers/{channel}"

    def channels(self) -> list[str]:
        """Return the names of all channels that have a directory, in order.

        Raises:
            StorageError: the data directory cannot be read.
        """
        path = f"{self.data_dir}/channels"
        try:
            names = self.fs.listdir(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        return sorted(name for name in names if _is_channel(name) and self.has_channel(name))

    def has_channel(self, channel: str) -> bool:
        """Tell whether a channel has a directory."""
        if channel in self._seen_channels:
            return True
        try:
            if not self.fs.is_dir(self.channel_directory(channel)):
                return False
        except OSError:  # a stray file, or one that may not be looked at
            return False
        self._seen_channels.add(channel)
        return True

    # -- life

    def open(self) -> None:
        """Create the data directory where it is missing and start the background greenlets.

        Raises:
            StorageError: it cannot be created or used.
        """
        try:
            durable = self.options.log.durable
            self.fs.make_dirs(self.data_dir, durable)
            channels = f"{self.data_dir}/channels"
            self.fs.make_dirs(channels, durable, self.data_dir)
            found = self.fs.listdir(channels)
            if durable:
                self.fs.fsync_dir(channels)
            self._durable_channels = frozenset(found)
        except OSError as error:
            raise StorageError(
                f"the data directory cannot be used: {error.filename or self.data_dir}: "
                f"{error.strerror}; it must be a directory that this user may write to"
            ) from error
        if self.options.log.sync_policy == "periodic":
            self._spawn("ticker", self._tick)
        self._spawn("sweeper", self._sweep_now_and_then)

    def _spawn(self, name: str, run: Callable[[], None]) -> None:
        greenlet = gevent.spawn(run)
        greenlet.name = f"keyop-{name}"
        self._greenlets.append(greenlet)

    def log(self, channel: str) -> Log:
        """Return the log of a channel whose name was checked; it opens with its first use."""
        log = self._logs.get(channel)
        if log is None:
            log = self._logs[channel] = Log(
                channel,
                self.channel_directory(channel),
                self.offsets_directory(channel),
                self._environment,
                lambda: self._make_room(channel),
                self._unsynced_logs,
                channel in self._durable_channels,
            )
        return log

    def _make_room(self, channel: str) -> None:
        """Before a log is opened: close others, those that were not used for long first."""
        open_logs = self._open_logs
        # Twice around: a log that has grown since the last look is spared once.
        for _ in range(2 * len(open_logs)):
            if len(open_logs) < self._max_open:
                break
            log, end = open_logs.popitem(last=False)
            if log.is_open:
                if log.end != end:
                    open_logs[log] = log.end
                    continue
                if log.unsynced is not None and self.options.log.durable:
                    together = _unsynced((log, *islice(open_logs, _SYNCED_TOGETHER)))
                    if (job := sync_together(together, self.threads.files)) is not None:
                        job.wait()
                if not log.idle:
                    open_logs[log] = end
                    continue
                log.close()
        log = self._logs[channel]
        open_logs[log] = log.end

    def make_offsets_directory(self, channel: str) -> None:
        """Create the directory of a channel's positions where it is missing; blocks the thread.

        Raises:
            OSError: it cannot be created.
        """
        if channel not in self._offsets_directories:
            path = self.offsets_directory(channel)
            self.fs.make_dirs(path, self.options.log.durable, self.data_dir)
            self._offsets_directories.add(channel)

    def logs(self) -> list[Log]:
        """Return the logs used so far."""
        return list(self._logs.values())

    def close(self, deadline: float) -> None:
        """Bring what is written to the disk, then close everything by the deadline.

        Args:
            deadline: in ``time.monotonic()`` seconds. A disk that hangs past it keeps its
                threads and descriptors until it answers.
        """
        self.closing.waits.set()
        self.closing.writes.set()
        self._settle(deadline)
        end_greenlets(self._greenlets, 1.0)
        self._greenlets.clear()
        self._sweeper_lock.release()
        for log in self._logs.values():
            log.close()
        self.watcher.close()
        for threads in self.threads:
            if not threads.close(deadline - time.monotonic()):
                logger.warning("%s: a system call hangs; its thread was left behind", self.data_dir)

    def _settle(self, deadline: float) -> None:
        """Wait for syncs under way and, where a policy asks for syncs, do the last ones."""
        if self.options.log.durable:
            files: list[Unsynced] = [*_unsynced(self._logs.values()), *self.positions]
            jobs = [sync_together(some, self.threads.files) for some in handfuls(files)]
            for job in jobs:
                if job is not None:
                    job.wait(max(0.0, deadline - time.monotonic()))
        while any(not log.idle for log in self._logs.values() if log.failure is None):
            if self.options.log.sync_policy == "none" or time.monotonic() >= deadline:
                break
            gevent.sleep(0.001)

    def drop_in_child(self) -> None:
        """Stop the background greenlets of a forked child before they run again."""
        gevent.killall(self._greenlets, block=False)

    # -- background

    def _tick(self) -> None:
        """Under ``periodic``: bring what was written since the last tick to the disk."""
        while True:
            self._clock.sleep(self.options.sync_interval_s)
            logs, positions = list(self._unsynced_logs), list(self.unsynced_positions)
            self._unsynced_logs.clear()
            sync_all(_unsynced(logs), self.threads.files)
            sync_all(positions, self.threads.files)
            for position in positions:
                if not position.dirty or position not in self.positions:
                    self.unsynced_positions.discard(position)

    def _sweep_now_and_then(self) -> None:
        while True:
            self._clock.sleep(SWEEP_INTERVAL_S)
            try:
                if self._sweeper_lock.try_acquire():
                    self.sweep()
            except (OSError, StorageError) as error:
                logger.error("%s: sweeping failed: %s", self.data_dir, error)

    def sweep(self) -> dict[str, Plan]:
        """Delete segments that everybody has read, or that a cap drops; return what went.

        Raises:
            StorageError: the data directory cannot be read.
        """
        swept = {}
        pace = Pace()
        for channel in self.channels():
            pace.step()
            try:
                done = self._sweep_channel(channel)
            except OSError as error:
                logger.error("%s: sweeping failed: %s", channel, error)
                continue
            if done.starts:
                swept[channel] = done
                logger.info("%s: %d segments deleted", channel, len(done.starts))
        return swept

    def _has_nothing_sealed(self, channel: str, directory: str) -> bool:
        """Tell whether a channel has less than two segments, which spares its lock.

        Where that was so, and nothing was made in the directory since, it is so still.
        """
        changed = self.fs.stat(directory).st_mtime_ns
        if self._small_since.get(channel) == changed:
            return True
        if len(list_starts(self.fs, directory)) >= 2:
            return False
        # Of two changes in the same tick of the file system's clock, the second may not show.
        if time.time_ns() - changed > _RACY_NS:
            self._small_since[channel] = changed
        return True

    def _sweep_channel(self, channel: str) -> Plan:
        directory = self.channel_directory(channel)
        if self._has_nothing_sealed(channel, directory):
            return Plan([], 0)
        # A lock of its own: the sweep must not open and recover every channel.
        lock = ChannelLock(self.fs, f"{directory}/{LOCK_NAME}", self.threads.locks)
        lock.open()
        try:
            lock.acquire()
            job = None
            try:
                job = self.threads.files.submit(
                    sweep_channel,
                    self.fs,
                    directory,
                    self.offsets_directory(channel),
                    self.options.retention,
                    self._clock.time_ns() / 1e9,
                    self.options.log.durable,
                )
            finally:
                if job is None:
                    lock.release()
            job.then(lambda _: lock.release())
            job.wait()
        finally:
            lock.close()
        if job.error is not None:
            raise job.error
        decided: Plan = job.value
        return decided


def _unsynced(logs: Iterable[Log]) -> Iterator[ActiveSegment]:
    """Yield the segments that have something to sync, as late as each is asked for."""
    return (segment for log in logs if (segment := log.unsynced) is not None)


def _is_channel(name: str) -> bool:
    try:
        check_channel(name)
    except ValueError:
        return False
    return True
