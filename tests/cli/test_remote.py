"""``keyop publish --hub`` and ``keyop subscribe --hub``: a hub in place of a data directory."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from keyop.keygen import ensure_development_certificates
from tests.federation.helpers import lines_of, payloads
from tests.federation.hub_process import HubProcess

from .helpers import Process, keyop, refused, wait_for, well


class Remote:
    """A hub in a process of its own, and the options that lead to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.listen = "127.0.0.1:0"
        self.hub = self.start()
        self.options = self.hub.options()
        self.listen = self.options[1]

    def start(self) -> HubProcess:
        hub = HubProcess(self.directory, "--data-dir", self.data_dir, "--listen", self.listen)
        try:
            hub.commands()
        except BaseException:
            hub.__exit__()
            raise
        return hub

    def restart(self) -> None:
        """Kill it, and start it again at the same place."""
        self.hub.stop(signal.SIGKILL)
        self.hub = self.start()

    def options_of_nobody(self) -> list[str]:
        """Return options that lead to where no hub is."""
        with closing(socket.socket()) as unused:
            unused.bind(("127.0.0.1", 0))
            return ["--hub", f"127.0.0.1:{unused.getsockname()[1]}", *self.options[2:]]

    def publish(self, channel: str, *payloads: str) -> None:
        well(
            "publish", channel, "-q", *self.options, stdin="".join(f"{each}\n" for each in payloads)
        )

    def follow(self, channel: str, *args: object, **options: object) -> Process:
        """Start a follower of a channel."""
        return Process("subscribe", channel, "--id", "me", *self.options, *args, **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """A hub for all tests that leave it alone; each has a channel of its own."""
    remote = Remote(tmp_path_factory.mktemp("hub"))
    with remote.hub:
        yield remote


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Remote]:
    """A hub for one test, which may do with it what it likes."""
    remote = Remote(tmp_path / "hub")
    try:
        yield remote
    finally:
        remote.hub.__exit__()


def following(process: Process, channel: str) -> None:
    assert process.error_line().startswith(f"keyop: following {channel} at 127.0.0.1:")


