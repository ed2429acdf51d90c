"""``keyop keygen``: certificates made, looked at and taken back."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509

from keyop.clock import SYSTEM_CLOCK
from keyop.config import Config
from keyop.keygen import (
    Authority,
    CertificateInfo,
    create_authority,
    describe_file,
    issue,
    load_authority,
    load_certificate,
)
from tests.fakes.clock import FakeClock
from tests.unit.test_keygen import pem, without_end

from .helpers import KEYOP, ROOT, keyop, refused, well

COMMANDS = [[], ["ca"], ["instance"], ["inspect"], ["revoke"]]
CA = ("--ca", "ca.crt", "--ca-key", "ca.key")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with nothing in it."""
    path = tmp_path / "here"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """A clock that stands still, so that no test ends on another day than it began."""
    clock = FakeClock(time.time_ns() // 10**9 * 10**9)
    monkeypatch.setattr(SYSTEM_CLOCK, "time_ns", clock.time_ns)
    return clock


@pytest.fixture
def ca(here: Path) -> Authority:
    """A CA in ``ca.crt`` and ``ca.key``."""
    well("keygen", "ca")
    return load_authority("ca.crt", "ca.key")


def snapshot(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def day(days: int) -> str:
    """Return the date in so many days."""
    now = datetime.fromtimestamp(SYSTEM_CLOCK.time_ns() / 10**9, timezone.utc)
    return f"{now + timedelta(days=days):%Y-%m-%d}"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(path: list[str]) -> None:
    """Help has an example that begins with the command, and every option explained."""
    out = well("keygen", *path, "--help").out
    assert f"  keyop keygen {' '.join(path)}".rstrip() in out
    assert "Example" in out
    options = out.partition("Options:\n")[2].partition("\nCommands:")[0]
    for line in options.splitlines():
        assert len(line) <= 100
        assert not line.startswith("  -") or len(line.split("  ")) >= 2


def test_the_commands() -> None:
    """The help of the group lists them."""
    commands = well("keygen", "--help").out.partition("Commands:\n")[2]
    assert [line.split()[0] for line in commands.splitlines()] == [
        "ca",
        "inspect",
        "instance",
        "revoke",
    ]
    assert "keygen" in well("--help").out


class TestCa:
    def test_made(self, here: Path) -> None:
        """Two private files, valid for 730 days."""
        assert well("keygen", "ca").out == (
            f"keyop-ca: ca.crt and ca.key, valid until {day(730)}\n"
        )
        assert {path.name for path in here.iterdir()} == {"ca.crt", "ca.key"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in here.iterdir()} == {0o600}
        load_authority("ca.crt", "ca.key")

    def test_where_and_how_long(self, here: Path) -> None:
        """Anywhere, also in a directory that is not there yet."""
        args = ("--out-cert", "certs/a.pem", "--out-key", "certs/b.pem", "--days", 3650)
        assert well("keygen", "ca", *args).out == (
            f"keyop-ca: certs/a.pem and certs/b.pem, valid until {day(3650)}\n"
        )
        load_authority("certs/a.pem", "certs/b.pem")

    @pytest.mark.parametrize("there", ["ca.crt", "ca.key"])
    def test_nothing_is_overwritten(self, here: Path, there: str) -> None:
        """One that is there keeps both from being made; --force replaces it."""
        (here / there).write_bytes(b"mine")
        assert refused(1, "keygen", "ca") == f"{there}: is there already; --force replaces it"
        assert snapshot(here) == {there: b"mine"}
        well("keygen", "ca", "--force")
        load_authority("ca.crt", "ca.key")

    def test_one_file_for_both(self, here: Path) -> None:
        """It would hold only one of them."""
        args = ("--out-cert", "a", "--out-key", "./a")
        assert refused(1, "keygen", "ca", *args) == "a: the certificate and the key need two files"
        assert snapshot(here) == {}

    @pytest.mark.parametrize("days", ["0", "-1", "36501", "x", "1.5"])
    def test_impossible_days(self, here: Path, days: str) -> None:
        """A number out of range is wrong use."""
        assert "--days" in refused(2, "keygen", "ca", "--days", days)
        assert snapshot(here) == {}

    def test_a_file_in_place_of_the_directory(self, here: Path) -> None:
        """One line; nothing is written."""
        (here / "certs").touch()
        assert "certs" in refused(1, "keygen", "ca", "--out-cert", "certs/ca.crt")
        assert snapshot(here) == {"certs": b""}


class TestInstance:
    def test_made(self, here: Path, ca: Authority) -> None:
        """Named after the instance, and never longer than its CA."""
        out = well("keygen", "instance", *CA, "--name", "hub-1.example.org").out
        assert out == (
            "hub-1.example.org: hub-1.example.org.crt and hub-1.example.org.key, "
            f"valid until {day(730)}, when its CA ends\n"
        )
        made = load_certificate("hub-1.example.org.crt")
        made.verify_directly_issued_by(ca.certificate)
        assert made.not_valid_after_utc == ca.certificate.not_valid_after_utc
        assert stat.S_IMODE((here / "hub-1.example.org.key").stat().st_mode) == 0o600

    def test_days(self, ca: Authority) -> None:
        """As many as were asked for, where the CA lasts longer."""
        out = well("keygen", "instance", *CA, "--name", "a", "--days", 30).out
        assert out == f"a: a.crt and a.key, valid until {day(30)}\n"

    def test_hosts(self, ca: Authority) -> None:
        """--san takes the name's place, and tells addresses from names."""
        hosts = ("--san", "hub", "--san", "10.0.0.7", "--san", "*.example.org")
        well("keygen", "instance", *CA, "--name", "hub-1", *hosts)
        assert well("keygen", "inspect", "hub-1.crt", "--json").json["alternative_names"] == [
            "DNS:hub",
            "IP:10.0.0.7",
            "DNS:*.example.org",
        ]

    def test_a_name_that_is_no_host(self, ca: Authority) -> None:
        """It works, with a file name without colons, and what that means is said."""
        result = keyop("keygen", "instance", *CA, "--name", "site:7")
        assert result.status == 0
        assert result.out.startswith("site:7: site_7.crt and site_7.key, ")
        assert result.err == (
            "keyop: site:7 is no host name, so if it is a hub, give --san and what it is dialled "
            "as\n"
        )
        well("keygen", "instance", *CA, "--name", "site:8", "--san", "site")

    @pytest.mark.parametrize(
        ("more", "what"),
        [
            (["--name", "../x"], "instance name: '../x' is not allowed"),
            (["--name", "keyop-ca"], "instance name: 'keyop-ca' is the name of the CA itself"),
            (["--name", "a", "--san", "a b"], "alternative name: 'a b' is neither"),
            (["--name", "ca"], "ca.crt: is needed and not to be replaced"),
            (["--name", "ca", "--force"], "ca.crt: is needed and not to be replaced"),
            (["--name", "a", "--out-key", "./ca.key", "--force"], "./ca.key: is needed and not"),
            (["--name", "a", "--ca-key", "other.key"], "other.key: this is not the key of ca.crt"),
            (["--name", "a", "--ca", "ca.key"], "ca.key: holds a private key, not a certificate"),
            (["--name", "a", "--ca-key", "ca.crt"], "ca.crt: holds a certificate, not a private"),
            (["--name", "a", "--ca", "none"], "none: No such file or directory"),
            (["--name", "a", "--ca", "half"], "half: is damaged: something in it begins and does"),
            (["--name", "a", "--ca", "."], ".: Is a directory"),
            (["--name", "a", "--ca", "old.crt", "--ca-key", "old.key"], "old.crt: the CA ended"),
            (["--name", "a", "--ca", "x.crt", "--ca-key", "x.key"], "x.crt: this is the certific"),
        ],
    )
    def test_refused(self, here: Path, ca: Authority, more: list[str], what: str) -> None:
        """One line, exit status 1, and nothing is written."""
        (here / "other.key").write_bytes(create_authority().key_pem)
        (here / "half").write_bytes((here / "ca.crt").read_bytes()[:300])
        old = create_authority(clock=FakeClock())
        leaf = issue(ca, "x")
        for stem, made in (("old", old), ("x", leaf)):
            (here / f"{stem}.crt").write_bytes(made.certificate_pem)
            (here / f"{stem}.key").write_bytes(made.key_pem)
        before = snapshot(here)
        assert refused(1, "keygen", "instance", *CA, *more).startswith(what)
        assert snapshot(here) == before

    @needs_openssl
    def test_an_encrypted_key(self, here: Path, ca: Authority) -> None:
        """Nobody is asked for a passphrase."""
        encrypt = ["openssl", "pkey", "-in", "ca.key", "-aes128", "-passout", "pass:secret"]
        subprocess.run([*encrypt, "-out", "e.key"], check=True)
        what = refused(1, "keygen", "instance", *CA, "--ca-key", "e.key", "--name", "a")
        assert what.startswith("e.key: the key is encrypted; ")

    @pytest.mark.parametrize("missing", ["--ca", "--ca-key", "--name"])
    def test_what_must_be_given(self, missing: str) -> None:
        """A missing option is wrong use."""
        given = {"--ca": "ca.crt", "--ca-key": "ca.key", "--name": "a"}
        del given[missing]
        args = [each for option in given.items() for each in option]
        assert f"Missing option '{missing}'" in refused(2, "keygen", "instance", *args)

    def test_never_overwritten(self, here: Path, ca: Authority) -> None:
        """A second certificate of the name needs --force."""
        args = ("keygen", "instance", *CA, "--name", "a")
        well(*args)
        before = snapshot(here)
        assert refused(1, *args) == "a.key: is there already; --force replaces it"
        assert snapshot(here) == before
        well(*args, "--force")
        after = snapshot(here)
        assert {name for name in after if after[name] != before[name]} == {"a.crt", "a.key"}

    def test_the_hosts_of_the_one_before(self, here: Path, ca: Authority) -> None:
        """A renewed certificate is dialled as before, unless other hosts are given."""
        args = ("keygen", "instance", *CA, "--name", "a", "--force")
        for own, wanted in (
            (("--san", "10.0.0.7", "--san", "hub.example.org"), ["10.0.0.7", "hub.example.org"]),
            ((), ["10.0.0.7", "hub.example.org"]),
            (("--san", "b"), ["b"]),
        ):
            result = keyop(*args, *own)
            assert result.status == 0
            assert ("as the certificate before" in result.err) == (not own)
            (found,) = describe_file("a.crt")
            assert isinstance(found, CertificateInfo)
            assert [each.partition(":")[2] for each in found.alternative_names] == wanted
        well("keygen", "instance", *CA, "--name", "c", "--out-cert", "c.crt")
        shutil.copy("c.crt", "a.crt")  # another instance's
        well(*args)
        (found,) = describe_file("a.crt")
        assert isinstance(found, CertificateInfo)
        assert found.alternative_names == ("DNS:a",)

    def test_the_commands_of_the_example_configurations(self, here: Path) -> None:
        """What conf/hub.yaml says makes the files that it names."""
        text = (ROOT / "conf" / "hub.yaml").read_text().replace("#", "").replace("\\\n", "")
        lines = [line.removeprefix("   $ ").split() for line in text.splitlines()]
        commands = [words for words in lines if words[:2] == ["keyop", "keygen"]]
        assert len(commands) == 2
        for words in commands:
            well(*words[1:])
        tls = Config.load(ROOT / "conf" / "hub.yaml").tls
        load_certificate(tls.cert).verify_directly_issued_by(load_certificate(tls.ca))
        assert Path(tls.key).exists()

    def test_as_a_process(self, here: Path) -> None:
        """The program itself, with a umask that takes everything away, and no warning."""
        for args in (["ca"], ["instance", *CA, "--name", "a" * 200]):
            done = subprocess.run(
                [KEYOP[0], "-W", "error", KEYOP[1], "keygen", *args],
                umask=0o777,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        modes = {stat.S_IMODE(path.stat().st_mode) for path in here.iterdir()}
        assert (len(snapshot(here)), modes) == (4, {0o600})


class TestInspect:
    def test_a_certificate(self, ca: Authority) -> None:
        """Everything that an operator asks for."""
        well("keygen", "instance", *CA, "--name", "a", "--san", "a", "--san", "::1", "--days", 30)
        lines = well("keygen", "inspect", "a.crt").lines
        assert lines[0] == "certificate"
        shown = dict(line.strip().split(": ", 1) for line in lines[1:])
        shown = {name: value.strip() for name, value in shown.items()}
        assert shown["subject"] == "CN=a"
        assert shown["names"] == "DNS:a, IP:::1"
        assert shown["issuer"] == "CN=keyop-ca"
        assert shown["until"].startswith(day(30))
        assert shown["until"].endswith("UTC (30 days left)")
        assert shown["key"] == "EC P-384"
        assert shown["usages"] == "digitalSignature, serverAuth, clientAuth"
        assert shown["CA"] == "no"
        made = load_certificate("a.crt")
        assert shown["serial"].replace(":", "") == f"{made.serial_number:x}".zfill(
            len(shown["serial"].replace(":", ""))
        )
        assert len(shown["SHA-256"]) == len(shown["public key"]) == 95

    def test_as_json(self, ca: Authority) -> None:
        """One object, moments as RFC 3339."""
        found = well("keygen", "inspect", "ca.crt", "--json").json
        assert " ".join(found) == (
            "type subject common_name alternative_names issuer serial not_before not_after "
            "days_left key_type usages is_ca sha256 public_key_sha256"
        )
        assert found["type"] == "certificate"
        assert (found["common_name"], found["is_ca"], found["days_left"]) == ("keyop-ca", True, 730)
        ends = ca.certificate.not_valid_after_utc
        assert found["not_after"] == f"{ends:%Y-%m-%dT%H:%M:%SZ}"
        assert found["usages"] == ["keyCertSign", "cRLSign"]

    def test_a_key(self, here: Path, ca: Authority) -> None:
        """Its fingerprint is that of its certificate; nothing private is shown."""
        certificate = well("keygen", "inspect", "ca.crt", "--json").json
        assert well("keygen", "inspect", "ca.key", "--json").json == {
            "type": "private key",
            "key_type": "EC P-384",
            "public_key_sha256": certificate["public_key_sha256"],
        }
        assert well("keygen", "inspect", "ca.key").lines == [
            "private key",
            "  key:           EC P-384",
            f"  public key:    {certificate['public_key_sha256']}",
        ]

    def test_several_in_one_file(self, here: Path, ca: Authority) -> None:
        """Each on its own, with an empty line between; as JSON, one object after the other."""
        both = (here / "ca.crt").read_bytes() + (here / "ca.key").read_bytes()
        (here / "both.pem").write_bytes(both)
        lines = well("keygen", "inspect", "both.pem").lines
        assert lines[lines.index("") + 1] == "private key"
        out = well("keygen", "inspect", "both.pem", "--json").out
        first, end = json.JSONDecoder().raw_decode(out)
        assert (first["type"], json.loads(out[end:])["type"]) == ("certificate", "private key")

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0 days left"),
            (1, "ended 0 days ago"),
            (86400, "ended 0 days ago"),
            (86401, "ended 1 day ago"),
            (10 * 86400, "ended 9 days ago"),
        ],
    )
    def test_ended(self, ca: Authority, clock: FakeClock, seconds: int, text: str) -> None:
        """It is said since when."""
        clock.step_wall(730 * 86400 + seconds)
        assert f"({text})" in well("keygen", "inspect", "ca.crt").out

    def test_a_certificate_without_a_purpose(self, here: Path) -> None:
        """One without usages may be used for anything."""
        made = create_authority()
        bare = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(made.certificate.subject)
            .public_key(made.key.public_key())
            .serial_number(1)
            .not_valid_before(datetime(2020, 1, 1))
            .not_valid_after(datetime(2021, 1, 1))
            .sign(made.key, made.certificate.signature_hash_algorithm)  # type: ignore[arg-type]
        )
        (here / "bare.crt").write_bytes(pem(bare))
        out = well("keygen", "inspect", "bare.crt").out
        assert "  names:         none\n" in out
        assert "  usages:        any\n" in out

    def test_a_hostile_name(self, here: Path) -> None:
        """Control characters in a certificate do not reach the terminal."""
        made = create_authority()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "\x1b[31m\u202e")])
        hostile = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(made.key.public_key())
            .serial_number(1)
            .not_valid_before(datetime(2020, 1, 1))
            .not_valid_after(datetime(2021, 1, 1))
            .sign(made.key, made.certificate.signature_hash_algorithm)  # type: ignore[arg-type]
        )
        (here / "hostile.crt").write_bytes(pem(hostile))
        for more in ([], ["--json"]):
            out = well("keygen", "inspect", "hostile.crt", *more).out
            assert "\x1b" not in out
            assert "\u202e" not in out

    def test_refused(self, here: Path) -> None:
        """What is no such file is said in one line; none at all is wrong use."""
        (here / "x").write_bytes(b"hello")
        assert refused(1, "keygen", "inspect", "x") == "x: is not a PEM file"
        assert refused(1, "keygen", "inspect", "y") == "y: No such file or directory"
        assert "Missing argument 'FILE'" in refused(2, "keygen", "inspect")


