"""Tasks: ``@task`` turns a function into a ``Task``."""

import contextlib
import functools
import inspect
import logging
import sys
import types
import typing
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NoReturn,
    TypeAlias,
    TypedDict,
    Unpack,
    get_args,
    get_origin,
    overload,
)

import msgspec

from .. import settings
from ..checks import MAX_COUNT, check_number, shown
from ..errors import ConfigError, TaskDecoratorError, TaskUsageError
from .model import Model
from .params import Params, adapter_for
from .retry import RetryPolicy, RetryPolicyInfo
from .schedule import Scheduler, crontab
from .states import TaskPriority, TaskState

__all__ = [
    "AnyTask",
    "EmptyParams",
    "HasTask",
    "K8sConfig",
    "K8sResourceRequirements",
    "QueuedTask",
    "Task",
    "TaskExecutor",
    "TaskInfo",
    "TaskInfoUpdate",
    "TaskOptions",
    "task",
]

TaskExecutor = Callable[..., Any]
RandomizeType = Callable[[], float | int]
if TYPE_CHECKING:  # defaults of type variables are of Python 3.13
    from typing_extensions import TypeVar

    from ._run import TaskRun

    P = TypeVar("P", default=Any)
    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    P = TypeVar("P")
    R = TypeVar("R")

MAX_BATCH_RUNS = 1_000_000
"""Runs that one call of a batch task may take."""

EmptyParams = Params
"""The params of a task that names no model (aio-fluid's name for it)."""


class K8sResourceRequirements(TypedDict, total=False):
    """CPU and memory of a container."""

    limits: dict[str, str]
    requests: dict[str, str]


class K8sConfig(Model, msgspec.Struct, kw_only=True):
    """Kubernetes settings of a CPU-bound task. fluidfast stores and shows them, but does not run jobs yet."""

    namespace: str = "default"
    deployment: str = "fluid-task"
    container: str = "main"
    resources: K8sResourceRequirements | None = None
    job_ttl: int = 300
    sleep: float = 2.0

    def __post_init__(self) -> None:
        check_number("job_ttl", self.job_ttl, ConfigError, whole=True)
        check_number("sleep", self.sleep, ConfigError)


class TaskInfoUpdate(Model, msgspec.Struct, kw_only=True):
    """The part of a task's data that changes while the fleet runs; the broker stores it."""

    enabled: bool = True
    last_run_end: datetime | None = None
    last_run_duration: timedelta | None = None
    last_run_state: TaskState | None = None


class TaskInfo(TaskInfoUpdate, kw_only=True):
    """A task as data: its definition, and the part that changes (``TaskInfoUpdate``)."""

    name: str
    short_description: str = ""
    description: str = ""
    module: str = ""
    priority: TaskPriority = TaskPriority.medium
    cpu_bound: bool = False
    max_concurrency: int = 0
    schedule: str | None = None
    tags: frozenset[str] = frozenset()
    timeout_seconds: int | float = 60  # in JSON 60 stays 60
    k8s_config: K8sConfig | None = None
    retry: RetryPolicyInfo | None = None
    rate_limit_retry: RetryPolicyInfo | None = None
    env: dict[str, str] = {}


@dataclass(kw_only=True)
class QueuedTask(Model):
    """A request to queue a run, as data. FastAPI takes a dataclass as the body of a request."""

    run_id: str
    task: str
    params: dict[str, Any]
    priority: TaskPriority | None = None


