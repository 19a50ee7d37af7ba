"""Migrations of the run history, by Alembic."""

from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ...errors import HistoryError
from .store import Store

__all__ = ["VERSIONS", "upgrade"]

VERSIONS = "version"
"""Behind the name of the table of runs: the table of its revision, apart from that of an application's migrations."""


def upgrade(database: Any, table: str = "fluid_tasks") -> list[str]:
    """Create the tables of a history, or adopt those that there are. Return what was done, a line each.

    Raises:
        ConfigError: the URL, or the table's name, is not valid.
        HistoryError: the database is unavailable, or refuses.
        ImportError: Alembic, or the driver of the database, is missing.
    """
    try:
        from alembic import command
        from alembic.config import Config
    except ImportError as exc:
        raise ImportError("history upgrade needs Alembic: pip install 'fluidfast[db]'") from exc
    store = Store(database, table)
    done: list[str] = []
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    try:
        with store.engine.begin() as connection:
            config.attributes.update(connection=connection, store=store, done=done)
            command.upgrade(config, "head")
    except SQLAlchemyError as exc:
        raise HistoryError(f"history in {store.shown}: {store.reason(exc)}") from exc
    finally:
        store.close()
    return done
