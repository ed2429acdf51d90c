"""Who is refused: one clear line in the log of each side, and an audit event on the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gevent import socket

from keyop import HandshakeRejectedError, Messenger
from keyop.federation.client import Condition
from keyop.transport.contexts import SERVER_AUTH, Credentials
from keyop.transport.dial import dial
from keyop.transport.identity import CLIENT_AUTH
from keyop.transport.tls import TLSError
from tests.transport.certificates import DAY, Authority, Files, Issued

from .helpers import (
    TYPE,
    Instances,
    audit,
    client_of,
    federation_of,
    payloads,
    said,
    wait_audit,
    wait_payloads,
    wait_until,
)

# One attempt, and so one line.
ONCE = {"reconnect_base_ms": 3_600_000, "reconnect_max_ms": 3_600_000}
REFUSED_HERE = "the other side's certificate was refused: "
REFUSED_THERE = "the other side refused this one's certificate"

Make = Callable[[Authority, str], Issued]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "files").mkdir()
    return Files(tmp_path / "files")


def lines(caplog: pytest.LogCaptureFixture, side: str) -> list[str]:
    """Return what the hub or the client has said of the other side, from WARNING on."""
    found = [line for line in said(caplog, f"federation.{side}") if "uses no TLS" not in line]
    assert all("\n" not in line for line in found), found
    return found


def wait_refused(
    caplog: pytest.LogCaptureFixture, hub: Messenger, client: Messenger
) -> tuple[str, str]:
    """Wait until both sides have said why; return their lines. Nobody was let in."""
    wait_until(lambda: client_of(client).trouble, what="the client to be told")
    detail = wait_audit(hub, "client_rejected")["detail"]
    assert not audit(hub, "client_connected")
    assert not client_of(client).connects
    (of_hub,), (of_client,) = lines(caplog, "hub"), lines(caplog, "client")
    assert detail in of_hub
    assert "127.0.0.1:" in of_hub
    assert client_of(client).hub.addr in of_client
    return of_hub, of_client


# --- certificates


def expired(authority: Authority, name: str) -> Issued:
    return authority.issue(name, begins=-2 * DAY, ends=-DAY)


def not_yet_valid(authority: Authority, name: str) -> Issued:
    return authority.issue(name, begins=DAY)


def authoritys_own(authority: Authority, name: str) -> Issued:
    return authority.issue(name, authority=True)


def of_another_authority(_: Authority, name: str) -> Issued:
    return Authority().issue(name)


def of_two_names(authority: Authority, name: str) -> Issued:
    return authority.issue(name, "another")


BAD_CERTIFICATES: dict[Make, str] = {
    of_another_authority: "its issuer is not the authority of tls.ca",
    expired: "it has expired",
    not_yet_valid: "it is not valid yet",
    authoritys_own: "an authority's own",
}


@pytest.mark.parametrize("make", BAD_CERTIFICATES)
def test_a_clients_certificate(
    instances: Instances,
    caplog: pytest.LogCaptureFixture,
    files: Files,
    authority: Authority,
    make: Make,
) -> None:
    """The hub says what is wrong with it; the client, that it was refused."""
    hub = instances.hub(tls=files.tls(authority.issue("hub"), authority))
    bad = make(authority, "alpha")
    own = files.tls(bad, authority)
    client = instances.client("alpha", hub.hub_addr, tls=own, federation=ONCE)
    of_hub, of_client = wait_refused(caplog, hub, client)
    assert f"{REFUSED_HERE}alpha: " in of_hub
    assert BAD_CERTIFICATES[make] in of_hub
    assert REFUSED_THERE in of_client


@pytest.mark.parametrize("make", BAD_CERTIFICATES)
def test_a_hubs_certificate(
    instances: Instances,
    caplog: pytest.LogCaptureFixture,
    files: Files,
    authority: Authority,
    make: Make,
) -> None:
    """The client says what is wrong with it; the hub, that it was refused."""
    hub = instances.hub(tls=files.tls(make(authority, "hub"), authority))
    own = files.tls(authority.issue("alpha"), authority)
    client = instances.client("alpha", hub.hub_addr, tls=own, federation=ONCE)
    of_hub, of_client = wait_refused(caplog, hub, client)
    assert f"{REFUSED_HERE}hub: " in of_client
    assert BAD_CERTIFICATES[make] in of_client
    assert REFUSED_THERE in of_hub


@pytest.mark.parametrize("side", ["hub", "alpha"])
def test_for_the_other_side_only(
    instances: Instances,
    caplog: pytest.LogCaptureFixture,
    files: Files,
    authority: Authority,
    side: str,
) -> None:
    """A hub's certificate is for servers, a client's for clients (extended key usage)."""
    wrong = {"hub": CLIENT_AUTH, "alpha": SERVER_AUTH}
    own = {
        name: authority.issue(name, usages=(wrong[name],))
        if name == side
        else authority.issue(name)
        for name in wrong
    }
    hub = instances.hub(tls=files.tls(own["hub"], authority))
    client = instances.client(
        "alpha", hub.hub_addr, tls=files.tls(own["alpha"], authority), federation=ONCE
    )
    of_hub, of_client = wait_refused(caplog, hub, client)
    told, telling = (of_hub, of_client) if side == "alpha" else (of_client, of_hub)
    assert "key usage)" in told
    assert REFUSED_THERE in telling


@pytest.mark.parametrize("side", ["hub", "alpha"])
def test_a_revoked_certificate(
    instances: Instances,
    caplog: pytest.LogCaptureFixture,
    files: Files,
    authority: Authority,
    side: str,
) -> None:
    """Whoever has a list of revoked certificates refuses those that are on it."""
    own = {name: authority.issue(name) for name in ("hub", "alpha")}
    listed = authority.revoke(own[side])
    of_the_hub = files.tls(own["hub"], authority, listed if side == "alpha" else b"")
    of_the_client = files.tls(own["alpha"], authority, listed if side == "hub" else b"")
    hub = instances.hub(tls=of_the_hub)
    client = instances.client("alpha", hub.hub_addr, tls=of_the_client, federation=ONCE)
    of_hub, of_client = wait_refused(caplog, hub, client)
    told, telling = (of_hub, of_client) if side == "alpha" else (of_client, of_hub)
    assert f"{REFUSED_HERE}{side}: it has been revoked" in told
    assert REFUSED_THERE in telling


def test_a_certificate_of_two_names(
    instances: Instances, caplog: pytest.LogCaptureFixture, files: Files, authority: Authority
) -> None:
    """It cannot be said which instance it is for."""
    hub = instances.hub(tls=files.tls(authority.issue("hub"), authority))
    context = files.load(authority.issue("alpha"), authority.pem).context(SERVER_AUTH)
    bad = of_two_names(authority, "alpha")
    context.use_certificate(bad.certificate)
    context.use_privatekey(bad.key)
    with pytest.raises(TLSError, match=REFUSED_THERE):
        dial(hub.hub_addr, context)
    detail = wait_audit(hub, "client_rejected")["detail"]
    assert "2 common names" in detail
    (line,) = lines(caplog, "hub")
    assert detail in line


def test_tls_1_2_where_1_3_is_the_least(
    instances: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that can do no more is refused, and told so."""
    hub = instances.hub()
    context = Credentials.load(**instances.tls("alpha"), min_version="1.2").context(SERVER_AUTH)
    context.set_max_proto_version(0x0303)
    with pytest.raises(TLSError, match=r"the other side refused this one's .*version"):
        dial(hub.hub_addr, context)
    assert "unsupported protocol" in wait_audit(hub, "client_rejected")["detail"]
    (line,) = lines(caplog, "hub")
    assert "unsupported protocol" in line