class Task(NamedTuple, Generic[P, R]):
    """A function and the way to run it. ``@task`` makes it; an immutable tuple (``_replace`` makes a changed copy).

    ``P`` is the type of its params, ``R`` that of its result: ``Task[Mail]`` or ``Task[Mail, Receipt]``.
    """

    name: str
    """Unique in a registry."""
    executor: TaskExecutor
    """The function that a consumer calls with the run; for a CPU-bound task the one that starts its process."""
    params_model: Any
    """Type of the params; ``Params`` if the task declares none."""
    logger: logging.Logger
    cpu_executor: TaskExecutor | None = None
    """The function of a CPU-bound task; None for any other."""
    module: str = ""
    short_description: str = ""
    description: str = ""
    schedule: Scheduler | None = None
    randomize: RandomizeType | None = None
    """Returns the seconds to wait between a due time and queueing."""
    max_concurrency: int = 0
    """The most runs of this task at the same time, over all consumers of the broker; 0: no limit."""
    timeout_seconds: float = 60
    """Seconds after which the consumer cancels the run, which fails; ``math.inf``: never."""
    priority: TaskPriority = TaskPriority.medium
    k8s_config: K8sConfig | None = None
    tags: frozenset[str] = frozenset()
    retry: RetryPolicy | None = None
    rate_limit_retry: RetryPolicy | None = None
    env: dict[str, str] = {}  # noqa: RUF012  # a field's default, shared and never changed
    """Extra environment of a CPU-bound task's process."""
    batch: int = 0
    """The most runs that the function takes at once, as a list; 0: it takes a single run."""
    batch_wait: float = 0.0
    """Seconds that a batch waits to become full."""
    cpu_process: str = "fork"
    """How a CPU-bound task gets its process: ``"fork"`` from a warm one where that is safe, ``"spawn"``: a new one for
    each run, or ``"pool"``: one that has executed other runs."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse the call: use ``manager.queue`` or ``manager.execute``.

        Raises:
            TaskUsageError: always; the message has the line to write instead.
        """
        raise TaskUsageError(
            f"task {self.name!r} cannot be called like a function: write await manager.queue({self.name!r}, ...) to "
            f"run it in a worker, or await manager.execute({self.name!r}, ...) to run it here"
        )

    @property
    def cpu_bound(self) -> bool:
        """Whether each run has its own process."""
        return self.cpu_executor is not None

    def run_executor(self, *, in_process: bool = False) -> TaskExecutor:
        """Return the function to call with a run.

        ``in_process``: return the task's own function, also if the task is CPU-bound.
        """
        if in_process and self.cpu_executor is not None:
            return self.cpu_executor
        return self.executor

    def get_k8s_config(self) -> K8sConfig:
        """Return the task's Kubernetes settings, or the defaults."""
        return self.k8s_config or K8sConfig()

    def params_dump_json(self, params: Any) -> str:
        """Return params of this task as the JSON that goes on a queue, secrets revealed (a name of aio-fluid 1.x)."""
        adapter = adapter_for(self.params_model)
        return adapter.encode(adapter.validate(params)).decode()

    def info(self, **update: Any) -> TaskInfo:
        """Return the task as data, merged with the broker's data about it (``enabled=``, ``last_run_end=`` ...)."""
        values: dict[str, Any] = {
            "name": self.name,
            "short_description": self.short_description,
            "description": self.description,
            "module": self.module,
            "priority": self.priority,
            "cpu_bound": self.cpu_bound,
            "max_concurrency": self.max_concurrency,
            "schedule": str(self.schedule) if self.schedule else None,
            "tags": self.tags,
            "timeout_seconds": self.timeout_seconds,
            "k8s_config": self.k8s_config,
            "retry": self.retry.info() if self.retry else None,
            "rate_limit_retry": self.rate_limit_retry.info() if self.rate_limit_retry else None,
            "env": self.env,
        }
        values.update((name, value) for name, value in update.items() if value is not None)
        return TaskInfo(**values)


if not TYPE_CHECKING:
    Task.__class_getitem__ = classmethod(types.GenericAlias)  # so that ``Task[P]`` needs no R before Python 3.13


class HasTask:
    """The base of ``BoundTask``: every method that takes a task takes the ``task`` of one."""

    __name__: str
    task: Task[Any, Any]


AnyTask: TypeAlias = Task[Any, Any] | HasTask
"""A task, or what ``@manager.task`` makes of a function."""


class TaskOptions(TypedDict, total=False):
    """Keywords of ``@task``. The fields of ``Task`` describe each one."""

    name: str | None
    params_model: Any
    schedule: Scheduler | str | None
    short_description: str | None
    description: str | None
    randomize: RandomizeType | None
    max_concurrency: int | None
    priority: TaskPriority | str | None
    cpu_bound: bool | Literal["spawn", "pool"] | None
    k8s_config: K8sConfig | None
    timeout_seconds: float | None
    tags: Sequence[str] | None
    retry: RetryPolicy | None
    rate_limit_retry: RetryPolicy | None
    env: dict[str, str] | None
    batch: int | None
    batch_wait: float | None


class Spread:
    """Calls a function with its own arguments: those that the params of a run hold under their names.

    ``positional``, ``keyword``: the names, by the way that they are passed. ``takes_run``: the run comes first.
    """

    def __init__(
        self, function: Callable[..., Any], positional: Sequence[str], keyword: Sequence[str], *, takes_run: bool
    ) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.positional = positional
        self.keyword = keyword
        self.takes_run = takes_run

    def __call__(self, run: Any) -> Any:
        params = run.params
        args = [getattr(params, name) for name in self.positional]
        if self.takes_run:
            args.insert(0, run)
        if not self.keyword:
            return self.function(*args)
        return self.function(*args, **{name: getattr(params, name) for name in self.keyword})


