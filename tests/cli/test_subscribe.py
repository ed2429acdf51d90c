"""``keyop subscribe``: messages to stdout or to a command, as often and as long as they must."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import termios
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop import Messenger
from keyop.cli.consume import CommandFailedError, Executor
from keyop.envelope import Message
from tests.integration.helpers import (
    dead_letters,
    record,
    running,
    stored_offset,
    write_segment,
)

from .helpers import Process, environment, keyop, refused, wait_for


def publish(data_dir: Path, *payloads: object, channel: str = "orders") -> None:
    with running(data_dir) as messenger:
        messenger.publish_batch(channel, [("com.example.T", each) for each in payloads])


def subscribe(*args: object) -> Any:
    return keyop("subscribe", "orders", "--id", "a", "--from", "earliest", *args)


def test_payloads_one_on_a_line(data_dir: Path) -> None:
    """Each payload is a line of JSON, in order; after N messages it ends."""
    publish(data_dir, {"a": 1}, "é", None, 4)
    result = subscribe("--count", 3)
    assert result == (0, '{"a":1}\n"é"\nnull\n', "")


def test_it_goes_on_where_it_stopped(data_dir: Path) -> None:
    """A second run prints what the first left; --from is for a new id, which is said."""
    publish(data_dir, 1, 2, 3)
    assert subscribe("--count", 1).out == "1\n"
    result = subscribe("--count", 2)
    assert result.out == "2\n3\n"
    assert result.err == ("keyop: a goes on at its saved position; --from is for a new id\n")


def test_whole_messages(data_dir: Path) -> None:
    """With --json every field is printed."""
    with running(data_dir) as messenger:
        message_id = messenger.publish(
            "orders", "com.example.T", [1], correlation_id="c", service_name="s"
        )
    message = json.loads(subscribe("--count", 1, "--json").out)
    assert message.pop("timestamp").endswith("Z")
    assert message == {
        "id": message_id,
        "channel": "orders",
        "origin": "here",
        "payload_type": "com.example.T",
        "correlation_id": "c",
        "service_name": "s",
        "offset": 0,
        "attempt": 1,
        "payload": [1],
    }


def test_a_message_cannot_play_with_the_terminal(data_dir: Path) -> None:
    """Control characters of a payload are printed as escapes."""
    publish(data_dir, "\x1b[31m\x9b\u202e")
    assert subscribe("--count", 1).out == '"\\u001b[31m\\u009b\\u202e"\n'


def test_numbers_of_other_publishers_are_exact(data_dir: Path) -> None:
    """An integer beyond 64 bits, which v0.11.0 can publish, is printed digit by digit."""
    write_segment(data_dir, "orders", 0, record(raw=f'{{"n":{2**70}}}'))
    assert json.loads(subscribe("--count", 1).out) == {"n": 2**70}


def test_a_number_beyond_the_double_range_stays_json(data_dir: Path) -> None:
    """1e999, which v0.11.0 can publish, is printed as a number that any parser takes."""
    write_segment(data_dir, "orders", 0, record(raw='{"n":1e999,"m":[-1e999,null]}'))
    assert subscribe("--count", 1).out == '{"n":1e999,"m":[-1e999,null]}\n'


def test_a_record_that_is_not_json_is_damaged(data_dir: Path) -> None:
    """Infinity and NaN are not JSON: such a record is a dead letter and is not printed."""
    bad = record(raw='{"n":Infinity}', id="bad") + record(raw="NaN", id="worse")
    write_segment(data_dir, "orders", 0, bad + record(1))
    assert subscribe("--count", 1).out == "1\n"
    assert len(dead_letters(data_dir, "orders")) == 2


def test_a_time_as_the_beginning(data_dir: Path) -> None:
    """--from TIME begins with the first message stamped then or later."""
    lines = [record(hour, ts=f"2026-01-02T0{hour}:00:00Z") for hour in range(1, 5)]
    write_segment(data_dir, "orders", 0, b"".join(lines))
    result = keyop(
        *("subscribe", "orders", "--id", "a", "--count", 2, "--from", "2026-01-02T02:30:00Z")
    )
    assert result.out == "3\n4\n"


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["orders"], "Missing option '--id'"),
        (["orders", "--id", "a", "--from", "noon"], "Invalid value for '--from': 'noon' is not"),
        (["orders", "--id", "a", "--count", "0"], "Invalid value for '--count'"),
        (["orders", "--id", "a", "--concurrency", "0"], "Invalid value for '--concurrency'"),
    ],
)
def test_wrong_use(args: list[str], what: str, data_dir: Path) -> None:
    """Wrong use ends with 2 and creates nothing."""
    assert refused(2, "subscribe", *args).startswith(what)
    assert not data_dir.exists()


@pytest.mark.parametrize("args", [["a/b", "--id", "a"], ["orders", "--id", "fed-x"]])
def test_wrong_names_create_nothing(args: list[str], data_dir: Path) -> None:
    """Both names are checked before anything is done."""
    assert refused(1, "subscribe", *args)
    assert not data_dir.exists()


def test_an_id_in_use_is_refused(data_dir: Path) -> None:
    """Only one process at a time has an id."""
    with running(data_dir) as messenger:
        messenger.subscribe("orders", "a", lambda _: None)
        assert "already subscribes" in refused(1, "subscribe", "orders", "--id", "a")


def test_an_unreadable_position_is_refused_with_a_way_out(data_dir: Path) -> None:
    """The error names the file and the command that mends it."""
    publish(data_dir, 1)
    assert subscribe("--count", 1).status == 0
    path = data_dir / "subscribers" / "orders" / "a.offset"
    path.write_bytes(b"")
    line = refused(1, "subscribe", "orders", "--id", "a")
    assert str(path) in line
    assert "keyop check --repair" in line


# --- a command for each message


def test_a_command_gets_the_message(data_dir: Path, tmp_path: Path) -> None:
    """The payload is on its stdin, the rest in its environment."""
    with running(data_dir) as messenger:
        message_id = messenger.publish(
            "orders", "com.example.T", {"n": "é"}, correlation_id="c\0d", service_name="s"
        )
    out = tmp_path / "out"
    result = subscribe("--count", 1, "--exec", f"(cat; env | grep ^KEYOP_ | sort) > {out}")
    assert result == (0, "", "")
    body, *variables = out.read_text().splitlines()
    assert json.loads(body) == {"n": "é"}
    found = dict(line.split("=", 1) for line in variables)
    assert found.pop("KEYOP_TIMESTAMP").endswith("Z")
    assert found.pop("KEYOP_DATA_DIR") == str(data_dir)
    assert found == {
        "KEYOP_ATTEMPT": "1",
        "KEYOP_CHANNEL": "orders",
        "KEYOP_CORRELATION_ID": "cd",
        "KEYOP_ID": message_id,
        "KEYOP_OFFSET": "0",
        "KEYOP_ORIGIN": "here",
        "KEYOP_SERVICE_NAME": "s",
        "KEYOP_TYPE": "com.example.T",
    }


def test_a_command_that_does_not_read_is_fine(data_dir: Path) -> None:
    """A command may end without taking its stdin, however long that is."""
    publish(data_dir, "x" * 300_000)
    assert subscribe("--count", 1, "--exec", "exec true").status == 0


def quick(data_dir: Path) -> Path:
    path = data_dir.parent / "quick.yaml"
    path.write_text(
        f"storage: {{data_dir: {data_dir}}}\n"
        "subscribers: {max_retries: 2, retry_backoff_base_ms: 1, retry_backoff_max_ms: 1}\n"
    )
    return path


def test_a_failing_command_is_tried_again(data_dir: Path, tmp_path: Path) -> None:
    """It is run as often as max_retries says, and may succeed at last."""
    publish(data_dir, 1)
    out = tmp_path / "out"
    command = f'echo $KEYOP_ATTEMPT >> {out}; test "$KEYOP_ATTEMPT" = 3'
    result = subscribe("--count", 1, "--exec", command, "-c", quick(data_dir))
    assert result.status == 0
    assert out.read_text().split() == ["1", "2", "3"]
    assert dead_letters(data_dir, "orders") == []


@pytest.mark.parametrize(
    ("command", "reason"),
    [("exit 3", "the command ended with 3"), ("kill -9 $$", "the command was killed by signal 9")],
)
def test_a_command_that_fails_for_good_leaves_a_dead_letter(
    data_dir: Path, tmp_path: Path, command: str, reason: str
) -> None:
    """The dead letter says how the command ended; the next message is not kept waiting."""
    publish(data_dir, "bad", "good")
    result = subscribe(
        *("--count", 1, "--exec", f"grep -q good || {{ {command}; }}", "--max-retries", 0)
    )
    assert result.status == 0
    (letter,) = dead_letters(data_dir, "orders")
    assert letter["last_error"] == f"CommandFailedError: {reason}"
    assert letter["original"]["payload"] == "bad"
    assert letter["subscriber"] == "a"


def test_a_command_that_cannot_be_started_is_no_fault_of_the_message(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it ends with 1; the message neither counts as failed nor is lost."""
    publish(data_dir, 1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("keyop.cli.consume.subprocess.Popen", refuse)
    result = subscribe("--exec", "true")
    assert (result.status, result.out) == (1, "")
    assert result.err == "keyop: Resource temporarily unavailable\n"
    assert stored_offset(data_dir, "orders", "a") == 0
    assert dead_letters(data_dir, "orders") == []


def test_several_commands_at_once(data_dir: Path, tmp_path: Path) -> None:
    """With --concurrency N commands run together: these two wait for each other."""
    publish(data_dir, 1, 2)
    command = f"touch {tmp_path}/$KEYOP_OFFSET; until [ $(ls {tmp_path} | grep -c '^[0-9]') = 2 ]; "
    result = subscribe(
        *("--count", 2, "--concurrency", 2, "--exec", command + "do sleep 0.01; done")
    )
    assert result.status == 0


def test_a_killed_handler_kills_its_command(tmp_path: Path) -> None:
    """A command never outlives the greenlet that waits for it."""
    pid_file = tmp_path / "pid"
    execute = Executor(f"echo $$ > {pid_file}.tmp; mv {pid_file}.tmp {pid_file}; exec sleep 60")
    greenlet = gevent.spawn(execute, message())
    while not pid_file.exists():
        gevent.sleep(0.005)
    greenlet.kill()
    pid = int(pid_file.read_text())
    wait_for(lambda: not _alive(pid), "the command's end")


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def message() -> Message:
    return Message("id", "orders", "here", "t", 1, datetime.now(timezone.utc))


def test_a_failed_command_is_an_error() -> None:
    """Any other exit status than 0 is a failure."""
    with pytest.raises(CommandFailedError, match="ended with 4"):
        Executor("exit 4")(message())


# --- how a run ends


def test_unsubscribed_by_another_process(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby whose id is unsubscribed elsewhere ends with 1 and says why."""
    monkeypatch.setattr("keyop.cli.run._LOOK_S", 0.01)
    with Messenger(data_dir=data_dir) as holder:
        holder.subscribe("orders", "a", lambda _: None)
        gevent.spawn_later(0.05, holder.unsubscribe, "orders", "a")
        result = keyop("subscribe", "orders", "--id", "a", "--standby")
    assert result.status == 1
    assert "a of orders was unsubscribed by another process" in result.err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["INT", "TERM"]
)
def test_signals_end_it(data_dir: Path, number: int, status: int) -> None:
    """Ctrl-C ends with 130, TERM with 0; what was printed is not printed again."""
    publish(data_dir, 1, 2)
    with Process("subscribe", "orders", "--id", "a", "--from", "earliest") as process:
        assert [process.line(), process.line()] == ["1", "2"]
        process.send(number)
        assert process.end() == (status, "", "")
    publish(data_dir, 3)
    assert subscribe("--count", 1).out == "3\n"


def blocking_command(tmp_path: Path) -> tuple[str, Callable[[], int], Path]:
    """Return a command that waits for a file, a function for its pid, and the file."""
    pid_file, go = tmp_path / "pid", tmp_path / "go"
    command = (
        f"echo $$ > {pid_file}.tmp; mv {pid_file}.tmp {pid_file}; "
        f"until [ -e {go} ]; do sleep 0.01; done"
    )

    def pid() -> int:
        wait_for(pid_file.exists, "the command to start")
        return int(pid_file.read_text())

    return command, pid, go


def test_a_signal_lets_the_command_end(data_dir: Path, tmp_path: Path) -> None:
    """What is being handled when Ctrl-C comes is finished, and counts."""
    publish(data_dir, 1, 2)
    command, pid, go = blocking_command(tmp_path)
    with Process(
        "subscribe", "orders", "--id", "a", "--from", "earliest", "--exec", command
    ) as process:
        pid()
        process.send_and_see(signal.SIGINT)
        go.touch()
        assert process.end() == (130, "", "")
    assert (
        0
        < stored_offset(data_dir, "orders", "a")
        < os.stat(data_dir / "channels" / "orders" / f"{0:020}.jsonl").st_size
    )


def test_a_second_signal_kills(data_dir: Path, tmp_path: Path) -> None:
    """Whoever does not want to wait presses Ctrl-C again; the message comes again."""
    publish(data_dir, 1)
    command, pid, go = blocking_command(tmp_path)
    with Process(
        "subscribe", "orders", "--id", "a", "--from", "earliest", "--exec", command
    ) as process:
        running_pid = pid()
        process.send_and_see(signal.SIGINT)
        process.send(signal.SIGINT)
        assert process.popen.wait(20) == -signal.SIGINT
    go.touch()
    wait_for(lambda: not _alive(running_pid), "the command to end")
    assert stored_offset(data_dir, "orders", "a") == 0


def test_a_reader_that_goes_away(data_dir: Path) -> None:
    """As with head: it ends as if by SIGPIPE, and nothing that was not read is lost."""
    publish(data_dir, *range(10))
    with Process("subscribe", "orders", "--id", "a", "--from", "earliest") as process:
        assert process.line() == "0"
        process.popen.stdout.close()
        # Whether it had written all before or not: nobody reads any more.
        assert process.popen.wait(20) == 141
        assert process.popen.stderr.read() == b""


def test_a_reader_that_is_gone_before_the_first_message(data_dir: Path) -> None:
    """The message that nobody would read stays for the next run."""
    publish(data_dir, 1)
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        with Process(
            "subscribe", "orders", "--id", "a", "--from", "earliest", stdout=write_end
        ) as process:
            process.popen.communicate(timeout=30)
    finally:
        os.close(write_end)
    assert process.popen.returncode == 141
    assert subscribe("--count", 1).out == "1\n"


def test_a_slow_reader_is_waited_for(data_dir: Path) -> None:
    """A pipe that is full makes it wait; every line arrives whole."""
    publish(data_dir, *("x" * 50_000 + str(number) for number in range(20)))
    with Process(
        "subscribe", "orders", "--id", "a", "--from", "earliest", "--count", 20
    ) as process:
        wait_for(lambda: _blocked(process), "the pipe to be full")
        result = process.end()
    assert result.status == 0
    assert [line[-12:] for line in result.lines] == [
        f'"{"x" * 50_000}{number}"'[-12:] for number in range(20)
    ]


def _blocked(process: Process) -> bool:
    """Whether the pipe holds as much as it takes."""
    waiting = struct.unpack("i", fcntl.ioctl(process.popen.stdout, termios.FIONREAD, b"\0" * 4))[0]
    return waiting > 50_000


def test_stdout_into_a_file(data_dir: Path, tmp_path: Path) -> None:
    """A regular file takes the lines as a pipe does."""
    publish(data_dir, 1, 2)
    path = tmp_path / "out"
    with (
        open(path, "wb") as out,
        Process(
            *("subscribe", "orders", "--id", "a", "--from", "earliest", "--count", 2), stdout=out
        ) as process,
    ):
        assert process.popen.wait(20) == 0
    assert path.read_text() == "1\n2\n"


def test_stdout_on_a_full_disk(data_dir: Path) -> None:
    """It ends with 1; the message is not lost and is no dead letter."""
    publish(data_dir, 1)
    with (
        open("/dev/full", "wb") as full,
        Process(
            *("subscribe", "orders", "--id", "a", "--from", "earliest", "--count", 1), stdout=full
        ) as process,
    ):
        _, err = process.popen.communicate(timeout=30)
    assert process.popen.returncode == 1
    assert err == b"keyop: stdout cannot be written: No space left on device\n"
    assert subscribe("--count", 1).out == "1\n"


def test_a_killed_process_loses_nothing(data_dir: Path) -> None:
    """After kill -9 the next run goes on behind what was printed, or one before."""
    publish(data_dir, *range(5))
    with Process("subscribe", "orders", "--id", "a", "--from", "earliest") as process:
        for number in range(3):
            assert process.line() == str(number)
        process.send(signal.SIGKILL)
        rest = process.end().lines
    seen = 3 + len(rest)
    if seen < 5:
        more = subscribe("--count", 5 - seen)
        assert int(more.lines[0]) in (seen, seen - 1)


def test_the_environment_names_the_data_directory(data_dir: Path, tmp_path: Path) -> None:
    """The variable serves as --data-dir does."""
    publish(tmp_path / "other", 7)
    variables = environment(KEYOP_DATA_DIR=str(tmp_path / "other"))
    arguments = ("subscribe", "orders", "--id", "a", "--from", "earliest", "--count", 1)
    with Process(*arguments, env=variables) as process:
        assert process.end() == (0, "7\n", "")
