"""What holds for every command: exit statuses, help, errors in one line."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import click
import pytest

from keyop.cli import main as main_module
from keyop.cli import program
from keyop.cli.common import DEFAULT_DATA_DIR, resolve_config
from keyop.cli.main import COMMANDS, cli
from keyop.cli.program import describe
from keyop.errors import ConfigError, KeyopError, StorageError
from keyop.version import __version__

from .helpers import KEYOP, ROOT, Process, environment, keyop, refused, wait_for, well

GROUPS = {
    "channels": ["list", "remove"],
    "subscribers": ["list", "remove"],
    "dead-letter": ["list", "show", "requeue", "purge"],
    "config": ["check"],
    "keygen": ["ca", "instance", "revoke", "inspect"],
}
SINGLE = [
    *("publish", "subscribe", "tail", "replay", "stats", "export", "import", "check", "demo"),
    *("completion", "version"),
]
EVERY = [
    *([name] for name in (*SINGLE, *GROUPS)),
    *([group, name] for group, names in GROUPS.items() for name in names),
]


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_explains_itself_with_an_example(path: list[str], flag: str) -> None:
    """Help has a sentence, an example that begins with the command, and every option explained."""
    result = well(*path, flag)
    assert f"  keyop {' '.join(path)}" in result.out
    assert "Example" in result.out
    options = result.out.partition("Options:\n")[2].partition("\nCommands:")[0]
    assert options
    for line in options.splitlines():
        assert len(line) <= 100
        assert not line.startswith("  -") or len(line.split("  ")) >= 2


@pytest.mark.parametrize("path", [each for each in EVERY if each[-1] not in GROUPS], ids=" ".join)
def test_every_command_explains_its_exit_status(path: list[str]) -> None:
    """Whoever writes a script finds out what a command ends with."""
    assert re.search("exit.(status|0|1)", well(*path, "--help").out, re.IGNORECASE | re.DOTALL)


def test_every_command_is_in_these_lists() -> None:
    """A new command is tested like the others."""
    assert {path[0] for path in EVERY} == set(COMMANDS)


def test_every_command_has_a_module_of_its_own() -> None:
    """What the program lists is what it can load."""
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name


def test_version() -> None:
    """The version is printed by a command and by an option."""
    assert well("version").out.startswith(f"keyop {__version__} (Python {sys.version.split()[0]}")
    assert well("--version").out == f"keyop {__version__}\n"


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["frobnicate"], "No such command 'frobnicate'. (see 'keyop --help')"),
        (["publish"], "Missing argument 'CHANNEL'. (see 'keyop publish --help')"),
        (["stats", "--frob"], "No such option"),
        (
            ["channels", "remove"],
            "Missing argument 'CHANNEL'. (see 'keyop channels rem",
        ),
        (["stats", "--data-dir", "x", "-c", "y"], "give --data-dir or --config, not both"),
    ],
)
def test_wrong_use_ends_with_2(args: list[str], what: str) -> None:
    """A command that was called wrongly says so in one line, names its help, and ends with 2."""
    assert refused(2, *args).startswith(what)


@pytest.mark.parametrize("group", [[], ["config"]])
def test_a_group_without_a_command_shows_its_help(group: list[str]) -> None:
    """Whoever does not say what to do is told what there is."""
    result = keyop(*group)
    assert "Commands:" in result.out + result.err


def test_a_failure_ends_with_1_and_one_line() -> None:
    """An error is one line on stderr without a traceback, exit status 1."""
    assert "there is no data directory" in refused(1, "stats")


@pytest.mark.parametrize("args", [["--debug", "stats"], ["stats", "--debug"]])
def test_debug_shows_where(args: list[str]) -> None:
    """With --debug, before or behind the command's name, the traceback follows."""
    result = keyop(*args)
    assert result.status == 1
    assert "Traceback" in result.err


@pytest.mark.parametrize("args", [["-v", "version"], ["version", "-v"], ["version", "--debug"]])
def test_verbose(args: list[str]) -> None:
    """-v has the library say more, and --debug all there is."""
    well(*args)
    expected = logging.DEBUG if "--debug" in args else logging.INFO
    assert logging.getLogger("keyop").level == expected


