"""The ``keyop`` command: finds the command that was asked for, runs it, reports how it ended."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click
import gevent

from keyop.cli.common import Settings, common_options, log_to_stderr
from keyop.cli.output import complain
from keyop.errors import ConfigError, KeyopError
from keyop.version import __version__

PROGRAM = "keyop"
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
# As if SIGPIPE had ended it: what ``cat`` and the like do when their reader goes away.
EXIT_BROKEN_PIPE = 141

# Each command and the module below keyop.cli that has it, as ``command``.
COMMANDS = {
    "publish": "publish",
    "subscribe": "subscribe",
    "channels": "channels",
    "subscribers": "subscribers",
    "stats": "stats",
    "dead-letter": "dead_letter",
    "check": "check",
    "config": "config",
    "demo": "demo",
    "version": "version",
}

# What click from 8.2 on raises for a group without a command; before, it printed the help itself.
_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class LazyGroup(click.Group):
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

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run the command line and exit: 0 well, 1 failed, 2 called wrongly, 130 interrupted."""
        settings = Settings()
        log_to_stderr()
        sys.exit(self._run(list(sys.argv[1:] if args is None else args), settings))

    def _run(self, args: list[str], settings: Settings) -> int:
        try:
            with self.make_context(PROGRAM, args, obj=settings) as context:
                result = self.invoke(context)
            if sys.stdout is not None:
                sys.stdout.flush()
        except click.exceptions.Exit as end:
            return end.exit_code
        except click.UsageError as error:
            if isinstance(error, _NO_ARGUMENTS):  # its text is the whole help
                click.echo(error.format_message(), err=True)
                return EXIT_USAGE
            path = error.ctx.command_path if error.ctx is not None else PROGRAM
            complain(f"{error.format_message()} (see '{path} --help')")
            return error.exit_code
        except click.ClickException as error:
            complain(error.format_message())
            return error.exit_code
        except click.Abort:
            complain("aborted; nothing was changed")
            return EXIT_FAILURE
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except ConfigError as error:
            for problem in error.problems:
                complain(f"{error.source}: {problem}")
            return self._failed(settings)
        except BrokenPipeError:
            _give_up_stdout()
            return EXIT_BROKEN_PIPE
        except (KeyopError, OSError) as error:
            complain(describe(error))
            return self._failed(settings)
        except Exception as error:  # a fault of keyop's own, said in one line all the same
            complain(f"internal error: {describe(error)} (--debug shows where)")
            return self._failed(settings)
        return result if isinstance(result, int) else 0

    @staticmethod
    def _failed(settings: Settings) -> int:
        if settings.debug:
            traceback.print_exc()
        return EXIT_FAILURE


def describe(error: BaseException) -> str:
    """Return an error as one line for a person."""
    if isinstance(error, OSError) and not isinstance(error, KeyopError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, (KeyopError, OSError)):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _give_up_stdout() -> None:
    """Have nothing more written to a pipe that nobody reads, at exit for instance."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except OSError:  # not a file, or none at all
        pass


@click.group(
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
    # A file opened where a standard stream is closed would be taken for it.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    # Ctrl-C may come while everybody waits. It is raised in the main greenlet then, and the hub
    # is not to report it besides.
    hub = gevent.get_hub()
    hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)
    cli()
