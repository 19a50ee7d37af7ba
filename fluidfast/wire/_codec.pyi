from collections.abc import Iterable, Iterator
from typing import Any

from ..core._machine import Listeners
from ..core._run import TaskRun
from ..core.params import ParamsAdapter
from ..core.states import TaskPriority
from ..core.task import Task

__all__ = ["Codec", "TaskPlan", "encode_json"]

def encode_json(run: TaskRun[Any, Any]) -> bytes: ...

class TaskPlan:
    def __init__(self, task: Task[Any]) -> None: ...
    @property
    def task(self) -> Task[Any]: ...
    @property
    def name(self) -> str: ...
    @property
    def adapter(self) -> ParamsAdapter: ...

class Codec:
    def __init__(self, registry: dict[str, Task[Any]], *, msgpack: bool = False, max_bytes: int = ...) -> None: ...
    @property
    def registry(self) -> dict[str, Task[Any]]: ...
    @property
    def msgpack(self) -> bool: ...
    @property
    def max_bytes(self) -> int: ...
    def create(
        self,
        task: str | Task[Any],
        priority: TaskPriority | str | None,
        run_id: str,
        given: dict[str, Any],
        manager: Any,
        listeners: Listeners | None,
        parent: TaskRun[Any, Any] | None = None,
    ) -> TaskRun[Any, Any]: ...
    def create_with(
        self,
        task: str | Task[Any],
        priority: TaskPriority | str | None,
        run_id: str,
        value: Any,
        manager: Any,
        listeners: Listeners | None,
        parent: TaskRun[Any, Any] | None = None,
    ) -> TaskRun[Any, Any]: ...
    def take(
        self,
        task: str | Task[Any],
        priority: TaskPriority | str | None,
        items: Iterator[Any],
        max_count: int,
        max_bytes: int,
        errors: list[tuple[int, Exception]] | None,
        ids: list[str] | None,
        base: int,
    ) -> tuple[list[bytes], int, int, bool]: ...
    def has_field(self, task: str | Task[Any], field: str) -> bool: ...
    def encode(self, run: TaskRun[Any, Any]) -> bytes: ...
    def encode_many(self, runs: Iterable[TaskRun[Any, Any]]) -> list[bytes]: ...
    def submit(self, run: TaskRun[Any, Any]) -> bytes: ...
    def decode(self, payload: bytes, manager: Any, listeners: Listeners | None = None) -> TaskRun[Any, Any]: ...
    def decode_finished(
        self, payload: bytes, manager: Any, listeners: Listeners | None = None
    ) -> TaskRun[Any, Any]: ...
    def decode_many(
        self, payloads: Iterable[bytes], manager: Any, listeners: Listeners | None = None
    ) -> list[TaskRun[Any, Any] | Exception]: ...
