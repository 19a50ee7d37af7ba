"""The database of the run history: connections, batches of rows, pages. Everything here blocks.

History is written and read in threads, by a synchronous driver: it needs no event loop, so a program may have several,
or none.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from time import monotonic
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, SQLAlchemyError

from ...checks import shown
from ...core._time import keep_for_good
from ...core.states import TaskPriority, TaskState
from ...errors import ConfigError, HistoryError
from ...texts import error_text, printable
from .records import (
    MAX_LIMIT,
    Attempt,
    HistoryPage,
    HistoryQuery,
    RunDetail,
    RunRecord,
    cleaned,
    contains,
    cursor_of,
    is_storable,
    position_of,
    utc,
)  # fmt: skip
from .tables import attempts_table, check_name, runs_table, stored_state

__all__ = ["Row", "Store", "engine_of", "is_at_fault"]

SLICE = 5_000
"""Rows that are deleted in one transaction."""
READ_SECONDS = 10.0
"""Time limit of a page."""
WRITE_SECONDS = 60.0
"""Time limit of a batch."""
ASYNCPG_ONLY = ("ssl", "prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback")


class Row(NamedTuple):
    """A run as it is written. Times are microseconds since the epoch; 0: none. ``params`` is JSON."""

    id: str
    name: str
    priority: str
    state: str
    queued: int
    start: int
    end: int
    params: bytes


def engine_of(database: Any) -> sa.Engine:
    """Return a synchronous engine for a URL, for the URL of an async engine or of aio-fluid's CrudDB, or this engine.

    Raises:
        ConfigError: it is none of these, or of another database than PostgreSQL and SQLite.
    """
    if isinstance(database, sa.Engine):
        refuse_memory(database.url)
        return prepared(database)
    given = database if isinstance(database, str) else getattr(database, "url", database)
    if not isinstance(given, str | sa.URL):
        raise ConfigError(
            f"the history was given {shown(database)}; give it a database URL, an engine of SQLAlchemy, or aio-fluid's "
            "CrudDB"
        )
    try:
        url = sa.make_url(given)
    except (ArgumentError, ValueError):
        raise ConfigError("the history's database URL is not valid: postgresql://USER:PASSWORD@HOST/NAME") from None
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        query = {name: value for name, value in url.query.items() if name not in ASYNCPG_ONLY}
        if ssl := url.query.get("ssl"):  # as asyncpg has it
            query["sslmode"] = {"true": "require", "false": "disable"}.get(str(ssl).lower(), str(ssl))
        limits = {"connect_timeout": 10, "tcp_user_timeout": 30_000, "prepare_threshold": None}  # None: for PgBouncer
        arguments = {name: value for name, value in limits.items() if name not in query}
        url = url.set(drivername="postgresql+psycopg", query=query)
        try:
            return prepared(sa.create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_size=2))
        except ImportError as exc:
            raise ImportError("history in PostgreSQL needs psycopg: pip install 'fluidfast[db]'") from exc
    if backend == "sqlite":
        refuse_memory(url)
        return prepared(sa.create_engine(url.set(drivername="sqlite"), connect_args={"timeout": 10.0}, pool_size=2))
    raise ConfigError(f"the history cannot use {shown(backend)}: it takes PostgreSQL and SQLite")


def refuse_memory(url: sa.URL) -> None:
    if url.get_backend_name() == "sqlite" and (not url.database or ":memory:" in url.database):
        raise ConfigError(
            "an SQLite database in memory belongs to one connection, and the history has several: give it a file, "
            "sqlite:///history.db"
        )


def prepared(engine: sa.Engine) -> sa.Engine:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", prepare_sqlite)
    return engine


def prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.create_function("history_contains", 2, text_contains, deterministic=True)


def text_contains(whole: str | None, part: str) -> bool:
    return whole is not None and contains(json.loads(whole), json.loads(part))


def is_at_fault(exc: Exception) -> bool:
    """Return whether a batch failed for one of its rows, and not for the database."""
    if isinstance(exc, SQLAlchemyError):
        return isinstance(exc, DataError | IntegrityError)
    return isinstance(exc, ValueError | TypeError | OverflowError)  # a text that is not UTF-8


class Store:
    """The two tables in one database."""

    def __init__(self, database: Any, table: str, *, schema: str | None = None) -> None:
        self.engine = engine_of(database)
        self.metadata = sa.MetaData(schema=schema)
        self.runs = runs_table(check_name(table), self.metadata)
        self.attempts = attempts_table(table, self.metadata)
        self.is_postgres = self.engine.dialect.name == "postgresql"
        self._quote = self.engine.dialect.identifier_preparer
        self._state_type = ""
        self._has_attempts: bool | None = None

    @property
    def shown(self) -> str:
        """The database without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    def forked(self) -> None:
        """Leave the connections to the parent of this process."""
        keep_for_good(self.engine.pool)
        self.engine.dispose(close=False)

    def close(self) -> None:
        """Close the connections. Later calls open new ones."""
        self.engine.dispose()

    # -- writing

    def write(self, rows: Sequence[Row], attempts: Sequence[Attempt]) -> None:
        """Write a batch in one transaction. The ids of ``rows``, and those of ``attempts``, differ.

        A row replaces one of an earlier event only. Raises errors of SQLAlchemy.
        """
        with self.engine.begin() as connection:
            if self._has_attempts is None:
                self._look(connection)
            if self.is_postgres:
                self._write_postgres(connection, rows, attempts)
            else:
                self._write_sqlite(connection, rows, attempts)

    def _look(self, connection: sa.Connection) -> None:
        """Look at the tables that there are. In SQLite, make those that there are not."""
        if not self.is_postgres:
            self.metadata.create_all(connection)
            self._has_attempts = True
            return
        names = sa.inspect(connection).get_table_names(schema=self.runs.schema)
        found = connection.exec_driver_sql(TYPE_OF_STATE, (self._name(self.runs),)).scalar()
        self._state_type = found or "taskstate"
        if self.runs.name in names:  # else the next batch looks again
            self._has_attempts = self.attempts.name in names

    def _name(self, table: sa.Table) -> str:
        return self._quote.format_table(table)

    def _write_postgres(self, connection: sa.Connection, rows: Sequence[Row], attempts: Sequence[Attempt]) -> None:
        # One statement with one parameter, which is sorted: two processes that write the same ids lock them in the same
        # order. COPY into a temporary table took two to three times the CPU in this process, and as long on the server.
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(WRITE_SECONDS * 1000)}")
        if rows:
            table = self._name(self.runs)
            data = [(*row[:4], row.queued, row.start or None, row.end or None, msgspec.Raw(row.params)) for row in rows]
            connection.exec_driver_sql(
                f"""
                INSERT INTO {table} AS t (id, name, priority, state, queued, start, "end", params)
                SELECT r->>0, r->>1, r->>2, (r->>3)::{self._state_type}, {moment(4)}, {moment(5)}, {moment(6)},
                       (r->7)::jsonb
                FROM json_array_elements(%s::json) AS r
                ON CONFLICT (id) DO UPDATE SET {REPLACED} WHERE {IS_LATER}
                """,
                (msgspec.json.encode(data).decode(),),
            )
        if attempts and self._has_attempts:
            connection.exec_driver_sql(
                f"""
                INSERT INTO {self._name(self.attempts)} AS t ({ATTEMPT})
                SELECT {ATTEMPT} FROM json_to_recordset(%s::json) AS r (
                    run_id text, attempt int, task text, worker text, state text, start timestamptz, "end" timestamptz,
                    error text, place text, traceback text, trace_id text
                )
                ON CONFLICT (run_id, attempt) DO UPDATE SET {REPLACED_ATTEMPT} WHERE excluded."end" >= t."end"
                """,
                (msgspec.json.encode(attempts).decode(),),
            )

    def _write_sqlite(self, connection: sa.Connection, rows: Sequence[Row], attempts: Sequence[Attempt]) -> None:
        if rows:
            connection.exec_driver_sql(
                f"""
                INSERT INTO {self._name(self.runs)} AS t (id, name, priority, state, queued, start, "end", params)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET {REPLACED} WHERE {IS_LATER}
                """,
                [(*row[:4], *map(text_of, row[4:7]), row.params.decode()) for row in rows],
            )
        if attempts:
            connection.exec_driver_sql(
                f"""
                INSERT INTO {self._name(self.attempts)} AS t ({ATTEMPT})
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (run_id, attempt) DO UPDATE SET {REPLACED_ATTEMPT} WHERE excluded."end" >= t."end"
                """,
                [
                    tuple(text_of_moment(value) if isinstance(value, datetime) else value for value in fields)
                    for fields in map(msgspec.structs.astuple, attempts)
                ],
            )

    def prune(self, before: datetime) -> int:
        """Delete up to 5,000 of the runs that were queued, and ended, before this. Return how many there were."""
        t = self.runs.c
        old = sa.select(t.id).where(t.queued < before, sa.or_(t.end.is_(None), t.end < before))
        old = old.order_by(t.queued).limit(SLICE).with_for_update(skip_locked=True)
        a = self.attempts.c
        with self._reading(WRITE_SECONDS) as connection:
            deleted = connection.execute(sa.delete(self.runs).where(t.id.in_(old.scalar_subquery()))).rowcount
            if deleted < SLICE and sa.inspect(connection).has_table(self.attempts.name, schema=self.runs.schema):
                keys = sa.select(a.run_id, a.attempt).where(a.end < before).limit(SLICE)
                found = connection.execute(keys.with_for_update(skip_locked=True)).all()
                if found:
                    gone = sa.tuple_(a.run_id, a.attempt).in_([tuple(row) for row in found])
                    deleted += connection.execute(sa.delete(self.attempts).where(gone)).rowcount
            connection.commit()
        return int(deleted)

    # -- reading

    @contextmanager
    def _reading(self, seconds: float = READ_SECONDS) -> Iterator[sa.Connection]:
        """A connection with a time limit.

        Raises:
            HistoryError: the database is unavailable, or took longer.
        """
        try:
            with self.engine.connect() as connection:
                if self.is_postgres:
                    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(seconds * 1000)}")
                    yield connection
                    return
                deadline = monotonic() + seconds
                raw: Any = connection.connection.driver_connection
                raw.set_progress_handler(lambda: monotonic() > deadline, 100_000)
                try:
                    yield connection
                finally:
                    raw.set_progress_handler(None, 0)
        except SQLAlchemyError as exc:
            reason = self.reason(exc)
            if "statement timeout" in reason or reason == "interrupted":
                reason = f"it took longer than {seconds:g} s; ask for a shorter time, or for one task"
            raise HistoryError(f"history in {self.shown}: {reason}") from exc

    def reason(self, exc: Exception) -> str:
        """Return the first line of an error's text, and what to do if a table is missing or too narrow."""
        orig = getattr(exc, "orig", None) or exc
        lines = str(orig).splitlines() or [type(orig).__name__]
        first = printable(lines[0], 300)
        table = self._name(self.runs)
        state = getattr(orig, "sqlstate", "")
        if state == "42P01" or first.startswith("no such table"):
            return f"{first}: python -m fluidfast history upgrade URL{self._option()} creates it"
        if state == "22001":
            return (
                f"{first}: ALTER TABLE {table} ALTER COLUMN id TYPE varchar(255), ALTER COLUMN name TYPE varchar(255)"
            )
        return first

    def _option(self) -> str:
        return "" if self.runs.name == "fluid_tasks" else f" --table {self.runs.name}"

    def page(self, query: HistoryQuery, names: Sequence[str] | None = None) -> HistoryPage:
        """Return the runs that match ``query``, and are of a task in ``names`` (None: any), newest first.

        Raises:
            ConfigError: the cursor, the limit, or a value of a filter is not valid.
            HistoryError: the database is unavailable, or took longer than 10 s.
        """
        if not isinstance(query.limit, int) or query.limit < 1:
            raise ConfigError(f"limit is {shown(query.limit)}, it must be 1 or more")
        limit = min(query.limit, MAX_LIMIT)
        t = self.runs.c
        chosen = sa.select(t.id, t.name, t.priority, t.state, t.queued, t.start, t.end, t.params)
        for column, values in (
            (t.name, query.task), (t.name, names), (t.priority, query.priority), (t.state, query.state)
        ):  # fmt: skip
            if values is not None:
                chosen = chosen.where(column.in_(self._values(column, values)))
        if query.start is not None:
            chosen = chosen.where(t.queued >= utc(query.start))
        if query.end is not None:
            chosen = chosen.where(t.queued <= utc(query.end))
        if query.params:
            chosen = chosen.where(self._contains(query.params))
        if query.cursor:
            queued, run_id = position_of(query.cursor)
            chosen = chosen.where(t.queued <= queued, sa.or_(t.queued < queued, t.id < run_id))
        with self._reading() as connection:
            rows = connection.execute(chosen.order_by(t.queued.desc(), t.id.desc()).limit(limit + 1)).all()
        runs = [record_of(row) for row in rows[:limit]]
        return HistoryPage(runs, cursor_of(runs[-1].queued, runs[-1].id) if len(rows) > limit else "")

    def _values(self, column: sa.Column[Any], values: Sequence[Any]) -> list[str]:
        if isinstance(values, str):
            raise ConfigError(f"the filter on {column.name} is {shown(values)}, it must be a list of them")
        if column.name == "state":
            return [stored_state(TaskState(value)) for value in values if value in STATES_IN_USE]
        return [text for text in map(str, values) if is_storable(text)]

    def _contains(self, params: dict[str, Any]) -> sa.ColumnElement[bool]:
        try:
            part = json.dumps(cleaned(params), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise ConfigError(f"params cannot be looked for: {error_text(exc, 200)}") from None
        if self.is_postgres:
            contained: sa.ColumnElement[bool] = self.runs.c.params.op("@>", is_comparison=True)(
                sa.cast(sa.literal(part, sa.Text()), JSONB())
            )
            return contained
        column = sa.cast(self.runs.c.params, sa.Text())
        # what SQLite can compare itself, first: a call of Python takes 10 us a row
        equal = [
            sa.func.json_extract(column, f"$.{name}") == value
            for name, value in params.items()
            if is_plain(name, value)
        ]
        return sa.and_(*equal, sa.func.history_contains(column, part) == 1)

    def run(self, run_id: str) -> RunDetail | None:
        """Return a run with its attempts; None if it is not recorded.

        Raises:
            HistoryError: the database is unavailable, or took longer than 10 s.
        """
        if not is_storable(run_id):
            return None
        t, a = self.runs.c, self.attempts.c
        with self._reading() as connection:
            row = connection.execute(sa.select(self.runs).where(t.id == run_id)).one_or_none()
            if row is None:
                return None
            attempts: Sequence[sa.Row[Any]] = ()
            if self._has_attempts or sa.inspect(connection).has_table(self.attempts.name, schema=self.runs.schema):
                attempts = connection.execute(
                    sa.select(self.attempts).where(a.run_id == run_id).order_by(a.attempt).limit(1_000)
                ).all()
        return RunDetail(run=record_of(row), attempts=[attempt_of(row) for row in attempts])


TYPE_OF_STATE = """
    SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'state'
"""
STATES_IN_USE = frozenset(TaskState)
COLUMNS = ("name", "priority", "state", "queued", "start", '"end"', "params")
ATTEMPT_COLUMNS = ("task", "worker", "state", "start", '"end"', "error", "place", "traceback", "trace_id")
ATTEMPT = ", ".join(("run_id", "attempt", *ATTEMPT_COLUMNS))
REPLACED = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS)
REPLACED_ATTEMPT = ", ".join(f"{column} = excluded.{column}" for column in ATTEMPT_COLUMNS)
IS_LATER = """
    CASE WHEN t.start IS NULL THEN excluded.queued >= t.queued
    WHEN excluded.start IS NULL THEN excluded.queued > coalesce(t."end", t.start)
    WHEN excluded.start = t.start THEN excluded."end" IS NOT NULL OR t."end" IS NULL
    ELSE excluded.start > t.start END
"""
"""Whether a row is of a later event than the one in the table: queued, started, ended, started again by a retry."""


