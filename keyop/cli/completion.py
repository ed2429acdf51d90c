"""``keyop completion``: what a shell needs to complete command lines."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from keyop.cli.common import common_options
from keyop.cli.program import completion_variable


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that has SHELL complete commands, options, channels and subscribers.

    Names come from the data directory of the command line, else of $KEYOP_DATA_DIR, at the moment
    of the completion. Nothing is installed: where the script goes is up to you. bash needs
    version 4.4 or newer.

    \b
    Exit status:
      0    printed
      2    called wrongly

    \b
    Examples:
      mkdir -p ~/.local/share/bash-completion/completions
      keyop completion bash > ~/.local/share/bash-completion/completions/keyop
      keyop completion zsh > "${fpath[1]}/_keyop"
      keyop completion fish > ~/.config/fish/completions/keyop.fish
      source <(keyop completion bash)
    """
    root = ctx.find_root()
    name = root.command.name or ""
    found = get_completion_class(shell)
    assert found is not None
    completion = found(root.command, {}, name, completion_variable(name))
    # Not source(), which asks the bash that happens to be on this machine for its version.
    click.echo(completion.source_template % completion.source_vars())
