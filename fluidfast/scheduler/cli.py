"""The command line, under aio-fluid's name. Needs the extra ``cli``."""

from ..cli import DEFAULT_COMMANDS, TaskManagerCLI

__all__ = ["DEFAULT_COMMANDS", "TaskManagerCLI"]
