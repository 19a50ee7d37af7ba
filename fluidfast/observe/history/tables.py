"""The tables of the run history. That of the runs is the one of aio-fluid's ``TaskDbPlugin``."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from ...checks import shown
from ...errors import ConfigError

__all__ = ["STATES", "attempts_table", "check_name", "runs_table", "stored_state"]

STATES = ("init", "queued", "running", "success", "failure", "aborted", "rate_limited", "interrupted")
"""The labels of the type ``taskstate``, which existing tables have."""
MAX_NAME = 40
"""Characters of a table's name: PostgreSQL cuts the names of its indexes at 63."""


def stored_state(state: str) -> str:
    """Return the state as the table has it: one that ``taskstate`` lacks is stored as aborted."""
    return state if state in STATES else "aborted"


def check_name(name: str) -> str:
    """Return a table's name.

    Raises:
        ConfigError: it is not a plain identifier, or too long.
    """
    if not (name.replace("-", "_").isidentifier() and name.isascii() and len(name) <= MAX_NAME):
        raise ConfigError(
            f"the table is named {shown(name)}; give it a name of at most {MAX_NAME} letters, digits, _ and -"
        )
    return name


def runs_table(name: str, metadata: sa.MetaData, *, wide: bool = False) -> sa.Table:
    """The table of runs, a row for each.

    ``wide``: with ids and names up to 255 characters. aio-fluid's have 32 and 64, and migrations of its users compare
    them with the database.
    """
    table = sa.Table(
        name,
        metadata,
        sa.Column("id", sa.String(255 if wide else 32), primary_key=True),
        sa.Column("name", sa.String(255 if wide else 64), nullable=False, index=True),
        sa.Column("priority", sa.String(64), nullable=False, index=True),
        sa.Column("state", sa.Enum(*STATES, name="taskstate"), nullable=False, index=True),
        sa.Column("queued", sa.DateTime(timezone=True), nullable=False, index=True),
        sa.Column("start", sa.DateTime(timezone=True)),
        sa.Column("end", sa.DateTime(timezone=True)),
        sa.Column("params", sa.JSON().with_variant(JSONB(), "postgresql")),
    )
    sa.Index(f"ix_{name}_params", table.c.params, postgresql_using="gin").ddl_if(dialect="postgresql")
    return table


def attempts_table(name: str, metadata: sa.MetaData) -> sa.Table:
    """The table of attempts beside the table of runs ``name``."""
    text: dict[str, Any] = {"nullable": False, "server_default": ""}
    return sa.Table(
        f"{name}_attempts",
        metadata,
        sa.Column("run_id", sa.String(255), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("task", sa.String(255), nullable=False),
        sa.Column("worker", sa.String(255), **text),
        sa.Column("state", sa.String(64), nullable=False),
        sa.Column("start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end", sa.DateTime(timezone=True), nullable=False, index=True),
        sa.Column("error", sa.Text, **text),
        sa.Column("place", sa.Text, **text),
        sa.Column("traceback", sa.Text, **text),
        sa.Column("trace_id", sa.String(32), **text),
    )
