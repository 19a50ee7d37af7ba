"""The lives of managers and consumers: starts that fail or are cancelled, and what is forgotten."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from manager_kit import managing
from waiting import within

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.errors import UnknownTaskError
from fluidfast.workers import WorkerState


@task
async def note(ctx: TaskRun) -> None:
    ctx.deps.append(ctx.params.get("n"))


class Resource:
    """A context that fails to open so many times."""

    def __init__(self, name: str, log: list[str], fails: int = 0, *, swallows: bool = False) -> None:
        self.name = name
        self.log = log
        self.fails = fails
        self.swallows = swallows

    async def __aenter__(self) -> None:
        if self.fails:
            self.fails -= 1
            raise ConnectionError(f"{self.name} is not up yet")
        self.log.append(f"+{self.name}")

    async def __aexit__(self, *exc: object) -> bool:
        self.log.append(f"-{self.name}")
        return self.swallows


# -- a context that fails


def enter(manager: TaskManager) -> Awaitable[Any]:
    return manager.__aenter__()


def on_startup(manager: TaskManager) -> Awaitable[Any]:
    return manager.on_startup()


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("start", [enter, on_startup])
async def test_a_start_that_fails_is_unwound_and_tried_again(
    start: Callable[[TaskManager], Awaitable[Any]], swallows: bool
) -> None:
    """Also where a context that is closed then returns true, which would swallow an error of a ``with`` block."""
    log: list[str] = []
    manager = TaskManager(broker_url="memory://lives")
    manager.add_async_context_manager(Resource("pool", log, swallows=swallows))
    manager.add_async_context_manager(Resource("db", log, fails=1))
    await manager.enter_async_context(Resource("before", log))
    with pytest.raises(ConnectionError, match="db is not up yet"):
        await start(manager)
    assert log == ["+before", "+pool", "-pool"]
    del log[:]
    await start(manager)
    assert log == ["+pool", "+db"]
    await manager.on_shutdown()
    assert log == ["+pool", "+db", "-db", "-pool", "-before"]


async def test_a_start_that_is_cancelled_is_unwound() -> None:
    log: list[str] = []

    class Slow(Resource):
        async def __aenter__(self) -> None:
            await asyncio.Event().wait()

    manager = TaskManager(broker_url="memory://lives")
    manager.add_async_context_manager(Resource("pool", log))
    manager.add_async_context_manager(Slow("db", log))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await manager.on_startup()
    assert log == ["+pool", "-pool"]
    await manager.on_shutdown()


# -- a start that is cancelled


@pytest.mark.parametrize("steps", range(10))
async def test_shutdown_after_a_start_that_was_cancelled(broker_url: str, steps: int) -> None:
    consumer = TaskConsumer(broker_url=broker_url)
    starting = asyncio.create_task(consumer.startup())
    for _ in range(steps):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    await within(consumer.shutdown())
    await within(consumer.wait_for_shutdown())
    assert consumer.worker_state in (WorkerState.INIT, WorkerState.STOPPED)
    await consumer.broker.close()


# -- a forgotten await


def manager_that_listens() -> TaskManager:
    manager = TaskManager(broker_url="memory://forgotten")
    manager.dispatcher.register_handler("queued", lambda run: None)
    return manager


def manager_that_is_full() -> TaskManager:
    return TaskManager(broker_url="memory://forgotten", max_queue_length=1_000_000)


MANAGERS = (lambda: TaskManager(broker_url="memory://forgotten"), manager_that_listens, manager_that_is_full)


@pytest.mark.parametrize("make", MANAGERS, ids=["plain", "listening", "limited"])
async def test_a_forgotten_await_is_told_by_the_name_of_what_was_called(make: Callable[[], TaskManager]) -> None:
    manager = make()
    manager.register_task(note)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manager.queue("note")
        gc.collect()
    assert [str(each.message) for each in caught] == ["coroutine 'TaskManager.queue' was never awaited"]


def test_a_forgotten_await_without_a_loop(redis_url: str) -> None:
    manager = TaskManager(broker_url=redis_url)
    manager.register_task(note)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manager.queue("note")
        gc.collect()
    assert [str(each.message) for each in caught] == ["coroutine 'TaskManager.queue' was never awaited"]


async def test_what_is_refused_is_told_by_the_same_name(redis_url: str) -> None:
    async with managing(redis_url, delivery="buffered") as manager:
        refused: Any = manager.queue("unknown")
        assert refused.__qualname__ == "TaskManager.queue"
        with pytest.raises(UnknownTaskError):
            await refused
