"""Logging, under aio-fluid's name."""

import logging

from ..cli.logs import configure_logging as config
from ..cli.logs import level_number as get_level_num
from ..settings import get_settings

__all__ = ["config", "get_level_num", "get_logger"]


def get_logger(name: str = "", prefix: bool = False) -> logging.Logger:
    """Return the logger of a name (``""``: the application's, APP_NAME). ``prefix``: a child of the application's."""
    app = logging.getLogger(get_settings().app_name)
    if not name:
        return app
    return app.getChild(name) if prefix else logging.getLogger(name)
