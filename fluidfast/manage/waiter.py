"""``TaskRunWaiter``: wait for runs that this process executes, with handlers for their final states."""

import asyncio
from typing import Any

from ..core._run import TaskRun
from ..core._time import new_id
from ..core.states import FINISHED_STATES, TaskState

__all__ = ["TaskRunWaiter"]


class TaskRunWaiter:
    """Waits for runs that this process finishes: ``with TaskRunWaiter(manager) as waiter: await waiter.wait(run)``.

    It remembers every run that ends while it is open, so a run may end before ``wait``. For runs that another process
    may execute, use ``queue_and_wait``.
    """

    def __init__(self, task_manager: Any, uid: str = "") -> None:
        self.task_manager = task_manager
        self.uid = uid or new_id()
        self._ended: dict[str, TaskRun[Any, Any]] = {}
        self._futures: dict[str, list[asyncio.Future[TaskRun[Any, Any]]]] = {}

    def event(self, state: TaskState) -> str:
        """Return the event of this waiter's handler for a state, such as ``success.UID``."""
        return f"{state}.{self.uid}"

    def __enter__(self) -> "TaskRunWaiter":
        for state in FINISHED_STATES:
            self.task_manager.dispatcher.register_handler(self.event(state), self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for state in FINISHED_STATES:
            self.task_manager.dispatcher.unregister_handler(self.event(state))

    def __call__(self, task_run: TaskRun[Any, Any]) -> None:
        """Handle the end of a run."""
        self._ended[task_run.id] = task_run
        for future in self._futures.pop(task_run.id, ()):
            future.get_loop().call_soon_threadsafe(fulfil, future, task_run)

    async def wait(self, task_run: TaskRun[Any, Any], *, timeout: float | None = None) -> TaskRun[Any, Any]:
        """Wait for a run and return it as it ended.

        ``timeout``: seconds to wait; None or 0: the task's ``timeout_seconds``.

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
