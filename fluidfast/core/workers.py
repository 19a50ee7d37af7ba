"""Workers: coroutines with a lifecycle. A worker starts once, runs as its own asyncio task, stops on request, and ends.

    INIT -> RUNNING -> STOPPING -> STOPPED | FORCE_STOPPED      (a worker that ends by itself skips STOPPING)

Nothing here polls: callers wait for an event or for the worker's task.
"""

import asyncio
import inspect
import logging
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from enum import StrEnum
from typing import Any, Generic, Self

from ..checks import CENTURY, check_number
from ..errors import ConfigError, TaskUsageError, WorkerStartError
from ..settings import get_settings
from ..texts import describe
from .events import AsyncDispatcher, MessageType, is_current

__all__ = [
    "AsyncConsumer",
    "QueueConsumer",
    "QueueConsumerWorker",
    "Worker",
    "WorkerFunction",
    "WorkerState",
    "Workers",
]

logger = logging.getLogger(__name__)

_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    INIT = "init"
    """Made, not started."""
    RUNNING = "running"
    """Started."""
    STOPPING = "stopping"
    """Asked to stop; ``run`` is to return as soon as it can."""
    STOPPED = "stopped"
    """Ended: as it was asked to, by itself, or by an error."""
    FORCE_STOPPED = "force_stopped"
    """Cancelled, because it had not ended within its grace period."""


class _Life:
    """The task of one worker, who waits for its events, and how it ended. Apart, to leave subclasses their names."""

    __slots__ = (
        "abandoned",
        "error",
        "error_delivered",
        "force_timer",
        "forced",
        "level",
        "loop",
        "stop_requested",
        "task",
        "watchers",
        "worker",
    )

    def __init__(self, worker: "Worker") -> None:
        self.worker = worker
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[None] | None = None
        self.stop_requested = asyncio.Event()
        self.watchers: list[Callable[[], None]] = []
        self.force_timer: asyncio.TimerHandle | None = None
        self.level = logging.INFO  # of the log lines of its start and its end
        self.forced = False
        self.abandoned = False
        self.error: BaseException | None = None
        self.error_delivered = False

    def begin(self) -> asyncio.Task[None]:
        self.loop = asyncio.get_running_loop()
        self.worker._worker_state = WorkerState.RUNNING
        self.task = self.loop.create_task(self.live(), name=self.worker.worker_name)
        return self.task

    def is_over(self) -> bool:
        return self.task is None or self.task.done() or self.lost_its_loop()

    def lost_its_loop(self) -> bool:
        """Whether the event loop was closed under it."""
        return self.loop is not None and self.loop.is_closed()

    def abandon(self) -> None:
        """Cancel the task because its start was cancelled: that is how it ends, and no error."""
        if self.task is not None and not self.task.done():
            self.abandoned = True
            self.task.cancel()

    def changed(self) -> None:
        """Wake up whoever waits for the request to stop, or for the end. In the loop's thread."""
        self.stop_requested.set()
        for watcher in self.watchers:
            watcher()

    def changed_threadsafe(self) -> None:
        """``changed``, from any thread and from a signal handler."""
        if self.loop is not None:
            try:
                self.loop.call_soon_threadsafe(self.changed)
            except RuntimeError:  # the loop is closed: nobody is left to be told
                pass

    def force_after(self, seconds: float) -> None:
        """Cancel the task after so many seconds, counted from the first call."""
        if self.force_timer is None and self.loop is not None:
            self.force_timer = self.loop.call_later(seconds, self.force)

    def force(self) -> None:
        """Cancel the task because it takes too long to stop."""
        if self.task is not None and not self.task.done():
            logger.warning("%s takes too long to stop: cancelled", self.worker.worker_name)
            self.forced = True
            self.task.cancel()

    async def live(self) -> None:
        """The task. It keeps an error for those who wait, instead of raising it to nobody."""
        logger.log(self.level, "%s started running", self.worker.worker_name)
        try:
            await self.phases()
        except asyncio.CancelledError as error:
            if self.forced:
                self.ended("forced shutdown", 1)
            elif self.abandoned:
                self.ended("its start was cancelled", 2)
            else:
                self.ended(str(error) or "cancelled", 2, error)
        except (KeyboardInterrupt, SystemExit) as error:
            self.ended(type(error).__name__, 2, error)
            raise
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not is_current(self.task):
                raise
            self.ended(str(error) or type(error).__name__, 2, error)
        else:
            self.ended("normal shutdown", 0)

    async def phases(self) -> None:
        worker = self.worker
        await worker.on_startup()
        try:
            await worker.run()
        except (Exception, asyncio.CancelledError):
            # clean up in limited time, and without hiding the failure
            try:
                async with asyncio.timeout(worker._stopping_grace_period):
                    await worker.on_shutdown()
            except Exception:
                logger.exception("%s failed to clean up", worker.worker_name)
            raise
        await worker.on_shutdown()

    def ended(self, reason: str, code: int, error: BaseException | None = None) -> None:
        worker = self.worker
        self.error = error
        worker._worker_state = WorkerState.FORCE_STOPPED if code == 1 else WorkerState.STOPPED
        if self.force_timer is not None:
            self.force_timer.cancel()
        if error is None or isinstance(error, asyncio.CancelledError) or worker._has_logged(error):
            level = logging.WARNING if code else self.level
            logger.log(level, "%s stopped running: %s", worker.worker_name, reason)
        else:
            logger.error("%s stopped running: %s", worker.worker_name, reason, exc_info=error)
        self.changed()
        try:
            worker.after_shutdown(reason, code)
        except Exception:
            logger.exception("%s failed in after_shutdown", worker.worker_name)

    async def wait(self) -> None:
        """Wait for the end, and raise the error to whoever was waiting; failing that, to who asks first."""
        if self.task is None or (self.lost_its_loop() and not self.task.done()):
            return
        if self.task is asyncio.current_task():
            raise RuntimeError(f"worker {self.worker.worker_name} cannot wait for itself")
        if not self.task.done():
            await asyncio.wait([self.task])
        elif self.error_delivered:
            return
        if self.error is not None:
            self.error_delivered = True
            raise self.error


