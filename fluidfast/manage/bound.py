"""``BoundTask``: a task and the manager that it is queued with. ``@manager.task`` makes it."""

import functools
import inspect
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, Unpack, overload

from ..core._run import TaskRun
from ..core.task import AnyTask, HasTask, Spread, Task
from ..errors import ConfigError, TaskUsageError
from ..produce.bulk import QueueSummary, queue_many
from ..produce.handle import RunHandle, RunOptions, Wanted, read_options
from ..produce.intake import Intake

__all__ = ["BindTask", "BoundTask", "OptionsTask", "SyncTask"]

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Run = TaskRun[Any, Any]


class Blocking(Protocol):
    """``manager.sync``."""

    def enqueue_wanted(self, task: str | AnyTask, params: Any, wanted: Wanted) -> RunHandle[Any]: ...
    def call(self, coroutine: Coroutine[Any, Any, T]) -> T: ...


class Manager(Protocol):
    """The manager of a bound task."""

    intake: Intake

    @property
    def sync(self) -> Blocking: ...
    def queue_given(self, task: str | AnyTask, given: Any) -> Coroutine[Any, Any, RunHandle[Any]]: ...
    async def execute_run(self, run: Run, in_process: bool = False) -> Run: ...


class BindTask(Protocol):
    """``@manager.task(...)``: makes a ``BoundTask`` of a function."""

    def __call__(self, function: Callable[P, T], /) -> "BoundTask[P, T]": ...


# For type checkers: what a method's arguments are, by the arguments of the function. They are protocols, since mypy
# does not compare the first argument where ``self`` is a ``Queueing[Concatenate[TaskRun, P], T]``.


class TakesModel(Protocol):
    """Its function has the run only: ``ctx: TaskRun[Mail]``."""

    @property
    def function(self) -> Callable[[Run], Any]: ...


class TakesBatch(Protocol):
    """Its function has a list of runs."""

    @property
    def function(self) -> Callable[[list[Run]], Any]: ...


class TakesRun(Protocol[P]):
    """Its function has the run, then its params."""

    @property
    def function(self) -> Callable[Concatenate[Run, P], Any]: ...


class Takes(Protocol[P]):
    """Its function has its params."""

    @property
    def function(self) -> Callable[P, Any]: ...


