"""Tasks: what ``@task`` makes of a function, and how a task retries."""

import functools
import inspect
import logging
import random
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar, Unpack, get_args, get_origin, overload

import msgspec

from . import settings
from .errors import TaskDecoratorError
from .params import Params, adapter_for
from .schedule import Scheduler
from .states import TaskPriority, TaskState

__all__ = [
    "EmptyParams",
    "K8sConfig",
    "K8sResourceRequirements",
    "QueuedTask",
    "RetryPolicy",
    "RetryPolicyInfo",
    "Task",
    "TaskExecutor",
    "TaskInfo",
    "TaskInfoUpdate",
    "TaskOptions",
    "task",
]

TaskExecutor = Callable[..., Any]
RandomizeType = Callable[[], float | int]
P = TypeVar("P")

CENTURY = 100 * 365 * 86400.0

EmptyParams = Params
"""The params of a task that names no model (aio-fluid's name for it)."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and how long apart, a run is tried again.

    ``max_attempts``: tries after the first one; None: no end.
    ``wait``: seconds before the first retry. ``backoff``: factor from each retry to the next.
    ``max_wait``: longest wait in seconds (a century at most). ``exceptions``: types that are retried; empty: all.
    ``jitter``: from 0 to 1, the share of the wait that is drawn at random, so that runs that failed together do not
    come back together: a wait of w becomes one between ``w * (1 - jitter)`` and w.

    Raises:
        ValueError: a number is out of its range.
    """

    max_attempts: int | None = None
    wait: float = 1.0
    backoff: float = 1.0
    max_wait: float = 60.0
    exceptions: tuple[type[BaseException], ...] = ()
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.max_attempts is not None and self.max_attempts < 0:
            raise ValueError(f"max_attempts is {self.max_attempts}, it must be None or at least 0")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is {self.jitter}, it must be from 0 to 1")
        for name in ("wait", "backoff", "max_wait"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 0")
        kinds: Any = self.exceptions
        object.__setattr__(self, "exceptions", (kinds,) if isinstance(kinds, type) else tuple(kinds))
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in self.exceptions):
            raise ValueError(f"exceptions is {kinds!r}, it must be a tuple of exception types")

    def delay(self, attempt: int) -> float:
        """Seconds to wait before retry number ``attempt``, which counts from 1."""
        try:
            wait = min(self.wait * self.backoff ** (attempt - 1), self.max_wait, CENTURY)
        except OverflowError:
            wait = min(self.max_wait, CENTURY) if self.wait else 0.0
        return wait * (1 - self.jitter * random.random()) if self.jitter else wait

    def matches(self, exc: BaseException) -> bool:
        """Whether this exception is one to retry."""
        return not self.exceptions or isinstance(exc, self.exceptions)

    def allows(self, attempts: int) -> bool:
        """Whether another retry may follow ``attempts`` retries."""
        return self.max_attempts is None or attempts < self.max_attempts

    def info(self) -> "RetryPolicyInfo":
        """The policy as data."""
        return RetryPolicyInfo(
            max_attempts=self.max_attempts,
            wait=self.wait,
            backoff=self.backoff,
            max_wait=self.max_wait,
            exceptions=[exc.__name__ for exc in self.exceptions],
            jitter=self.jitter,
        )


class RetryPolicyInfo(msgspec.Struct, kw_only=True):
    """A retry policy as data: see ``RetryPolicy``."""

    max_attempts: int | None = None
    wait: float
    backoff: float
    max_wait: float
    exceptions: list[str] = []
    jitter: float = 0.0


class K8sResourceRequirements(TypedDict, total=False):
    """CPU and memory of a container."""

    limits: dict[str, str]
    requests: dict[str, str]


class K8sConfig(msgspec.Struct, kw_only=True):
    """Where and how a CPU-bound task runs as a Kubernetes job. Carried and shown; running jobs is not ours yet."""

    namespace: str = "default"
    deployment: str = "fluid-task"
    container: str = "main"
    resources: K8sResourceRequirements | None = None
    job_ttl: int = 300
    sleep: float = 2.0


