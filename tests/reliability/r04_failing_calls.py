"""R4: the Nth call of one kind fails, for each N, and with it one, two or all that follow.

One session of publishing and subscribing is run again and again, each time with another call
failing. What every publish claimed is then held against the log. So it is on a real disk, where
files may not grow and the kernel writes a part of what it is given.
"""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gevent.pool import Pool

from .children import Child
from .faulty_session import Session
from .messengers import POLICIES
from .reading import ChannelTail
from .row import Row, Run
from .workload import CHANNEL

TITLE = "every Nth write, fsync, rename, open … fails"
_OPERATIONS = (
    "write",
    "fdatasync",
    "fsync",
    "rename",
    "open",
    "pwrite",
    "mkdir",
    "unlink",
    "ftruncate",
    "short write",
    "short write, then ftruncate",
)
# These only look. There are many of them in a session, and few kinds of places.
_READING = ("pread", "lseek", "fstat", "stat", "listdir")
_SHORT = _OPERATIONS[-2:]
# More than a record's beginning, less than a batch.
_KEPT_BYTES = 500
_ERRORS = (errno.EIO, errno.ENOSPC, errno.EMFILE)
_MAX_NTH, _MAX_NTH_READING = 200, 40
_LANES = 8


class Plan(NamedTuple):
    """Which calls fail: from the ``nth`` on, ``times`` of them, or all (None)."""

    operation: str
    error: int
    nth: int
    times: int | None
    policy: str

    def __str__(self) -> str:
        return (
            f"{self.operation} {self.nth} fails with {errno.errorcode[self.error]}, "
            f"{self.times or 'all'} times, under {self.policy}"
        )


def run(run: Run) -> Row:
    """Let calls fail one after the other, until a session has no more of them."""
    row = Row("R4", TITLE)
    row.count(sessions=0, faults=0, published=0, lost=0, lies=0, hangs=0)
    lanes = Pool(_LANES)
    directories = itertools.count()

    def all_of(operation: str, error: int) -> None:
        for plan in _plans(run, operation, error):
            directory = run.memory / str(next(directories))
            if not _try(row, plan, directory):
                break

    for operation in _OPERATIONS + _READING:
        for error in _ERRORS:
            lanes.spawn(all_of, operation, error)
    lanes.join()
    for policy in POLICIES:
        _try_limited_files(row, run, policy)
    return row


def _try_limited_files(row: Row, run: Run, policy: str) -> None:
    """Hold what a process said whose files were limited against what is in them."""
    data_dir = run.directory / policy
    rounds = run.either(20, 200)
    with Child(
        "file_size", run.directory, data_dir=data_dir, policy=policy, seed=run.seed, rounds=rounds
    ) as limited:
        limited.wait_done()
        said = [line.split() for line in limited.new_lines()]
    written, refused = (
        [int(n) for kind, *numbers in said for n in numbers if kind == wanted]
        for wanted in ("written", "refused")
    )
    tail = ChannelTail(data_dir, CHANNEL)
    found = [entry.n for entry in tail.follow()]
    row.count(published=len(written), faults=len(refused), sessions=1)
    row.count(lost=len(set(written) - set(found)), lies=len(set(found) & set(refused)))
    row.expect(found == written, f"limited files under {policy}: the log is not what was written")
    row.expect(refused, f"limited files under {policy}: nothing was refused")
    for problem in tail.problems:
        row.problem(f"limited files under {policy}: {problem}")


def _plans(run: Run, operation: str, error: int) -> Iterator[Plan]:
    rng = run.rng("R4", operation, error)
    last = _MAX_NTH_READING if operation in _READING else _MAX_NTH
    for nth in sorted(rng.sample(range(1, last + 1), run.either(last // 10, last))):
        times = rng.choice((1, 1, 2, None))
        yield Plan(operation, error, nth, times, rng.choice(("always", "always", "periodic")))


def _try(row: Row, plan: Plan, directory: Path) -> bool:
    """Run one session; return whether the planned fault struck."""
    session = Session(row, str(plan), directory, plan.policy)
    fs = session.fs
    if plan.operation in _SHORT:
        faults = [
            fs.short_write(_KEPT_BYTES, plan.error, nth=plan.nth, times=plan.times),
        ]
        if plan.operation == _SHORT[1]:
            faults.append(fs.fail("ftruncate", plan.error, times=plan.times))
    else:
        faults = [fs.fail(plan.operation, plan.error, nth=plan.nth, times=plan.times)]
    row.count(sessions=1)
    try:
        session.run(faults)
    except Exception as error:
        row.problem(f"{plan}: {type(error).__name__}: {error}")
    row.count(faults=sum(fault.hits for fault in faults))
    shutil.rmtree(directory, ignore_errors=True)
    return faults[0].hits > 0
