"""Credentials: files that can be used and files that cannot, peers that are let in and refused.

Each refusal is tried for real: two ends shake hands over a socket, and both say what they think.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import gevent
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier
from gevent import socket
from OpenSSL import SSL, crypto

from keyop.errors import ConfigError
from keyop.transport.contexts import CLIENT_AUTH, SERVER_AUTH, Credentials
from keyop.transport.tls import TLSSocket

from .certificates import BOTH, DAY, Authority, Files, Issued, subject

CA_NAME = "its issuer is not the authority of tls.ca"


def shake_hands(
    server: SSL.Context, client: SSL.Context
) -> tuple[Exception | None, Exception | None]:
    """Return what the server and the client say of each other, once bytes have gone both ways."""
    near, far = socket.socketpair()
    ends = (TLSSocket(server, near, True), TLSSocket(client, far, False))

    def run(end: TLSSocket) -> Exception | None:
        try:
            end.handshake()
            end.sendall(b"x")
            # In TLS 1.3 a client is refused only after its own handshake.
            assert end.recv(1) == b"x"
        except OSError as error:
            end.close()
            return error
        return None

    greenlets = [gevent.spawn(run, end) for end in ends]
    gevent.joinall(greenlets, timeout=20, raise_error=True)
    for end in ends:
        end.close()
    return greenlets[0].value, greenlets[1].value


def meet(hub: Credentials, client: Credentials) -> tuple[Exception | None, Exception | None]:
    """Return what a hub and a client with these credentials say of each other."""
    return shake_hands(hub.context(CLIENT_AUTH), client.context(SERVER_AUTH))


@pytest.fixture
def good(files: Files, authority: Authority, hub: Issued, client: Issued) -> dict[str, Credentials]:
    """Sound credentials of a hub and of a client."""
    return {
        "hub": files.load(hub, authority.pem),
        "client": files.load(client, authority.pem),
    }


def assert_refused(
    side: str, bad: Credentials, good: dict[str, Credentials], reason: str, name: str = ""
) -> None:
    """The one with the bad certificate, on this side, is refused by the other one, which says why.

    Args:
        reason: what the refusing side says.
        name: whose certificate it says that was.
    """
    if side == "client":
        refusing, refused = meet(good["hub"], bad)
    else:
        refused, refusing = meet(bad, good["client"])
    assert f"the other side's certificate was refused: {name}" in str(refusing)
    assert reason in str(refusing)
    # The refused one learns that it was, or at least that the connection has ended.
    assert isinstance(refused, OSError)
    assert "refused this one's certificate" in str(refused) or "ended" in str(refused)


each_side = pytest.mark.parametrize("side", ["hub", "client"])


class TestLettingIn:
    def test_each_other(self, good: dict[str, Credentials]) -> None:
        """Two instances of one authority shake hands."""
        assert meet(good["hub"], good["client"]) == (None, None)

    def test_what_they_hold(self, good: dict[str, Credentials], hub: Issued) -> None:
        """The name and the end are those of the certificate."""
        assert (good["hub"].name, good["client"].name) == ("hub1", "client1")
        assert good["hub"].expires == hub.certificate.not_valid_after_utc
        assert good["hub"].certificate == hub.certificate
        assert not good["hub"].expired()

    @pytest.mark.parametrize(
        "make",
        [
            lambda: ec.generate_private_key(ec.SECP384R1()),
            lambda: rsa.generate_private_key(65537, 2048),
            ed25519.Ed25519PrivateKey.generate,
        ],
        ids=["P-384", "RSA", "Ed25519"],
    )
    def test_keys_of_any_kind(
        self,
        files: Files,
        authority: Authority,
        good: dict[str, Credentials],
        make: Callable[[], ec.EllipticCurvePrivateKey],
    ) -> None:
        """The kind of the key is the operator's choice; P-384 is what v0.11.0 makes."""
        key = make()
        usage = [(x509.ExtendedKeyUsage(BOTH), False)]
        issued = Issued(authority.build(subject("k"), key.public_key(), usage), key)
        assert meet(files.load(issued, authority.pem), good["client"]) == (None, None)

    def test_a_key_as_v0_11_0_writes_it(
        self, files: Files, authority: Authority, hub: Issued
    ) -> None:
        """``EC PRIVATE KEY`` is read as well."""
        pem = hub.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        assert b"BEGIN EC PRIVATE KEY" in pem
        loaded = Credentials.load(
            files.write(hub.pem), files.write(pem), files.write(authority.pem)
        )
        assert loaded.name == "hub1"

    def test_of_several_authorities(
        self,
        files: Files,
        authority: Authority,
        other_authority: Authority,
        hub: Issued,
        client: Issued,
    ) -> None:
        """While an authority is replaced by another one of its name, both are in the file."""
        both = other_authority.pem + authority.pem
        newer = other_authority.issue("client2")
        for issued in (client, newer):
            assert meet(files.load(hub, both), files.load(issued, both)) == (None, None)

    def test_with_a_list_of_revoked_ones(
        self, files: Files, authority: Authority, hub: Issued, client: Issued
    ) -> None:
        """Who is not on the list is let in."""
        crl = authority.revoke(authority.issue("gone"))
        assert meet(
            files.load(hub, authority.pem, crl), files.load(client, authority.pem, crl)
        ) == (None, None)