class TaskInfoUpdate(msgspec.Struct, kw_only=True):
    """What changes about a task while the fleet runs; kept by the broker."""

    enabled: bool = True
    last_run_end: datetime | None = None
    last_run_duration: timedelta | None = None
    last_run_state: TaskState | None = None


class TaskInfo(TaskInfoUpdate, kw_only=True):
    """A task as data: its definition and what changes about it."""

    name: str
    short_description: str = ""
    description: str = ""
    module: str = ""
    priority: TaskPriority = TaskPriority.medium
    cpu_bound: bool = False
    max_concurrency: int = 0
    schedule: str | None = None
    tags: frozenset[str] = frozenset()
    timeout_seconds: float = 60
    k8s_config: K8sConfig | None = None
    retry: RetryPolicyInfo | None = None
    rate_limit_retry: RetryPolicyInfo | None = None
    env: dict[str, str] = {}


class QueuedTask(msgspec.Struct, kw_only=True):
    """A run that somebody wants queued, as data."""

    run_id: str
    task: str
    params: dict[str, Any]
    priority: TaskPriority | None = None


class Task(NamedTuple, Generic[P]):
    """A task: a function and how it is to be run. Made by ``@task``, a tuple that never changes (``_replace``)."""

    name: str
    """Unique in a registry."""
    executor: TaskExecutor
    """What a consumer calls with the run: the function, or for a CPU-bound task what starts its process."""
    params_model: Any
    """Type of the params; ``Params`` if the task names none."""
    logger: logging.Logger
    cpu_executor: TaskExecutor | None = None
    """The function of a CPU-bound task; None for any other."""
    module: str = ""
    short_description: str = ""
    description: str = ""
    schedule: Scheduler | None = None
    randomize: RandomizeType | None = None
    """Gives seconds to wait after a due time before queueing."""
    max_concurrency: int = 0
    """Runs of this task at the same time, over all consumers of the broker; 0: no limit."""
    timeout_seconds: float = 60
    """Seconds after which a run is cancelled and fails."""
    priority: TaskPriority = TaskPriority.medium
    k8s_config: K8sConfig | None = None
    tags: frozenset[str] = frozenset()
    retry: RetryPolicy | None = None
    rate_limit_retry: RetryPolicy | None = None
    env: dict[str, str] = {}  # noqa: RUF012  # a field's default, shared and never changed
    """Extra environment of a CPU-bound task's process."""
    batch: int = 0
    """Runs that the function takes at once, as a list; 0: it takes one run."""
    batch_wait: float = 0.0
    """Seconds that a batch waits to become full."""

    @property
    def cpu_bound(self) -> bool:
        """Whether runs have a process of their own."""
        return self.cpu_executor is not None

    def run_executor(self, *, in_process: bool = False) -> TaskExecutor:
        """What to call with a run. ``in_process``: the function itself, also of a CPU-bound task."""
        if in_process and self.cpu_executor is not None:
            return self.cpu_executor
        return self.executor

    def get_k8s_config(self) -> K8sConfig:
        """The task's Kubernetes settings, or the defaults."""
        return self.k8s_config or K8sConfig()

    def info(self, **update: Any) -> TaskInfo:
        """The task as data, with what the broker knows of it (``enabled=``, ``last_run_end=`` ...) merged in."""
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


class TaskOptions(TypedDict, total=False):
    """Keywords of ``@task``. See the fields of ``Task`` for what each means."""

    name: str | None
    params_model: Any
    schedule: Scheduler | None
    short_description: str | None
    description: str | None
    randomize: RandomizeType | None
    max_concurrency: int | None
    priority: TaskPriority | str | None
    cpu_bound: bool | None
    k8s_config: K8sConfig | None
    timeout_seconds: float | None
    tags: Sequence[str] | None
    retry: RetryPolicy | None
    rate_limit_retry: RetryPolicy | None
    env: dict[str, str] | None
    batch: int | None
    batch_wait: float | None


@overload
def task(executor: Callable[..., Any], /) -> Task[Any]: ...


@overload
def task(**options: Unpack[TaskOptions]) -> Callable[[Callable[..., Any]], Task[Any]]: ...


