"""The page docs/reference/cli.md, made of the commands' own help: ``python tests/kits/cli_page.py`` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import click
import msgspec

from fluidfast import TaskManager, TaskRun, task
from fluidfast.cli import TaskManagerCLI
from fluidfast.commands import cli

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
WIDTH = 80

HEAD = """\
# Command line

`fluidfast` and `python -m fluidfast` are the same. Below is the `--help` of each command, from which this page is made.
[Workers, files of runs and dead letters](../how-to/commands.md) shows them at work.

Every command writes its results to stdout, and its log, progress and errors to stderr. An error is one line, and begins
with `fluidfast: error:`. There is a bar and colour only on a terminal; `NO_COLOR` takes the colour away. Tables are 80
columns wide where there is no terminal, or `COLUMNS`.

| exit code | |
|---|---|
| 0 | done |
| 1 | an error, or something that failed: see the command |
| 2 | wrong usage |
| 130 | Ctrl-C, or a signal that stopped it before its end |
| 141 | the reader of the output went away, as in `fluidfast dead app:manager list \\| head -1` |
"""

APPLICATION = """
## The command line of an application

`TaskManagerCLI("myapp.tasks:task_app")()` in the application's `__main__` has these commands. Its `worker`, `queue` and
`dead` are those from above without TARGET, since it knows its manager.
"""


class Mail(msgspec.Struct):
    to: Annotated[str, msgspec.Meta(description="the address")]
    copies: int = 1


@task
async def send_mail(ctx: TaskRun[Mail]) -> None:
    """Send a mail."""


def text() -> str:
    sections = [HEAD]
    sections += [section(*each) for each in commands(cli, "fluidfast", SETTINGS)]
    manager = TaskManager(broker_url="memory://cli-page")
    manager.register_task(send_mail)
    sections.append(APPLICATION)
    for name, shown in commands(TaskManagerCLI(manager), "python -m myapp", {}):
        if name.split()[3:4] in (["ls"], ["exec"], ["serve"], ["enable"]):
            sections.append(section(name, shown))
    return "".join(sections)


SETTINGS = {"help_option_names": ["-h", "--help"]}


def section(name: str, shown: str) -> str:
    level = "##" if name.startswith("fluidfast") else "###"
    return f"\n{level} {name}\n\n```text\n{shown}\n```\n"


def commands(
    command: click.Command, name: str, settings: dict[str, Any], parent: click.Context | None = None, path: str = ""
) -> Iterator[tuple[str, str]]:
    """The path and the help of a command, and of all commands in it."""
    path = f"{path} {name}".strip()
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, **settings)
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            inner = command.get_command(context, each)
            assert inner is not None
            yield from commands(inner, each, {}, context, path)


if __name__ == "__main__":
    PAGE.write_text(text())
