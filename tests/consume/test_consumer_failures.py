"""What becomes of runs that fail, take too long, or are tried again."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import Counter
from time import monotonic
from typing import Any

import pytest
from kits.broker_kit import put
from kits.consumer_kit import Notes, Start, are, clean, dead_count, empty, empty_after, failing, gated, info, note, told
from kits.waiting import pass_time, until

from fluidfast import RetryPolicy, TaskRun, TaskState, task
from fluidfast.core.task import Task


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
        monkeypatch.setattr("fluidfast.consume.timeouts.CANCEL_AGAIN_SECONDS", 0.05)

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
        assert "cannot be retried" in head
        assert events[-1] == (name, "failure")
        assert notes.started == ([0] if why == "failed" else [1])
        await consumer.queue("note", n=2)
        await until(lambda: notes.done == [2])
        notes.gate.set()
        await until(lambda: not consumer.engine.settler.leases)

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