def task(
    executor: Callable[..., Any] | None = None, /, **options: Unpack[TaskOptions]
) -> Task[Any] | Callable[[Callable[..., Any]], Task[Any]]:
    """Make a ``Task`` of a function: ``@task``, or ``@task(name=..., retry=...)`` with the keywords of ``TaskOptions``.

    The function takes the run (``async def send(ctx: TaskRun[Mail]) -> None``); the parameter's annotation names
    the params model, unless ``params_model`` does. A plain ``def`` runs in a thread pool.

    Raises:
        TaskDecoratorError: a keyword is unknown or out of range, a keyword comes together with a function, the
            annotation cannot be resolved, or the params model is of no kind that can be written to a queue.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := given.keys() - TaskOptions.__annotations__.keys():
        known = ", ".join(TaskOptions.__annotations__)
        raise TaskDecoratorError(f"@task has no option {', '.join(sorted(unknown))}; it has: {known}")
    scope = sys._getframe(1).f_locals
    if executor is not None:
        if given:
            raise TaskDecoratorError("@task takes a function or keywords, not both")
        return make_task(executor, given, scope)
    if not options:
        raise TaskDecoratorError("write @task without parentheses, or give it keywords")
    return lambda function: make_task(function, given, scope)


def make_task(function: Callable[..., Any], options: dict[str, Any], scope: dict[str, Any]) -> Task[Any]:
    if not callable(function):
        raise TaskDecoratorError(f"@task needs a function, it was given {function!r}")
    options = dict(options)
    module = getattr(function, "__module__", None) or ""
    name = options.pop("name", None) or getattr(function, "__name__", type(function).__name__)
    description = options.pop("description", None) or inspect.cleandoc(function.__doc__ or "")
    short = options.pop("short_description", None) or description.split("\n", 1)[0].strip()
    model = options.pop("params_model", None)
    if model is None:
        model = annotated_model(function, name, scope)
    if options.pop("cpu_bound", False):
        from .cpubound import run_in_subprocess

        options["cpu_executor"] = function
        executor: TaskExecutor = run_in_subprocess
    else:
        executor = function
    try:
        priority = TaskPriority(options.pop("priority", TaskPriority.medium))
    except ValueError as exc:
        raise TaskDecoratorError(f"task {name!r}: {exc}") from exc
    if not isinstance(name, str) or not is_utf8(name):
        raise TaskDecoratorError(f"a task's name must be text that can be written as UTF-8, not {name!r}")
    if not (timeout := options.get("timeout_seconds", 1)) > 0:
        raise TaskDecoratorError(f"task {name!r}: timeout_seconds is {timeout}, it must be above 0")
    if (limit := options.get("max_concurrency", 0)) < 0:
        raise TaskDecoratorError(f"task {name!r}: max_concurrency is {limit}, it must be at least 0")
    if (batch := options.get("batch", 0)) < 0 or options.get("batch_wait", 0) < 0:
        raise TaskDecoratorError(f"task {name!r}: batch and batch_wait must be at least 0")
    if options.get("batch_wait", 0) and not batch:
        raise TaskDecoratorError(
            f"task {name!r}: batch_wait is for tasks that take a batch: say of how many runs (batch=500), or drop it"
        )
    if batch and (limit or "cpu_executor" in options):
        raise TaskDecoratorError(f"task {name!r}: a batch goes with neither max_concurrency nor cpu_bound")
    adapter_for(model)
    return Task(
        name=name,
        executor=executor,
        params_model=model,
        logger=logging.getLogger(f"{module or settings.get_settings().app_name}.{name}"),
        module=module,
        short_description=short,
        description=description,
        priority=priority,
        tags=frozenset(options.pop("tags", ())),
        **options,
    )


def is_utf8(text: str) -> bool:
    """Whether text can be written as UTF-8: no surrogate stands alone in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def annotated_model(function: Callable[..., Any], name: str, scope: dict[str, Any]) -> Any:
    """The params model in the annotation of the parameter that takes the run; ``Params`` if there is none."""
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
    """P of ``TaskRun[P]`` or ``TaskRun[P, D]``, also through a ``type`` alias; None if it is something else."""
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
    """Whether calling this gives an awaitable (else it is run in a thread)."""
    return inspect.iscoroutinefunction(executor) or inspect.iscoroutinefunction(getattr(executor, "__call__", None))  # noqa: B004
