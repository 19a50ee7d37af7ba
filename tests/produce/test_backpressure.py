"""``max_queue_length``, ``max_queue_bytes``: who queues more than may wait is held, or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from kits.broker_kit import put, take
from kits.manager_kit import consuming, managing, take_runs, waiting
from kits.waiting import until, within

from fluidfast import TaskManager, TaskRun, task
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.core.states import TaskPriority
from fluidfast.errors import BufferedRunsLost, ConfigError, QueueFullError


@task
async def note(ctx: TaskRun) -> None:
    """Takes anything."""


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[TaskManager]:
    async with managing(url, note, **options) as manager:
        yield manager


def numbers(runs: list[TaskRun[Any, Any]]) -> list[int]:
    return [run.params["n"] for run in runs]


async def fill(manager: TaskManager, count: int) -> None:
    """Queue runs by another way, so that the manager has not seen them."""
    payload = manager.create_task_run(note, n=-1).queue_dump_json()
    await put(manager.broker, *[payload] * count)


Queue = Callable[[TaskManager, int], Any]


async def by_queue(manager: TaskManager, count: int) -> None:
    for n in range(count):
        await manager.queue(note, n=n)


async def by_queue_many(manager: TaskManager, count: int) -> None:
    await manager.queue_many(note, ({"n": n} for n in range(count)))


async def at_once(manager: TaskManager, count: int) -> None:
    results = await asyncio.gather(*(manager.queue(note, n=n) for n in range(count)), return_exceptions=True)
    for result in results:  # raised when all have ended, so that none works on behind the test's back
        if isinstance(result, BaseException):
            raise result


WAYS = pytest.mark.parametrize("queue", [by_queue, by_queue_many, at_once])
DELIVERIES = pytest.mark.parametrize("delivery", ["confirmed", "buffered"])


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="max_queue_length"):
        TaskManager(max_queue_length=0)
    with pytest.raises(ConfigError, match="max_queue_bytes"):
        TaskManager(max_queue_bytes=0)
    with pytest.raises(ConfigError, match="on_full"):
        TaskManager(max_queue_length=1, on_full="drop")


@WAYS
@DELIVERIES
async def test_up_to_the_limit(broker_url: str, queue: Queue, delivery: str) -> None:
    async with opened(broker_url, max_queue_length=100, on_full="raise", delivery=delivery) as manager:
        await queue(manager, 100)
        await manager.flush()
        assert numbers(await take_runs(manager)) == list(range(100))


@WAYS
@DELIVERIES
async def test_refused_above_the_limit(broker_url: str, queue: Queue, delivery: str) -> None:
    async with opened(broker_url, max_queue_length=100, on_full="raise", delivery=delivery) as manager:
        with pytest.raises(QueueFullError, match="max_queue_length is 100"):
            await queue(manager, 500)
        await manager.flush()
        length = await waiting(manager)
        assert 75 <= length <= 100
        if queue is by_queue:
            assert length == 100
        with pytest.raises(QueueFullError):
            await by_queue(manager, 26)
        await manager.flush()
        assert await waiting(manager) == 100
        # room again, as the server says
        await take(manager.broker, 50)
        for n in range(50):
            await manager.queue(note, n=n)
        await manager.flush()
        assert await waiting(manager) == 100


@WAYS
@DELIVERIES
async def test_held_until_consumers_drain(broker_url: str, queue: Queue, delivery: str) -> None:
    """All arrive, and never more than the limit wait."""
    async with opened(broker_url, max_queue_length=100, delivery=delivery) as manager:
        queueing = asyncio.create_task(queue(manager, 1000))
        taken: list[TaskRun[Any, Any]] = []
        async with asyncio.timeout(20):
            while len(taken) < 1000:
                assert await waiting(manager) <= 100
                payloads = await take(manager.broker, 30)
                taken += [manager.broker.codec.decode(payload, manager) for payload in payloads]
                await asyncio.sleep(0)
        await within(queueing)
        assert sorted(numbers(taken)) == list(range(1000))
        if queue is not at_once:
            assert numbers(taken) == list(range(1000))


@WAYS
async def test_a_backlog_that_was_there_before(broker_url: str, queue: Queue) -> None:
    """A producer that has just begun looks before it adds to it."""
    async with opened(broker_url, max_queue_length=100, on_full="raise") as manager:
        await fill(manager, 100)
        with pytest.raises(QueueFullError):
            await queue(manager, 300)
        assert await waiting(manager) == 100


async def test_held_for_so_long_only(broker_url: str) -> None:
    async with opened(broker_url, max_queue_length=10, full_timeout=0.1) as manager:
        await by_queue(manager, 10)
        begin = monotonic()
        with pytest.raises(QueueFullError, match="10 runs wait"):
            await within(manager.queue(note, n=10), 5)
        assert 0.1 <= monotonic() - begin < 2
        assert numbers(await take_runs(manager)) == list(range(10))
        await within(manager.queue(note, n=11), 5)


async def test_no_time_at_all(broker_url: str) -> None:
    async with opened(broker_url, max_queue_length=3, full_timeout=0) as manager:
        await by_queue(manager, 3)
        with pytest.raises(QueueFullError):
            await manager.queue(note, n=3)
        assert await waiting(manager) == 3


async def test_queue_many_says_how_far_it_came(broker_url: str) -> None:
    async with opened(broker_url, max_queue_length=2500, full_timeout=0.05) as manager:
        with pytest.raises(QueueFullError) as caught:
            await manager.queue_many(note, ({"n": n} for n in range(10_000)), return_ids=True)
        summary = caught.value.summary
        runs = await take_runs(manager)
        assert 1500 <= len(runs) <= 2500
        assert numbers(runs) == list(range(len(runs)))
        assert summary.queued == len(runs)
        assert summary.run_ids == [run.id for run in runs]


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_a_limit_below_a_batch(broker_url: str, limit: int) -> None:
    async with opened(broker_url, max_queue_length=limit) as manager:
        queueing = asyncio.create_task(by_queue_many(manager, 20))
        taken: list[TaskRun[Any, Any]] = []
        async with asyncio.timeout(20):
            while len(taken) < 20:
                assert await waiting(manager) <= limit
                payloads = await take(manager.broker)
                taken += [manager.broker.codec.decode(payload, manager) for payload in payloads]
                await asyncio.sleep(0)
        await within(queueing)
        assert numbers(taken) == list(range(20))


async def test_who_is_held_may_be_cancelled(broker_url: str) -> None:
    async with opened(broker_url, max_queue_length=5) as manager:
        await by_queue(manager, 5)
        held = asyncio.create_task(manager.queue(note, n=5))
        await asyncio.wait([held], timeout=0.05)
        assert not held.done()
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        await manager.flush()
        assert await waiting(manager) == 5


async def test_all_priorities_count(broker_url: str) -> None:
    async with opened(broker_url, max_queue_length=3, on_full="raise") as manager:
        for priority in ("low", "medium", "high"):
            await manager.queue(note, priority, n=1)
        with pytest.raises(QueueFullError):
            await manager.queue(note, "high", n=1)


async def test_a_look_costs_nothing_while_there_is_room(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the limit the server is asked once, at the start: afterwards its confirmations say how many wait."""
    async with opened(broker_url, max_queue_length=10_000) as manager:
        asked = 0
        ask = manager.broker.queue_length

        async def counted() -> dict[str, int]:
            nonlocal asked
            asked += 1
            return await ask()

        monkeypatch.setattr(manager.broker, "queue_length", counted)
        await by_queue(manager, 200)
        await by_queue_many(manager, 2000)
        assert asked <= 1