async def launch(ctx: Any) -> None:
    """Execute a run of a CPU-bound task with its manager's ``launcher``, by default in its own process."""
    await ctx.task_manager.launcher(ctx)


@overload
def task(executor: Callable[["TaskRun[P, Any]"], Coroutine[Any, Any, R] | R], /) -> Task[P, R]: ...


@overload
def task(**options: Unpack[TaskOptions]) -> Callable[[Callable[..., Any]], Task[Any, Any]]: ...


def task(
    executor: Callable[..., Any] | None = None, /, **options: Unpack[TaskOptions]
) -> Task[Any, Any] | Callable[[Callable[..., Any]], Task[Any, Any]]:
    """Turn a function into a ``Task``: ``@task``, or ``@task(name=..., retry=...)`` with keywords of ``TaskOptions``.

    The function takes one argument, the run. Its annotation declares the params model, unless ``params_model`` does.
    A plain ``def`` runs in a thread. ``schedule`` may be a line of cron (``"0 5 * * *"``), in UTC.

        @task(retry=RetryPolicy(max_attempts=3), timeout_seconds=10)
        async def send(ctx: TaskRun[Mail]) -> None: ...

    Raises:
        TaskDecoratorError: a keyword is unknown or out of range; keywords come together with a function; the function
            is a generator or does not take one argument; the annotation cannot be resolved; or the params model cannot
            be written to a queue.
    """
    given = given_options("@task", options)
    scope = sys._getframe(1).f_locals
    if executor is not None:
        if given:
            raise TaskDecoratorError("@task takes a function or keywords, not both")
        return make_task(executor, given, scope)
    if not options:
        raise TaskDecoratorError("write @task without parentheses, or give it keywords")
    return lambda function: make_task(function, given, scope)


