"""Shared by every command line of fluidfast: how commands are found, and how their errors and exit codes are shown.

``fluidfast`` itself and ``TaskManagerCLI``, the command line of an application, are groups of this kind.
"""

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from typing import IO, Any

import click

from ..errors import TaskError
from .display import one_line

__all__ = ["CommandError", "CommandGroup", "did_you_mean"]

READER_IS_GONE = 128 + 13
"""Exit code, as of a process that SIGPIPE ended."""
INTERRUPTED = 128 + 2


class CommandError(click.ClickException):
    """The command line asks for something that cannot be done. The message is one line."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"fluidfast: error: {one_line(self.message)}", file=file, err=file is None)


class Interrupted(click.ClickException):
    """Ctrl-C, where no command handles it."""

    exit_code = INTERRUPTED

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo("fluidfast: interrupted", file=file, err=file is None)


class CommandGroup(click.Group):
    """A group of commands that imports each one when it is called.

    ``lazy_subcommands``: name -> import string (``package.module:name``) of a click command.
    """

    def __init__(self, *args: Any, lazy_subcommands: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy_subcommands = dict(lazy_subcommands or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.lazy_subcommands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy_subcommands:
            return super().get_command(ctx, cmd_name)
        module_name, _, name = self.lazy_subcommands[cmd_name].partition(":")
        command = getattr(import_module(module_name), name, None)
        if not isinstance(command, click.Command):
            raise CommandError(f"{self.lazy_subcommands[cmd_name]} is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            names = self.list_commands(ctx)
            ctx.fail(f"no command {name!r}{did_you_mean(name, names) or '; there are ' + ', '.join(names)}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit(2)  # click 8.1 would say 0
        return super().parse_args(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with ending():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with ending():
            return super().invoke(ctx)


@contextmanager
def ending() -> Iterator[None]:
    """Turn the errors that end a command into their line on stderr and their exit code.

    If the reader of its output goes away (``| head``), a command ends quietly, with 141, as a shell says of others.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where it can be said that it failed
    except TaskError as exc:  # before OSError: a BrokerConnectionError is one
        raise CommandError(one_line(exc)) from exc
    except BrokenPipeError:
        discard_output()
        raise click.exceptions.Exit(READER_IS_GONE) from None
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        discard_output()
        raise CommandError(f"cannot write the output: {exc.strerror}") from exc
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None


def discard_output() -> None:
    """Let what is still to be written to stdout go nowhere: Python would try it, and fail, when it ends."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint, or nothing."""
    known = {other.casefold(): other for other in names if not other.startswith("_")}
    close = get_close_matches(name.casefold(), known, 1)
    return f", did you mean {known[close[0]]!r}?" if close else ""