class TestRevoke:
    @pytest.fixture
    def instances(self, ca: Authority) -> None:
        """The certificates of a and b."""
        for name in "ab":
            well("keygen", "instance", *CA, "--name", name)

    def test_made_and_added_to(self, instances: None) -> None:
        """The list is made, grows, and tells what was there."""
        args = ("keygen", "revoke", *CA, "--crl", "crl.pem")
        assert well(*args, "a.crt").lines == [
            "a.crt: revoked",
            f"crl.pem: 1 revoked certificate, valid until {day(730)}",
        ]
        assert well(*args, "a.crt", "b.crt", "--days", 30).lines == [
            "b.crt: revoked",
            "a.crt: was revoked before",
            f"crl.pem: 2 revoked certificates, valid until {day(30)}",
        ]
        assert well(*args).lines == [f"crl.pem: 2 revoked certificates, valid until {day(730)}"]

    def test_inspected(self, instances: None) -> None:
        """Every serial number, with the time of its revocation."""
        well("keygen", "revoke", *CA, "--crl", "crl.pem", "a.crt", "b.crt")
        found = well("keygen", "inspect", "crl.pem", "--json").json
        assert " ".join(found) == "type issuer not_before not_after days_left sha256 revoked"
        serials = {
            well("keygen", "inspect", f"{name}.crt", "--json").json["serial"] for name in "ab"
        }
        assert {each["serial"] for each in found["revoked"]} == serials
        lines = well("keygen", "inspect", "crl.pem").lines
        assert lines[0] == "revocation list"
        assert "  revoked:       2" in lines
        for serial in serials:
            assert any(line.startswith(f"{'':17}{serial} since 2") for line in lines), lines

    def test_an_empty_list(self, ca: Authority) -> None:
        """It can be made beforehand, so that tls.crl has something to name."""
        well("keygen", "revoke", *CA, "--crl", "crl.pem")
        assert "  revoked:       none" in well("keygen", "inspect", "crl.pem").lines

    def test_a_list_without_an_end(self, here: Path, ca: Authority) -> None:
        """Made elsewhere, it is shown as such."""
        (here / "crl.pem").write_bytes(without_end(ca))
        assert "  until:         no end" in well("keygen", "inspect", "crl.pem").lines
        assert well("keygen", "inspect", "crl.pem", "--json").json["days_left"] is None

    def test_refused(self, here: Path, instances: None) -> None:
        """One line, and the list is as it was."""
        well("keygen", "revoke", *CA, "--crl", "crl.pem", "a.crt")
        before = snapshot(here)
        args = ("keygen", "revoke", *CA, "--crl")
        assert refused(1, *args, "crl.pem", "ca.crt").startswith("ca.crt: this is the CA itself")
        assert refused(1, *args, "crl.pem", "b.key") == (
            "b.key: holds a private key, not a certificate"
        )
        assert refused(1, *args, "ca.crt", "b.crt") == (
            "ca.crt: is needed and not to be replaced; name another file"
        )
        assert refused(1, *args, "b.crt", "b.crt").startswith("b.crt: is needed and not")
        assert refused(1, *args, "b.key") == (
            "b.key: holds a private key, not a list of revoked certificates"
        )
        assert "none" in refused(1, *args, "none/crl.pem", "b.crt")
        assert "Missing option '--crl'" in refused(2, "keygen", "revoke", *CA)
        assert snapshot(here) == before
