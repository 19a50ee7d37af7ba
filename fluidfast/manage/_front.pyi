from collections.abc import Coroutine
from typing import Any

from ..brokers.base import TaskBroker
from ..core._machine import Listeners
from ..core._run import TaskRun
from ..core.states import TaskPriority
from ..core.task import AnyTask
from ..produce.backpressure import Backpressure
from ..produce.handle import RunHandle
from ..produce.producer import Producer

class QueueFront:
    broker: TaskBroker
    _producer: Producer
    _backpressure: Backpressure
    _listeners: Listeners
    _buffers: bool
    _push_never_takes: bool

    def hands_over(self) -> bool:
        """Return True if a run can go straight to the producer: there are no handlers, hooks or limits for it."""

    def queue(
        self,
        task: str | AnyTask,
        priority: TaskPriority | str | None = None,
        *,
        run_id: str = "",
        from_task_run: TaskRun[Any, Any] | None = None,
        params: Any = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, TaskRun[Any, Any]]:
        """Queue a run. When the returned awaitable is done, the broker has stored the run.

        Give the params as in ``create_task_run``. It fires the event ``init`` (also ``queue``) before it sends the run,
        and ``queued`` after. If the caller is cancelled, the run may be queued.

            run = await manager.queue("send", to="grace@example.com")

        Raises, when awaited:
            UnknownTaskError, ParamsError, ValueError: as ``create_task_run``; nothing was sent.
            PayloadTooLargeError: the run is larger than ``max_payload_bytes``; nothing was sent.
            BrokerFullError: the server has no memory left; nothing was queued.
            QueueFullError: the queue has reached ``max_queue_length`` or ``max_queue_bytes``; nothing was queued.
            BufferedRunsLost: earlier runs with ``delivery="buffered"`` are not confirmed; this run was not queued.
            DurabilityUnsupportedError: the server does not support ``durability``; nothing was sent.
            NotDurableError: the run is queued, but not replicated or on disk as ``durability`` requires.
            BrokerConnectionError: the server is unavailable. If the connection was lost on the way and did not come
                back, the run may or may not be queued.
        """

    def queue_given(self, task: str | AnyTask, given: Any) -> Coroutine[Any, Any, RunHandle[Any]]:
        """Queue a run as ``queue``, with the params as one dict, or as an object of the task's model."""