def test_a_quiet_run_follows_a_verbose_one() -> None:
    """What one run was asked for does not last."""
    well("version", "--debug")
    well("version")
    assert logging.getLogger("keyop").level == logging.WARNING


def test_every_problem_of_a_configuration_has_its_line(tmp_path: Path) -> None:
    """A configuration that cannot be used is reported whole, a line for each problem."""
    path = tmp_path / "bad.yaml"
    path.write_text("nam: x\nstorage: {sync_policy: sometimes}\n")
    result = keyop("stats", "-c", path)
    assert result.status == 1
    assert result.err.count("\n") == 3
    assert all(line.startswith(f"keyop: {path}: ") for line in result.err.splitlines())


def test_a_fault_of_its_own_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is reported as such, and --debug shows where."""

    def fail(*_: object) -> None:
        raise RuntimeError("boo\nhoo")

    monkeypatch.setattr("keyop.cli.stats.look_at", fail)
    assert refused(1, "stats") == ("internal error: RuntimeError: boo\\nhoo (--debug shows where)")
    assert "Traceback" in keyop("stats", "--debug").err


def test_a_traceback_is_safe_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an error quotes, of a file for instance, is escaped in tracebacks too."""

    def fail(*_: object) -> None:
        raise RuntimeError("\x1b[31m \udc80")

    monkeypatch.setattr("keyop.cli.stats.look_at", fail)
    err = keyop("stats", "--debug").err
    assert "\x1b" not in err
    assert "RuntimeError: \\x1b[31m \\udc80" in err.splitlines()[-1]


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt anywhere ends with 130, without a word."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("keyop.cli.stats.look_at", interrupt)
    assert keyop("stats") == (130, "", "")


def test_the_library_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library warns of is a line on stderr, safe on a terminal; --debug shows where."""
    logger = logging.getLogger("keyop.somewhere")

    def warn(*_: object) -> None:
        try:
            raise ValueError("why")
        except ValueError:
            logger.warning("odd \x1b[31m%s", "thing", exc_info=True)
        logger.info("not asked for")

    monkeypatch.setattr("keyop.cli.version.platform.python_version", warn)
    assert keyop("version").err == "keyop: warning: odd \\x1b[31mthing\n"
    err = keyop("version", "--debug").err
    assert err.startswith("keyop: warning: odd \\x1b[31mthing\nTraceback")
    assert err.endswith("ValueError: why\nkeyop: info: not asked for\n")


def test_a_broken_pipe_ends_with_141(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that goes away is no error to talk about."""

    def break_pipe(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("keyop.cli.stats.look_at", break_pipe)
    assert keyop("stats") == (141, "", "")


def test_the_entry_point(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs what the command line says, and opens nothing in place of a closed stream."""
    monkeypatch.setattr(program, "interrupted_where_it_waits", nullcontext)  # the tests' own go on
    monkeypatch.setattr(sys, "argv", ["keyop", "version"])
    opened = iter([1, 2, 7])
    closed: list[int] = []
    monkeypatch.setattr(program.os, "open", lambda *_: next(opened))
    monkeypatch.setattr(program.os, "close", closed.append)
    with pytest.raises(SystemExit) as ended:
        main_module.main()
    monkeypatch.undo()
    assert ended.value.code == 0
    assert closed == [7]
    assert capsys.readouterr().out.startswith(f"keyop {__version__}")


def test_the_data_directory_is_looked_for_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """--data-dir wins over the environment, which wins over the default; empty is not set."""
    assert resolve_config("there", None).storage.data_dir == "there"
    monkeypatch.setenv("KEYOP_DATA_DIR", "elsewhere")
    assert resolve_config(None, None).storage.data_dir == "elsewhere"
    monkeypatch.setenv("KEYOP_DATA_DIR", "")
    assert resolve_config(None, None).storage.data_dir == DEFAULT_DATA_DIR


def test_a_command_on_the_side_federates_nothing(tmp_path: Path) -> None:
    """Of a hub's configuration the storage keys are used: a command never becomes a second hub."""
    path = tmp_path / "hub.yaml"
    path.write_text(
        f"storage: {{data_dir: {tmp_path}/d, max_record_bytes: 4096}}\n"
        "hub: {enabled: true, listen_addr: '127.0.0.1:7740'}\n"
    )
    config = resolve_config(None, str(path))
    assert config.storage.max_record_bytes == 4096
    assert not config.hub.enabled


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "x"), "x: No such file or directory"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError("odd"), "odd"),
        (StorageError("why"), "why"),
        (KeyopError(), "KeyopError"),
        (ConfigError(["a", "b"], "f"), "f: 2 problems\n  a\n  b"),
        (ZeroDivisionError("x"), "ZeroDivisionError: x"),
    ],
)
def test_errors_are_described_for_people(error: Exception, text: str) -> None:
    """A system error is its text and its file, one of keyop's its text, any other its kind too."""
    assert describe(error) == text


