"""Hooks around running: called around each call of a task's function, in the consumer's process."""

from __future__ import annotations

import contextvars
import sys
from typing import Any

import pytest
from kits import faces_app

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.core.hooks import Go

VALUE: contextvars.ContextVar[str] = contextvars.ContextVar("value", default="unset")


@task
async def waits(ctx: TaskRun) -> None:
    ctx.deps.log.append(("waits", VALUE.get()))


@task
def plain(ctx: TaskRun) -> None:
    ctx.deps.log.append(("plain", VALUE.get()))


@task(batch=10, batch_wait=0.05)
async def many(runs: list[TaskRun]) -> None:
    runs[0].deps.log.append(("many", len(runs)))


@task
async def breaks(ctx: TaskRun) -> None:
    raise ValueError("it breaks")


@task
async def forgets_await(ctx: TaskRun) -> Any:
    return waits.executor(ctx)


@task(batch=10)
async def many_forget(runs: list[TaskRun]) -> Any:
    return waits.executor(runs[0])


TASKS = (waits, plain, many, breaks, forgets_await, many_forget)


class Seen:
    """Notes what it is called around, and what came out of it; refuses runs with ``refused``."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def __call__(self, run: Any, go: Go) -> None:
        name = f"{len(run)} {run[0].name}" if isinstance(run, list) else run.name
        token = VALUE.set("within")
        try:
            if not isinstance(run, list) and run.params.get("refused"):
                raise PermissionError("not here")
            await go()
            self.calls.append((name, "went"))
        except Exception as exc:
            self.calls.append((name, type(exc).__name__))
            raise
        finally:
            VALUE.reset(token)


def a_consumer(url: str, hook: Seen) -> TaskConsumer:
    consumer = TaskConsumer(broker_url=url)
    consumer.deps.log = []
    for one in TASKS:
        consumer.register_task(one)
    consumer.hooks.around_running(hook)
    return consumer


@pytest.mark.parametrize(
    ("name", "params", "state", "call", "logged"),
    [
        ("waits", {}, "success", ("waits", "went"), [("waits", "within")]),
        ("plain", {}, "success", ("plain", "went"), [("plain", "within")]),
        ("many", {}, "success", ("1 many", "went"), [("many", 1)]),
        ("breaks", {}, "failure", ("breaks", "ValueError"), []),
        ("waits", {"refused": True}, "failure", ("waits", "PermissionError"), []),
        ("forgets_await", {}, "failure", ("forgets_await", "TaskRunError"), []),
        ("many_forget", {}, "failure", ("1 many_forget", "TaskRunError"), []),
    ],
)
async def test_a_run_of_a_consumer(
    broker_url: str, no_leaked_keys: Any, name: str, params: dict[str, Any], state: str, call: Any, logged: Any
) -> None:
    no_leaked_keys.allow("*-tasks-*", "*-ff:failed", "*-ff:kept")
    hook = Seen()
    async with a_consumer(broker_url, hook) as consumer:
        run = await consumer.queue_and_wait(name, timeout=20, **params)
    assert run.state == state
    assert hook.calls == [call]
    assert consumer.deps.log == logged


async def test_a_hook_that_forgets_to_go_on_fails_the_run(broker_url: str, no_leaked_keys: Any) -> None:
    no_leaked_keys.allow("*-tasks-*", "*-ff:failed", "*-ff:kept")

    async def forgets(run: TaskRun, go: Go) -> None: ...

    consumer = TaskConsumer(broker_url=broker_url)
    consumer.register_task(waits)
    consumer.hooks.around_running(forgets)
    async with consumer:
        run = await consumer.queue_and_wait("waits", timeout=20)
    assert run.state == "failure"


@pytest.mark.parametrize("name", ["waits", "plain", "many"])
async def test_a_run_in_place(broker_url: str, name: str) -> None:
    hook = Seen()
    consumer = a_consumer(broker_url, hook)
    run = await TaskManager.execute(consumer, name)
    await consumer.broker.close()
    assert run.state == "success"
    assert hook.calls == [("1 many" if name == "many" else name, "went")]


async def test_a_cpu_bound_run_has_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around its process, in that of the manager."""
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, faces_app.__file__, "serve"])
    hook = Seen()
    async with TaskManager(broker_url="memory://") as manager:
        faces_app.registered(manager)
        manager.hooks.around_running(hook)
        run = await manager.execute("quiet")
    assert run.state == "success"
    assert hook.calls == [("quiet", "went")]


async def test_hooks_of_a_plain_manager_come_to_its_consumer(broker_url: str) -> None:
    first, later = Seen(), Seen()
    manager = TaskManager(broker_url=broker_url)
    manager.deps.log = []
    manager.register_task(waits)
    manager.hooks.around_running(first)
    consumer = TaskConsumer.of(manager)
    manager.hooks.around_running(later)
    async with consumer:
        await consumer.queue_and_wait("waits", timeout=20)
    assert first.calls == later.calls == [("waits", "went")]
