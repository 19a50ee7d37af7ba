"""``completion``: the script by which a shell completes commands, options and names of tasks."""

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

EPILOG = """\
exit codes: 0 done, 2 wrong usage

\b
to complete from now on:
  bash   echo 'eval "$(fluidfast completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(fluidfast completion zsh)"' >> ~/.zshrc
  fish   fluidfast completion fish > ~/.config/fish/completions/fluidfast.fish
"""


@click.command(epilog=EPILOG)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes `fluidfast` in a shell: bash (4.4 or newer), zsh or fish."""
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "fluidfast", "_FLUIDFAST_COMPLETE").source())
