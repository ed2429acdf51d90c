"""``keyop version``."""

from __future__ import annotations

import platform

import click

from keyop.cli.common import common_options
from keyop.version import __version__


@click.command("version")
@common_options
def command() -> None:
    """Print the version of keyop, and of the Python that runs it.

    \b
    Exit status:
      0    always

    \b
    Example:
      keyop version
    """
    click.echo(f"keyop {__version__} (Python {platform.python_version()})")
