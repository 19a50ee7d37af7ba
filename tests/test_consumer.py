"""The consumer: what it runs, what becomes of what fails, how many at a time, and how it leaves."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import msgspec
import pytest
from broker_kit import MEDIUM, left_in_memory, places, put, with_options
from waiting import pass_time, until, within

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, TaskState, task
from fluidfast._leases import Claimed
from fluidfast._slots import MAX_CLAIM
from fluidfast.broker import TaskBroker
from fluidfast.errors import CpuBoundEntryPointError, WorkerStartError
from fluidfast.memory_broker import MemoryTaskBroker
from fluidfast.redis_broker import RedisTaskBroker
from fluidfast.task import Task
from fluidfast.workers import Worker, WorkerFunction

Start = Callable[..., Awaitable[TaskConsumer]]


class Notes:
    """What tasks tell the test, as ``ctx.deps``."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.started: list[Any] = []
        self.running = 0
        self.most = 0
        self.gate = asyncio.Event()
        self.lock = threading.Lock()

    def enter(self) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)

    def leave(self) -> None:
        with self.lock:
            self.running -= 1


@task
async def note(ctx: TaskRun[Any, Notes]) -> None:
    """Notes n."""
    ctx.deps.done.append(ctx.params.get("n"))


@task
async def gated(ctx: TaskRun[Any, Notes]) -> None:
    """Waits for the gate."""
    ctx.deps.enter()
    ctx.deps.started.append(ctx.params.get("n"))
    try:
        await ctx.deps.gate.wait()
    finally:
        ctx.deps.leave()
    ctx.deps.done.append(ctx.params.get("n"))


@task
async def failing(ctx: TaskRun[Any, Notes]) -> None:
    """Fails."""
    ctx.deps.started.append(ctx.retry_attempt)
    raise ZeroDivisionError("on purpose")


class Strict(msgspec.Struct):
    n: int


@task
async def strict(ctx: TaskRun[Strict, Notes]) -> None:
    """Takes an int."""
    ctx.deps.done.append(ctx.params.n)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def keeps(no_leaked_keys: Any) -> list[str]:
    """Names of what the test leaves on the broker on purpose; info of tasks is always left."""
    no_leaked_keys.allow("*-tasks-*")
    return ["tasks"]


@pytest.fixture
async def start(broker_url: str, notes: Notes, keeps: list[str], no_leaked_keys: Any) -> AsyncIterator[Start]:
    """Starts consumers, with the tasks given; shuts them down at the end."""
    consumers: list[TaskConsumer] = []
    keeper: list[TaskBroker] = []

    async def start_one(*tasks: Task[Any], **options: Any) -> TaskConsumer:
        url = with_options(broker_url, **options.pop("url_options", {}))
        options = {"max_concurrent_tasks": 5, "stopping_grace_period": 5, "deps": notes, **options}
        consumer = TaskConsumer(broker_url=url, **options)
        for one in (note, gated, failing, strict, *tasks):
            consumer.register_task(one)
        consumers.append(consumer)
        keeper.append(consumer.broker)
        await consumer.startup()
        return consumer

    yield start_one
    notes.gate.set()
    for consumer in consumers:
        await within(consumer.shutdown(), 30)
        await consumer.broker.close()
    no_leaked_keys.allow(*(f"*-{name}*" for name in keeps))
    if keeper and isinstance(keeper[0], MemoryTaskBroker):
        assert [name for name in left_in_memory(keeper[0]) if not name.startswith(tuple(keeps))] == []


def codec_n(manager: TaskManager, payload: bytes) -> Any:
    """The param n in a payload."""
    manager.register_task(gated)
    return manager.broker.codec.decode(payload, manager).params["n"]


async def empty(consumer: TaskManager) -> bool:
    """Whether everything is settled."""
    return await places(consumer.broker) == {}


def told(consumer: TaskConsumer) -> list[tuple[str, str]]:
    """(task, state) of every event from now on."""
    events: list[tuple[str, str]] = []
    for state in TaskState:
        consumer.dispatcher.register_handler(f"{state}.told", lambda run: events.append((run.name, str(run.state))))
    return events