class TestRefusing:
    @each_side
    def test_another_authority(
        self, files: Files, other_authority: Authority, good: dict[str, Credentials],
        authority: Authority, side: str,
    ) -> None:  # fmt: skip
        """One of another authority, even of the same name, is a stranger."""
        bad = files.load(other_authority.issue("evil"), authority.pem)
        assert_refused(side, bad, good, CA_NAME, "evil")

    @each_side
    def test_a_forged_signature(self, files: Files, side: str) -> None:
        """One that claims to be of the authority, and nobody can tell but by its signature."""
        real, forger = Authority(identified=False), Authority(identified=False)
        good = {
            "hub": files.load(real.issue("hub1"), real.pem),
            "client": files.load(real.issue("client1"), real.pem),
        }
        bad = files.load(forger.issue("evil"), real.pem)
        assert_refused(side, bad, good, "its signature is wrong", "evil")

    @each_side
    def test_an_authority_of_another_name(
        self, files: Files, good: dict[str, Credentials], authority: Authority, side: str
    ) -> None:
        """Whose issuer is not known is refused."""
        bad = files.load(Authority("elsewhere").issue("evil"), authority.pem)
        assert_refused(side, bad, good, CA_NAME, "evil")

    @each_side
    def test_a_self_signed_one(
        self, files: Files, good: dict[str, Credentials], authority: Authority, side: str
    ) -> None:
        """Whoever vouches for itself is refused."""
        own = Authority("evil")
        bad = files.load(Issued(own.certificate, own.key), authority.pem)
        assert_refused(side, bad, good, "self-signed", "evil")

    @each_side
    @pytest.mark.parametrize(
        ("times", "reason"),
        [
            ({"ends": -timedelta(minutes=1)}, "it has expired"),
            ({"begins": timedelta(hours=1)}, "it is not valid yet"),
        ],
        ids=["expired", "not yet"],
    )
    def test_the_wrong_time(
        self, files: Files, good: dict[str, Credentials], authority: Authority,
        side: str, times: dict[str, timedelta], reason: str,
    ) -> None:  # fmt: skip
        """A certificate is good from its beginning to its end."""
        bad = files.load(authority.issue("late", **times), authority.pem)
        assert_refused(side, bad, good, reason, "late")
        assert bad.expired() is (reason == "it has expired")

    @each_side
    def test_a_revoked_one(
        self, files: Files, authority: Authority, hub: Issued, client: Issued, side: str
    ) -> None:
        """Who is on the list is refused by whoever has the list."""
        issued = authority.issue("gone")
        crl = authority.revoke(issued)
        good = {
            "hub": files.load(hub, authority.pem, crl),
            "client": files.load(client, authority.pem, crl),
        }
        assert_refused(side, files.load(issued, authority.pem), good, "has been revoked", "gone")

    @each_side
    @pytest.mark.parametrize(
        ("times", "reason"),
        [
            ({"begins": -2 * DAY, "ends": -DAY}, "has expired; renew the file of tls.crl"),
            ({"begins": DAY}, "is not valid yet"),
        ],
        ids=["expired", "not yet"],
    )
    def test_a_list_of_the_wrong_time(
        self, files: Files, authority: Authority, hub: Issued, client: Issued,
        side: str, times: dict[str, timedelta], reason: str,
    ) -> None:  # fmt: skip
        """A list that has ended tells nothing: nobody is let in, and the reason is said."""
        crl = authority.revoke(**times)
        good = {
            "hub": files.load(hub, authority.pem, crl),
            "client": files.load(client, authority.pem, crl),
        }
        issued = authority.issue("fine")
        assert_refused(side, files.load(issued, authority.pem), good, reason, "fine")

    @each_side
    def test_no_list_of_its_authority(
        self, files: Files, authority: Authority, hub: Issued, client: Issued, side: str
    ) -> None:
        """With a list of one authority, those of another one cannot be told apart."""
        second = Authority("second")
        both, crl = authority.pem + second.pem, authority.revoke()
        good = {
            "hub": files.load(hub, both, crl),
            "client": files.load(client, both, crl),
        }
        bad = files.load(second.issue("fine"), both)
        assert_refused(side, bad, good, "no list of revoked certificates", "fine")

    @each_side
    def test_an_authority_as_an_instance(
        self, files: Files, good: dict[str, Credentials], authority: Authority, side: str
    ) -> None:
        """A certificate that may sign others is no instance's: v0.11.0's own CA neither."""
        bad = files.load(authority.issue("sub", authority=True), authority.pem)
        assert_refused(side, bad, good, "authority's own", "sub")
        own = files.load(Issued(authority.certificate, authority.key), authority.pem)
        assert_refused(side, own, good, "authority's own", "keyop-ca")

    @pytest.mark.parametrize(
        ("side", "usages", "reason"),
        [
            ("client", (SERVER_AUTH,), "not for this use"),
            ("hub", (CLIENT_AUTH,), "not for this use"),
            ("client", (ExtendedKeyUsageOID.EMAIL_PROTECTION,), "not for this use"),
            ("hub", (ExtendedKeyUsageOID.EMAIL_PROTECTION,), "not for this use"),
            ("client", None, "not for a client (extended key usage)"),
            ("hub", None, "not for a server (extended key usage)"),
        ],
    )
    def test_the_wrong_use(
        self, files: Files, good: dict[str, Credentials], authority: Authority,
        side: str, usages: tuple[ObjectIdentifier, ...] | None, reason: str,
    ) -> None:  # fmt: skip
        """A hub's certificate is for servers and a client's for clients, and says so."""
        bad = files.load(authority.issue("odd", usages=usages), authority.pem)
        assert_refused(side, bad, good, reason, "odd")

    @pytest.mark.parametrize(
        ("side", "usages"), [("client", (CLIENT_AUTH,)), ("hub", (SERVER_AUTH,))]
    )
    def test_the_right_use_alone(
        self, files: Files, good: dict[str, Credentials], authority: Authority,
        side: str, usages: tuple[ObjectIdentifier, ...],
    ) -> None:  # fmt: skip
        """A certificate need not be for the side that it is never on."""
        both = {**good, side: files.load(authority.issue("one", usages=usages), authority.pem)}
        assert meet(both["hub"], both["client"]) == (None, None)

    @each_side
    @pytest.mark.parametrize("names", [(), ("a", "b"), ("../../x",), ("a b",), ("..",)])
    def test_names_that_are_none(
        self, authority: Authority, good: dict[str, Credentials], side: str, names: tuple[str, ...]
    ) -> None:
        """A certificate whose common name is no instance's, or that has none or two, is refused.

        Such credentials cannot be loaded, so the peer is one that does not look.
        """
        issued = authority.issue(*names)
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate(issued.certificate)
        context.use_privatekey(issued.key)
        if side == "client":
            refusing, _ = shake_hands(good["hub"].context(CLIENT_AUTH), context)
        else:
            _, refusing = shake_hands(context, good["client"].context(SERVER_AUTH))
        assert "common name" in str(refusing)

    @each_side
    def test_none_at_all(self, good: dict[str, Credentials], side: str) -> None:
        """A peer without a certificate is refused."""
        if side == "client":
            refusing, refused = shake_hands(
                good["hub"].context(CLIENT_AUTH), SSL.Context(SSL.TLS_METHOD)
            )
            assert "did not return a certificate" in str(refusing)
            assert isinstance(refused, OSError)
        else:
            refused, refusing = shake_hands(
                SSL.Context(SSL.TLS_METHOD), good["client"].context(SERVER_AUTH)
            )
            assert isinstance(refusing, OSError)

    @each_side
    @pytest.mark.parametrize("sound", [True, False], ids=["signed", "forged"])
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_one_that_cannot_be_read(
        self, good: dict[str, Credentials], authority: Authority, client: Issued,
        side: str, sound: bool,
    ) -> None:  # fmt: skip
        """What one parser takes and another one refuses is refused, without a traceback."""
        body = client.certificate.tbs_certificate_bytes
        assert body.count(b"\xa0\x03\x02\x01\x02") == 1
        odd = body.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07")  # version 8
        signature = authority.key.sign(odd if sound else body, ec.ECDSA(hashes.SHA256()))
        algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # the same, as an identifier
        der = der_value(0x30, odd + algorithm + der_value(0x03, b"\0" + signature))
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate(crypto.load_certificate(crypto.FILETYPE_ASN1, der))
        context.use_privatekey(client.key)
        if side == "client":
            refusing, _ = shake_hands(good["hub"].context(CLIENT_AUTH), context)
        else:
            _, refusing = shake_hands(context, good["client"].context(SERVER_AUTH))
        assert "refused: a certificate without a name: " in str(refusing)
        assert ("cannot be read" in str(refusing)) is sound


