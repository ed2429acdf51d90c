"""The segment that takes appends: its descriptor, and the syncs that are under way on it."""

from __future__ import annotations

from collections.abc import Callable

from keyop.forks import drop_in_children, keep_in_children
from keyop.fs import FileSystem
from keyop.offload import Job, Offload
from keyop.storage.recovery import Opened
from keyop.storage.syncing import sync_together
from keyop.wakeup import Gate


class Round:
    """Those who wait for one and the same fsync. ``error`` says how it ended, if not well."""

    __slots__ = ("error", "gate")

    def __init__(self) -> None:
        self.gate = Gate()
        self.error: Exception | None = None

    def finish(self, error: Exception | None) -> None:
        """Wake everybody in this round, who may have been woken with an error before."""
        if not self.gate.opened:
            self.error = error
            self.gate.open()


class SyncFailedError(OSError):
    """An fsync of records failed: what of them is on the disk is unknown."""


class ActiveSegment:
    """An open segment. The descriptor stays open until the last sync on it has returned.

    Args:
        on_sync_failed: told in the gevent hub that a sync has failed, and which round waited for
            it, which is the callee's to finish.
        on_synced: told in the gevent hub that a sync has returned while others wait for the next.
    """

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        opened: Opened,
        on_sync_failed: Callable[[Exception, Round | None], None],
        on_synced: Callable[[], None],
    ) -> None:
        self._fs = fs
        self._directory = directory
        self.fd, self.start, self.size, self.entry_is_durable = opened
        # What the lock file says while this segment is the active one.
        self.hint = b"%020d" % self.start
        self.dirty = False
        self._on_sync_failed = on_sync_failed
        self._on_synced = on_synced
        self._round: Round | None = None
        # Those whose sync is under way.
        self._covered: list[Round] = []
        self._syncs = 0
        # Those that wait for a thread.
        self._waiting_syncs = 0
        self._released = False
        drop_in_children(self)

    @property
    def syncing(self) -> bool:
        """Whether a sync is under way."""
        return self._syncs > 0

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for the next sync."""
        return self._round is not None

    def join_round(self) -> Round:
        """Return the round whose sync will cover everything written so far."""
        if self._round is None:
            self._round = Round()
        return self._round

    def sync(self, offload: Offload) -> Job:
        """Start a sync of everything written so far; its round is woken when it returns.

        The outcome reaches the round and ``on_sync_failed`` also when the caller is killed.
        """
        job = sync_together((self,), offload)
        assert job is not None
        return job

    def hold_for_sync(self) -> Callable[[], None]:
        """Keep the descriptor for a sync that waits for a thread; return what it has to do."""
        self._waiting_syncs += 1
        return self.fdatasync

    def give_up_sync(self) -> None:
        """Whoever waited for a thread was killed."""
        self._waiting_syncs -= 1
        self._close_if_done()

    def fdatasync(self) -> None:
        """Bring what was written, and the directory entry, to the disk; blocks the thread.

        Raises:
            SyncFailedError: it failed, and must not be tried again.
        """
        try:
            self._fs.fdatasync(self.fd)
            if not self.entry_is_durable:
                self._fs.fsync_dir(self._directory)
                self.entry_is_durable = True
        except OSError as error:
            raise SyncFailedError(error.errno, error.strerror) from error

    def cover(self, job: Job) -> Job:
        """Count a job that begins with :meth:`fdatasync` as a sync of everything written so far.

        To be called without a switch of greenlets since the submission, so that whoever joined
        the round had written before the job began. An error of another kind than
        ``SyncFailedError`` came after the sync.
        """
        self._waiting_syncs += 1
        finished = self.begin_sync()
        job.then(lambda job: finished(job.error))
        return job

    def begin_sync(self) -> Callable[[Exception | None], None]:
        """Count a sync that was held for as begun; return who is to be told of its end."""
        self._waiting_syncs -= 1
        covered = self.take_round()
        if covered is not None:
            self._covered.append(covered)
        self.dirty = False
        self._syncs += 1

        def finished(error: Exception | None) -> None:
            self._syncs -= 1
            if covered is not None:
                self._covered.remove(covered)
            if isinstance(error, SyncFailedError):
                self._on_sync_failed(error, covered)
            elif covered is not None:
                covered.finish(None)
            if self._round is not None:
                self._on_synced()
            self._close_if_done()

        return finished

    def release(self) -> None:
        """Close the descriptor, or have it closed when the last sync returns."""
        self._released = True
        self._close_if_done()

    def take_round(self) -> Round | None:
        """Return the round that waits for the next sync, which is the caller's to finish."""
        waiting, self._round = self._round, None
        return waiting

    def abandon_rounds(self, error: Exception) -> None:
        """Wake those who wait for a sync that will not come, or that hangs."""
        waiting = self.take_round()
        for each in [*self._covered, *([waiting] if waiting is not None else [])]:
            each.finish(error)

    def _close_if_done(self) -> None:
        if self._released and not self._syncs and not self._waiting_syncs:
            self._close()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            keep_in_children(self)
            self._fs.close(fd)

    def drop_in_child(self) -> None:
        """Close the descriptor: the parent writes and syncs this segment."""
        self._released = True
        self._close()
