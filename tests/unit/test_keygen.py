"""Certificates like those of v0.11.0, refused with one clear error where they cannot be made."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import shutil
import ssl
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.errors import ConfigError
from keyop.keygen import (
    MAX_DAYS,
    Authority,
    CertificateInfo,
    Issued,
    KeyInfo,
    RevocationListInfo,
    alternative_names,
    create_authority,
    describe_file,
    file_stem,
    issue,
    load_authority,
    load_certificate,
    revoke,
)
from keyop.keygen.description import serial_text
from keyop.keygen.pem import MAX_PEM_BYTES, load_certificates, load_key
from keyop.names import MAX_ID_BYTES
from tests.fakes.clock import FakeClock
from tests.fakes.faulty import FaultyFs

ROOT = Path(__file__).parents[2]
GOLDEN = Path(os.environ.get("KEYOP_GOLDEN") or ROOT.parent / "shared" / "golden") / "certs"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the recorded v0.11.0 data is not there (set KEYOP_GOLDEN)"
)
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")

NOW = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
DAY = timedelta(days=1)
PKCS8 = (Encoding.PEM, PrivateFormat.PKCS8)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def as_authority(made: Issued) -> Authority:
    return Authority(made.certificate, made.key)


@pytest.fixture
def authority(clock: FakeClock) -> Authority:
    return as_authority(create_authority(clock=clock))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


class Files:
    """Files of a CA, ``ca.crt`` and ``ca.key``, and whatever else a test writes beside them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cert, self.key = str(directory / "ca.crt"), str(directory / "ca.key")

    def write(self, name: str, data: bytes) -> str:
        path = self.directory / name
        path.write_bytes(data)
        return str(path)

    def write_pair(self, stem: str, made: Issued) -> str:
        self.write(f"{stem}.key", made.key_pem)
        return self.write(f"{stem}.crt", made.certificate_pem)

    def authority(self, days: int = 730, clock: Clock = SYSTEM_CLOCK) -> Authority:
        made = create_authority(days, clock)
        self.write_pair("ca", made)
        return as_authority(made)

    def openssl(self, *args: str) -> str:
        done = subprocess.run(
            ["openssl", *args], cwd=self.directory, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def refused(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Make a call that must fail with one problem; return it with its source."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert len(caught.value.problems) == 1
    return f"{caught.value.source}: {caught.value.problems[0]}"


def names_of(certificate: x509.Certificate) -> list[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


def own_authority(
    key: Any,
    *,
    subject: x509.Name | None = None,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (
        (x509.BasicConstraints(True, None), True),
    ),
    start: timedelta = -DAY,
    digest: hashes.HashAlgorithm | None = None,
) -> x509.Certificate:
    """Return a certificate that signed itself, made otherwise than keygen does."""
    name = subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other-ca")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.now(timezone.utc) + start)
        .not_valid_after(datetime.now(timezone.utc) + 30 * DAY)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, digest)


def pem(owner: Any) -> bytes:
    if isinstance(owner, x509.Certificate):
        return owner.public_bytes(Encoding.PEM)
    return owner.private_bytes(*PKCS8, NoEncryption())


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def without_end(authority: Authority) -> bytes:
    """Return a list that never ends, which cryptography would not make, as PEM."""
    oid = bytes.fromhex("06082a8648ce3d040303")  # ecdsa-with-SHA384
    algorithm = der(0x30, oid)
    content = der(0x02, b"\1") + algorithm + authority.certificate.subject.public_bytes()
    signed = der(0x30, content + der(0x17, b"200101000000Z"))
    assert isinstance(authority.key, ec.EllipticCurvePrivateKey)
    signature = authority.key.sign(signed, ec.ECDSA(hashes.SHA384()))
    text = base64.encodebytes(der(0x30, signed + algorithm + der(0x03, b"\0" + signature)))
    return b"-----BEGIN X509 CRL-----\n" + text + b"-----END X509 CRL-----\n"


class TestLikeV0110:
    """Compared with what was recorded, but for keys, times, serial numbers and signatures."""

    @staticmethod
    def shape(certificate: x509.Certificate) -> list[object]:
        """Return all extensions in their order, without the key's own digest."""
        return [
            (
                each.oid,
                each.critical,
                None
                if isinstance(each.value, (x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier))
                else each.value,
            )
            for each in certificate.extensions
        ]

    @needs_golden
    def test_the_ca(self, authority: Authority) -> None:
        """Name, version, algorithm, extensions with their order and criticality are the same."""
        ours, theirs = authority.certificate, load_certificate(str(GOLDEN / "ca.crt"))
        assert self.shape(ours) == self.shape(theirs)
        assert (ours.subject, ours.issuer) == (theirs.subject, theirs.issuer)
        assert ours.version == theirs.version
        assert ours.signature_algorithm_oid == theirs.signature_algorithm_oid
        # The digest of the key is computed in the same way.
        own = x509.SubjectKeyIdentifier.from_public_key(theirs.public_key())
        kind = x509.SubjectKeyIdentifier
        assert theirs.extensions.get_extension_for_class(kind).value == own

    @needs_golden
    @pytest.mark.parametrize("name", ["client1", "eph1", "localhost", "hub-1.example.org"])
    def test_an_instance(self, authority: Authority, clock: FakeClock, name: str) -> None:
        """Likewise, and its one alternative name is its name."""
        ours = issue(authority, name, clock=clock).certificate
        theirs = load_certificate(str(GOLDEN / f"{name}.crt"))
        assert self.shape(ours) == self.shape(theirs)
        assert (ours.subject, ours.issuer) == (theirs.subject, theirs.issuer)
        assert ours.signature_algorithm_oid == theirs.signature_algorithm_oid

    @needs_golden
    @needs_openssl
    @pytest.mark.parametrize("name", ["ca", "client1"])
    def test_as_openssl_prints_it(self, files: Files, name: str) -> None:
        """From the key on, the dump is the same, digits of keys and signatures apart."""
        authority = files.authority()
        if name != "ca":
            files.write_pair(name, issue(authority, name))
        ours = files.openssl("x509", "-in", f"{name}.crt", "-noout", "-text")
        theirs = (GOLDEN / f"{name}.crt.txt").read_text()

        def comparable(dump: str) -> str:
            dump = dump[dump.index("Subject Public Key Info") :]
            return re.sub(r"\s*([0-9A-Fa-f]{2}:?)+$", "", dump, flags=re.MULTILINE)

        assert comparable(ours) == comparable(theirs)

    @needs_golden
    def test_the_name_of_the_ca_is_copied_to_the_byte(self, files: Files) -> None:
        """v0.11.0 writes it as another type of string than keyop, and compares bytes."""
        subject = load_certificate(str(GOLDEN / "ca.crt")).subject
        key = ec.generate_private_key(ec.SECP384R1())
        theirs = own_authority(key, subject=subject, digest=hashes.SHA384())
        files.write_pair("ca", Issued(theirs, key))
        ours = issue(load_authority(files.cert, files.key), "a")
        assert ours.certificate.issuer.public_bytes() == subject.public_bytes()
        assert subject.public_bytes() != create_authority().certificate.subject.public_bytes()

    def test_keys(self, authority: Authority, clock: FakeClock) -> None:
        """P-384, in the form of PEM that v0.11.0 reads; each certificate has its own."""
        made = [issue(authority, "a", clock=clock) for _ in range(2)]
        for each in made:
            assert isinstance(each.key.curve, ec.SECP384R1)
            assert each.key_pem.startswith(b"-----BEGIN EC PRIVATE KEY-----\n")
            assert each.certificate.public_key() == each.key.public_key()
        assert made[0].key_pem != made[1].key_pem
        assert made[0].certificate.serial_number != made[1].certificate.serial_number


class TestValidity:
    def test_backdated(self, clock: FakeClock) -> None:
        """Valid from five minutes ago, for clocks that are behind, for 730 days from now."""
        made = create_authority(clock=clock).certificate
        assert made.not_valid_before_utc == NOW - timedelta(minutes=5)
        assert made.not_valid_after_utc == NOW + 730 * DAY

    def test_days(self, authority: Authority, clock: FakeClock) -> None:
        """As many as were asked for."""
        made = issue(authority, "a", days=7, clock=clock).certificate
        assert made.not_valid_after_utc == NOW + 7 * DAY

    @pytest.mark.parametrize("days", [0, -1, MAX_DAYS + 1])
    def test_impossible_days(self, authority: Authority, days: int) -> None:
        """They are refused."""
        for call in (lambda: create_authority(days), lambda: issue(authority, "a", days=days)):
            assert refused(call) == f"days: {days} is not allowed; use 1 to 36500"

    def test_never_longer_than_the_ca(self, clock: FakeClock) -> None:
        """A certificate that would outlive its CA ends with it."""
        authority = as_authority(create_authority(10, clock))
        clock.advance(9 * 86400)
        made = issue(authority, "a", clock=clock).certificate
        assert made.not_valid_after_utc == authority.certificate.not_valid_after_utc
        assert made.not_valid_before_utc == NOW + 9 * DAY - timedelta(minutes=5)

    def test_never_before_the_ca(self, authority: Authority, clock: FakeClock) -> None:
        """It does not begin before its CA does."""
        clock.step_wall(-60)
        made = issue(authority, "a", clock=clock).certificate
        assert made.not_valid_before_utc == authority.certificate.not_valid_before_utc


class TestNames:
    @pytest.mark.parametrize(
        ("name", "hosts", "expected"),
        [
            ("hub-1.example.org", (), ["hub-1.example.org"]),
            ("under_score", (), ["under_score"]),
            ("7", (), ["7"]),
            ("127.0.0.1", (), ["127.0.0.1"]),
            ("::1", (), ["::1"]),
            ("a" * 63, (), ["a" * 63]),
            ("hub", ("a.example", "*.b.example", "10.0.0.7", "fe80::1", "a.example"), None),
        ],
    )
    def test_hosts(self, name: str, hosts: tuple[str, ...], expected: list[str] | None) -> None:
        """Those that are given, each once, else the name itself; addresses are told apart."""
        found = alternative_names(name, hosts)
        assert [str(each.value) for each in found] == (expected or list(hosts)[:4])
        for each in found:
            assert isinstance(each, (x509.DNSName, x509.IPAddress))
            is_address = isinstance(each.value, (ipaddress.IPv4Address, ipaddress.IPv6Address))
            assert is_address == isinstance(each, x509.IPAddress)

    @pytest.mark.parametrize(
        "name",
        ["a:7740", "a..b", "a.", "-a", "a-", "a" * 64, "1.2.3.456", ".".join(["a" * 60] * 3) + "."],
    )
    def test_a_name_that_is_no_host(
        self, authority: Authority, clock: FakeClock, name: str
    ) -> None:
        """It is the common name as it stands, and there is no alternative name."""
        made = issue(authority, name, clock=clock).certificate
        assert describe(made).common_name == name
        assert describe(made).alternative_names == ()

    @pytest.mark.parametrize(
        "host",
        [
            *("", "a b", "a\n", "müller.example", "a/b", "*", "*.org", "a.*.b", "x" * 64),
            *("a." * 130 + "a", "[::1]", "10.0.0.0/8", "fe80::1%eth0", "1.2.3.4:7740", "300.1.1.1"),
        ],
    )
    def test_impossible_hosts(self, host: str) -> None:
        """One that was asked for is refused rather than left out."""
        assert refused(alternative_names, "hub", ("good", host)).startswith(
            f"alternative name: {host[:80]!r} is neither a DNS name nor an IP address; "
        )

    @pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a b", "ü", "a\0", "x" * 238])
    def test_impossible_names(self, authority: Authority, name: str) -> None:
        """What is no instance name becomes neither a certificate nor a file name."""
        assert refused(issue, authority, name).startswith("instance name: ")
        assert refused(file_stem, name).startswith("instance name: ")

    def test_the_name_of_the_ca(self, authority: Authority) -> None:
        """It is the CA's: verifiers would think that the certificate signed itself."""
        assert "is the name of the CA itself" in refused(issue, authority, "keyop-ca")

    @pytest.mark.parametrize("length", [64, 65, MAX_ID_BYTES])
    def test_long_names(self, files: Files, length: int) -> None:
        """As long as an instance name may be, without a warning, and read back the same."""
        name = ("a" * 50 + ".") * 5
        name = name[: length - 1] + "z"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            path = files.write_pair("a", issue(files.authority(), name))
            (info,) = describe_file(path)
        assert isinstance(info, CertificateInfo)
        assert info.common_name == name
        assert info.alternative_names == (f"DNS:{name}",)
        if shutil.which("openssl"):
            assert files.openssl("verify", "-CAfile", "ca.crt", "a.crt") == "a.crt: OK\n"

    @pytest.mark.parametrize(
        ("name", "stem"),
        [
            ("hub-1.example.org", "hub-1.example.org"),
            ("a:7740", "a_7740"),
            ("::1", "__1"),
            ("-rf", "_rf"),
            (".hidden", "_hidden"),
            ("...", "_.."),
        ],
    )
    def test_file_stems(self, name: str, stem: str) -> None:
        """Colons, and beginnings that hide a file or look like an option, become underscores."""
        assert file_stem(name) == stem


class TestChains:
    @needs_openssl
    def test_openssl_verifies(self, files: Files) -> None:
        """The chain is valid strictly, as a server's and as a client's."""
        authority = files.authority()
        files.write_pair("a", issue(authority, "a.example", ("a.example", "10.0.0.7")))
        for more in (
            ("-purpose", "sslserver", "-verify_hostname", "a.example"),
            ("-purpose", "sslclient", "-verify_ip", "10.0.0.7"),
        ):
            verify = ("verify", "-x509_strict", "-CAfile", "ca.crt", *more)
            assert files.openssl(*verify, "a.crt") == "a.crt: OK\n"

    @pytest.mark.parametrize("host", ["hub.example", "127.0.0.1", "::1"])
    def test_both_sides_of_a_connection(self, files: Files, host: str) -> None:
        """Two instances accept each other over TLS 1.3, and the client finds the host."""
        authority = files.authority()
        for name, hosts in (("hub", ("hub.example", "127.0.0.1", "::1")), ("client", ())):
            files.write_pair(name, issue(authority, name, hosts))
        contexts = {}
        for name, purpose in (
            ("hub", ssl.Purpose.CLIENT_AUTH),
            ("client", ssl.Purpose.SERVER_AUTH),
        ):
            context = ssl.create_default_context(purpose, cafile=files.cert)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            pair = (str(files.directory / f"{name}.{suffix}") for suffix in ("crt", "key"))
            context.load_cert_chain(*pair)
            contexts[name] = context
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = contexts["client"].wrap_bio(down, up, server_hostname=host)
        hub = contexts["hub"].wrap_bio(up, down, server_side=True)
        open_sides = [client, hub]
        for _ in range(5):
            for side in list(open_sides):
                try:
                    side.do_handshake()
                    open_sides.remove(side)
                except ssl.SSLWantReadError:
                    pass
        assert open_sides == []
        assert hub.getpeercert()["subject"] == ((("commonName", "client"),),)


class TestLoadAuthority:
    def test_good(self, files: Files) -> None:
        """What was written is read back."""
        made = files.authority()
        found = load_authority(files.cert, files.key)
        assert found.certificate == made.certificate
        assert pem(found.key) == pem(made.key)

    def test_several_certificates(self, files: Files) -> None:
        """Of a bundle, that of the key counts, wherever it stands."""
        made = files.authority()
        other = create_authority().certificate_pem
        files.write("ca.crt", other + made.certificate.public_bytes(Encoding.PEM) + other)
        assert load_authority(files.cert, files.key).certificate == made.certificate

    @pytest.mark.parametrize("kind", ["rsa", "ed25519", "p256"])
    def test_other_kinds_of_keys(self, files: Files, kind: str) -> None:
        """A CA that was made elsewhere signs too."""
        key: Any
        if kind == "rsa":
            key = rsa.generate_private_key(65537, 2048)
        elif kind == "p256":
            key = ec.generate_private_key(ec.SECP256R1())
        else:
            key = ed25519.Ed25519PrivateKey.generate()
        digest = None if kind == "ed25519" else hashes.SHA256()
        files.write("ca.crt", pem(own_authority(key, digest=digest)))
        files.write("ca.key", pem(key))
        authority = load_authority(files.cert, files.key)
        path = files.write_pair("a", issue(authority, "a"))
        load_certificate(path).verify_directly_issued_by(authority.certificate)
        revoke(authority, str(files.directory / "crl.pem"), [path])
        if shutil.which("openssl"):
            assert files.openssl("verify", "-CAfile", "ca.crt", "a.crt") == "a.crt: OK\n"

    def test_a_key_that_cannot_sign(self, files: Files) -> None:
        """It is refused."""
        files.authority()
        path = files.write("x.key", pem(x25519.X25519PrivateKey.generate()))
        assert refused(load_authority, files.cert, path) == (
            f"{path}: a key of this kind cannot sign certificates"
        )

    def test_the_key_of_another(self, files: Files) -> None:
        """It is refused."""
        files.authority()
        path = files.write("other.key", create_authority().key_pem)
        assert refused(load_authority, files.cert, path) == (
            f"{path}: this is not the key of {files.cert}"
        )

    def test_an_instance(self, files: Files) -> None:
        """It cannot sign."""
        path = files.write_pair("a", issue(files.authority(), "a"))
        assert refused(load_authority, path, path.replace("crt", "key")) == (
            f"{path}: this is the certificate of an instance, not of a CA"
        )

    @pytest.mark.parametrize("extra", [(), ((x509.BasicConstraints(False, None), True),)])
    def test_no_ca(self, files: Files, extra: tuple[tuple[x509.ExtensionType, bool], ...]) -> None:
        """A certificate that signed itself is no CA if it does not say so."""
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = own_authority(key, extensions=extra, digest=hashes.SHA384())
        files.write_pair("ca", Issued(certificate, key))
        assert "not of a CA" in refused(load_authority, files.cert, files.key)

    @pytest.mark.parametrize("usage", ["key_cert_sign", "crl_sign"])
    def test_a_ca_that_may_not_sign(self, files: Files, usage: str) -> None:
        """Its key usage must allow certificates and lists."""
        names = "digital_signature content_commitment key_encipherment data_encipherment"
        names += " key_agreement encipher_only decipher_only key_cert_sign crl_sign"
        usages = dict.fromkeys(names.split(), False)
        usages["crl_sign" if usage == "key_cert_sign" else "key_cert_sign"] = True
        key = ec.generate_private_key(ec.SECP384R1())
        extensions = (
            (x509.BasicConstraints(True, None), True),
            (x509.KeyUsage(**usages), True),
        )
        certificate = own_authority(key, extensions=extensions, digest=hashes.SHA384())
        files.write_pair("ca", Issued(certificate, key))
        assert "may not sign" in refused(load_authority, files.cert, files.key)

    def test_ended(self, files: Files, clock: FakeClock) -> None:
        """A CA signs up to its last second."""
        files.authority(1, clock)
        clock.advance(86400)
        load_authority(files.cert, files.key, clock)
        clock.advance(1)
        assert refused(load_authority, files.cert, files.key, clock) == (
            f"{files.cert}: the CA ended on 2023-11-15; make a new one, and new certificates"
        )

    def test_not_valid_yet(self, files: Files, clock: FakeClock) -> None:
        """Nor does one sign before its first."""
        files.authority(1, clock)
        clock.step_wall(-301)
        assert refused(load_authority, files.cert, files.key, clock) == (
            f"{files.cert}: the CA is not valid before 2023-11-14 22:08 UTC; is the clock right?"
        )


def encrypted(key: Any, form: PrivateFormat) -> bytes:
    data: bytes = key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"secret"))
    return data


