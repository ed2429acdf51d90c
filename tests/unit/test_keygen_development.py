"""Certificates for trying things out: there when they are needed, also for two at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from keyop.errors import ConfigError
from keyop.keygen import (
    CertificateFiles,
    CertificateInfo,
    DevelopmentCertificates,
    create_authority,
    describe_file,
    ensure_development_certificates,
    load_authority,
    load_certificate,
    revoke,
)
from tests.fakes.clock import FakeClock
from tests.fakes.faulty import FaultyFs
from tests.unit.test_keygen_files import contents, error_of, mode


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "certs"


def ensure(directory: Path, *names: str, clock: FakeClock) -> DevelopmentCertificates:
    return ensure_development_certificates(str(directory), names, clock)


def info_of(path: str) -> CertificateInfo:
    (info,) = describe_file(path)
    assert isinstance(info, CertificateInfo)
    return info


def check(made: DevelopmentCertificates, clock: FakeClock) -> None:
    """Assert that everything belongs together and is valid now."""
    authority = load_authority(made.ca.cert, made.ca.key, clock)
    for name, files in made.instances.items():
        certificate, key = describe_file(files.cert)[0], describe_file(files.key)[0]
        assert isinstance(certificate, CertificateInfo)
        assert certificate.common_name == name
        assert certificate.public_key_sha256 == key.public_key_sha256  # type: ignore[union-attr]
        load_certificate(files.cert).verify_directly_issued_by(authority.certificate)


def test_from_nothing(directory: Path, clock: FakeClock) -> None:
    """The directory, a CA and a pair for each name are made, all private."""
    made = ensure(directory, "hub", "a:7740", clock=clock)
    assert made == DevelopmentCertificates(
        CertificateFiles(f"{directory}/ca.crt", f"{directory}/ca.key"),
        {
            "hub": CertificateFiles(f"{directory}/hub.crt", f"{directory}/hub.key"),
            "a:7740": CertificateFiles(f"{directory}/a_7740.crt", f"{directory}/a_7740.key"),
        },
    )
    check(made, clock)
    assert mode(directory) == 0o700
    assert {mode(path) for path in directory.iterdir()} == {0o600}
    assert len(list(directory.iterdir())) == 6


def test_hosts(directory: Path, clock: FakeClock) -> None:
    """Each may be dialled on this machine, besides by its name if that is a host's."""
    made = ensure(directory, "hub", "a:7740", "localhost", clock=clock)
    loopback = ("DNS:localhost", "IP:127.0.0.1", "IP:::1")
    found = {name: info_of(files.cert).alternative_names for name, files in made.instances.items()}
    assert found == {"hub": ("DNS:hub", *loopback), "a:7740": loopback, "localhost": loopback}


def test_no_names(directory: Path, clock: FakeClock) -> None:
    """Then there is a CA."""
    made = ensure(directory, clock=clock)
    assert made.instances == {}
    check(made, clock)


def test_the_second_time(directory: Path, clock: FakeClock) -> None:
    """Nothing is touched, but for a name that is new."""
    ensure(directory, "hub", clock=clock)
    before = contents(directory)
    assert ensure(directory, "hub", "hub", clock=clock).instances.keys() == {"hub"}
    assert contents(directory) == before
    check(ensure(directory, "hub", "b", clock=clock), clock)
    after = contents(directory)
    assert after.keys() - before.keys() == {"b.crt", "b.key"}
    assert {name: after[name] for name in before} == before


def test_without_the_key_of_the_ca(directory: Path, clock: FakeClock) -> None:
    """It is needed only while something has to be made."""
    made = ensure(directory, "hub", clock=clock)
    os.unlink(made.ca.key)
    ensure(directory, "hub", clock=clock)
    before = contents(directory)
    with pytest.raises(FileNotFoundError):
        ensure(directory, "hub", "b", clock=clock)
    assert contents(directory) == before