def der_value(tag: int, content: bytes) -> bytes:
    """Return a value in DER, of less than 64 KiB."""
    size = len(content)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


class TestVersions:
    @staticmethod
    def old() -> Callable[[SSL.Context], SSL.Context]:
        def limit(context: SSL.Context) -> SSL.Context:
            context.set_max_proto_version(SSL.TLS1_2_VERSION)
            return context

        return limit

    @each_side
    def test_1_2_against_a_floor_of_1_3(self, good: dict[str, Credentials], side: str) -> None:
        """TLS 1.3 is the floor unless told otherwise, on both sides."""
        limit = self.old()
        contexts = {
            "hub": good["hub"].context(CLIENT_AUTH), "client": good["client"].context(SERVER_AUTH)
        }  # fmt: skip
        lowered = {
            "hub": lambda: self.lowered(good["hub"], CLIENT_AUTH),
            "client": lambda: self.lowered(good["client"], SERVER_AUTH),
        }[side]
        contexts[side] = limit(lowered())
        at_hub, at_client = shake_hands(contexts["hub"], contexts["client"])
        assert isinstance(at_hub, OSError)
        assert isinstance(at_client, OSError)
        assert "version" in f"{at_hub} {at_client}" or "protocol" in f"{at_hub} {at_client}"

    @staticmethod
    def lowered(credentials: Credentials, usage: ObjectIdentifier) -> SSL.Context:
        context = credentials.context(usage)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        return context

    @each_side
    def test_1_2_where_it_is_configured(
        self, files: Files, authority: Authority, hub: Issued, client: Issued, side: str
    ) -> None:
        """``tls.min_version: "1.2"`` lets it in, and checks as much."""
        at_hub = files.load(hub, authority.pem, min_version="1.2").context(CLIENT_AUTH)
        at_client = files.load(client, authority.pem, min_version="1.2").context(SERVER_AUTH)
        limit = self.old()
        (limit(at_hub) if side == "hub" else limit(at_client))
        assert shake_hands(at_hub, at_client) == (None, None)

    def test_1_2_does_not_excuse(
        self, files: Files, authority: Authority, hub: Issued, other_authority: Authority
    ) -> None:
        """A stranger is refused in TLS 1.2 too, already in the handshake."""
        at_hub = files.load(hub, authority.pem, min_version="1.2").context(CLIENT_AUTH)
        evil = files.load(other_authority.issue("evil"), authority.pem, min_version="1.2")
        refusing, refused = shake_hands(at_hub, self.old()(evil.context(SERVER_AUTH)))
        assert "certificate was refused: evil" in str(refusing)
        assert "refused this one's certificate" in str(refused)

    def test_1_1_is_never_taken(self, files: Files, authority: Authority, hub: Issued) -> None:
        """Nothing older can be configured."""
        with pytest.raises(KeyError):
            files.load(hub, authority.pem, min_version="1.1")


