"""``max_concurrency`` counts runs, also several of one id."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Any

import pytest
from kits.broker_kit import with_options
from kits.consumer_kit import Notes, empty, gated, told
from kits.waiting import until, within

from fluidfast import RetryPolicy, TaskConsumer, TaskRun, task
from fluidfast.brokers.base import TaskBroker
from fluidfast.checks import CENTURY
from fluidfast.manage.waiter import TaskRunWaiter

limited = gated._replace(max_concurrency=1)


@task(max_concurrency=2, rate_limit_retry=RetryPolicy(wait=0.02))
async def pair(ctx: TaskRun[Any, Notes]) -> None:
    ctx.deps.enter()
    await asyncio.sleep(0.01)
    ctx.deps.leave()
    ctx.deps.done.append(ctx.id)


def consuming(url: str, notes: Notes, **options: Any) -> TaskConsumer:
    consumer = TaskConsumer(broker_url=url, deps=notes, max_concurrent_tasks=5, **options)
    for one in (pair, limited):
        consumer.register_task(one)
    return consumer


@pytest.mark.parametrize("fleet", ["own", "mixed"])
async def test_runs_of_one_id_count_one_by_one(broker_url: str, no_leaked_keys: Any, fleet: str) -> None:
    no_leaked_keys.allow("*-tasks-*")
    notes = Notes()
    url = with_options(broker_url, fleet=fleet)
    one, two = consuming(url, notes), consuming(url, notes)
    await one.startup()
    await two.startup()
    for n in range(6):
        await one.queue("pair", run_id="same" if n % 2 else f"other-{n}")
    await until(lambda: len(notes.done) == 6)
    assert notes.most <= 2
    await until(lambda: empty(one))
    assert await one.broker.current_task_runs("pair") == 0
    await within(one.shutdown())
    await within(two.shutdown())


async def test_a_second_run_of_an_id_waits_for_the_first(broker_url: str, no_leaked_keys: Any) -> None:
    """It cannot be told from the same run, given back by a worker whose slot is held still: so it is not refused."""
    no_leaked_keys.allow("*-tasks-*")
    notes = Notes()
    consumer = consuming(broker_url, notes)
    events = told(consumer)
    await consumer.startup()
    await consumer.queue("gated", run_id="same", n=0)
    await until(lambda: notes.started)
    await consumer.queue("gated", run_id="same", n=1)
    await consumer.queue("gated", run_id="other", n=2)
    await until(lambda: ("gated", "rate_limited") in events)  # the other one
    assert notes.started == [0]
    notes.gate.set()
    await until(lambda: notes.done == [0, 1])
    assert notes.most == 1
    assert events.count(("gated", "rate_limited")) == 1
    await until(lambda: empty(consumer))
    await within(consumer.shutdown())


async def test_the_slots_of_one_id_are_freed_one_by_one(broker_url: str, no_leaked_keys: Any) -> None:
    broker = TaskBroker.from_url(broker_url)
    two = limited._replace(max_concurrency=2)
    slots = ["batch:m1 a run's id", "batch:m2 a run's id", "batch:m3 a run's id", "batch:m4 another"]
    assert [await broker.acquire(two, slot) for slot in slots] == [True, True, None, False]
    await broker.free([("gated", slots[0])])
    assert await broker.current_task_runs("gated") == 1
    assert [await broker.acquire(two, slot) for slot in (slots[3], slots[0])] == [True, None]
    await broker.free([("gated", slot) for slot in slots])
    assert await broker.current_task_runs("gated") == 0
    await broker.close()


async def test_in_a_mixed_fleet_an_id_runs_once_at_a_time(redis_url: str, no_leaked_keys: None) -> None:
    """aio-fluid counts keys that are named by the run's id: a second run of one id would count for nothing there."""
    broker = TaskBroker.from_url(with_options(redis_url, fleet="mixed"))
    two = limited._replace(max_concurrency=2)
    assert await broker.acquire(two, "batch:m1 same")
    assert await broker.acquire(two, "batch:m1 same")  # its answer was lost
    assert await broker.acquire(two, "batch:m2 same") is None
    key = f"{broker.prefix}-task-run-gated-same"  # type: ignore[attr-defined]
    client = broker.redis_cli  # type: ignore[attr-defined]
    assert await client.get(key) == b"same"
    await broker.renew("a", (), [("gated", "batch:m1 same")])
    assert 0 < await client.pttl(key) <= 30_000  # seen for as long as it is renewed
    await broker.free([("gated", "batch:m2 same")])  # which has none
    assert await client.exists(key)
    await broker.free([("gated", "batch:m1 same")])
    assert not await client.exists(key)
    assert await broker.acquire(two, "batch:m2 same")
    await broker.free([("gated", "batch:m2 same")])
    await broker.deregister("a")
    await broker.close()


@pytest.mark.parametrize("seconds", [math.inf, CENTURY])
async def test_a_run_may_take_for_ever(broker_url: str, no_leaked_keys: Any, seconds: float) -> None:
    """Every place that a timeout goes to takes such a one: timers, the server's expiry, who waits for the run."""
    no_leaked_keys.allow("*-tasks-*")
    ran: list[str] = []

    @task(name="loop", timeout_seconds=seconds, max_concurrency=1)
    async def in_loop(ctx: TaskRun[Any, Notes]) -> None:
        ran.append(ctx.name)

    @task(name="thread", timeout_seconds=seconds, max_concurrency=1)
    def in_thread(ctx: TaskRun[Any, Notes]) -> None:
        ran.append(ctx.name)

    @task(name="batch", timeout_seconds=seconds, batch=2, batch_wait=0.01)
    def in_batch(runs: list[TaskRun[Any, Notes]]) -> None:
        ran.append(runs[0].name)

    for fleet in ("own", "mixed"):
        consumer = TaskConsumer(broker_url=with_options(broker_url, fleet=fleet))
        waiter = TaskRunWaiter(consumer)
        for one in (in_loop, in_thread, in_batch):
            consumer.register_task(one)
        with waiter:
            await consumer.startup()
            for name in ("loop", "thread", "batch"):
                run = await within(consumer.queue_and_wait(name))
                assert str(run.state) == "success"
                assert str((await within(waiter.wait(await consumer.queue(name)))).state) == "success"
                assert str((await within(consumer.execute(name))).state) == "success"
            await within(consumer.shutdown())
    assert Counter(ran) == {"loop": 6, "thread": 6, "batch": 6}


async def test_the_slot_of_a_run_whose_lease_was_lost_is_free(broker_url: str, no_leaked_keys: Any) -> None:
    """The next consumer of the run does not wait for it to expire."""
    no_leaked_keys.allow("*-tasks-*")
    notes = Notes()
    url = with_options(broker_url, lease_seconds=5)
    consumer = consuming(url, notes)
    await consumer.startup()
    await consumer.queue("gated", n=1)
    await until(lambda: notes.running == 1)
    lease = next(iter(consumer.engine.settler.leases.values()))
    consumer.engine.timeouts.lose(lease, "by this test")
    await until(lambda: notes.running == 0)

    async def free() -> bool:
        return await consumer.broker.current_task_runs("gated") == 0

    await until(free, seconds=3)
    await consumer.broker.release(lease.batch, ["m1"])
    notes.gate.set()
    await until(lambda: notes.done == [1])
    await until(lambda: empty(consumer))
    await within(consumer.shutdown())
