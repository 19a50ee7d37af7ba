"""The harness in this process: draining, assertions, eager mode, isolation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, TaskScheduler, task
from fluidfast.errors import TaskUsageError, UnknownTaskError
from fluidfast.testing import Harness, isolated


@dataclass
class Mail:
    to: str
    copies: int = 1


class Order(BaseModel):
    number: int
    note: str = ""


@task
async def send(ctx: TaskRun[Mail]) -> None:
    ctx.deps.sent.append(ctx.params.to)


@task
async def place(ctx: TaskRun[Order]) -> None:
    await ctx.queue(send, to=f"order-{ctx.params.number}")


@task
async def fail(ctx: TaskRun) -> None:
    raise LookupError("no such customer")


@task(retry=RetryPolicy(max_attempts=3, wait=60))
async def flaky(ctx: TaskRun) -> None:
    ctx.deps.sent.append(f"attempt {ctx.retry_attempt}")
    if ctx.retry_attempt < 2:
        raise ConnectionError("try again")


@task
async def endless(ctx: TaskRun) -> None:
    await ctx.queue(endless)


TASKS = (send, place, fail, flaky, endless)


def manager_of(kind: type[TaskManager] = TaskManager, **options: Any) -> TaskManager:
    manager = kind(broker_url="redis://127.0.0.1:1", **options)  # nobody is there
    manager.deps.sent = []
    for each in TASKS:
        manager.register_task(each)
    return manager


@pytest.fixture(params=[TaskManager, TaskConsumer, TaskScheduler], ids=lambda kind: kind.__name__)
def manager(request: pytest.FixtureRequest) -> TaskManager:
    return manager_of(request.param)


@pytest.fixture
def consumer(manager: TaskManager) -> Iterator[Harness]:
    with isolated(manager) as harness:
        yield harness


async def test_drain_executes_what_is_queued_and_what_that_queues(manager: TaskManager, consumer: Harness) -> None:
    await manager.queue(place, number=7)
    await manager.queue(send, to="grace")
    await manager.queue_many(send, ({"to": str(n)} for n in range(3)))
    ended = await consumer.drain()
    assert manager.deps.sent == ["grace", "0", "1", "2", "order-7"]
    assert [run.name for run in ended] == ["place", "send", "send", "send", "send", "send"]
    assert ended.states == {"success": 6}
    assert ended.raise_failed() is ended
    assert await consumer.drain() == []
    assert len(consumer.ended) == 6


async def test_drain_keeps_exceptions(manager: TaskManager, consumer: Harness) -> None:
    run = await manager.queue(fail)
    await manager.queue(send, to="grace")
    ended = await consumer.drain()
    assert ended.states == {"failure": 1, "success": 1}
    assert isinstance(ended.errors[run.id], LookupError)
    with pytest.raises(LookupError, match="no such customer"):
        ended.raise_failed()
    assert [entry.reason[:11] for entry in await manager.dead.list()] == ["LookupError"]


async def test_queued_and_assert_queued(manager: TaskManager, consumer: Harness) -> None:
    await manager.queue(send, to="grace", copies=2)
    await manager.queue(place, "high", number=7)
    await manager.queue(send, to="ada")
    assert consumer.queued(send) == [{"to": "grace", "copies": 2}, {"to": "ada", "copies": 1}]
    assert consumer.queued("place") == [{"number": 7, "note": ""}]
    assert consumer.queued(fail) == []
    assert [run.name for run in consumer.queued_runs()] == ["place", "send", "send"]
    assert consumer.assert_queued(send).params == Mail("grace", 2)
    assert consumer.assert_queued("send", to="ada").params == Mail("ada", 1)
    with pytest.raises(AssertionError) as caught:
        consumer.assert_queued(send, to="ada", copies=2)
    assert str(caught.value) == (
        "send(to='ada', copies=2, ...) is not queued. Queued are:\n"
        "  place(number=7, note='')\n"
        "  send(to='grace', copies=2)\n"
        "  send(to='ada', copies=1)"
    )
    assert consumer.queued(send) == [{"to": "grace", "copies": 2}, {"to": "ada", "copies": 1}]  # a look changes nothing
    await consumer.drain()
    with pytest.raises(AssertionError, match=r"Nothing is queued\.\n3 runs of send have been executed"):
        consumer.assert_queued(send, to="ada")


async def test_assertions_refuse_names_that_do_not_exist(consumer: Harness) -> None:
    with pytest.raises(TaskUsageError, match="task send has no param 'too'; it has: copies, to"):
        consumer.assert_queued(send, too="ada")
    with pytest.raises(UnknownTaskError, match="'sent'"):
        consumer.assert_queued("sent")
    with pytest.raises(UnknownTaskError, match="'sent'"):
        consumer.queued("sent")


async def test_a_task_without_a_model_has_any_params(manager: TaskManager, consumer: Harness) -> None:
    await manager.queue(fail, params={"task": "x", "self": 1})
    assert consumer.queued(fail) == [{"task": "x", "self": 1}]
    consumer.assert_queued(fail, task="x")
    with pytest.raises(AssertionError):
        consumer.assert_queued(fail, other=None)


async def test_retries_wait_until_the_clock_moves(manager: TaskManager, consumer: Harness) -> None:
    await manager.queue(flaky)
    assert (await consumer.drain()).states == {"failure": 1}
    (run,) = consumer.queued_runs(flaky)
    assert run.retry_attempt == 1
    assert run.execute_after is not None
    assert timedelta(seconds=55) < run.execute_after - consumer.now < timedelta(seconds=60)
    assert await consumer.drain() == []
    with pytest.raises(AssertionError, match=r"  flaky\(\)  due in (59|60)\.\d s"):
        consumer.assert_queued(send)
    await consumer.travel(61)
    assert (await consumer.drain()).states == {"failure": 1}
    assert (await consumer.drain(delayed=True)).states == {"success": 1}
    assert manager.deps.sent == ["attempt 0", "attempt 1", "attempt 2"]
    assert consumer.queued_runs() == []


async def test_drain_of_delayed_runs_goes_through_all_retries(manager: TaskManager, consumer: Harness) -> None:
    await manager.queue(flaky)
    assert (await consumer.drain(delayed=True)).states == {"failure": 2, "success": 1}


async def test_a_task_that_queues_itself_ends_the_drain(manager: TaskManager, consumer: Harness) -> None:
    await manager.queue(endless)
    with pytest.raises(TaskUsageError, match=r"executed 50 runs and more are queued: endless \(50\)"):
        await consumer.drain(limit=50)
    await manager.broker.clear_queue()
    await manager.queue(send, to="grace")
    assert (await consumer.drain(limit=1)).states == {"success": 1}


async def test_drain_within_a_task_is_refused(manager: TaskManager, consumer: Harness) -> None:
    @task
    async def drains(ctx: TaskRun) -> None:
        await consumer.drain()

    await manager.queue(drains)
    with pytest.raises(TaskUsageError, match=r"drain\(\) was called by a task"):
        (await consumer.drain()).raise_failed()


async def test_runs_start_one_after_the_other(manager: TaskManager, consumer: Harness) -> None:
    running = most = 0

    @task
    async def counted(ctx: TaskRun) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    await manager.queue_many(counted, ({} for _ in range(6)))
    await consumer.drain()
    assert most == 1
    consumer.concurrency = 3
    await manager.queue_many(counted, ({} for _ in range(6)))
    assert (await consumer.drain()).states == {"success": 6}
    assert most == 3


async def test_eager(manager: TaskManager, consumer: Harness) -> None:
    with consumer.eager():
        await manager.queue(place, number=7)
        assert manager.deps.sent == ["order-7"]
        await manager.queue_many(send, ({"to": str(n)} for n in range(3)))
        assert manager.deps.sent == ["order-7", "0", "1", "2"]
        await manager.queue(fail)
        run = await manager.queue_and_wait(send, to="ada")
        assert run.state == "success"
    assert consumer.ended.states == {"success": 6, "failure": 1}
    await manager.queue(send, to="grace")
    consumer.assert_queued(send, to="grace")
    with consumer.eager(raise_failed=True), pytest.raises(LookupError):
        await manager.queue(fail)


async def test_a_consumer_in_the_background(manager: TaskManager, consumer: Harness) -> None:
    async with consumer:
        run = await manager.queue_and_wait(send, to="ada", timeout=10)
        assert run.state == "success"
        await manager.queue(place, number=1)
        assert (await consumer.drain()).states == {"success": 2}


async def test_a_disabled_task_and_an_unknown_one_leave_nothing(manager: TaskManager, consumer: Harness) -> None:
    await manager.queue(send, to="grace")
    await manager.queue(fail)
    await manager.broker.enable_task("send", enable=False)
    del manager.registry["fail"]
    assert [run.name for run in consumer.queued_runs()] == ["send"]
    assert (await consumer.drain()).states == {"aborted": 1}
    assert consumer.queued_runs() == []


async def test_plain_functions_batches_timeouts_and_limits(manager: TaskManager, consumer: Harness) -> None:
    @task
    def plain(ctx: TaskRun) -> None:
        ctx.deps.sent.append("plain")

    @task(batch=10, batch_wait=0.01)
    async def rows(runs: list[TaskRun]) -> None:
        runs[0].deps.sent.append(len(runs))

    @task(timeout_seconds=0.01)
    async def slow(ctx: TaskRun) -> None:
        await asyncio.Event().wait()

    @task(max_concurrency=1)
    async def limited(ctx: TaskRun) -> None:
        await asyncio.sleep(0)

    await manager.queue(plain)
    await manager.queue_many(rows, ({} for _ in range(3)))
    await manager.queue(slow)
    await manager.queue_many(limited, ({} for _ in range(3)))
    ended = await consumer.drain()
    assert ended.states == {"success": 7, "failure": 1}
    assert manager.deps.sent[0] == "plain"
    assert sum(manager.deps.sent[1:]) == 3
    with pytest.raises(RuntimeError, match="slow"):
        ended.raise_failed()


async def test_contexts_are_open_while_runs_are_executed(manager: TaskManager) -> None:
    opened: list[str] = []

    class Pool:
        async def __aenter__(self) -> None:
            opened.append("open")

        async def __aexit__(self, *exc_info: object) -> None:
            opened.append("closed")

    @task
    async def uses(ctx: TaskRun) -> None:
        opened.append("used")

    manager.add_async_context_manager(Pool())
    with isolated(manager) as consumer:
        for _ in range(2):
            await manager.queue(uses)
            await consumer.drain()
        assert opened == ["open", "used", "closed"] * 2
        opened.clear()
        async with manager._without_consuming():  # as an application that has started it
            await manager.queue(uses)
            await consumer.drain()
            assert opened == ["open", "used"]
        assert opened == ["open", "used", "closed"]


async def test_a_context_that_fails_is_raised(manager: TaskManager) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    manager.add_async_context_manager(broken())
    with isolated(manager) as consumer:
        await manager.queue(send, to="grace")
        with pytest.raises(OSError, match="no database"):
            await consumer.drain()
        consumer.assert_queued(send, to="grace")


async def test_handlers_are_called_and_those_of_the_test_are_gone_after_it(manager: TaskManager) -> None:
    told: list[str] = []

    async def tell_async(run: TaskRun) -> None:
        told.append(f"async {run.name}")

    manager.dispatcher.register_handler("success.mine", lambda run: told.append(f"mine {run.name}"))
    manager.register_async_handler("success", tell_async)
    for _ in range(2):
        told.clear()
        with isolated(manager) as consumer:
            manager.dispatcher.register_handler("success.its-own", lambda run: told.append("its own"))
            await manager.queue(send, to="grace")
            await consumer.drain()
            assert sorted(told) == ["async send", "its own", "mine send"]
        assert [str(event.tag) for event, _ in manager.dispatcher.registered() if event.tag == "its-own"] == []
    assert manager.hooks.running == ()


def test_the_manager_is_as_before(manager: TaskManager) -> None:
    before = dict(manager.registry)
    broker, producer_of = manager.broker, lambda: manager._producer.broker
    with isolated(manager) as consumer:

        @task
        async def local(ctx: TaskRun) -> None: ...

        manager.register_task(local)
        assert manager.broker is consumer.broker is producer_of()
        assert "redis" not in str(manager.broker.url)
    assert manager.broker is broker is producer_of()
    assert manager.registry == before
    if isinstance(manager, TaskConsumer):
        assert manager.engine.broker is broker
        assert [worker for worker in manager.workers() if worker is manager.engine]


def test_a_task_of_a_module_that_is_imported_within_a_test_stays() -> None:
    manager = TaskManager(broker_url="memory://")
    with isolated(manager):
        manager.register_task(send)
    assert list(manager.registry) == ["send"]


def test_each_has_a_broker_of_its_own(manager: TaskManager) -> None:
    with isolated(manager):
        manager.sync.queue(send, to="grace")
    with isolated(manager) as consumer:
        assert consumer.queued_runs() == []


async def test_a_manager_in_use_is_refused(redis_url: str) -> None:
    async with TaskConsumer(broker_url="memory://in-use") as running:
        with pytest.raises(TaskUsageError, match="TaskConsumer is in use in a running event loop"), isolated(running):
            pass
    manager = TaskManager(broker_url=redis_url)
    await manager.queue(send, to="grace")
    with pytest.raises(TaskUsageError, match="TaskManager is in use in a running event loop"), isolated(manager):
        pass
    await manager.broker.clear()
    await manager.on_shutdown()
    with pytest.raises(TaskUsageError, match="takes a TaskManager, not a str"), isolated("x"):  # type: ignore[arg-type]
        pass


def test_sync(manager: TaskManager, consumer: Harness) -> None:
    manager.sync.queue(place, number=7)
    consumer.assert_queued(place, number=7)
    assert consumer.sync.drain().states == {"success": 2}
    manager.sync.queue(flaky)
    consumer.sync.drain()
    consumer.sync.travel(61)
    assert consumer.sync.drain(delayed=True).states == {"failure": 1, "success": 1}
    with consumer.eager():
        manager.sync.queue(send, to="ada")
        assert manager.sync.queue_and_wait(send, to="grace").state == "success"
    assert manager.deps.sent[-2:] == ["ada", "grace"]


async def test_sync_within_an_event_loop_is_refused(consumer: Harness) -> None:
    with pytest.raises(TaskUsageError, match=r"await fluidfast_consumer.drain\(\)"):
        consumer.sync.drain()


async def test_a_new_manager_without_a_name() -> None:
    with isolated() as consumer:
        consumer.manager.deps.sent = []
        await consumer.manager.queue(send, to="grace")
        assert (await consumer.drain()).states == {"success": 1}


async def test_a_consumer_made_of_a_manager_can_start_again() -> None:
    manager = manager_of()
    with isolated(manager):
        consumer = TaskConsumer.of(manager)
        for _ in range(2):
            async with consumer:
                run = await manager.queue_and_wait(send, to="grace", timeout=10)
                assert run.state == "success"


bound = TaskManager(broker_url="redis://127.0.0.1:1")


@bound.task
async def greet(name: str, times: int = 1) -> None:
    bound.deps.greeted.append(name)


urgent = greet.options(priority="high")  # it exists before the test does


async def test_bound_tasks_follow_their_manager() -> None:
    bound.deps.greeted = []
    for _ in range(2):
        with isolated(bound) as consumer:
            consumer.set_now(datetime(2030, 1, 1, tzinfo=UTC))
            await greet.queue("grace")
            await urgent.queue("ada")
            at = greet.options(at=datetime(2030, 1, 1, 1, tzinfo=UTC))
            await at.queue("late")
            await at.queue_many([{"name": "later"}])
            assert consumer.queued(greet) == [{"name": name, "times": 1} for name in ("ada", "grace", "late", "later")]
            assert consumer.assert_queued(greet, name="ada").priority == "high"
            with pytest.raises(TaskUsageError, match="has no param 'nam'; it has: name, times"):
                consumer.assert_queued(greet, nam="ada")
            assert (await consumer.drain()).states == {"success": 2}
            await consumer.travel(3601)
            assert (await consumer.drain()).states == {"success": 2}
            with consumer.eager():
                await urgent.queue("eager")
        assert bound.deps.greeted == ["ada", "grace", "late", "later", "eager"]
        bound.deps.greeted.clear()
    assert bound.intake.hooks is bound.hooks
    assert bound.hooks.queueing == ()
