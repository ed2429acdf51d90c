"""Processes killed between any two of their file operations: everything written is still there."""

from __future__ import annotations

import shutil
from pathlib import Path

from gevent.pool import Pool

from tests.fakes.recording import RecordingFs, crash_state, materialise

from .messengers import POLICIES
from .promises import Promises
from .recordings import Recording, record
from .row import Row, Run

_LANES = 6


def killed_everywhere(row: Row, run: Run) -> None:
    """Record sessions under each policy, and recover from after every operation, or from some."""
    row.count(killed_at_operations=0)
    lanes = Pool(_LANES)
    for policy in POLICIES:
        rng = run.rng("everywhere", policy)
        recording = record(run.memory / policy, policy, rng, policy == "periodic")
        everywhere = range(1, len(recording.operations) + 1)
        count = run.either(130, len(everywhere))
        for prefix in rng.sample(everywhere, min(count, len(everywhere))):
            lanes.spawn(_recover, row, run, recording, prefix)
        lanes.join()


def _recover(row: Row, run: Run, recording: Recording, prefix: int) -> None:
    rng = run.rng("everywhere", recording.policy, prefix)
    state = crash_state(recording.operations[:prefix], rng, "all")
    where = f"killed under {recording.policy} after {prefix} operations, {state.last}"[:300]
    directory: Path = run.memory / f"{recording.policy}-{prefix}"
    materialise(state, directory)
    row.count(killed_at_operations=1)
    try:
        promises = Promises(row, recording.policy, [state.marks], where, killed=True)
        promises.check(directory, RecordingFs(directory), 1)
    except Exception as error:  # whatever it is, the other places are looked at too
        row.problem(f"{where}: {type(error).__name__}: {error}")
    shutil.rmtree(directory)
