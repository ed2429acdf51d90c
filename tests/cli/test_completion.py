"""Shell completion: the scripts, and the names that a shell is offered."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from keyop.cli.main import cli
from tests.integration.helpers import record, write_offset, write_segment

from .helpers import KEYOP, environment, refused, well


@pytest.fixture(autouse=True)
def names(data_dir: Path) -> None:
    for channel in ("orders", "orders.dead-letter", "notes"):
        write_segment(data_dir, channel, 0, record(1))
    for subscriber in ("billing", "mail", "fed-hub"):
        write_offset(data_dir, "orders", subscriber, 0)


Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What bash is offered for the last word of a line."""

    def offered(line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        text = BashComplete(cli, {}, "keyop", "_KEYOP_COMPLETE").complete()
        return [each.partition(",")[2] for each in text.splitlines()]

    return offered


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("keyop ta", ["tail"]),
        ("keyop tail ", ["notes", "orders"]),
        ("keyop tail orders.", ["orders.dead-letter"]),
        ("keyop tail orders --fol", ["--follow"]),
        ("keyop subscribe orders --id b", ["billing"]),
        ("keyop replay orders --subscriber ", ["billing", "fed-hub", "mail"]),
        ("keyop replay nothing --subscriber ", []),
        ("keyop replay orders --into n", ["notes"]),
        ("keyop subscribers remove orders m", ["mail"]),
        ("keyop dead-letter requeue ", ["orders"]),
        ("keyop completion ", ["bash", "zsh", "fish"]),
        ("keyop dead-letter req", ["requeue"]),
        ("keyop channels rem", ["remove"]),
    ],
)
def test_what_is_offered(complete: Complete, line: str, offered: list[str]) -> None:
    """Commands, options, channels, and the subscribers of the channel that was given."""
    assert complete(line) == offered


def test_another_data_directory(complete: Complete, tmp_path: Path) -> None:
    """--data-dir on the line decides; one that is not there offers nothing, without a word."""
    write_segment(tmp_path / "other", "else", 0, record(1))
    assert complete(f"keyop tail --data-dir {tmp_path}/other ") == ["else"]
    assert complete(f"keyop tail --data-dir {tmp_path}/none ") == []
    assert complete("keyop tail -c /nonexistent ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_that_shell(shell: str) -> None:
    """It asks keyop in that shell's way, and the shell, where it is there, can read it."""
    script = well("completion", shell).out
    assert f"_KEYOP_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script.encode(), check=True, timeout=30)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes() -> None:
    """A real bash, with the script, fills in a channel."""
    script = well("completion", "bash").out
    program = script + (
        "\nCOMP_WORDS=(keyop tail ord); COMP_CWORD=2\n"
        '_keyop_completion "$KEYOP"; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    env = environment(KEYOP=KEYOP[1], PATH=f"{os.path.dirname(KEYOP[0])}:{os.environ['PATH']}")
    result = subprocess.run(
        ["bash", "-c", program], env=env, capture_output=True, timeout=60, check=True
    )
    assert result.stdout == b"orders\n", result.stderr


def test_wrong_use() -> None:
    """A shell that is not known is wrong use."""
    assert refused(2, "completion", "tcsh").startswith("Invalid value for '{bash|zsh|fish}'")
    assert refused(2, "completion").startswith("Missing argument")
