"""The decorator refuses a function that cannot be a task, and managers refuse what is not a task, where it is given."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fluidfast import K8sConfig, Task, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.errors import TaskDecoratorError, TaskNameTaken, TaskUsageError


class Mail(msgspec.Struct):
    to: str


@task
async def send(ctx: TaskRun[Mail]) -> None:
    """Send a mail."""


def name_of(function: Any) -> str:
    """A name for a test, the same in each process."""
    return getattr(function, "__qualname__", type(function).__name__)


def manager_of(*tasks: Task[Any]) -> TaskManager:
    manager = TaskManager(broker_url=f"memory://{uuid.uuid4().hex}")
    for each in tasks:
        manager.register_task(each)
    return manager


# -- what a task's function takes


async def none() -> None: ...
async def two(to: str, text: str) -> None: ...
async def keyword(*, ctx: TaskRun) -> None: ...
def plain(a: int, b: int) -> None: ...
async def one_and_keyword(ctx: TaskRun, *, db: object) -> None: ...


class Jobs:
    async def two(self, to: str, text: str) -> None: ...

    async def good(self, ctx: TaskRun) -> None: ...

    async def __call__(self, to: str, text: str) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        none,
        two,
        keyword,
        plain,
        one_and_keyword,
        Jobs().two,
        Jobs.good,
        Jobs(),
        functools.partial(two, "a", "b"),
    ],
    ids=name_of,
)
def test_a_function_that_does_not_take_one_argument(function: Callable[..., Any]) -> None:
    with pytest.raises(TaskDecoratorError, match="a task takes one argument, the run"):
        task(name="job")(function)


def test_the_line_to_write() -> None:
    with pytest.raises(
        TaskDecoratorError, match=r"write def two\(ctx: TaskRun\) and read ctx\.params\.to, ctx\.params\.text"
    ):
        task(two)
    with pytest.raises(TaskDecoratorError, match=r"its function takes none; write def none\(runs: list\[TaskRun\]\)"):
        task(batch=5)(none)


def test_functions_that_do() -> None:
    @functools.wraps(two)
    async def injects(ctx: TaskRun) -> None: ...

    async def defaults(ctx: TaskRun, db: object = None, *, more: int = 0) -> None: ...

    async def anything(*args: Any, **kwargs: Any) -> None: ...

    for function in (injects, defaults, anything, Jobs().good, functools.partial(two, "a"), print, len):
        assert task(function).run_executor() is function or task(function).run_executor() == function


@pytest.mark.parametrize("given", [Jobs, Mail, send, 7], ids=name_of)
def test_no_function(given: Any) -> None:
    with pytest.raises(TaskDecoratorError, match="@task needs a function"):
        task(given)


# -- generators


def generator(ctx: TaskRun) -> Iterator[int]:
    yield 1


async def async_generator(ctx: TaskRun) -> AsyncIterator[int]:
    yield 1


@types.coroutine
def old_coroutine(ctx: TaskRun) -> Iterator[None]:
    yield


class Exports:
    def method(self, ctx: TaskRun) -> Iterator[int]:
        yield 1

    async def async_method(self, ctx: TaskRun) -> AsyncIterator[int]:
        yield 1

    @staticmethod
    def static(ctx: TaskRun) -> Iterator[int]:
        yield 1

    @classmethod
    def of_class(cls, ctx: TaskRun) -> Iterator[int]:
        yield 1

    partial = functools.partialmethod(method)


class Export:
    def __call__(self, ctx: TaskRun) -> Iterator[int]:
        yield 1


class AsyncExport:
    async def __call__(self, ctx: TaskRun) -> AsyncIterator[int]:
        yield 1


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


GENERATORS = [
    generator,
    async_generator,
    old_coroutine,
    Exports().method,
    Exports().async_method,
    Exports.static,
    Exports.of_class,
    Exports().partial,
    Export(),
    AsyncExport(),
    functools.partial(generator),
    functools.partial(functools.partial(async_generator)),
    functools.partial(Export()),
    logged(generator),
    logged(logged(async_generator)),
    functools.partial(logged(generator)),
    logged(functools.partial(generator)),
    functools.lru_cache(generator),
    contextlib.contextmanager(generator),
]


@pytest.mark.parametrize("function", GENERATORS, ids=name_of)
@pytest.mark.parametrize("options", [{}, {"batch": 5}, {"cpu_bound": True}], ids=["run", "batch", "cpu"])
def test_a_generator(function: Callable[..., Any], options: dict[str, Any]) -> None:
    with pytest.raises(TaskDecoratorError, match="its function is a generator"):
        task(name="export", **options)(function)


def test_wraps_in_a_circle() -> None:
    async def circle(ctx) -> None: ...  # type: ignore[no-untyped-def]

    circle.__wrapped__ = circle  # type: ignore[attr-defined]
    assert task(params_model=Mail)(circle).name == "circle"


# -- other options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retry": 3}, r"retry=RetryPolicy\(max_attempts=3\)"),
        ({"rate_limit_retry": 3}, "rate_limit_retry is 3, it must be a RetryPolicy"),
        ({"tags": "nightly"}, r"tags=\['nightly'\]"),
        ({"randomize": 5}, "randomize is 5, it must be a function"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_options_of_another_kind(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskDecoratorError, match=says):
        task(**options)(send.executor)


# -- what is no task


def test_calling_a_task() -> None:
    with pytest.raises(TaskUsageError, match=r"await manager\.queue\('send', \.\.\.\).*await manager\.execute\('send'"):
        send(to="x")
    with pytest.raises(TypeError, match="cannot be called like a function"):
        send(1, 2)


async def test_a_function_where_a_task_is_needed() -> None:
    manager = manager_of()
    for call in (
        lambda: manager.register_task(two),  # type: ignore[arg-type]
        lambda: manager.register_task(two, ["tag"]),  # type: ignore[arg-type]
        lambda: manager.broker.register_task(two),  # type: ignore[arg-type]
        lambda: manager.create_task_run(two),  # type: ignore[arg-type]
        lambda: manager.broker.task_from_registry(two),  # type: ignore[arg-type]
        lambda: manager.registry.add(two),  # type: ignore[arg-type]
    ):
        with pytest.raises(TaskUsageError, match=r"write @task above def two\(\.\.\.\)"):
            call()
    for method in (manager.queue, manager.execute, manager.queue_and_wait):
        with pytest.raises(TypeError, match="@task"):
            await method(two)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is not a task"):
        await manager.queue(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="@task"):
        await manager.queue_many(two, [{}])  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"to": "x"}, {}, Mail("x"), ["x"], 7], ids=repr)
async def test_params_by_position(given: Any) -> None:
    manager = manager_of(send)
    with pytest.raises(TaskUsageError, match="params=") as caught:
        await manager.queue("send", given)
    assert isinstance(caught.value, TypeError | ValueError)
    assert "'x'" not in str(caught.value)  # params may hold secrets
    sync: Any = manager.sync
    for call in (manager.queue, manager.execute, manager.queue_and_wait):
        with pytest.raises(TaskUsageError, match="params="):
            await call("send", given)
    for call in (manager.create_task_run, sync.queue, sync.execute, sync.queue_and_wait, manager.execute_sync):
        with pytest.raises(TaskUsageError, match="params="):
            call("send", given)
    run = manager.create_task_run("send", to="y")
    with pytest.raises(TaskUsageError, match="params="):
        await run.queue("send", given)
    sync.close()
    assert sum((await manager.broker.queue_length()).values()) == 0


async def test_a_bad_priority_is_named_though_the_params_do_not_fit() -> None:
    manager = manager_of(send)
    with pytest.raises(ValueError, match="unknown priority 'urgent'"):
        await manager.queue("send", "urgent")


# -- names


@task(name="send")
async def invoice(ctx: TaskRun) -> None: ...


REGISTER: dict[str, Callable[..., object]] = {
    "register_task": lambda manager, made, **options: manager.register_task(made, **options),
    "with tags": lambda manager, made, **options: manager.register_task(made, ["more"], **options),
    "register_from_dict": lambda manager, made, **options: manager.register_from_dict({"a": made}, **options),
    "register_from_module": lambda manager, made, **options: manager.register_from_module(module(a=made), **options),
    "broker": lambda manager, made, **options: manager.broker.register_task(made, **options),
}


def module(**names: Any) -> types.ModuleType:
    made = types.ModuleType("made")
    made.__dict__.update(names)
    return made


@pytest.mark.parametrize("how", REGISTER)
def test_a_name_that_is_taken(how: str) -> None:
    manager = manager_of(send)
    register = REGISTER[how]
    with pytest.raises(TaskNameTaken) as caught:
        register(manager, invoice)
    for word in ("'send'", f"{__name__}.send", f"{__name__}.invoice", "name=", "replace=True"):
        assert word in str(caught.value)
    assert manager.registry["send"] is send
    register(manager, invoice, replace=True)
    assert manager.registry["send"].executor is invoice.executor


async def test_a_name_that_is_taken_by_a_task_given_to_queue() -> None:
    manager = manager_of(send)
    for call in (manager.queue, manager.execute, manager.queue_and_wait):
        with pytest.raises(TaskNameTaken):
            await call(invoice)
    with pytest.raises(TaskNameTaken):
        await manager.queue_many(invoice, [{}])
    with pytest.raises(TaskNameTaken):
        manager.registry["send"] = invoice
    with pytest.raises(TaskNameTaken):
        manager.register_task(send._replace(executor=invoice.executor))


@pytest.mark.parametrize("how", REGISTER)
def test_the_same_function_again(how: str) -> None:
    manager = manager_of(send)
    for made in (send, task(send.executor), send._replace(tags=frozenset("t")), send._replace(timeout_seconds=3)):
        REGISTER[how](manager, made)
    assert manager.registry["send"].timeout_seconds == 3


def test_two_managers_of_one_broker() -> None:
    """Each has a registry of its own, also on one ``memory://``: a name may mean one thing here and another there."""
    one, other = TaskManager(broker_url="memory://shared"), TaskManager(broker_url="memory://shared")
    one.register_task(send)
    other.register_task(invoice)
    assert one.registry["send"] is not other.registry["send"]