class TestReading:
    @pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
    def test_encrypted(self, files: Files, form: PrivateFormat) -> None:
        """Nobody is asked for a passphrase; the error says what to do."""
        path = files.write("a.key", encrypted(create_authority().key, form))
        assert refused(load_key, path).startswith(f"{path}: the key is encrypted; ")

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (b"", "is not a PEM file"),
            (b"\0" * 100, "is not a PEM file"),
            (b"-----BEGIN CERTIFICATE-----\nMIIB", "is damaged: something in it begins"),
            (b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "the certificate"),
            (b"-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n", "the certificate is"),
            (b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n", "the list of revoked"),
            (b"-----BEGIN EC PRIVATE KEY-----\nMIIB\n-----END EC PRIVATE KEY-----\n", "the key is"),
            (b"-----BEGIN DH PARAMETERS-----\n\n-----END DH PARAMETERS-----\n", "holds a PEM DH"),
        ],
    )
    def test_damaged(self, files: Files, data: bytes, problem: str) -> None:
        """Whatever is wrong with a file, there is one error that names it."""
        path = files.write("x.pem", data)
        assert refused(describe_file, path).startswith(f"{path}: {problem}")

    @pytest.mark.parametrize("label", ["CERTIFICATE", "X509 CRL", "EC PRIVATE KEY"])
    def test_every_damaged_byte(self, files: Files, label: str) -> None:
        """With any byte altered, a file is read, or refused with that one error."""
        authority = files.authority()
        done = revoke(authority, str(files.directory / "crl.pem"), [])
        good = {
            "CERTIFICATE": authority.certificate.public_bytes(Encoding.DER),
            "X509 CRL": done.listing.public_bytes(Encoding.DER),
            "EC PRIVATE KEY": authority.key.private_bytes(
                Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()
            ),
        }[label]
        refusals = 0
        for position in range(len(good)):
            damaged = bytearray(good)
            damaged[position] ^= 0xFF
            text = base64.encodebytes(damaged).decode()
            path = files.write(
                "x.pem", f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()
            )
            try:
                describe_file(path)
            except ConfigError:
                refusals += 1
        assert refusals > len(good) // 10

    def test_huge(self, files: Files) -> None:
        """A file that cannot be one of keyop's is not taken into memory."""
        path = files.write("x.pem", b"")
        os.truncate(path, MAX_PEM_BYTES + 1)
        assert refused(describe_file, path) == f"{path}: has more than 16 MiB, so it is not read"

    def test_missing(self, files: Files) -> None:
        """The system's own error, which names the file."""
        with pytest.raises(FileNotFoundError) as caught:
            load_authority(files.cert, files.key)
        assert caught.value.filename == files.cert

    @pytest.mark.parametrize(
        ("load", "data", "problem"),
        [
            (load_certificate, "key", "holds a private key, not a certificate"),
            (load_key, "cert", "holds a certificate, not a private key"),
            (load_key, "public", "holds a public key, not a private key"),
        ],
    )
    def test_another_kind(
        self, files: Files, load: Callable[..., object], data: str, problem: str
    ) -> None:
        """What was mixed up is said."""
        made = create_authority()
        public = made.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        held = {"key": made.key_pem, "cert": made.certificate_pem, "public": public}
        path = files.write("x.pem", held[data])
        assert refused(load, path) == f"{path}: {problem}"

    def test_parameters_before_a_key(self, files: Files) -> None:
        """OpenSSL puts a block of its own there; and Windows ends lines in its own way."""
        made = create_authority()
        parameters = b"-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n"
        path = files.write("x.key", (parameters + made.key_pem).replace(b"\n", b"\r\n"))
        assert pem(load_key(path)) == pem(made.key)

    def test_text_around_blocks(self, files: Files) -> None:
        """It is passed over, as OpenSSL does."""
        made = create_authority().certificate_pem
        path = files.write("x.pem", b"Certificate:\n  Data\n" + made + b"more\n" + made)
        assert len(load_certificates(path)) == 2