class Worker(ABC):
    """A coroutine, ``run``, with a life: subclass it and write ``run``.

    ``name``: the worker's name; left out, it is made from the class's name (``MyWorker``: ``my_worker``).
    ``stopping_grace_period``: how many seconds ``shutdown`` leaves the worker before it cancels it; left out, it is
    the setting of the same name (10).

    ``async with worker:`` starts it and shuts it down.
    """

    def __init__(self, *, name: str = "", stopping_grace_period: float | None = None) -> None:
        if stopping_grace_period is None:
            stopping_grace_period = get_settings().stopping_grace_period
        check_number("stopping_grace_period", stopping_grace_period, ConfigError, most=3 * CENTURY)
        self._worker_name = name or _WORD_START.sub("_", type(self).__name__).lower()
        self._worker_state = WorkerState.INIT
        self._worker_life = _Life(self)
        self._stopping_grace_period = stopping_grace_period

    # what subclasses write

    @abstractmethod
    async def run(self) -> None:
        """Do the work. Return soon after ``is_running()`` has turned false."""

    async def on_startup(self) -> None:  # noqa: B027
        """Called in the worker's task before ``run``. If it raises, ``run`` and ``on_shutdown`` are not called."""

    async def on_shutdown(self) -> None:  # noqa: B027
        """Called in the worker's task after ``run``, also when ``run`` failed or was cancelled.

        In these two cases it is cancelled in its turn if it takes longer than the grace period.
        """

    def after_shutdown(self, reason: str, code: int) -> None:  # noqa: B027
        """Called when the worker has ended, before those who wait for it go on. An error is logged, no more.

        ``reason`` is "normal shutdown" (``code`` 0), "forced shutdown" (1), or the text of the error (2).
        """

    # what it is

    @property
    def worker_name(self) -> str:
        """The worker's name."""
        return self._worker_name

    @property
    def worker_state(self) -> WorkerState:
        """Where the worker is in its life."""
        return self._worker_state

    @property
    def num_workers(self) -> int:
        """How many workers this one stands for: 1."""
        return 1

    def workers(self) -> Iterator["Worker"]:
        """The workers that this one stands for: itself."""
        yield self

    def has_started(self) -> bool:
        """Return True from ``startup`` on, also after the end."""
        return self._worker_state is not WorkerState.INIT

    def is_running(self) -> bool:
        """Return True between ``startup`` and the request to stop, or the end."""
        return self._worker_state is WorkerState.RUNNING

    def is_stopping(self) -> bool:
        """Return True between the request to stop and the end."""
        return self._worker_state is WorkerState.STOPPING

    def is_stopped(self) -> bool:
        """Return True once the worker has ended, in any way."""
        return self._worker_state in (WorkerState.STOPPED, WorkerState.FORCE_STOPPED)

    async def status(self) -> dict[str, Any]:
        """A picture of the worker, for people and for monitoring. ``error``: there if one has ended it."""
        status: dict[str, Any] = {"stopping": self.is_stopping(), "running": self.is_running()}
        error = self._worker_life.error
        if error is not None:
            status["error"] = describe(error)
        return status

    # its life

    async def startup(self) -> None:
        """Start the worker's task; it has begun, but ``on_startup`` need not be done, when this returns.

        Raises:
            WorkerStartError: it has been started before.
        """
        if self.has_started():
            raise WorkerStartError(f"worker {self._worker_name} already started: {self._worker_state.name}")
        self._worker_life.begin()
        try:
            await asyncio.sleep(0)  # the task goes first
        except asyncio.CancelledError:
            self._worker_life.abandon()
            raise

    def gracefully_stop(self) -> None:
        """Ask the worker to stop, without waiting for it. Does nothing unless it is running.

        May be called from any thread and from a signal handler.
        """
        if self.is_running():
            self._worker_state = WorkerState.STOPPING
            self._worker_life.changed_threadsafe()

    async def shutdown(self) -> None:
        """Ask the worker to stop and wait until it has; cancel it when its grace period is over.

        The period is kept even if this call is cancelled. Harmless on a worker that was not started or has ended;
        called by the worker's own task it does not wait. Raises what ``wait_for_shutdown`` raises.
        """
        life = self._worker_life
        if not life.is_over():
            self.gracefully_stop()
            if life.task is asyncio.current_task():
                return
            life.force_after(self._stopping_grace_period)
        await life.wait()

    async def wait_for_shutdown(self) -> None:
        """Wait until the worker has ended; returns at once if it was not started. To be cancelled here does not end it.

        Raises:
            Exception: the error that ended the worker, if one did (CancelledError if something else than ``shutdown``
                cancelled it). Everybody who waits at that time gets it; if nobody does, who asks first later.
            RuntimeError: the worker's own task called.
        """
        await self._worker_life.wait()

    async def __aenter__(self) -> Self:
        await self.startup()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    # for subclasses in this package

    def _renew(self) -> "Worker":
        """Prepare another life after the one that is over. Return who lives it in a group: this worker, or another in
        its place."""
        watchers = self._worker_life.watchers
        self._worker_state = WorkerState.INIT
        self._worker_life = _Life(self)
        self._worker_life.watchers = watchers
        return self

    async def _wait_stop(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the worker is asked to stop, or for so many seconds; True if it was asked."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._worker_life.stop_requested.wait()
        except TimeoutError:
            pass
        return not self.is_running()

    def _has_logged(self, error: BaseException) -> bool:
        """True if the error, which ends this worker, has been logged with its traceback before."""
        return False


class WorkerFunction(Worker):
    """Awaits a coroutine function again and again until it is asked to stop.

    ``run_function``: called without arguments; what it raises ends the worker.
    ``heartbeat``: seconds between the end of one call and the next one. A request to stop cuts them short.
    """

    def __init__(
        self,
        run_function: Callable[[], Awaitable[object]],
        *,
        heartbeat: float = 0,
        name: str = "",
        stopping_grace_period: float | None = None,
    ) -> None:
        super().__init__(name=name, stopping_grace_period=stopping_grace_period)
        self._run_function = run_function
        self._heartbeat = check_number("heartbeat", heartbeat, ConfigError)

    async def run(self) -> None:
        while self.is_running():
            await self._run_function()
            if self._heartbeat > 0:
                await self._wait_stop(self._heartbeat)
            else:
                await asyncio.sleep(0)


class QueueConsumer(Worker, Generic[MessageType]):
    """A worker with a queue of messages. Subclasses write ``run`` around ``get_message``."""

    def __init__(self, *, name: str = "", stopping_grace_period: float | None = None) -> None:
        super().__init__(name=name, stopping_grace_period=stopping_grace_period)
        self._queue: deque[MessageType] = deque()
        self._queue_changed = asyncio.Event()
        self._queue_thread = 0
        self._delivering = False
        self._worker_life.watchers.append(self._look)

    def _renew(self) -> Worker:
        self._queue_changed = asyncio.Event()  # one belongs to the event loop that waited for it
        return super()._renew()

    def _look(self) -> None:
        self._queue_changed.set()

    def send(self, message: MessageType | None) -> None:
        """Put a message into the queue, from any thread. It ignores None."""
        if message is None:
            return
        self._queue.append(message)
        loop = self._worker_life.loop
        if loop is None or threading.get_ident() == self._queue_thread:
            self._queue_changed.set()
        else:
            try:
                loop.call_soon_threadsafe(self._queue_changed.set)
            except RuntimeError:  # the loop is closed: nobody is left to read it
                pass

    async def get_message(self, timeout: float | None = 0.5) -> MessageType | None:
        """Take the next message out of the queue.

        Waits for ``timeout`` seconds (None: without limit), then returns None. Once the worker is asked to stop it
        returns what is still queued, and then None without waiting.
        """
        if not self._queue:
            if self._is_over():
                await asyncio.sleep(0)  # a loop that does not look at is_stopping() must not block everything else
            else:
                try:
                    async with asyncio.timeout(timeout):
                        while not self._queue and not self._is_over():
                            self._queue_changed.clear()
                            await self._queue_changed.wait()
                except TimeoutError:
                    pass
        return self._queue.popleft() if self._queue else None

    def queue_size(self) -> int:
        """Return the number of queued messages."""
        return len(self._queue)

    def is_busy(self) -> bool:
        """Return whether a message is queued or being delivered."""
        return bool(self._queue) or self._delivering

    async def status(self) -> dict[str, Any]:
        """A picture of the worker, with ``queue_size``."""
        return {**await super().status(), "queue_size": self.queue_size()}

    async def startup(self) -> None:
        """Start the worker's task. Raises ``WorkerStartError`` if it has been started before."""
        self._queue_thread = threading.get_ident()
        await super().startup()

    def _is_over(self) -> bool:
        return self.is_stopping() or self.is_stopped()

    async def _deliver_all(self, deliver: Callable[[MessageType], Awaitable[object]]) -> None:
        """Deliver messages until the worker is asked to stop; then what is left, within the grace period."""
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(None)

        def limit_the_rest() -> None:
            if self.is_stopping():
                limit.reschedule(loop.time() + self._stopping_grace_period)

        watchers = self._worker_life.watchers
        watchers.append(limit_the_rest)
        try:
            async with limit:
                limit_the_rest()
                while (message := await self.get_message(None)) is not None:
                    self._delivering = True
                    await deliver(message)
                    self._delivering = False
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            watchers.remove(limit_the_rest)
            if self._queue:
                logger.warning("%s leaves %d messages undelivered", self.worker_name, len(self._queue))


class QueueConsumerWorker(QueueConsumer[MessageType]):
    """Awaits a callback for each message, one after the other. An exception of the callback ends the worker.

    When it is asked to stop it delivers what is queued before it ends, for as long as its grace period.
    """

    def __init__(
        self,
        on_message: Callable[[MessageType], Awaitable[object]],
        *,
        name: str = "",
        stopping_grace_period: float | None = None,
    ) -> None:
        super().__init__(name=name, stopping_grace_period=stopping_grace_period)
        self.on_message = on_message

    async def run(self) -> None:
        await self._deliver_all(self.on_message)


class AsyncConsumer(QueueConsumer[MessageType]):
    """Passes each message to an ``AsyncDispatcher``, one after the other. An exception of ``dispatch`` ends the worker
    (that of ``AsyncTaskDispatcher`` logs the errors of handlers and raises none).

    When it is asked to stop it delivers what is queued before it ends, for as long as its grace period.
    """

    def __init__(
        self,
        dispatcher: AsyncDispatcher[MessageType],
        *,
        name: str = "",
        stopping_grace_period: float | None = None,
    ) -> None:
        super().__init__(name=name, stopping_grace_period=stopping_grace_period)
        self.dispatcher = dispatcher

    async def run(self) -> None:
        await self._deliver_all(self.dispatcher.dispatch)


class Adopted(Worker):
    """Leads the life of a worker of another class, such as aio-fluid's ``WorkerFunction``, which is ``worker``.

    Such a worker starts and ends by ``startup``, ``shutdown`` and ``wait_for_shutdown``, or it has ``run`` and
    ``gracefully_stop`` alone, as in aio-fluid 1.x.
    """

    def __init__(self, worker: Any) -> None:
        self.starts = all(has_async(worker, name) for name in ("startup", "shutdown", "wait_for_shutdown"))
        if not self.starts and not (has_async(worker, "run") and callable(getattr(worker, "gracefully_stop", None))):
            raise TaskUsageError(
                f"{type(worker).__name__} cannot be one of the workers: derive it from fluidfast.utils.worker.Worker, "
                "or give it the async methods startup, shutdown and wait_for_shutdown"
            )
        super().__init__(name=getattr(worker, "worker_name", "") or type(worker).__name__)
        self.worker = worker

    async def run(self) -> None:
        if self.starts:
            await self.worker.startup()
        live = self.worker.wait_for_shutdown if self.starts else self.worker.run
        ended = asyncio.create_task(live(), name=f"{self.worker_name}-life")
        stop = asyncio.create_task(self._wait_stop(), name=f"{self.worker_name}-stop")
        try:
            await asyncio.wait([ended, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            try:
                async with asyncio.timeout(self._stopping_grace_period):
                    await self._end(ended)
            finally:
                if not ended.done():
                    ended.cancel()
                await asyncio.wait([ended])
        if not ended.cancelled() and (error := ended.exception()) is not None:
            raise error

    async def _end(self, ended: asyncio.Task[Any]) -> None:
        """Have the worker stop, and wait for its end."""
        if self.starts:
            await self.worker.shutdown()
        else:
            self.worker.gracefully_stop()
            await asyncio.wait([ended])

    async def status(self) -> dict[str, Any]:
        """The worker's own status."""
        status = getattr(self.worker, "status", None)
        return dict(await status()) if status is not None else await super().status()


def has_async(value: Any, name: str) -> bool:
    """Return whether an object has an async method of this name."""
    return inspect.iscoroutinefunction(getattr(value, name, None))


class Workers(Worker):
    """A worker made of workers. It starts them, stops when one of them stops, and then stops them all.

    ``heartbeat`` is accepted for the sake of code written for aio-fluid; nothing is polled here.

    When its own grace period is over, the workers that are left are cancelled. An error that ended one of them is
    raised to those who wait for the group, once all have ended.
    """

    def __init__(
        self,
        *workers: Worker,
        name: str = "",
        heartbeat: float = 0.1,
        stopping_grace_period: float | None = None,
    ) -> None:
        super().__init__(name=name, stopping_grace_period=stopping_grace_period)
        self._workers: list[Worker] = []
        self._workers_changed = asyncio.Event()
        self._worker_life.watchers.append(self._look)
        self.add_workers(*workers)

    def _look(self) -> None:
        self._workers_changed.set()

    def _renew(self) -> Worker:
        self._workers_changed = asyncio.Event()
        workers, self._workers = self._workers, []
        self.add_workers(*(w._renew() if w.has_started() and w._worker_life.is_over() else w for w in workers))
        return super()._renew()

    def add_workers(self, *workers: Any) -> None:
        """Add workers, each once. A group that is running starts them.

        A worker of another library is taken by its methods: ``startup``, ``shutdown`` and ``wait_for_shutdown``, or
        ``run`` and ``gracefully_stop``.

        Raises:
            TaskUsageError: it does not have them.
        """
        for worker in workers:
            if not isinstance(worker, Worker):
                if any(getattr(adopted, "worker", None) is worker for adopted in self._workers):
                    continue
                worker = Adopted(worker)
            if worker not in self._workers:
                self._workers.append(worker)
                worker._worker_life.level = logging.DEBUG  # that of the group says it
                if self._look not in worker._worker_life.watchers:
                    worker._worker_life.watchers.append(self._look)
        self._workers_changed.set()

    @property
    def num_workers(self) -> int:
        """How many workers there are in the group."""
        return len(self._workers)

    def workers(self) -> Iterator[Worker]:
        """The workers of the group, in the order in which they were added."""
        return iter(tuple(self._workers))

    def gracefully_stop(self) -> None:
        """Ask the group and each of its workers to stop, without waiting for them."""
        super().gracefully_stop()
        for worker in self.workers():
            worker.gracefully_stop()

    @property
    def running(self) -> bool:
        """Whether the group has been started and runs (a name of aio-fluid 1.x)."""
        return self.is_running()

    async def status(self) -> dict[str, Any]:
        """The status of each worker, by name."""
        workers = tuple(self._workers)
        statuses = await asyncio.gather(*(worker.status() for worker in workers))
        return {worker.worker_name: status for worker, status in zip(workers, statuses, strict=True)}

    async def run(self) -> None:
        """Start and supervise the workers."""
        failure: Exception | None = None
        try:
            try:
                await self._supervise()
            except Exception as error:  # one of them could not be started
                failure = error
                self.gracefully_stop()
            failure = await self._shutdown_workers(failure)
        except asyncio.CancelledError:
            await self._cancel_workers()
            raise
        if failure is not None:
            raise failure

    def _has_logged(self, error: BaseException) -> bool:
        return any(worker._worker_life.error is error for worker in self._workers)

    async def _supervise(self) -> None:
        """Keep the workers running until the group, or one of them, is asked to stop or ends."""
        while self.is_running():
            self._workers_changed.clear()
            for worker in self.workers():
                if self.is_running() and not worker.has_started():
                    await worker.startup()
            if not all(worker.has_started() for worker in self._workers):
                continue  # one was added meanwhile
            if all(worker.is_running() for worker in self._workers):
                await self._workers_changed.wait()
            else:
                self.gracefully_stop()

    async def _shutdown_workers(self, failure: Exception | None) -> Exception | None:
        """Shut all workers down at the same time; returns ``failure``, or the first error of one of them."""
        workers = tuple(self._workers)
        results = await asyncio.gather(*(worker.shutdown() for worker in workers), return_exceptions=True)
        errors = (result or worker._worker_life.error for worker, result in zip(workers, results, strict=True))
        return failure or next((error for error in errors if isinstance(error, Exception)), None)

    async def _cancel_workers(self) -> None:
        """Cancel what is still alive, unless somebody else does, and wait for it."""
        lives = [worker._worker_life for worker in self._workers if not worker._worker_life.is_over()]
        tasks = [life.task for life in lives if life.task is not None]
        for life, task in zip(lives, tasks, strict=True):
            if not task.cancelling():
                life.force()
        if tasks:
            await asyncio.wait(tasks)
