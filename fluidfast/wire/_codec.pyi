from collections.abc import Iterable, Iterator
from typing import Any

from ..core._machine import Listeners
from ..core._run import TaskRun
from ..core.params import ParamsAdapter
from ..core.states import TaskPriority
from ..core.task import AnyTask, Task

__all__ = ["Codec", "TaskPlan", "encode_json"]

def encode_json(run: TaskRun[Any, Any]) -> bytes:
    """Return the JSON payload of a run.

    Raises:
        ParamsError: the params cannot be encoded.
        TaskRunError: an id cannot be encoded.
    """

class TaskPlan:
    def __init__(self, task: Task[Any]) -> None: ...
    @property
    def task(self) -> Task[Any]: ...
    @property
    def name(self) -> str: ...
    @property
    def adapter(self) -> ParamsAdapter: ...

class Codec:
    """Encode and decode the runs of one broker.

    ``registry``: name -> Task, may change at any time. ``msgpack``: encode as MessagePack instead of JSON; it decodes
    both. ``max_bytes``: the largest payload, in bytes, that it encodes or decodes.
    """

    def __init__(self, registry: dict[str, Task[Any]], *, msgpack: bool = False, max_bytes: int = ...) -> None: ...
    @property
    def registry(self) -> dict[str, Task[Any]]: ...
    @property
    def msgpack(self) -> bool: ...
    @property
    def max_bytes(self) -> int: ...
    def create(
        self,
        task: str | AnyTask,
        priority: TaskPriority | str | None,
        run_id: str,
        given: dict[str, Any],
        manager: Any,
        listeners: Listeners | None,
        parent: TaskRun[Any, Any] | None = None,
    ) -> TaskRun[Any, Any]:
        """Return a run in state ``init``, and validate the params in ``given`` against the task's model.

        Raises:
            UnknownTaskError: no task of this name is registered.
            TaskRunError: ``run_id`` cannot be written as UTF-8.
            ParamsError: the params do not fit. The message names the task and the field.
            ConfigError, TaskUsageError: the priority is not valid (both are ValueErrors).
        """
    def create_with(
        self,
        task: str | AnyTask,
        priority: TaskPriority | str | None,
        run_id: str,
        value: Any,
        manager: Any,
        listeners: Listeners | None,
        parent: TaskRun[Any, Any] | None = None,
    ) -> TaskRun[Any, Any]:
        """Return a run as ``create``, with the params as one mapping or as an object of the model."""
    def take(
        self,
        task: str | AnyTask,
        priority: TaskPriority | str | None,
        items: Iterator[Any],
        max_count: int,
        max_bytes: int,
        errors: list[tuple[int, Exception]] | None,
        ids: list[str] | None,
        base: int,
    ) -> tuple[list[bytes], int, int, bool]: ...
    def has_field(self, task: str | AnyTask, field: str) -> bool:
        """Return whether the task's params model has a field of this name."""
    def encode(self, run: TaskRun[Any, Any]) -> bytes:
        """Return the payload of a run.

        Raises:
            ParamsError: the params cannot be encoded.
            PayloadTooLargeError: the payload is larger than ``max_bytes``.
            TaskRunError: an id cannot be encoded.
        """
    def encode_finished(self, run: TaskRun[Any, Any]) -> bytes:
        """Return the JSON payload of a run in any state, of any size, also if ``encode`` writes MessagePack.

        Raises:
            ParamsError, TaskRunError: as ``encode``.
        """
    def submit(self, run: TaskRun[Any, Any]) -> bytes:
        """Set the state ``queued``, without events, and return the payload. Raises as ``encode``."""
    def decode(self, payload: bytes, manager: Any, listeners: Listeners | None = None) -> TaskRun[Any, Any]:
        """Return the run in a JSON or MessagePack payload, in state ``queued``.

        Raises:
            PayloadError: the bytes are not a run.
            UnknownTaskError: the run's task is not in the registry.
            TaskParamsError: the params do not fit the task's model. The exception has the run with unvalidated params.
        """
    def decode_finished(self, payload: bytes, manager: Any, listeners: Listeners | None = None) -> TaskRun[Any, Any]:
        """Return the run in a JSON payload, in the payload's state. Params that do not fit stay unvalidated.

        Raises:
            PayloadError, UnknownTaskError: as ``decode``.
        """
    def decode_many(
        self, payloads: Iterable[bytes], manager: Any, listeners: Listeners | None = None
    ) -> list[TaskRun[Any, Any] | Exception]:
        """Decode each payload as ``decode``. The list has the exception in place of a run that cannot be decoded."""
