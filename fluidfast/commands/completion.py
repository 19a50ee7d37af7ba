"""``completion``: the script by which a shell completes commands, options and names of tasks."""

import os

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class, split_arg_string

__all__ = ["completion", "know_bash"]

VARIABLE = "_FLUIDFAST_COMPLETE"
"""Environment variable by which the script asks for completions."""

EPILOG = """\
exit codes: 0 done, 2 wrong usage

\b
to complete from now on:
  bash   echo 'eval "$(fluidfast completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(fluidfast completion zsh)"' >> ~/.zshrc
  fish   fluidfast completion fish > ~/.config/fish/completions/fluidfast.fish
"""


@click.command(epilog=EPILOG, short_help="Print the script of a shell's completion.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes `fluidfast` in a shell: bash (4.4 or newer), zsh or fish."""
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "fluidfast", VARIABLE).source())


class Bash(BashComplete):
    """Bash takes ``app:manager`` for three words."""

    def get_completion_args(self) -> tuple[list[str], str]:
        given, at = split_arg_string(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
        words: list[str] = []
        for word in given[: at + 1]:
            if words and (word == ":" or words[-1].endswith(":")):
                words[-1] += word
            else:
                words.append(word)
        incomplete = words.pop() if at < len(given) else ""
        return words[1:], incomplete


def know_bash() -> None:
    """Have click ask ``Bash`` for bash's completions."""
    add_completion_class(Bash, "bash")
