"""Logging of a process that the command line started: one record a line, whatever is in it."""

import logging
import os
from collections.abc import Mapping, Sequence
from logging.config import dictConfig
from typing import Any

from ..errors import ConfigError
from ..observe import JsonFormatter, LineFormatter, RunFilter
from ..settings import get_settings

__all__ = ["JsonFormatter", "LineFormatter", "configure_logging", "logging_config"]

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


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
        "filters": {"run": {"()": RunFilter}},
        "handlers": {
            handler: {"class": "logging.StreamHandler", "level": number, "formatter": handler, "filters": ["run"]}
        },
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
