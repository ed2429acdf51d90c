"""R3: the power fails at any moment.

File operations are recorded, a prefix of them is replayed on a model of a disk which forgets what
was not synced (see ``tests/fakes/recording.py``), and a messenger opens what is left. In some
states only positions survived of what was not synced. In one recording fsyncs fail, so that the
disk has forgotten what they should have brought there.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from gevent.pool import Pool

from keyop import LogFailedError
from keyop.testing import drain
from tests.fakes.faulty import FaultyFs
from tests.fakes.recording import (
    CrashState,
    Open,
    Operation,
    RecordingFs,
    SyncEnd,
    Write,
    crash_state,
    crash_states,
    materialise,
)

from .messengers import make
from .promises import Promises
from .recordings import (
    SEGMENT_BYTES,
    SUBSCRIBERS,
    Acknowledged,
    Closed,
    Handled,
    Recording,
    Subscribed,
    record,
    subscribe,
)
from .row import Row, Run
from .workload import CHANNEL, TYPE, payload

TITLE = "power loss: un-synced bytes and entries dropped"
# The policy, whether segments are deleted meanwhile, and how many shares of the states it gets.
_PLANS = (("always", False, 3), ("always", True, 2), ("periodic", False, 3), ("none", False, 1))
# Those whose fsync fails, which are large enough to fill sectors that nobody writes to again.
_BATCHES, _FAILING_BATCHES, _LARGEST_BATCH = 20, (4, 10), 6
_PATIENCE_S = 30.0
# So often, the power fails again while a messenger recovers, at so many moments.
_TWICE_EVERY, _MOMENTS = 10, 2
# Most of the time is spent waiting for threads, so several are looked at at once.
_LANES = 6


def run(run: Run) -> Row:
    """Look at states of several recordings under each policy."""
    row = Row("R3", TITLE)
    row.count(states=0, promised=0, lost=0, torn=0, positions_beyond=0, failed_fsyncs=0)
    states = run.either(1000, 10_000)
    rounds = run.either(1, 4)
    shares = sum(share for _, _, share in _PLANS)
    for number in range(rounds):
        for policy, sweeping, share in _PLANS:
            rng = run.rng("R3", number, policy, sweeping)
            data_dir = run.memory / f"{policy}-{sweeping}-{number}"
            recording = record(data_dir, policy, rng, sweeping)
            count = -(-states * share // shares // rounds)
            recovery = _Recovery(row, recording, run.memory / "recovered", rng)
            recovery.check(crash_states(recording.operations, rng, count))
            if policy == "periodic":  # where positions may reach the disk before records
                recovery.check(_positions_first(recording.operations, rng, run.either(40, 100)))
            shutil.rmtree(data_dir)
        rng = run.rng("R3", number, "failing")
        recording = _record_failing(row, run.memory / f"failing-{number}", rng)
        recovery = _Recovery(row, recording, run.memory / "recovered", rng)
        recovery.check(_after_failure(recording.operations, rng, run.either(40, 100)))
    return row


def _positions_first(
    operations: Sequence[Operation], rng: Random, count: int
) -> Iterator[CrashState]:
    """Yield states in which all positions had reached the disk, and of the rest what was synced."""
    paths = {each.handle: each.path for each in operations if isinstance(each, Open)}
    saved = [
        at
        for at, each in enumerate(operations)
        if isinstance(each, Write) and paths[each.handle].endswith(".offset")
    ]
    for at in sorted(rng.sample(saved, min(count, len(saved)))):
        state = crash_state(operations[: at + 1], rng, "none")
        positions = {
            path: content
            for path, content in crash_state(operations[: at + 1], rng, "all").tree.items()
            if path in state.tree and path.endswith(".offset")
        }
        yield dataclasses.replace(state, survives="mixed", tree=state.tree | positions)


def _after_failure(
    operations: Sequence[Operation], rng: Random, count: int
) -> Iterator[CrashState]:
    """Yield states after the first fsync that failed."""
    first = next(
        at for at, each in enumerate(operations) if isinstance(each, SyncEnd) and not each.ok
    )
    for prefix in sorted(rng.sample(range(first + 1, len(operations) + 1), count)):
        yield crash_state(operations[:prefix], rng)


def _record_failing(row: Row, data_dir: Path, rng: Random) -> Recording:
    """Record a session under ``always`` in which an fsync of the log fails now and then, once."""
    data_dir.mkdir()
    faulty = FaultyFs()
    fs = RecordingFs(data_dir, faulty)

    def note(subscriber: str) -> Any:
        return lambda message: fs.mark(
            Handled(subscriber, message.payload["by"], message.payload["n"])
        )

    with make(data_dir, "always", fs=fs, max_segment_bytes=SEGMENT_BYTES) as messenger:
        for subscriber in SUBSCRIBERS:
            subscribe(messenger, subscriber, note(subscriber))
            fs.mark(Subscribed(subscriber))
        faults, done = [], 0
        for batch in range(_BATCHES):
            fails = batch in _FAILING_BATCHES
            size = _LARGEST_BATCH if fails else rng.randint(1, _LARGEST_BATCH)
            numbers = range(done, done + size)
            done = numbers.stop
            if fails:
                where = f"/channels/{CHANNEL}/"
                faults.append(faulty.fail("fdatasync", errno.EIO, path_contains=where))
            try:
                messenger.publish_batch(CHANNEL, [(TYPE, payload("failing", n)) for n in numbers])
            except LogFailedError:
                messenger.reopen(CHANNEL)
            else:
                for n in numbers:
                    fs.mark(Acknowledged("failing", n))
        drain(messenger, _PATIENCE_S)
    fs.mark(Closed())
    struck = sum(fault.hits for fault in faults)
    row.count(failed_fsyncs=struck)
    row.expect(struck == len(_FAILING_BATCHES), f"{struck} fsyncs failed")
    return Recording("always", fs.ops)


class _Recovery:
    """Recovers states of one recording and holds them against what was promised."""

    def __init__(self, row: Row, recording: Recording, directory: Path, rng: Random) -> None:
        self._row = row
        self._policy = recording.policy
        self._directory = directory
        self._rng = rng

    def check(self, states: Iterable[CrashState]) -> None:
        """Look at these states, and at some that a second power cut left of them."""
        lanes = Pool(_LANES)
        for number, state in enumerate(states):
            lanes.spawn(self._check_one, number, state, Random(self._rng.random()))
        lanes.join()

    def _check_one(self, number: int, state: CrashState, rng: Random) -> None:
        directory = self._directory / str(number)
        again = self._recover(directory, state)
        if number % _TWICE_EVERY == 0:
            for second in crash_states(again, rng, _MOMENTS):
                self._recover(directory, second, after=state)

    def _recover(
        self, directory: Path, state: CrashState, after: CrashState | None = None
    ) -> Sequence[Operation]:
        where = f"{self._policy}, {state.prefix} operations, {state.survives}, after {state.last}"
        marks = [state.marks]
        if after is not None:
            where = f"{after.prefix} operations, {after.survives}, and in its recovery {where}"
            marks = [after.marks, state.marks]
        promises = Promises(self._row, self._policy, marks, where[:300])
        materialise(state, directory)
        fs = RecordingFs(directory)
        self._row.count(states=1)
        try:
            promises.check(directory, fs, 1 if after is None else 2)
        except Exception as error:  # whatever it is, the other states are looked at too
            self._row.problem(f"{where[:300]}: {type(error).__name__}: {error}")
        shutil.rmtree(directory)
        return fs.ops
