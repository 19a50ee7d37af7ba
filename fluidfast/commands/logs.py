"""The log of a worker process: on stderr, unless the application has set up logging itself."""

import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from ..observe import JsonFormatter, LineFormatter, RunFilter
from ..observe._runs import RunLines
from ..observe.writer import LineHandler, LineWriter
from ..settings import get_settings
from .group import CommandError

__all__ = ["FORMATS", "LEVELS", "Log"]

logger = logging.getLogger("fluidfast.worker")

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
FORMATS = ("console", "json")


class Log:
    """Sets up logging, to be made when the application has been imported.

    Handlers that the application has installed stay as they are, but for a ``RunFilter``, which adds fields to records
    and drops none. Without any on the root logger, all records go to stderr through a ``LineWriter``.

    ``level``: of the root logger; None: LOG_LEVEL, if the application has not set up logging. ``format``: ``"console"``
    or ``"json"``; None: ``"console"``.

    ``direct``: whether lines are written by the thread that logs them, in place of one of their own.

    Raises:
        CommandError: LOG_LEVEL is no level.
    """

    def __init__(self, level: str | None, format: str | None, *, direct: bool = False) -> None:
        self._json = format == "json"
        formatter = JsonFormatter() if self._json else LineFormatter()
        self._writer = LineWriter(stderr(), lost=partial(told_lost, formatter), direct=direct)
        self._handler = LineHandler(self._writer)
        self._handler.setFormatter(formatter)
        root = logging.getLogger()
        is_ours = not root.handlers
        if is_ours:
            root.addHandler(self._handler)
            level = level or get_settings().log_level
            if level not in logging.getLevelNamesMapping():
                raise CommandError(f"LOG_LEVEL={level!r} must be one of {', '.join(LEVELS)}")
        if level is not None:
            root.setLevel(level)
        add_filter(RunFilter())
        if format is not None and not is_ours:
            logger.warning(
                "the application has set up logging itself: --log-format is for the lines of --log-runs only"
            )

    def flush(self) -> None:
        """Wait for what is not written yet, at the end of the process."""
        self._writer.flush()

    def of_runs(self) -> Callable[[Any], None]:
        """Return what logs a line for each run that it is called with."""
        return RunLines(partial(self._writer.put, now=False), as_json=self._json)


def add_filter(found: logging.Filter) -> None:
    """Add a filter to every handler of every logger, unless it has one of that kind."""
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    for handler in {handler for one in loggers if isinstance(one, logging.Logger) for handler in one.handlers}:
        if not any(isinstance(other, type(found)) for other in handler.filters):
            handler.addFilter(found)


def stderr() -> int:
    """Return the file descriptor of ``sys.stderr``, 2 if that is no file."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2


def told_lost(formatter: logging.Formatter, count: int) -> str:
    """Return the line that says how many were lost."""
    fields = {"name": "fluidfast.log", "levelname": "WARNING", "levelno": logging.WARNING}
    text = f"{count:,} lines of the log were dropped, its reader is too slow"
    return formatter.format(logging.makeLogRecord({**fields, "msg": text}))