async def info(consumer: TaskManager, name: str) -> Any:
    return (await consumer.broker.get_tasks_info(name))[0]


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
        claim, accept = consumer.broker.claim, consumer.engine._accept

        known: list[bool] = []

        async def asked(who: str, limit: int, **options: Any) -> Any:
            steps.append(("ask", limit))
            found = await claim(who, limit, **options)
            if found.items:  # a batch that is given has to be prolonged from then on, whatever the event loop does next
                leases = consumer.engine._leases
                asyncio.get_running_loop().call_soon(lambda: known.append(found.batch in leases))
            return found

        async def read(found: Any) -> None:
            steps.append(("read", len(found.items)))
            await accept(found)

        monkeypatch.setattr(consumer.broker, "claim", asked)
        monkeypatch.setattr(consumer.engine, "_accept", read)
        await consumer.queue_many("note", ({"n": n} for n in range(12_000)))
        consumer.engine._prefetch = 2000
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
        consumer.engine._prefetch = 2000
        consumer.engine.concurrency = 1
        await until(lambda: claims[-2:] == [1000, 1000])
        stopping = asyncio.create_task(consumer.shutdown())
        await until(lambda: consumer.engine._draining)
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
        await until(lambda: one.engine._waiting)
        if isinstance(one.broker, RedisTaskBroker):
            await until(lambda: one.manager_id in one.broker._wakeups)
            await until(lambda: len(one.broker._wakeups[one.manager_id].pending) == 3)
        one.config.consume_tasks = False
        await until(lambda: not one.engine._waiting)  # which it does not do for ever
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
        monkeypatch.setattr("fluidfast.engine.HOLD_SECONDS", 0.1)
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

        consumer.broker.claim = asking  # type: ignore[method-assign]
        await consumer.queue(note, n=1)
        await until(lambda: notes.done and asked and asked[-1] == "got 0")
        got = asked.index("got 1")
        assert asked[got + 1] == "asked with 1 done"

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
            b'{"task": "note", "params": {"n": NaN}}',
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


async def dead_count(consumer: TaskManager, n: int) -> bool:
    return await places(consumer.broker) == {"dead": n}


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


