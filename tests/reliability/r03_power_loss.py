"""R3: the power fails at any moment.

File operations are recorded, a prefix of them is replayed on a model of a disk which forgets what
was not synced (see ``tests/fakes/recording.py``), and a messenger opens what is left.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

from gevent.pool import Pool

from tests.fakes.recording import CrashState, Operation, RecordingFs, crash_states, materialise

from .promises import Promises
from .recordings import Recording, record
from .row import Row, Run

TITLE = "power loss: un-synced bytes and entries dropped"
# The policy, whether segments are deleted meanwhile, and how many shares of the states it gets.
_PLANS = (("always", False, 3), ("always", True, 2), ("periodic", False, 3), ("none", False, 1))
# So often, the power fails again while a messenger recovers, at so many moments.
_TWICE_EVERY, _MOMENTS = 10, 2
# Most of the time is spent waiting for threads, so several are looked at at once.
_LANES = 6


def run(run: Run) -> Row:
    """Look at states of several recordings under each policy."""
    row = Row("R3", TITLE)
    row.count(states=0, promised=0, lost=0, torn=0, positions_beyond=0)
    states = run.either(100, 10_000)
    rounds = run.either(1, 4)
    shares = sum(share for _, _, share in _PLANS)
    for number in range(rounds):
        for policy, sweeping, share in _PLANS:
            rng = run.rng("R3", number, policy, sweeping)
            data_dir = run.memory / f"{policy}-{sweeping}-{number}"
            recording = record(data_dir, policy, rng, sweeping)
            count = -(-states * share // shares // rounds)
            _Recovery(row, recording, run.memory / "recovered", rng).check(count)
            shutil.rmtree(data_dir)
    return row


class _Recovery:
    """Recovers states of one recording and holds them against what was promised."""

    def __init__(self, row: Row, recording: Recording, directory: Path, rng: Random) -> None:
        self._row = row
        self._policy = recording.policy
        self._operations = recording.operations
        self._directory = directory
        self._rng = rng

    def check(self, count: int) -> None:
        """Look at so many states, and at some that a second power cut left of them."""
        lanes = Pool(_LANES)
        for number, state in enumerate(crash_states(self._operations, self._rng, count)):
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
