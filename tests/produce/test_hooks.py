"""Hooks around queueing: called for each run, whichever way it comes; free for a manager that has none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from kits.command_kit import run as run_command

from fluidfast import TaskConsumer, TaskManager, TaskRun, TaskScheduler, every, task
from fluidfast.core.hooks import Go
from fluidfast.errors import TaskUsageError
from fluidfast.http import task_manager_fastapi
from fluidfast.manage.firing import ScheduleTasks


@task
async def note(ctx: TaskRun) -> None: ...


@task(schedule=every(timedelta(hours=1)))
async def hourly(ctx: TaskRun) -> None: ...


class Seen:
    """A hook that notes the runs that it sees, before and after; it refuses those with ``n`` of 13."""

    def __init__(self) -> None:
        self.before: list[Any] = []
        self.after: list[Any] = []

    async def __call__(self, run: TaskRun, go: Go) -> None:
        self.before.append(run.params.get("n", run.name))
        if run.params.get("n") == 13:
            raise PermissionError("not this one")
        await go()
        self.after.append(run.params.get("n", run.name))


async def waiting(manager: TaskManager) -> int:
    return sum((await manager.broker.queue_length()).values())


@pytest.fixture
async def manager(broker_url: str) -> AsyncIterator[TaskManager]:
    async with TaskManager(broker_url=broker_url) as manager:
        manager.register_task(note)
        yield manager
        await manager.broker.clear_queue()


@pytest.fixture
def seen(manager: TaskManager) -> Seen:
    hook = Seen()
    manager.hooks.around_queueing(hook)
    return hook


async def test_a_run_that_is_queued(manager: TaskManager, seen: Seen) -> None:
    run = await manager.queue("note", n=1)
    assert run.state == "queued"
    assert (seen.before, seen.after) == ([1], [1])
    assert await waiting(manager) == 1


async def test_a_hook_refuses_by_raising(manager: TaskManager, seen: Seen) -> None:
    told: list[str] = []
    manager.dispatcher.register_handler("init", lambda run: told.append(run.id))
    with pytest.raises(PermissionError):
        await manager.queue("note", n=13)
    assert (seen.after, told, await waiting(manager)) == ([], [], 0)


async def test_the_first_hook_is_outermost(manager: TaskManager) -> None:
    order: list[str] = []

    def hook(name: str) -> Any:
        async def around(run: TaskRun, go: Go) -> None:
            order.append(name)
            await go()
            order.append(f"/{name}")

        return around

    manager.hooks.around_queueing(hook("a"))
    manager.hooks.around_queueing(hook("b"))
    await manager.queue("note")
    assert order == ["a", "b", "/b", "/a"]


@pytest.mark.parametrize("kind", [list, iter])
async def test_runs_that_are_queued_in_bulk(manager: TaskManager, seen: Seen, kind: Any) -> None:
    shown: list[int] = []
    summary = await manager.queue_many(
        "note", kind([{"n": n} for n in range(10)]), return_ids=True, progress=lambda one: shown.append(one.queued)
    )
    assert sorted(seen.after) == list(range(10))
    assert (summary.queued, len(set(summary.run_ids or ())), shown[-1]) == (10, 10, 10)
    assert await waiting(manager) == 10


async def test_bulk_stops_at_a_run_that_is_refused(manager: TaskManager, seen: Seen) -> None:
    with pytest.raises(PermissionError) as caught:
        await manager.queue_many("note", [{"n": n} for n in (1, 13, 2)])
    assert caught.value.summary.queued == 2  # type: ignore[attr-defined]  # they are sent together
    assert await waiting(manager) == 2


async def test_the_sum_of_a_bulk_counts_what_was_queued(manager: TaskManager, seen: Seen) -> None:
    told: list[Any] = []
    manager.dispatcher.register_handler("queued", lambda run: told.append(run.params["n"]))
    with pytest.raises(PermissionError) as caught:
        await manager.queue_many("note", [{"n": n} for n in (1, 13, 22)], return_ids=True)
    summary = caught.value.summary  # type: ignore[attr-defined]
    payloads = [item.payload for item in (await manager.broker.claim("c", 10)).items]
    assert (summary.queued, summary.bytes, told) == (2, sum(map(len, payloads)), [1, 22])
    assert {manager.broker.codec.decode(payload, manager).id for payload in payloads} == set(summary.run_ids)


@pytest.mark.parametrize("way", ["one", "bulk", "file", "schedule"])
async def test_a_hook_may_change_the_run(manager: TaskManager, way: str) -> None:
    """Such as by what a trace needs to go on in the consumer."""

    async def mark(run: TaskRun, go: Go) -> None:
        run.extra = {"mark": b"7"}
        await go()

    manager.hooks.around_queueing(mark)
    if way == "one":
        await manager.queue("note", n=1)
    elif way == "bulk":
        await manager.queue_many("note", [{"n": 1}])
    else:
        run = manager.create_task_run("note", n=1)
        if way == "file":
            await manager.intake.post(run, manager.intake.write(run))
        else:
            made = run.model_copy()
            manager.broker.codec.submit(run)

            async def push(payload: bytes) -> bool:
                return await manager.broker.push_once("key", 10, run.prio, payload)

            await manager.intake.send_once(made, run, push)
    [item] = (await manager.broker.claim("c", 10)).items
    assert manager.broker.codec.decode(item.payload, manager).extra == {"mark": b"7"}


async def test_a_hook_has_to_go_on_once(manager: TaskManager) -> None:
    async def forgets(run: TaskRun, go: Go) -> None: ...

    manager.hooks.around_queueing(forgets)
    with pytest.raises(TaskUsageError, match="without go"):
        await manager.queue("note")
    assert await waiting(manager) == 0


async def test_a_hook_that_goes_on_twice_queues_one(manager: TaskManager) -> None:
    async def twice(run: TaskRun, go: Go) -> None:
        await go()
        await go()

    manager.hooks.around_queueing(twice)
    with pytest.raises(TaskUsageError, match="twice"):
        await manager.queue("note")
    assert await waiting(manager) == 1


async def test_runs_from_code_without_an_event_loop(manager: TaskManager, seen: Seen) -> None:
    await asyncio.to_thread(manager.sync.queue, "note", n=1)
    await asyncio.to_thread(manager.sync.queue_many, "note", [{"n": 2}])
    await asyncio.to_thread(manager.sync.close)
    assert seen.after == [1, 2]


async def test_a_run_that_is_waited_for_and_one_of_sync_queue(broker_url: str) -> None:
    hook = Seen()
    consumer = TaskConsumer(broker_url=broker_url)
    consumer.register_task(note)
    consumer.hooks.around_queueing(hook)
    async with consumer:
        await consumer.queue_and_wait("note", n=1, timeout=20)
        consumer.sync_queue("note")
    assert hook.after == [1, "note"]
    async with TaskManager(broker_url=broker_url) as other:
        await other.broker.clear_queue()


async def test_a_run_of_a_schedule(broker_url: str) -> None:
    hook = Seen()
    async with TaskManager(broker_url=broker_url):  # memory:// lives as long as somebody holds it
        scheduler = TaskScheduler(broker_url=broker_url, consume_tasks=False)
        scheduler.register_task(hourly)
        scheduler.hooks.around_queueing(hook)
        clock = ScheduleTasks(scheduler)
        clock.look(datetime.now(UTC))
        await clock.fire()
        assert hook.after == ["hourly"]
        assert await waiting(scheduler) == 1
        await scheduler.broker.clear_queue()
        await scheduler.broker.close()


@pytest.fixture
async def clock(broker_url: str) -> AsyncIterator[ScheduleTasks]:
    async with TaskManager(broker_url=broker_url):  # memory:// lives as long as somebody holds it
        scheduler = TaskScheduler(broker_url=broker_url, consume_tasks=False)
        scheduler.register_task(hourly)
        clock = ScheduleTasks(scheduler)
        clock.look(datetime.now(UTC))
        yield clock
        await scheduler.broker.clear_queue()
        await scheduler.broker.close()


@pytest.mark.parametrize("way", ["one", "schedule"])
async def test_events_are_fired_within_the_hook(clock: ScheduleTasks, way: str) -> None:
    order: list[str] = []
    manager = clock.task_manager

    async def hook(run: TaskRun, go: Go) -> None:
        order.append("before")
        await go()
        order.append("after")

    manager.hooks.around_queueing(hook)
    for state in ("init", "queued"):
        manager.dispatcher.register_handler(state, lambda run: order.append(run.state))
    await (manager.queue("hourly") if way == "one" else clock.fire())
    assert order == ["before", "init", "queued", "after"]


@pytest.mark.parametrize("late", [False, True])
async def test_a_schedule_survives_a_hook_that_fails(
    clock: ScheduleTasks, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    manager = clock.task_manager

    async def cancelled(run: TaskRun, go: Go) -> None:
        if late:
            await go()
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    manager.hooks.around_queueing(cancelled)
    manager.dispatcher.register_handler("queued", lambda run: told.append(run.name))
    await clock.fire()
    await clock.fire()
    assert (clock.fired, told, await waiting(manager)) == (late, ["hourly"] * late, late)
    assert caplog.text.count("a hook around queueing task hourly failed") == 1


async def test_a_hook_that_is_cancelled_with_its_caller(manager: TaskManager) -> None:
    entered = asyncio.Event()

    async def slow(run: TaskRun, go: Go) -> None:
        entered.set()
        await asyncio.sleep(60)
        await go()

    manager.hooks.around_queueing(slow)
    caller = asyncio.ensure_future(manager.queue("note"))
    await entered.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


@pytest.mark.parametrize("error", [TimeoutError, asyncio.CancelledError, ValueError])
async def test_sync_queue_gives_up_a_run_that_a_hook_refuses(
    broker_url: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    async def refuses(run: TaskRun, go: Go) -> None:
        seen.append(run.name)
        if len(seen) == 1:
            raise error
        await go()

    consumer = TaskConsumer(broker_url=broker_url)
    consumer.register_task(note)
    consumer.hooks.around_queueing(refuses)
    async with consumer:
        consumer.sync_queue("note")
        consumer.sync_queue(consumer.create_task_run("note", run_id="second"))
    assert seen == ["note", "note"]
    assert caplog.text.count("sync_queue('note') failed") == 1


async def test_a_run_over_http(manager: TaskManager, seen: Seen) -> None:
    app = task_manager_fastapi(manager, insecure=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/tasks/note", json={"n": 1})
    assert answer.status_code == 200
    assert seen.after == [1]


def test_a_run_of_the_command_line(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "app.py").write_text(
        f"""