class TestFailure:
    async def test_fails_once(self, start: Start, notes: Notes, caplog: pytest.LogCaptureFixture) -> None:
        consumer = await start()
        events = told(consumer)
        await consumer.queue("failing")
        await until(lambda: empty_after(consumer, events, "failure"))
        assert [state for _, state in events] == ["init", "queued", "running", "failure"]
        assert (await info(consumer, "failing")).last_run_state is TaskState.failure
        assert "on purpose" in caplog.text

    async def test_abort(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        @task(retry=RetryPolicy(max_attempts=3, wait=0))
        async def aborting(ctx: TaskRun[Any, Notes]) -> None:
            ctx.abort("no need")

        consumer = await start(aborting)
        events = told(consumer)
        await consumer.queue("aborting")
        await until(lambda: empty_after(consumer, events, "aborted"))
        assert [state for _, state in events] == ["init", "queued", "running", "aborted"]
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "aborting" in r.name]

    @pytest.mark.parametrize(
        "error",
        [
            SystemExit(3),
            KeyboardInterrupt(),
            BaseException("odd"),
            asyncio.CancelledError("odd"),
            TimeoutError("mine"),
            MemoryError(),
            RecursionError("odd"),
            StopAsyncIteration(),
            BaseExceptionGroup("odd", [SystemExit(3), ValueError()]),
        ],
        ids=lambda error: type(error).__name__,
    )
    @pytest.mark.parametrize("threaded", [False, True])
    async def test_whatever_a_task_raises(
        self, start: Start, notes: Notes, error: BaseException, threaded: bool
    ) -> None:
        @task
        async def raising(ctx: TaskRun[Any, Notes]) -> None:
            raise error

        @task
        def raising_in_a_thread(ctx: TaskRun[Any, Notes]) -> None:
            raise error

        consumer = await start(raising, raising_in_a_thread, clean, max_concurrent_tasks=1)
        events = told(consumer)
        name = "raising_in_a_thread" if threaded else "raising"
        for _ in range(3):
            await consumer.queue(name)
        await consumer.queue("clean")
        await until(lambda: notes.done)
        assert notes.done == [0]
        await until(lambda: empty(consumer))
        assert events.count((name, "failure")) == 3
        assert consumer.is_running()

    async def test_whatever_a_task_does_with_cancellation(self, start: Start, notes: Notes) -> None:
        """A slot is a task of the loop; whatever a run does to it is not to reach the next run."""

        @task
        async def cancels_itself(ctx: TaskRun[Any, Notes]) -> None:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            if ctx.params.how == "awaits":
                await asyncio.sleep(60)
            elif ctx.params.how == "raises":
                raise ValueError
            elif ctx.params.how == "often":
                for _ in range(3):
                    asyncio.current_task().cancel()  # type: ignore[union-attr]
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        pass

        @task
        async def awaits_what_is_cancelled(ctx: TaskRun[Any, Notes]) -> None:
            inner = asyncio.create_task(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(inner.cancel)
            await inner

        consumer = await start(cancels_itself, awaits_what_is_cancelled, clean, max_concurrent_tasks=1)
        events = told(consumer)
        ways = ["returns", "awaits", "raises", "often"]
        for how in ways * 2:
            await consumer.queue("cancels_itself", how=how)
            await consumer.queue("clean")
        await consumer.queue("awaits_what_is_cancelled")
        await consumer.queue("clean")
        await until(lambda: len(notes.done) == 2 * len(ways) + 1)
        assert set(notes.done) == {0}
        await until(lambda: empty(consumer))
        assert ("awaits_what_is_cancelled", "failure") in events
        assert consumer.is_running()

    async def test_in_another_slot_nobody_notices(self, start: Start, notes: Notes) -> None:
        @task
        async def exits(ctx: TaskRun[Any, Notes]) -> None:
            await asyncio.sleep(0)
            raise SystemExit(1)

        consumer = await start(exits)
        await consumer.queue("gated", n=1)
        await until(lambda: notes.running == 1)
        for n in range(20):
            await consumer.queue("exits")
            await consumer.queue("note", n=n)
        await until(lambda: len(notes.done) == 20)
        notes.gate.set()
        await until(lambda: len(notes.done) == 21)


@task
async def clean(ctx: TaskRun[Any, Notes]) -> None:
    """Notes how often its asyncio task has been cancelled, after a moment in which that would tell."""
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await asyncio.sleep(0)
    ctx.deps.done.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]


async def empty_after(consumer: TaskConsumer, events: list[tuple[str, str]], state: str) -> bool:
    return any(s == state for _, s in events) and await empty(consumer)