@pytest.mark.parametrize("damage", ["cert", "key", "no cert", "no key", "mixed", "renamed"])
def test_an_instance_that_cannot_be_used(directory: Path, clock: FakeClock, damage: str) -> None:
    """It is made anew; the CA and the others stay."""
    made = ensure(directory, "hub", "other", clock=clock)
    before = contents(directory)
    cert, key = map(Path, made.instances["hub"])
    if damage.startswith("no"):
        (cert if damage == "no cert" else key).unlink()
    elif damage == "mixed":
        key.write_bytes(before["other.key"])
    elif damage == "renamed":
        cert.write_bytes(before["other.crt"])
        key.write_bytes(before["other.key"])
    else:
        (cert if damage == "cert" else key).write_bytes(b"rubbish")
    check(ensure(directory, "hub", "other", clock=clock), clock)
    after = contents(directory)
    assert {name for name in before if after[name] != before[name]} == {"hub.crt", "hub.key"}


def test_a_key_without_its_ca(directory: Path, clock: FakeClock) -> None:
    """What a process leaves that is killed between the two files is replaced."""
    directory.mkdir(parents=True)
    (directory / "ca.key").write_bytes(create_authority().key_pem)
    check(ensure(directory, "hub", clock=clock), clock)


def test_another_ca(directory: Path, clock: FakeClock) -> None:
    """Instances of a CA that was replaced are made anew."""
    ensure(directory, "hub", clock=clock)
    other = create_authority(clock=clock)
    (directory / "ca.crt").write_bytes(other.certificate_pem)
    (directory / "ca.key").write_bytes(other.key_pem)
    check(ensure(directory, "hub", clock=clock), clock)


@pytest.mark.parametrize(("days", "renewed"), [(0, False), (698, False), (699, True), (900, True)])
def test_ended_or_nearly(directory: Path, clock: FakeClock, days: int, renewed: bool) -> None:
    """Everything is renewed a month before it ends."""
    ensure(directory, "hub", clock=clock)
    before = contents(directory)
    clock.advance(timedelta(days=days).total_seconds())
    check(ensure(directory, "hub", clock=clock), clock)
    after = contents(directory)
    assert {after[name] != before[name] for name in before} == {renewed}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".."])
def test_impossible_names(directory: Path, clock: FakeClock, name: str) -> None:
    """Nothing is made, not even for the good ones."""
    with pytest.raises(ConfigError, match="instance name"):
        ensure(directory, "hub", name, clock=clock)
    assert not directory.exists()


@pytest.mark.parametrize(("names", "taken"), [(("ca",), "the CA"), (("a:b", "a_b"), "'a:b'")])
def test_names_with_the_same_files(
    directory: Path, clock: FakeClock, names: tuple[str, ...], taken: str
) -> None:
    """They would overwrite each other, so they are refused."""
    with pytest.raises(ConfigError, match=f"{names[-1]!r} would have the same files as {taken}"):
        ensure(directory, *names, clock=clock)
    assert not directory.exists()


def test_a_damaged_ca(directory: Path, clock: FakeClock) -> None:
    """It is not replaced without a word: somebody may trust it."""
    ensure(directory, "hub", clock=clock)
    (directory / "ca.crt").write_bytes(b"rubbish")
    before = contents(directory)
    with pytest.raises(ConfigError, match=r"ca\.crt: is not a PEM file"):
        ensure(directory, "hub", clock=clock)
    assert contents(directory) == before


def test_a_failure(directory: Path, clock: FakeClock) -> None:
    """Whichever file cannot be written, the next attempt ends well."""
    fs = FaultyFs()
    failures = 0
    while True:
        fs.fail("write", errno.ENOSPC, nth=failures + 1, times=None)
        error = error_of(ensure_development_certificates, str(directory), ["hub"], clock, fs)
        fs.heal()
        if error is None:
            break
        assert error.errno == errno.ENOSPC
        failures += 1
    # Twice for the CA, which stays once it is there, and once for the instance.
    assert failures == 3
    check(ensure(directory, "hub", clock=clock), clock)
    assert fs.open_paths == {}


SCRIPT = """
import sys
from keyop.keygen import ensure_development_certificates
print("ready", flush=True)
sys.stdin.readline()
ensure_development_certificates(sys.argv[1], sys.argv[2:])
"""


def test_several_processes_at_once(directory: Path) -> None:
    """One CA comes of it, and every pair is of it."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(directory), "hub", f"own-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in started:
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, b"")
    names = ["hub", *(f"own-{number}" for number in range(4))]
    before = contents(directory)
    made = ensure_development_certificates(str(directory), names)
    assert contents(directory) == before
    assert len(before) == 12
    revoke(
        load_authority(*made.ca), f"{directory}/crl.pem", [f.cert for f in made.instances.values()]
    )
