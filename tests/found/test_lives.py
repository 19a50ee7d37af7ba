"""The lives of managers and consumers: starts that fail or are cancelled, and what is forgotten."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from kits.manager_kit import managing
from kits.waiting import until, within

from fluidfast import TaskConsumer, TaskManager, TaskRun, TaskScheduler, every, task
from fluidfast.cli import execute_once
from fluidfast.commands.child import execute_one
from fluidfast.core.workers import WorkerFunction, Workers, WorkerState
from fluidfast.errors import BrokerConnectionError, ConfigError, UnknownTaskError, WorkerStartError


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


# -- `async with` consumes


async def test_entering_starts_a_consumer_and_leaving_drains_it(broker_url: str) -> None:
    started, done = asyncio.Event(), []

    @task
    async def slow(ctx: TaskRun) -> None:
        started.set()
        await asyncio.sleep(0.05)
        done.append(ctx.id)

    async with TaskConsumer(broker_url=broker_url) as consumer:
        consumer.register_task(slow)
        run = await consumer.queue("slow")
        await within(started.wait())
        await consumer.startup()  # harmless
    assert done == [run.id]
    assert consumer.is_stopped()


async def test_a_scheduler_that_is_entered_fires(broker_url: str) -> None:
    fired = asyncio.Event()

    @task(schedule=every(timedelta(seconds=60)))
    async def often(ctx: TaskRun) -> None:
        fired.set()

    async with TaskScheduler(broker_url=broker_url) as scheduler:
        scheduler.register_task(often)
        await within(fired.wait())
        await scheduler.shutdown()
        await scheduler.shutdown()


def no_consumer(url: str) -> TaskConsumer:
    """A consumer that is used without consuming, beside a run that waits."""
    consumer = TaskConsumer(broker_url=url, deps=[])
    consumer.register_task(note)

    consumer.sync.queue("note", n="waits")
    consumer.sync.close()
    return consumer


def left(consumer: TaskConsumer) -> int:
    assert not consumer.has_started()
    lengths = consumer.sync.call(consumer.broker.queue_length())
    consumer.sync.call(consumer.broker.clear())
    consumer.sync.close()
    return sum(lengths.values())


def test_execute_sync_consumes_nothing(broker_url: str) -> None:
    consumer = no_consumer(broker_url)
    consumer.execute_sync("note", n=1)
    consumer.execute_sync("note", n=2)
    assert consumer.deps == [1, 2]
    assert left(consumer) == 1


def test_the_exec_command_consumes_nothing(broker_url: str) -> None:
    consumer = no_consumer(broker_url)
    asyncio.run(execute_once(consumer, consumer.registry["note"], {"n": 1}, ""))
    assert consumer.deps == [1]
    assert left(consumer) == 1


def test_the_child_of_a_cpu_bound_run_consumes_nothing(broker_url: str) -> None:
    consumer = no_consumer(broker_url)
    assert asyncio.run(execute_one(consumer, "app:consumer", "note", "", b'{"n":1}')) == 0
    assert consumer.deps == [1]
    assert left(consumer) == 1


# -- started before its server


async def test_a_server_that_comes_late(start_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = start_server()
    server.stop()
    consumer = TaskConsumer(broker_url=server.url, deps=[])
    consumer.register_task(note)
    starting = asyncio.create_task(consumer.startup())
    await until(lambda: "trying again for up to 30 s" in caplog.text)
    server.start()
    await within(starting)
    await consumer.queue("note", n=1)
    await until(lambda: consumer.deps == [1])
    await consumer.shutdown()
    assert caplog.text.count("trying again for up to 30 s") == 1


async def test_a_server_that_does_not_come() -> None:
    """The start says so, as often as it is tried, and nothing stays open."""
    log: list[str] = []
    consumer = TaskConsumer(broker_url="redis://:secret@127.0.0.1:1", connect_seconds=0.05)
    consumer.add_async_context_manager(Resource("db", log))
    for _ in range(2):
        with pytest.raises(
            BrokerConnectionError, match=r"127\.0\.0\.1:1.*gave up after 0\.05 s.*connect_seconds"
        ) as exc:
            await consumer.startup()
        assert "secret" not in str(exc.value)
        assert consumer.is_stopped()
        assert "error" in (await consumer.status())[consumer.worker_name]
    assert log == ["+db", "-db"] * 2
    await consumer.shutdown()


async def test_told_to_stop_while_it_waits_for_its_server() -> None:
    consumer = TaskConsumer(broker_url="redis://127.0.0.1:1", connect_seconds=600)
    starting = asyncio.create_task(consumer.startup())
    await until(consumer.is_running)
    consumer.gracefully_stop()
    await within(starting)
    await within(consumer.shutdown())
    assert consumer.is_stopped()


async def test_cancelled_while_it_waits_for_its_server() -> None:
    consumer = TaskConsumer(broker_url="redis://127.0.0.1:1", connect_seconds=600)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await consumer.startup()
    await within(consumer.shutdown())
    assert consumer.is_stopped()


@pytest.mark.parametrize("text", ["-1", "nan"])
def test_connect_seconds_is_a_time(text: str) -> None:
    with pytest.raises(ConfigError, match="connect_seconds"):
        TaskConsumer(broker_url="memory://lives", connect_seconds=float(text))


async def test_a_consumer_that_dies_is_seen_by_its_status(broker_url: str) -> None:
    consumer = TaskConsumer(broker_url=broker_url)

    async def fail() -> None:
        raise ZeroDivisionError("on\npurpose")

    await consumer.startup()
    consumer.add_workers(WorkerFunction(fail, name="failing"))
    with pytest.raises(ZeroDivisionError):
        await within(consumer.wait_for_shutdown())
    status = await consumer.status()
    assert status["failing"] == {"stopping": False, "running": False, "error": "ZeroDivisionError: on\\npurpose"}
    assert not status["task-consumer"]["running"]


# -- another life


async def test_a_consumer_is_started_again(broker_url: str) -> None:
    """With its tasks, its handlers, its contexts and the workers that were added."""
    log: list[str] = []
    ticks: list[int] = []

    async def tick() -> None:
        ticks.append(life)

    async def handler(run: TaskRun[Any, Any]) -> None:
        log.append(f"handled {run.params['n']}")

    consumer = TaskConsumer(broker_url=broker_url, deps=[])
    consumer.register_task(note)
    consumer.add_async_context_manager(Resource("db", log))
    consumer.register_async_handler("success", handler)
    consumer.add_workers(WorkerFunction(tick, heartbeat=0.01, name="ticker"))
    for life in range(3):
        del log[:]
        consumer.sync_queue(consumer.create_task_run("note", n=life))
        await consumer.startup()
        with pytest.raises(WorkerStartError):
            await consumer.startup()
        await until(lambda: life in consumer.deps and life in ticks)  # noqa: B023
        await within(consumer.shutdown())
        assert log == ["+db", f"handled {life}", "-db"]


def test_a_consumer_is_started_again_in_another_loop(broker_url: str) -> None:
    consumer = TaskConsumer(broker_url=broker_url, deps=[])
    consumer.register_task(note)

    async def live(n: int) -> None:
        async with consumer:
            await consumer.queue_and_wait("note", n=n, timeout=20)

    for n in range(3):
        asyncio.run(live(n))
    assert consumer.deps == [0, 1, 2]


async def test_a_start_that_failed_is_tried_again(broker_url: str) -> None:
    log: list[str] = []
    consumer = TaskConsumer(broker_url=broker_url, deps=[])
    consumer.register_task(note)
    consumer.add_async_context_manager(Resource("pool", log))
    consumer.add_async_context_manager(Resource("db", log, fails=1))
    with pytest.raises(ConnectionError, match="db is not up yet"):
        await consumer.startup()
    assert log == ["+pool", "-pool"]
    await consumer.startup()
    await consumer.queue_and_wait("note", n=1, timeout=20)
    await consumer.shutdown()
    assert log == ["+pool", "-pool", "+pool", "+db", "-db", "-pool"]


async def test_workers_that_are_added_while_a_group_starts() -> None:
    """Are started too; the group does not take them for ended."""
    ended = asyncio.Event()
    late = WorkerFunction(ended.wait, name="late")

    class Slow(WorkerFunction):
        async def startup(self) -> None:
            await super().startup()
            group.add_workers(late)

    group = Workers(Slow(ended.wait, name="first"))
    await group.startup()
    await until(late.is_running)
    assert group.is_running()
    ended.set()
    await within(group.shutdown())
