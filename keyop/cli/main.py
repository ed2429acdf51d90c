"""The ``keyop`` command: finds the command that was asked for."""

from __future__ import annotations

from importlib import import_module

import click

from keyop.cli.common import common_options
from keyop.cli.program import Program, run_program
from keyop.version import __version__

PROGRAM = "keyop"

# Each command and the module below keyop.cli that has it, as ``command``.
COMMANDS = {
    "publish": "publish",
    "subscribe": "subscribe",
    "tail": "tail",
    "replay": "replay",
    "channels": "channels",
    "subscribers": "subscribers",
    "stats": "stats",
    "dead-letter": "dead_letter",
    "export": "export",
    "import": "import_",
    "check": "check",
    "config": "config",
    "keygen": "keygen",
    "demo": "demo",
    "completion": "completion",
    "version": "version",
}


class LazyGroup(Program, click.Group):
    """A group that imports a command's module only when that command is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which a reader needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, or None if there is none of that name."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = import_module(f"keyop.cli.{module}").command
        return command


@click.group(
    PROGRAM,
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Example:
  keyop publish orders '{"id": 7}'
  keyop subscribe orders --id billing --from earliest

The data directory is --data-dir, else $KEYOP_DATA_DIR, else ./keyop-data. Every command explains
itself with --help. Exit status: 0 well, 1 failed or problems found, 2 called wrongly, 130 after
Ctrl-C.""",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@common_options
def cli() -> None:
    """Durable publish and subscribe on plain files, with no broker to run."""


def main() -> None:
    """Run the command line; the entry point of ``bin/keyop``."""
    run_program(cli)