class TestFiles:
    """A file that cannot be used is one clear ConfigError that names it."""

    @pytest.fixture
    def paths(self, files: Files, authority: Authority, hub: Issued) -> dict[str, str]:
        return {
            "cert": files.write(hub.pem),
            "key": files.write(hub.key_pem),
            "ca": files.write(authority.pem),
            "crl": files.write(authority.revoke()),
        }

    def refusal(self, paths: dict[str, str], changed: str, path: str) -> str:
        """Load with one file changed; return the one problem, which names that file."""
        with pytest.raises(ConfigError) as raised:
            Credentials.load(**{**paths, changed: path})
        assert raised.value.source == path
        assert len(raised.value.problems) == 1
        assert str(raised.value).startswith(f"{path}: ")
        return raised.value.problems[0]

    def test_the_good_ones(self, paths: dict[str, str]) -> None:
        """They can be loaded, and loading them again gives the same."""
        assert Credentials.load(**paths) == Credentials.load(**paths)

    def test_a_renewed_certificate_is_another_one(
        self, files: Files, paths: dict[str, str], authority: Authority
    ) -> None:
        """So that a reload is noticed."""
        newer = authority.issue("hub1")
        changed = {**paths, "cert": files.write(newer.pem), "key": files.write(newer.key_pem)}
        assert Credentials.load(**changed) != Credentials.load(**paths)

    @pytest.mark.parametrize("which", ["cert", "key", "ca", "crl"])
    def test_missing(self, tmp_path: Path, paths: dict[str, str], which: str) -> None:
        """A file that is not there."""
        problem = self.refusal(paths, which, str(tmp_path / "none.pem"))
        assert problem == f"tls.{which}: cannot be read: No such file or directory"

    @pytest.mark.parametrize("which", ["cert", "key", "ca", "crl"])
    def test_a_directory(self, tmp_path: Path, paths: dict[str, str], which: str) -> None:
        """A path that is no file's."""
        problem = self.refusal(paths, which, str(tmp_path))
        assert problem == f"tls.{which}: cannot be read: Is a directory"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_forbidden(self, paths: dict[str, str]) -> None:
        """A key that only another user may read."""
        os.chmod(paths["key"], 0)
        assert "Permission denied" in self.refusal(paths, "key", paths["key"])

    @pytest.mark.parametrize("mode", [0o604, 0o602, 0o660, 0o644, 0o777])
    def test_a_key_that_others_may_use(self, paths: dict[str, str], mode: int) -> None:
        """It is no secret any more; what to do is said."""
        os.chmod(paths["key"], mode)
        assert self.refusal(paths, "key", paths["key"]) == (
            f"tls.key: mode {mode:04o} lets others use this key; "
            "chmod 600 it, or 640 for its group to read"
        )

    @pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640])
    def test_a_key_of_a_group(self, paths: dict[str, str], mode: int) -> None:
        """As a service manager hands it out: to a group that only reads."""
        os.chmod(paths["key"], mode)
        assert Credentials.load(**paths).name == "hub1"

    @pytest.mark.parametrize("which", ["cert", "key", "ca", "crl"])
    @pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "binary", "header"])
    def test_damaged(self, files: Files, paths: dict[str, str], which: str, damage: str) -> None:
        """Anything that is no PEM file of its kind."""
        sound = Path(paths[which]).read_bytes()
        middle = len(sound) // 2
        data = {
            "empty": b"",
            "text": b"# to be filled in\n",
            "cut": sound[:middle],
            "flipped": sound[:40] + b"!!!!" + sound[44:],
            "binary": bytes(range(256)) * 4,
            "header": sound.split(b"\n")[0] + b"\n",
        }[damage]
        problem = self.refusal(paths, which, files.write(data))
        assert problem == f"tls.{which}: this is not a PEM file of its kind, or a damaged one"

    @pytest.mark.parametrize(
        ("which", "other"), [("cert", "key"), ("key", "cert"), ("ca", "key"), ("crl", "cert")]
    )
    def test_of_another_kind(self, paths: dict[str, str], which: str, other: str) -> None:
        """Files that were mixed up."""
        assert "of its kind" in self.refusal(paths, which, paths[other])

    def test_an_encrypted_key(
        self, files: Files, paths: dict[str, str], hub: Issued, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A key that needs a passphrase is refused: nobody is asked for it on the terminal."""
        opened = []
        monkeypatch.setattr(sys, "stdin", None)
        monkeypatch.setattr("getpass.getpass", lambda *_: opened.append("asked"))
        encrypted = hub.key_pem_with(serialization.BestAvailableEncryption(b"secret"))
        assert b"ENCRYPTED" in encrypted
        assert "tls.key" in self.refusal(paths, "key", files.write(encrypted))
        traditional = hub.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.BestAvailableEncryption(b"secret"),
        )
        assert "tls.key" in self.refusal(paths, "key", files.write(traditional))
        assert not opened

    def test_the_key_of_another_certificate(
        self, files: Files, paths: dict[str, str], client: Issued
    ) -> None:
        """Key and certificate belong together; it is the key that is named, with the other one."""
        problem = self.refusal(paths, "key", files.write(client.key_pem))
        assert problem == f"this is not the key of {paths['cert']}"

    def test_the_key_of_another_kind(self, files: Files, paths: dict[str, str]) -> None:
        """An RSA key for a certificate of an elliptic curve."""
        key = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        assert "this is not the key of" in self.refusal(paths, "key", files.write(key))

    @pytest.mark.parametrize("names", [(), ("a", "b"), ("../x",), ("a b",)])
    def test_a_certificate_without_a_name(
        self, files: Files, paths: dict[str, str], authority: Authority, names: tuple[str, ...]
    ) -> None:
        """A certificate of no instance cannot be used by one."""
        problem = self.refusal(paths, "cert", files.write(authority.issue(*names).pem))
        assert "common name" in problem

    def test_a_list_of_another_authority(
        self, files: Files, paths: dict[str, str], other_authority: Authority
    ) -> None:
        """A list that the authority has not signed is no list."""
        problem = self.refusal(paths, "crl", files.write(other_authority.revoke()))
        assert "not signed by the authority" in problem


class TestRefusalLater:
    """``refusal``: what a reload says of a certificate that was let in before."""

    def test_of_a_sound_one(self, good: dict[str, Credentials], client: Issued) -> None:
        """Nothing is said."""
        assert good["hub"].refusal(client.certificate) is None

    def test_of_one_revoked_since(
        self, files: Files, authority: Authority, hub: Issued, client: Issued
    ) -> None:
        """One that is on the new list."""
        now = files.load(hub, authority.pem, authority.revoke(client))
        assert now.refusal(client.certificate) == "it has been revoked"
        assert now.refusal(hub.certificate) is None

    def test_of_one_of_an_authority_that_was_replaced(
        self, files: Files, other_authority: Authority, client: Issued
    ) -> None:
        """One of an authority that is not trusted any more."""
        now = files.load(other_authority.issue("hub1"), other_authority.pem)
        assert now.refusal(client.certificate) == CA_NAME

    @pytest.mark.parametrize(
        ("times", "reason"),
        [
            ({"ends": -timedelta(minutes=1)}, "it has expired"),
            ({"begins": timedelta(hours=1)}, "it is not valid yet"),
        ],
    )
    def test_of_one_at_the_wrong_time(
        self, good: dict[str, Credentials], authority: Authority,
        times: dict[str, timedelta], reason: str,
    ) -> None:  # fmt: skip
        """One that has ended while it was connected."""
        assert good["hub"].refusal(authority.issue("c", **times).certificate) == reason

    def test_with_a_list_that_has_ended(
        self, files: Files, authority: Authority, hub: Issued, client: Issued
    ) -> None:
        """A list that has ended refuses everybody, as it does at the door."""
        now = files.load(hub, authority.pem, authority.revoke(begins=-2 * DAY, ends=-DAY))
        assert "renew the file of tls.crl" in (now.refusal(client.certificate) or "")
