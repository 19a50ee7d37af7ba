"""``Harness``: what a test asks and does with queued runs, on the real engine and the real scheduler."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, Protocol, Self, TypeVar

from ..checks import CENTURY, check_number
from ..core._run import TaskRun
from ..core.params import adapter_for, items
from ..core.states import FINISHED_STATES, TaskState
from ..errors import ConfigError, TaskError, TaskRunError, TaskUsageError
from ..manage.consumer import TaskConsumer
from ..manage.firing import EPOCH, micros_of
from ..manage.manager import TaskManager
from ..texts import printable
from .broker import StagedBroker
from .schedules import Schedules
from .shown import shown_call, shown_queued

__all__ = ["BlockingHarness", "Ended", "Harness"]

T = TypeVar("T")
MOST_RUNS = 10_000
"""Runs after which ``drain`` gives up: a task that queues itself would never let it end."""

_within: ContextVar[bool] = ContextVar("fluidfast_testing_within", default=False)
"""Whether this code is called by a run that a harness executes."""


class Named(Protocol):
    """A ``Task``, or what ``@manager.task`` makes."""

    @property
    def name(self) -> str: ...


class Ended(list[TaskRun[Any, Any]]):
    """Runs that have ended, in the order of their ends. An attempt that will be retried counts as a ``failure``.

    ``errors``: the exceptions of failed runs, by run id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, BaseException] = {}

    @property
    def states(self) -> dict[str, int]:
        """The number of runs in each state: ``{"success": 2, "failure": 1}``."""
        return dict(Counter(str(run.state) for run in self))

    def raise_failed(self) -> Self:
        """Raise the exception of the first run that failed, if one did. Return this list.

        Raises:
            TaskRunError: it failed without an exception, such as after its timeout.
            Exception: the exception that the task's function raised.
        """
        for run in self:
            if run.state == TaskState.failure:
                if (error := self.errors.get(run.id)) is not None:
                    raise error
                raise TaskRunError(f"run {run.shown_name} failed without an exception of its function; see the log")
        return self


