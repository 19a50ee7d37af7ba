"""A function that returns work instead of doing it fails its run: a generator, a coroutine that nobody awaits."""

from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from kits.manager_kit import consuming

from fluidfast import RetryPolicy, TaskManager, TaskRun, task
from fluidfast.errors import TaskRunError


async def work(ctx: Any) -> None:
    """What is not awaited."""


def rows(ctx: Any) -> Iterator[int]:
    yield 1


async def async_rows(ctx: Any) -> AsyncIterator[int]:
    yield 1


async def gives_coroutine(ctx: TaskRun) -> Any:
    return work(ctx)


async def gives_generator(ctx: TaskRun) -> Any:
    return rows(ctx)


async def gives_async_generator(ctx: TaskRun) -> Any:
    return async_rows(ctx)


def plain_generator(ctx: TaskRun) -> Any:
    return rows(ctx)


def plain_expression(ctx: TaskRun) -> Any:
    return (row for row in [1])


def plain_async_generator(ctx: TaskRun) -> Any:
    return async_rows(ctx)


def plain_coroutine_of_one(ctx: TaskRun) -> Any:
    return gives_coroutine(ctx)


UNRUN = [
    gives_coroutine,
    gives_generator,
    gives_async_generator,
    plain_generator,
    plain_expression,
    plain_async_generator,
    plain_coroutine_of_one,
]


async def gives_value(ctx: TaskRun) -> Any:
    return {"rows": 3}


def plain_coroutine(ctx: TaskRun) -> Any:
    return work(ctx)  # which is awaited


async def awaits(ctx: TaskRun) -> Any:
    return await work(ctx)


@pytest.mark.parametrize("function", UNRUN, ids=lambda function: function.__name__)
@pytest.mark.parametrize("options", [{}, {"batch": 5}], ids=["run", "batch"])
async def test_its_run_fails(
    broker_url: str, function: Callable[..., Any], options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    job = task(name="job", retry=RetryPolicy(max_attempts=0), **options)(function)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with consuming(broker_url, job) as consumer:
            run = await consumer.queue_and_wait("job", timeout=20)
            (letter,) = await consumer.dead.list()
            with pytest.raises(TaskRunError, match="that was not run: await it, or iterate over it"):
                await consumer.execute("job")
            await consumer.broker.clear()
        gc.collect()
    assert run.state == "failure"
    assert "that was not run" in letter.reason


@pytest.mark.parametrize("function", [gives_value, plain_coroutine, awaits], ids=lambda function: function.__name__)
async def test_others_do_not(broker_url: str, function: Callable[..., Any]) -> None:
    async with consuming(broker_url, task(name="job")(function)) as consumer:
        assert (await consumer.queue_and_wait("job", timeout=20)).state == "success"
        assert (await consumer.execute("job")).state == "success"
        await consumer.broker.clear()


def test_in_a_cpu_bound_process_and_without_a_loop() -> None:
    manager = TaskManager(broker_url="memory://unrun")
    manager.register_task(task(name="job", cpu_bound=True)(plain_generator))  # executed here, as its child does
    with pytest.raises(TaskRunError, match=r"returned a generator \(rows\)"):
        manager.execute_sync("job")
