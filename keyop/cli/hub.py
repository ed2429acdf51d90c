"""``keyop-hub``: a hub as a service, or one to try things out with."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import click
import gevent
from gevent.event import Event

from keyop.cli.common import DATA_DIR_VARIABLE, common_options, logging_as
from keyop.cli.embedded import (
    DEFAULT_ADDRESS,
    DEFAULT_DATA_DIR,
    embedded_config,
    show_commands,
)
from keyop.cli.output import print_line
from keyop.cli.program import EXIT_INTERRUPTED, Program, describe, run_program
from keyop.cli.service import notify, own_pid_file, raise_descriptor_limit
from keyop.config import Config, split_address
from keyop.errors import ConfigError
from keyop.federation.federation import load_credentials
from keyop.messenger import Messenger
from keyop.version import __version__

logger = logging.getLogger(__name__)

PROGRAM = "keyop-hub"


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
@click.option(
    "--log",
    "log_format",
    type=click.Choice(["short", "text", "json"]),
    default="short",
    show_default=True,
    help="The log on stderr: short lines, lines with time and context, or an object each.",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@common_options
def command(
    config_file: str | None,
    data_dir: str | None,
    listen: str | None,
    app: str | None,
    pid_file: str | None,
    log_format: str,
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
      keyop-hub -c /etc/keyop/hub.yaml --app billing.handlers:subscribe --log json
    """
    if listen is not None:
        try:
            split_address(listen)
        except ValueError as error:
            raise click.UsageError(f"--listen: {error}") from None
    register = None if app is None else _find_function(app)
    if config_file is None:
        messenger = Messenger(embedded_config(data_dir, listen or DEFAULT_ADDRESS))
    else:
        messenger = _ConfiguredHub(Config.load(config_file), data_dir, listen)
    _check_certificate(messenger.config)
    raise_descriptor_limit()
    logging.getLogger("keyop").setLevel(min(logging.INFO, logging.getLogger("keyop").level))
    with logging_as(log_format):
        return _serve(messenger, register, pid_file, embedded=config_file is None)


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


def _check_certificate(config: Config) -> None:
    """Find out before anything is created that no client could connect.

    Raises:
        ConfigError: the TLS files cannot be used, or the certificate has ended.
    """
    credentials = load_credentials(config.tls)
    if credentials is not None and credentials.expired():
        raise ConfigError(
            f"tls.cert: it has expired at {credentials.expires}, so that nobody could connect",
            config.tls.cert,
        )


def _serve(
    messenger: Messenger,
    register: Callable[[Messenger], object] | None,
    pid_file: str | None,
    embedded: bool,
) -> int:
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
        # What is there now stays: looking through it would hold everybody up for milliseconds.
        gc.collect()
        gc.freeze()
        gc.enable()
        with own_pid_file(pid_file):
            notify("READY=1")
            if messenger.hub_addr:
                print_line(f"{messenger.instance_name} listens on {messenger.hub_addr}")
            else:
                print_line("another process has the hub of this data directory; standing by")
            if messenger.web_addr:
                print_line(f"The operator's page is at http://{messenger.web_addr}/")
            if embedded:
                show_commands(messenger.config, messenger.hub_addr)
            stop.wait()
            notify("STOPPING=1")
            messenger.close()
    finally:
        messenger.close()
        for watcher in watchers:
            watcher.cancel()
    return status


def _find_function(app: str) -> Callable[[Messenger], None]:
    """Return what calls the function that ``MODULE:FUNCTION`` names.

    Modules of the working directory come first.

    Raises:
        click.UsageError: there is none.
        click.ClickException: the module failed, as the function may when it is called.
    """
    module_name, _, name = app.partition(":")
    if not module_name or not name:
        raise click.UsageError(f"--app {app!r}: name a module and a function, module:function")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"--app {app!r}: {error}") from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise _app_failed(app, error) from error
    if not callable(function):
        raise click.UsageError(f"--app {app!r}: {name} is no function")

    def register(messenger: Messenger) -> None:
        try:
            function(messenger)
        except Exception as error:  # likewise
            raise _app_failed(app, error) from error

    return register


def _app_failed(app: str, error: Exception) -> click.ClickException:
    logger.debug("--app %s failed", app, exc_info=error)
    return click.ClickException(f"--app {app!r}: {describe(error)}")


def main() -> None:
    """Run the hub; the entry point of ``bin/keyop-hub``."""
    run_program(command)
