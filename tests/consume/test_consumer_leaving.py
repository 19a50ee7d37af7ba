"""How a consumer leaves, and what it does about leases that it may have lost."""

from __future__ import annotations

import asyncio
import threading
import time
from time import monotonic
from typing import Any

import pytest
from kits.broker_kit import MEDIUM, half_a_lease_later, places, with_options
from kits.consumer_kit import Notes, Start, are, clean, empty, gated, note, told
from kits.waiting import pass_time, until, within

from fluidfast import TaskConsumer, TaskRun, task
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.memory.broker import MemoryTaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.core.task import Task


class TestShutdown:
    async def test_an_idle_one_leaves_at_once(self, start: Start) -> None:
        for turns in (0, 1, 5, 20):
            consumer = await start()
            for _ in range(turns):
                await asyncio.sleep(0)
            begin = monotonic()
            await within(consumer.shutdown())
            assert monotonic() - begin < 2
            assert consumer.is_stopped()

    async def test_what_runs_finishes(self, start: Start, notes: Notes) -> None:
        consumer = await start(max_concurrent_tasks=2)
        for n in range(2):
            await consumer.queue("gated", n=n)
        await until(lambda: notes.running == 2)
        stopping = asyncio.create_task(consumer.shutdown())
        await until(lambda: consumer.is_stopping())
        await pass_time(0.05)
        assert notes.running == 2
        notes.gate.set()
        await within(stopping)
        assert sorted(notes.done) == [0, 1]
        assert await places(consumer.broker) == {}

    async def test_what_has_not_started_goes_back_in_order(self, start: Start, notes: Notes) -> None:
        consumer = await start(max_concurrent_tasks=1)
        for n in range(300):  # quick ones, so that it claims many at a time
            await consumer.queue("note", n=n)
        await until(lambda: len(notes.done) == 300)
        await asyncio.gather(consumer.queue("gated", n="long"), *(consumer.queue("note", n=n) for n in range(100)))
        await until(lambda: notes.started == ["long"])
        stopping = asyncio.create_task(consumer.shutdown())
        await until(lambda: consumer.engine.slots.draining)
        await until(lambda: are(consumer, {"medium": 100, "leased": 1}))
        notes.gate.set()
        await within(stopping)
        notes.done.clear()
        await start(max_concurrent_tasks=1)
        await until(lambda: len(notes.done) == 100)
        assert notes.done == list(range(100))

    @pytest.mark.parametrize("late", [False, True])
    async def test_what_comes_while_it_leaves_goes_back(
        self, start: Start, notes: Notes, late: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also with a slot free: a claim that was on its way starts nothing any more. ``late``: answered when what was
        there has gone back already, and so in front of that."""
        if late:
            monkeypatch.setattr("fluidfast.consume.engine.END_OF_WAITING_SECONDS", 0.2)
        consumer = await start(max_concurrent_tasks=1)
        for n in range(300):
            await consumer.queue("note", n=n)
        await until(lambda: len(notes.done) == 300)
        claim, asked, answer = consumer.broker.claim, asyncio.Event(), asyncio.Event()

        async def slow_claim(*args: Any, **options: Any) -> Any:
            claimed = await claim(*args, **options)
            if claimed.items and notes.started:
                asked.set()
                await answer.wait()
            return claimed

        monkeypatch.setattr(consumer.broker, "claim", slow_claim)
        await consumer.queue("gated", n="long")
        await until(lambda: notes.started == ["long"])
        await consumer.queue_many("note", [{"n": n} for n in range(100)])
        await within(asked.wait())
        slots, released = consumer.engine.slots, asyncio.Event()
        release = consumer.engine.claiming.release_ready

        async def noted_release() -> None:
            await release()
            released.set()

        monkeypatch.setattr(consumer.engine.claiming, "release_ready", noted_release)
        stopping = asyncio.create_task(consumer.shutdown())
        await until(lambda: slots.draining)
        if late:
            await within(released.wait())  # now it waits for what runs
            answer.set()
            await until(lambda: slots.ready)
        notes.gate.set()
        await until(lambda: "long" in notes.done)
        answer.set()
        await within(stopping)
        assert len(notes.done) == 301
        assert await places(consumer.broker) == {"medium": 100}
        notes.done.clear()
        await start(max_concurrent_tasks=1)
        await until(lambda: len(notes.done) == 100)
        assert (sorted(notes.done) if late else notes.done) == list(range(100))

    async def test_what_does_not_finish_goes_back_and_runs_elsewhere(self, start: Start, notes: Notes) -> None:
        limited = gated._replace(name="limited", max_concurrency=1)
        consumer = await start(limited, max_concurrent_tasks=3, stopping_grace_period=0.1)
        events = told(consumer)
        await consumer.queue("gated", "high", n=1)
        await consumer.queue("limited", n=2)
        await until(lambda: notes.running == 2)
        begin = monotonic()
        await within(consumer.shutdown())
        assert 0.09 < monotonic() - begin < 5
        assert notes.done == []
        assert events.count(("gated", "interrupted")) == 1
        assert events.count(("limited", "interrupted")) == 1
        assert await places(consumer.broker) == {"high": 1, "medium": 1}
        assert await consumer.broker.current_task_runs("limited") == 0
        notes.gate.set()
        other = await start(limited)
        await until(lambda: len(notes.done) == 2)
        assert sorted(notes.done) == [1, 2]
        await until(lambda: empty(other))

    async def test_a_handler_that_will_not_be_cancelled(self, start: Start, notes: Notes) -> None:
        stop = asyncio.Event()

        @task
        async def stubborn(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.started.append(1)
            while not stop.is_set():
                try:
                    await asyncio.wait_for(stop.wait(), 60)
                except asyncio.CancelledError:
                    ctx.deps.started.append("swallowed")
                    if len(ctx.deps.started) > 50:
                        raise
            ctx.deps.done.append(1)

        consumer = await start(stubborn, stopping_grace_period=0.1, url_options={"lease_seconds": 0.5})
        await consumer.queue("stubborn")
        await until(lambda: notes.started)
        begin = monotonic()
        await within(consumer.shutdown())
        assert monotonic() - begin < 15
        stop.set()
        other = await start(stubborn, url_options={"lease_seconds": 0.5})
        await until(lambda: len(notes.done) == 2)  # the one that was left behind has ended, and it has run again
        await until(lambda: empty(other))

    async def test_a_run_that_fails_or_cancels_itself_meanwhile(self, start: Start, notes: Notes) -> None:
        @task
        async def ends(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.started.append(ctx.params.how)
            await ctx.deps.gate.wait()
            if ctx.params.how == "fails":
                raise ZeroDivisionError
            if ctx.params.how == "exits":
                raise SystemExit
            ctx.deps.done.append(ctx.params.how)

        consumer = await start(ends)
        for how in ("fails", "exits", "succeeds"):
            await consumer.queue("ends", how=how)
        await until(lambda: len(notes.started) == 3)
        stopping = asyncio.create_task(consumer.shutdown())
        await until(lambda: consumer.is_stopping())
        notes.gate.set()
        await within(stopping)
        assert notes.done == ["succeeds"]
        assert await places(consumer.broker) == {}

    async def test_under_load_nothing_is_lost_or_run_twice(self, start: Start, notes: Notes) -> None:
        first = await start(max_concurrent_tasks=3)
        await asyncio.gather(*(first.queue("note", n=n) for n in range(3000)))
        for share in (10, 500, 1000, 1500):
            await until(lambda share=share: len(notes.done) > share)  # type: ignore[misc]
            consumer = await start(max_concurrent_tasks=3)
            await within(first.shutdown())
            first = consumer
        await until(lambda: len(notes.done) >= 3000)
        await until(lambda: empty(first))
        assert sorted(notes.done) == list(range(3000))

    async def test_twice_and_by_itself(self, start: Start, notes: Notes) -> None:
        @task
        async def ends_it(ctx: TaskRun[Any, Notes]) -> None:
            ctx.task_manager.gracefully_stop()

        consumer = await start(ends_it)
        await consumer.queue("ends_it")
        await within(consumer.wait_for_shutdown())
        assert consumer.is_stopped()
        await consumer.shutdown()
        await consumer.shutdown()
        assert await places(consumer.broker) == {}


async def take_back(consumer: TaskConsumer, url: str) -> int:
    """Let the leases of a consumer run out and be taken back. Once more if it renews them between the two sweeps."""
    broker = consumer.broker
    sweeper = TaskBroker.from_url(url)
    taken = tries = 0
    while not taken and tries < 50:
        tries += 1
        if isinstance(broker, MemoryTaskBroker):
            for lease in broker.store.leases.values():
                lease.deadline = lease.seen = -1.0  # as a sweep half a lease ago saw it
        else:
            assert isinstance(broker, RedisTaskBroker)
            await broker.inboxes.adopt()  # what was started out of an inbox is under its lease from here on
            for batch in list(consumer.engine.settler.leases):
                await broker.redis_cli.zadd(broker.keys.leases, {batch: 1})
            taken = await sweeper.reap()
            half_a_lease_later(sweeper)
        taken += await sweeper.reap()
    await sweeper.close()
    return taken


class TestLease:
    async def test_lost_while_it_runs(
        self, start: Start, notes: Notes, broker_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The run is cancelled, what is said of it is refused, and another consumer runs it."""

        @task
        async def interruptible(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.started.append(ctx.task_manager.manager_id)
            try:
                await ctx.deps.gate.wait()
            except asyncio.CancelledError:
                ctx.deps.done.append("cancelled")
                raise
            ctx.deps.done.append("finished")

        consumer = await start(interruptible, max_concurrent_tasks=1, url_options={"lease_seconds": 1})
        events = told(consumer)
        run = await consumer.queue("interruptible")
        await until(lambda: len(notes.started) == 1)
        assert await take_back(consumer, broker_url) == 1
        other = await start(interruptible, max_concurrent_tasks=1)
        await until(lambda: notes.done == ["cancelled"])
        await until(lambda: len(notes.started) >= 2)
        notes.gate.set()
        await until(lambda: "finished" in notes.done)
        await until(lambda: empty(other))
        assert notes.done == ["cancelled", "finished"]
        assert "lease was lost" in caplog.text
        assert ("interruptible", "failure") not in events
        assert run.id
        # and the slot goes on
        await consumer.queue("note", n=1)
        await consumer.queue("note", n=2)
        await until(lambda: {1, 2} <= set(notes.done))

    async def test_what_was_done_under_a_lost_lease_is_refused(
        self, start: Start, notes: Notes, broker_url: str
    ) -> None:
        """It finishes before it is cancelled: its settlement comes too late and changes nothing."""
        consumer = await start(max_concurrent_tasks=1)
        await consumer.queue("gated", n=1)
        await until(lambda: notes.running == 1)
        assert await take_back(consumer, broker_url) == 1
        # on its queue, in the consumer's inbox if it waits for more, or under a new lease of it
        assert sum((await places(consumer.broker)).values()) == 1
        settle = consumer.broker.settle
        answers: list[bool] = []

        async def settled_as(settlement: Any) -> bool:
            answers.append(await settle(settlement))
            return answers[-1]

        consumer.broker.settle = settled_as  # type: ignore[method-assign]
        notes.gate.set()
        await until(lambda: len(notes.done) == 2)  # it is delivered again, to the same consumer
        await until(lambda: len(answers) == 2)
        assert answers == [False, True]
        await until(lambda: empty(consumer))

    async def test_a_handler_that_blocks_the_loop_keeps_its_lease(
        self, start: Start, notes: Notes, broker_url: str
    ) -> None:
        @task
        async def blocking(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.started.append(1)
            time.sleep(1.5)  # noqa: ASYNC251  # that is the point
            ctx.deps.done.append(1)

        consumer = await start(blocking, url_options={"lease_seconds": 0.4})
        if isinstance(consumer.broker, MemoryTaskBroker):
            pytest.skip("who could take it back is blocked as well")
        taken: list[int] = []
        over = threading.Event()

        async def sweep() -> None:
            sweeper = TaskBroker.from_url(with_options(broker_url, lease_seconds=0.2))
            while not over.is_set():
                taken.append(await sweeper.reap())
                await asyncio.sleep(0.05)
            await sweeper.close()

        sweeping = threading.Thread(target=lambda: asyncio.run(sweep()))
        sweeping.start()
        try:
            await until(lambda: taken)
            await consumer.queue("blocking")
            await until(lambda: notes.done)
            await until(lambda: empty(consumer))
        finally:
            over.set()
            await asyncio.to_thread(sweeping.join, 20)
        assert (notes.started, notes.done) == ([1], [1])
        assert len(taken) > 15
        assert sum(taken) == 0

    async def test_one_that_hangs_does_not_keep_it_for_ever(self, start: Start, notes: Notes) -> None:
        stop = asyncio.Event()

        @task(timeout_seconds=0.1)
        async def hangs_once(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.started.append(1)
            if len(ctx.deps.started) > 1:
                ctx.deps.done.append(1)
                return
            while not stop.is_set():
                try:
                    await stop.wait()
                except asyncio.CancelledError:
                    pass

        consumer = await start(hangs_once, max_concurrent_tasks=1, url_options={"lease_seconds": 0.3})
        await consumer.queue("hangs_once")
        await until(lambda: notes.started)
        await start(hangs_once, max_concurrent_tasks=1, url_options={"lease_seconds": 0.3})
        await until(lambda: notes.done == [1], seconds=15)
        stop.set()
        await until(lambda: empty(consumer))

    async def test_lost_while_it_waits_for_room(self, start: Start, notes: Notes, broker_url: str) -> None:
        """Under max_concurrency a slot asks the broker before it starts; to be cancelled there does not end it."""
        limited = note._replace(name="limited", max_concurrency=1)
        consumer = await start(limited, clean, max_concurrent_tasks=1, url_options={"lease_seconds": 0.6})
        acquire = consumer.broker.acquire
        asked = asyncio.Event()

        async def slow(task: Task[Any], run_id: str) -> bool:
            if not asked.is_set():
                asked.set()
                await asyncio.sleep(20)
            return await acquire(task, run_id)

        consumer.broker.acquire = slow  # type: ignore[method-assign]
        await consumer.queue("limited", n=1)
        await within(asked.wait())
        assert await take_back(consumer, broker_url) == 1
        await until(lambda: notes.done == [1], seconds=10)
        await consumer.queue("clean")
        await until(lambda: notes.done == [1, 0])
        await until(lambda: empty(consumer))

    async def test_a_suspect_runs_alone_on_a_busy_consumer(
        self, start: Start, notes: Notes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fluidfast.consume.claiming.QUIET_SECONDS", 0.2)
        beside: list[int] = []

        @task
        async def brief(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.enter()
            await asyncio.sleep(0.005)
            ctx.deps.leave()

        @task
        async def poison(ctx: TaskRun[Any, Notes]) -> None:
            beside.append(ctx.deps.running)
            await asyncio.sleep(0.05)
            beside.append(ctx.deps.running)

        consumer = await start(brief, poison)
        stop = asyncio.Event()

        async def fewer_wait(n: int) -> bool:
            return stop.is_set() or sum((await consumer.broker.queue_length()).values()) <= n

        async def load() -> None:
            while not stop.is_set():
                await asyncio.gather(*(consumer.queue("brief") for _ in range(10)))
                await until(lambda: fewer_wait(10))

        loading = asyncio.create_task(load())
        await until(lambda: notes.running)
        payload = consumer.broker.codec.submit(consumer.create_task_run("poison"))
        if isinstance(consumer.broker, MemoryTaskBroker):
            consumer.broker.store.suspects.append((MEDIUM, payload))
            consumer.broker.store.strikes[payload] = 2
        else:
            assert isinstance(consumer.broker, RedisTaskBroker)
            import hashlib

            broker = consumer.broker
            await broker.redis_cli.hset(broker.keys.strikes, hashlib.sha1(payload).hexdigest(), "2")  # type: ignore[misc]
            await broker.redis_cli.lpush(broker.keys.suspect, b"m" + payload)  # type: ignore[misc]
        await until(lambda: len(beside) == 2, seconds=15)
        stop.set()
        await within(loading)
        assert beside == [0, 0]
        await until(lambda: empty(consumer))
