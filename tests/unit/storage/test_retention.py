"""What of a channel may be deleted."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyop.fs import SYSTEM_FS
from keyop.storage.retention import Aged, Plan, RetentionOptions, plan, sweep_channel
from tests.fakes.faulty import FaultyFs
from tests.fakes.recording import RecordingFs, crash_states

NOW = 10_000.0
# Three sealed segments of 10 bytes and an active one of 5; written 300, 200, 100 and 0 s ago.
LOG = [Aged(0, 10, NOW - 300), Aged(10, 10, NOW - 200), Aged(20, 10, NOW - 100), Aged(30, 5, NOW)]
GAPPED = [Aged(0, 10, NOW), Aged(50, 10, NOW), Aged(60, 0, NOW)]
OFF = RetentionOptions()


@pytest.mark.parametrize(
    ("segments", "offsets", "options", "federated", "starts", "dropped"),
    [
        ([], [], OFF, False, [], 0),
        ([Aged(0, 10, 0)], [10], OFF, False, [], 0),
        (LOG, [], OFF, False, [], 0),
        (LOG, [0], OFF, False, [], 0),
        (LOG, [9], OFF, False, [], 0),
        (LOG, [10], OFF, False, [0], 0),
        (LOG, [29], OFF, False, [0, 10], 0),
        (LOG, [30], OFF, False, [0, 10, 20], 0),
        (LOG, [35], OFF, False, [0, 10, 20], 0),
        (LOG, [35, 12], OFF, False, [0], 0),
        (LOG, [35, 0], OFF, False, [], 0),
        (GAPPED, [10], OFF, False, [], 0),
        (GAPPED, [50], OFF, False, [0], 0),
        (LOG, [35], RetentionOptions(federated_tail_bytes=15), True, [0, 10], 0),
        (LOG, [35], RetentionOptions(federated_tail_bytes=16), True, [0], 0),
        (LOG, [35], RetentionOptions(federated_tail_bytes=100), True, [], 0),
        (LOG, [35], RetentionOptions(federated_tail_bytes=100), False, [0, 10, 20], 0),
        (LOG, [0], RetentionOptions(max_files=4), False, [], 0),
        (LOG, [0], RetentionOptions(max_files=2), False, [0, 10], 20),
        (LOG, [15], RetentionOptions(max_files=2), False, [0, 10], 5),
        (LOG, [35], RetentionOptions(max_files=2), False, [0, 10, 20], 0),
        (LOG, [], RetentionOptions(max_files=1), False, [0, 10, 20], 30),
        (LOG, [0], RetentionOptions(max_age_s=300), False, [], 0),
        (LOG, [0], RetentionOptions(max_age_s=150), False, [0, 10], 20),
        (LOG, [12], RetentionOptions(max_age_s=150), False, [0, 10], 8),
        (LOG, [], RetentionOptions(max_age_s=1), False, [0, 10, 20], 30),
        (LOG, [0], RetentionOptions(max_files=1, federated_tail_bytes=100), True, [0, 10, 20], 30),
    ],
)
def test_plan(
    segments: list[Aged],
    offsets: list[int],
    options: RetentionOptions,
    federated: bool,
    starts: list[int],
    dropped: int,
) -> None:
    """What everybody has read goes, and what a cap drops; what was unread of it is counted."""
    assert plan(segments, offsets, options, NOW, federated) == Plan(starts, dropped)


def test_an_old_segment_behind_a_young_one_stays() -> None:
    """Deleting goes from the front, so that no gap arises."""
    segments = [Aged(0, 10, NOW), Aged(10, 10, NOW - 500), Aged(20, 1, NOW)]
    assert plan(segments, [0], RetentionOptions(max_age_s=100), NOW) == Plan([], 0)


@settings(max_examples=100)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=6),
    st.lists(st.integers(0, 320), max_size=4),
)
def test_without_caps_nothing_unread_goes(sizes: list[int], offsets: list[int]) -> None:
    """No segment that holds a byte at or past any position is deleted, nor the active one."""
    segments, start = [], 0
    for size in sizes:
        segments.append(Aged(start, size, 0))
        start += size
    decided = plan(segments, offsets, OFF, NOW)
    assert decided.dropped_bytes == 0
    for segment in segments:
        if segment.start in decided.starts:
            assert offsets
            assert segment.start + segment.size <= min(offsets)
    assert segments[-1].start not in decided.starts


@pytest.fixture
def channel(tmp_path: Path) -> Path:
    """Return a directory with a channel of three segments and an empty one for positions."""
    (tmp_path / "channel").mkdir()
    (tmp_path / "offsets").mkdir()
    for start in (0, 10, 20):
        (tmp_path / "channel" / f"{start:020}.jsonl").write_bytes(b"x" * 9 + b"\n")
    return tmp_path


def sweep(
    base: Path, fs: object = SYSTEM_FS, options: RetentionOptions = OFF, **more: bool
) -> Plan:
    return sweep_channel(fs, str(base / "channel"), str(base / "offsets"), options, NOW, **more)  # type: ignore[arg-type]


def left(base: Path) -> list[int]:
    return sorted(int(path.stem) for path in (base / "channel").glob("*.jsonl"))


class TestSweep:
    def test_deletes_what_was_read(self, channel: Path) -> None:
        """And says what went."""
        (channel / "offsets" / "s.offset").write_bytes(b"20\n")
        assert sweep(channel) == Plan([0, 10], 0)
        assert left(channel) == [20]

    def test_nobody_subscribed(self, channel: Path) -> None:
        """Without a position, nothing counts as read; nor without a directory of them."""
        assert sweep(channel) == Plan([], 0)
        (channel / "offsets").rmdir()
        assert sweep(channel) == Plan([], 0)
        assert left(channel) == [0, 10, 20]

    @pytest.mark.parametrize("name", ["fed-peer", "fedout-hub", "local"])
    def test_every_position_counts(self, channel: Path, name: str) -> None:
        """Of subscribers, peers and hubs alike, running or not."""
        (channel / "offsets" / "s.offset").write_bytes(b"30\n")
        (channel / "offsets" / f"{name}.offset").write_bytes(b"10\n")
        assert sweep(channel) == Plan([0], 0)

    def test_a_damaged_position_keeps_everything(self, channel: Path) -> None:
        """Nobody knows what its subscriber has read."""
        (channel / "offsets" / "s.offset").write_bytes(b"30\n")
        (channel / "offsets" / "t.offset").write_bytes(b"")
        assert sweep(channel) == Plan([], 0)

    @pytest.mark.parametrize(
        ("name", "starts"), [("fed-p", []), ("fedout-p", []), ("local", [0, 10])]
    )
    def test_the_tail_of_a_federated_channel(
        self, channel: Path, name: str, starts: list[int]
    ) -> None:
        """It is kept for peers that come back, where there are any."""
        (channel / "offsets" / f"{name}.offset").write_bytes(b"30\n")
        assert sweep(channel, options=RetentionOptions(federated_tail_bytes=100)).starts == starts

    def test_a_cap_is_told(self, channel: Path, caplog: pytest.LogCaptureFixture) -> None:
        """What it drops unread is logged with its size."""
        (channel / "offsets" / "s.offset").write_bytes(b"5\n")
        assert sweep(channel, options=RetentionOptions(max_files=1)) == Plan([0, 10], 15)
        assert "15 bytes" in caplog.text

    def test_one_segment(self, channel: Path) -> None:
        """The active one stays, whatever was read and whatever the caps."""
        (channel / "offsets" / "s.offset").write_bytes(b"30\n")
        sweep(channel)
        assert sweep(channel, options=RetentionOptions(1, 0.001)) == Plan([], 0)
        assert left(channel) == [20]

    @pytest.mark.parametrize(("durable", "syncs"), [(True, 1), (False, 0)])
    def test_the_directory_is_synced(self, channel: Path, durable: bool, syncs: int) -> None:
        """Once, after the last deletion, where anything is durable; not for nothing."""
        (channel / "offsets" / "s.offset").write_bytes(b"20\n")
        fs = FaultyFs()
        sweep(channel, fs, durable=durable)
        assert fs.calls["fsync_dir"] == syncs
        sweep(channel, fs, durable=durable)
        assert fs.calls["fsync_dir"] == syncs

    def test_a_failure_leaves_no_gap(self, channel: Path) -> None:
        """The oldest go first; what follows the one that failed stays."""
        (channel / "offsets" / "s.offset").write_bytes(b"20\n")
        fs = FaultyFs()
        fs.fail("unlink", errno.EIO, nth=2)
        with pytest.raises(OSError):
            sweep(channel, fs)
        assert left(channel) == [10, 20]

    def test_a_power_cut(self, channel: Path) -> None:
        """Only what everybody has read may be missing afterwards."""
        (channel / "offsets" / "s.offset").write_bytes(b"20\n")
        fs = RecordingFs(channel)
        sweep(channel, fs)
        for state in crash_states(fs.ops, Random(1), 100):
            assert f"channel/{20:020}.jsonl" in state.tree
