"""A hub to try things out with: its configuration, its certificates, the commands to copy."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from shlex import quote

from keyop.cli.common import DATA_DIR_VARIABLE
from keyop.cli.output import print_line
from keyop.config import (
    AllowedPeer,
    Config,
    HubConfig,
    StorageConfig,
    TLSConfig,
    WebConfig,
)
from keyop.config_rules import join_address, split_address

DEFAULT_DATA_DIR = "./keyop-hub-data"
DEFAULT_ADDRESS = "127.0.0.1:7740"
HUB_NAME, GUEST_NAME = "dev-hub", "dev"

# What is listened on for every interface, and where this machine finds itself there.
_HERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def embedded_config(data_dir: str | None, listen: str) -> Config:
    """Return the configuration of a hub to try things out with, its certificates made.

    Args:
        listen: ``host:port`` or ``[IPv6]:port``; the hub's certificate is made out to that host
            too, besides loopback.

    Raises:
        ConfigError: the certificates cannot be made.
        OSError: they cannot be written.
    """
    # Certificates take a while to load, and a hub with a configuration makes none.
    from keyop.keygen import ensure_development_certificates

    directory = data_dir or os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR
    made = ensure_development_certificates(f"{directory}/certs", [HUB_NAME, GUEST_NAME])
    own = made.instances[HUB_NAME]
    _make_out_to(_dialled_host(listen), own.cert, own.key, made.ca.cert, made.ca.key)
    return Config(
        name=HUB_NAME,
        storage=StorageConfig(data_dir=directory),
        hub=HubConfig(
            enabled=True, listen_addr=listen, allowed_peers=(AllowedPeer(name=GUEST_NAME),)
        ),
        tls=TLSConfig(cert=own.cert, key=own.key, ca=made.ca.cert),
        web=WebConfig(listen_addr=_page_address(listen)),
    )


def _page_address(listen: str) -> str:
    """Return where the page is: on this machine alone, at the port behind the hub's."""
    _, port = split_address(listen)
    return f"127.0.0.1:{port + 1 if 0 < port < 65535 else 0}"


def _make_out_to(host: str, cert: str, key: str, ca: str, ca_key: str) -> None:
    """Have a certificate that is valid for a host, besides those that it is valid for already."""
    from cryptography import x509

    from keyop.keygen import issue, load_authority, load_certificate, write_files
    from keyop.transport.identity import CertificateError, check_host

    certificate = load_certificate(cert)
    try:
        check_host(certificate, host)
    except CertificateError:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [str(name.value) for name in names]
        made = issue(load_authority(ca, ca_key), HUB_NAME, [*hosts, host])
        # The certificate last: where there is one, it has its key.
        files: Mapping[str, bytes] = {key: made.key_pem, cert: made.certificate_pem}
        write_files(files, force=True)


def _dialled_host(listen: str) -> str:
    host, _ = split_address(listen)
    return _HERE.get(host, host)


def dialled_address(listen: str, bound: str) -> str:
    """Return the address at which this machine reaches a hub.

    Args:
        listen: what it was told to listen on.
        bound: what it listens on: numbers, and the port if that was 0; empty if it does not, while
            another process does.
    """
    _, port = split_address(bound or listen)
    return join_address(_dialled_host(listen), port)


def show_commands(config: Config, bound: str) -> None:
    """Print the commands that follow a channel and publish to it, for any working directory."""
    directory = os.path.abspath(os.path.dirname(config.tls.ca))
    options = " ".join(
        f"{name} {quote(value)}"
        for name, value in (
            ("--hub", dialled_address(config.hub.listen_addr, bound)),
            ("--cert", f"{directory}/{GUEST_NAME}.crt"),
            ("--key", f"{directory}/{GUEST_NAME}.key"),
            ("--ca", os.path.abspath(config.tls.ca)),
        )
    )
    keyop = _keyop()
    print_line("Follow a channel:")
    print_line(f"  {keyop} subscribe news --id me {options}")
    print_line("and publish to it:")
    print_line(f"""  {keyop} publish news '{{"hello": "world"}}' {options}""")


def _keyop() -> str:
    """Return what the ``keyop`` beside this program is called in a shell."""
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "keyop")
    found = shutil.which("keyop")
    if not os.path.exists(beside) or (found is not None and os.path.samefile(found, beside)):
        return "keyop"
    return quote(beside)