class TestPublish:
    def test_one(self, shared: Remote) -> None:
        """Its id is printed once the hub has it; the name in the certificate is its origin."""
        printed = well("publish", "one", '{"n":1}', "--correlation-id", "c", *shared.options).out
        (line,) = lines_of(shared.data_dir, "one")
        assert f'"id":"{printed.strip()}"'.encode() in line
        assert b'"origin":"dev"' in line
        assert b'"correlation_id":"c"' in line

    def test_under_another_name(self, shared: Remote) -> None:
        """--as is the origin."""
        well("publish", "named", "1", "--as", "till-1", *shared.options)
        (line,) = lines_of(shared.data_dir, "named")
        assert b'"origin":"till-1"' in line

    def test_a_pipe(self, shared: Remote) -> None:
        """Every line becomes a message, in order, and the count is told."""
        lines = "".join(f"{number}\n" for number in range(2000))
        result = keyop("publish", "pipe", *shared.options, stdin=lines)
        assert (result.status, result.out) == (0, "")
        assert result.err == "keyop: published 2,000 messages to pipe\n"
        assert payloads(shared.data_dir, "pipe") == list(range(2000))

    def test_lines_at_once(self, shared: Remote) -> None:
        """A line is published when it comes, not when the pipe ends."""
        with Process("publish", "live", *shared.options) as publisher:
            for sent in ([1], [1, 2]):
                publisher.popen.stdin.write(b"%d\n" % sent[-1])
                wait_for(partial(self.is_stored, shared, "live", sent), "the line")
            assert publisher.end().status == 0

    def test_a_line_that_cannot_be_sent(self, shared: Remote) -> None:
        """Those before it are sent once, those behind it are not, and it is named."""
        deep = "[" * 400 + "]" * 400
        lines = "".join(f"{each}\n" for each in (*range(300), deep, *range(300, 600)))
        result = keyop("publish", "bad", *shared.options, stdin=lines)
        assert result.status == 1
        published, error = result.err.splitlines()
        assert published == "keyop: published 300 messages to bad"
        assert error.startswith("keyop: line 301 of stdin: ")
        assert payloads(shared.data_dir, "bad") == list(range(300))

    def test_one_that_cannot_be_sent(self, shared: Remote) -> None:
        """It is a failure, and nothing is sent."""
        deep = "[" * 400 + "]" * 400
        assert "Recursion limit" in refused(1, "publish", "deep", deep, *shared.options)
        assert payloads(shared.data_dir, "deep") == []

    def test_nobody_reads_the_id(self, shared: Remote) -> None:
        """It ends as by SIGPIPE, and the message is there."""
        read, write = os.pipe()
        os.close(read)
        try:
            with Process("publish", "closed", "1", *shared.options, stdout=write) as publisher:
                assert publisher.popen.wait(30) == 141
                assert publisher.popen.stderr.read() == b""
        finally:
            os.close(write)
        assert payloads(shared.data_dir, "closed") == [1]

    def test_ctrl_c(self, shared: Remote) -> None:
        """What was sent stays sent, and what was confirmed is counted."""
        with Process("publish", "stopped", *shared.options) as publisher:
            for sent in ([1], [1, 2]):
                publisher.popen.stdin.write(b"%d\n" % sent[-1])
                wait_for(partial(self.is_stored, shared, "stopped", sent), "the line")
            publisher.send(signal.SIGINT)
            publisher.popen.wait(30)
            err = publisher.popen.stderr.read().decode()
        assert publisher.popen.returncode == 130
        # The first was confirmed before the second was sent, which may have been as well.
        assert re.fullmatch("keyop: published [12] messages? to stopped\n", err), err

    @staticmethod
    def is_stored(shared: Remote, channel: str, wanted: list[object]) -> bool:
        return payloads(shared.data_dir, channel) == wanted

    def test_the_hub_goes_away(self, own: Remote) -> None:
        """One line says so; what was counted is there, however many were on their way."""
        with Process("publish", "orders", *own.options) as publisher:
            publisher.popen.stdin.write(b"".join(b"%d\n" % number for number in range(100)))
            wait_for(lambda: len(lines_of(own.data_dir, "orders")) == 100, "the first lines")
            own.hub.stop(signal.SIGKILL)
            ended = publisher.end(b"".join(b"%d\n" % number for number in range(100, 1000)))
        assert ended.status == 1
        error, published = ended.err.splitlines()
        assert error.startswith(f"keyop: error: {own.listen}: closed (1006")
        # Confirmations may have been on their way as well.
        counted = re.fullmatch(r"keyop: published (\d+) messages? to orders", published)
        assert counted is not None, published
        assert int(counted[1]) <= len(lines_of(own.data_dir, "orders"))

    def test_nobody_there(self, shared: Remote) -> None:
        """It is not tried for ever."""
        error = refused(1, "publish", "orders", "1", *shared.options_of_nobody())
        assert "cannot be reached" in error
        assert "Connection refused" in error


