"""A command that is a program: runs what was asked for, reports how it ended, exits."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from click.shell_completion import shell_complete

from keyop.cli.common import Settings, log_to_stderr, was_logged
from keyop.cli.interrupt import interrupted_where_it_waits
from keyop.cli.output import complain, printable_lines
from keyop.errors import ConfigError, KeyopError
from keyop.fs import NO_ROOM

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
# As if SIGPIPE had ended it: what ``cat`` and the like do when their reader goes away.
EXIT_BROKEN_PIPE = 141

# What click from 8.2 on raises for a group without a command; before, it printed the help itself.
_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Program(click.Command):
    """Every error is one line on stderr, and an exit status."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run the command line and exit: 0 well, 1 failed, 2 called wrongly, 130 interrupted."""
        settings = Settings()
        log_to_stderr()
        try:
            status = self._run(list(sys.argv[1:] if args is None else args), settings)
        except KeyboardInterrupt:  # while an error was being told of
            status = EXIT_INTERRUPTED
        sys.exit(status)

    def _run(self, args: list[str], settings: Settings) -> int:
        try:
            with self.make_context(self.name, args, obj=settings) as context:
                result = self.invoke(context)
            if sys.stdout is not None:
                sys.stdout.flush()
        except click.exceptions.Exit as end:
            return end.exit_code
        except click.UsageError as error:
            if isinstance(error, _NO_ARGUMENTS):  # its text is the whole help
                click.echo(error.format_message(), err=True)
                return EXIT_USAGE
            path = error.ctx.command_path if error.ctx is not None else self.name
            complain(f"{error.format_message()} (see '{path} --help')")
            return error.exit_code
        except click.ClickException as error:
            complain(error.format_message())
            return error.exit_code
        except click.Abort as abort:
            # Ctrl-C is one way to answer a question, and leaves the cursor behind it.
            interrupted = isinstance(abort.__context__, KeyboardInterrupt)
            if interrupted:
                click.echo(err=True)
            complain("aborted; nothing was changed")
            return EXIT_INTERRUPTED if interrupted else EXIT_FAILURE
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
            if not was_logged(describe(error)):
                complain(describe(error))
            return self._failed(settings)
        except Exception as error:  # a fault of keyop's own, said in one line all the same
            complain(f"internal error: {describe(error)} (--debug shows where)")
            return self._failed(settings)
        return result if isinstance(result, int) else 0

    @staticmethod
    def _failed(settings: Settings) -> int:
        if settings.debug:
            click.echo(printable_lines(traceback.format_exc()), err=True, nl=False)
        return EXIT_FAILURE


def describe(error: BaseException) -> str:
    """Return an error as one line for a person."""
    if isinstance(error, OSError) and not isinstance(error, KeyopError) and error.strerror:
        if error.filename:
            return f"{error.filename}: {error.strerror}"
        # Errors of files that have a name tell it.
        where = "stdout cannot be written: " if error.errno in NO_ROOM else ""
        return f"{where}{error.strerror}"
    if isinstance(error, (KeyopError, OSError)):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _give_up_stdout() -> None:
    """Have nothing more written to a pipe that nobody reads, at exit for instance."""
    try:
        stdout = sys.stdout.fileno()
    except (AttributeError, OSError):  # none at all, or not a file
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stdout)
    os.close(null)


def completion_variable(name: str) -> str:
    """Return the environment variable in which a shell asks a program to complete."""
    return f"_{name.upper().replace('-', '_')}_COMPLETE"


def run_program(program: click.Command) -> None:
    """Run a program as the whole process; the entry point of a script."""
    name = program.name or ""
    asked = os.environ.get(completion_variable(name))
    if asked is not None:
        sys.exit(shell_complete(program, {}, name, completion_variable(name), asked))
    # A file opened where a standard stream is closed would be taken for it.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    # JSON of peers may be 1,024 deep, and each level is a call or two of what writes it.
    sys.setrecursionlimit(max(10_000, sys.getrecursionlimit()))
    with interrupted_where_it_waits():
        program()
