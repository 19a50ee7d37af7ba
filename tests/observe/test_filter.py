"""``RunFilter``: the fields of a run on each record that is made in it."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from kits.waiting import until

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.observe import RunFilter
from fluidfast.observe.filters import WORKER

app = logging.getLogger("somebody.app")


class Kept(logging.Handler):
    """A handler with the filter. ``of(message)``: the fields of the record with this message."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []
        self.addFilter(RunFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, message: str) -> tuple[Any, ...]:
        (record,) = [record for record in self.records if record.getMessage() == message]
        return tuple(vars(record)[name] for name in ("task", "run_id", "attempt", "batch"))


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@task
async def says(ctx: TaskRun) -> None:
    app.info("by the app")
    ctx.logger.info("by ctx.logger")
    await asyncio.create_task(in_a_task())
    await asyncio.to_thread(app.info, "in to_thread")


async def in_a_task() -> None:
    app.info("in a task")


@task
def plain(ctx: TaskRun) -> None:
    app.info("in a plain function")
    ctx.logger.info("by ctx.logger in a plain function")


@task(batch=3, batch_wait=5)
async def together(runs: list[TaskRun]) -> None:
    app.info("in a batch")


@task(batch=2, batch_wait=5)
def threaded(runs: list[TaskRun]) -> None:
    app.info("in a batch in a thread")


@task(retry=RetryPolicy(max_attempts=2, wait=0))
async def again(ctx: TaskRun) -> None:
    app.info("attempt %d", ctx.retry_attempt)
    assert ctx.retry_attempt == 1


@task
async def leaves(ctx: TaskRun) -> None:
    async def later() -> None:
        await ctx.deps.wait()
        app.info("left behind")

    ctx.deps.left = asyncio.create_task(later())


@task(timeout_seconds=0.05)
def hangs(ctx: TaskRun) -> None:
    ctx.deps.thread.wait(10)
    app.info("still in its thread")


@task
async def other(ctx: TaskRun) -> None:
    app.info("the next")
    ctx.deps.set()
    ctx.deps.thread.set()
    await asyncio.sleep(0)
    if ctx.deps.left:
        await ctx.deps.left


class Gate(asyncio.Event):
    left: asyncio.Task[None] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.Event()


@pytest.fixture
async def consumer(broker_url: str, no_leaked_keys: Any) -> AsyncIterator[TaskConsumer]:
    no_leaked_keys.allow("*-tasks-*", "*-failed", "*-kept*")
    consumer = TaskConsumer(broker_url=broker_url, max_concurrent_tasks=1, deps=Gate())
    for one in (says, plain, together, threaded, again, leaves, hangs, other):
        consumer.register_task(one)
    async with consumer:
        yield consumer


async def test_who_logs_in_a_run(consumer: TaskConsumer, kept: Kept) -> None:
    run = await consumer.queue("says")
    await until(lambda: consumer.engine.finished == 1)
    for message in ("by the app", "by ctx.logger", "in a task", "in to_thread"):
        assert kept.of(message) == ("says", run.id, 1, 0)
    app.info("outside")
    assert kept.of("outside") == ("", "", 0, 0)


async def test_threads(consumer: TaskConsumer, kept: Kept) -> None:
    run = await consumer.queue("plain")
    await until(lambda: consumer.engine.finished == 1)
    assert kept.of("in a plain function") == kept.of("by ctx.logger in a plain function") == ("plain", run.id, 1, 0)


async def test_a_batch(consumer: TaskConsumer, kept: Kept) -> None:
    runs = [await consumer.queue("together") for _ in range(3)]
    other = [await consumer.queue("threaded") for _ in range(2)]
    await until(lambda: consumer.engine.finished == 5)
    assert kept.of("in a batch") == ("together", runs[0].id, 1, 3)
    assert kept.of("in a batch in a thread") == ("threaded", other[0].id, 1, 2)


async def test_attempts(consumer: TaskConsumer, kept: Kept) -> None:
    run = await consumer.queue("again")
    await until(lambda: consumer.engine.finished == 1)
    assert kept.of("attempt 0") == ("again", run.id, 1, 0)
    assert kept.of("attempt 1") == ("again", run.id, 2, 0)


async def test_what_a_run_leaves_behind_belongs_to_it(consumer: TaskConsumer, kept: Kept) -> None:
    """The slot has gone on with another run by then."""
    first = await consumer.queue("leaves")
    await until(lambda: consumer.engine.finished == 1)
    second = await consumer.queue("other")
    await until(lambda: consumer.engine.finished == 2)
    assert kept.of("the next") == ("other", second.id, 1, 0)
    assert kept.of("left behind") == ("leaves", first.id, 1, 0)


async def test_a_hung_thread_belongs_to_its_run(consumer: TaskConsumer, kept: Kept) -> None:
    first = await consumer.queue("hangs")
    await until(lambda: consumer.engine.finished == 1)
    await consumer.queue("other")
    await until(lambda: any(record.getMessage() == "still in its thread" for record in kept.records))
    assert kept.of("still in its thread") == ("hangs", first.id, 1, 0)


async def test_a_run_that_is_executed_here(broker_url: str, kept: Kept) -> None:
    async with TaskManager(broker_url=broker_url) as manager:
        manager.register_task(says)
        run = await manager.execute("says")
        app.info("after it")
    assert kept.of("by the app") == ("says", run.id, 1, 0)
    assert kept.of("after it") == ("", "", 0, 0)


async def test_slots_stay(consumer: TaskConsumer, kept: Kept) -> None:
    """That a run is noted in the context is no change of it, for which a slot would get another task."""
    await consumer.queue("says")
    await until(lambda: consumer.engine.finished == 1)
    (slot,) = consumer.engine.slots
    before = slot.task
    for _ in range(3):
        await consumer.queue("says")
    await until(lambda: consumer.engine.finished == 4)
    assert slot.task is before


# -- the filter itself


def record(**fields: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": "m", **fields})


def test_fields_that_somebody_gave_stay() -> None:
    given = record(run_id="mine", task="also mine")
    assert RunFilter().filter(given)
    assert (vars(given)["run_id"], vars(given)["task"], vars(given)["attempt"]) == ("mine", "also mine", 0)


@pytest.mark.parametrize(("number", "seen"), [("3", 3), ("", 1), ("x", 1)])
def test_the_worker_s_number(monkeypatch: pytest.MonkeyPatch, number: str, seen: int) -> None:
    monkeypatch.setenv(WORKER, number)
    one = record()
    RunFilter().filter(one)
    assert vars(one)["worker"] == seen


def test_in_a_dict_config(capsys: pytest.CaptureFixture[str]) -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"run": {"()": "fluidfast.observe.RunFilter"}},
            "formatters": {"line": {"format": "%(message)s|%(run_id)s|%(task)s|%(attempt)d|%(worker)d"}},
            "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["run"]}},
            "loggers": {"configured": {"handlers": ["out"], "level": "INFO", "propagate": False}},
        }
    )
    logging.getLogger("configured").info("hello")
    assert capsys.readouterr().err == "hello|||0|1\n"
