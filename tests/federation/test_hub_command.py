"""``keyop-hub``, as a user starts it and as a service manager does."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gevent.socket
import pytest
import yaml

from keyop import EphemeralMessenger, HandshakeRejectedError, KeyopError
from keyop.cli.embedded import (
    DEFAULT_ADDRESS,
    dialled_address,
    embedded_config,
    show_commands,
)
from keyop.cli.hub import command
from keyop.keygen import (
    Authority,
    CertificateInfo,
    create_authority,
    describe_file,
    issue,
    write_files,
)
from tests.cli.conftest import logging_restored
from tests.cli.helpers import well
from tests.fakes.clock import FakeClock

from .helpers import TYPE, Instances, audit, payloads
from .hub_process import ROOT, HubProcess, environment, patiently, run_hub, shell

__all__ = ["logging_restored"]  # a fixture that each test here uses


def has_ipv6() -> bool:
    try:
        with closing(socket.socket(socket.AF_INET6)) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


def free_port() -> int:
    with closing(socket.socket()) as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port


def publish(hub: HubProcess) -> None:
    """Publish to an embedded hub where, and with what, it says."""
    _, address, _, cert, _, key, _, ca = hub.options()
    with EphemeralMessenger(address, tls={"cert": cert, "key": key, "ca": ca}) as messenger:
        messenger.publish("news", TYPE, 1)


class TestWithoutAConfiguration:
    def test_what_it_prints_works_as_it_stands(self, tmp_path: Path) -> None:
        """It can be copied into a shell in any directory, after the first start and the second.

        Everything is private, and made once.
        """
        home, elsewhere = tmp_path / "my hub", tmp_path / "elsewhere"
        elsewhere.mkdir()
        with HubProcess(home, "--listen", "127.0.0.1:0") as hub:
            follow, publish = hub.commands()
            with shell(follow, elsewhere) as follower:
                assert follower.error_line().startswith("keyop: following news at 127.0.0.1:")
                with shell(publish, elsewhere) as publisher:
                    published = publisher.end()
                assert (published.status, published.err) == (0, "")
                assert follower.line() == '{"hello":"world"}'
                follower.send(signal.SIGINT)
                assert follower.end().status == 130
            assert hub.stop().status == 0
        certs = home / "keyop-hub-data" / "certs"
        kept = {path.name: path.read_bytes() for path in certs.glob("*.*")}
        with HubProcess(home, "--listen", "127.0.0.1:0") as hub:
            with shell(hub.commands()[1], elsewhere) as publisher:
                assert publisher.end().status == 0
            assert hub.stop().status == 0
        assert {path.name: path.read_bytes() for path in certs.glob("*.*")} == kept
        assert payloads(home / "keyop-hub-data", "news") == [{"hello": "world"}] * 2
        assert set(kept) == {f"{name}.{end}" for name in ("ca", "dev-hub", "dev")
                             for end in ("crt", "key")}  # fmt: skip
        for path in (home / "keyop-hub-data").rglob("*"):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path

    @pytest.mark.parametrize("listen", ["0.0.0.0", "", "[::]"])
    def test_wherever_it_listens(self, tmp_path: Path, listen: str) -> None:
        """What it prints is an address of this machine, which its certificate is made out to."""
        if listen.startswith("[") and not has_ipv6():
            pytest.skip("no IPv6 here")
        with HubProcess(tmp_path, "--listen", f"{listen}:0") as hub:
            publish(hub)
        assert payloads(tmp_path / "keyop-hub-data", "news") == [1]

    def test_a_host_that_is_not_loopback(self, tmp_path: Path) -> None:
        """The certificate is made out to it too, besides the hosts of earlier starts."""
        embedded_config(str(tmp_path / "keyop-hub-data"), "127.0.0.3:0")
        with HubProcess(tmp_path, "--listen", "127.0.0.4:0") as hub:
            assert hub.options()[1].startswith("127.0.0.4:")
            publish(hub)
        (found,) = describe_file(str(tmp_path / "keyop-hub-data" / "certs" / "dev-hub.crt"))
        assert isinstance(found, CertificateInfo)
        assert {"DNS:localhost", "IP:127.0.0.3", "IP:127.0.0.4"} <= set(found.alternative_names)

    @pytest.mark.parametrize("path", ["/usr/bin", f"{ROOT}/bin"])
    def test_where_keyop_is_not_on_the_path(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        path: str,
    ) -> None:
        """The commands name the program beside the hub's, as after an install into a directory."""
        monkeypatch.setenv("PATH", path)
        monkeypatch.setattr(sys, "argv", [f"{ROOT}/bin/keyop-hub"])
        show_commands(embedded_config(str(tmp_path), "127.0.0.1:1"), "")
        wanted = "keyop" if path == f"{ROOT}/bin" else f"{ROOT}/bin/keyop"
        commands = [line for line in capsys.readouterr().out.splitlines() if line[0] == " "]
        assert [line.split()[0] for line in commands] == [wanted, wanted]

    def test_its_data_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is where the option says, else the environment, else one in the working directory."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("KEYOP_DATA_DIR", raising=False)
        assert embedded_config(None, DEFAULT_ADDRESS).storage.data_dir == "./keyop-hub-data"
        monkeypatch.setenv("KEYOP_DATA_DIR", str(tmp_path / "env"))
        for option, wanted in ((None, tmp_path / "env"), ("option", Path("option"))):
            config = embedded_config(option, DEFAULT_ADDRESS)
            assert Path(config.storage.data_dir) == wanted
            assert config.tls.ca == f"{config.storage.data_dir}/certs/ca.crt"
            assert (wanted / "certs" / "dev.key").exists()

    def test_a_second_one_stands_by(self, tmp_path: Path) -> None:
        """It prints the commands for where both were told to listen, and takes over there."""
        listen = f"127.0.0.1:{free_port()}"
        args = ("--listen", listen, "--data-dir", tmp_path / "data")
        with HubProcess(tmp_path / "a", *args) as first:
            assert first.address() == listen
            with HubProcess(tmp_path / "b", *args) as second:
                assert second.commands() == first.commands()
                assert "standing by" in second.out
                first.stop(signal.SIGKILL)
                patiently(lambda: reached(listen), "the second one to listen")
                publish(second)

    def test_without_stdout(self, tmp_path: Path) -> None:
        """A service manager may have closed it."""
        command = ["sh", "-c", 'exec "$0" "$@" >&-', sys.executable, str(ROOT / "bin/keyop-hub")]
        with HubProcess(tmp_path, "--listen", "127.0.0.1:0", "--pid-file", "pid",
                        command=command) as hub:  # fmt: skip
            hub.wait((tmp_path / "pid").exists, "the pid file")
            stopped = hub.stop()
        assert (stopped.status, stopped.err) == (0, "")

    @pytest.mark.parametrize(
        ("listen", "bound", "wanted"),
        [
            ("0.0.0.0:1", "0.0.0.0:1", "127.0.0.1:1"),
            (":0", "[::]:7", "127.0.0.1:7"),
            ("localhost:0", "127.0.0.1:7", "localhost:7"),
            ("[::]:0", "[::]:7", "[::1]:7"),
            ("hub.example.org:0", "192.0.2.1:7", "hub.example.org:7"),
            ("127.0.0.1:7", "", "127.0.0.1:7"),
        ],
    )
    def test_the_address_to_dial(self, listen: str, bound: str, wanted: str) -> None:
        """It is the host as the user wrote it, with the port that is really listened on."""
        assert dialled_address(listen, bound) == wanted


