"""``TaskConsumer``: a manager with an engine and the lifecycle of a worker."""

import asyncio
import logging
import math
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import Any, Self, Unpack

from ..brokers.base import TaskBroker
from ..checks import check_number
from ..consume.engine import Engine
from ..consume.held import Group
from ..core._run import TaskRun
from ..core._time import keep_for_good
from ..core.config import ManagerOptions, TaskManagerConfig
from ..core.events import AsyncTaskDispatcher, Event, task_event
from ..core.process import is_in_cpu_process
from ..core.task import AnyTask, checked
from ..core.workers import AsyncConsumer, QueueConsumerWorker, Worker, WorkerFunction, Workers, WorkerState
from ..errors import (
    BrokerAuthError,
    BrokerConnectionError,
    BrokerError,
    ConfigError,
    CpuBoundEntryPointError,
    QueueFullError,
    WorkerStartError,
)
from ..settings import get_settings
from ..texts import printable
from .manager import AsyncHandler, TaskManager

__all__ = ["TaskConsumer"]

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5
"""Pause of ``sync_queue`` before it retries a run that the broker did not take."""
FIRST_TRY_SECONDS = 5.0
"""Time limit of the first try to connect, also if ``connect_seconds`` is less."""
STATUS_SECONDS = 5.0
"""Interval at which a consumer reports its status."""