def given_options(decorator: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``@task`` that are not None.

    Raises:
        TaskDecoratorError: there is no option of such a name.
    """
    for name in options:
        if name not in TaskOptions.__annotations__:
            close = get_close_matches(name, TaskOptions.__annotations__, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(TaskOptions.__annotations__)}"
            raise TaskDecoratorError(f"{decorator} has no option {name!r}; {hint}")
    return {name: value for name, value in options.items() if value is not None}


def make_task(function: Callable[..., Any], options: dict[str, Any], scope: dict[str, Any]) -> Task[Any]:
    name = name_for(function, options)
    options = {option: value for option, value in options.items() if option != "name"}
    module = getattr(function, "__module__", None) or ""
    check_options(name, options)
    check_function(function, name, batch=options.get("batch", 0) > 0)
    description = options.pop("description", None) or inspect.cleandoc(function.__doc__ or "")
    short = options.pop("short_description", None) or description.split("\n", 1)[0].strip()
    model = options.pop("params_model", None)
    if model is None:
        model = annotated_model(function, name, scope)
    if way := options.pop("cpu_bound", False):
        options["cpu_executor"] = function
        if way is not True:
            options["cpu_process"] = way
        executor: TaskExecutor = launch
    else:
        executor = function
    if options.get("batch_wait", 0) and not options.get("batch", 0):
        raise TaskDecoratorError(
            f"task {name!r}: batch_wait needs batch: give the number of runs (batch=500), or drop batch_wait"
        )
    if options.get("batch", 0) and (options.get("max_concurrency", 0) or "cpu_executor" in options):
        raise TaskDecoratorError(f"task {name!r}: batch cannot be combined with max_concurrency or cpu_bound")
    adapter_for(model)
    return Task(
        name=name,
        executor=executor,
        params_model=model,
        logger=logging.getLogger(f"{module or settings.get_settings().app_name}.{name}"),
        module=module,
        short_description=short,
        description=description,
        tags=frozenset(options.pop("tags", ())),
        **options,
    )


def name_for(function: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """Return the name of a function's task.

    Raises:
        TaskDecoratorError: this is not a function, or the name cannot be a task's.
    """
    if isinstance(function, Task | HasTask):
        made = function if isinstance(function, Task) else function.task
        raise TaskDecoratorError(f"@task needs a function, not the task {made.name!r}")
    if isinstance(function, type) or not callable(function):
        raise TaskDecoratorError(f"@task needs a function, not {shown(function)}")
    name = options.get("name") or getattr(function, "__name__", type(function).__name__)
    if not isinstance(name, str) or not is_utf8(name):
        raise TaskDecoratorError(f"a task's name must be text that can be written as UTF-8, not {shown(name)}")
    return name


NUMBERS: dict[str, dict[str, Any]] = {
    "max_concurrency": {"whole": True, "most": MAX_COUNT},
    "timeout_seconds": {"above": True, "infinite": True},
    "batch": {"whole": True, "most": MAX_BATCH_RUNS},
    "batch_wait": {},
}
"""Options of ``@task`` that take a number, and their ranges."""


def check_options(name: str, options: dict[str, Any]) -> None:
    """Check the keywords of ``@task``, and convert numbers, the priority and a line of cron to their own types."""
    where = f"task {name!r}"
    for option, ranges in NUMBERS.items():
        if option in options:
            options[option] = check_number(f"{where}: {option}", options[option], TaskDecoratorError, **ranges)
    for option in ("retry", "rate_limit_retry"):
        if not isinstance(policy := options.get(option), RetryPolicy | None):
            raise TaskDecoratorError(
                f"{where}: {option} is {shown(policy)}, it must be a RetryPolicy: {option}=RetryPolicy(max_attempts=3)"
            )
    if (way := options.get("cpu_bound", False)) not in (True, False, "spawn", "pool"):
        raise TaskDecoratorError(f"{where}: cpu_bound is {shown(way)}, it must be True, False, 'spawn' or 'pool'")
    if isinstance(options.get("tags"), str):
        raise TaskDecoratorError(f"{where}: tags is a string, it must be a list of strings: tags=[{options['tags']!r}]")
    if "randomize" in options and not callable(options["randomize"]):
        raise TaskDecoratorError(
            f"{where}: randomize is {shown(options['randomize'])}, it must be a function that gives seconds: "
            "randomize=lambda: random.uniform(0, 60)"
        )
    try:
        options["priority"] = TaskPriority(options.get("priority", TaskPriority.medium))
    except ValueError as exc:
        raise TaskDecoratorError(f"{where}: {exc}") from exc
    schedule = options.get("schedule")
    if isinstance(schedule, str):
        try:
            options["schedule"] = crontab.from_line(schedule)
        except ValueError as exc:
            raise TaskDecoratorError(f"{where}: {exc}") from exc
    elif schedule is not None and (isinstance(schedule, type | Task) or not callable(schedule)):
        raise TaskDecoratorError(
            f"{where}: schedule is {shown(schedule)}, it must be a schedule: schedule=every(timedelta(minutes=5)), "
            'schedule=crontab(hour=5, minute=0) or schedule="0 5 * * *"'
        )


def check_function(function: Callable[..., Any], name: str, *, batch: bool) -> None:
    """Refuse a function that cannot be a task: a generator, or one that does not take one argument."""
    if is_generator(function):
        raise TaskDecoratorError(
            f"task {name!r}: its function is a generator (it has a yield), and a call would run nothing; write a "
            "function that does its work and returns"
        )
    try:
        # its own, not that of what it wraps: a decorator may well add arguments
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # a builtin that does not tell
        return
    try:
        signature.bind(None)
    except TypeError:
        kind = inspect.Parameter
        names = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)
        ]
        fields = ", ".join(f"ctx.params.{each}" for each in names)
        argument = "runs: list[TaskRun]" if batch else "ctx: TaskRun"
        raise TaskDecoratorError(
            f"task {name!r}: a task takes one argument, {'its runs' if batch else 'the run'}, and its function takes "
            f"{', '.join(names) or 'none'}; write def {getattr(function, '__name__', 'run')}({argument})"
            + (f" and read {fields}" if fields and not batch else "")
            + ("" if batch else "; or write @manager.task, which makes the params of the function's own arguments")
        ) from None


def is_generator(function: Callable[..., Any]) -> bool:
    """Return whether a call makes a generator instead of running the body; looks through partials and ``wraps``."""
    seen: set[int] = set()
    while id(function) not in seen:
        seen.add(id(function))
        while isinstance(function, functools.partial):
            function = function.func
        target = function if inspect.isroutine(function) else type(function).__call__
        if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
            return True
        function = getattr(function, "__wrapped__", function)
    return False


def checked(task: Any) -> Task[Any, Any]:
    """Return ``task`` if it is a Task, or the task of a ``BoundTask``.

    Raises:
        TaskUsageError: it is something else, such as a function without ``@task``.
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, HasTask):
        return task.task
    if callable(task):
        name = getattr(task, "__name__", "")
        hint = f"write @task above def {name}(...)" if name.isidentifier() else "make a task of it: task(function)"
        raise TaskUsageError(f"{shown(task)} is a function and not a task: {hint}")
    raise TaskUsageError(f"{shown(task)} is not a task: a task is what @task makes of a function, or its name")


