"""``keyop subscribers``: who reads what and how far, and forgetting one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from keyop import InvalidSubscriberIdError, StorageError, SubscriberInUseError
from keyop.fs import SYSTEM_FS
from keyop.held import HeldLocks
from keyop.inspection import DataDirectory
from keyop.removal import check_position_id, remove_subscriber
from tests.fakes.faulty import FaultyFs
from tests.integration.helpers import (
    Recorder,
    Worker,
    channel_dir,
    log_bytes,
    offset_path,
    running,
    tree,
    wait_until,
    write_offset,
)

from .helpers import keyop, refused, well

needs_proc_locks = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="the kernel does not list its locks"
)


@pytest.fixture
def filled(data_dir: Path) -> Path:
    """Two channels, one with two subscribers and progress of federation."""
    with running(data_dir) as messenger:
        messenger.publish("orders", "t", 1)
        messenger.publish("notes", "t", 1)
    write_offset(data_dir, "orders", "billing", 0)
    write_offset(data_dir, "orders", "fed-host-1", b"")
    write_offset(data_dir, "orders", "fedout-hub:7740", len(log_bytes(data_dir, "orders")))
    write_offset(data_dir, "notes", "billing", 3)
    return data_dir


def test_the_table(filled: Path) -> None:
    """A line for each position, of all channels; what cannot be read is explained beside it."""
    size, other = len(log_bytes(filled, "orders")), len(log_bytes(filled, "notes"))
    result = keyop("subscribers")
    assert [line.split() for line in result.lines] == [
        ["CHANNEL", "SUBSCRIBER", "KIND", "OFFSET", "LAG", "RUNNING"],
        ["notes", "billing", "local", "3", f"{other - 3}", "B", "no"],
        ["orders", "billing", "local", "0", f"{size}", "B", "no"],
        ["orders", "fed-host-1", "peer", "?", "?", "no"],
        ["orders", "fedout-hub:7740", "hub", f"{size}", "0", "B", "no"],
    ]
    path = offset_path(filled, "orders", "fed-host-1")
    assert result.err.startswith(f"keyop: {path} is empty")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("args", [["orders"], ["list", "orders"]])
def test_of_one_channel(filled: Path, args: list[str]) -> None:
    """A channel's name, with or without the command's, leaves out the others."""
    assert len(keyop("subscribers", *args).lines) == 4


def test_json(filled: Path) -> None:
    """--json has the numbers and what is wrong."""
    found = well("subscribers", "notes", "--json").json
    assert found == [
        {
            "channel": "notes",
            "subscriber_id": "billing",
            "offset": 3,
            "lag_bytes": len(log_bytes(filled, "notes")) - 3,
            "running": False,
            "problem": None,
            "kind": "local",
        }
    ]
    assert [each["kind"] for each in well("subscribers", "orders", "--json").json] == (
        ["local", "peer", "hub"]
    )


def test_nobody(data_dir: Path) -> None:
    """That there is nobody is said beside the output."""
    with running(data_dir) as messenger:
        messenger.publish("orders", "t", 1)
    assert keyop("subscribers") == (0, "", f"keyop: no subscribers in {data_dir}\n")
    assert keyop("subscribers", "orders") == (0, "", "keyop: no subscribers of orders\n")
    assert well("subscribers", "--json").json == []


@pytest.mark.parametrize(("channel", "what"), [("nope", "there is no channel"), ("..", "allowed")])
def test_no_such_channel(filled: Path, channel: str, what: str) -> None:
    """A channel that is not there is an error."""
    assert what in refused(1, "subscribers", channel)


@needs_proc_locks
def test_who_runs_is_seen_from_outside(filled: Path) -> None:
    """A subscriber of another process is running until it ends; nobody is disturbed by looking."""
    code = """
    with make() as m:
        m.subscribe("notes", "live", lambda _: None)
        say("ready")
        wait_for(sys.argv[2])
    """
    go = filled.parent / "go"
    with Worker(code, filled, go) as worker:
        worker.wait_line("ready")
        rows = {row.split()[1]: row.split()[-1] for row in keyop("subscribers", "notes").lines[1:]}
        assert rows == {"live": "yes", "billing": "no"}
        go.touch()
        worker.wait()
    rows = {row.split()[1]: row.split()[-1] for row in keyop("subscribers", "notes").lines[1:]}
    assert rows == {"live": "no", "billing": "no"}


def test_where_locks_are_not_listed_nobody_knows(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernel's list it is a question mark, unless there is no lock file at all."""
    monkeypatch.setattr("keyop.held._PROC_LOCKS", str(filled / "nothing"))
    lease = filled / "subscribers" / "orders" / "billing.lock"
    lease.touch()
    rows = {row.split()[1]: row.split()[-1] for row in keyop("subscribers", "orders").lines[1:]}
    assert (rows["billing"], rows["fed-host-1"]) == ("?", "no")
    assert "0, ?" not in well("channels", "--json").out


