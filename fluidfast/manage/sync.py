"""``manager.sync``: the manager for code without an event loop, from any number of threads.

The first call starts a thread with an event loop, and ``close`` ends it. Concurrent calls share batches, as with the
async methods.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import Any, Literal, Never, Protocol, Self, TypeVar, Unpack, overload

from ..brokers.base import TaskBroker
from ..core._run import TaskRun
from ..core._time import keep_for_good
from ..core.states import TaskPriority
from ..core.task import AnyTask, HasTask, Task
from ..produce.bulk import QueueSummary
from ..produce.handle import RunHandle, RunOptions, Wanted, read_options
from ..produce.intake import Intake, Posted

__all__ = ["SyncManager"]

logger = logging.getLogger(__name__)

M = TypeVar("M")
R = TypeVar("R")
T = TypeVar("T")
LOOK_SECONDS = 0.5
"""Interval at which a call checks whether another thread's event loop still runs."""
END_SECONDS = 5.0
"""How long ``close`` waits for pending calls of other threads."""


class AsyncFace(Protocol):
    """The manager whose methods have a blocking form here."""

    broker: TaskBroker
    intake: Intake

    def hands_over(self) -> bool: ...
    def loop_in_use(self) -> asyncio.AbstractEventLoop | None: ...
    async def on_shutdown(self) -> None: ...
    async def flush(self) -> None: ...
    @property
    def create_task_run(self) -> Callable[..., TaskRun[Any, Any]]: ...
    @property
    def queue(self) -> Callable[..., Coroutine[Any, Any, TaskRun[Any, Any]]]: ...
    @property
    def queue_many(self) -> Callable[..., Coroutine[Any, Any, QueueSummary]]: ...
    @property
    def queue_and_wait(self) -> Callable[..., Coroutine[Any, Any, TaskRun[Any, Any]]]: ...
    @property
    def execute(self) -> Callable[..., Coroutine[Any, Any, TaskRun[Any, Any]]]: ...


