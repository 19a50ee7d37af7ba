"""Plain functions: threads of the consumer's own, whose time counts from their start, and what becomes of those that
hang."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kits.broker_kit import places, with_options
from kits.command_kit import Running, run
from kits.command_kit import until as wait_until
from kits.consumer_kit import empty
from kits.waiting import until, within

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.errors import HungThreadsError
from fluidfast.execute.threads import NAME

Consuming = Callable[..., Any]
tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


class Gate:
    """What functions in threads wait for, and what they tell."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = self.began = 0
        self.ended: Counter[str] = Counter()

    def wait(self) -> None:
        """Block until the gate opens: what a function does that hangs."""
        with self.lock:
            self.began += 1
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.open.wait(60)
        with self.lock:
            self.now -= 1


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()
    await until(lambda: not our_threads())  # an idle thread ends with its consumer, one that hung with its function


@pytest.fixture
def consuming(broker_url: str, gate: Gate, no_leaked_keys: Any) -> Consuming:
    no_leaked_keys.allow("*-tasks-*")

    @asynccontextmanager
    async def consuming(
        *tasks: Any, url_options: dict[str, Any] | None = None, prefetch: int = 0, **options: Any
    ) -> Any:
        url = with_options(broker_url, **(url_options or {}))
        consumer = TaskConsumer(broker_url=url, deps=gate, stopping_grace_period=0.2, **options)
        consumer.engine.slots.prefetch = prefetch
        for one in tasks:
            consumer.register_task(one)
        for state in ("success", "failure"):
            consumer.dispatcher.register_handler(
                f"{state}.test", lambda run: gate.ended.update([f"{run.name} {run.state}"])
            )
        await consumer.startup()
        try:
            yield consumer
        finally:
            gate.open.set()
            await within(consumer.shutdown())
            await consumer.broker.close()

    return consuming


@task(timeout_seconds=0.2)
def hang(ctx: TaskRun[Any, Gate]) -> None:
    ctx.deps.wait()


@task
def good(ctx: TaskRun[Any, Gate]) -> None: ...


@task
async def in_loop(ctx: TaskRun[Any, Gate]) -> None: ...


# -- a thread for each slot


async def test_every_slot_has_a_thread(consuming: Consuming, gate: Gate) -> None:
    """More than the event loop's default pool has, all at once."""

    @task
    def meet(ctx: TaskRun[Any, Gate]) -> None:
        ctx.deps.wait()

    slots = 40
    async with consuming(meet, max_concurrent_tasks=slots) as consumer:
        for _ in range(slots):
            await consumer.queue("meet")
        await until(lambda: gate.now == slots)
        gate.open.set()
        await until(lambda: gate.ended == {"meet success": slots})
        assert len(our_threads()) == slots
        assert all(thread.daemon for thread in our_threads())


async def test_threads_are_made_when_they_are_needed(consuming: Consuming, gate: Gate) -> None:
    async with consuming(good, max_concurrent_tasks=40) as consumer:
        assert our_threads() == []
        for _ in range(10):
            run = await consumer.queue_and_wait("good", timeout=20)
            assert str(run.state) == "success"
        assert len(our_threads()) <= 2  # one may not have come back when the next run starts
    await until(lambda: not our_threads())  # while this process goes on