def describe(certificate: x509.Certificate, clock: Clock = SYSTEM_CLOCK) -> CertificateInfo:
    """Return what is told of a certificate, by way of a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate.public_bytes(Encoding.PEM))
        file.flush()
        (info,) = describe_file(file.name, clock)
    assert isinstance(info, CertificateInfo)
    return info


class TestDescribe:
    def test_a_ca(self, files: Files, clock: FakeClock) -> None:
        """Everything that is in it."""
        made = files.authority(10, clock).certificate
        (info,) = describe_file(files.cert, clock)
        assert isinstance(info, CertificateInfo)
        assert (info.type, info.subject, info.issuer) == (
            "certificate",
            "CN=keyop-ca",
            "CN=keyop-ca",
        )
        assert (info.common_name, info.alternative_names) == ("keyop-ca", ())
        assert (info.not_before, info.not_after) == (NOW - timedelta(minutes=5), NOW + 10 * DAY)
        assert info.days_left == 10
        assert (info.key_type, info.is_ca) == ("EC P-384", True)
        assert info.usages == ("keyCertSign", "cRLSign")
        assert info.sha256.replace(":", "").lower() == made.fingerprint(hashes.SHA256()).hex()

    def test_an_instance_and_its_key(self, files: Files, clock: FakeClock) -> None:
        """The key has the fingerprint that its certificate says, and shows nothing else."""
        authority = files.authority(clock=clock)
        made = issue(authority, "a", ("a", "10.0.0.7", "::1"), clock=clock)
        path = files.write("both.pem", made.certificate_pem + made.key_pem)
        info, key = describe_file(path, clock)
        assert isinstance(info, CertificateInfo)
        assert info.alternative_names == ("DNS:a", "IP:10.0.0.7", "IP:::1")
        assert info.usages == ("digitalSignature", "serverAuth", "clientAuth")
        assert not info.is_ca
        assert key == KeyInfo("EC P-384", info.public_key_sha256)

    @needs_openssl
    def test_as_openssl_prints_it(self, files: Files) -> None:
        """Serial number and fingerprint can be searched for in its output."""
        files.authority()
        (info,) = describe_file(files.cert)
        assert isinstance(info, CertificateInfo)
        told = files.openssl("x509", "-in", "ca.crt", "-noout", "-text", "-fingerprint", "-sha256")
        assert f"Fingerprint={info.sha256}\n" in told
        assert f" {info.serial}\n" in told

    @pytest.mark.parametrize(
        ("number", "text"),
        [(0, "00"), (1, "01"), (0x80, "80"), (0x1F4B0, "01:f4:b0"), (-0x1F4, "-01:f4")],
    )
    def test_serial_numbers(self, number: int, text: str) -> None:
        """Whole bytes in hexadecimal; negative ones, which nobody should make, with a sign."""
        assert serial_text(number) == text

    @pytest.mark.parametrize(
        ("seconds", "days"),
        [(0, 10), (1, 9), (864_000, 0), (864_001, -1), (950_400, -1), (950_401, -2)],
    )
    def test_days_left(self, clock: FakeClock, seconds: float, days: int) -> None:
        """Whole days, rounded down; negative once it has ended."""
        made = create_authority(10, clock).certificate
        clock.advance(seconds)
        assert describe(made, clock).days_left == days

    def test_other_certificates(self) -> None:
        """What keyop does not make itself is named as far as it has a name."""
        key = rsa.generate_private_key(65537, 2048)
        names = [
            x509.UniformResourceIdentifier("spiffe://a"),
            x509.RFC822Name("a@example.org"),
            x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d")])),
        ]
        usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.2.3.4")])
        made = own_authority(
            key,
            subject=x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o")]),
            extensions=((x509.SubjectAlternativeName(names), False), (usage, False)),
            digest=hashes.SHA256(),
        )
        info = describe(made)
        assert (info.subject, info.common_name) == ("O=o", "")
        assert info.alternative_names == (
            "URI:spiffe://a",
            "RFC822Name:a@example.org",
            "DirectoryName:<Name(CN=d)>",
        )
        assert (info.usages, info.key_type, info.is_ca) == (("1.2.3.4",), "RSA 2048", False)

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
            (ec.generate_private_key(ec.SECP256R1()), "EC P-256"),
            (ec.generate_private_key(ec.SECP256K1()), "EC secp256k1"),
            (x25519.X25519PrivateKey.generate(), "X25519"),
        ],
    )
    def test_other_keys(self, files: Files, key: Any, text: str) -> None:
        """The algorithm's name."""
        (info,) = describe_file(files.write("x.key", pem(key)))
        assert isinstance(info, KeyInfo)
        assert info.key_type == text