# --- names


def test_a_name_that_is_not_allowed(instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
    """4403: the client reports it and does not try again."""
    hub = instances.hub(peers=["beta"])
    client = instances.client("alpha", hub.hub_addr)
    of_hub, of_client = wait_refused(caplog, hub, client)
    assert client_of(client).condition is Condition.REFUSED
    assert of_hub.startswith("alpha at 127.0.0.1:")
    assert of_hub.endswith("was refused: not in allowlist")
    assert "not in allowlist" in of_client
    assert "not tried again before the configuration is reloaded" in of_client
    found = wait_audit(hub, "client_rejected")
    assert found["peer"] == "alpha"


def test_a_name_that_is_not_allowed_of_an_ephemeral_client(
    instances: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    """Its ``connect`` says so."""
    hub = instances.hub(peers=["beta"])
    with pytest.raises(HandshakeRejectedError, match="not in allowlist"):
        instances.ephemeral("alpha", hub).connect(10)
    assert wait_audit(hub, "client_rejected")["peer"] == "alpha"
    assert len(lines(caplog, "hub")) == 1


def test_the_name_in_the_hello_counts_for_nothing(instances: Instances) -> None:
    """Who is in the allowlist is who the certificate is for."""
    hub = instances.hub(peers=["beta"])
    settings = instances.client_settings("alpha", hub.hub_addr)
    client = instances.start({**settings, "name": "beta"})
    wait_until(lambda: client_of(client).condition is Condition.REFUSED, 10, "a refusal")
    assert wait_audit(hub, "client_rejected")["peer"] == "alpha"


def test_a_hub_of_another_name(instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
    """Where a hub's name is configured, its certificate must be for that name."""
    hub = instances.hub("hub")
    client = instances.client("alpha", hub.hub_addr, hub_name="hub-2", federation=ONCE)
    of_hub, of_client = wait_refused(caplog, hub, client)
    assert "is 'hub', not 'hub-2'" in of_client
    assert "ended before a request" in of_hub


def test_a_hub_at_another_host(
    instances: Instances, caplog: pytest.LogCaptureFixture, files: Files, authority: Authority
) -> None:
    """Where no name is configured, its certificate must be for the host that was dialled."""
    elsewhere = authority.issue("hub", hosts=["hub.example.com"])
    hub = instances.hub(tls=files.tls(elsewhere, authority))
    own = files.tls(authority.issue("alpha"), authority)
    client = instances.client("alpha", hub.hub_addr, tls=own, federation=ONCE)
    _, of_client = wait_refused(caplog, hub, client)
    assert "is for hub.example.com, not for 127.0.0.1" in of_client
    assert "give the hub's name in the configuration" in of_client


# --- channels


def test_a_channel_that_it_may_not_publish_to(
    instances: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    """Its records are skipped and acknowledged: those of other channels do not wait behind them."""
    hub = instances.hub(peers={"alpha": {"publish": ["allowed"]}})
    client = instances.client("alpha", hub, publish=["allowed", "forbidden"])
    forbidden = client.publish("forbidden", TYPE, 1)
    client.publish("allowed", TYPE, 2)
    assert wait_payloads(hub, "allowed", 1) == [2]
    found = wait_audit(hub, "policy_violation")
    expected = {"message_id": forbidden, "channel": "forbidden", "peer": "alpha"}
    assert expected.items() <= found.items()
    assert payloads(hub, "forbidden") == []
    (line,) = said(caplog, "federation.receiver")
    assert "alpha" in line
    assert "forbidden" in line
    (sender,) = federation_of(client)._instance._senders.values()  # type: ignore[union-attr] # it runs
    wait_until(lambda: not sender._session.under_way, 10, "it to be acknowledged")


def test_a_channel_that_it_may_not_receive(
    instances: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not sent; that it was asked for is reported, as soon as it was."""
    hub = instances.hub(peers={"alpha": {"subscribe": ["allowed"]}})
    client = instances.client("alpha", hub, subscribe=["allowed", "forbidden"])
    found = wait_audit(hub, "policy_violation")
    assert (found["peer"], found["detail"]) == ("alpha", "may not be sent forbidden")
    (line,) = lines(caplog, "hub")
    assert "alpha" in line
    assert "forbidden" in line
    hub.publish("forbidden", TYPE, 1)
    hub.publish("allowed", TYPE, 2)
    assert wait_payloads(client, "allowed", 1) == [2]
    assert payloads(client, "forbidden") == []


# --- no TLS where there should be


def ask_by_http(address: str) -> bytes:
    """Return what is answered to a request in the clear."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 10) as asking:
        asking.sendall(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
        answer = b""
        try:
            while data := asking.recv(1 << 16):
                answer += data
        except ConnectionError:
            pass
        return answer


def test_http_in_the_clear(instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
    """Not a byte of HTTP is answered."""
    hub = instances.hub()
    assert b"HTTP/" not in ask_by_http(hub.hub_addr)
    detail = wait_audit(hub, "client_rejected")["detail"]
    assert "http request" in detail
    (line,) = lines(caplog, "hub")
    assert detail in line


def test_http_where_there_is_no_tls(instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
    """A hub without TLS says what it speaks."""
    hub = instances.hub(tls=None)
    assert ask_by_http(hub.hub_addr).startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert "no WebSocket request" in wait_audit(hub, "client_rejected")["detail"]
    assert len(lines(caplog, "hub")) == 1


@pytest.mark.parametrize("secured", ["hub", "alpha"])
def test_tls_on_one_side_only(
    instances: Instances, caplog: pytest.LogCaptureFixture, secured: str
) -> None:
    """Neither side takes the other for what it is not."""
    caplog.set_level(logging.WARNING)
    without: Any = {"tls": None}
    hub = instances.hub(**({} if secured == "hub" else without))
    client = instances.client(
        "alpha", hub.hub_addr, federation=ONCE, **({} if secured == "alpha" else without)
    )
    of_hub, of_client = wait_refused(caplog, hub, client)
    assert ("TLS: http request" in of_hub) == (secured == "hub")
    assert ("TLS: wrong version number" in of_client) == (secured == "alpha")