# --- in a process of its own


def test_a_reader_that_goes_away_ends_it_like_sigpipe(data_dir: Path) -> None:
    """Output into a pipe that nobody reads ends with 141, and not a word about it."""
    well("publish", "orders", "1", "-q")
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        with Process("stats", stdout=write_end) as process:
            result = process.popen.communicate(timeout=30)
    finally:
        os.close(write_end)
    assert process.popen.returncode == 141
    assert result[1] == b""


def test_a_full_disk_on_stdout_is_a_failure(data_dir: Path) -> None:
    """What cannot be written is reported: a script must not take half an answer for a whole one."""
    well("publish", "orders", "1", "-q")
    with open("/dev/full", "wb") as full, Process("stats", stdout=full) as process:
        result = process.popen.communicate(timeout=30)
    assert process.popen.returncode == 1
    assert b"No space left on device" in result[1]
    assert b"Traceback" not in result[1]


def test_closed_streams_do_no_harm(data_dir: Path) -> None:
    """A command that was given no streams at all does what it was asked to."""
    command = " ".join([*KEYOP, "publish", "orders", "1"])
    assert os.waitstatus_to_exitcode(os.system(f"{command} <&- >&- 2>&-")) == 0
    assert well("channels", "--json").json[0]["channel"] == "orders"


def test_an_interrupt_of_a_real_process() -> None:
    """Ctrl-C while it waits for stdin ends with 130 and says what was done."""
    with Process("publish", "orders", "-") as process:
        process.popen.stdin.write(b"1\n2\n")
        process.popen.stdin.flush()
        channel = Path(os.environ["KEYOP_DATA_DIR"]) / "channels" / "orders"
        wait_for(
            lambda: sum(path.read_bytes().count(b"\n") for path in channel.glob("*.jsonl")) == 2,
            "both messages",
        )
        process.send(signal.SIGINT)
        process.popen.wait(20)
        err = process.popen.stderr.read().decode()
    assert process.popen.returncode == 130
    assert err == "keyop: published 2 messages to orders\n"


def test_names_from_the_environment_are_bytes(data_dir: Path, tmp_path: Path) -> None:
    """A data directory whose name is no UTF-8 works."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff")
    with Process("publish", "orders", "1", env=environment(KEYOP_DATA_DIR=name)) as process:
        assert process.end().status == 0
    assert os.path.isdir(f"{name}/channels/orders")


def test_a_slip_in_a_command() -> None:
    """What was meant is said."""
    said = "No such command 'publsh'. Did you mean 'publish'? (see 'keyop --help')"
    assert refused(2, "publsh") == said
    assert "Did you mean" not in refused(2, "nothing-like-it")


def test_help_loads_no_command() -> None:
    """Whoever looks for a command waits for none."""
    program = (
        "import sys; sys.argv = ['keyop', '--help']\n"
        "from keyop.cli.main import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n"
        "    print([each for each in sys.modules if each in "
        "('keyop.messenger', 'keyop.cli.publish', 'cryptography', 'yaml')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "publish      Publish a message" in done.stdout
    assert done.stdout.endswith("[]\n")
