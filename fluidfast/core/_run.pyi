import logging
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, ClassVar, Generic, NoReturn, Self

from typing_extensions import TypeVar

from ._machine import RunState
from .states import TaskPriority, TaskState
from .task import AnyTask, Task

__all__ = ["TaskRun"]

P = TypeVar("P", default=Any)
D = TypeVar("D", default=Any)

class TaskRun(RunState, Generic[P, D]):
    """One run of a task.

    A manager makes it (``create_task_run``, ``queue``, ``execute``), and the task's function gets it. Write
    ``TaskRun[Params]`` or ``TaskRun[Params, Deps]`` in annotations.

        @task
        async def send(ctx: TaskRun[Mail]) -> None:
            ctx.logger.info("to %s", ctx.params.to)

    Raises:
        ConfigError: the priority or a time is not valid (ConfigError is a ValueError).
        TaskUsageError: the priority is not text.
        TaskRunError: the state is not valid.
    """

    model_fields: ClassVar[Mapping[str, Any]]
    params: P
    @property
    def prio(self) -> int: ...
    rate_limit_attempt: int
    retry_attempt: int
    execute_after: datetime | None
    extra: dict[str, bytes] | None
    def __init__(
        self,
        *,
        id: str,
        task: Task[Any],
        priority: TaskPriority | str | None = None,
        params: P = ...,
        task_manager: Any = None,
        state: TaskState | str | None = None,
        queued: datetime | float | str | None = None,
        start: datetime | float | str | None = None,
        end: datetime | float | str | None = None,
        execute_after: datetime | float | str | None = None,
        rate_limit_attempt: int = 0,
        retry_attempt: int = 0,
        from_run_id: str = "",
        root_run_id: str = "",
    ) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    @property
    def id(self) -> str:
        """The run's id, by default 32 hex digits."""
    @property
    def task(self) -> Task[Any]:
        """The run's task."""
    @property
    def task_manager(self) -> Any:
        """The manager of this process that made or executes the run."""
    @property
    def from_run_id(self) -> str:
        """Id of the run that queued this one; ``""`` if none did."""
    @property
    def root_run_id(self) -> str:
        """Id of the first run in the chain of runs that queued each other; ``""`` if this is the first."""
    @property
    def name(self) -> str:
        """The task's name."""
    @property
    def name_id(self) -> str:
        """``name.id``."""
    @property
    def shown_id(self) -> str:
        """``id``, safe to show in a log: control characters escaped, a long id cut."""
    @property
    def shown_name(self) -> str:
        """``name_id``, safe to show in a log."""
    @property
    def priority(self) -> TaskPriority:
        """The run's priority."""
    @property
    def logger(self) -> logging.Logger:
        """The task's logger."""
    @property
    def deps(self) -> D:
        """The ``deps`` of the run's manager."""
    def set_state(self, state: TaskState | str, state_time: datetime | None = None) -> None:
        """Change to ``state`` (a ``TaskState`` or its name) at ``state_time`` (None: now), and call its handlers.

        The run passes through skipped states at the same time. The present state again is a no-op.

        Raises:
            TaskRunError: ``state`` cannot follow the present one; nothing was changed.
        """
    def _enter(self, state: int) -> None: ...
    def _emit(self) -> None: ...
    def _again(self, after_us: int, rate_limited: bool) -> TaskRun[P, D]: ...
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> TaskRun[P, D]:
        """Return a copy with the fields of ``update`` (name -> value) changed. ``deep``: copy the params too.

        Raises:
            TypeError: ``update`` has a name that is not a field of a run.
        """
    def model_dump(
        self,
        *,
        mode: str = "python",
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Return the run as a dict, with the task's name as ``task`` and with secrets masked by their own type.

        ``mode="json"``: times as ISO 8601 text, params as plain builtins. ``include``, ``exclude``: names of fields.
        ``options``: those of pydantic's ``model_dump``, which needs pydantic.
        """
    def model_dump_json(
        self, *, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None, **options: Any
    ) -> str:
        """Return ``model_dump(mode="json")`` as JSON text. ``options`` as there, and ``indent``."""
    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the fields as they are in JSON."""
    @classmethod
    def model_validate(cls, value: Any, **options: Any) -> Self:
        """Return a run of its fields, whose ``task`` is a ``Task``; return a run as it is. Needs pydantic."""
    @classmethod
    def model_json_schema(cls, **options: Any) -> dict[str, Any]:
        """Return the JSON schema of the record. Needs pydantic."""
    def params_dump_json(self) -> str:
        """Return the params as the JSON that goes on a queue, secrets revealed (a name of aio-fluid 1.x)."""
    def queue_dump_json(self) -> bytes:
        """Return the JSON payload for a queue, with secrets revealed."""
    def abort(self, reason: str = "") -> NoReturn:
        """End this run as ``aborted``: no failure, no retry.

        Raises:
            TaskAbortedError: always.
        """
    def lock(self, timeout: float | None = None, name: str | None = None) -> Any:
        """Return an async lock for this task (or for its part ``name``), shared by the whole fleet.

        ``timeout``: seconds after which the lock opens by itself; None: never.

            async with ctx.lock(timeout=60): ...
        """
    def queue(
        self, task: str | AnyTask, priority: TaskPriority | str | None = None, **params: Any
    ) -> Awaitable[TaskRun[Any, Any]]:
        """Queue another task from within this run, as the manager's ``queue``. Await the result.

        The new run's ``from_run_id`` is this run, its ``root_run_id`` the first run of the chain.
        """
    async def execute(self) -> None:
        """Execute the run here and now, in this process, and set its final state.

        Raises:
            TaskAbortedError: the task aborted itself; the state is ``aborted``.
            Exception: any exception of the task, or TimeoutError after its ``timeout_seconds``; the state is
                ``failure``.
        """
