"""What several commands share: their options, the configuration, the log on stderr."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import click

from keyop.cli.output import complain, printable_lines
from keyop.config import ClientConfig, Config, HubConfig, StorageConfig, WebConfig
from keyop.inspection import DataDirectory
from keyop.logs import LogHandler

DATA_DIR_VARIABLE = "KEYOP_DATA_DIR"
DEFAULT_DATA_DIR = "./keyop-data"
_COMMON_FLAGS = ("-v", "--verbose", "--debug")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """What holds for the whole run, wherever on the command line it was said."""

    debug: bool = False


class StderrHandler(logging.Handler):
    """Writes ``keyop: warning: text`` to whatever stderr is at that moment.

    ``latest`` is the text of the latest one.
    """

    latest = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; control characters in it are escaped."""
        self.latest = record.getMessage()
        complain(f"{record.levelname.lower()}: {self.latest}")
        if record.exc_info and logging.getLogger("keyop").level <= logging.DEBUG:
            text = logging.Formatter().formatException(record.exc_info)
            click.echo(printable_lines(text), err=True)


_handler = StderrHandler()


def was_logged(text: str) -> bool:
    """Whether the library itself said this just now, so that it need not be said again."""
    return _handler.latest == text


def log_to_stderr() -> None:
    """Have the library's warnings written to stderr; ``-v`` and ``--debug`` ask for more."""
    _handler.latest = ""
    library = logging.getLogger("keyop")
    library.setLevel(logging.WARNING)
    if _handler not in library.handlers:
        library.addHandler(_handler)
    # The command line has no classes to register for payloads, so that is nothing to warn of.
    logging.getLogger("keyop.payloads").setLevel(logging.ERROR)


@contextmanager
def logging_as(log_format: str) -> Iterator[None]:
    """Write the library's log otherwise: ``text`` with times and context, or as ``json``.

    Under ``short`` it stays what :func:`log_to_stderr` has set up.
    """
    if log_format == "short":
        yield
        return
    library = logging.getLogger("keyop")
    handler = LogHandler(as_json=log_format == "json")
    library.addHandler(handler)
    library.removeHandler(_handler)
    try:
        yield
    finally:
        library.addHandler(_handler)
        library.removeHandler(handler)
        handler.close()


def _be_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    library = logging.getLogger("keyop")
    if value:
        library.setLevel(min(logging.INFO, library.level))


def _be_debugging(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        logging.getLogger("keyop").setLevel(logging.DEBUG)
        ctx.ensure_object(Settings).debug = True


def is_verbose() -> bool:
    """Whether ``-v`` or ``--debug`` was given."""
    return logging.getLogger("keyop").level <= logging.INFO


def common_options(function: F) -> F:
    """Add ``-v`` and ``--debug``, which may stand before or behind the command's name."""
    flag: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True}
    verbose = click.option(
        "-v", "--verbose", callback=_be_verbose, help="Say on stderr what is done.", **flag
    )
    debug = click.option("--debug", callback=_be_debugging, help="Show tracebacks.", **flag)
    return verbose(debug(function))


def json_option(function: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Write JSON, sizes in bytes.")(
        function
    )


def yes_option(function: F) -> F:
    """Add ``--yes``."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(function)


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--data-dir``, ``-c`` and the common options; the command is given a ``config``."""

    @click.option(
        "--data-dir",
        metavar="DIR",
        type=click.Path(),
        help=f"The data directory; else ${DATA_DIR_VARIABLE}, else {DEFAULT_DATA_DIR}.",
    )
    @click.option(
        "-c",
        "--config",
        "config_file",
        metavar="FILE",
        type=click.Path(),
        help="A configuration file instead; only its storage and delivery keys matter here.",
    )
    @common_options
    @wraps(function)
    def wrapper(*args: Any, data_dir: str | None, config_file: str | None, **kwargs: Any) -> Any:
        return function(*args, config=resolve_config(data_dir, config_file), **kwargs)

    return wrapper


def resolve_config(data_dir: str | None, config_file: str | None) -> Config:
    """Return the configuration that the options and the environment ask for.

    Raises:
        click.UsageError: both options were given.
        ConfigError: the file cannot be used.
    """
    if config_file is not None:
        if data_dir is not None:
            raise click.UsageError("give --data-dir or --config, not both")
        # A command on the side of a running hub or client must not become a second one, or serve
        # the page in its place.
        return replace(
            Config.load(config_file), hub=HubConfig(), client=ClientConfig(), web=WebConfig()
        )
    if data_dir is None:
        data_dir = os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR
    return Config(storage=StorageConfig(data_dir=data_dir))


def look_at(config: Config) -> DataDirectory:
    """Return a view of the data directory, which must be there.

    Raises:
        StorageError: it is not, or holds nothing of keyop's.
    """
    return DataDirectory(config.storage.data_dir)


class ListByDefault(click.Group):
    """A group whose command ``list`` runs where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``list`` in front of arguments that do not begin with a command."""
        if ctx.resilient_parsing:  # a shell completes, perhaps the name of a command
            return super().parse_args(ctx, args)
        flags = 0
        while flags < len(args) and args[flags] in _COMMON_FLAGS:
            flags += 1
        rest = args[flags:]
        if not rest or (rest[0] not in self.commands and rest[0] not in ctx.help_option_names):
            rest = ["list", *rest]
        return super().parse_args(ctx, [*args[:flags], *rest])