@pytest.mark.parametrize("on_full", ["raise", "block"])
async def test_queue_and_wait_is_within_it(broker_url: str, on_full: str) -> None:
    async with opened(broker_url, max_queue_length=3, on_full=on_full, full_timeout=0.05) as manager:
        await by_queue(manager, 3)
        with pytest.raises(QueueFullError):
            await manager.queue_and_wait(note, n=3, timeout=5)
        assert await waiting(manager) == 3


@pytest.mark.parametrize("on_full", ["raise", "block"])
async def test_sync_queue_keeps_what_has_no_room(
    broker_url: str, on_full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no caller to hold: the run waits in the process, and leaves it at the shutdown at the latest."""
    monkeypatch.setattr("fluidfast.manage.consumer.AGAIN_SECONDS", 0.05)
    options = {"max_queue_length": 3, "on_full": on_full, "consume_tasks": False, "max_concurrent_tasks": 0}
    async with opened(broker_url) as manager:
        async with consuming(broker_url, note, **options) as consumer:
            for n in range(4):
                consumer.sync_queue(consumer.create_task_run(note, n=n))
            await until(lambda: waiting(manager))
            for _ in range(10):
                assert await waiting(manager) <= 3
                await asyncio.sleep(0.02)
            assert len(await take(manager.broker, 1)) == 1
            await until(lambda: not consumer._sync_queue.queue_size())
            consumer.sync_queue(consumer.create_task_run(note, n=4))
        assert await waiting(manager) == 4


async def test_queue_and_wait_is_buffered(redis_url: str) -> None:
    """What the buffer lost is said at once, and not after the time that the run may take."""
    async with opened(redis_url, delivery="buffered") as manager:
        broker = manager.broker
        assert isinstance(broker, RedisTaskBroker)
        await broker.redis_cli.set(broker.task_queue_name(TaskPriority.medium), b"no list", ex=60)
        with pytest.raises(BufferedRunsLost):
            await within(manager.queue_and_wait(note, n=1, timeout=30), 5)


async def test_two_producers_and_a_consumer(broker_url: str) -> None:
    """Both are held while the consumer works, and nothing is lost or doubled."""
    seen: list[int] = []
    most = 0

    @task
    async def work(ctx: TaskRun) -> None:
        seen.append(ctx.params["n"])
        await asyncio.sleep(0)

    options: dict[str, Any] = {"max_queue_length": 200}
    async with managing(broker_url, work, **options) as one, managing(broker_url, work, **options) as two:
        producing = asyncio.gather(
            one.queue_many(work, ({"n": n} for n in range(0, 4000, 2))),
            two.queue_many(work, ({"n": n} for n in range(1, 4000, 2))),
        )
        await until(lambda: waiting(one))
        async with consuming(broker_url, work) as consumer:
            while not producing.done():
                most = max(most, await waiting(one))
                await asyncio.sleep(0.002)
            await producing
            await until(lambda: consumer.engine.finished == 4000)
        assert sorted(seen) == list(range(4000))
        assert most <= 400, "each sees the other's runs with its own confirmations"


# -- in bytes

LARGE = "x" * 10_000


async def queue_large(manager: TaskManager, count: int) -> None:
    for n in range(count):
        await manager.queue(note, n=n, text=LARGE)


async def fill_with_large(manager: TaskManager, count: int) -> None:
    await manager.queue_many(note, ({"n": n, "text": LARGE} for n in range(count)))


@DELIVERIES
async def test_bytes_refused_above_the_limit(broker_url: str, delivery: str) -> None:
    async with opened(broker_url, max_queue_bytes=1_000_000, on_full="raise", delivery=delivery) as manager:
        with pytest.raises(QueueFullError, match="max_queue_bytes is 1000000"):
            await queue_large(manager, 200)
        await manager.flush()
        assert 80 <= await waiting(manager) <= 100
        await take(manager.broker, 50)
        await queue_large(manager, 30)
        await manager.flush()


async def test_bytes_held_until_consumers_drain(broker_url: str) -> None:
    async with opened(broker_url, max_queue_bytes=500_000) as manager:
        queueing = asyncio.create_task(fill_with_large(manager, 300))
        taken = 0
        async with asyncio.timeout(20):
            while taken < 300:
                assert await waiting(manager) <= 55
                taken += len(await take(manager.broker, 10))
                await asyncio.sleep(0)
        await within(queueing)


async def test_bytes_held_for_so_long_only(broker_url: str) -> None:
    async with opened(broker_url, max_queue_bytes=300_000, full_timeout=0.1) as manager:
        begin = monotonic()
        with pytest.raises(QueueFullError) as caught:
            await within(fill_with_large(manager, 100), 5)
        assert 0.1 <= monotonic() - begin < 2
        assert 15 <= caught.value.summary.queued == await waiting(manager) <= 30


async def test_bytes_that_others_queued(redis_url: str) -> None:
    """Their size is what the server says, not what this producer's runs would take."""
    async with opened(redis_url) as other:
        await fill_with_large(other, 200)
        async with opened(redis_url, max_queue_bytes=1_000_000, on_full="raise") as manager:
            with pytest.raises(QueueFullError, match="200 runs wait"):
                await manager.queue(note, n=0)
        await other.broker.clear()


async def test_one_run_that_never_fits(broker_url: str) -> None:
    """It is refused at once, also by who would be held."""
    async with opened(broker_url, max_queue_bytes=1000) as manager:
        with pytest.raises(QueueFullError, match="more than max_queue_bytes"):
            await within(manager.queue(note, n=0, text=LARGE), 5)
        await manager.queue(note, n=0)


async def test_several_that_never_fit_together(broker_url: str) -> None:
    """They go when nothing else waits."""
    async with opened(broker_url, max_queue_bytes=12_000, full_timeout=0.1) as manager:
        gate = manager.intake.backpressure
        await within(gate.admit(3, 30_000), 5)
        await manager.queue(note, n=0)
        with pytest.raises(QueueFullError):
            await within(gate.admit(3, 30_000), 5)
