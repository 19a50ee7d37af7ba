"""Logging of a process that the command line started: one record a line, whatever is in it."""

import logging
import os
from collections.abc import Mapping, Sequence
from logging.config import dictConfig
from typing import Any

import msgspec

from ..errors import ConfigError
from ..settings import get_settings

__all__ = ["configure_logging", "logging_config"]

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
BIDI = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
ESCAPES = {
    code: chr(code).encode("unicode_escape").decode()
    for code in (*range(32), *range(0x7F, 0xA0), *map(ord, BIDI))
    if code != 9
}
"""Characters that end a line, steer a terminal or turn the direction of text, and how they are shown."""


class LineFormatter(logging.Formatter):
    """Text. Control characters of a message are escaped, so that a record cannot pass for two or paint over another."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = record.message.translate(ESCAPES)
        return super().formatMessage(record)


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
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
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
    """A configuration for ``logging.config.dictConfig``.

    ``level``: of the loggers of ``app_names`` (and of APP_NAME and of ours); None: LOG_LEVEL. ``other_level``: of all
    others, if it is higher. ``log_handler``: ``plain``, ``json``, ``nicejson``, or a name among ``formatters``; None:
    the variable LOG_HANDLER, else ``plain``. ``log_format``: of ``plain``; None: PYTHON_LOG_FORMAT. ``formatters``:
    more of them, as in a ``dictConfig``.

    Raises:
        ConfigError: a level or a handler that is none.
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
        raise ConfigError(f"log_handler is {handler!r}, known are {', '.join(known)}")
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
    """Configure logging as ``logging_config`` says, and return that."""
    config = logging_config(**options)
    dictConfig(config)
    return config


def level_number(level: str | int) -> int:
    number = logging.getLevelName(level.upper()) if isinstance(level, str) else level
    if not isinstance(number, int):
        raise ConfigError(f"log level {level!r} is none")
    return number