class Queueing(Generic[P, T_co]):
    """The ways to queue a task: those of a ``BoundTask``, and of its ``options``.

    ``P`` are the arguments of the task's function, ``T_co`` is what a call of it returns.
    """

    def __init__(
        self, manager: Manager, name: str, function: Callable[P, T_co], names: Sequence[str] | None, wanted: Wanted
    ) -> None:
        self._manager = manager
        self._name = name
        self._function = function
        self._names = names  # of the params, in the order of the function's arguments; None: they are one object
        self._wanted = wanted
        self._send: Callable[[str, Any], Coroutine[Any, Any, RunHandle[Any]]] = (
            manager.queue_given if wanted == Wanted() else functools.partial(enqueue, manager.intake, wanted)
        )

    @property
    def function(self) -> Callable[P, T_co]:
        """The task's function."""
        return self._function

    @overload
    def queue(self: TakesRun[Q], /, *args: Q.args, **kwargs: Q.kwargs) -> Coroutine[Any, Any, RunHandle[Any]]: ...

    @overload
    def queue(self: TakesModel, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, RunHandle[Any]]: ...

    @overload
    def queue(self: TakesBatch, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, RunHandle[Any]]: ...

    @overload
    def queue(self: Takes[Q], /, *args: Q.args, **kwargs: Q.kwargs) -> Coroutine[Any, Any, RunHandle[Any]]: ...

    def queue(self: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, RunHandle[Any]]:
        """Queue a run with these arguments. When the returned awaitable is done, the broker has stored the run.

        The arguments are those of the function, without its run. A function that has its params in one object
        (``ctx: TaskRun[Mail]``) takes this object, or its fields by name.

        Raises, at the call:
            TaskUsageError: there are too many positional arguments, or one is given by name, too.

        Raises, when awaited:
            ParamsError: the arguments do not fit the function's annotations. The message names the argument.
            Others: as ``TaskManager.queue``.
        """
        return self._send(self._name, self._given(args, kwargs) if args else kwargs)  # type: ignore[no-any-return]

    async def queue_many(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        on_error: Literal["raise", "collect"] = "raise",
        return_ids: bool = False,
        progress: Callable[[QueueSummary], object] | None = None,
    ) -> QueueSummary:
        """Queue a run for each item, as ``TaskManager.queue_many``. Items are mappings of arguments by name.

            await send.queue_many({"to": address} for address in addresses)
            await send.options(priority="low", delay=60).queue_many(...)

        Raises:
            ConfigError: the options have a ``run_id``.
            Others: as ``TaskManager.queue_many``.
        """
        wanted = self._wanted
        if wanted.run_id:
            raise ConfigError("queue_many: run_id names one run; leave it out")
        intake = self._manager.intake
        return await queue_many(
            intake,
            intake.broker.task_from_registry(self._name),
            items,
            wanted=wanted,
            on_error=on_error,
            return_ids=return_ids,
            progress=progress,
        )

    @property
    def sync(self) -> "SyncTask[P, T_co]":
        """The same, blocking, for code without an event loop: ``send.sync.queue(...)``."""
        return SyncTask(self)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the params as one dict, or as an object of the task's model.

        Raises:
            TaskUsageError: there are too many positional arguments, or one is given by name, too.
        """
        if self._names is None:
            if len(args) == 1 and not kwargs:
                return args[0]
            raise TaskUsageError(
                f"task {self._name!r} takes its params as one object, or each by name: write "
                f"{self._shown}.queue(params) or {self._shown}.queue(name=value)"
            )
        if len(args) > len(self._names):
            why = f"it takes {len(self._names) or 'none'} by position, but {len(args)} were given"
        else:
            given = {**dict(zip(self._names, args, strict=False)), **kwargs}
            if len(given) == len(args) + len(kwargs):
                return given
            twice = sorted(set(self._names[: len(args)]) & kwargs.keys())
            why = f"{', '.join(twice)} is given by position and by name"
        signature = str(inspect.signature(self._function)).replace("'", "")  # of annotations that are text
        raise TaskUsageError(f"{self._shown}.queue(...): {why}; the function is {self._shown}{signature}")

    @property
    def _shown(self) -> str:
        return getattr(self._function, "__name__", self._name)


class BoundTask(Queueing[P, T_co], HasTask):
    """A task, and the manager that queues it. ``@manager.task`` makes it of a function.

    A call of it is a call of the function. Methods that take a task take a ``BoundTask`` of their manager, too.
    ``task``: the ``Task``. ``manager``: the manager.

        await send.queue("grace@example.com")
        await send.options(delay=30).queue("grace@example.com")
        assert await send("grace@example.com") == receipt  # in a test, without a queue
    """

    def __init__(self, manager: Manager, task: Task[Any, Any], function: Callable[P, T_co]) -> None:
        executor = task.run_executor(in_process=True)
        names = executor.positional if isinstance(executor, Spread) else None
        super().__init__(manager, task.name, function, names, Wanted())
        functools.update_wrapper(self, function, updated=())
        self.__name__ = self._shown
        self.manager = manager
        self.task = task

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Call the function itself, without a queue, timeout or retry."""
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<BoundTask {self.task.name!r}>"

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    def options(self, **options: Unpack[RunOptions]) -> "OptionsTask[P, T_co]":
        """Return the ways to queue this task with options: ``run_id``, ``priority``, ``delay``, ``at``.

        ``RunOptions`` explains them.

            await send.options(priority="high", at=datetime(2030, 1, 1, tzinfo=UTC)).queue("grace@example.com")

        Raises:
            ConfigError: an option is unknown or out of range, or options exclude each other.
        """
        wanted = read_options(options, f"{self._shown}.options")
        return OptionsTask(self._manager, self._name, self._function, self._names, wanted)

    @overload
    async def execute(self: TakesRun[Q], /, *args: Q.args, **kwargs: Q.kwargs) -> Run: ...

    @overload
    async def execute(self: TakesModel, /, *args: Any, **kwargs: Any) -> Run: ...

    @overload
    async def execute(self: TakesBatch, /, *args: Any, **kwargs: Any) -> Run: ...

    @overload
    async def execute(self: Takes[Q], /, *args: Q.args, **kwargs: Q.kwargs) -> Run: ...

    async def execute(self: Any, /, *args: Any, **kwargs: Any) -> Run:
        """Execute the task here and now, without the queue, and return the finished (or aborted) run.

        Raises:
            TaskUsageError: as ``queue``.
            Others: as ``TaskManager.execute``.
        """
        given = self._given(args, kwargs) if args else kwargs
        run: Run = await self._manager.execute_run(self._manager.intake.make_wanted(self._name, given, self._wanted))
        return run


class OptionsTask(Queueing[P, T_co]):
    """A bound task with options for its runs: ``send.options(delay=30)``."""


class SyncTask(Generic[P, T_co]):
    """Blocking forms of a bound task's methods, for any thread; see ``SyncManager``."""

    def __init__(self, task: Queueing[P, T_co]) -> None:
        self._task = task
        self._sync = task._manager.sync

    @property
    def function(self) -> Callable[P, T_co]:
        """The task's function."""
        return self._task.function

    @overload
    def queue(self: TakesRun[Q], /, *args: Q.args, **kwargs: Q.kwargs) -> RunHandle[Any]: ...

    @overload
    def queue(self: TakesModel, /, *args: Any, **kwargs: Any) -> RunHandle[Any]: ...

    @overload
    def queue(self: TakesBatch, /, *args: Any, **kwargs: Any) -> RunHandle[Any]: ...

    @overload
    def queue(self: Takes[Q], /, *args: Q.args, **kwargs: Q.kwargs) -> RunHandle[Any]: ...

    def queue(self: Any, /, *args: Any, **kwargs: Any) -> RunHandle[Any]:
        """Queue a run as ``BoundTask.queue``, blocking."""
        task = self._task
        given = task._given(args, kwargs) if args else kwargs
        handle: RunHandle[Any] = self._sync.enqueue_wanted(task._name, given, task._wanted)
        return handle

    def queue_many(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        on_error: Literal["raise", "collect"] = "raise",
        return_ids: bool = False,
        progress: Callable[[QueueSummary], object] | None = None,
    ) -> QueueSummary:
        """Queue a run for each item as ``BoundTask.queue_many``, blocking."""
        return self._sync.call(
            self._task.queue_many(items, on_error=on_error, return_ids=return_ids, progress=progress)
        )


async def enqueue(intake: Intake, wanted: Wanted, name: str, params: Any) -> RunHandle[Any]:
    """Queue a run with options."""
    return await intake.enqueue(name, params, wanted)
