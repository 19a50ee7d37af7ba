"""Logging of a process that the command line started: one record a line, whatever is in it."""

import logging
import os
from collections.abc import Mapping, Sequence
from logging.config import dictConfig
from typing import Any

import msgspec

from ..errors import ConfigError
from ..settings import get_settings
from ..texts import printable

__all__ = ["configure_logging", "logging_config"]

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
MAX_MESSAGE = 32_768
"""Characters of a message that are shown."""
MAX_TRACEBACK = 65_536
"""Characters of a traceback that are shown."""
ASCII_CONTROLS = "".join(map(chr, range(32)))
"""Characters that JSON escapes itself."""


class LineFormatter(logging.Formatter):
    """Text: one line a record, and its traceback. Control characters are escaped, so that a record cannot pass for two
    or paint over another."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message, MAX_MESSAGE, keep="\t")
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        text = self.formatMessage(record)
        for block in tracebacks(self, record).values():
            text += f"\n{printable(block, MAX_TRACEBACK, keep=TRACEBACK_BREAKS)}"
        return text


TRACEBACK_BREAKS = "\n\t"


def tracebacks(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, str]:
    """The traceback and the stack of a record. Not the text that another handler has left in it: that may be raw."""
    blocks = {}
    if record.exc_info and record.exc_info[0] is not None:
        blocks["exception"] = formatter.formatException(record.exc_info)
    elif record.exc_text:  # of another process
        blocks["exception"] = record.exc_text
    if record.stack_info:
        blocks["stack"] = formatter.formatStack(record.stack_info)
    return blocks


class JsonFormatter(logging.Formatter):
    """A JSON object a record: time, level, name, message, and the traceback if there is one."""

    def __init__(self, *args: Any, indent: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.indent = indent

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "name": record.name,
            "message": printable(record.getMessage(), MAX_MESSAGE, keep=ASCII_CONTROLS),
        }
        for name, block in tracebacks(self, record).items():
            fields[name] = printable(block, MAX_TRACEBACK, keep=ASCII_CONTROLS)
        encoded = msgspec.json.encode(fields)
        return (msgspec.json.format(encoded, indent=self.indent) if self.indent else encoded).decode()


def logging_config(
    level: str | int | None = None,
    other_level: str | int = logging.WARNING,
    app_names: Sequence[str] | None = None,
    log_handler: str | None = None,
    log_format: str | None = None,
    formatters: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return a configuration for ``logging.config.dictConfig``.

    ``level``: level of the loggers of ``app_names``, APP_NAME and fluidfast (None: LOG_LEVEL).
    ``other_level``: level of all other loggers, if it is higher than ``level``.
    ``log_handler``: ``plain``, ``json``, ``nicejson``, or a name in ``formatters`` (None: LOG_HANDLER, else ``plain``).
    ``log_format``: format of ``plain`` (None: PYTHON_LOG_FORMAT).
    ``formatters``: more formatters, as in a ``dictConfig``.

    Raises:
        ConfigError: a level or a handler is unknown.
    """
    settings = get_settings()
    number = level_number(settings.log_level if level is None else level)
    known: dict[str, Any] = {
        "plain": {"()": LineFormatter, "format": log_format or os.environ.get("PYTHON_LOG_FORMAT") or FORMAT},
        "json": {"()": JsonFormatter},
        "nicejson": {"()": JsonFormatter, "indent": 2},
        **(formatters or {}),
    }
    handler = log_handler or os.environ.get("LOG_HANDLER") or "plain"
    if handler not in known:
        raise ConfigError(f"log_handler is {handler!r}, it must be one of {', '.join(known)}")
    apps = {settings.app_name, "fluidfast", *(app_names or ())}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": known,
        "handlers": {handler: {"class": "logging.StreamHandler", "level": number, "formatter": handler}},
        "loggers": {name: {"level": number, "handlers": [handler], "propagate": False} for name in apps},
        "root": {"level": max(number, level_number(other_level)), "handlers": [handler]},
    }


def configure_logging(**options: Any) -> dict[str, Any]:
    """Configure logging with ``logging_config(**options)``, and return that configuration."""
    config = logging_config(**options)
    dictConfig(config)
    return config


def level_number(level: str | int) -> int:
    number = logging.getLevelName(level.upper()) if isinstance(level, str) else level
    if not isinstance(number, int):
        raise ConfigError(f"{level!r} is not a log level; use DEBUG, INFO, WARNING, ERROR, CRITICAL or a number")
    return number