def is_plain(name: str, value: Any) -> bool:
    """Return whether SQLite's ``json_extract`` finds this param, and gives what equals its value."""
    if not (name.isascii() and name.isidentifier()):
        return False
    return is_storable(value) if isinstance(value, str) else isinstance(value, int) and abs(value) < 1 << 53


def moment(index: int) -> str:
    return f"to_timestamp((r->>{index})::bigint / 1000000.0)"


def text_of(micros: int) -> str | None:
    """Return a time as SQLAlchemy keeps it in SQLite."""
    if not micros:
        return None
    seconds, rest = divmod(micros, 1_000_000)
    return f"{text_of_second(seconds)}.{rest:06d}"


@lru_cache(1_000)
def text_of_second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def text_of_moment(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")


def record_of(row: Any) -> RunRecord:
    return RunRecord(
        id=row.id,
        task=row.name,
        priority=TaskPriority(row.priority),
        state=TaskState(row.state),
        queued=in_utc(row.queued),
        start=in_utc(row.start),
        end=in_utc(row.end),
        params=row.params if isinstance(row.params, dict) else {},
    )


def attempt_of(row: Any) -> Attempt:
    fields = dict(row._mapping)
    return Attempt(**{**fields, "start": in_utc(fields["start"]), "end": in_utc(fields["end"])})


def in_utc(moment: datetime | None) -> Any:
    return utc(moment)
