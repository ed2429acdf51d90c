"""The scorecard finds faults: a row fails with each of the deliberate bugs, and passes without.

The rows run with even smaller numbers than for ``--quick``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from keyop import poller
from keyop.fs import FileSystem
from tests.crash.test_scorecard import SEED
from tests.federation import cuts, rawpeers
from tests.reliability.children import BUG
from tests.reliability.deliberate import BUGS, Bug, switched_in
from tests.reliability.main import run_row
from tests.reliability.row import Row, Run
from tests.reliability.table import as_lines

# What each row takes in place of its quick sizes.
SIZES: dict[str, dict[Any, Any]] = {
    "R1": {100: 3, 50: 6, 130: 12},
    "R3": {1000: 15, 40: 8},
    "R5": {(1.0, 20): (0.25, 4)},
    "R6": {(5, 1, 1): (0, 1, 0), 250: 600},
    "R9": {5: 1},
    "R11": {((2, 5000), (4, 5000), (4, 10_000)): ((2, 2000),), 2: 1},
}
# In these the bug has to get into other processes.
WITH_CHILDREN = {"R6", "R9", "R11"}


class Found(NamedTuple):
    """Which row finds a bug, and what one of its problems says then."""

    row: str
    says: str


FOUND_BY = {
    "no_directory_fsync": Found("R3", r"^always.*(is forgotten| lost \[)"),
    "acknowledged_before_written": Found(
        "R1", r"acknowledged of \S+ are not there|the death of .* came where \S+ should have"
    ),
    "peer_acknowledged_before_written": Found(
        "R6", r"^hub: (\d+ have not come|(alpha|beta)/\d+ came where)"
    ),
    "saved_before_handled": Found("R3", r"always.*: (plain|failing) lost \["),
    "failed_fsync_retried": Found("R3", r"always.*: \w+ lost \[\('failing', \d+\)"),
    "torn_tail_kept": Found(
        "R1", r"in the middle of .*(no sound record|has no newline at its end)"
    ),
    "position_not_clamped": Found("R3", r"(plain|failing) is at \d+, the end is \d+"),
    "not_unmarked": Found("R5", r"published again, and lost: \[\d+"),
    "channel_not_locked": Found("R11", r"reaches into \d+\.jsonl; two writers"),
    "lease_shared": Found("R11", r"consumer-\d+ and consumer-\d+ have the id 'worker' at once"),
    "length_trusted": Found("R9", r"^20 MB, of which nothing comes: .*in place of an answer"),
}


def run_small(name: str, directory: Path, asked: set[Any]) -> Row:
    """Run a row with its sizes; ``asked`` takes in the quick sizes that it asked for."""

    def either(run: Run, quick: Any, full: Any) -> Any:
        asked.add(quick)
        return SIZES[name].get(quick, quick)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "either", either)
        # A power cut leaves gaps in the log, each of which readers get over at their next look.
        patch.setattr(poller, "POLL_S", 0.05)
        return run_row(name, directory, SEED, quick=True)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Row]:
    """Give what a row says without any bug. Each runs once."""
    rows: dict[str, Row] = {}

    def get(name: str) -> Row:
        if name not in rows:
            asked: set[Any] = set()
            rows[name] = run_small(name, tmp_path_factory.mktemp(name), asked)
            assert set(SIZES[name]) <= asked, f"{name} has other quick sizes now: {asked}"
        return rows[name]

    return get


@pytest.mark.parametrize("name", SIZES)
def test_passes_without(name: str, sound: Callable[[str], Row]) -> None:
    """So it is the bug that a row finds."""
    row = sound(name)
    assert row.passed, "\n".join(as_lines(row))


@pytest.mark.parametrize("name", BUGS)
def test_found(
    name: str,
    sound: Callable[[str], Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row fails, and says what is the matter."""
    found = FOUND_BY[name]
    assert sound(found.row).passed
    # What does not come because of the bug need not be waited for that long.
    monkeypatch.setattr(rawpeers, "PATIENCE_S", 3.0)
    monkeypatch.setattr(cuts, "_PATIENCE_S", 3.0)
    struck = tmp_path / "struck"
    struck.mkdir()
    with switched_in(BUGS[name], struck):
        row = run_small(found.row, tmp_path, set())
    lines = "\n".join(as_lines(row))
    assert not row.passed, f"{name} was not found:\n{lines}"
    assert re.search(found.says, "\n".join(row.problems), re.MULTILINE), lines
    if found.row in WITH_CHILDREN:
        here = f"{name}-{os.getpid()}"
        assert [each for each in struck.iterdir() if each.name != here], "not in any child"


def test_one_that_never_strikes(tmp_path: Path) -> None:
    """A bug in a function that nobody calls shows nothing, and says so; it is taken out again."""
    before = vars(FileSystem)["fsync_dir"]

    def call_nothing() -> None:
        with switched_in(BUGS["no_directory_fsync"], tmp_path):
            assert vars(FileSystem)["fsync_dir"] is not before
            assert os.environ[BUG] == f"no_directory_fsync:{tmp_path}"

    with pytest.raises(AssertionError, match="no_directory_fsync never struck"):
        call_nothing()
    assert vars(FileSystem)["fsync_dir"] is before
    assert BUG not in os.environ


def test_one_whose_function_has_moved(tmp_path: Path) -> None:
    """Nothing can take the place of what is not there."""

    def lost(bug: Bug) -> None:
        """Never called."""

    with (
        pytest.raises(LookupError, match="lost: FileSystem has no fsync_directory now"),
        switched_in(Bug(FileSystem, "fsync_directory", lost), tmp_path),
    ):
        pass
    assert BUG not in os.environ
