"""Where aio-fluid has it: the run history, ``TaskDbPlugin``. Needs the extras ``db`` and ``http``."""

try:
    import sqlalchemy as sa
    from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query
    from pydantic import BaseModel, Field, field_validator
    from sqlalchemy.exc import NoResultFound
except ImportError as exc:
    raise ImportError("fluidfast.scheduler.db needs SQLAlchemy and FastAPI: pip install 'fluidfast[db,http]'") from exc

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Annotated, Any

import msgspec

from ..core.states import TaskPriority, TaskState
from ..errors import ConfigError, HistoryError
from ..http import TaskManagerDep
from ..manage.plugin import TaskManagerPlugin
from ..observe.history import History, HistoryQuery, HistoryStats
from ..observe.history.tables import attempts_table, runs_table

__all__ = [
    "TaskDbPlugin",
    "TaskDbPluginDep",
    "TaskHistoryQuery",
    "TaskRunHistory",
    "TaskRunHistoryPage",
    "get_db_plugin",
]

LIMIT = 250
"""Runs in a page if nobody says how many."""


class TaskHistoryQuery(BaseModel):
    """A question to the history. A run matches every filter, and one of the values of a filter."""

    task: list[str] | None = Field(default=None, description="Names of tasks")
    start: datetime | None = Field(default=None, description="Queued at this time, or later; without a zone: UTC")
    end: datetime | None = Field(default=None, description="Queued at this time, or earlier; without a zone: UTC")
    state: list[TaskState] | None = Field(default=None, description="States")
    priority: list[TaskPriority] | None = Field(default=None, description="Priorities")
    params: dict[str, Any] | str | None = Field(default=None, description="A JSON object that the run's params contain")
    tags: list[str] | None = Field(default=None, description="Tags of tasks")
    limit: int | None = Field(default=None, ge=1, description=f"Runs in a page (default: {LIMIT})")
    cursor: str = Field(default="", description="The cursor of the page before")

    @field_validator("params", mode="before")
    @classmethod
    def _read_params(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = msgspec.json.decode(value)
            except (msgspec.DecodeError, RecursionError, UnicodeError) as exc:
                raise ValueError(f"not valid JSON: {exc}") from None
        if value is not None and not isinstance(value, dict):
            raise ValueError("it must be a JSON object")
        return value


class TaskRunHistory(BaseModel):
    """A recorded run. Secrets in the params are masked."""

    id: str = Field(description="Id of the run")
    task: str = Field(description="Name of the task")
    priority: TaskPriority = Field(description="Priority of the run")
    state: TaskState = Field(description="Last recorded state")
    queued: datetime = Field(description="When the run was queued")
    start: datetime | None = Field(default=None, description="When the last attempt started")
    end: datetime | None = Field(default=None, description="When the last attempt ended")
    params: dict[str, Any] = Field(description="Params of the run")


class TaskRunHistoryPage(BaseModel):
    """A page of recorded runs, newest first."""

    data: list[TaskRunHistory] = Field(description="The runs")
    cursor: str = Field(description="Cursor of the next page; empty: this is the last")


class TaskDbPlugin(TaskManagerPlugin):
    """Record every run in a database, in a row that follows its state, and serve the rows over HTTP.

        manager.with_plugin(TaskDbPlugin("postgresql://localhost/app"))

    It records states from ``queued`` on, all runs, for ever. ``fluidfast.observe.history.History`` has the other
    choices, and says what happens if the database is away.

    ``db``: aio-fluid's CrudDB, an engine of SQLAlchemy, or a URL. A CrudDB gets the tables in its ``metadata``.
    ``table_name``: the table. ``tag``: the tag of the event handlers. ``skip_db_tag``: runs of tasks with this tag are
    not recorded. ``route_prefix``: the path of the routes; None: that of the other routes, and ``-history``.

    Raises:
        ConfigError: ``db`` or ``table_name`` is not valid.
        ImportError: the driver of the database is missing.
    """

    def __init__(
        self,
        db: Any,
        *,
        table_name: str = "fluid_tasks",
        tag: str = "db",
        skip_db_tag: str = "skip_db",
        route_prefix: str | None = None,
    ) -> None:
        metadata = getattr(db, "metadata", None)
        schema = metadata.schema if isinstance(metadata, sa.MetaData) else None
        self.db = db
        self.table_name = table_name
        self.tag = tag
        self.skip_db_tag = skip_db_tag
        self.route_prefix = route_prefix
        self.task_manager: Any = None
        self.history = History(
            db, table=table_name, record="all", sample="none", keep=None, tag=tag, skip_tag=skip_db_tag, schema=schema
        )
        if isinstance(metadata, sa.MetaData):
            for add in (runs_table, attempts_table):
                with_schema = add(table_name, sa.MetaData(schema=schema))
                if with_schema.key not in metadata.tables:
                    with_schema.to_metadata(metadata)

    def register(self, task_manager: Any) -> None:
        """Record the runs of a manager, and become ``task_manager.state.task_db_plugin``."""
        self.task_manager = task_manager
        task_manager.state.task_db_plugin = self
        self.history.register(task_manager)

    def register_routes(self, app: FastAPI, prefix: str = "/tasks", tags: Sequence[str | Enum] | None = None) -> None:
        """Add the routes ``{prefix}-history`` and ``{prefix}-history/{run_id}``, or those of ``route_prefix``."""
        router = APIRouter(
            prefix=f"{prefix}-history" if self.route_prefix is None else self.route_prefix,
            tags=None if tags is None else list(tags),
        )
        router.add_api_route("", get_history, summary="List recorded runs", response_model=TaskRunHistoryPage)
        router.add_api_route(
            "/{run_id}",
            get_run,
            summary="Get a recorded run",
            response_model=TaskRunHistory,
            responses={404: {"description": "No such run"}},
        )
        app.include_router(router)

    async def get_history(self, q: TaskHistoryQuery) -> TaskRunHistoryPage:
        """Return a page of the runs that match, newest first.

        Raises:
            ConfigError: the cursor is not valid.
            HistoryError: the database is unavailable, or took longer than 10 s.
        """
        fields = {name: getattr(q, name) for name in type(q).model_fields if getattr(q, name) is not None}
        page = await self.history.page(HistoryQuery(**{"limit": LIMIT, **fields}))
        runs = [TaskRunHistory.model_validate(msgspec.structs.asdict(run)) for run in page.runs]
        return TaskRunHistoryPage(data=runs, cursor=page.cursor)

    async def get_run(self, run_id: str) -> TaskRunHistory:
        """Return a recorded run.

        Raises:
            sqlalchemy.exc.NoResultFound: it is not recorded.
            HistoryError: the database is unavailable, or took longer than 10 s.
        """
        found = await self.history.run(run_id)
        if found is None:
            raise NoResultFound(f"table {self.table_name} has no run of this id")
        return TaskRunHistory.model_validate(msgspec.structs.asdict(found.run))

    def stats(self) -> HistoryStats:
        """Return what the recorder of this process has done."""
        return self.history.stats()


def get_db_plugin(task_manager: TaskManagerDep) -> TaskDbPlugin:
    """Return the ``TaskDbPlugin`` of a manager. Also a dependency: ``TaskDbPluginDep``.

    Raises:
        AttributeError: it has none.
    """
    plugin = task_manager.state.get("task_db_plugin")
    if plugin is None:
        raise AttributeError("this manager has no TaskDbPlugin: manager.with_plugin(TaskDbPlugin(db))")
    return plugin  # type: ignore[no-any-return]


TaskDbPluginDep = Annotated[TaskDbPlugin, Depends(get_db_plugin)]
"""The plugin, as a parameter of a route: ``async def route(history: TaskDbPluginDep)``."""


async def get_history(plugin: TaskDbPluginDep, query: Annotated[TaskHistoryQuery, Query()]) -> TaskRunHistoryPage:
    try:
        return await plugin.get_history(query)
    except ConfigError as exc:
        raise HTTPException(422, [{"type": "value_error", "loc": ["query"], "msg": str(exc)}]) from exc
    except HistoryError as exc:
        raise HTTPException(503, "History unavailable") from exc


async def get_run(plugin: TaskDbPluginDep, run_id: str) -> TaskRunHistory:
    try:
        return await plugin.get_run(run_id)
    except NoResultFound as exc:
        raise HTTPException(404, "Task run not found") from exc
    except HistoryError as exc:
        raise HTTPException(503, "History unavailable") from exc
