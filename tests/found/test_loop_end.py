"""The event loop ends under a running consumer: what it had claimed goes back, and is not said to have failed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from kits.broker_kit import places, with_options
from kits.waiting import until

from fluidfast import RetryPolicy, TaskConsumer, TaskRun, task
from fluidfast.core.task import Task

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Log:
    def __init__(self) -> None:
        self.started: list[int] = []
        self.done: list[int] = []
        self.open = False

    async def hold(self) -> None:
        if not self.open:
            await asyncio.sleep(60)


@task
async def plain(ctx: TaskRun[Any, Log]) -> None:
    ctx.deps.started.append(ctx.params.n)
    await ctx.deps.hold()
    ctx.deps.done.append(ctx.params.n)


@task(max_concurrency=2, rate_limit_retry=RetryPolicy(wait=0.05))
async def limited(ctx: TaskRun[Any, Log]) -> None:
    ctx.deps.started.append(ctx.params.n)
    await ctx.deps.hold()
    ctx.deps.done.append(ctx.params.n)


@task
async def translates(ctx: TaskRun[Any, Log]) -> None:
    """Makes an error of its own of the cancellation."""
    ctx.deps.started.append(ctx.params.n)
    try:
        await ctx.deps.hold()
    except asyncio.CancelledError as exc:
        raise RuntimeError("the request was interrupted") from exc
    ctx.deps.done.append(ctx.params.n)


@task
async def cleans_up(ctx: TaskRun[Any, Log]) -> None:
    """Takes a moment to end."""
    ctx.deps.started.append(ctx.params.n)
    try:
        await ctx.deps.hold()
    finally:
        await asyncio.sleep(0.2)
    ctx.deps.done.append(ctx.params.n)


@task(batch=3, batch_wait=30)
async def batch(runs: list[TaskRun[Any, Log]]) -> None:
    log = runs[0].deps
    log.started += [run.params.n for run in runs]
    await log.hold()
    log.done += [run.params.n for run in runs]


@task(batch=4, batch_wait=30)
async def collects(runs: list[TaskRun[Any, Log]]) -> None:
    """Three are not enough for it until a second consumer adds one."""
    runs[0].deps.done += [run.params.n for run in runs]


TASKS: list[Task[Any]] = [plain, limited, translates, cleans_up, batch, collects]


def consumer_of(url: str, log: Log, **options: Any) -> TaskConsumer:
    consumer = TaskConsumer(broker_url=url, deps=log, **{"max_concurrent_tasks": 2, **options})
    for one in TASKS:
        consumer.register_task(one)
    return consumer


async def first(consumer: TaskConsumer, log: Log, name: str, how: str) -> None:
    ended = {"main": asyncio.current_task()}
    await consumer.startup()
    for n in range(3):
        await consumer.queue(name, n=n)
    if name == "collects":
        await until(lambda: consumer.engine.slots.collected == 3)
    else:
        await until(lambda: len(log.started) >= (3 if name == "batch" else 2))
    if how == "raise":
        raise ZeroDivisionError
    if how == "ctrl-c":
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)
    if how == "cancel all":
        for one in asyncio.all_tasks() - set(ended.values()):
            one.cancel()
        await until(lambda: consumer.engine.is_stopped())


async def second(consumer: TaskConsumer, log: Log, name: str) -> dict[str, int]:
    log.open = True
    await consumer.startup()
    if name == "collects":
        await consumer.queue(name, n=3)
    await until(lambda: len(log.done) >= (4 if name == "collects" else 3))

    async def is_settled() -> bool:
        return "leased" not in await places(consumer.broker)

    await until(is_settled)
    left = await places(consumer.broker)
    await consumer.shutdown()
    return left


@pytest.mark.parametrize(
    ("name", "how"),
    [(one.name, "raise") for one in TASKS] + [("plain", "return"), ("plain", "ctrl-c"), ("plain", "cancel all")],
)
def test_what_was_claimed_goes_back(
    broker_url: str, no_leaked_keys: Any, loop_factory: LoopFactory, name: str, how: str
) -> None:
    """It goes back at once (the lease is 30 s), as often as that happens (three would make a dead letter of it)."""
    no_leaked_keys.allow("*-tasks-*", "*-ff:*")
    url = with_options(broker_url, lease_seconds=30)
    log = Log()
    kept = consumer_of(url, log)  # memory:// lives as long as somebody holds it
    failed: list[str] = []
    consumer = consumer_of(url, log)
    consumer.dispatcher.register_handler("failure.test", lambda run: failed.append(run.name))
    ends = pytest.raises((ZeroDivisionError, KeyboardInterrupt)) if how in ("raise", "ctrl-c") else nullcontext()
    with ends, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(first(consumer, log, name, how))
    assert log.done == []
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(second(consumer_of(url, log), log, name)) == {}
    assert sorted(log.done) == list(range(4 if name == "collects" else 3))
    assert failed == []
    assert kept.broker.url


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # coroutines that end on a closed loop
def test_a_loop_that_is_closed_without_a_word(broker_url: str, no_leaked_keys: Any, loop_factory: LoopFactory) -> None:
    """Nobody cancels its tasks: what runs stays under its lease, which runs out."""
    no_leaked_keys.allow("*-tasks-*", "*-ff:*")
    url = with_options(broker_url, lease_seconds=0.5)
    log = Log()
    kept = consumer_of(url, log)
    consumer = consumer_of(url, log)
    loop = loop_factory()
    loop.run_until_complete(first(consumer, log, "plain", "return"))
    loop.close()
    del loop, consumer
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(second(consumer_of(url, log), log, "plain")) == {}
    assert sorted(log.done) == [0, 1, 2]
    assert kept.broker.url
    gc.collect()


async def test_execute_is_interrupted_by_its_caller_only(broker_url: str) -> None:
    states: list[str] = []

    @task
    async def waits(ctx: TaskRun[Any, Any]) -> None:
        if ctx.params.get("inner"):
            inner = asyncio.get_running_loop().create_future()
            inner.cancel()
            await inner
        started.set()
        await asyncio.sleep(60)

    started = asyncio.Event()
    async with TaskConsumer(broker_url=broker_url) as consumer:
        consumer.register_task(waits)
        for state in ("interrupted", "failure"):
            consumer.dispatcher.register_handler(f"{state}.test", lambda run: states.append(str(run.state)))
        running = asyncio.create_task(consumer.execute("waits"))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(Exception, match="cancelled from within"):
            await consumer.execute("waits", inner=True)
    assert states == ["interrupted", "failure"]