class TaskConsumer(TaskManager, Workers):
    """A manager that also consumes: it claims runs and executes them.

        async with TaskConsumer(broker_url="redis://localhost:6379") as consumer:
            await consumer.wait_for_shutdown()

    Or call ``await consumer.startup()``, and ``await consumer.shutdown()`` to drain. It can start again after it has
    ended.

    ``name``: the worker's name. ``stopping_grace_period``: seconds that running tasks have to finish at shutdown
    (default: FLUID_STOPPING_GRACE_PERIOD, else 10). Other arguments: as ``TaskManager``.
    """

    def __init__(
        self,
        *,
        deps: Any = None,
        config: TaskManagerConfig | None = None,
        name: str = "",
        stopping_grace_period: float | None = None,
        **kwargs: Unpack[ManagerOptions],
    ) -> None:
        TaskManager.__init__(self, deps=deps, config=config, **kwargs)
        if stopping_grace_period is None:
            stopping_grace_period = get_settings().stopping_grace_period
        check_number("stopping_grace_period", stopping_grace_period, ConfigError)
        Workers.__init__(self, name=name, stopping_grace_period=2 * stopping_grace_period + 5)
        self._within = False
        self._parent = 0
        self._async_dispatcher_worker: AsyncConsumer[TaskRun[Any, Any]] = AsyncConsumer(
            AsyncTaskDispatcher(raises=self.config.on_handler_error == "stop"),
            name="async-handlers",
            stopping_grace_period=stopping_grace_period,
        )
        self._async_dispatcher_worker._worker_life.watchers.append(self._stop_with_handlers)
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
        self._own_workers = self.num_workers

    @classmethod
    def of(cls, manager: TaskManager) -> Self:
        """Return a consumer with the tasks, config, deps, state, handlers, hooks, plugins and contexts of a manager.

        Later registrations of handlers and hooks with the manager apply to the consumer too.
        """
        consumer = cls(deps=manager.deps, config=replace(manager.config, broker_url=manager.broker.url.raw))
        consumer.state = manager.state
        for task in manager.registry.values():
            consumer.register_task(task)
        consumer.plugins += manager.plugins
        consumer.launcher = manager.launcher
        consumer._async_contexts.insert(0, Closing(manager))  # after the async handlers, which may queue runs with it
        consumer._async_contexts += manager._async_contexts
        manager.pass_events_to(consumer)
        return consumer

    def _attach(self, broker: TaskBroker) -> None:
        TaskManager._attach(self, broker)
        if (engine := self.__dict__.get("engine")) is not None:  # the constructor makes it of the first broker
            self.engine = engine._renew()
            self._workers[self._workers.index(engine)] = self.engine

    # -- life

    async def __aenter__(self) -> Self:
        """Start consuming: ``async with TaskConsumer(...) as consumer``. The end of the block drains."""
        await self._start()
        self._within = True
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self._within = False
        await self.shutdown()

    async def startup(self) -> None:
        """Start consuming. Return once contexts are entered, the broker has answered, and added workers have started.

        It waits up to ``connect_seconds`` for an unavailable broker. A consumer that has ended can start again. Within
        ``async with`` this does nothing.

        Raises:
            BrokerConnectionError: the broker was unavailable for ``connect_seconds``.
            CpuBoundEntryPointError: this is the process of a CPU-bound run, and its entry point has no ``exec``
                command (see ``TaskManagerCLI``).
            WorkerStartError: it already runs.
            Exception: a context raised it. Those before it are closed, and the next start enters all of them.
        """
        if not (self._within and not self._worker_life.is_over()):
            await self._start()

    def _forked(self) -> None:
        """Detach, in the child of a fork, from a running consumer: it belongs to the parent."""
        TaskManager._forked(self)
        if self.has_started() and not self._worker_life.is_over():
            self._parent = os.getppid()
            self.engine.fall_silent()  # it says nothing for the parent, whatever becomes of a loop that goes on
        for worker in (self, *self.workers(), self._async_dispatcher_worker):
            keep_for_good(worker._worker_life, worker.__dict__.get("_queue"))
            if worker.has_started():
                Worker._renew(worker)
                worker._worker_state = WorkerState.STOPPED
        self._sync_queue._queue, self._async_dispatcher_worker._queue = deque(), deque()

    async def _start(self) -> None:
        if self._parent:
            raise WorkerStartError(
                f"{self.worker_name} runs in process {self._parent}, and this process is a fork of it: make a consumer "
                "here, or fork before it starts"
            )
        if is_in_cpu_process():
            raise CpuBoundEntryPointError(
                "a consumer was started in the process of a CPU-bound run: make the application's entry point a "
                "TaskManagerCLI, so that it has the exec command"
            )
        if self.has_started() and self._worker_life.is_over():
            self._renew()
        self._up = asyncio.get_running_loop().create_future()
        await Workers.startup(self)
        life = self._worker_life
        assert life.task is not None
        try:
            await asyncio.wait((life.task, self._up), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            life.abandon()
            raise
        if not self._up.done():
            await life.wait()

    def _renew(self) -> Worker:
        Workers._renew(self)
        self.engine = next(worker for worker in self.workers() if isinstance(worker, Engine))
        return self

    def _has_logged(self, error: BaseException) -> bool:
        return not self._up.done() or Workers._has_logged(self, error)  # the former: ``startup`` raises it

    async def run(self) -> None:
        """Wait for the broker, then supervise the workers."""
        self.broker.consumes = True
        if await self._connect():
            await Workers.run(self)

    async def _supervise(self) -> None:
        """Start the workers that the application added; its ``startup`` returns then, and the consumer begins."""
        for worker in tuple(self._workers)[self._own_workers :]:
            if self.is_running() and not worker.has_started():
                await worker.startup()
        if not self._up.done():  # its caller may have been cancelled
            self._up.set_result(None)
        await Workers._supervise(self)

    async def _connect(self) -> bool:
        """Wait for the broker. Return False if it has to stop meanwhile. Raises as ``connect_within``."""
        connecting = asyncio.create_task(connect_within(self.broker, self.config.connect_seconds, self.worker_name))
        stopping = asyncio.create_task(self._wait_stop())
        try:
            await asyncio.wait((connecting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                connecting.result()
            return connecting.done()
        finally:
            connecting.cancel()
            stopping.cancel()
            await asyncio.gather(connecting, stopping, return_exceptions=True)

    def _needs_loop(self) -> bool:
        handlers = self._async_dispatcher_worker
        return any(context is not handlers for context in self._async_contexts) or bool(
            handlers.dispatcher.registered()
        )

    async def _enter(self) -> None:
        handlers = self._async_dispatcher_worker
        if handlers.has_started() and handlers._worker_life.is_over():
            handlers._renew()
        await TaskManager._enter(self)

    async def status(self) -> dict[str, Any]:
        """Return the status of each worker by name, and its own if an error of its own has ended it."""
        statuses = await Workers.status(self)
        error = self._worker_life.error
        if error is not None and not Workers._has_logged(self, error):
            statuses[self.worker_name] = await Worker.status(self)
        return statuses

    @property
    def num_concurrent_tasks(self) -> int:
        """How many runs this consumer executes now (a name of aio-fluid 1.x)."""
        return self.engine.slots.running

    def num_concurrent_tasks_for(self, task_name: str) -> int:
        """How many of them are of one task (a name of aio-fluid 1.x)."""
        held = [slot.held for slot in self.engine.slots if slot.held is not None]
        runs = [run for each in held for run in (each.runs() if isinstance(each, Group) else [each.run])]
        return sum(run.name == task_name for run in runs if run is not None)

    def is_busy(self) -> bool:
        """Return whether a run is claimed or running here, or handlers or the producer have something left to do."""
        slots = self.engine.slots
        return bool(
            slots.running
            or slots.ready
            or self.intake.producer.pending
            or self._sync_queue.is_busy()
            or self._async_dispatcher_worker.is_busy()
        )

    def register_task(self, task: AnyTask, tags: Sequence[str] | None = None, *, replace: bool = False) -> None:
        """Register a task as ``TaskManager.register_task``, and warn of one that is a Kubernetes job in aio-fluid."""
        TaskManager.register_task(self, task, tags, replace=replace)
        task = checked(task)
        if task.cpu_bound and task.k8s_config is not None and "KUBERNETES_SERVICE_HOST" in os.environ:
            logger.warning(
                "task %s has a k8s_config, but Kubernetes jobs are not supported yet: its runs are child processes in "
                "the pod of this consumer, with the pod's CPU and memory",
                printable(task.name),
            )

    def sync_queue(self, task: "str | AnyTask | TaskRun[Any, Any]", delay: float = 0) -> None:
        """Queue a task, or a run, from code that cannot await, in any thread.

        The consumer sends it soon, at shutdown at the latest. ``delay``: seconds before it may start, 0 or more.

        Raises:
            ConfigError: ``delay`` is not a number of seconds.
        """
        check_number("delay", delay, ConfigError)
        self._sync_queue.send((task, monotonic() + delay if delay else 0.0))

    async def on_shutdown(self) -> None:
        """Queue the runs of ``sync_queue`` if the consumer never started, then shut down as a manager."""
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
            if not delay and self._sync_queue.is_running() and not await self._has_room(run):
                self._sync_queue.send(message)
                return
            await self.intake.send(run, delay, admit=False)
            if delay:
                self.engine.promote_in(delay)
        except (BrokerConnectionError, QueueFullError) as exc:
            # there is no caller to hold or to tell: it is kept here until there is room, or until the shutdown
            logger.warning("%s: cannot queue a run, trying again: %s", self.worker_name, exc)
            await asyncio.sleep(AGAIN_SECONDS)
            self._sync_queue.send(message)
        except Exception:
            logger.exception("%s: sync_queue(%r) failed", self.worker_name, task)

    async def _has_room(self, run: TaskRun[Any, Any]) -> bool:
        """Whether the broker has room for a run, now or within AGAIN_SECONDS. Raises as ``admit``."""
        if not self.intake.backpressure.active:
            return True
        try:
            async with asyncio.timeout(AGAIN_SECONDS):
                await self.intake.admit(1, len(self.broker.codec.encode(run)))
        except TimeoutError:
            return False
        return True

    def register_async_handler(self, event: Event | str, handler: AsyncHandler) -> None:
        """Call an async handler with a snapshot of each run that reaches a state: ``"success"``, ``"success.mytag"``.

        The consumer logs an exception of the handler and goes on, unless ``on_handler_error="stop"``.
        """
        event = task_event(event)
        self.dispatcher.register_handler(f"{event.type}.async_dispatch", self._dispatch_async)
        self._async_dispatcher_worker.dispatcher.register_handler(event, handler)

    def _dispatch_async(self, run: TaskRun[Any, Any]) -> None:
        self._async_dispatcher_worker.send(run)

    def _stop_with_handlers(self) -> None:
        if self._async_dispatcher_worker._worker_life.error is not None:
            self.gracefully_stop()  # the end of its contexts raises the error

    def unregister_async_handler(self, event: Event | str) -> AsyncHandler | None:
        """Remove an async handler. Return it, or None if there was none."""
        event = task_event(event)
        dispatcher = self._async_dispatcher_worker.dispatcher
        handler: AsyncHandler | None = dispatcher.unregister_handler(event)
        return handler

    async def _tell_status(self) -> None:
        try:
            tasks = sorted(self.registry) if self.engine.consumes() else []
            status = {"kind": self.type, "status": await self.status(), "tasks": tasks}
            await self.broker.set_manager_status(self.manager_id, status, ttl=int(3 * STATUS_SECONDS))
        except BrokerError as exc:
            logger.debug("%s: %s", self.worker_name, exc)


class Closing:
    """Closes a manager at the end of each life of its consumer, since tasks and handlers may have queued runs with it.

    Unlike a context manager that is made of a generator, it can be entered again.
    """

    def __init__(self, manager: TaskManager) -> None:
        self.manager = manager

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *exc_info: object) -> None:
        await self.manager.on_shutdown()


async def connect_within(broker: TaskBroker, seconds: float, who: str) -> None:
    """Connect to the broker; retry for ``seconds`` while it is unavailable.

    Raises:
        BrokerConnectionError: it was unavailable for that long.
        BrokerError: it refuses the connection.
    """
    end = monotonic() + seconds
    limit = max(seconds, FIRST_TRY_SECONDS)
    pause = 0.02
    told = False
    while True:
        try:
            async with asyncio.timeout(None if limit == math.inf else limit):
                await broker.connect()
            return
        except BrokerAuthError:
            raise
        except (BrokerConnectionError, TimeoutError) as exc:
            reason = str(exc) if isinstance(exc, BrokerError) else f"broker {broker.url}: no answer"
            limit = end - monotonic() - pause
            if limit <= 0:
                raise BrokerConnectionError(
                    f"{reason}; {who} gave up after {seconds:g} s: start the server, or raise connect_seconds"
                ) from exc
            if not told:
                logger.warning("%s: %s; trying again for up to %g s", who, reason, seconds)
            told = True
        await asyncio.sleep(pause)
        pause = min(2 * pause, 1.0)