class TestTimeout:
    async def test_a_run_that_never_ends(self, start: Start, notes: Notes, caplog: pytest.LogCaptureFixture) -> None:
        consumer = await start(gated._replace(timeout_seconds=0.1), clean, max_concurrent_tasks=1)
        events = told(consumer)
        begin = monotonic()
        await consumer.queue("gated", n=1)
        await consumer.queue("clean")
        await until(lambda: notes.done == [0])
        assert 0.09 < monotonic() - begin < 5
        await until(lambda: empty(consumer))
        assert ("gated", "failure") in events
        assert "longer than 0.1 s" in caplog.text

    async def test_each_by_its_own(self, start: Start, notes: Notes) -> None:
        @task
        async def sleeping(ctx: TaskRun[Any, Notes]) -> None:
            begin = monotonic()
            try:
                await asyncio.sleep(60)
            finally:
                ctx.deps.done.append((ctx.name, monotonic() - begin))

        seconds = {"a": 0.3, "b": 0.05, "c": 0.15}
        consumer = await start(*(sleeping._replace(name=name, timeout_seconds=s) for name, s in seconds.items()))
        for name in seconds:
            await consumer.queue(name)
        await until(lambda: len(notes.done) == 3)
        assert [name for name, _ in notes.done] == ["b", "c", "a"]
        for name, took in notes.done:
            assert seconds[name] - 0.01 < took < seconds[name] + 2

    @pytest.mark.parametrize("times", [1, 3])
    async def test_a_handler_that_swallows_the_cancel(
        self, start: Start, notes: Notes, times: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fluidfast.engine.CANCEL_AGAIN_SECONDS", 0.05)

        @task(timeout_seconds=0.1)
        async def stubborn(ctx: TaskRun[Any, Notes]) -> None:
            for _ in range(ctx.params.times):
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    ctx.deps.started.append("swallowed")
            if ctx.params.ends == "waits":
                await asyncio.sleep(60)
            elif ctx.params.ends == "raises":
                raise ValueError

        consumer = await start(stubborn, clean, max_concurrent_tasks=1)
        events = told(consumer)
        for ends in ("waits", "returns", "raises"):
            await consumer.queue("stubborn", times=times, ends=ends)
            await consumer.queue("clean")
        await until(lambda: len(notes.done) == 3)
        assert notes.done == [0, 0, 0]
        await until(lambda: empty(consumer))
        ends = [state for name, state in events if name == "stubborn" and state in ("success", "failure")]
        assert ends == ["failure", "success", "failure"]  # who finishes, although late, has finished

    async def test_in_a_thread(self, start: Start, notes: Notes) -> None:
        release = threading.Event()

        @task(timeout_seconds=0.1)
        def hangs(ctx: TaskRun[Any, Notes]) -> None:
            release.wait(20)

        consumer = await start(hangs, clean, max_concurrent_tasks=1)
        events = told(consumer)
        await consumer.queue("hangs")
        await consumer.queue("clean")
        await until(lambda: notes.done == [0])
        assert ("hangs", "failure") in events
        release.set()

    async def test_the_time_of_the_last_run_is_not_the_next_ones(self, start: Start, notes: Notes) -> None:
        """While a slot waits for its turn under max_concurrency, the timeout of what it ran before means nothing."""
        brief = note._replace(name="brief", timeout_seconds=0.05)
        limited = note._replace(name="limited", max_concurrency=1)
        consumer = await start(brief, limited, clean, max_concurrent_tasks=1)
        acquire = consumer.broker.acquire

        async def slow(task: Task[Any], run_id: str) -> bool:
            await pass_time(0.2)
            return await acquire(task, run_id)

        consumer.broker.acquire = slow  # type: ignore[method-assign]
        await consumer.queue("brief", n=1)
        await consumer.queue("limited", n=2)
        await consumer.queue("clean")
        await until(lambda: len(notes.done) == 3)
        assert notes.done == [1, 2, 0]

    async def test_the_time_of_a_refused_run_is_not_the_next_ones(self, start: Start, notes: Notes) -> None:
        """The time of a run counts from its own start, also behind one that got no turn under max_concurrency."""

        @task(timeout_seconds=0.25)
        async def brief(ctx: TaskRun[Any, Notes]) -> None:
            await asyncio.sleep(0.03)
            ctx.deps.done.append(1)

        limited = note._replace(name="limited", max_concurrency=1)
        consumer = await start(clean, limited, brief, max_concurrent_tasks=1)

        async def refuse(task: Task[Any], run_id: str) -> bool:
            await pass_time(0.4)
            return False

        consumer.broker.acquire = refuse  # type: ignore[method-assign]
        events = told(consumer)
        await consumer.queue_many("clean", [{}])
        await consumer.queue_many("limited", [{"n": 2}])
        await consumer.queue_many("brief", [{}])
        await until(lambda: ("brief", "success") in events or ("brief", "failure") in events)
        assert ("limited", "rate_limited") in events
        assert notes.done == [0, 1]


class TestRetry:
    async def test_until_it_succeeds(self, start: Start, notes: Notes) -> None:
        @task(retry=RetryPolicy(max_attempts=5, wait=0.01))
        async def flaky(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.started.append((ctx.id, ctx.retry_attempt, ctx.state, ctx.params.n))
            if ctx.retry_attempt < 2:
                raise ZeroDivisionError
            ctx.deps.done.append(ctx.params.n)

        consumer = await start(flaky)
        events = told(consumer)
        run = await consumer.queue("flaky", "low", n=7)
        await until(lambda: notes.done == [7])
        await until(lambda: empty(consumer))
        assert notes.started == [(run.id, n, "running", 7) for n in range(3)]
        states = [state for _, state in events]
        assert states == ["init", "queued", *["running", "failure"] * 2, "running", "success"]

    async def test_no_more_often_than_it_says_and_then_to_the_dead(
        self, start: Start, notes: Notes, keeps: list[str]
    ) -> None:
        keeps.append("ff:dead")
        consumer = await start(failing._replace(retry=RetryPolicy(max_attempts=2, wait=0.01)))
        run = await consumer.queue("failing", n="é")
        await until(lambda: dead_count(consumer, 1))
        assert notes.started == [0, 1, 2]
        ((head, payload),) = await consumer.broker.dead()
        assert "ZeroDivisionError after 2 retries: on purpose" in head
        found = json.loads(payload)
        assert (found["id"], found["params"], found["retry_attempt"]) == (run.id, {"n": "é"}, 2)

    @pytest.mark.parametrize("why", ["failed", "limited"])
    async def test_too_large_to_be_tried_again(self, start: Start, notes: Notes, keeps: list[str], why: str) -> None:
        """What a retry adds (its number, its time) may be too much: it goes to the dead as it was, and the slot goes
        on."""
        keeps.append("ff:dead")
        policy = RetryPolicy(max_attempts=5, wait=0.01)
        limited = gated._replace(name="limited", max_concurrency=1, rate_limit_retry=policy)
        consumer = await start(
            failing._replace(retry=policy), limited, max_concurrent_tasks=1 if why == "failed" else 2
        )
        events = told(consumer)
        if why == "limited":
            await consumer.queue(limited, n=1)
            await until(lambda: notes.started == [1])
        name = "failing" if why == "failed" else "limited"
        payload = consumer.create_task_run(name, n="x" * 300).queue_dump_json()
        payload = payload if isinstance(payload, bytes) else payload.encode()
        consumer.broker.use(max_payload_bytes=len(payload))
        await put(consumer.broker, payload)
        await until(consumer.broker.dead_length)
        ((head, found),) = await consumer.broker.dead()
        assert found == payload
        assert "cannot be tried again" in head
        assert events[-1] == (name, "failure")
        assert notes.started == ([0] if why == "failed" else [1])
        await consumer.queue("note", n=2)
        await until(lambda: notes.done == [2])
        notes.gate.set()
        await until(lambda: not consumer.engine._leases)

    async def test_never(self, start: Start, notes: Notes, keeps: list[str]) -> None:
        keeps.append("ff:dead")
        consumer = await start(failing._replace(retry=RetryPolicy(max_attempts=0)))
        await consumer.queue("failing")
        await until(lambda: dead_count(consumer, 1))
        assert notes.started == [0]

    async def test_only_what_it_names(self, start: Start, notes: Notes, keeps: list[str]) -> None:
        keeps.append("ff:dead")
        policy = RetryPolicy(max_attempts=2, wait=0.01, exceptions=(KeyError, OSError))

        @task(retry=policy)
        async def raising(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.started.append(ctx.params.error)
            raise {"key": KeyError, "os": ConnectionError, "value": ValueError, "exit": SystemExit}[ctx.params.error]

        consumer = await start(raising)
        for error in ("key", "os", "value", "exit"):
            await consumer.queue("raising", error=error)
        await until(lambda: dead_count(consumer, 4))
        assert Counter(notes.started) == {"key": 3, "os": 3, "value": 1, "exit": 1}

    async def test_after_a_timeout(self, start: Start, notes: Notes) -> None:
        @task(timeout_seconds=0.05, retry=RetryPolicy(max_attempts=1, wait=0.01, exceptions=(TimeoutError,)))
        async def slow_at_first(ctx: TaskRun[Any, Notes]) -> None:
            if not ctx.retry_attempt:
                await asyncio.sleep(60)
            ctx.deps.done.append(ctx.retry_attempt)

        consumer = await start(slow_at_first)
        await consumer.queue("slow_at_first")
        await until(lambda: notes.done == [1])

    async def test_waits_as_the_policy_says(self, start: Start, notes: Notes) -> None:
        @task(retry=RetryPolicy(max_attempts=3, wait=0.1, backoff=2))
        async def flaky(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.started.append(monotonic())
            if ctx.retry_attempt < 2:
                raise ZeroDivisionError

        consumer = await start(flaky)
        await consumer.queue("flaky")
        await until(lambda: len(notes.started) == 3)
        first, second = (b - a for a, b in zip(notes.started, notes.started[1:], strict=False))
        assert 0.09 < first < 2
        assert 0.19 < second < 2.5

    async def test_with_the_params_as_they_came(self, start: Start, notes: Notes) -> None:
        @task(retry=RetryPolicy(max_attempts=1, wait=0.01))
        async def spoils(ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.started.append(dict(ctx.params))
            ctx.params["n"] = object()
            ctx.params["more"] = threading.Lock()
            if not ctx.retry_attempt:
                raise ZeroDivisionError

        consumer = await start(spoils, clean, max_concurrent_tasks=1)
        await consumer.queue("spoils", n=1)
        await until(lambda: len(notes.started) == 2)
        await consumer.queue("clean")
        await until(lambda: notes.done == [0])
        assert notes.started == [{"n": 1}, {"n": 1}]

    async def test_others_run_meanwhile(self, start: Start, notes: Notes, keeps: list[str]) -> None:
        consumer = await start(failing._replace(retry=RetryPolicy(wait=60)), max_concurrent_tasks=1)
        for n in range(5):
            await consumer.queue("failing")
            await consumer.queue("note", n=n)
        await until(lambda: len(notes.done) == 5)
        await until(lambda: are(consumer, {"delayed": 5}))
        await consumer.broker.clear()


async def are(consumer: TaskManager, wanted: dict[str, int]) -> bool:
    return await places(consumer.broker) == wanted


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


async def settled(consumer: TaskManager) -> bool:
    return set(await places(consumer.broker)) <= {"dead"}


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
        await until(lambda: consumer.engine._draining)
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
            monkeypatch.setattr("fluidfast.engine.END_OF_WAITING_SECONDS", 0.2)
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
        stopping = asyncio.create_task(consumer.shutdown())
        engine = consumer.engine
        await until(lambda: engine._draining)
        if late:
            await until(lambda: engine._room is not None and not engine._room.done())  # it waits for what runs
            answer.set()
            await until(lambda: engine._ready)
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
    """Let the leases of a consumer run out and be taken back before it can prolong them."""
    broker = consumer.broker
    sweeper = TaskBroker.from_url(with_options(url, lease_seconds=0.002))
    if isinstance(broker, MemoryTaskBroker):
        for lease in broker.store.leases.values():
            lease.deadline = -1.0
    else:
        assert isinstance(broker, RedisTaskBroker)
        for batch in list(consumer.engine._leases):
            await broker.redis_cli.zadd(broker.keys.leases, {batch: 1})
    taken = await sweeper.reap()
    await asyncio.sleep(0.0012)
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
        assert await places(consumer.broker) == {"medium": 1}
        settle = consumer.broker.settle
        answers: list[bool] = []

        async def settled_as(settlement: Any) -> bool:
            answers.append(await settle(settlement))
            return answers[-1]

        consumer.broker.settle = settled_as  # type: ignore[method-assign]
        notes.gate.set()
        await until(lambda: len(notes.done) == 2)  # it is delivered again, to the same consumer
        await until(lambda: empty(consumer))
        assert answers == [False, True]

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
        monkeypatch.setattr("fluidfast.engine.QUIET_SECONDS", 0.2)
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
