"""The consumer as an object: its events, its life, its workers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from typing import Any

import pytest
from kits.consumer_kit import Notes, Start, empty, empty_after, note, told
from kits.waiting import until, within

from fluidfast import TaskConsumer, TaskManager, TaskRun, TaskState
from fluidfast.core.workers import Worker, WorkerFunction
from fluidfast.errors import CpuBoundEntryPointError, WorkerStartError


class TestAsyncHandlers:
    async def test_each_state_with_tags(self, start: Start, notes: Notes) -> None:
        consumer = await start()
        got: list[tuple[str, str]] = []
        main = threading.get_ident()

        async def handler(run: TaskRun[Any, Any]) -> None:
            await asyncio.sleep(0)
            assert threading.get_ident() == main
            got.append((run.state, run.id))

        async def tagged(run: TaskRun[Any, Any]) -> None:
            got.append((f"{run.state} tagged", run.id))

        for state in ("queue", "queued", "running", "success"):
            consumer.register_async_handler(state, handler)
        consumer.register_async_handler("success.mine", tagged)
        run = await consumer.queue("note", n=1)
        await until(lambda: len(got) == 5)
        assert Counter(got) == Counter(
            (state, run.id) for state in ("init", "queued", "running", "success", "success tagged")
        )
        assert consumer.unregister_async_handler("success") is handler
        assert consumer.unregister_async_handler("success") is None
        got.clear()
        await consumer.queue("note", n=1)
        await until(lambda: len(got) == 4)
        assert "success" not in [state for state, _ in got]

    async def test_one_that_fails(self, start: Start, notes: Notes, caplog: pytest.LogCaptureFixture) -> None:
        consumer = await start()
        got: list[str] = []

        async def broken(run: TaskRun[Any, Any]) -> None:
            raise ZeroDivisionError("broken handler")

        async def good(run: TaskRun[Any, Any]) -> None:
            got.append(run.state)

        consumer.register_async_handler("success.a", broken)
        consumer.register_async_handler("success.b", good)
        for n in range(5):
            await consumer.queue("note", n=n)
        await until(lambda: len(got) == 5)
        assert caplog.text.count("broken handler") >= 5
        assert consumer.is_running()
        assert sorted(notes.done) == list(range(5))

    async def test_a_sync_one_that_fails(self, start: Start, notes: Notes) -> None:
        consumer = await start()

        def broken(run: TaskRun[Any, Any]) -> None:
            raise ZeroDivisionError("broken handler")

        for state in TaskState:
            consumer.dispatcher.register_handler(state, broken)
        events = told(consumer)
        await consumer.queue("note", n=1)
        await until(lambda: empty_after(consumer, events, "success"))
        assert [state for _, state in events] == ["init", "queued", "running", "success"]

    async def test_are_all_called_before_the_end(self, start: Start, notes: Notes) -> None:
        consumer = await start()
        got: list[int] = []

        async def slow(run: TaskRun[Any, Any]) -> None:
            await asyncio.sleep(0.005)
            got.append(run.params.n)

        consumer.register_async_handler("success", slow)
        for n in range(20):
            await consumer.queue("note", n=n)
        await until(lambda: len(notes.done) == 20)
        await within(consumer.shutdown())
        assert sorted(got) == list(range(20))


class TestObject:
    async def test_life(self, broker_url: str) -> None:
        consumer = TaskConsumer(broker_url=broker_url, name="mine", stopping_grace_period=1)
        assert isinstance(consumer, TaskManager)
        assert isinstance(consumer, Worker)
        assert consumer.worker_name == "mine"
        assert consumer.type == "task_consumer"
        assert not consumer.has_started()
        assert not consumer.is_running()
        assert not consumer.is_stopped()
        await consumer.shutdown()  # harmless
        await consumer.startup()
        assert consumer.has_started()
        assert consumer.is_running()
        with pytest.raises(WorkerStartError, match="mine"):
            await consumer.startup()
        names = [worker.worker_name for worker in consumer.workers()]
        assert len(names) == consumer.num_workers == len(set(names))
        consumer.gracefully_stop()
        assert consumer.is_stopping()
        await within(consumer.wait_for_shutdown())
        assert consumer.is_stopped()
        assert not consumer.is_running()

    async def test_status(self, start: Start, notes: Notes) -> None:
        consumer = await start(max_concurrent_tasks=2)
        for n in range(3):
            await consumer.queue("gated", n=n)
        await until(lambda: notes.running == 2)
        status = await consumer.status()
        assert set(status) == {worker.worker_name for worker in consumer.workers()}
        assert status["task-consumer"]["tasks_running"] == 2
        assert status["task-consumer"]["running"]
        json.dumps(status)
        notes.gate.set()
        await until(lambda: empty(consumer))
        assert (await consumer.status())["task-consumer"]["tasks_finished"] == 3

    async def test_is_seen_by_others(self, start: Start, broker_url: str) -> None:
        consumer = await start()
        async with TaskManager(broker_url=broker_url) as manager:

            async def seen() -> bool:
                return bool((await manager.broker.get_all_manager_statuses()).workers)

            await until(seen)
            (worker,) = (await manager.broker.get_all_manager_statuses()).workers
            assert worker.kind == "task_consumer"
            assert set(worker.status) == {w.worker_name for w in consumer.workers()}

    async def test_more_workers(self, start: Start, notes: Notes) -> None:
        async def tick() -> None:
            notes.done.append("tick")

        consumer = await start()
        extra = WorkerFunction(tick, heartbeat=0.01, name="ticker")
        consumer.add_workers(extra)
        await until(lambda: len(notes.done) > 2)
        assert "ticker" in await consumer.status()
        await within(consumer.shutdown())
        assert extra.is_stopped()

    async def test_one_that_ends_ends_the_consumer(self, start: Start, notes: Notes) -> None:
        async def fail() -> None:
            raise ZeroDivisionError("on purpose")

        consumer = await start()
        consumer.add_workers(WorkerFunction(fail, name="failing"))
        with pytest.raises(ZeroDivisionError):
            await within(consumer.wait_for_shutdown())
        assert consumer.is_stopped()

    async def test_not_in_the_process_of_a_cpu_bound_run(
        self, monkeypatch: pytest.MonkeyPatch, broker_url: str
    ) -> None:
        monkeypatch.setenv("TASK_MANAGER_SPAWN", "true")
        consumer = TaskConsumer(broker_url=broker_url)
        with pytest.raises(CpuBoundEntryPointError):
            await consumer.startup()
        assert not consumer.has_started()


def test_execute_sync_again_and_again(redis_url: str, notes: Notes) -> None:
    """Each time with its async handlers."""
    consumer = TaskConsumer(broker_url=redis_url, deps=notes)
    consumer.register_task(note)
    seen: list[str] = []

    async def handler(run: TaskRun[Any, Any]) -> None:
        seen.append(run.id)

    consumer.register_async_handler("success", handler)
    ids = [consumer.execute_sync("note", n=n).id for n in range(3)]
    assert notes.done == [0, 1, 2]
    assert seen == ids
