"""``keyop keygen``: certificates for the instances of one's own network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from keyop.cli.certificates import as_json_values, print_info, until
from keyop.cli.common import common_options, json_option
from keyop.cli.output import complain, plural, print_json, print_line
from keyop.errors import ConfigError
from keyop.keygen import (
    DEFAULT_DAYS,
    MAX_DAYS,
    CertificateInfo,
    Issued,
    create_authority,
    describe_file,
    file_stem,
    is_host,
    issue,
    load_authority,
    revoke,
    write_files,
)


def days_option(what: str) -> Callable[[Any], Any]:
    """Add ``--days``."""
    return click.option(
        "--days",
        metavar="N",
        type=click.IntRange(1, MAX_DAYS),
        default=DEFAULT_DAYS,
        show_default=True,
        help=f"How long {what} is valid.",
    )


def authority_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--ca`` and ``--ca-key``."""
    cert = click.option(
        "--ca", metavar="FILE", type=click.Path(), required=True, help="The CA's certificate."
    )
    key = click.option(
        "--ca-key", metavar="FILE", type=click.Path(), required=True, help="The CA's key."
    )
    return cert(key(function))


force_option = click.option("--force", is_flag=True, help="Replace files that are there.")


@click.group("keygen")
@common_options
def command() -> None:
    """Make certificates, look at them, take them back.

    Every instance has a certificate that names it, signed by one CA; its key stays on its
    machine. The CA's key is needed for keygen only, so keep it off the hubs.

    \b
    Examples:
      keyop keygen ca --out-cert certs/ca.crt --out-key certs/ca.key
      keyop keygen instance --ca certs/ca.crt --ca-key certs/ca.key --name hub-1.example.org
      keyop keygen inspect hub-1.example.org.crt
      keyop keygen revoke --ca certs/ca.crt --ca-key certs/ca.key --crl certs/crl.pem old.crt
    """


@command.command("ca")
@click.option(
    "--out-cert",
    metavar="FILE",
    type=click.Path(),
    default="ca.crt",
    show_default=True,
    help="Where its certificate goes.",
)
@click.option(
    "--out-key",
    metavar="FILE",
    type=click.Path(),
    default="ca.key",
    show_default=True,
    help="Where its key goes.",
)
@days_option("it")
@force_option
@common_options
def ca(out_cert: str, out_key: str, days: int, force: bool) -> None:
    """Make a CA: the certificate that all instances trust, and the key that signs theirs.

    \b
    Exit status:
      0    made
      1    a file is there already, or cannot be written
      2    called wrongly

    \b
    Example:
      keyop keygen ca --out-cert certs/ca.crt --out-key certs/ca.key --days 3650
    """
    made = create_authority(days)
    write_pair(made, out_cert, out_key, force)
    print_line(f"keyop-ca: {out_cert} and {out_key}, {until(made.certificate.not_valid_after_utc)}")


@command.command("instance")
@authority_options
@click.option("--name", metavar="NAME", required=True, help="The instance's name.")
@click.option(
    "--out-cert", metavar="FILE", type=click.Path(), help="Its certificate; else NAME.crt."
)
@click.option("--out-key", metavar="FILE", type=click.Path(), help="Its key; else NAME.key.")
@click.option(
    "--san",
    "hosts",
    metavar="HOST",
    multiple=True,
    help="DNS name or IP address that others dial it as; may be repeated. Else NAME.",
)
@days_option("it")
@force_option
@common_options
def instance(
    ca: str,
    ca_key: str,
    name: str,
    out_cert: str | None,
    out_key: str | None,
    hosts: tuple[str, ...],
    days: int,
    force: bool,
) -> None:
    """Make the certificate and the key of an instance, for a hub as well as a client.

    The certificate never outlives its CA: it ends with it, where --days goes further. With
    --san, NAME is not among the hosts unless it is given too. With --force and without --san,
    the hosts are those of the certificate that is replaced.

    \b
    Exit status:
      0    made
      1    a file is there already, cannot be read or written, or is no authority of its kind
      2    called wrongly

    \b
    Examples:
      keyop keygen instance --ca ca.crt --ca-key ca.key --name hub-1.example.org
      keyop keygen instance --ca ca.crt --ca-key ca.key --name hub-1 --san hub-1 --san 10.0.0.7
    """
    stem = file_stem(name)
    out_cert, out_key = out_cert or f"{stem}.crt", out_key or f"{stem}.key"
    authority = load_authority(ca, ca_key)
    if force and not hosts:
        hosts = _former_hosts(out_cert, name)
        if hosts and hosts != (name,):
            complain(f"for {', '.join(hosts)}, as the certificate before")
    made = issue(authority, name, hosts, days)
    write_pair(made, out_cert, out_key, force, (ca, ca_key))
    if not hosts and not is_host(name):
        complain(f"{name} is no host name, so if it is a hub, give --san and what it is dialled as")
    ends = made.certificate.not_valid_after_utc
    with_ca = ends == authority.certificate.not_valid_after_utc
    print_line(
        f"{name}: {out_cert} and {out_key}, {until(ends)}{', when its CA ends' if with_ca else ''}"
    )