def reached(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


# --- with a configuration

APP = """
import os
import gevent

def note(messenger):
    @messenger.subscribe("orders", "app", start="earliest")
    def handle(message):
        with open("handled", "a") as file:
            print(message.payload, file=file)

def slow(messenger):
    @messenger.subscribe("orders", "app", start="earliest")
    def handle(message):
        open("begun", "w").close()
        while not os.path.exists("go"):
            gevent.sleep(0.01)
        open("done", "w").close()

def failing(messenger):
    raise RuntimeError("not today")

value = 1
"""


class Configured:
    """A directory with a configuration and an application, in which a hub is run."""

    def __init__(self, directory: Path, instances: Instances) -> None:
        self.directory = directory
        self.instances = instances
        self.data_dir = directory / "data"
        self.file = directory / "hub.yaml"
        self.settings: dict[str, Any] = {
            "name": "hub",
            "storage": {"data_dir": "data"},
            "hub": {
                "enabled": True,
                "listen_addr": "127.0.0.1:0",
                "allowed_peers": [{"name": "alpha"}],
            },
            "tls": instances.tls("hub"),
        }
        self.write()
        (directory / "app.py").write_text(APP)

    def write(self) -> None:
        """Put the settings into the file, all at once."""
        made = self.directory / "new.yaml"
        made.write_text(yaml.safe_dump(self.settings))
        made.rename(self.file)

    def run(self, *args: object, **options: Any) -> HubProcess:
        return HubProcess(self.directory, "-c", "hub.yaml", *args, **options)

    def client(self, hub: HubProcess, **options: Any) -> EphemeralMessenger:
        client = self.instances.ephemeral("alpha", hub.address(), **options)
        client.connect(20)
        return client


@pytest.fixture
def configured(tmp_path: Path, instances: Instances) -> Configured:
    directory = tmp_path / "run"
    directory.mkdir()
    return Configured(directory, instances)


def wait_file(path: Path) -> str:
    patiently(lambda: path.exists() and path.stat().st_size, path.name)
    return path.read_text()


def test_options_beside_a_file(configured: Configured, tmp_path: Path) -> None:
    """They win over the file; the application's handlers get what clients send."""
    configured.settings["hub"] = {"allowed_peers": [{"name": "alpha"}]}
    configured.write()
    data_dir = tmp_path / "other"
    args = ("--data-dir", data_dir, "--listen", "127.0.0.1:0", "--app", "app:note")
    with configured.run(*args) as hub:
        configured.client(hub).publish("orders", TYPE, 7)
        assert wait_file(configured.directory / "handled") == "7\n"
        assert hub.out.count("\n") == 1
        assert hub.stop().status == 0
    assert payloads(data_dir, "orders") == [7]
    assert not configured.data_dir.exists()


@pytest.mark.parametrize("log", ["short", "text", "json"])
def test_its_log(configured: Configured, log: str) -> None:
    """It is what was asked for, from the start to the end."""
    with configured.run("--log", log) as hub:
        hub.address()
        hub.send(signal.SIGHUP)
        hub.has_said("reloaded")
        assert hub.stop().status == 0
        lines = hub.err.splitlines()
    assert lines
    for line in lines:
        if log == "json":
            found = json.loads(line)
            assert (found["level"], found["logger"][:6]) == ("INFO", "keyop.")
        else:
            start = r"keyop: info: " if log == "short" else r"\d{4}-\d\d-\d\dT[\d:.]+Z INFO keyop\."
            assert re.match(start, line)


def test_a_service_manager(configured: Configured) -> None:
    """It is told when the hub is ready and when it stops; the process id is in a file meanwhile."""
    # One that lets the client, which is in this process, go on while it is waited for.
    with closing(gevent.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as told:
        told.settimeout(30)
        path = str(configured.directory / "notify")
        told.bind(path)
        pid_file = configured.directory / "pid"
        with configured.run("--pid-file", "pid", env=environment(NOTIFY_SOCKET=path)) as hub:
            assert told.recv(100) == b"READY=1"
            assert pid_file.read_text() == f"{hub.popen.pid}\n"
            configured.client(hub)
            hub.send(signal.SIGTERM)
            assert told.recv(100) == b"STOPPING=1"
            assert hub.ended().status == 0
        assert not pid_file.exists()


def test_a_manager_that_is_not_there(configured: Configured) -> None:
    """That it cannot be told is worth a warning, and no more."""
    with configured.run(env=environment(NOTIFY_SOCKET="@keyop-nobody")) as hub:
        hub.has_said("systemd cannot be told READY=1")
        assert hub.stop().status == 0


def test_sigterm_drains(configured: Configured) -> None:
    """Clients hear why, a handler that runs ends, and what it was told is kept."""
    fatal: list[KeyopError] = []
    with configured.run("--app", "app:slow") as hub:
        client = configured.client(hub, on_fatal=fatal.append)
        client.publish("orders", TYPE, 1)
        patiently((configured.directory / "begun").exists, "the handler")
        hub.send(signal.SIGTERM)
        patiently(lambda: fatal, "the goodbye")
        (configured.directory / "go").touch()
        assert hub.ended().status == 0
    assert "1001" in str(fatal[0])
    assert (configured.directory / "done").exists()
    assert audit(configured.data_dir, "client_drain")
    offset = (configured.data_dir / "subscribers" / "orders" / "app.offset").read_text()
    assert int(offset) == len(_log(configured.data_dir))


def _log(data_dir: Path) -> bytes:
    (segment,) = (data_dir / "channels" / "orders").glob("*.jsonl")
    return segment.read_bytes()


def test_ctrl_c(configured: Configured) -> None:
    """The same, with the status of a program that was interrupted, and without a traceback."""
    with configured.run() as hub:
        hub.address()
        stopped = hub.stop(signal.SIGINT)
    assert stopped.status == 130
    assert "Traceback" not in stopped.err


def test_the_second_signal_ends_it_at_once(configured: Configured) -> None:
    """A handler that does not end is not waited for any longer."""
    with configured.run("--app", "app:slow") as hub:
        configured.client(hub).publish("orders", TYPE, 1)
        patiently((configured.directory / "begun").exists, "the handler")
        hub.send_and_see(signal.SIGTERM)
        assert hub.stop().status == -signal.SIGTERM


class TestReload:
    def test_an_allowlist(self, configured: Configured) -> None:
        """SIGHUP reads the file again, the options stay; who is not allowed any more is closed."""
        refused: list[KeyopError] = []
        with configured.run("--data-dir", "elsewhere") as hub:
            configured.client(hub, on_fatal=refused.append)
            hub.send(signal.SIGHUP)
            hub.has_said("the configuration was reloaded")
            assert not refused
            configured.settings["hub"]["allowed_peers"] = [{"name": "beta"}]
            configured.write()
            hub.send(signal.SIGHUP)
            patiently(lambda: refused, "the goodbye")
            assert isinstance(refused[0], HandshakeRejectedError)
            stopped = hub.stop()
        assert stopped.status == 0
        assert "after the next start" not in stopped.err
        assert audit(configured.directory / "elsewhere", "policy_reloaded")

    def test_a_file_that_cannot_be_used(self, configured: Configured) -> None:
        """It says so and goes on as before."""
        with configured.run() as hub:
            client = configured.client(hub)
            configured.settings["hub"]["allowed_pers"] = []
            configured.write()
            hub.send(signal.SIGHUP)
            hub.has_said("did you mean allowed_peers?")
            client.publish("orders", TYPE, 1)
            assert hub.stop().status == 0
        assert audit(configured.data_dir, "policy_reload_failed")


# --- what keeps it from starting


@pytest.fixture
def expired(tmp_path: Path) -> dict[str, str]:
    """Certificates that have ended."""
    clock = FakeClock(1_500_000_000 * 10**9)
    authority = create_authority(clock=clock)
    made = issue(Authority(authority.certificate, authority.key), "hub", clock=clock)
    files = {name: str(tmp_path / f"old.{name}") for name in ("key", "cert", "ca")}
    contents = (made.key_pem, made.certificate_pem, authority.certificate_pem)
    write_files(dict(zip(files.values(), contents, strict=True)))
    return files


Change = Callable[[Configured, pytest.FixtureRequest], object]


def without_certificate(configured: Configured, _: pytest.FixtureRequest) -> None:
    configured.settings["tls"]["cert"] = "gone.crt"


def with_an_expired_one(configured: Configured, request: pytest.FixtureRequest) -> None:
    configured.settings["tls"] = request.getfixturevalue("expired")


def with_a_key_of_another(configured: Configured, _: pytest.FixtureRequest) -> None:
    configured.settings["tls"]["key"] = configured.instances.tls("alpha")["key"]


def with_a_typing_error(configured: Configured, _: pytest.FixtureRequest) -> None:
    configured.settings["hub"]["max_pendin"] = 7


def without_a_hub(configured: Configured, _: pytest.FixtureRequest) -> None:
    configured.settings["hub"]["enabled"] = False


REFUSED: list[tuple[Change | None, list[str], int, str]] = [
    (without_certificate, [], 1, "gone.crt: tls.cert: cannot be read: No such file or directory"),
    (with_an_expired_one, [], 1, "old.cert: tls.cert: it has expired at "),
    (with_a_key_of_another, [], 1, "alpha.key: this is not the key of "),
    (with_a_typing_error, [], 1, "hub.yaml: hub.max_pendin: unknown key; did you mean"),
    (without_a_hub, [], 1, "hub.yaml: hub.enabled: false is not allowed here"),
    (None, ["--config", "none.yaml"], 1, "none.yaml: "),
    (None, ["--listen", "nowhere"], 2, "--listen: 'nowhere' is not host:port"),
    (None, ["--listen", ""], 2, "--listen: '' is not host:port"),
    (None, ["--listen", "[::g]:1"], 2, "--listen: "),
    (None, ["--app", "app"], 2, "name a module and a function"),
    (None, ["--app", "app:nothing"], 2, "has no attribute 'nothing'"),
    (None, ["--app", "nothing:note"], 2, "No module named 'nothing'"),
    (None, ["--app", "app:value"], 2, "value is no function"),
    (None, ["--app", "broken:note"], 1, "--app 'broken:note': SyntaxError: "),
    (None, ["argument"], 2, "unexpected extra argument"),
]


@pytest.mark.parametrize(
    ("change", "args", "status", "wanted"), REFUSED, ids=[case[3][:40] for case in REFUSED]
)
def test_what_keeps_it_from_starting(
    configured: Configured,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Change | None,
    args: list[str],
    status: int,
    wanted: str,
) -> None:
    """One line says what is wrong, and nothing was created."""
    (configured.directory / "broken.py").write_text("def note(:\n")
    if change is not None:
        change(configured, request)
        configured.write()
    monkeypatch.chdir(configured.directory)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "app", raising=False)
    before = sorted(configured.directory.iterdir())
    with pytest.raises(SystemExit) as ended:
        command.main(["-c", "hub.yaml", "--pid-file", "pid", *args])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (status, "")
    assert err.count("\n") == 1, err
    assert err.startswith("keyop: ")
    assert wanted in err
    assert sorted(configured.directory.iterdir()) == before


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["--listen", "192.0.2.1:0"], "hub.listen_addr: cannot listen on 192.0.2.1:0: "),
        # Why, a resolver says, in its own words.
        (["--listen", "host.invalid:0"], "hub.listen_addr: cannot listen on host.invalid:0: "),
        (["--app", "app:failing"], "--app 'app:failing': RuntimeError: not today"),
        (["--pid-file", "no/such/pid"], "no/such/pid: No such file or directory"),
        (["--data-dir", "app.py/data"], "app.py/data: Not a directory"),
    ],
)
def test_what_ends_it_as_it_starts(configured: Configured, args: list[str], wanted: str) -> None:
    """One line says why; nobody is told that it is ready, and no pid file stays."""
    with configured.run("--pid-file", "pid", *args) as hub:
        ended = hub.ended()
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.count("\n") == 1, ended.err
    assert wanted in ended.err
    assert "Unknown error" not in ended.err
    assert not (configured.directory / "pid").exists()


