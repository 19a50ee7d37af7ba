from collections.abc import Coroutine
from typing import Any

from ..brokers.base import TaskBroker
from ..core._machine import Listeners
from ..core._run import TaskRun
from ..core.states import TaskPriority
from ..core.task import Task
from ..produce.backpressure import Backpressure
from ..produce.producer import Producer

class QueueFront:
    broker: TaskBroker
    _producer: Producer
    _backpressure: Backpressure
    _listeners: Listeners
    _buffers: bool
    _never_takes: bool

    def hands_over(self) -> bool:
        """Return True if queueing a run is no more than handing over its payload: nobody listens, no hook is called
        around it, nothing may hold it up."""

    def queue(
        self,
        task: str | Task[Any],
        priority: TaskPriority | str | None = None,
        *,
        run_id: str = "",
        from_task_run: TaskRun[Any, Any] | None = None,
        params: Any = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, TaskRun[Any, Any]]: ...