class Harness:
    """The fixture ``fluidfast_consumer``: executes, shows and checks the runs of one test.

    Attributes: ``manager``: the manager under test. ``consumer``: the ``TaskConsumer`` that executes its runs, which
    tasks see as ``ctx.task_manager``. ``ended``: all runs that it has executed so far. ``sync``: the same methods for
    tests that are not async.

    ``async with`` runs the consumer in the background, for code that waits for the result of a run.
    """

    def __init__(self, manager: TaskManager, broker: StagedBroker, consumer: TaskConsumer) -> None:
        self.manager = manager
        self.consumer = consumer
        self.broker = broker
        self.ended = Ended()
        self.sync = BlockingHarness(self)
        self._schedules = Schedules(consumer, broker)
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._running = False
        self._left = 0
        self._enough: asyncio.Future[None] | None = None
        self._eager: list[bool] = []
        self._has_hook = False
        for state in FINISHED_STATES:
            consumer.dispatcher.register_handler(f"{state}.fluidfast-testing", self._has_ended)
        consumer.hooks.around_running(self._around_run)

    @property
    def concurrency(self) -> int:
        """How many runs may run at the same time. By default 1, so that their order is always the same."""
        return self.consumer.engine.concurrency

    @concurrency.setter
    def concurrency(self, concurrency: int) -> None:
        self.consumer.engine.concurrency = check_number("concurrency", concurrency, ConfigError, least=1, whole=True)
        self.broker.one_by_one = concurrency == 1

    def close(self) -> None:
        """End what ``sync`` has started. For whoever made the harness."""
        self.sync.close()
        self.consumer.sync.close()

    # -- executing

    async def drain(self, *, delayed: bool = False, limit: int = MOST_RUNS) -> Ended:
        """Execute all queued runs, and those that they queue, until none is left. Return the runs that ended.

        Each call starts a real consumer, with the contexts of the manager, and shuts it down. An exception of a task
        is not raised here: it is in ``errors`` of the result, and ``raise_failed()`` raises it.

        ``delayed``: execute delayed runs too, such as retries; the clock jumps to the due time of each.
        ``limit``: the most runs to execute.

        Raises:
            TaskUsageError: it was called by a task, or in a second event loop; or more than ``limit`` runs came.
            Exception: the consumer could not start, for example because a context raised it.
        """
        check_number("limit", limit, ConfigError, least=1, whole=True)
        if _within.get():
            raise TaskUsageError("drain() was called by a task that it executes: call it in the test")
        async with self._exclusive():
            first = len(self.ended)
            self._left = limit
            while True:
                await self.broker.promote()
                if self._has_work():
                    await self._consume(limit)
                elif delayed and (due := self.broker.next_due()) is not None:
                    self.broker.set_now(due)
                else:
                    break
            done = Ended()
            done += self.ended[first:]
            done.errors = {run.id: self.ended.errors[run.id] for run in done if run.id in self.ended.errors}
            return done

    def _has_work(self) -> bool:
        return not self.broker.is_idle() or self.consumer._sync_queue.queue_size() > 0

    async def _consume(self, limit: int) -> None:
        if self._running:
            await self._until_idle(limit)
            return
        async with self.consumer:
            await self._until_idle(limit)

    async def _until_idle(self, limit: int) -> None:
        self._enough = asyncio.get_running_loop().create_future()
        idle = asyncio.ensure_future(self.broker.until_idle())
        over = asyncio.ensure_future(self.consumer.wait_for_shutdown())
        try:
            await asyncio.wait((idle, over, self._enough), return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                over.result()
                raise TaskUsageError("the consumer was stopped while drain() waited for it")
            if not idle.done():
                names = Counter(run.name for run in self.ended[-limit:]).most_common(3)
                shown = ", ".join(f"{printable(name)} ({count:,})" for name, count in names)
                raise TaskUsageError(
                    f"drain() has executed {limit:,} runs and more are queued: {shown}; does a task queue itself? "
                    "Otherwise raise the limit: drain(limit=...)"
                )
        finally:
            self._enough = None
            idle.cancel()
            over.cancel()
            await asyncio.wait((idle, over))

    async def __aenter__(self) -> Self:
        """Execute runs in the background, until the end of the block. ``drain`` waits until none is left."""
        await self.consumer._start()
        self._running = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._running = False
        await self.consumer.shutdown()

    def _exclusive(self) -> asyncio.Lock:
        """One drain at a time; with ``eager`` several calls of ``queue`` may ask for one."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            if self._lock is not None and self._lock[1].locked():
                raise TaskUsageError("drain() is under way in another event loop: wait for it there")
            self._lock = loop, asyncio.Lock()
        return self._lock[1]

    def _has_ended(self, run: TaskRun[Any, Any]) -> None:
        self.ended.append(run)
        self._left -= 1
        if self._left <= 0 and self._enough is not None and not self._enough.done() and self._has_more():
            self._enough.set_result(None)

    def _has_more(self) -> bool:
        return next(self.broker.queued(), None) is not None

    async def _around_run(self, argument: Any, go: Callable[[], Awaitable[None]]) -> None:
        token = _within.set(True)
        try:
            await go()
        except Exception as exc:
            for run in argument if isinstance(argument, list) else [argument]:
                self.ended.errors[run.id] = exc
            raise
        finally:
            _within.reset(token)

    @contextmanager
    def eager(self, *, raise_failed: bool = False) -> Iterator[Self]:
        """Execute each run within the call that queues it: ``with fluidfast_consumer.eager(): ...``.

        When ``queue`` returns, the run has ended, and so have the runs that it queued. A run that a task queues ends
        after that task. Delayed runs stay delayed.

        ``raise_failed``: let ``queue`` raise the exception of a task that failed.
        """
        if not self._has_hook:
            self._has_hook = True
            self.manager.hooks.around_queueing(self._around_queueing)
        self._eager.append(raise_failed)
        try:
            yield self
        finally:
            self._eager.pop()

    async def _around_queueing(self, run: TaskRun[Any, Any], go: Callable[[], Awaitable[None]]) -> None:
        await go()
        if self._eager and not _within.get():
            done = await self.drain()
            if self._eager[-1]:
                done.raise_failed()

    # -- looking

    def queued_runs(self, task: Named | str | None = None) -> list[TaskRun[Any, Any]]:
        """Return the queued runs of a task, or of all, in the order in which they will start; delayed ones last.

        ``execute_after`` of a delayed run is its due time.

        Raises:
            UnknownTaskError: no task of this name is registered.
        """
        name = None if task is None else self._name_of(task)
        found = []
        for due, payload in self.broker.queued():
            try:
                run = self.broker.codec.decode(payload, self.manager)
            except TaskError:  # of a task that is not registered; drain() moves it to the dead letters
                continue
            if due is not None:
                run.execute_after = moment_of(due)
            if name in (None, run.name):
                found.append(run)
        return found

    def queued(self, task: Named | str) -> list[dict[str, Any]]:
        """Return the params of each queued run of a task: ``[{"to": "grace@example.com"}]``. As ``queued_runs``."""
        return [dict(items(run.params)) for run in self.queued_runs(task)]

    def assert_queued(self, task: Named | str, /, **params: Any) -> TaskRun[Any, Any]:
        """Return the first queued run of a task that has these params; it may have others beside them.

        Raises:
            AssertionError: there is none. The message shows what is queued.
            UnknownTaskError: no task of this name is registered.
            TaskUsageError: the task has no param of this name.
        """
        name = self._name_of(task)
        self._refuse_unknown(name, params)
        runs = self.queued_runs()
        for run in runs:
            if run.name == name:
                found = dict(items(run.params))
                if all(key in found and found[key] == value for key, value in params.items()):
                    return run
        ended = sum(run.name == name for run in self.ended)
        raise AssertionError(
            f"{shown_call(name, params, partial=True)} is not queued. {shown_queued(runs, self.broker.now())}"
            + (f"\n{ended} runs of {printable(name)} have been executed" if ended else "")
        )

    def _name_of(self, task: Named | str) -> str:
        return self.broker.task_from_registry(task).name if isinstance(task, str) else task.name

    def _refuse_unknown(self, name: str, params: dict[str, Any]) -> None:
        task = self.broker.registry.get(name)
        fields = adapter_for(task.params_model).fields if task is not None else ()
        for param in params:
            if fields and param not in fields:
                raise TaskUsageError(
                    f"task {printable(name)} has no param {param!r}; it has: {', '.join(sorted(fields))}"
                )

    # -- the clock

    @property
    def now(self) -> datetime:
        """The time by which runs and schedules are due here. A task's own ``datetime.now()`` does not follow it."""
        return moment_of(self.broker.now())

    def set_now(self, moment: datetime) -> None:
        """Set the clock to an aware datetime, past or future, without firing schedules: where the test begins."""
        self._check(moment)
        self.broker.set_now(micros_of(moment))
        self._schedules.begin()

    async def travel(self, seconds: float | timedelta, *, schedules: bool = True) -> None:
        """Move the clock forward. Delayed runs become due, and each schedule fires at each of its due times on the way.

        The runs are queued, not executed: call ``drain`` for that. With ``eager``, those of schedules are executed at
        their due times.

        ``seconds``: 0 or more, or a timedelta. ``schedules=False``: fire no schedule.

        Raises:
            ConfigError: ``seconds`` is not a number of seconds.
        """
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        check_number("seconds", seconds, ConfigError, most=CENTURY)
        now = self.broker.now()
        await self._travel(now, now + round(seconds * 1e6), schedules)

    async def travel_to(self, moment: datetime, *, schedules: bool = True) -> None:
        """Move the clock forward to an aware datetime, as ``travel``.

        Raises:
            ConfigError: ``moment`` has no time zone, or lies in the past of this clock.
        """
        self._check(moment)
        now, end = self.broker.now(), micros_of(moment)
        if end < now:
            raise ConfigError(f"travel_to: {moment} lies before {self.now}, and the clock goes forward: use set_now")
        await self._travel(now, end, schedules)

    async def _travel(self, start: int, end: int, schedules: bool) -> None:
        if schedules:
            await self._schedules.travel(start, end)
        else:
            self.broker.set_now(end)
            await self.broker.promote()
            self._schedules.begin()

    def _check(self, moment: datetime) -> None:
        if not isinstance(moment, datetime) or moment.utcoffset() is None:
            raise ConfigError(f"{moment!r} is not a datetime with a time zone: datetime(2030, 1, 1, tzinfo=UTC)")


class BlockingHarness:
    """``fluidfast_consumer.sync``: the async methods of a harness, for tests without an event loop."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._runner: asyncio.Runner | None = None

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if asyncio._get_running_loop() is not None:
            coroutine.close()
            raise TaskUsageError(
                "fluidfast_consumer.sync was used within an event loop: write await fluidfast_consumer.drain() there"
            )
        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)  # with it, it sets no current loop
        return self._runner.run(coroutine)

    def drain(self, *, delayed: bool = False, limit: int = MOST_RUNS) -> Ended:
        """``Harness.drain``, blocking."""
        return self._run(self._harness.drain(delayed=delayed, limit=limit))

    def travel(self, seconds: float | timedelta, *, schedules: bool = True) -> None:
        """``Harness.travel``, blocking."""
        self._run(self._harness.travel(seconds, schedules=schedules))

    def travel_to(self, moment: datetime, *, schedules: bool = True) -> None:
        """``Harness.travel_to``, blocking."""
        self._run(self._harness.travel_to(moment, schedules=schedules))

    def close(self) -> None:
        """End the event loop. The next call starts another one."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


def moment_of(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)