def test_a_port_in_use(configured: Configured) -> None:
    """Somebody else's hub is not disturbed, nor is its pid file."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        (configured.directory / "pid").write_text("1\n")
        with configured.run("--listen", listen, "--pid-file", "pid") as hub:
            ended = hub.ended()
    assert (ended.status, ended.out) == (1, "")
    assert "Address already in use" in ended.err
    assert ended.err.count("\n") == 1
    assert (configured.directory / "pid").read_text() == "1\n"
    with configured.run() as hub:  # nothing is in its way
        hub.address()


def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    """One line says which."""
    directory = tmp_path / "read-only"
    directory.mkdir(mode=0o500)
    options: dict[str, Any] = {}
    if os.geteuid() == 0:  # whom no mode stops
        if shutil.which("setpriv") is None:
            pytest.skip("there is no setpriv to give root's rights away with")
        options["command"] = [
            "setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override",
            sys.executable, str(ROOT / "bin" / "keyop-hub"),
        ]  # fmt: skip
    ended = run_hub(tmp_path, "--data-dir", directory / "data", **options)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == f"keyop: {directory}/data: Permission denied\n"
    assert not list(directory.iterdir())


# --- the examples of configurations

_COMMAND = re.compile(r"^#   \$ ((?:.*\\\n#     )*.*)", re.MULTILINE)
EXAMPLES = sorted((ROOT / "conf").glob("*.yaml"))


def header_commands(path: Path) -> list[str]:
    """Return the commands in the header of an example, those that go over several lines whole."""
    header = path.read_text().split("\n\n")[0]
    return [each.replace("\\\n#", "") for each in _COMMAND.findall(header)]


@pytest.fixture
def beside_conf(tmp_path: Path) -> Path:
    """The examples, whose page listens on a port that is free."""
    (tmp_path / "conf").mkdir()
    for path in EXAMPLES:
        text = path.read_text().replace("127.0.0.1:7741", "127.0.0.1:0")
        (tmp_path / "conf" / path.name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_examples_start_as_they_are(
    beside_conf: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is run by the commands in its header; only where it listens is another place here."""
    monkeypatch.chdir(beside_conf)
    *before, start = header_commands(path)
    for each in before:
        program, *args = shlex.split(each)
        assert program == "keyop"
        well(*args)
    assert f"conf/{path.name}" in start
    if start.startswith("keyop-hub"):
        assert "--listen ADDR and --data-dir DIR win" in path.read_text()
        with HubProcess(beside_conf, *start.split()[1:], "--listen", "127.0.0.1:0") as hub:
            hub.address()
            assert hub.stop().status == 0
        return
    with shell(start, beside_conf) as started:
        if path.name == "local.yaml":
            assert started.end().status == 0
            assert payloads(beside_conf / "keyop-data" / "local", "orders") == [{"id": 7}]
        else:
            known = beside_conf / "keyop-data" / "client" / ".fedout-hub-1.example.org.known"
            patiently(lambda: known.exists() or started.popen.poll() is not None, "the client")
            assert started.popen.poll() is None, started.popen.stderr.read()


def test_examples_have_every_key() -> None:
    """Each key that a configuration may have stands in one of them, under a comment."""
    from keyop import Config
    from keyop.cli.config import effective

    loaded = [Config.load(path) for path in EXAMPLES]
    wanted = {re.sub(r"\[\d+\]", "", key) for config in loaded for key, _ in effective(config)}
    assert "hub.allowed_peers.publish" in wanted
    assert "client.hubs.addr" in wanted
    shown: set[str] = set()
    for path in EXAMPLES:
        shown |= _keys_in(path.read_text())
    assert wanted <= shown, wanted - shown


def _keys_in(text: str) -> set[str]:
    """Return the dotted keys that stand in a configuration, those that are commented out too."""
    found, sections = set(), [(-1, "")]
    for line in text.splitlines():
        match = re.fullmatch(r"( *)(?:- |# )?([a-z_]+):(?: .*)?", line)
        if match is None or line.startswith("#"):
            continue
        indent = len(match[1]) + 2 * ("- " in line[: match.start(2)])
        while sections[-1][0] >= indent:
            sections.pop()
        key = f"{sections[-1][1]}.{match[2]}".lstrip(".")
        found.add(key)
        sections.append((indent, key))
    return found
