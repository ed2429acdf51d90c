"""The ``keyop`` command: finds the command that was asked for."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

from keyop.cli.common import common_options
from keyop.cli.program import Program, run_program
from keyop.version import __version__

PROGRAM = "keyop"


class _Entry(NamedTuple):
    """What is known of a command before it is loaded: its module's name, and what it is for."""

    module: str
    purpose: str


COMMANDS = {
    "publish": _Entry("publish", "Publish a message, or a line of stdin each."),
    "subscribe": _Entry("subscribe", "Print messages as they come, or run a command for each."),
    "tail": _Entry("tail", "Show the last records of a channel, or any, and follow it."),
    "replay": _Entry("replay", "Deliver messages once more, to a subscriber or a channel."),
    "channels": _Entry("channels", "List channels, or remove one."),
    "subscribers": _Entry("subscribers", "List subscribers and how far they are, or forget one."),
    "stats": _Entry("stats", "Show figures of a data directory, once or all the time."),
    "dead-letter": _Entry("dead_letter", "Look at what was given up, send it again, delete it."),
    "export": _Entry("export", "Write the records of a channel to stdout, checked."),
    "import": _Entry("import_", "Append exported records to a channel, checked."),
    "check": _Entry("check", "Verify a data directory, and repair it."),
    "config": _Entry("config", "Check configuration files."),
    "keygen": _Entry("keygen", "Make certificates, look at them, take them back."),
    "demo": _Entry("demo", "Kill the programs at both ends of a channel; nothing is lost."),
    "completion": _Entry("completion", "Print a script that has a shell complete all this."),
    "version": _Entry("version", "Print the versions of keyop and Python."),
}


class LazyGroup(Program, click.Group):
    """A group that imports a command's module only when that command is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which a reader needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, or None if there is none of that name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = import_module(f"keyop.cli.{entry.module}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names; one that is none may be a slip."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], COMMANDS, 1)
            if not near:
                raise
            text = f"No such command {args[0]!r}. Did you mean {near[0]!r}?"
            raise click.UsageError(text, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.purpose) for name, entry in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what a word may go on as, without loading any command."""
        return [
            *(
                CompletionItem(name, help=entry.purpose)
                for name, entry in COMMANDS.items()
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]


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
