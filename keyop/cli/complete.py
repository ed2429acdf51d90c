"""What a shell may complete: names that the data directory holds."""

from __future__ import annotations

import click

from keyop.cli.common import look_at, resolve_config
from keyop.errors import KeyopError
from keyop.inspection import DataDirectory
from keyop.names import DEAD_LETTER_SUFFIX, is_dead_letter
from keyop.storage.offsets import list_ids


def channels(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the channels that begin so; dead-letter channels once their name is reached."""
    directory = _directory(ctx)
    names = [] if directory is None else _names(directory)
    fitting = [name for name in names if name.startswith(incomplete)]
    return [name for name in fitting if not is_dead_letter(name)] or fitting


def failed_channels(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the channels with dead letters that begin so."""
    directory = _directory(ctx)
    names = [] if directory is None else _names(directory)
    found = [name.removesuffix(DEAD_LETTER_SUFFIX) for name in names if is_dead_letter(name)]
    return [name for name in found if name.startswith(incomplete)]


def subscribers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids that have a position in the channel of the command line and begin so."""
    # Behind an option that has no value yet, click leaves the arguments unread.
    channel = ctx.params.get("channel") or next(iter(ctx.args), None)
    directory = _directory(ctx)
    if directory is None or channel not in _names(directory):
        return []
    try:
        ids = list_ids(directory.fs, directory.offsets_directory(channel))
    except OSError:  # may not be looked at: nothing to offer
        return []
    return [each for each in ids if each.startswith(incomplete)]


def _directory(ctx: click.Context) -> DataDirectory | None:
    """Return the data directory that the command would use; None where there is none to use."""
    try:
        options = ctx.params
        return look_at(resolve_config(options.get("data_dir"), options.get("config_file")))
    except (KeyopError, OSError, click.UsageError):
        return None


def _names(directory: DataDirectory) -> list[str]:
    try:
        return directory.names()
    except KeyopError:
        return []
