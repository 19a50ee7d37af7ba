"""``TaskManager``: composes codec, producer and broker, and owns their lifetime."""

import asyncio
import inspect
import re
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import ModuleType
from typing import Any, Literal, Never, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from ..brokers.base import TaskBroker, TaskRegistry
from ..brokers.url import BOUNDS
from ..checks import check_number
from ..core._run import TaskRun
from ..core.bag import Bag
from ..core.config import ManagerOptions, TaskManagerConfig
from ..core.events import AsyncTaskDispatcher, Event, TaskDispatcher
from ..core.hooks import Hooks
from ..core.places import has_place
from ..core.signature import task_of
from ..core.states import TaskPriority
from ..core.task import AnyTask, HasTask, Task, TaskOptions, checked, given_options
from ..errors import ConfigError, TaskAbortedError, TaskUsageError
from ..execute.cpubound import run_in_subprocess
from ..execute.executor import execute
from ..execute.forks import ForkServers
from ..produce.backpressure import Backpressure
from ..produce.bulk import QueueSummary, queue_many
from ..produce.handle import Middleware, RunHandle, RunOptions, Wanted, read_options
from ..produce.intake import Intake
from ..produce.producer import Producer, shown_as_queue
from ..texts import error_text
from ._front import QueueFront
from .bound import BindTask, BoundTask
from .dead import DeadLetters
from .replies import Replies
from .sync import SyncManager

__all__ = ["AsyncHandler", "TaskManager"]


class Plugin(Protocol):
    """As ``TaskManagerPlugin``, which plugins derive from."""

    def register(self, task_manager: Any) -> None: ...
    def register_routes(self, app: Any, prefix: str = ..., tags: Sequence[str] | None = ...) -> None: ...


AsyncHandler = Callable[[TaskRun[Any, Any]], Awaitable[None]]

WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def gives_a_coroutine(function: F) -> F:
    """Mark a function that returns an awaitable, so that ``iscoroutinefunction`` is true for it."""
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # as unittest.mock does
    return function


def refuse_positional(method: str, misplaced: Sequence[Any]) -> None:
    """Raise TaskUsageError if a method got more positional arguments than its task."""
    if misplaced:
        raise TaskUsageError(
            f"{method} takes the task by position and the rest by name, but was given a {type(misplaced[0]).__name__} "
            f"by position: write {method}(task, params=...), or each param as a keyword"
        )


