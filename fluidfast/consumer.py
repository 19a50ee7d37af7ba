"""``TaskConsumer``: a manager with an engine, and the life of a worker."""

import asyncio
import logging
import os
from collections.abc import Sequence
from time import monotonic
from typing import Any, Self

from ._run import TaskRun
from .checks import check_number
from .common import is_in_cpu_process
from .config import TaskManagerConfig
from .engine import Engine
from .errors import BrokerConnectionError, BrokerError, ConfigError, CpuBoundEntryPointError, QueueFullError
from .events import AsyncDispatcher, AsyncTaskDispatcher, Event, task_event
from .manager import AsyncHandler, TaskManager
from .settings import get_settings
from .task import Task
from .texts import printable
from .workers import AsyncConsumer, QueueConsumerWorker, WorkerFunction, Workers

__all__ = ["TaskConsumer"]

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5
"""After which ``sync_queue`` tries again to queue a run that the broker did not take."""
STATUS_SECONDS = 5.0
"""How often a consumer says how it is."""


class TaskConsumer(TaskManager, Workers):
    """A manager that also consumes: ``await consumer.startup()``, and ``await consumer.shutdown()`` to drain.

    ``name``: the worker's name. ``stopping_grace_period``: seconds that running tasks have to finish at shutdown
    (default: FLUID_STOPPING_GRACE_PERIOD, else 10). Other arguments as ``TaskManager``.
    """

    def __init__(
        self,
        *,
        deps: Any = None,
        config: TaskManagerConfig | None = None,
        name: str = "",
        stopping_grace_period: float | None = None,
        **kwargs: Any,
    ) -> None:
        TaskManager.__init__(self, deps=deps, config=config, **kwargs)
        if stopping_grace_period is None:
            stopping_grace_period = get_settings().stopping_grace_period
        check_number("stopping_grace_period", stopping_grace_period, ConfigError)
        Workers.__init__(self, name=name, stopping_grace_period=2 * stopping_grace_period + 5)
        self._async_dispatcher_worker = async_handlers(AsyncTaskDispatcher(), stopping_grace_period)
        self.add_async_context_manager(self._async_dispatcher_worker)
        self._sync_queue: QueueConsumerWorker[tuple[Any, float]] = QueueConsumerWorker(
            self._queue_from_sync, name="sync-queue", stopping_grace_period=stopping_grace_period
        )
        self.engine = Engine(
            self, concurrency=self.config.max_concurrent_tasks, stopping_grace_period=stopping_grace_period
        )
        self.add_workers(
            self._sync_queue,
            self.engine,
            WorkerFunction(
                self._tell_status,
                heartbeat=STATUS_SECONDS,
                name="manager-status",
                stopping_grace_period=stopping_grace_period,
            ),
        )

    async def __aenter__(self) -> Self:
        old = self._async_dispatcher_worker
        if old.is_stopped():  # a worker starts once, and ``execute_sync`` has been here before
            self._async_dispatcher_worker = async_handlers(old.dispatcher, old._stopping_grace_period)
            at = self._async_contexts.index(old)
            self._async_contexts[at] = self._async_dispatcher_worker
        return await TaskManager.__aenter__(self)

    async def startup(self) -> None:
        """Start consuming.

        Raises:
            CpuBoundEntryPointError: this process was started for one CPU-bound run, so its entry point has no ``exec``
                command (see ``TaskManagerCLI``).
            WorkerStartError: it was started before.
        """
        if is_in_cpu_process():
            raise CpuBoundEntryPointError(
                "a consumer was started in the process of a CPU-bound run: make the application's entry point a "
                "TaskManagerCLI, so that it has the exec command"
            )
        await Workers.startup(self)

    def register_task(self, task: Task[Any], tags: Sequence[str] | None = None, *, replace: bool = False) -> None:
        """As ``TaskManager.register_task``. Warns of a task that would be a Kubernetes job in aio-fluid."""
        TaskManager.register_task(self, task, tags, replace=replace)
        if task.cpu_bound and task.k8s_config is not None and "KUBERNETES_SERVICE_HOST" in os.environ:
            logger.warning(
                "task %s has a k8s_config, but Kubernetes jobs are not supported yet: its runs are child processes in "
                "the pod of this consumer, with the pod's CPU and memory",
                printable(task.name),
            )

    def sync_queue(self, task: "str | Task[Any] | TaskRun[Any, Any]", delay: float = 0) -> None:
        """Queue a task, or a run, from code that cannot await; from any thread. It is sent soon, at shutdown at the
        latest.

        ``delay``: seconds before it may start.

        Raises:
            ConfigError: ``delay`` is not a number of seconds.
        """
        check_number("delay", delay, ConfigError)
        self._sync_queue.send((task, monotonic() + delay if delay else 0.0))

    async def on_shutdown(self) -> None:
        """Queue what ``sync_queue`` was given if this was stopped before it had begun; then as a manager."""
        if not self._sync_queue.has_started():
            for _ in range(self._sync_queue.queue_size()):
                if (message := await self._sync_queue.get_message(0)) is not None:
                    await self._queue_from_sync(message)
        await TaskManager.on_shutdown(self)

    async def _queue_from_sync(self, message: tuple[Any, float]) -> None:
        task, due = message
        try:
            run = task if isinstance(task, TaskRun) else self.create_task_run(task)
            delay = max(0.0, due - monotonic()) if due else 0.0
            if not delay and self._backpressure.active and self._sync_queue.is_running():
                async with asyncio.timeout(AGAIN_SECONDS):
                    await self._backpressure.admit(1, len(self.broker.codec.encode(run)))
            await self._queue_run(run, delay, admit=False)
            if delay:
                self.engine.promote_in(delay)
        except (BrokerConnectionError, QueueFullError, TimeoutError) as exc:
            # there is no caller to hold or to tell: it is kept here until there is room, or until the shutdown
            if not isinstance(exc, TimeoutError):
                logger.warning("%s: cannot queue a run, trying again: %s", self.worker_name, exc)
                await asyncio.sleep(AGAIN_SECONDS)
            self._sync_queue.send(message)
        except Exception:
            logger.exception("%s: sync_queue(%r) failed", self.worker_name, task)

    def register_async_handler(self, event: Event | str, handler: AsyncHandler) -> None:
        """Call an async handler with a snapshot of each run that comes to a state: ``"success"``, ``"success.mytag"``.

        One that raises is logged; the consumer goes on.
        """
        event = task_event(event)
        self.dispatcher.register_handler(f"{event.type}.async_dispatch", self._dispatch_async)
        self._async_dispatcher_worker.dispatcher.register_handler(event, handler)

    def _dispatch_async(self, run: TaskRun[Any, Any]) -> None:
        self._async_dispatcher_worker.send(run)

    def unregister_async_handler(self, event: Event | str) -> AsyncHandler | None:
        """Take an async handler away. Returns it, or None if there was none."""
        event = task_event(event)
        dispatcher = self._async_dispatcher_worker.dispatcher
        handler: AsyncHandler | None = dispatcher.unregister_handler(event)
        return handler

    async def _tell_status(self) -> None:
        try:
            tasks = sorted(self.registry) if self.engine._consumes() else []
            status = {"kind": self.type, "status": await self.status(), "tasks": tasks}
            await self.broker.set_manager_status(self.manager_id, status, ttl=int(3 * STATUS_SECONDS))
        except BrokerError as exc:
            logger.debug("%s: %s", self.worker_name, exc)


def async_handlers(
    dispatcher: AsyncDispatcher[TaskRun[Any, Any]], grace_seconds: float
) -> AsyncConsumer[TaskRun[Any, Any]]:
    """The worker that calls async handlers of events."""
    return AsyncConsumer(dispatcher, name="async-handlers", stopping_grace_period=grace_seconds)