def test_a_module_that_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
import functools
from fluidfast import TaskRun, task

def make(kind):
    async def run(ctx: TaskRun):
        return kind
    return run

class Job:
    async def __call__(self, ctx: TaskRun): ...
    async def method(self, ctx: TaskRun): ...

@task
async def function(ctx: TaskRun): ...

@task
@functools.cache
def wrapped(ctx: TaskRun): ...

closure = task(name="closure")(make("a"))
partial = task(name="partial")(functools.partial(function.executor))
method = task(name="method")(Job().method)
instance = task(name="instance")(Job())
cpu = task(name="cpu", cpu_bound=True)(make("b"))
"""
    (tmp_path / "loaded_again.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = importlib.import_module("loaded_again")
    manager = manager_of()
    manager.register_from_module(loaded)
    first = dict(manager.registry)
    manager.register_from_module(importlib.reload(loaded))
    assert len(first) == 7
    assert all(manager.registry[name] is not first[name] for name in first)
    del sys.modules["loaded_again"]


class Sender:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    async def __call__(self, ctx: TaskRun) -> None: ...

    async def send(self, ctx: TaskRun) -> None: ...


def closing_over(kind: str) -> Callable[..., Any]:
    async def run(ctx: TaskRun) -> str:
        return kind

    return run


def with_default(kind: str) -> Callable[..., Any]:
    async def run(ctx: TaskRun, kind: str = kind) -> str:
        return kind

    return run


@pytest.mark.parametrize(
    "make",
    [
        closing_over,
        with_default,
        Sender,
        lambda kind: Sender(kind).send,
        lambda kind: functools.partial(two, kind),
        lambda kind: (lambda ctx: 1) if kind == "a" else (lambda ctx: 2),
    ],
    ids=["closure", "default", "instance", "method", "partial", "lambda"],
)
def test_one_place_that_makes_two_functions(make: Callable[[str], Callable[..., Any]]) -> None:
    one = make("a")
    manager = manager_of(task(name="job")(one))
    manager.register_task(task(name="job")(one))
    with pytest.raises(TaskNameTaken):
        manager.register_task(task(name="job")(make("b")))


def test_a_function_made_twice_of_the_same() -> None:
    manager = manager_of(task(name="job")(closing_over("a")))
    manager.register_task(task(name="job")(closing_over("a")))
    manager.register_task(task(name="job")(closing_over("a")), ["tag"])


# -- what is not here


def test_kubernetes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    @task(cpu_bound=True, k8s_config=K8sConfig(namespace="jobs"))
    def heavy(ctx: TaskRun) -> None: ...

    def warnings_of(made: Task[Any]) -> int:
        caplog.clear()
        TaskConsumer(broker_url="memory://k8s").register_from_dict({"a": made})
        return caplog.text.count("Kubernetes jobs are not supported yet")

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert warnings_of(heavy) == 0
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert warnings_of(heavy) == 1
    assert warnings_of(heavy._replace(k8s_config=None)) == 0
    assert warnings_of(send) == 0
