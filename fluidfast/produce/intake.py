"""``Intake``: every way to queue calls it (manager, ``manager.sync``, schedules, HTTP, command line, bulk)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from ..brokers.base import TaskBroker
from ..checks import shown
from ..core._run import TaskRun
from ..core.events import TaskDispatcher
from ..core.hooks import Hooks
from ..core.states import STATES, TaskPriority, TaskState
from ..core.task import AnyTask, Task
from ..errors import TaskUsageError
from ._outbox import Confirmation
from .backpressure import Backpressure
from .handle import RunHandle, Wanted
from .producer import Producer

__all__ = ["Intake", "Maker", "Posted"]

Posted = Confirmation[Any] | asyncio.Future[Any]
INIT_BIT = 1 << STATES.index(TaskState.init)
QUEUED_BIT = 1 << STATES.index(TaskState.queued)


class Maker(Protocol):
    """The manager of new runs: their ``task_manager``."""

    dispatcher: TaskDispatcher


class Intake:
    """Make runs of one manager and send them to its broker.

    ``buffers``: callers do not wait for the broker (``delivery="buffered"``).
    """

    def __init__(
        self, manager: Maker, broker: TaskBroker, producer: Producer, backpressure: Backpressure, hooks: Hooks,
        *, buffers: bool,
    ) -> None:  # fmt: skip
        self.manager = manager
        self.hooks = hooks
        self.buffers = buffers
        self.attach(broker, producer, backpressure)

    def attach(self, broker: TaskBroker, producer: Producer, backpressure: Backpressure) -> None:
        """Send to this broker. Those who hold this intake follow."""
        self.broker = broker
        self.producer = producer
        self.backpressure = backpressure

    # -- making

    def make(
        self,
        task: str | AnyTask,
        run_id: str = "",
        priority: TaskPriority | str | None = None,
        *,
        parent: TaskRun[Any, Any] | None = None,
        params: Any = None,
        given: dict[str, Any],
    ) -> TaskRun[Any, Any]:
        """Return a run in state ``init``. ``params``: one mapping or object; ``given``: params by keyword.

        Raises:
            As ``TaskManager.create_task_run``.
        """
        codec, manager = self.broker.codec, self.manager
        listeners = manager.dispatcher.listeners
        if not isinstance(run_id, str):
            raise TaskUsageError(
                f"create_task_run: the run_id is a {type(run_id).__name__}, it must be text; if these are the run's "
                "params, give them by name: params=..., or each as a keyword"
            )
        if params is None:
            return codec.create(task, priority, run_id, given, manager, listeners, parent)
        if codec.has_field(task, "params"):
            return codec.create(task, priority, run_id, {**given, "params": params}, manager, listeners, parent)
        if given:
            if not isinstance(params, Mapping):
                raise TypeError("give the params as one object or as keywords, not both")
            params = {**params, **given}
        return codec.create_with(task, priority, run_id, params, manager, listeners, parent)

    def make_with(
        self, task: Task[Any], params: Mapping[str, Any], priority: TaskPriority | None = None
    ) -> TaskRun[Any, Any]:
        """Return a run in state ``init`` with these params, which may have any names. Raises as ``make``."""
        return self.broker.codec.create_with(
            task, priority, "", params, self.manager, self.manager.dispatcher.listeners
        )

    def make_wanted(self, task: str | AnyTask, params: Any, wanted: Wanted) -> TaskRun[Any, Any]:
        """Return a run in state ``init``, with its params as one mapping, whose names may be any, or as an object of
        the task's model. Raises as ``make``."""
        run = self.broker.codec.create_with(
            task, wanted.priority, wanted.run_id, params, self.manager, self.manager.dispatcher.listeners
        )
        if wanted.at is not None:
            run.execute_after = wanted.at
        return run

    def write(self, run: TaskRun[Any, Any]) -> bytes:
        """Fire the event ``init``, set the state ``queued``, and return the payload. This does not send it.

        Raises:
            ParamsError, PayloadTooLargeError, TaskRunError: the run cannot be encoded.
        """
        run._emit()
        return self.broker.codec.submit(run)

    # -- sending

    async def enqueue(self, task: str | AnyTask, params: Any, wanted: Wanted) -> RunHandle[Any]:
        """Queue a run of ``make_wanted``.

        Raises:
            As ``TaskManager.queue``.
        """
        run = self.make_wanted(task, params, wanted)
        return await self.send(run, wanted.delay, options=wanted.given() if self.hooks.queueing else None)

    async def send(
        self,
        run: TaskRun[Any, Any],
        delay: float = 0.0,
        *,
        admit: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> RunHandle[Any]:
        """Queue a run, ``delay`` seconds from now or at its ``execute_after``, with the config's ``delivery``.

        ``admit``: wait for room within ``max_queue_length`` and ``max_queue_bytes``. ``options``: those that the caller
        gave, for hooks.

        Raises:
            As ``TaskManager.queue``.
        """
        if self.hooks.queueing:
            return await self._within_hooks(run, lambda: self._send(run, delay, admit), options)
        return await self._send(run, delay, admit)

    async def _within_hooks(
        self,
        run: TaskRun[Any, Any],
        send: Callable[[], Awaitable[RunHandle[Any]]],
        options: Mapping[str, Any] | None = None,
    ) -> RunHandle[Any]:
        handle = await self.hooks.call_queueing(run, send, options)
        if not isinstance(handle, RunHandle):
            raise TaskUsageError(
                f"run {run.shown_name} is queued, but the enqueue of the outermost middleware returned "
                f"{shown(handle)}: write 'return await call_next()'"
            )
        return handle

    async def _send(self, run: TaskRun[Any, Any], delay: float, admit: bool) -> RunHandle[Any]:
        payload = self.write(run)
        if run.execute_after is not None:
            delay = max(delay, (run.execute_after.timestamp() * 1e6 - self.broker.now()) / 1e6)
        if delay > 0:
            await self.producer.in_time(lambda: self.broker.delay([(delay, run.prio, payload)]))
        else:
            await self.hand_over(run.prio, payload, admit=admit)
        run._emit()
        return RunHandle(run.id)

    async def hand_over(self, priority: int, payload: bytes, *, admit: bool = True) -> None:
        """Queue a payload with the config's delivery. The caller has called hooks and fired events."""
        if admit:
            await self.admit(1, len(payload))
        if not self.buffers:
            await self._confirmed(priority, payload)
        elif not self.broker.push(priority, payload):
            self.producer.accept(asyncio.get_running_loop(), priority, payload)
            if self.producer.crowded:
                await self.producer.make_room()

    async def _confirmed(self, priority: int, payload: bytes) -> None:
        """Queue a payload, and return when the broker has confirmed it."""
        if not self.broker.push(priority, payload):
            await self.producer.submit(asyncio.get_running_loop(), priority, payload, None)

    async def admit(self, count: int, size: int) -> None:
        """Wait until so many runs more, of ``size`` bytes together, may wait on the broker.

        Raises:
            QueueFullError: they may not.
        """
        if self.backpressure.active:
            await self.backpressure.admit(count, size)

    def post(
        self,
        run: TaskRun[Any, Any],
        payload: bytes,
        due: Callable[[], float] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Posted:
        """Send a run that was written and admitted. Return a future, done when the broker has confirmed the run; it
        raises the same as ``send``. The caller fires the event ``queued``. For hooks: ``due`` returns the seconds until
        the run may start, ``options`` are those that the caller gave."""
        if self.hooks.queueing:

            async def go() -> RunHandle[Any]:
                changed = self.broker.codec.encode(run)  # by a hook
                if due is None:
                    await self._confirmed(run.prio, changed)
                else:
                    await self.producer.in_time(lambda: self.broker.delay([(due(), run.prio, changed)]))
                return RunHandle(run.id)

            return asyncio.ensure_future(self._within_hooks(run, go, options))
        return self.producer.submit(self.producer.running_loop(), run.prio, payload, run)

    async def send_once(
        self, made: TaskRun[Any, Any], run: TaskRun[Any, Any], push: Callable[[bytes], Awaitable[bool]]
    ) -> None:
        """Queue a run that others queue too. ``push`` sends its payload and returns True if this one came first.

        Fire the events ``init``, of ``made``, and ``queued``, of ``run``, only if this one came first.
        """

        async def go() -> RunHandle[Any]:
            if await push(self.broker.codec.encode(run)):
                made._emit()
                run._emit()
            return RunHandle(run.id)

        await self._within_hooks(run, go)

    # -- many

    @property
    def announces(self) -> bool:
        """Whether somebody is to be told of each run that is queued."""
        return bool(self.manager.dispatcher.listeners.mask & (INIT_BIT | QUEUED_BIT))

    def announce(self, payloads: list[bytes], state: TaskState) -> None:
        """Fire the event of a state for runs that were made as bytes only."""
        listeners = self.manager.dispatcher.listeners
        if not listeners.mask & (INIT_BIT if state is TaskState.init else QUEUED_BIT):
            return
        for run in self.broker.codec.decode_many(payloads, self.manager, listeners):
            if isinstance(run, TaskRun):
                (run.model_copy(update={"state": state, "queued": None}) if state is TaskState.init else run)._emit()