def task_within(task: Any, registry: Mapping[str, Task[Any, Any]]) -> Task[Any, Any]:
    """Return ``task`` if it is a Task. Of a ``BoundTask``, return the task that its manager registered.

    Raises:
        TaskUsageError: it is bound to another manager than that of ``registry``; or it is something else.
    """
    found = checked(task)
    if not isinstance(task, HasTask):
        return found
    present: Task[Any, Any] | None = registry.get(found.name)
    if present is None or not same_function(*(each.run_executor(in_process=True) for each in (present, found))):
        raise TaskUsageError(
            f"task {found.name!r} belongs to another manager: write await {task.__name__}.queue(...) to queue it "
            f"there, or register it here too: register_task({task.__name__})"
        )
    return present


def same_function(one: Any, other: Any) -> bool:
    """Return whether two callables are one function: the same object, or the same place in a module loaded again.

    Closures and callable objects also have to hold equal values.
    """
    one, other = (each.function if isinstance(each, Spread) else each for each in (one, other))
    if one is other:
        return True
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return same_function(one.func, other.func) and (one.args, one.keywords) == (other.args, other.keywords)
    if inspect.ismethod(one) and inspect.ismethod(other):
        return same_function(one.__func__, other.__func__) and same_function(one.__self__, other.__self__)
    if not hasattr(one, "__qualname__") or not hasattr(other, "__qualname__"):  # objects with a __call__
        kinds = type(one), type(other)
        return place_of(kinds[0]) == place_of(kinds[1]) and (kinds[0] is not kinds[1] or bool(one == other))
    if place_of(one) != place_of(other):
        return False
    codes = getattr(one, "__code__", None), getattr(other, "__code__", None)
    if codes[0] is None or codes[0] is not codes[1]:  # loaded again, unless they are two lambdas
        return "<lambda>" not in one.__qualname__ or codes[0] == codes[1]
    return bool(held_by(one) == held_by(other))


def held_by(function: Any) -> tuple[Any, ...]:
    """Return the values that a function holds: its defaults, and those of its closure."""
    values = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # of a name that has no value yet
            values.append(cell.cell_contents)
    return function.__defaults__, function.__kwdefaults__, values


def place_of(function: Any) -> str:
    """Return the place of a function: ``app.mail.send``."""
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__qualname__"):
        function = type(function)
    return f"{getattr(function, '__module__', None) or '?'}.{function.__qualname__}"


def is_utf8(text: str) -> bool:
    """Return whether text can be encoded as UTF-8, that is, has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def annotated_model(function: Callable[..., Any], name: str, scope: dict[str, Any]) -> Any:
    """Return the params model in the annotation of the run's parameter; ``Params`` if there is none."""
    while isinstance(function, functools.partial):
        function = function.func
    target = function if inspect.isroutine(function) else type(function).__call__
    raw = getattr(inspect.unwrap(target), "__annotations__", {})  # a builtin has none
    for parameter, annotation in raw.items():
        if parameter == "return":
            continue
        if isinstance(annotation, str):
            annotation = resolve(annotation, target, scope, name)
        found = model_of(annotation)
        if found is not None:
            return found
    return Params


def resolve(annotation: str, function: Any, scope: dict[str, Any], name: str) -> Any:
    namespace = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return eval(annotation, namespace, scope)
    except Exception as exc:
        if "[" not in annotation:  # TaskRun alone, imported for type checkers only
            return None
        raise TaskDecoratorError(
            f"task {name!r}: cannot resolve the annotation {annotation!r} ({exc}); give @task(params_model=...)"
        ) from exc


def model_of(annotation: Any) -> Any:
    """Return P of ``TaskRun[P]`` or ``TaskRun[P, D]``, also through a ``type`` alias; None for anything else."""
    from ._run import TaskRun

    alias_type = getattr(typing, "TypeAliasType", None)
    if alias_type is not None:
        origin = get_origin(annotation)
        if isinstance(origin, alias_type):
            annotation = origin.__value__[get_args(annotation)]
        elif isinstance(annotation, alias_type):
            annotation = annotation.__value__
    if get_origin(annotation) is list and get_args(annotation):  # of a batch
        return model_of(get_args(annotation)[0])
    if get_origin(annotation) is not TaskRun:
        return None
    model = get_args(annotation)[0]
    return None if model in (Any, None, type(None)) or isinstance(model, TypeVar) else model


def is_async(executor: TaskExecutor) -> bool:
    """Return whether a call returns an awaitable (else the function runs in a thread)."""
    if isinstance(executor, Spread):
        executor = executor.function
    return inspect.iscoroutinefunction(executor) or inspect.iscoroutinefunction(getattr(executor, "__call__", None))  # noqa: B004