def test_a_lock_that_cannot_be_looked_at(filled: Path) -> None:
    """An error of the system makes it unknown, not free."""
    fs = FaultyFs()
    held = HeldLocks(fs, str(filled))
    fs.fail("stat", errno.EACCES)
    assert held.holds(str(filled / "x.lock")) is None
    assert held.holds(str(filled / "x.lock")) is False


def test_a_list_in_another_form_is_no_list(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not understood says nothing."""
    path = filled.parent / "locks"
    path.write_text("1: POSIX ADVISORY WRITE 1 fe:00:1 0 EOF\n1: -> FLOCK\n\nodd\n")
    monkeypatch.setattr("keyop.held._PROC_LOCKS", str(path))
    lease = filled / "x.lock"
    lease.touch()
    assert HeldLocks(SYSTEM_FS, str(filled)).holds(str(lease)) is None


# --- removing


@pytest.mark.parametrize("subscriber_id", ["billing", "fed-host-1", "fedout-hub:7740"])
def test_removing(filled: Path, subscriber_id: str) -> None:
    """The position is gone and nothing else, of local subscribers and of federation alike."""
    before = {name for name in tree(filled) if not name.endswith(".lock")}
    result = well("subscribers", "remove", "orders", subscriber_id, "--yes")
    assert result.out == f"removed {subscriber_id} of orders\n"
    after = {name for name in tree(filled) if not name.endswith(".lock")}
    assert before - after == {f"subscribers/orders/{subscriber_id}.offset"}
    assert after < before


def test_removing_is_asked_for(filled: Path) -> None:
    """Without --yes it asks; no is no."""
    before = tree(filled)
    result = keyop("subscribers", "remove", "orders", "billing", stdin="n\n")
    assert result.status == 1
    assert result.err.startswith("forget the position of billing in orders?")
    assert tree(filled) == before
    assert keyop("subscribers", "remove", "orders", "billing", stdin="y\n").status == 0
    assert not offset_path(filled, "orders", "billing").exists()


@pytest.mark.parametrize(
    ("channel", "subscriber_id", "what"),
    [
        ("orders", "nope", "'nope' has no position in channel 'orders'"),
        ("nope", "billing", "'billing' has no position in channel 'nope'"),
        ("..", "billing", "is not allowed"),
        ("orders", "../billing", "is not allowed"),
        ("orders", "fed-../../x", "is not allowed"),
        ("orders", "fed-", "is not allowed"),
    ],
)
def test_removing_what_is_not_there(
    filled: Path, channel: str, subscriber_id: str, what: str
) -> None:
    """An unknown or impossible name is an error, and nothing is created."""
    before = tree(filled)
    assert what in refused(1, "subscribers", "remove", channel, subscriber_id, "--yes")
    assert tree(filled) == before


def test_one_that_runs_is_not_removed(data_dir: Path) -> None:
    """It is refused and goes on, here as in another process."""
    seen = Recorder()
    with running(data_dir) as messenger:
        subscription = messenger.subscribe("orders", "billing", seen)
        line = refused(1, "subscribers", "remove", "orders", "billing", "--yes")
        assert "runs in another process" in line
        with pytest.raises(SubscriberInUseError):
            remove_subscriber(DataDirectory(str(data_dir)), "orders", "billing")
        messenger.publish("orders", "t", 1)
        seen.wait(1)
        wait_until(lambda: subscription.lag_bytes == 0)
    assert offset_path(data_dir, "orders", "billing").exists()


def test_removed_while_it_was_looked_at(filled: Path) -> None:
    """A position that goes on the way is an error that names it."""
    fs = FaultyFs()
    directory = DataDirectory(str(filled), fs)
    fs.fail("unlink", errno.ENOENT)
    with pytest.raises(StorageError, match="'billing' in 'orders' cannot be deleted"):
        remove_subscriber(directory, "orders", "billing")


def test_a_position_of_a_channel_that_is_gone(data_dir: Path) -> None:
    """Where the channel has no directory there is no lock, and none is made."""
    write_offset(data_dir, "orders", "billing", 5)
    well("subscribers", "remove", "orders", "billing", "--yes")
    assert not channel_dir(data_dir, "orders").exists()


def test_a_removed_subscriber_begins_anew(data_dir: Path) -> None:
    """After it was forgotten, the same id is a new subscriber."""
    seen = Recorder()
    with running(data_dir) as messenger:
        messenger.publish("orders", "t", 1)
        messenger.subscribe("orders", "a", seen, start="earliest")
        seen.wait(1)
    well("subscribers", "remove", "orders", "a", "--yes")
    with running(data_dir) as messenger:
        messenger.subscribe("orders", "a", seen, start="earliest")
        assert seen.wait(2) == [1, 1]


@pytest.mark.parametrize("name", ["a", "fed-a:1", "fedout-a.b"])
def test_ids_that_a_position_may_have(name: str) -> None:
    """A subscriber's id, or an instance's name behind a mark."""
    assert check_position_id(name) == name


@pytest.mark.parametrize("name", ["", "a:1", "fed-a/b", "fedout-a\n", "fed-" + "a" * 250])
def test_ids_that_no_position_may_have(name: str) -> None:
    """Nothing else comes near a path."""
    with pytest.raises(InvalidSubscriberIdError):
        check_position_id(name)