class SyncManager:
    """Blocking forms of a manager's methods, for any thread. They raise the same exceptions.

    If the manager is in use in an event loop of another thread, the calls run in that loop. So a plain function that a
    consumer runs may use them. ``with manager.sync as sync:`` closes it, and the manager, at the end.

        manager.sync.queue("send", to="grace@example.com")
    """

    def __init__(self, manager: AsyncFace) -> None:
        self._manager = manager
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._unconfirmed: set[Posted] = set()
        self._calls = 0  # under way, under the lock

    def forked(self) -> None:
        """Drop, in the child of a fork, the thread and its event loop: they belong to the parent."""
        keep_for_good(self._lock, self._loop, self._unconfirmed)
        self._lock = threading.Lock()
        self._loop = self._thread = None
        self._unconfirmed = set()
        self._calls = 0

    def is_in_use(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Return whether the manager works in this event loop. Its own loop may run idle and wait for calls."""
        if loop is None or not loop.is_running():
            return False
        return loop is not self._loop or self._calls > 0 or self._manager.intake.producer.is_busy_in(loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop that uses the manager, else its own loop. Call it under the lock."""
        if (home := self._manager.loop_in_use()) is not None and home is not self._loop:
            if home is asyncio._get_running_loop():
                raise RuntimeError("manager.sync was called within the event loop of its manager: use await there")
            return home
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            try:
                import uvloop
            except ImportError:
                loop = asyncio.new_event_loop()
            else:
                loop = uvloop.new_event_loop()
            self._unconfirmed.clear()
            self._loop = loop
            self._thread = threading.Thread(target=self._run, args=(loop,), name="fluidfast-sync", daemon=True)
            self._thread.start()
        return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._loop is loop:
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt):  # of a task: its caller gets it, other callers wait on
                logger.warning("manager.sync: a task tried to end the process", exc_info=True)

    def _refuse_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("manager.sync was called within its own event loop: use await there")

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of these methods, and return its result. Raises as it does.

        Raises:
            RuntimeError: it was called within that event loop.
        """
        try:
            self._refuse_own_thread()
        except RuntimeError:
            coroutine.close()
            raise
        with self._lock:  # so that no call is given to a loop that is being closed
            try:
                loop = self._running_loop()
            except BaseException:
                coroutine.close()
                raise
            future = asyncio.run_coroutine_threadsafe(coroutine, loop)
            self._calls += 1
        return self._result(future, loop)

    def _result(self, future: "Future[T]", loop: asyncio.AbstractEventLoop) -> T:
        """Wait for the answer to a counted call."""
        try:
            if loop is not self._loop:  # somebody else's, which may end before it answers
                while not wait([future], LOOK_SECONDS).done:
                    if not loop.is_running():
                        raise RuntimeError("manager.sync: the event loop of its manager has ended")
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            with self._lock:
                self._calls -= 1

    def queue(
        self,
        task: str | AnyTask,
        priority: TaskPriority | str | None = None,
        *,
        run_id: str = "",
        params: Any = None,
        **kwargs: Any,
    ) -> TaskRun[Any, Any]:
        """Queue a run as ``TaskManager.queue``, blocking."""
        manager = self._manager
        if manager.intake.buffers or not manager.hands_over():

            async def queue() -> TaskRun[Any, Any]:  # which is to be called in the loop that it is for
                return await manager.queue(task, priority, run_id=run_id, params=params, **kwargs)

            return self.call(queue())
        self._refuse_own_thread()
        return self._post(manager.create_task_run(task, run_id, priority, params=params, **kwargs))

    @overload
    def enqueue(
        self, task: Task[M, R], params: M | Mapping[str, Any] | None = None, /, **options: Unpack[RunOptions]
    ) -> RunHandle[R]: ...

    @overload
    def enqueue(self, task: str | HasTask, params: Any = None, /, **options: Unpack[RunOptions]) -> RunHandle[Any]: ...

    def enqueue(self, task: str | AnyTask, params: Any = None, /, **options: Unpack[RunOptions]) -> RunHandle[Any]:
        """Queue a run as ``TaskManager.enqueue``, blocking."""
        return self.enqueue_wanted(task, {} if params is None else params, read_options(options))

    def enqueue_wanted(self, task: str | AnyTask, params: Any, wanted: Wanted) -> RunHandle[Any]:
        """Queue a run as ``enqueue``, with options that have been checked."""
        intake = self._manager.intake
        if intake.buffers or wanted.seconds(intake.broker.now()) or not self._manager.hands_over():
            return self.call(intake.enqueue(task, params, wanted))
        self._refuse_own_thread()
        return RunHandle(self._post(intake.make_wanted(task, params, wanted)).id)

    def _post(self, run: TaskRun[Any, Any]) -> TaskRun[Any, Any]:
        """Queue a run that was made in this thread: that of the event loop gets bytes, and makes no Task of them."""
        manager = self._manager
        payload = manager.broker.codec.submit(run)
        if manager.broker.push(run.prio, payload):
            return run
        answer: Future[TaskRun[Any, Any]] = Future()
        with self._lock:
            loop = self._running_loop()
            loop.call_soon_threadsafe(self._submit, run, payload, answer)
            self._calls += 1
        return self._result(answer, loop)

    def _submit(self, run: TaskRun[Any, Any], payload: bytes, answer: "Future[TaskRun[Any, Any]]") -> None:
        def give(future: Posted) -> None:
            self._unconfirmed.discard(future)
            if future.cancelled():
                answer.set_exception(asyncio.CancelledError())
            elif (exc := future.exception()) is not None:
                answer.set_exception(exc)
            else:
                answer.set_result(run)

        try:
            future = self._manager.intake.post(run, payload)
        except BaseException as exc:
            answer.set_exception(exc)  # it waits for nothing else
            raise
        self._unconfirmed.add(future)
        future.add_done_callback(give)

    def queue_many(
        self,
        task: str | AnyTask,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        priority: TaskPriority | str | None = None,
        on_error: Literal["raise", "collect"] = "raise",
        return_ids: bool = False,
        progress: Callable[[QueueSummary], object] | None = None,
    ) -> QueueSummary:
        """Queue a run for each item as ``TaskManager.queue_many``, blocking.

        The thread of the event loop iterates over the items and calls ``progress``.
        """
        return self.call(
            self._manager.queue_many(
                task, items, priority=priority, on_error=on_error, return_ids=return_ids, progress=progress
            )
        )

    def queue_and_wait(
        self, task: str | AnyTask, *misplaced: Never, timeout: float | None = None, **kwargs: Any
    ) -> TaskRun[Any, Any]:
        """Queue a run and wait for its end as ``TaskManager.queue_and_wait``, blocking."""
        return self.call(self._manager.queue_and_wait(task, *misplaced, timeout=timeout, **kwargs))

    def execute(self, task: str | AnyTask, *misplaced: Never, **kwargs: Any) -> TaskRun[Any, Any]:
        """``TaskManager.execute``, blocking; the task runs in the loop's thread."""
        return self.call(self._manager.execute(task, *misplaced, **kwargs))

    def flush(self) -> None:
        """``TaskManager.flush``, blocking."""
        self.call(self._manager.flush())

    def close(self) -> None:
        """Shut the manager down and end the thread. The next call starts a new one.

        A call that another thread still waits in then, such as ``queue_and_wait``, raises CancelledError there.
        """
        self._refuse_own_thread()
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or not thread.is_alive():
                return
            try:
                asyncio.run_coroutine_threadsafe(self._end(), loop).result()
            finally:
                self._loop = self._thread = None
                loop.call_soon_threadsafe(loop.stop)
                thread.join()
                loop.close()

    async def _end(self) -> None:
        try:
            await self._manager.on_shutdown()
        finally:
            for future in list(self._unconfirmed):
                future.cancel()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            if others:
                await asyncio.wait(others, timeout=END_SECONDS)