class TestRevoke:
    @pytest.fixture
    def crl(self, files: Files) -> str:
        return str(files.directory / "crl.pem")

    @staticmethod
    def listed(crl: str) -> RevocationListInfo:
        (info,) = describe_file(crl)
        assert isinstance(info, RevocationListInfo)
        return info

    def test_a_new_list(self, files: Files, crl: str, clock: FakeClock) -> None:
        """It is made, private, backdated, and ends after 730 days."""
        authority = files.authority(clock=clock)
        path = files.write_pair("a", issue(authority, "a", clock=clock))
        done = revoke(authority, crl, [path], clock=clock)
        assert (done.revoked, done.known) == ((path,), ())
        (info,) = describe_file(crl, clock)
        assert isinstance(info, RevocationListInfo)
        assert (info.type, info.issuer) == ("revocation list", "CN=keyop-ca")
        assert (info.not_before, info.not_after) == (NOW - timedelta(minutes=5), NOW + 730 * DAY)
        assert info.days_left == 730
        assert [each.serial for each in info.revoked] == [
            serial_text(load_certificate(path).serial_number)
        ]
        assert info.revoked[0].revoked_at == NOW
        assert os.stat(crl).st_mode & 0o777 == 0o600

    def test_adding(self, files: Files, crl: str, clock: FakeClock) -> None:
        """What was revoked stays so, with its date; once is enough; the number goes up."""
        authority = files.authority(clock=clock)
        paths = [files.write_pair(name, issue(authority, name, clock=clock)) for name in "abc"]
        revoke(authority, crl, paths[:1], clock=clock)
        clock.advance(60)
        done = revoke(authority, crl, paths, days=5, clock=clock)
        assert (done.revoked, done.known) == (tuple(paths[1:]), (paths[0],))
        info = self.listed(crl)
        assert info.not_after == NOW + timedelta(seconds=60) + 5 * DAY
        since = {each.serial: each.revoked_at for each in info.revoked}
        assert len(since) == 3
        first = serial_text(load_certificate(paths[0]).serial_number)
        assert since.pop(first) == NOW
        assert set(since.values()) == {NOW + timedelta(seconds=60)}
        number = done.listing.extensions.get_extension_for_class(x509.CRLNumber).value
        assert number.crl_number == 2

    def test_the_same_twice_in_one_call(self, files: Files, crl: str) -> None:
        """By one path or two, it is on the list once."""
        authority = files.authority()
        path = files.write_pair("a", issue(authority, "a"))
        copy = files.write("copy.crt", Path(path).read_bytes())
        revoke(authority, crl, [path, copy, path])
        assert len(self.listed(crl).revoked) == 1

    def test_signing_anew(self, files: Files, crl: str, clock: FakeClock) -> None:
        """Without a certificate the list is made, or only lasts longer."""
        authority = files.authority(clock=clock)
        revoke(authority, crl, [], days=1, clock=clock)
        clock.advance(86400)
        revoke(authority, crl, [], days=1, clock=clock)
        assert self.listed(crl).not_after == NOW + 2 * DAY
        assert self.listed(crl).revoked == ()

    @needs_openssl
    def test_openssl_obeys(self, files: Files, crl: str) -> None:
        """What is on the list is refused, and nothing else."""
        authority = files.authority()
        paths = [files.write_pair(name, issue(authority, name)) for name in "ab"]
        revoke(authority, crl, paths[:1])
        check = ("verify", "-crl_check", "-CRLfile", "crl.pem", "-CAfile", "ca.crt")
        assert files.openssl(*check, "b.crt") == "b.crt: OK\n"
        with pytest.raises(AssertionError, match="certificate revoked"):
            files.openssl(*check, "a.crt")
        dump = files.openssl("crl", "-in", "crl.pem", "-noout", "-text")
        assert "X509v3 Authority Key Identifier" in dump

    def test_lists_that_were_made_elsewhere(self, files: Files, crl: str) -> None:
        """Without a number they are gone on with; what an entry says of its reason stays."""
        authority = files.authority()
        reason = x509.CRLReason(x509.ReasonFlags.key_compromise)
        entry = x509.RevokedCertificateBuilder().serial_number(77).revocation_date(NOW)
        theirs = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.certificate.subject)
            .last_update(NOW)
            .next_update(NOW + DAY)
            .add_revoked_certificate(entry.add_extension(reason, False).build())
            .sign(authority.key, hashes.SHA384())
        )
        files.write("crl.pem", theirs.public_bytes(Encoding.PEM))
        listing = revoke(authority, crl, []).listing
        found = listing.get_revoked_certificate_by_serial_number(77)
        assert found is not None
        assert found.extensions.get_extension_for_class(x509.CRLReason).value == reason
        number = listing.extensions.get_extension_for_class(x509.CRLNumber).value
        assert number.crl_number == 1

    def test_a_list_without_an_end(self, files: Files, crl: str) -> None:
        """It gets one."""
        authority = files.authority()
        files.write("crl.pem", without_end(authority))
        assert self.listed(crl).not_after is None
        assert self.listed(crl).days_left is None
        revoke(authority, crl, [])
        assert self.listed(crl).not_after is not None

    def test_refused(self, files: Files, crl: str) -> None:
        """The CA itself, a certificate or a list of another CA; then nothing is written."""
        authority = files.authority()
        good = files.write_pair("a", issue(authority, "a"))
        stranger = as_authority(create_authority())
        other = files.write_pair("b", issue(stranger, "b"))
        assert refused(revoke, authority, crl, [good, files.cert]) == (
            f"{files.cert}: this is the CA itself, which cannot revoke its own certificate"
        )
        assert refused(revoke, authority, crl, [good, other]) == (
            f"{other}: the certificate was not issued by this CA"
        )
        assert refused(revoke, authority, crl, [good], days=0).startswith("days: 0 is not")
        assert not os.path.exists(crl)
        revoke(stranger, crl, [other])
        before = Path(crl).read_bytes()
        assert refused(revoke, authority, crl, [good]) == (
            f"{crl}: this list was not signed by this CA"
        )
        assert Path(crl).read_bytes() == before
        files.write("crl.pem", b"rubbish")
        assert refused(revoke, authority, crl, [good]) == f"{crl}: is not a PEM file"

    def test_a_ca_of_another_name_and_key(self, files: Files, crl: str) -> None:
        """Neither the name nor the signature alone makes a certificate this CA's."""
        key = ec.generate_private_key(ec.SECP384R1())
        authority = Authority(own_authority(key, digest=hashes.SHA384()), key)
        path = files.write_pair("b", issue(as_authority(create_authority()), "b"))
        assert "not issued by this CA" in refused(revoke, authority, crl, [path])

    def test_mode_and_link_stay(self, files: Files, crl: str) -> None:
        """Whoever could read the list still can, under the name that leads to it."""
        authority = files.authority()
        revoke(authority, crl, [])
        os.chmod(crl, 0o644)
        link = files.directory / "link.pem"
        link.symlink_to("crl.pem")
        path = files.write_pair("a", issue(authority, "a"))
        revoke(authority, str(link), [path])
        assert link.is_symlink()
        assert os.stat(crl).st_mode & 0o777 == 0o644
        assert len(self.listed(crl).revoked) == 1

    @pytest.mark.parametrize("operation", ["open", "write", "fsync", "rename", "stat", "flock"])
    def test_a_failure_leaves_the_list_as_it_was(
        self, files: Files, crl: str, operation: str
    ) -> None:
        """And no other file."""
        authority = files.authority()
        revoke(authority, crl, [])
        path = files.write_pair("a", issue(authority, "a"))
        before = {each.name: each.read_bytes() for each in files.directory.iterdir()}
        fs = FaultyFs()
        fault = fs.fail(operation, 5)
        with pytest.raises(OSError, match="Input/output"):
            revoke(authority, crl, [path], fs=fs)
        assert fault.hits == 1
        assert {each.name: each.read_bytes() for each in files.directory.iterdir()} == before
        assert fs.open_paths == {}

    def test_two_at_once(self, files: Files, crl: str) -> None:
        """Nothing that one of several processes revoked is lost."""
        authority = files.authority()
        paths = [files.write_pair(f"a{n}", issue(authority, f"a{n}")) for n in range(8)]
        pids = []
        for path in paths:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    revoke(authority, crl, [path])
                    status = 0
                finally:
                    os._exit(status)
            pids.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 8
        assert len(self.listed(crl).revoked) == 8