class TestSubscribe:
    def test_messages_as_they_come(self, shared: Remote) -> None:
        """Live ones only, payloads alone, until there are enough."""
        shared.publish("news", "0")
        with shared.follow("news", "--count", 2) as follower:
            following(follower, "news")
            shared.publish("news", '{"n": 1}', "two", "3")
            ended = follower.end()
        assert (ended.status, ended.out) == (0, '{"n":1}\n"two"\n')

    def test_whole_messages(self, shared: Remote) -> None:
        """--json prints all that is known of them."""
        with shared.follow("whole", "--count", 1, "--json") as follower:
            following(follower, "whole")
            shared.publish("whole", "1")
            message = follower.end().json
        assert (message["origin"], message["channel"], message["payload"]) == ("dev", "whole", 1)

    def test_a_command_that_ends_before_it_does(self, shared: Remote, tmp_path: Path) -> None:
        """SIGTERM lets what is being handled end; nothing more is begun."""
        program = f"touch {tmp_path}/begun; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; cat"
        with shared.follow("exec", "--exec", program) as follower:
            following(follower, "exec")
            shared.publish("exec", "1", "2")
            wait_for((tmp_path / "begun").exists, "the command")
            follower.send_and_see(signal.SIGTERM)
            (tmp_path / "go").touch()
            ended = follower.end()
        assert (ended.status, ended.out) == (0, "1\n")

    def test_a_second_signal(self, shared: Remote, tmp_path: Path) -> None:
        """It does not wait for anything."""
        program = f"touch {tmp_path}/begun; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
        with shared.follow("exec2", "--exec", program) as follower:
            following(follower, "exec2")
            shared.publish("exec2", "1")
            wait_for((tmp_path / "begun").exists, "the command")
            follower.send_and_see(signal.SIGINT)
            follower.send(signal.SIGINT)
            assert follower.popen.wait(10) == -signal.SIGINT
        (tmp_path / "go").touch()  # the command is in a session of its own, and goes on

    def test_a_command_that_fails(self, shared: Remote) -> None:
        """It is reported; there is nothing to try again from, and the next one comes."""
        with shared.follow("failing", "--exec", "grep 2", "--count", 1) as follower:
            following(follower, "failing")
            shared.publish("failing", "1", "2")
            ended = follower.end()
        assert (ended.status, ended.out) == (0, "2\n")
        assert "the command ended with 1" in ended.err

    def test_ctrl_c(self, shared: Remote) -> None:
        """It ends with the status of what was interrupted."""
        with shared.follow("idle") as follower:
            following(follower, "idle")
            follower.send(signal.SIGINT)
            assert follower.end() == (130, "", "")

    def test_nobody_reads(self, shared: Remote) -> None:
        """It ends as by SIGPIPE when its reader goes away, whether anything comes or not."""
        with shared.follow("piped") as follower:
            following(follower, "piped")
            follower.popen.stdout.close()
            assert follower.popen.wait(20) == 141

    def test_a_full_disk_under_its_output(self, shared: Remote) -> None:
        """One line says so, and the exit status."""
        with open("/dev/full", "wb") as full, shared.follow("full", stdout=full) as follower:
            following(follower, "full")
            shared.publish("full", "1")
            assert follower.popen.wait(20) == 1
            assert (
                follower.popen.stderr.read()
                == b"keyop: stdout cannot be written: No space left on device\n"
            )

    def test_the_hub_goes_away_and_comes_back(self, own: Remote) -> None:
        """It is told, and followed again."""
        with own.follow("news", "--count", 2) as follower:
            following(follower, "news")
            own.publish("news", "1")
            assert follower.line() == "1"
            own.restart()
            assert "closed (1006" in follower.error_line()
            # What is published before it is connected again is not for it.
            own.hub.has_said("dev connected from")
            own.publish("news", "2")
            ended = follower.end()
        assert (ended.status, ended.out) == (0, "2\n")

    def test_a_hub_that_is_not_there_yet(self, shared: Remote) -> None:
        """It waits for it, and may be interrupted."""
        options = shared.options_of_nobody()
        with Process("subscribe", "news", "--id", "me", *options) as follower:
            assert "cannot be reached" in follower.error_line()
            follower.send(signal.SIGTERM)
            ended = follower.end()
        assert (ended.status, ended.out) == (0, "")
        assert "following" not in ended.err


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Certificates of another authority, which has the same names."""
    made = ensure_development_certificates(str(tmp_path_factory.mktemp("other")), ["dev"])
    files = made.instances["dev"]
    return {"--cert": files.cert, "--key": files.key, "--ca": made.ca.cert}


class TestRefusals:
    """The hub does not want this instance, or this one not the hub."""

    def foreign(self, shared: Remote, strangers: dict[str, str], *names: str) -> list[str]:
        """Return the options, some files those of strangers."""
        options = list(shared.options)
        for name in names:
            options[options.index(name) + 1] = strangers[name]
        return options

    def test_a_hub_of_another_authority(self, shared: Remote, strangers: dict[str, str]) -> None:
        """One line, at once, from both commands."""
        options = self.foreign(shared, strangers, "--ca")
        wanted = "the other side's certificate was refused"
        assert wanted in refused(1, "publish", "news", "1", *options)
        with Process("subscribe", "news", "--id", "me", *options) as process:
            ended = process.end()
        assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1), ended
        assert wanted in ended.err

    def test_a_client_of_another_authority(self, shared: Remote, strangers: dict[str, str]) -> None:
        """It is told why, at the first try."""
        options = self.foreign(shared, strangers, "--cert", "--key")
        wanted = "the other side refused this one's certificate"
        assert wanted in refused(1, "publish", "news", "1", *options)
        with Process("subscribe", "news", "--id", "me", *options) as process:
            ended = process.end()
        assert (ended.status, ended.out) == (1, "")
        (line,) = ended.err.splitlines()
        assert wanted in line

    def test_who_is_not_in_the_allowlist(self, shared: Remote) -> None:
        """The authority is the right one, and the name is not."""
        certs = str(shared.data_dir / "certs")
        files = ensure_development_certificates(certs, ["guest"]).instances["guest"]
        options = [*shared.options[:2], "--cert", files.cert, "--key", files.key,
                   *shared.options[-2:]]  # fmt: skip
        wanted = f"error: {shared.listen}: not in allowlist"
        assert refused(1, "publish", "news", "1", *options) == wanted
        with Process("subscribe", "news", "--id", "me", *options) as process:
            assert process.end() == (1, "", f"keyop: {wanted}\n")

    def test_a_certificate_that_is_not_there(self, shared: Remote) -> None:
        """It is named."""
        options = [*shared.options[:2], "--cert", "no.crt", *shared.options[4:]]
        assert "no.crt" in refused(1, "publish", "news", "1", *options)


TLS = ["--cert", "c", "--key", "k", "--ca", "a"]


class TestOptions:
    """What does not go together is said before anything is done."""

    @pytest.mark.parametrize("command", ["publish", "subscribe"])
    @pytest.mark.parametrize(
        ("options", "wanted"),
        [
            (["--hub", "h:1", "--data-dir", "d"], "--hub or a data directory, not both"),
            (["--hub", "h"], "--hub: 'h' is not allowed"),
            (["--hub", "h:99999"], "--hub: 'h:99999' is not allowed"),
            (["--hub", ":7740"], "--hub: ':7740' is not allowed"),
            (["--hub", ""], "--hub: '' is not host:port"),
            (["--hub", "h:1", "--cert", "c"], "--cert needs --key beside it"),
            (["--hub", "h:1", "--cert", "c", "--key", "k"], "--cert needs --ca beside it"),
            (["--hub", "h:1", "--ca", "a"], "--ca needs --cert beside it"),
            (TLS, "are for --hub"),
            (["--as", "me"], "are for --hub"),
            (["--hub", "h:1", *TLS, "--as", "no such name"], "--as: "),
        ],
    )
    def test_both_commands(
        self, command: str, options: list[str], wanted: str, data_dir: Path
    ) -> None:
        args = ["1"] if command == "publish" else ["--id", "me"]
        assert wanted in refused(2, command, "news", *args, *options)
        assert not data_dir.exists()

    @pytest.mark.parametrize(
        "option",
        [["--from", "earliest"], ["--standby"], ["--max-retries", "1"], ["--concurrency", "2"]],
    )
    def test_what_needs_a_position(self, option: list[str]) -> None:
        """A live subscription has none, and says which options are for one."""
        error = refused(2, "subscribe", "news", "--id", "me", "--hub", "h:1", *option)
        assert "are for a data directory" in error

    @pytest.mark.parametrize("channel", ["a/b", "", "..", "x" * 256])
    def test_names(self, channel: str) -> None:
        """A channel is checked before anybody is called."""
        refused(1, "publish", channel, "1", "--hub", "192.0.2.1:1")

    def test_the_environment(self, shared: Remote, data_dir: Path) -> None:
        """A data directory of the environment is no contradiction, and is left alone."""
        assert os.environ["KEYOP_DATA_DIR"] == str(data_dir)
        well("publish", "environment", "1", *shared.options)
        assert not data_dir.exists()
