"""Waiting for runs: for those executed elsewhere, by a future per run id and one reader for all of a manager's; for
those executed here, by the events of their states."""

import asyncio
import logging
from typing import Any

from ._clock import new_id
from ._run import TaskRun
from .broker import TaskBroker
from .errors import BrokerError, TaskError
from .states import FINISHED_STATES, TaskState

__all__ = ["Replies", "TaskRunWaiter"]

logger = logging.getLogger(__name__)

READ_SECONDS = 2.0


class Replies:
    """Finished runs that one manager waits for."""

    def __init__(self, broker: TaskBroker, manager: Any) -> None:
        self.broker = broker
        self.manager = manager
        self.expected: dict[str, asyncio.Future[TaskRun[Any, Any]]] = {}
        self.reader: asyncio.Task[None] | None = None

    def expect(self, run_id: str) -> "asyncio.Future[TaskRun[Any, Any]]":
        """A future that gets the run with this id when it is finished."""
        future: asyncio.Future[TaskRun[Any, Any]] = asyncio.get_running_loop().create_future()
        self.expected[run_id] = future
        if self.reader is None or self.reader.done() or self.reader.get_loop() is not future.get_loop():
            self.reader = asyncio.create_task(self._read(), name="fluidfast-replies")
        return future

    def forget(self, run_id: str) -> None:
        """Nobody waits for this run any more."""
        self.expected.pop(run_id, None)

    async def _read(self) -> None:
        while self.expected:
            try:
                payloads = await self.broker.replies(self.manager.manager_id, READ_SECONDS)
            except BrokerError as exc:
                logger.warning("waiting for finished runs: %s", exc)
                await asyncio.sleep(0.5)
                continue
            for payload in payloads:
                self._deliver(payload)

    def _deliver(self, payload: bytes) -> None:
        try:
            run = self.broker.codec.decode_finished(payload, self.manager, self.manager.dispatcher.listeners)
        except TaskError as exc:
            logger.warning("a finished run cannot be read: %s", exc)
            return
        future = self.expected.pop(run.id, None)
        if future is not None and not future.done():
            future.set_result(run)

    async def close(self) -> None:
        """Stop reading; who still waits gets CancelledError."""
        reader, self.reader = self.reader, None
        for future in self.expected.values():
            if not future.done():
                future.cancel()
        self.expected.clear()
        if reader is not None and not reader.done() and reader.get_loop() is asyncio.get_running_loop():
            reader.cancel()
            await asyncio.wait([reader])


class TaskRunWaiter:
    """Waits for runs that this process finishes: ``with TaskRunWaiter(manager) as waiter: await waiter.wait(run)``.

    It remembers every run that ends while it is open, so a run may end before somebody waits for it. For runs that
    another process may execute there is ``queue_and_wait``.
    """

    def __init__(self, task_manager: Any, uid: str = "") -> None:
        self.task_manager = task_manager
        self.uid = uid or new_id()
        self._ended: dict[str, TaskRun[Any, Any]] = {}
        self._futures: dict[str, list[asyncio.Future[TaskRun[Any, Any]]]] = {}

    def event(self, state: TaskState) -> str:
        """The event that this waiter has a handler for, such as ``success.UID``."""
        return f"{state}.{self.uid}"

    def __enter__(self) -> "TaskRunWaiter":
        for state in FINISHED_STATES:
            self.task_manager.dispatcher.register_handler(self.event(state), self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for state in FINISHED_STATES:
            self.task_manager.dispatcher.unregister_handler(self.event(state))

    def __call__(self, task_run: TaskRun[Any, Any]) -> None:
        """The handler: a run has ended."""
        self._ended[task_run.id] = task_run
        for future in self._futures.pop(task_run.id, ()):
            future.get_loop().call_soon_threadsafe(fulfil, future, task_run)

    async def wait(self, task_run: TaskRun[Any, Any], *, timeout: float | None = None) -> TaskRun[Any, Any]:
        """The run as it ended. ``timeout``: seconds to wait; None or 0: the task's ``timeout_seconds``.

        Raises:
            TimeoutError: it has not ended in time.
        """
        if (ended := self._ended.get(task_run.id)) is not None:
            return ended
        future: asyncio.Future[TaskRun[Any, Any]] = asyncio.get_running_loop().create_future()
        self._futures.setdefault(task_run.id, []).append(future)
        try:
            async with asyncio.timeout(timeout or task_run.task.timeout_seconds):
                return await future
        finally:
            futures = self._futures.get(task_run.id, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._futures.pop(task_run.id, None)


def fulfil(future: "asyncio.Future[TaskRun[Any, Any]]", run: TaskRun[Any, Any]) -> None:
    if not future.done():
        future.set_result(run)
