"""Files: what others on the machine may do with them, and keys that they may use."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keyop import Config, ConfigError, Messenger
from tests.cli.conftest import logging_restored
from tests.cli.helpers import keyop, refused, well
from tests.federation.helpers import (
    TYPE,
    Instances,
    audit,
    collect,
    said,
    wait_audit,
    wait_connected,
    wait_payloads,
    wait_until,
)
from tests.federation.hub_process import HubProcess, run_hub
from tests.federation.test_reload import Renamed, reread, start
from tests.integration.helpers import dead_letters, records

__all__ = ["logging_restored"]  # a fixture that each test here uses


@pytest.fixture(params=[0o000, 0o022], ids=["umask 0", "umask 022"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, str]:
    """Return what is not as private as it has to be: 0700 directories, 0600 files."""
    found = {}
    for path in (directory, *directory.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_IMODE(mode) != (0o700 if stat.S_ISDIR(mode) else 0o600):
            found[str(path)] = stat.filemode(mode)
    return found


class TestModes:
    """Directories are 0700 and files 0600 from their first moment, whatever the umask."""

    def test_of_federation(self, instances: Instances, umask: None) -> None:
        """Logs, rolled ones too, positions, locks, audit logs and what is known of hubs."""
        small = {"max_segment_bytes": 300}
        hub = instances.hub(storage=small, audit={"max_size_mb": 0})
        client = instances.client("alpha", hub, ["down"], ["up"], storage=small)
        instances.client("beta", hub, ["up"], ["none"])
        for number in range(5):
            client.publish("up", TYPE, number)
            hub.publish("down", TYPE, number)
        wait_payloads(hub, "up", 5)
        wait_payloads(client, "down", 5)
        collect(client, "down").wait(5)
        for messenger in (hub, client):
            wait_audit(messenger, "forward")
        made = {path.name for path in instances.directory.rglob("*")}
        assert {"audit.jsonl", "fed-alpha.offset", "test.offset", ".federation.lock"} <= made
        assert any(name.endswith(".known") for name in made)
        assert sum(name.endswith(".jsonl") for name in made) > 8
        for name in ("hub", "alpha", "beta"):
            assert modes(instances.data_dir(name)) == {}

    def test_of_what_failed(self, tmp_path: Path, umask: None) -> None:
        """Dead letters, which of them were dealt with, what was torn, and what was imported."""
        data = tmp_path / "data"
        with Messenger(data_dir=data) as messenger:
            messenger.subscribe("orders", "billing", fail, max_retries=0)
            messenger.publish("orders", "t", 1)
            wait_until(lambda: dead_letters(data, "orders"))
        well("dead-letter", "requeue", "orders", "--all", "--yes", "--data-dir", data)
        export = well("export", "orders", "--data-dir", data).out
        well("import", "copies", "--rename", "--data-dir", data, stdin=export)
        (segment,) = (data / "channels" / "orders").glob("*.jsonl")
        segment.write_bytes(segment.read_bytes() + b"torn")
        with Messenger(data_dir=data) as messenger:
            messenger.publish("orders", "t", 2)
        made = {path.name for path in data.rglob("*")}
        assert ".done" in made
        assert any(".torn-" in name for name in made)
        assert len(records(data, "copies")) == 1
        assert modes(data) == {}

    def test_of_an_audit_log_that_is_rotated(self, instances: Instances, umask: None) -> None:
        """The new file and the old ones."""
        hub = instances.hub(audit={"max_size_mb": 1, "max_files": 2})
        log = federation_audit(hub)
        for _ in range(6):
            for _ in range(800):
                log.record("client_rejected", detail="x" * 1000)
            wait_until(lambda: not log._queue and not log._in_flight)
        found = {path.name for path in (instances.data_dir("hub") / "audit").iterdir()}
        assert {"audit.jsonl", "audit.jsonl.1"} <= found
        assert modes(instances.data_dir("hub") / "audit") == {}

    def test_of_keys(self, tmp_path: Path, umask: None) -> None:
        """Of an authority and an instance, made anew, and of the directory made for them."""
        own = tmp_path / "keys"
        ca = ["--ca", own / "ca.crt", "--ca-key", own / "ca.key"]
        well("keygen", "ca", "--out-cert", own / "ca.crt", "--out-key", own / "ca.key")
        files = ["--out-cert", own / "a.crt", "--out-key", own / "a.key"]
        well("keygen", "instance", *ca, "--name", "a", *files)
        well("keygen", "instance", *ca, "--name", "a", *files, "--force")
        well("keygen", "revoke", *ca, "--crl", own / "crl.pem", own / "a.crt")
        assert {each.name for each in own.iterdir()} == {
            "ca.crt", "ca.key", "a.crt", "a.key", "crl.pem"
        }  # fmt: skip
        assert modes(own) == {}

    def test_of_a_hub_to_try_things_out_with(self, tmp_path: Path, umask: None) -> None:
        """Its data directory, and the keys that it makes; its pid file nobody else may write."""
        pid = tmp_path / "hub.pid"
        arguments = ("--listen", "127.0.0.1:0", "--data-dir", tmp_path / "data", "--pid-file", pid)
        with HubProcess(tmp_path / "work", *arguments) as hub:
            hub.address()
            wait_until(lambda: pid.exists() and pid.read_text(), what="the pid file")
            assert modes(tmp_path / "data") == {}
            assert not pid.stat().st_mode & 0o022
            assert hub.stop().status == 0


def fail(_: object) -> None:
    raise ValueError("no")


def federation_audit(hub: Messenger) -> Any:
    return hub._federation._instance.audit  # type: ignore[union-attr] # it runs


# Anything by which others may use a key, or put another one into its place.
OPEN = [0o604, 0o644, 0o606, 0o666, 0o601, 0o660, 0o777]


class TestKeys:
    """A key that others may use is refused, in one line that says what to do."""

    @staticmethod
    def settings(instances: Instances, mode: int) -> dict[str, Any]:
        """Return a hub's configuration whose key has a mode of its own."""
        settings = instances.hub_settings()
        key = instances.directory / "hub.key"
        key.write_bytes(Path(settings["tls"]["key"]).read_bytes())
        key.chmod(mode)
        settings["tls"] |= {"key": str(key)}
        return settings

    @pytest.mark.parametrize("mode", OPEN, ids=oct)
    def test_keep_a_hub_from_starting(self, instances: Instances, mode: int) -> None:
        """Nothing is listened on."""
        settings = self.settings(instances, mode)
        with pytest.raises(ConfigError) as raised:
            Messenger(Config.from_dict(settings)).start()
        assert raised.value.source == settings["tls"]["key"]
        (problem,) = raised.value.problems
        assert problem.startswith(f"tls.key: mode {mode:04o} ")
        assert "chmod 600" in problem

    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440], ids=oct)
    def test_of_the_owner_and_readers_of_its_group(self, instances: Instances, mode: int) -> None:
        """These are taken: a service may read by its group what is another user's."""
        hub = instances.start(self.settings(instances, mode))
        assert hub.hub_addr

    def test_of_a_command(self, instances: Instances, tmp_path: Path) -> None:
        """``keyop-hub`` and ``keyop publish --hub`` say so in one line, and end with 1."""
        settings = self.settings(instances, 0o644)
        files = settings["tls"]
        options = ["--hub", "127.0.0.1:1", "--cert", files["cert"], "--key", files["key"]]
        line = refused(1, "publish", "orders", "1", *options, "--ca", files["ca"])
        assert "mode 0644" in line
        settings["tls"] = files
        config = tmp_path / "hub.yaml"
        config.write_text(repr(settings).replace("True", "true"))
        result = run_hub(tmp_path / "work", "-c", config)
        assert (result.status, result.out) == (1, "")
        assert result.err.count("\n") == 1
        assert "mode 0644" in result.err

    def test_that_come_with_a_reload(
        self, instances: Instances, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The old one stays, which is said and noted; the hub goes on."""
        place = Renamed(tmp_path / "files")
        settings = self.settings(instances, 0o600)
        hub = start(instances, place, settings)
        Path(settings["tls"]["key"]).chmod(0o644)
        settings["hub"]["allowed_peers"] = []
        reread(place, settings)
        assert "mode 0644" in wait_audit(hub, "tls_reload_failed")["detail"]
        assert "mode 0644" in " ".join(said(caplog, "federation.reload", logging.ERROR))
        assert not audit(hub, "policy_reloaded")
        wait_connected(instances.client("alpha", hub))

    def test_of_no_command_are_printed(self, instances: Instances) -> None:
        """What looks into a key shows its public half alone."""
        key = Path(instances.tls("hub")["key"])
        secret = "".join(key.read_text().splitlines()[1:-1])
        shown = keyop("keygen", "inspect", key)
        assert shown.status == 0
        assert secret[:20] not in shown.out + shown.err