def _former_hosts(path: str, name: str) -> tuple[str, ...]:
    """Return the hosts of an instance's certificate that is replaced; none if it is not one."""
    try:
        found = describe_file(path)
    except (ConfigError, OSError):
        return ()
    former = [each for each in found if isinstance(each, CertificateInfo)]
    if len(former) != 1 or former[0].common_name != name:
        return ()
    kinds = (each.partition(":") for each in former[0].alternative_names)
    return tuple(host for kind, _, host in kinds if kind in ("DNS", "IP"))


@command.command("inspect")
@click.argument("file", type=click.Path())
@json_option
@common_options
def inspect(file: str, as_json: bool) -> None:
    """Say what is in FILE: certificates, keys, lists of revoked certificates.

    Nothing of a key is shown but what its certificate tells anyway. With --json there is one
    object for each.

    \b
    Exit status:
      0    shown
      1    the file cannot be read, or holds nothing of the kind
      2    called wrongly

    \b
    Examples:
      keyop keygen inspect hub-1.example.org.crt
      keyop keygen inspect crl.pem --json | jq .revoked
    """
    for number, info in enumerate(describe_file(file)):
        if as_json:
            print_json(as_json_values(info))
            continue
        if number:
            print_line("")
        print_info(info)


@command.command("revoke")
@authority_options
@click.option(
    "--crl", metavar="FILE", type=click.Path(), required=True, help="The list; made if missing."
)
@click.argument("certificates", metavar="[CERT]...", nargs=-1, type=click.Path())
@days_option("the list")
@common_options
def revoke_(ca: str, ca_key: str, crl: str, certificates: tuple[str, ...], days: int) -> None:
    """Put certificates on the list of those that are not to be trusted any more.

    Instances that have the list as tls.crl refuse them, on live connections too, once they have
    the new list. A list that has ended makes them refuse everybody: sign it anew in time, which
    this does with or without a CERT.

    \b
    Exit status:
      0    revoked
      1    a file cannot be read or written, or a certificate is not of this authority
      2    called wrongly

    \b
    Examples:
      keyop keygen revoke --ca ca.crt --ca-key ca.key --crl crl.pem billing-host.crt
      keyop keygen revoke --ca ca.crt --ca-key ca.key --crl crl.pem --days 365
    """
    refuse_inputs([crl], (ca, ca_key, *certificates))
    done = revoke(load_authority(ca, ca_key), crl, certificates, days)
    for path in done.revoked:
        print_line(f"{path}: revoked")
    for path in done.known:
        print_line(f"{path}: was revoked before")
    ends = done.listing.next_update_utc
    assert ends is not None
    print_line(f"{crl}: {plural(len(done.listing), 'revoked certificate')}, {until(ends)}")


def write_pair(
    made: Issued, out_cert: str, out_key: str, force: bool, inputs: Iterable[str] = ()
) -> None:
    """Write a certificate and its key, both or neither.

    Raises:
        ConfigError: one is there already, would replace one of the inputs, or is the other one.
        OSError: one cannot be written.
    """
    refuse_inputs([out_cert, out_key], inputs)
    if os.path.realpath(out_cert) == os.path.realpath(out_key):
        raise ConfigError("the certificate and the key need two files", out_cert)
    # The certificate last: where there is one, it has its key.
    files: Mapping[str, bytes] = {out_key: made.key_pem, out_cert: made.certificate_pem}
    try:
        write_files(files, force)
    except FileExistsError as error:
        raise ConfigError("is there already; --force replaces it", error.filename) from None


def refuse_inputs(outputs: Iterable[str], inputs: Iterable[str]) -> None:
    """Refuse to write over what is read.

    Raises:
        ConfigError: one of the outputs is one of the inputs.
    """
    read = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        if os.path.realpath(path) in read:
            raise ConfigError("is needed and not to be replaced; name another file", path)
