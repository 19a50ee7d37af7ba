"""What a consumer runs, in which order, and what it passes by."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kits.broker_kit import places, put
from kits.consumer_kit import Notes, Start, codec_n, dead_count, empty, info, note, told
from kits.waiting import pass_time, until, within

from fluidfast import TaskConsumer, TaskManager, TaskRun, TaskState, task
from fluidfast.brokers._leases import Claimed
from fluidfast.brokers.contract import MAX_CLAIM
from fluidfast.brokers.redis.broker import RedisTaskBroker


class TestRuns:
    async def test_each_once(self, start: Start, notes: Notes) -> None:
        consumer = await start()
        for n in range(50):
            await consumer.queue("note", n=n)
        await asyncio.gather(*(consumer.queue("note", n=n) for n in range(50, 1000)))
        await until(lambda: len(notes.done) >= 1000)
        await until(lambda: empty(consumer))
        assert sorted(notes.done) == list(range(1000))
        assert consumer.engine.finished == 1000

    async def test_started_within_its_own_async_with(self, start: Start, notes: Notes, broker_url: str) -> None:
        left: list[str] = []

        @asynccontextmanager
        async def context() -> AsyncIterator[None]:
            yield
            left.append("left")

        consumer = TaskConsumer(broker_url=broker_url, deps=notes)
        consumer.register_task(note)
        consumer.add_async_context_manager(context())
        async with consumer:
            await consumer.startup()
            await consumer.queue("note", n=1)
            await until(lambda: notes.done == [1])
            await until(lambda: empty(consumer))
            await consumer.shutdown()
        assert left == ["left"]

    async def test_the_next_batch_is_asked_for_before_one_is_read(
        self, start: Start, notes: Notes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        consumer = await start(max_concurrent_tasks=0)
        steps: list[tuple[str, int]] = []
        claim, accept = consumer.broker.claim, consumer.engine.claiming.accept

        known: list[bool] = []

        async def asked(who: str, limit: int, **options: Any) -> Any:
            steps.append(("ask", limit))
            found = await claim(who, limit, **options)
            if found.items:  # a batch that is given has to be prolonged from then on, whatever the event loop does next
                leases = consumer.engine.settler.leases
                asyncio.get_running_loop().call_soon(lambda: known.append(found.batch in leases))
            return found

        async def read(found: Any) -> None:
            steps.append(("read", len(found.items)))
            await accept(found)

        monkeypatch.setattr(consumer.broker, "claim", asked)
        monkeypatch.setattr(consumer.engine.claiming, "accept", read)
        await consumer.queue_many("note", ({"n": n} for n in range(12_000)))
        consumer.engine.slots.prefetch = 2000
        consumer.engine.concurrency = 5
        await until(lambda: consumer.engine.finished == 12_000, seconds=60)
        assert sorted(notes.done) == list(range(12_000))
        assert steps[:3] == [("ask", MAX_CLAIM), ("ask", MAX_CLAIM), ("read", MAX_CLAIM)]
        await until(lambda: empty(consumer))
        assert all(known)
        assert len(known) == sum(step == "read" for step, _ in steps)

        def let_go() -> bool:
            gc.collect()
            return sum(type(one) is Claimed for one in gc.get_objects()) <= 5  # what the slots had last

        await until(let_go)

    async def test_what_was_claimed_ahead_goes_back_at_shutdown(
        self, start: Start, notes: Notes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        consumer = await start(max_concurrent_tasks=0)
        claim, infos = consumer.broker.claim, consumer.broker.get_tasks_info
        claims: list[int] = []
        gate = asyncio.Event()

        async def counted(who: str, limit: int, **options: Any) -> Any:
            found = await claim(who, limit, **options)
            claims.append(len(found.items))
            return found

        async def held_up(*names: str) -> Any:  # what the first claim asks before its runs may start
            await gate.wait()
            return await infos(*names)

        monkeypatch.setattr(consumer.broker, "claim", counted)
        monkeypatch.setattr(consumer.broker, "get_tasks_info", held_up)
        await consumer.queue_many("gated", ({"n": n} for n in range(2500)))
        consumer.engine.slots.prefetch = 2000
        consumer.engine.concurrency = 1
        await until(lambda: claims[-2:] == [1000, 1000])
        stopping = asyncio.create_task(consumer.shutdown())
        await until(lambda: consumer.engine.slots.draining)
        gate.set()
        await within(stopping, 30)
        assert notes.started == []
        async with TaskManager(broker_url=consumer.config.broker_url) as manager:
            assert await places(manager.broker) == {"medium": 2500}
            claim = await manager.broker.claim("another", 1)
            assert codec_n(manager, claim.items[0].payload) == 0  # in their order
            await manager.broker.clear()

    async def test_a_consumer_that_is_not_to_consume_lets_others(self, start: Start, notes: Notes) -> None:
        one = await start()
        await until(lambda: one.engine.claiming.waiting)
        if isinstance(one.broker, RedisTaskBroker):
            await until(lambda: one.manager_id in one.broker._wakeups)
            await until(lambda: len(one.broker._wakeups[one.manager_id].pending) == 3)
        one.config.consume_tasks = False
        await until(lambda: not one.engine.claiming.waiting)  # which it does not do for ever
        if isinstance(one.broker, RedisTaskBroker):
            await until(lambda: not one.broker._wakeups[one.manager_id].pending)
        for n in range(3):
            await one.queue("note", "high", n=n)
        two = await start()
        await until(lambda: len(notes.done) == 3)
        assert (one.engine.finished, two.engine.finished) == (0, 3)
        await until(lambda: empty(two))

    async def test_states_events_and_info(self, start: Start, notes: Notes) -> None:
        consumer = await start()
        seen: list[TaskRun[Any, Any]] = []
        for state in TaskState:
            consumer.dispatcher.register_handler(f"{state}.seen", seen.append)
        run = await consumer.queue("note", n=1)
        await until(lambda: len(seen) == 4)
        assert [r.state for r in seen] == ["init", "queued", "running", "success"]
        assert {r.id for r in seen} == {run.id}
        running, success = seen[2:]
        assert (running.end, running.duration) == (None, None)
        assert success.queued is not None
        assert success.start is not None
        assert success.end is not None
        assert success.queued == run.queued
        assert success.queued <= success.start <= success.end
        assert success.is_done
        assert run.state is TaskState.queued  # the producer's own object is not the consumer's
        await until(lambda: empty(consumer))
        found = await info(consumer, "note")
        assert found.last_run_state is TaskState.success
        assert found.last_run_end == success.end
        assert abs(found.last_run_duration - success.duration) < timedelta(microseconds=2)  # type: ignore[operator]

    async def test_in_order_with_one_slot(self, start: Start, notes: Notes, broker_url: str) -> None:
        async with TaskManager(broker_url=broker_url) as manager:
            manager.register_task(note)
            for n in range(300):
                await manager.queue("note", n=n)
            await start(max_concurrent_tasks=1)
            for n in range(300, 500):
                await manager.queue("note", n=n)
            await until(lambda: len(notes.done) >= 500)
        assert notes.done == list(range(500))

    async def test_high_priority_first(self, start: Start, notes: Notes, broker_url: str) -> None:
        async with TaskManager(broker_url=broker_url) as manager:
            manager.register_task(note)
            for priority in ("low", "medium", "high"):
                for n in range(5):
                    await manager.queue("note", priority, n=f"{priority} {n}")
            await start(max_concurrent_tasks=1)
            await until(lambda: len(notes.done) == 15)
        assert notes.done == [f"{priority} {n}" for priority in ("high", "medium", "low") for n in range(5)]

    async def test_no_more_at_a_time_than_there_are_slots(self, start: Start, notes: Notes) -> None:
        consumer = await start(max_concurrent_tasks=4)
        for n in range(12):
            await consumer.queue("gated", n=n)
        await until(lambda: notes.running == 4)
        await pass_time(0.1)
        assert (notes.running, notes.most) == (4, 4)
        assert sorted(notes.started) == [0, 1, 2, 3]
        notes.gate.set()
        await until(lambda: len(notes.done) == 12)
        assert notes.most == 4

    async def test_what_waits_long_for_a_slot_goes_to_others(
        self, start: Start, notes: Notes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fluidfast.consume.claiming.HOLD_SECONDS", 0.1)
        first = await start(max_concurrent_tasks=1)
        for n in range(200):  # quick ones, so that it claims many at a time
            await first.queue("note", n=n)
        await until(lambda: len(notes.done) == 200)
        await asyncio.gather(first.queue("gated", n="long"), *(first.queue("note", n=n) for n in range(200, 300)))
        await until(lambda: notes.started == ["long"])
        await start(max_concurrent_tasks=1)
        await until(lambda: len(notes.done) == 300, seconds=15)
        assert sorted(notes.done) == list(range(300))

    async def test_plain_functions_run_in_threads_beside_the_loop(self, start: Start, notes: Notes) -> None:
        together = threading.Barrier(3, timeout=20)

        @task
        def threaded(ctx: TaskRun[Any, Notes]) -> None:
            together.wait()
            ctx.deps.done.append(threading.current_thread() is threading.main_thread())

        consumer = await start(threaded)
        for _ in range(3):
            await consumer.queue("threaded")
        await until(lambda: len(notes.done) == 3)
        assert notes.done == [False] * 3

    async def test_a_coroutine_from_a_plain_function(self, start: Start, notes: Notes) -> None:
        @task
        async def inner(ctx: TaskRun[Any, Notes]) -> None:
            await asyncio.sleep(0)
            ctx.deps.done.append(asyncio.current_task() is not None)

        wrapped = inner._replace(name="wrapped", executor=lambda ctx: inner.executor(ctx))
        consumer = await start(wrapped)
        await consumer.queue("wrapped")
        await until(lambda: notes.done == [True])

    async def test_chain(self, start: Start, notes: Notes) -> None:
        @task
        async def countdown(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.done.append((ctx.id, ctx.from_run_id, ctx.root_run_id))
            if ctx.params.n:
                await ctx.queue("countdown", n=ctx.params.n - 1)

        consumer = await start(countdown)
        first = await consumer.queue("countdown", n=3)
        await until(lambda: len(notes.done) == 4)
        assert notes.done[0] == (first.id, "", "")
        for before, (_, from_id, root_id) in zip(notes.done, notes.done[1:], strict=False):
            assert from_id == before[0]
            assert root_id == first.id

    async def test_not_before_its_time(self, start: Start, notes: Notes) -> None:
        consumer = await start()
        due = datetime.now(UTC) + timedelta(seconds=0.3)
        # one that is put on a queue too soon, as an aio-fluid producer may
        early = {"task": "note", "params": {"n": "early"}, "execute_after": due.isoformat()}
        await put(consumer.broker, json.dumps(early).encode())
        run = consumer.create_task_run("note", n="delayed")
        run.execute_after = due
        consumer.sync_queue(run)
        await consumer.queue("note", n="now")
        ends: list[datetime] = []
        while len(ends) < 3:
            await until(lambda: len(notes.done) > len(ends))
            ends.append(datetime.now(UTC))
            assert notes.done[0] == "now"
            assert len(ends) == 1 or ends[-1] >= due
        assert sorted(notes.done[1:]) == ["delayed", "early"]
        assert ends[-1] - due < timedelta(seconds=5)

    async def test_what_was_found_starts_before_more_is_looked_for(self, start: Start, notes: Notes) -> None:
        """A consumer with nothing to do is given one run: that is not to wait for what another claim takes."""
        consumer = await start(note)
        claim = consumer.broker.claim
        asked: list[str] = []

        async def asking(*args: Any, **kwargs: Any) -> Any:
            asked.append(f"asked with {len(notes.done)} done")
            found = await claim(*args, **kwargs)
            asked.append(f"got {len(found.items)}")
            return found

        wait = consumer.broker.wait

        async def waiting(*args: Any) -> Any:
            if (found := await wait(*args)) is not None:  # what has woken it starts without a claim
                asked.append(f"got {len(found.items)}")
            return found

        consumer.broker.claim = asking  # type: ignore[method-assign]
        consumer.broker.wait = waiting  # type: ignore[method-assign]
        for n in (1, 2):  # the first ends the waiting that was under way
            del asked[:]
            await consumer.queue(note, n=n)
            await until(lambda: len(notes.done) == n and asked and asked[-1] == "got 0")  # noqa: B023
        got = asked.index("got 1")
        assert asked[got + 1] == "asked with 2 done"

    async def test_without_slots_or_told_not_to(self, start: Start, notes: Notes) -> None:
        none = await start(max_concurrent_tasks=0)
        await start(consume_tasks=False)
        await none.queue("note", n=1)
        await pass_time(0.2)
        assert await places(none.broker) == {"medium": 1}
        await start()
        await until(lambda: notes.done == [1])

    async def test_batches_of_payloads_that_are_large(self, start: Start, notes: Notes) -> None:
        consumer = await start(max_concurrent_tasks=2)
        for n in range(30):
            await consumer.queue("note", n=n, text="x" * 900_000)
        await until(lambda: len(notes.done) == 30)
        assert sorted(notes.done) == list(range(30))


class TestUnreadable:
    async def test_goes_to_the_dead_and_the_others_run(
        self, start: Start, notes: Notes, keeps: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        keeps.append("ff:dead")
        consumer = await start(max_concurrent_tasks=2)
        deep = b'{"task":"note","params":{"n":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
        bad = [
            b"",
            b"\xff\xfe not json",
            b"null",
            b"[]",
            b"3",
            b'{"params": {}}',
            b'{"task": 3}',
            b'{"task": "nonesuch", "params": {}}',
            b'{"task": "note", "params": ',
            b'{"task": "note", "params": [1]}',
            b'{"task": "note", "priority": "urgent"}',
            b'{"task": "note", "queued": "yesterday"}',
            b'{"task": "strict", "params": {"n": "one"}}',
            b'{"task": "strict", "params": {}}',
            deep,
            b"\x90",
            b"\x91\xa1x",
            b'{"task": "note", "params": {"n": nan}}',
        ]
        good = [b'{"task": "note", "params": {"n": %d}}' % n for n in range(len(bad))]
        for one, other in zip(bad, good, strict=True):
            await put(consumer.broker, one, other)
        await until(lambda: len(notes.done) == len(good))
        await until(lambda: dead_count(consumer, len(bad)))
        dead = await consumer.broker.dead(100)
        assert Counter(payload for _, payload in dead) == Counter(bad)
        reasons = {payload: head for head, payload in dead}
        assert "nonesuch" in reasons[b'{"task": "nonesuch", "params": {}}']
        assert "strict" in reasons[b'{"task": "strict", "params": {}}']
        assert all("\n" not in head and len(head) < 1100 for head in reasons.values())
        assert consumer.is_running()
        await consumer.queue("note", n="after")
        await until(lambda: "after" in notes.done)

    async def test_params_that_do_not_fit_are_a_failure(self, start: Start, keeps: list[str]) -> None:
        keeps.append("ff:dead")
        consumer = await start()
        events = told(consumer)
        await put(consumer.broker, b'{"task": "strict", "params": {"n": "one"}}')
        await until(lambda: dead_count(consumer, 1))
        assert events == [("strict", "failure")]
        assert (await info(consumer, "strict")).last_run_state is TaskState.failure

    async def test_what_is_larger_than_the_limit(self, start: Start, notes: Notes, keeps: list[str]) -> None:
        keeps.append("ff:dead")
        consumer = await start(max_payload_bytes=1000)
        large = json.dumps({"task": "note", "params": {"n": "x" * 1000}}).encode()
        await put(consumer.broker, large)
        await consumer.queue("note", n=1)
        await until(lambda: notes.done == [1])
        await until(lambda: dead_count(consumer, 1))
        assert (await consumer.broker.dead())[0][1] == large


class TestDisabled:
    async def test_ends_as_aborted(self, start: Start, notes: Notes) -> None:
        consumer = await start()
        events = told(consumer)
        await consumer.queue("note", n=1)
        await until(lambda: notes.done == [1])
        await consumer.broker.enable_task("note", False)
        await until(lambda: empty(consumer))
        events.clear()
        await consumer.queue("note", n=2)
        await consumer.queue("strict", n=3)
        await until(lambda: ("note", "aborted") in events)
        await until(lambda: 3 in notes.done)
        assert ("note", "running") not in events
        await until(lambda: empty(consumer))
        found = await info(consumer, "note")
        assert (found.enabled, found.last_run_state) == (False, TaskState.aborted)
        await consumer.broker.enable_task("note")
        await consumer.queue("note", n=4)
        await until(lambda: 4 in notes.done)
        assert notes.done == [1, 3, 4]

    async def test_before_the_consumer_has_heard_of_the_task(self, start: Start, notes: Notes, broker_url: str) -> None:
        async with TaskManager(broker_url=broker_url) as manager:
            manager.register_task(note)
            await manager.broker.enable_task("note", False)
            await manager.queue("note", n=1)
            consumer = await start()
            events = told(consumer)
            await until(lambda: events)
            assert events == [("note", "aborted")]
        assert notes.done == []
