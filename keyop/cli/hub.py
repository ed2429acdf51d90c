"""``keyop-hub``: a hub as a service, or one to try things out with."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from shlex import quote
from typing import Any

import click
import gevent
from gevent.event import Event

from keyop.cli.common import DATA_DIR_VARIABLE, common_options
from keyop.cli.output import print_line
from keyop.cli.program import EXIT_INTERRUPTED, Program, run_program
from keyop.config import AllowedPeer, Config, HubConfig, StorageConfig, TLSConfig
from keyop.errors import ConfigError
from keyop.messenger import Messenger
from keyop.version import __version__

logger = logging.getLogger(__name__)

PROGRAM = "keyop-hub"
DEFAULT_DATA_DIR = "./keyop-hub-data"
DEFAULT_ADDRESS = "127.0.0.1:7740"
HUB_NAME, GUEST_NAME = "dev-hub", "dev"


@click.command(
    PROGRAM,
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-c",
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(),
    help="A configuration with a hub.",
)
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(),
    help=f"The data directory; without -c, else ${DATA_DIR_VARIABLE}, else {DEFAULT_DATA_DIR}.",
)
@click.option(
    "--listen",
    metavar="ADDR",
    help=f"Listen here, host:port or [IPv6]:port; without -c, else {DEFAULT_ADDRESS}.",
)
@click.option(
    "--app",
    metavar="MODULE:FUNCTION",
    help="Call FUNCTION(messenger) at the start, to subscribe handlers.",
)
@click.option(
    "--pid-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write the process id here while it runs.",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@common_options
def command(
    config_file: str | None,
    data_dir: str | None,
    listen: str | None,
    app: str | None,
    pid_file: str | None,
) -> int:
    """Run a hub, which other instances connect to, until SIGTERM or Ctrl-C.

    Without -c it is one to try things out with, on loopback: it makes certificates of its own in
    its data directory, and prints the commands that publish to it and follow a channel.

    SIGTERM and Ctrl-C say goodbye to every client and end; SIGHUP reads the configuration and the
    certificates again, which are watched anyway. Under systemd (Type=notify) it says when it is
    ready.

    \b
    Examples:
      keyop-hub
      keyop-hub -c /etc/keyop/hub.yaml --app billing.handlers:subscribe
    """
    register = None if app is None else _find_function(app)
    if config_file is None:
        messenger = Messenger(embedded_config(data_dir, listen or DEFAULT_ADDRESS))
    else:
        messenger = _ConfiguredHub(Config.load(config_file), data_dir, listen)
    _raise_descriptor_limit()
    logging.getLogger("keyop").setLevel(min(logging.INFO, logging.getLogger("keyop").level))
    with _pid_file(pid_file):
        return _serve(messenger, register, embedded=config_file is None)


def embedded_config(data_dir: str | None, listen: str) -> Config:
    """Return the configuration of a hub to try things out with, its certificates made.

    Raises:
        ConfigError: the certificates cannot be made, or the address makes no sense.
    """
    # Certificates take a while to load, and a hub with a configuration makes none.
    from keyop.keygen import ensure_development_certificates

    directory = data_dir or os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR
    made = ensure_development_certificates(f"{directory}/certs", [HUB_NAME, GUEST_NAME])
    own = made.instances[HUB_NAME]
    return Config(
        name=HUB_NAME,
        storage=StorageConfig(data_dir=directory),
        hub=HubConfig(
            enabled=True, listen_addr=listen, allowed_peers=(AllowedPeer(name=GUEST_NAME),)
        ),
        tls=TLSConfig(cert=own.cert, key=own.key, ca=made.ca.cert),
    )


class _ConfiguredHub(Messenger):
    """A messenger to whose configuration the options are added, whenever that is read."""

    def __init__(self, config: Config, data_dir: str | None, listen: str | None) -> None:
        self._options = (data_dir, listen)
        super().__init__(_with_options(config, data_dir, listen))

    def reload(self, config: Config | None = None) -> None:
        """Go over to another configuration, the options added; see :meth:`Messenger.reload`."""
        super().reload(None if config is None else _with_options(config, *self._options))


def _with_options(config: Config, data_dir: str | None, listen: str | None) -> Config:
    path = config.path
    if data_dir is not None:
        config = replace(config, storage=replace(config.storage, data_dir=data_dir))
    if listen is not None:
        config = replace(config, hub=replace(config.hub, enabled=True, listen_addr=listen))
    if not config.hub.enabled:
        raise ConfigError("hub.enabled: false is not allowed here: this would be no hub", path)
    object.__setattr__(config, "_path", path)  # which replace leaves out: the file is watched
    return config


def _serve(
    messenger: Messenger, register: Callable[[Messenger], object] | None, embedded: bool
) -> int:
    config = messenger.config
    stop = Event()
    status = 0

    def end(number: int) -> None:
        nonlocal status
        if not stop.is_set():
            status = EXIT_INTERRUPTED if number == signal.SIGINT else 0
        # A second one, of whichever kind, ends it at once.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stop.set()

    def read_again() -> None:
        if started and not stop.is_set():
            messenger.reload()

    started = False
    watchers: list[Any] = [
        gevent.signal_handler(signal.SIGTERM, end, signal.SIGTERM),
        gevent.signal_handler(signal.SIGINT, end, signal.SIGINT),
        gevent.signal_handler(signal.SIGHUP, read_again),
    ]
    try:
        messenger.start()
        started = True
        if register is not None:
            register(messenger)
        _notify("READY=1")
        if messenger.hub_addr:
            print_line(f"{messenger.instance_name} listens on {messenger.hub_addr}")
        else:
            print_line("another process has the hub of this data directory; standing by")
        if embedded:
            _show_commands(config, messenger.hub_addr or config.hub.listen_addr)
        sys.stdout.flush()
        stop.wait()
        _notify("STOPPING=1")
    finally:
        messenger.close()
        for watcher in watchers:
            watcher.cancel()
    return status


def _show_commands(config: Config, address: str) -> None:
    directory = os.path.dirname(config.tls.ca)
    options = " ".join(
        f"{name} {quote(value)}"
        for name, value in (
            ("--hub", address),
            ("--cert", f"{directory}/{GUEST_NAME}.crt"),
            ("--key", f"{directory}/{GUEST_NAME}.key"),
            ("--ca", config.tls.ca),
        )
    )
    print_line("Follow a channel:")
    print_line(f"  keyop subscribe news --id me {options}")
    print_line("and publish to it:")
    print_line(f"""  keyop publish news '{{"hello": "world"}}' {options}""")


def _find_function(app: str) -> Callable[[Messenger], object]:
    """Return the function that ``MODULE:FUNCTION`` names, modules of the working directory first.

    Raises:
        click.UsageError: there is none.
    """
    module_name, _, name = app.partition(":")
    if not module_name or not name:
        raise click.UsageError(f"--app {app!r}: name a module and a function, module:function")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"--app {app!r}: {error}") from error
    if not callable(function):
        raise click.UsageError(f"--app {app!r}: {name} is no function")
    found: Callable[[Messenger], object] = function
    return found


@contextmanager
def _pid_file(path: str | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    try:
        yield
    finally:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _notify(state: str) -> None:
    """Tell systemd, if it has asked to be told.

    Source: sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.sendto(state.encode(), address)
    except OSError as error:
        logger.warning("systemd cannot be told %s: %s", state, error)


def _raise_descriptor_limit() -> None:
    """Every connection is a descriptor: take as many as this user may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        logger.warning("the limit of open files stays: %s", error)


def main() -> None:
    """Run the hub; the entry point of ``bin/keyop-hub``."""
    run_program(command)
