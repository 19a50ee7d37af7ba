import logging
from collections.abc import Awaitable, Iterable, Mapping
from datetime import datetime
from typing import Any, Generic, NoReturn

from typing_extensions import TypeVar

from ._machine import RunState
from .states import TaskPriority, TaskState
from .task import Task

__all__ = ["TaskRun"]

P = TypeVar("P", default=Any)
D = TypeVar("D", default=Any)

class TaskRun(RunState, Generic[P, D]):
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
    @property
    def id(self) -> str: ...
    @property
    def task(self) -> Task[Any]: ...
    @property
    def task_manager(self) -> Any: ...
    @property
    def from_run_id(self) -> str: ...
    @property
    def root_run_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def name_id(self) -> str: ...
    @property
    def priority(self) -> TaskPriority: ...
    @property
    def logger(self) -> logging.Logger: ...
    @property
    def deps(self) -> D: ...
    def set_state(self, state: TaskState | str, state_time: datetime | None = None) -> None: ...
    def _enter(self, state: int) -> None: ...
    def _emit(self) -> None: ...
    def _again(self, after_us: int, rate_limited: bool) -> TaskRun[P, D]: ...
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> TaskRun[P, D]: ...
    def model_dump(
        self, *, mode: str = "python", exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> dict[str, Any]: ...
    def model_dump_json(
        self, *, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> str: ...
    def queue_dump_json(self) -> bytes: ...
    def abort(self, reason: str = "") -> NoReturn: ...
    def lock(self, timeout: float | None = None, name: str | None = None) -> Any: ...
    def queue(
        self, task: str | Task[Any], priority: TaskPriority | str | None = None, **params: Any
    ) -> Awaitable[TaskRun[Any, Any]]: ...
    async def execute(self) -> None: ...