class TaskManager(QueueFront):
    """Register tasks, queue runs, or execute them in place.

    Keywords are the fields of ``TaskManagerConfig``; or give one as ``config``. ``deps``: any object, which tasks reach
    as ``ctx.deps`` (default: an empty ``Bag``).

        async with TaskManager(broker_url="redis://localhost:6379") as manager:
            manager.register_task(send)
            await manager.queue(send, to="grace@example.com")

    Use it as an async context manager, or call ``on_startup`` and ``on_shutdown``. A script that only queues may skip
    ``on_startup``.

    Raises:
        ConfigError: an option is unknown or out of range.
        BrokerURLError: the broker's URL is not valid.
    """

    def __init__(
        self, *, deps: Any = None, config: TaskManagerConfig | None = None, **kwargs: Unpack[ManagerOptions]
    ) -> None:
        self.deps: Any = Bag() if deps is None else deps
        self.state = Bag()
        self.config = TaskManagerConfig.of(**kwargs) if config is None else config
        self.dispatcher = TaskDispatcher()
        self._async_handlers = AsyncTaskDispatcher()
        self._manager_id = ""
        self._listeners = self.dispatcher.listeners
        self._buffers = self.config.delivery == "buffered"
        self.hooks = Hooks(self.dispatcher.listeners)
        self._sync = SyncManager(self)
        self._attach(TaskBroker.from_url(self.config.broker_url))
        self.plugins: list[Plugin] = []
        self.launcher: Callable[[TaskRun[Any, Any]], Awaitable[None]] = run_in_subprocess
        """Executes a run of a CPU-bound task in another process, and returns at its end. A plugin may replace it."""
        self.fork_servers = ForkServers()
        self._async_contexts: list[Any] = []
        self._stack = AsyncExitStack()
        self._entered = False
        has_place(self)

    def _attach(self, broker: TaskBroker) -> None:
        """Work on this broker, in place of the one before. Nobody may be queueing or consuming meanwhile."""
        config = self.config
        self.intake: Intake
        self.broker = broker
        broker.use(
            lease_seconds=config.lease_seconds,
            max_payload_bytes=config.max_payload_bytes,
            durability=config.durability,
            enqueue_timeout=config.enqueue_timeout,
            retry_floor=config.retry_floor,
            **{name: getattr(config, name) for name in BOUNDS},
        )
        broker.is_in_use = self._sync.is_in_use
        self._producer = Producer(broker, buffer_runs=config.buffer_runs, buffer_bytes=config.buffer_bytes)
        self._backpressure = Backpressure(broker, self._producer, config)
        self._push_never_takes = broker.push_never_takes
        if "intake" in self.__dict__:  # bound tasks may hold it
            self.intake.attach(broker, self._producer, self._backpressure)
        else:
            self.intake = Intake(self, broker, self._producer, self._backpressure, self.hooks, buffers=self._buffers)
        self._replies = Replies(broker, self)

    # -- life

    @property
    def manager_id(self) -> str:
        """The id of this manager in this process; the child of a fork has another one."""
        if not self._manager_id:
            self._manager_id = self.broker.new_uuid()
        return self._manager_id

    def _forked(self) -> None:
        """Drop, in the child of a fork, the ids that name a place on the server. Their first use makes new ones."""
        self._manager_id = ""
        self._sync.forked()
        self.fork_servers.forked()
        self._replies.forked()

    def loop_in_use(self) -> asyncio.AbstractEventLoop | None:
        """Return the running event loop that uses this manager, or None."""
        loops = (self._producer.loop, self.broker.loop_in_use())
        return next((loop for loop in loops if loop is not None and loop.is_running()), None)

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._leave(*exc_info)

    async def _enter(self) -> None:
        """Enter the added contexts. If one of them fails, close those before it, in reverse order."""
        if self._entered:
            return
        self._entered = True
        entered = AsyncExitStack()
        try:
            for context in self._async_contexts:
                await entered.enter_async_context(context)
        except BaseException:
            self._entered = False
            try:
                await entered.__aexit__(*sys.exc_info())
            finally:
                await self.broker.close()  # a context may have used it
            raise
        self._stack.push_async_exit(entered)

    async def _leave(self, *exc_info: Any) -> None:
        self._entered = False
        try:
            await self._stack.__aexit__(*exc_info)
        finally:
            try:
                await self.fork_servers.close()
                await self._replies.close()
                await self._producer.close()
            finally:
                await self.broker.close()

    @asynccontextmanager
    async def _without_consuming(self) -> AsyncIterator[Self]:
        """Enter the contexts and close them at the end, without starting a consumer.

        Use it for one run in place, or for a query of the broker.
        """
        await self._enter()
        try:
            yield self
        except BaseException:
            await self._leave(*sys.exc_info())
            raise
        await self._leave(None, None, None)

    def _needs_loop(self) -> bool:
        """Whether a run in this process needs an event loop beside its own code: for contexts, which hold what a task
        uses."""
        return bool(self._async_contexts)

    async def on_startup(self) -> None:
        """Enter the added contexts. If one fails, close those before it; a later start enters all of them."""
        await self._enter()

    async def on_shutdown(self) -> None:
        """Close the contexts in reverse order, wait for pending runs to be confirmed, close the broker.

        A second call does nothing.
        """
        await self._leave(None, None, None)

    async def enter_async_context(self, cm: Any) -> Any:
        """Enter an async context manager now, and close it at shutdown. Return its value."""
        return await self._stack.enter_async_context(cm)

    def add_async_context_manager(self, cm: Any) -> None:
        """Enter an async context manager at start, and close it at shutdown."""
        self._async_contexts.append(cm)

    def with_plugin(self, plugin: Plugin) -> Self:
        """Let a plugin register itself with this manager."""
        self.plugins.append(plugin)
        plugin.register(self)
        return self

    def add_middleware(self, middleware: Middleware) -> None:
        """Call an object's ``enqueue`` around each queueing of a run, its ``execute`` around each call of a function.

        Either method may be absent. Both go on with ``call_next()``, which they await exactly once, or they raise: then
        nothing is sent, or the run has failed. The middleware that was added first is the outermost.

            class Timed:
                async def enqueue(self, run, options, call_next):
                    return await call_next()  # the run's handle

                async def execute(self, run, call_next):
                    began = perf_counter()
                    try:
                        return await call_next()  # the function's result
                    finally:
                        print(run.name, perf_counter() - began)

            manager.add_middleware(Timed())

        Raises:
            TaskUsageError: it has neither method, one is not an ``async def``, or it is a class.
        """
        self.hooks.add_middleware(middleware)

    # -- tasks

    @property
    def registry(self) -> TaskRegistry:
        """The registered tasks by name."""
        return self.broker.registry

    @property
    def type(self) -> str:
        """The class's name in snake case, such as ``task_manager``."""
        return WORD_START.sub("_", type(self).__name__).lower()

    def register_task(self, task: AnyTask, tags: Sequence[str] | None = None, *, replace: bool = False) -> None:
        """Register a task. Only registered tasks can be queued by name or executed.

        ``tags``: added to the task's own. ``replace``: replace a task of a different function under this name; a task
        of the same function is always replaced.

        Raises:
            TaskNameTaken: a different function is already registered under this name.
            TaskUsageError: ``task`` is not a task, such as a function without ``@task``.
        """
        if tags:
            task = checked(task)
            task = task._replace(tags=task.tags | frozenset(tags))
        self.broker.register_task(task, replace=replace)

    def register_from_module(
        self, module: ModuleType, tags: Sequence[str] | None = None, *, replace: bool = False
    ) -> None:
        """Register every task with a public name in a module. ``replace``, errors: as ``register_task``."""
        self.register_from_dict({name: getattr(module, name) for name in dir(module)}, tags=tags, replace=replace)

    def register_from_dict(
        self, data: Mapping[str, Any], tags: Sequence[str] | None = None, *, replace: bool = False
    ) -> None:
        """Register every task among the values of a mapping whose key has no leading underscore.

        ``replace``, errors: as ``register_task``.
        """
        for name, value in data.items():
            if not name.startswith("_") and isinstance(value, Task | HasTask):
                self.register_task(value, tags=tags, replace=replace)

    @overload
    def task(self, function: Callable[P, T], /) -> BoundTask[P, T]: ...

    @overload
    def task(self, /, **options: Unpack[TaskOptions]) -> BindTask: ...

    def task(self, function: Callable[..., Any] | None = None, /, **options: Unpack[TaskOptions]) -> Any:
        """Make a task of a function, register it, and return it as a ``BoundTask``: ``@manager.task``.

        The function's arguments are the params: fluidfast makes the params model of their annotations and defaults.
        A first argument ``ctx: TaskRun`` gets the run. A function that takes a params model by ``ctx: TaskRun[Model]``,
        or a batch, works as with ``@task``. ``options``: those of ``@task``.

            @manager.task(retry=RetryPolicy(max_attempts=3))
            async def send(to: str, copies: int = 1) -> None: ...

            await send.queue("grace@example.com", copies=2)

        Raises:
            TaskDecoratorError: as ``@task``; or the function is a method, takes ``*args`` or ``**kwargs``, has an
                annotation whose values cannot be written to a queue, or a default that does not fit its annotation.
            TaskNameTaken: a different function is already registered under this name.
        """
        given = given_options("@manager.task", options)
        scope = sys._getframe(1).f_locals

        def bind(function: Callable[..., Any]) -> BoundTask[..., Any]:
            made = task_of(function, given, scope)
            self.register_task(made)
            return BoundTask(self, made, function)

        return bind if function is None else bind(function)

    # -- runs

    def create_task_run(
        self,
        task: str | AnyTask,
        run_id: str = "",
        priority: TaskPriority | str | None = None,
        *,
        from_task_run: TaskRun[Any, Any] | None = None,
        params: Any = None,
        **kwargs: Any,
    ) -> TaskRun[Any, Any]:
        """Return a new run in state ``init``.

        Give the params as keywords, or as one mapping or object with ``params=``. Use ``params=`` if a param has the
        name of a keyword of this method. If the task's model has a field ``params``, the keyword sets that field.

        Raises:
            UnknownTaskError: no task of this name is registered.
            ParamsError: the params do not fit the task's model. The message names the task and the field.
            ValueError: the priority is not valid.
        """
        return self.intake.make(task, run_id, priority, parent=from_task_run, params=params, given=kwargs)

    queue = gives_a_coroutine(QueueFront.queue)

    @shown_as_queue
    async def _send(self, run: TaskRun[Any, Any], payload: bytes) -> TaskRun[Any, Any]:
        await self.intake.hand_over(run.prio, payload)
        return run

    @shown_as_queue
    async def _when_there_is_room(self, run: TaskRun[Any, Any]) -> TaskRun[Any, Any]:
        await self._producer.make_room()
        return run

    @shown_as_queue
    async def _queue(
        self,
        task: str | AnyTask,
        priority: TaskPriority | str | None,
        run_id: str,
        from_task_run: TaskRun[Any, Any] | None,
        params: Any,
        kwargs: dict[str, Any],
    ) -> TaskRun[Any, Any]:
        """Queue a run where handlers, hooks or limits apply."""
        run = self.create_task_run(task, run_id, priority, from_task_run=from_task_run, params=params, **kwargs)
        await self.intake.send(run, options=Wanted(run_id, priority).given())
        return run

    async def _queue_given(self, task: str | AnyTask, given: Any) -> RunHandle[Any]:
        return await self.intake.enqueue(task, given, read_options({}))

    @shown_as_queue
    async def _answer(self, handle: RunHandle[Any], sending: Awaitable[Any]) -> RunHandle[Any]:
        await sending
        return handle

    @overload
    async def enqueue(
        self, task: Task[M, R], params: M | Mapping[str, Any] | None = None, /, **options: Unpack[RunOptions]
    ) -> RunHandle[R]: ...

    @overload
    async def enqueue(
        self, task: str | HasTask, params: Any = None, /, **options: Unpack[RunOptions]
    ) -> RunHandle[Any]: ...

    async def enqueue(
        self, task: str | AnyTask, params: Any = None, /, **options: Unpack[RunOptions]
    ) -> RunHandle[Any]:
        """Queue a run with its params as one object of the task's model, or as one mapping. Return its handle.

        ``options``: ``run_id``, ``priority``, ``delay``, ``at``; see ``RunOptions``.

            run = await manager.enqueue(send, Mail(to="grace@example.com"), delay=30)

        Raises:
            ConfigError: an option is unknown or out of range, or options exclude each other.
            Others: as ``queue``.
        """
        return await self.intake.enqueue(task, {} if params is None else params, read_options(options))

    async def flush(self) -> None:
        """Wait until the broker has confirmed all runs queued with ``delivery="buffered"``.

        Raises:
            BufferedRunsLost: it did not confirm some of them. The exception has their ids.
        """
        await self._producer.flush()

    async def queue_many(
        self,
        task: str | AnyTask,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        priority: TaskPriority | str | None = None,
        on_error: Literal["raise", "collect"] = "raise",
        return_ids: bool = False,
        progress: Callable[[QueueSummary], object] | None = None,
    ) -> QueueSummary:
        """Queue a run for each item of an iterable or async iterable of any length.

        Items are mappings of params, or param objects. They are validated, encoded and sent in batches, a few in
        flight, so memory use stays constant. When this returns, the broker has confirmed all of them. Events fire as
        for ``queue`` if ``init`` or ``queued`` has handlers.

        ``on_error``: ``"raise"`` at the first item that does not fit (the items before it are queued, those after it
        are not), or ``"collect"`` such items in ``summary.errors``.
        ``return_ids``: put the ids of the runs into ``summary.run_ids``.
        ``progress``: called with the current summary after each confirmed batch.

            summary = await manager.queue_many(send, ({"to": name} for name in names))

        Raises:
            TaskError: as ``queue``. The exception's ``summary`` counts the runs confirmed before it, ``index`` is
                the position of the item that does not fit. A CancelledError has the summary too.
        """
        if on_error not in ("raise", "collect"):
            raise ConfigError(f"on_error is {on_error!r}, it must be 'raise' or 'collect'")
        found = self.broker.task_from_registry(task)
        return await queue_many(
            self.intake,
            found,
            items,
            wanted=Wanted(priority=priority),
            on_error=on_error,
            return_ids=return_ids,
            progress=progress,
        )

    @property
    def sync(self) -> SyncManager:
        """Blocking methods for code without an event loop, in any thread: ``manager.sync.queue(...)``."""
        return self._sync

    async def queue_and_wait(
        self,
        task: str | AnyTask,
        *misplaced: Never,
        timeout: float | None = None,
        run_id: str = "",
        priority: TaskPriority | str | None = None,
        params: Any = None,
        **kwargs: Any,
    ) -> TaskRun[Any, Any]:
        """Queue a run, wait until a consumer in any process has finished it, and return the finished run.

        ``timeout``: seconds to wait; None: the task's ``timeout_seconds``.

        Raises:
            TimeoutError: the run has not finished in time; it goes on. The message names the task, the run and the
                seconds. If the broker knows, it also says whether a consumer with this task is alive.
            BrokerAuthError: the server user may not read replies. The run is queued.
            Others: as ``queue``.
        """
        refuse_positional("queue_and_wait", misplaced)
        if timeout is not None:
            check_number("timeout", timeout, ConfigError, infinite=True)
        run = self.create_task_run(task, run_id, priority, params=params, **kwargs)
        seconds = run.task.timeout_seconds if timeout is None else timeout
        inbox = self._replies.here()
        call = inbox.expect(run)
        try:
            await self.intake.send(run, options=Wanted(run_id, priority).given() if self.hooks.queueing else None)
            if self.config.delivery == "buffered":  # else a run that was refused is waited for
                await self.flush()
            inbox.limit(call, seconds)
            finished = await call.future
        finally:
            inbox.forget(call)
        if finished is None:
            raise await self._replies.timed_out(run, seconds)
        return finished

    async def execute(
        self,
        task: str | AnyTask,
        *misplaced: Never,
        run_id: str = "",
        priority: TaskPriority | str | None = None,
        in_process: bool = False,
        params: Any = None,
        **kwargs: Any,
    ) -> TaskRun[Any, Any]:
        """Execute a task here and now, without the queue, and return the finished (or aborted) run.

        ``in_process``: execute a CPU-bound task in this process instead of its own.

        Raises:
            UnknownTaskError, ParamsError, ValueError: as ``create_task_run``.
            TimeoutError: it took longer than the task's ``timeout_seconds``.
            Exception: any exception of the task.
        """
        refuse_positional("execute", misplaced)
        return await self.execute_run(self.create_task_run(task, run_id, priority, params=params, **kwargs), in_process)

    async def execute_run(self, run: TaskRun[Any, Any], in_process: bool = False) -> TaskRun[Any, Any]:
        """Execute a run that was made here, and return it finished, or aborted. Raises as ``execute``."""
        try:
            await execute(run, in_process=in_process)
        except TaskAbortedError as exc:
            await self.broker.set_task_aborted(run.id, error_text(exc))
        return run

    def execute_sync(
        self,
        task: str | AnyTask,
        *misplaced: Never,
        run_id: str = "",
        priority: TaskPriority | str | None = None,
        params: Any = None,
        **kwargs: Any,
    ) -> TaskRun[Any, Any]:
        """Start the manager, execute a task in this process, and shut down. For code without an event loop."""
        refuse_positional("execute_sync", misplaced)
        return asyncio.run(self._execute_and_exit(task, run_id=run_id, priority=priority, params=params, **kwargs))

    async def _execute_and_exit(self, task: str | AnyTask, **kwargs: Any) -> TaskRun[Any, Any]:
        async with self._without_consuming():
            return await self.execute(task, in_process=True, **kwargs)

    @property
    def dead(self) -> DeadLetters:
        """Dead letters, and failed runs of tasks without a retry: ``list``, ``get``, ``requeue``, ``purge``."""
        return DeadLetters(self.broker)

    # -- events

    def pass_events_to(self, consumer: "TaskManager") -> None:
        """Pass all handlers and hooks, current and later ones, to the consumer made from this manager."""
        for event, handler in self.dispatcher.registered():
            consumer.dispatcher.register_handler(event, handler)
        for event, async_handler in self._async_handlers.registered():
            consumer.register_async_handler(event, async_handler)
        self.hooks.copy_to(consumer.hooks)
        self.dispatcher, self._listeners = consumer.dispatcher, consumer._listeners
        self.hooks = self.intake.hooks = consumer.hooks
        for name in ("register_async_handler", "unregister_async_handler"):
            setattr(self, name, getattr(consumer, name))

    def register_async_handler(self, event: Event | str, handler: AsyncHandler) -> None:
        """Register an async handler for the consumer that the ``worker`` command makes from this manager.

        Only a consumer calls async handlers. For handlers that this manager calls, use
        ``dispatcher.register_handler``.
        """
        self._async_handlers.register_handler(event, handler)

    def unregister_async_handler(self, event: Event | str) -> AsyncHandler | None:
        """Remove an async handler. Return None: this manager never calls it."""
        self._async_handlers.unregister_handler(event)
        return None
