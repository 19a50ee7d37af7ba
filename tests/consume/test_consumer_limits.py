"""How many run at a time, who waits for results, and what is queued without awaiting."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from kits.consumer_kit import Notes, Start, are, empty, gated, info, note, settled, told
from kits.waiting import until, within

from fluidfast import RetryPolicy, TaskManager, TaskRun, TaskState, task
from fluidfast.brokers.memory.broker import MemoryTaskBroker


class TestMaxConcurrency:
    async def test_over_all_consumers(self, start: Start, notes: Notes) -> None:
        """Never more at a time than the limit; what finds no room comes again."""
        policy = RetryPolicy(wait=0.01)

        @task(max_concurrency=2, rate_limit_retry=policy)
        async def scarce(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.enter()
            await asyncio.sleep(0.005)
            ctx.deps.leave()
            ctx.deps.done.append(ctx.params.n)

        one, _ = await start(scarce), await start(scarce)
        await asyncio.gather(*(one.queue("scarce", n=n) for n in range(30)))
        await until(lambda: len(notes.done) == 30)
        await until(lambda: empty(one))
        assert sorted(notes.done) == list(range(30))
        assert notes.most == 2
        assert await one.broker.current_task_runs("scarce") == 0

    async def test_without_a_retry_it_ends_as_rate_limited(self, start: Start, notes: Notes) -> None:
        consumer = await start(gated._replace(max_concurrency=1))
        events = told(consumer)
        await consumer.queue("gated", n=1)
        await until(lambda: notes.running == 1)
        assert await consumer.broker.current_task_runs("gated") == 1
        for n in range(2, 5):
            await consumer.queue("gated", n=n)
        await until(lambda: events.count(("gated", "rate_limited")) == 3)
        await until(lambda: are(consumer, {"leased": 1}))
        assert (await info(consumer, "gated")).last_run_state is TaskState.rate_limited
        notes.gate.set()
        await until(lambda: empty(consumer))
        assert notes.done == [1]

    async def test_with_a_retry_it_counts_its_attempts(self, start: Start, notes: Notes) -> None:
        limited = gated._replace(
            max_concurrency=1, rate_limit_retry=RetryPolicy(max_attempts=3, wait=0.02), name="limited"
        )
        consumer = await start(limited)
        events = told(consumer)
        attempts: list[int] = []
        consumer.dispatcher.register_handler("rate_limited", lambda run: attempts.append(run.rate_limit_attempt))
        await consumer.queue("limited", n=1)
        await until(lambda: notes.running == 1)
        await consumer.queue("limited", n=2)
        await until(lambda: attempts)
        assert attempts == [3]
        assert events.count(("limited", "rate_limited")) == 1
        notes.gate.set()
        await until(lambda: empty(consumer))
        assert notes.done == [1]

    @pytest.mark.parametrize("how", ["success", "failure", "timeout", "abort", "retry"])
    async def test_the_slot_is_free_afterwards(self, start: Start, notes: Notes, how: str) -> None:
        @task(max_concurrency=1, timeout_seconds=0.1)
        async def scarce(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.started.append(ctx.retry_attempt)
            if how in ("failure", "retry"):
                raise ZeroDivisionError
            if how == "timeout":
                await asyncio.sleep(60)
            if how == "abort":
                ctx.abort("why not")

        if how == "retry":
            scarce = scarce._replace(retry=RetryPolicy(max_attempts=1, wait=0.01))
        consumer = await start(scarce)
        for _ in range(3):
            before = len(notes.started)
            await consumer.queue("scarce")
            await until(lambda before=before: len(notes.started) > before)  # type: ignore[misc]
            await until(lambda: settled(consumer))
            assert await consumer.broker.current_task_runs("scarce") == 0
        if how == "retry":
            assert Counter(notes.started) == {0: 3, 1: 3}
            await consumer.broker.clear()
        else:
            assert notes.started == [0, 0, 0]


class TestWaitingForResults:
    async def test_by_another_manager(self, start: Start, notes: Notes, broker_url: str) -> None:
        @task
        async def slow(ctx: TaskRun[Any, Notes]) -> None:
            await asyncio.sleep(0.02)

        consumer = await start(slow)
        async with TaskManager(broker_url=broker_url) as manager:
            manager.register_task(slow)
            manager.register_task(note)
            run = await within(manager.queue_and_wait("slow", n=1, timeout=20))
            assert (run.name, run.state, run.params.n) == ("slow", TaskState.success, 1)
            assert run.duration is not None
            assert run.duration >= timedelta(seconds=0.019)
            runs = await within(asyncio.gather(*(manager.queue_and_wait("note", n=n) for n in range(50))))
            assert [run.params.n for run in runs] == list(range(50))
            assert sorted(notes.done) == list(range(50))
            await until(lambda: empty(consumer))

    async def test_by_the_consumer_itself(self, start: Start, notes: Notes) -> None:
        consumer = await start()
        run = await within(consumer.queue_and_wait("note", n=1, priority="high"))
        assert (run.state, run.priority) == ("success", "high")

    async def test_from_within_a_run(self, start: Start, notes: Notes) -> None:
        @task
        async def outer(ctx: TaskRun[Any, Notes]) -> None:
            inner = await ctx.task_manager.queue_and_wait("note", n="inner")
            ctx.deps.done.append(str(inner.state))

        consumer = await start(outer)
        await consumer.queue("outer")
        await until(lambda: notes.done == ["inner", "success"])

    @pytest.mark.parametrize("how", ["failure", "timeout", "aborted", "disabled", "rate_limited", "retried"])
    async def test_of_a_run_that_does_not_succeed(self, start: Start, notes: Notes, how: str, keeps: list[str]) -> None:
        @task(timeout_seconds=0.1)
        async def troubled(ctx: TaskRun[Any, Notes]) -> None:
            if how == "timeout":
                await asyncio.sleep(60)
            if how == "aborted":
                ctx.abort("why not")
            raise ZeroDivisionError

        if how == "retried":
            keeps.append("ff:dead")
            troubled = troubled._replace(retry=RetryPolicy(max_attempts=2, wait=0.01))
        if how == "rate_limited":
            troubled = gated._replace(name="troubled", max_concurrency=1)
        consumer = await start(troubled)
        if how == "disabled":
            await consumer.broker.enable_task("troubled", False)
        if how == "rate_limited":
            await consumer.queue("troubled", n=1)
            await until(lambda: notes.running == 1)
        run = await within(consumer.queue_and_wait("troubled", timeout=20))
        states = {"aborted": "aborted", "disabled": "aborted", "rate_limited": "rate_limited"}
        assert run.state == states.get(how, "failure")
        assert run.retry_attempt == (2 if how == "retried" else 0)

    async def test_too_late(self, start: Start, notes: Notes) -> None:
        consumer = await start()
        with pytest.raises(TimeoutError):
            await consumer.queue_and_wait("gated", n=1, timeout=0.1)
        notes.gate.set()
        await until(lambda: notes.done == [1])  # it goes on all the same
        run = await within(consumer.queue_and_wait("note", n=2))
        assert run.params.n == 2

    async def test_by_another_process(self, start: Start, notes: Notes, broker_url: str) -> None:
        consumer = await start()
        if isinstance(consumer.broker, MemoryTaskBroker):
            pytest.skip("it lives in one process")
        program = (
            "import asyncio, sys\n"
            "from fluidfast import TaskManager, task\n"
            "@task\n"
            "async def note(ctx): ...\n"
            "async def main():\n"
            "    async with TaskManager(broker_url=sys.argv[1]) as manager:\n"
            "        run = await manager.queue_and_wait(note, n='other process', timeout=20)\n"
            "        print(run.state, run.params['n'])\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, broker_url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await within(process.communicate(), 30)
        assert out.decode().strip() == "success other process", err.decode()
        assert notes.done == ["other process"]


class TestSyncQueue:
    async def test_a_task_a_name_a_run(self, start: Start, notes: Notes) -> None:
        consumer = await start()
        consumer.sync_queue("note")
        consumer.sync_queue(note)
        consumer.sync_queue(consumer.create_task_run("note", n=1))
        await until(lambda: len(notes.done) == 3)
        assert notes.done == [None, None, 1]

    async def test_with_a_delay(self, start: Start, notes: Notes) -> None:
        consumer = await start()
        begin = monotonic()
        consumer.sync_queue(consumer.create_task_run("note", n=1), delay=0.2)
        consumer.sync_queue(consumer.create_task_run("note", n=2))
        await until(lambda: len(notes.done) == 2)
        assert notes.done == [2, 1]
        assert 0.19 < monotonic() - begin < 5

    async def test_from_threads(self, start: Start, notes: Notes) -> None:
        consumer = await start()

        def produce(first: int) -> None:
            for n in range(first, first + 100):
                consumer.sync_queue(consumer.create_task_run("note", n=n))

        await asyncio.gather(*(asyncio.to_thread(produce, first) for first in (0, 100, 200)))
        await until(lambda: len(notes.done) == 300)
        assert sorted(notes.done) == list(range(300))

    async def test_an_unknown_task(self, start: Start, notes: Notes, caplog: pytest.LogCaptureFixture) -> None:
        consumer = await start()
        consumer.sync_queue("nonesuch")
        consumer.sync_queue(consumer.create_task_run("note", n=1))
        await until(lambda: notes.done == [1])
        assert "nonesuch" in caplog.text
        assert consumer.is_running()

    async def test_at_shutdown_at_the_latest(self, start: Start, broker_url: str) -> None:
        consumer = await start(max_concurrent_tasks=0)
        for n in range(20):
            consumer.sync_queue(consumer.create_task_run("note", n=n))
        await within(consumer.shutdown())
        assert (await consumer.broker.queue_length())["medium"] == 20
        await consumer.broker.clear()