async def test_time_counts_from_the_start_in_the_thread(
    consuming: Consuming, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that waits for a thread, because the system gives no more, does not time out, and runs later."""

    @task(timeout_seconds=20)
    def first(ctx: TaskRun[Any, Gate]) -> None:
        ctx.deps.wait()

    @task(timeout_seconds=0.1)
    def second(ctx: TaskRun[Any, Gate]) -> None: ...

    async with consuming(first, second, max_concurrent_tasks=2) as consumer:
        await consumer.queue("first")
        await until(lambda: gate.now == 1)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        await consumer.queue("second")
        engine = consumer.engine
        waiting = await until(lambda: [slot for slot in engine.slots if slot.job is not None and not slot.job.began])
        deadline = waiting[0].deadline
        await until(lambda: waiting[0].deadline > deadline)  # its time was up, and it has another
        gate.open.set()
        await until(lambda: gate.ended == {"first success": 1, "second success": 1})


start = threading.Thread.start


def refuse(thread: threading.Thread) -> None:
    if thread.name.startswith(NAME):
        raise RuntimeError("can't start new thread")
    start(thread)


async def test_a_run_without_a_thread_goes_back(
    consuming: Consuming, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fluidfast.consume.plain.AGAIN_SECONDS", 0.05)
    retried = good._replace(name="retried", retry=RetryPolicy(max_attempts=1, wait=0.01))
    async with consuming(retried, max_concurrent_tasks=2) as consumer:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            await consumer.queue("retried")
            await until(lambda: caplog.text.count("it goes back to its queue: the system refused a thread") >= 2)
        await until(lambda: gate.ended == {"retried success": 1})
        await until(lambda: empty(consumer))


# -- what a thread sees


async def test_a_thread_sees_the_context_of_its_run(consuming: Consuming, gate: Gate) -> None:
    seen: dict[str, str] = {}

    @task
    def plain(ctx: TaskRun[Any, Gate]) -> None:
        seen[ctx.name] = tenant.get()
        tenant.set("changed in the thread")

    @task(batch=2, batch_wait=0.01)
    def plain_batch(runs: list[TaskRun[Any, Gate]]) -> None:
        seen[runs[0].name] = tenant.get()

    async with consuming(plain, plain_batch, max_concurrent_tasks=1) as consumer:
        consumer.dispatcher.register_handler("running.bind", lambda run: tenant.set(f"of {run.name}"))
        for name in ("plain", "plain_batch"):
            await within(consumer.queue_and_wait(name))
            assert seen[name] == f"of {name}"
        tenant.set("the caller's")
        plain_task = consumer.registry["plain"]
        consumer.dispatcher.unregister_handler("running.bind")
        await consumer.execute(plain_task)
        assert seen["plain"] == "the caller's"
        assert tenant.get() == "the caller's"


@pytest.mark.parametrize("error", [StopIteration, GeneratorExit, asyncio.CancelledError, SystemExit, ZeroDivisionError])
async def test_whatever_a_plain_function_raises_fails_its_run(
    consuming: Consuming, gate: Gate, error: type[BaseException]
) -> None:
    @task
    def raises(ctx: TaskRun[Any, Gate]) -> None:
        raise error

    async with consuming(raises, good, max_concurrent_tasks=1) as consumer:
        await consumer.queue("raises")
        await consumer.queue("good")
        await until(lambda: gate.ended == {"raises failure": 1, "good success": 1})


async def test_a_plain_function_may_return_a_coroutine(consuming: Consuming, gate: Gate) -> None:
    """Its time is one: that in the thread, and that in the event loop."""

    async def rest() -> None:
        await asyncio.sleep(60)

    @task(timeout_seconds=0.2)
    def returns(ctx: TaskRun[Any, Gate]) -> Coroutine[Any, Any, None]:
        return rest()

    async with consuming(returns) as consumer:
        run = await consumer.queue_and_wait("returns", timeout=20)
        assert str(run.state) == "failure"
        assert not consumer.engine.functions.hung


# -- those that hang


async def test_others_run_beside_threads_that_hang(
    consuming: Consuming, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    async with consuming(hang, good, in_loop, max_concurrent_tasks=2) as consumer:
        for _ in range(6):
            await consumer.queue("hang")
        await until(lambda: gate.ended["hang failure"] == 6)
        for name in ("good", "in_loop"):
            assert str((await within(consumer.queue_and_wait(name))).state) == "success"
        assert (await consumer.engine.status())["threads_hung"] == 6
        assert "hung threads: hang 6 (32 are tolerated; 2 slots are left)" in caplog.text
        with caplog.at_level(logging.INFO, "fluidfast"):
            gate.open.set()
            await until(lambda: "hung threads: none" in caplog.text)
        assert (await consumer.engine.status())["threads_hung"] == 0


async def test_a_batch_may_hang(consuming: Consuming, gate: Gate) -> None:
    @task(batch=3, batch_wait=0.01, timeout_seconds=0.2)
    def hang_batch(runs: list[TaskRun[Any, Gate]]) -> None:
        runs[0].deps.wait()

    async with consuming(hang_batch, good, max_concurrent_tasks=1) as consumer:
        await consumer.queue_many("hang_batch", ({} for _ in range(3)))
        await until(lambda: gate.ended["hang_batch failure"] == 3)
        await within(consumer.queue_and_wait("good"))
        assert consumer.engine.functions.hung == gate.now >= 1  # one, unless a slow machine split the batch


@pytest.mark.parametrize("retry", [None, RetryPolicy(max_attempts=1, wait=0.01)], ids=["plain", "retried"])
async def test_a_thread_that_hangs_counts_under_max_concurrency(
    consuming: Consuming, gate: Gate, monkeypatch: pytest.MonkeyPatch, retry: RetryPolicy | None
) -> None:
    """Until its function has returned, which is longer than a lease here, on all consumers."""
    monkeypatch.setattr("fluidfast.consume.admission.AGAIN_SECONDS", 0.05)
    asked: Counter[str] = Counter()
    alone = hang._replace(
        name="alone", max_concurrency=1, rate_limit_retry=RetryPolicy(wait=0.02), retry=retry, timeout_seconds=0.1
    )
    lease = {"lease_seconds": 0.4}
    async with consuming(alone, url_options=lease) as one, consuming(alone, url_options=lease) as two:
        for consumer in (one, two):
            consumer.broker.acquire = counting(consumer.broker.acquire, asked)
        await one.queue("alone")
        await until(lambda: one.engine.functions.hung or two.engine.functions.hung)
        await one.queue("alone")
        seen = asked["refused"]
        await until(lambda: asked["seconds"] > 0.9 and asked["refused"] > seen + 5)
        assert gate.most == 1
        assert await one.broker.current_task_runs("alone") == 1
        gate.open.set()
        await until(lambda: empty(one), every=0.05)
        await until(lambda: gate.now == 0)
        assert gate.most == 1
        assert gate.began >= 2
        if retry is not None:
            assert gate.ended["alone failure"] <= 2


def counting(acquire: Callable[..., Any], asked: Counter[str]) -> Callable[..., Any]:
    began = asyncio.get_running_loop().time()

    async def acquire_and_count(one: Any, slot: str) -> Any:
        granted = await acquire(one, slot)
        asked["granted" if granted else "refused"] += 1
        asked["seconds"] = asyncio.get_running_loop().time() - began  # type: ignore[assignment]
        return granted

    return acquire_and_count


async def test_a_consumer_whose_threads_all_hang_ends_with_a_reason(
    consuming: Consuming, gate: Gate, monkeypatch: pytest.MonkeyPatch, broker_url: str
) -> None:
    """Each thread beyond the room takes a slot away: nothing is claimed that could not run, or it goes back."""
    monkeypatch.setattr("fluidfast.consume.plain.HUNG_ROOM", 1)
    monkeypatch.setattr("fluidfast.consume.plain.HUNG_SECONDS", 0.2)
    async with TaskManager(broker_url=broker_url) as manager:
        for one in (hang, good):
            manager.register_task(one)
            await manager.queue_many(one, ({} for _ in range(3)))
    async with consuming(hang, good, max_concurrent_tasks=2, prefetch=10) as consumer:
        with pytest.raises(HungThreadsError, match=r"all threads hang .*\(hang 3\).*timeout of its own"):
            await within(consumer.wait_for_shutdown())
        assert consumer.is_stopped()
        assert gate.ended == {"hang failure": 3}  # and none ended unbegun
        assert sum((await consumer.broker.queue_length()).values()) == 3
        await consumer.broker.clear()


async def test_slots_come_back_with_their_threads(
    consuming: Consuming, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluidfast.consume.plain.HUNG_ROOM", 1)
    async with consuming(hang, good, in_loop, max_concurrent_tasks=2) as consumer:
        await consumer.queue_many("hang", ({} for _ in range(3)))
        await until(lambda: consumer.engine.concurrency == 0)
        await consumer.queue("good")
        await consumer.queue("in_loop")
        gate.open.set()
        await until(lambda: gate.ended == {"hang failure": 3, "good success": 1, "in_loop success": 1})
        assert consumer.engine.concurrency == 2
        assert len(our_threads()) == 3


async def test_what_runs_in_a_thread_at_shutdown_goes_back(
    consuming: Consuming, gate: Gate, broker_url: str, no_leaked_keys: Any
) -> None:
    """Its slot under max_concurrency stays taken, since its function goes on."""

    @task(max_concurrency=1)
    def long(ctx: TaskRun[Any, Gate]) -> None:
        ctx.deps.wait()

    async with consuming(long, url_options={"lease_seconds": 5}) as consumer:
        await consumer.queue("long")
        await until(lambda: gate.now == 1)
        consumer.engine.grace_seconds = 0
        await within(consumer.shutdown())
        assert (await places(consumer.broker)).get("medium") == 1
        assert gate.now == 1
        assert await consumer.broker.current_task_runs("long") == 1
        await consumer.broker.clear()


# -- with the processes

APP = """
import asyncio, time
import fluidfast.consume.plain
from fluidfast import TaskManager, task

fluidfast.consume.plain.HUNG_ROOM, fluidfast.consume.plain.HUNG_SECONDS = 1, 0.2

@task(timeout_seconds=0.3)
def hang(ctx):
    print("hang began", flush=True)
    time.sleep(600)

@task
def short(ctx):
    time.sleep(0.2)
    print("ran", flush=True)

@task
async def elsewhere(ctx):
    await asyncio.to_thread(time.sleep, 0.2)
    print("ran", flush=True)

manager = TaskManager(broker_url={url!r}, max_concurrent_tasks=1)
for one in (hang, short, elsewhere):
    manager.register_task(one)
"""


@pytest.fixture
def app(tmp_path: Path, redis_url: str, no_leaked_keys: Any) -> Path:
    no_leaked_keys.allow("*")
    (tmp_path / "app.py").write_text(APP.format(url=redis_url))
    return tmp_path


def queue(url: str, count: int, *names: str) -> None:
    manager = TaskManager(broker_url=url)
    for name in names:
        manager.register_task(good._replace(name=name))
        manager.sync.queue_many(name, ({} for _ in range(count)))
    manager.sync.close()


def test_a_worker_whose_threads_all_hang_ends_with_a_reason(app: Path, redis_url: str) -> None:
    queue(redis_url, 2, "hang")
    with Running("worker", "app:manager", cwd=app) as worker:
        assert worker.end() == 1
        assert worker.stdout.count("hang began") == 2
        reason = "fluidfast: error: the worker failed: HungThreadsError: all threads hang in plain functions"
        assert reason in worker.stderr
        assert "(hang 2)" in worker.stderr


def test_idle_threads_are_no_handlers_that_do_not_end(app: Path, redis_url: str) -> None:
    """Neither those of plain functions nor those of handlers that use asyncio.to_thread."""
    queue(redis_url, 800, "short", "elsewhere")
    with Running("worker", "app:manager", "--concurrency", "800", "--log-level", "WARNING", cwd=app) as worker:
        wait_until(lambda: worker.stdout.count("ran") == 1600, "1600 runs")
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
        assert "do not end" not in worker.stderr


def test_a_function_that_hangs_does_not_keep_the_worker(app: Path, redis_url: str) -> None:
    queue(redis_url, 1, "hang")
    with Running("worker", "app:manager", cwd=app) as worker:
        worker.wait_for("its function is still running in its thread")
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
        assert "1 handlers do not end" in worker.stderr


OWN = """
import asyncio, time
from fluidfast import TaskConsumer, task

@task(timeout_seconds=0.1)
def hang(ctx):
    time.sleep(600)

async def main():
    async with TaskConsumer(broker_url="memory://") as consumer:
        consumer.register_task(hang)
        await consumer.startup()
        run = await consumer.queue_and_wait("hang", timeout=20)
        await consumer.shutdown()
        print(run.state)

asyncio.run(main())
"""


def test_nor_a_program_with_a_consumer_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    done = run(cwd=tmp_path, program=(sys.executable, "own.py"))
    assert (done.returncode, done.stdout) == (0, "failure\n"), done.stderr
