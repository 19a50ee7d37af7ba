"""A server that is away: a call waits ``enqueue_timeout`` for it, those after it fail at once until it is back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from kits.manager_kit import take_runs
from kits.servers import RedisServer
from kits.waiting import until, within

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.errors import BrokerConnectionError, BrokerURLError, ConfigError, QueueFullError

Start = Callable[..., RedisServer]
SECONDS = 0.5


@task
async def note(ctx: TaskRun) -> None: ...


def manager_of(server: RedisServer, **options: Any) -> TaskManager:
    manager = TaskManager(broker_url=server.url, **{"enqueue_timeout": SECONDS, **options})
    manager.register_task(note)
    return manager


@pytest.fixture
def server(start_server: Start) -> RedisServer:
    return start_server(appendonly="always")


@pytest.fixture
async def manager(server: RedisServer) -> AsyncIterator[TaskManager]:
    manager = manager_of(server)
    await manager.queue(note)
    yield manager
    await manager.on_shutdown()


def away(server: RedisServer, how: str) -> None:
    server.kill() if how == "killed" else server.pause()


def back(server: RedisServer, how: str) -> None:
    server.restart() if how == "killed" else server.resume()


async def error_of(call: Coroutine[Any, Any, object]) -> str:
    with pytest.raises(BrokerConnectionError) as caught:
        await within(call)
    return str(caught.value)


async def queue_again(manager: TaskManager, **params: Any) -> TaskRun:
    """Queue a run as soon as the producer has seen that the server is back."""

    async def again() -> TaskRun:
        while True:
            try:
                return await manager.queue(note, **params)
            except BrokerConnectionError:
                await asyncio.sleep(0.01)

    return await within(again())


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_after_one_call_that_waited_all_fail_at_once(server: RedisServer, manager: TaskManager, how: str) -> None:
    away(server, how)
    text = await error_of(manager.queue(note))
    assert str(manager.broker.url) in text
    assert "no answer within 0.5 s (enqueue_timeout); whether the run was queued is unknown" in text
    for _ in range(200):
        text = await error_of(manager.queue(note))
        assert "(enqueue_timeout is 0.5 s), so calls fail at once until it answers again" in text
        assert text.endswith("; the run was not queued")
    answers = await within(asyncio.gather(*(manager.queue(note) for _ in range(1000)), return_exceptions=True))
    assert {type(answer) for answer in answers} == {BrokerConnectionError}
    text = await error_of(manager.queue_many(note, [{"n": n} for n in range(10)]))
    assert "these 10 runs were not queued" in text
    await asyncio.to_thread(back, server, how)
    await queue_again(manager)
    await manager.queue(note)


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_callers_of_many_at_once_fail_together(server: RedisServer, manager: TaskManager, how: str) -> None:
    away(server, how)
    calls = [manager.queue(note, text="x" * 5000) for _ in range(2000)]
    calls += [manager.queue_many(note, [{"n": n} for n in range(5000)])]
    answers = await within(asyncio.gather(*calls, return_exceptions=True))
    assert {type(answer) for answer in answers} == {BrokerConnectionError}
    assert all("enqueue_timeout" in str(answer) for answer in answers)
    assert manager._producer.pending == manager._producer.pending_bytes == 0
    await asyncio.to_thread(back, server, how)
    await queue_again(manager)


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_nothing_is_lost_nothing_is_twice(server: RedisServer, how: str) -> None:
    confirmed: set[str] = set()
    unknown: set[str] = set()
    refused: set[str] = set()
    stop = False

    async def calls(manager: TaskManager, number: int) -> None:
        for n in range(10**9):
            if stop:
                return
            run_id = f"{number}-{n}"
            try:
                await manager.queue(note, run_id=run_id)
            except BrokerConnectionError as exc:
                (refused if "not queued" in str(exc) else unknown).add(run_id)
                await asyncio.sleep(0.01)
            else:
                confirmed.add(run_id)

    manager = manager_of(server, enqueue_timeout=0.3)
    await manager.queue(note, run_id="first")
    callers = [asyncio.ensure_future(calls(manager, number)) for number in range(10)]
    for _ in range(3):
        count = len(confirmed)
        await until(lambda: len(confirmed) > count + 200)  # noqa: B023
        away(server, how)
        known = len(refused)
        await until(lambda: len(refused) > known + 20)  # noqa: B023
        await asyncio.to_thread(back, server, how)
    count = len(confirmed)
    await until(lambda: len(confirmed) > count + 200)
    stop = True
    await within(asyncio.gather(*callers))
    found = [run.id for run in await take_runs(manager)]
    await manager.on_shutdown()
    assert len(set(found)) == len(found), "nothing twice"
    assert confirmed - set(found) == set(), "nothing lost"
    assert refused & set(found) == set(), "what was not queued is not there"
    assert set(found) <= confirmed | unknown | {"first"}


async def test_a_server_that_was_never_there_is_asked_by_each_call(start_server: Start) -> None:
    server = start_server()
    server.kill()
    manager = manager_of(server)
    for _ in range(3):
        assert "cannot connect" in await error_of(manager.queue(note))
    server.restart()
    await manager.queue(note)
    await manager.on_shutdown()


async def test_an_answer_that_comes_in_time_is_no_error(server: RedisServer, manager: TaskManager) -> None:
    manager.broker.options.enqueue_timeout = 60.0
    server.kill()
    call = asyncio.ensure_future(manager.queue(note))
    await until(lambda: manager._producer._opening is not None)
    await asyncio.to_thread(server.restart)
    await within(call)
    assert not manager._producer._away


async def test_without_a_limit(server: RedisServer) -> None:
    manager = manager_of(server, enqueue_timeout=math.inf)
    await manager.queue(note)
    server.kill()
    call = asyncio.ensure_future(manager.queue(note))
    await until(lambda: manager._producer._opening is not None)
    await asyncio.to_thread(server.restart)
    await within(call)
    await manager.on_shutdown()


async def test_delayed_runs_limits_and_hooks(server: RedisServer, manager: TaskManager) -> None:
    async def later() -> None:
        await manager.intake.send(manager.create_task_run(note), delay=60)

    await later()
    limited = manager_of(server, max_queue_length=1000, on_full="raise")
    server.kill()
    assert "no answer within 0.5 s (enqueue_timeout)" in await error_of(later())
    for _ in range(50):
        assert "fail at once" in await error_of(later())
        assert "fail at once" in await error_of(manager.queue(note))
    for _ in range(3):
        assert "onnect" in await error_of(limited.queue(note))  # this one was never there
    await asyncio.to_thread(server.restart)
    await queue_again(manager)
    await later()
    await queue_again(limited)
    with pytest.raises(QueueFullError):
        await limited.queue_many(note, ({} for _ in range(2000)))
    server.kill()
    for _ in range(50):
        assert "enqueue_timeout" in await error_of(limited.queue(note))
    await limited.on_shutdown()


def test_sync(server: RedisServer) -> None:
    manager = manager_of(server)
    manager.sync.queue(note)
    server.kill()
    with pytest.raises(BrokerConnectionError, match="no answer within"):
        manager.sync.queue(note)
    for _ in range(100):
        with pytest.raises(BrokerConnectionError, match="fail at once"):
            manager.sync.queue(note)
    with pytest.raises(BrokerConnectionError, match="these 2 runs were not queued"):
        manager.sync.queue_many(note, [{}, {}])
    server.restart()
    asyncio.run(until(lambda: not manager._producer._away))
    manager.sync.queue(note)
    manager.sync.close()


async def test_buffered_runs_keep_their_own_time(server: RedisServer) -> None:
    manager = manager_of(server, delivery="buffered", enqueue_timeout=0.3)
    ids = [(await manager.queue(note)).id]
    await manager.flush()
    server.kill()
    ids += [(await manager.queue(note)).id for _ in range(100)]
    assert "enqueue_timeout" in await error_of(manager.queue_many(note, [{}]))  # which waits for the server
    assert manager._producer._away
    ids += [(await manager.queue(note)).id for _ in range(100)]
    await asyncio.to_thread(server.restart)
    await within(manager.flush())
    assert [run.id for run in await take_runs(manager)] == ids
    await manager.on_shutdown()


async def test_a_worker_goes_on_being_patient(server: RedisServer) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def long(ctx: TaskRun) -> None:
        began.set()
        await go_on.wait()

    consumer = TaskConsumer(broker_url=server.url, enqueue_timeout=SECONDS)
    consumer.register_task(long)
    consumer.register_task(note)
    async with consumer:
        await consumer.queue(long)
        await within(began.wait())
        server.pause()
        await error_of(consumer.queue(note))
        go_on.set()
        assert "fail at once" in await error_of(consumer.queue(note))
        server.resume()
        await queue_again(consumer)
        await until(lambda: consumer.engine.finished >= 2)
        assert await consumer.broker.dead_length("failed") == 0


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_event_loop_that_was_blocked(server: RedisServer, factory: Any) -> None:
    """The answer is there to be read, whatever the clock says."""

    async def main() -> None:
        manager = manager_of(server, enqueue_timeout=1.0)
        await queue_again(manager)
        watch = manager._producer._watch
        assert watch is not None
        watch.cancel()
        call = manager.queue(note)
        loop = asyncio.get_running_loop()
        loop.call_soon(time.sleep, 1.3)
        loop.call_soon(manager._producer._look)  # in the same turn, in which nothing is read
        await call
        await manager.on_shutdown()
        await manager.on_shutdown()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def test_closed_while_the_server_is_away(server: RedisServer) -> None:
    manager = manager_of(server)
    await manager.queue(note)
    server.kill()
    await error_of(manager.queue(note))
    before = asyncio.all_tasks()
    await within(manager.on_shutdown())
    await until(lambda: asyncio.all_tasks() <= before - {manager._producer._opening})
    assert manager._producer._watch is None
    server.restart()
    await queue_again(manager)
    await manager.on_shutdown()


def test_one_event_loop_after_another(server: RedisServer) -> None:
    manager = manager_of(server)

    async def fails() -> None:
        await manager.queue(note)
        server.kill()
        await error_of(manager.queue(note))

    asyncio.run(fails())
    server.restart()

    async def works() -> None:
        await manager.queue(note)  # nobody has found it away here
        await manager.on_shutdown()

    asyncio.run(works())


async def test_several_shards(server: RedisServer) -> None:
    manager = TaskManager(broker_url=f"{server.url}?shards=2&enqueue_timeout=0.5")
    manager.register_task(note)
    for _ in range(4):
        await manager.queue(note)
    server.pause()
    assert "unknown" in await error_of(manager.queue(note))
    for _ in range(50):
        assert "fail at once" in await error_of(manager.queue(note))
    server.resume()
    await queue_again(manager)
    await manager.on_shutdown()


def test_the_setting() -> None:
    assert TaskManager(broker_url="redis://h").broker.options.enqueue_timeout == 30
    assert TaskManager(broker_url="redis://h?enqueue_timeout=2.5").broker.options.enqueue_timeout == 2.5
    assert TaskManager(broker_url="redis://h?enqueue_timeout=2", enqueue_timeout=3).broker.options.enqueue_timeout == 3
    assert TaskManager(broker_url="redis://h?enqueue_timeout=inf").broker.options.enqueue_timeout == math.inf
    for wrong in (0, -1, math.nan, "2"):
        with pytest.raises(ConfigError, match="enqueue_timeout"):
            TaskManager(enqueue_timeout=wrong)
        with pytest.raises(BrokerURLError, match="enqueue_timeout"):
            TaskManager(broker_url=f"redis://h?enqueue_timeout={'x' if wrong == '2' else wrong}")
