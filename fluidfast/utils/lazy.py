"""A click group whose commands are imported when somebody asks for them."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

__all__ = ["LazyGroup"]


class LazyGroup(click.Group):
    """A group of commands, some of them named by ``lazy_subcommands``: command -> ``"module:attribute"``.

    A command's module is imported by a call of the command and by the group's help.
    """

    def __init__(self, *, lazy_subcommands: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lazy_subcommands = dict(lazy_subcommands or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.lazy_subcommands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self.lazy_subcommands.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = place.rpartition(":")
        command = getattr(import_module(module), name)
        if not isinstance(command, click.Command):
            raise ValueError(f"command {cmd_name!r}: {place} is a {type(command).__name__}, not a click command")
        return command