from fluidfast import TaskManager, TaskRun, task

@task
async def note(ctx: TaskRun) -> None: ...

manager = TaskManager(broker_url={redis_url!r})
manager.register_task(note)

async def around(run, go):
    print("around", run.params["n"], flush=True)
    await go()

manager.hooks.around_queueing(around)
"""
    )
    (tmp_path / "lines").write_text('{"n": 1}\n{"n": 2}\n')
    done = run_command("queue", "app:manager", "note", "--from", "lines", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["around 1", "around 2"]

    async def clear() -> int:
        async with TaskManager(broker_url=redis_url) as manager:
            return sum((await manager.broker.clear_queue()).values())

    assert asyncio.run(clear()) == 2


async def test_hooks_of_a_plain_manager_come_to_its_consumer(broker_url: str) -> None:
    first, later = Seen(), Seen()
    manager = TaskManager(broker_url=broker_url)
    manager.register_task(note)
    manager.hooks.around_queueing(first)
    consumer = TaskConsumer.of(manager)
    manager.hooks.around_queueing(later)
    async with consumer:
        await consumer.queue_and_wait("note", n=1, timeout=20)
        await manager.queue("note", n=2)
    assert first.after == later.after == [1, 2]


async def test_the_last_async_handler_may_queue_with_the_plain_manager(broker_url: str) -> None:
    """It runs while the consumer shuts down, and what it queues is sent before the manager is closed."""
    manager = TaskManager(broker_url=broker_url, delivery="buffered")
    manager.register_task(note)
    ended, shutting = asyncio.Event(), asyncio.Event()

    async def queues_another(run: TaskRun) -> None:
        ended.set()
        await shutting.wait()
        await manager.queue("note", n=2)

    manager.register_async_handler("success", queues_another)
    consumer = TaskConsumer.of(manager)
    async with TaskManager(broker_url=broker_url) as other:  # memory:// lives as long as somebody holds it
        async with consumer:
            await manager.queue("note", n=1)
            await ended.wait()
            asyncio.get_running_loop().call_later(0.3, shutting.set)
        assert await waiting(other) == 1
        await other.broker.clear_queue()


async def test_handlers_come_and_go_and_the_hook_stays(manager: TaskManager, seen: Seen) -> None:
    manager.dispatcher.register_handler("queued.mine", lambda run: None)
    manager.dispatcher.unregister_handler("queued.mine")
    await manager.queue("note", n=1)
    assert seen.after == [1]


async def test_without_a_hook_the_short_cut_is_taken(manager: TaskManager) -> None:
    assert manager.hands_over()
    manager.hooks.around_queueing(Seen())
    assert not manager.hands_over()
