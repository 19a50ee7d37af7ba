"""Managers and consumers in tests: opened on a broker of the test's own, closed and cleared at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fluidfast import Task, TaskConsumer, TaskManager, TaskRun
from kits.broker_kit import take


@asynccontextmanager
async def managing(url: str, *tasks: Task[Any], **options: Any) -> AsyncIterator[TaskManager]:
    """A manager that knows these tasks. What its broker keeps is removed at the end."""
    manager = TaskManager(broker_url=url, **options)
    for task in tasks:
        manager.register_task(task)
    async with manager:
        yield manager
        await manager.broker.clear()


@asynccontextmanager
async def consuming(url: str, *tasks: Task[Any], **options: Any) -> AsyncIterator[TaskConsumer]:
    """A consumer that runs these tasks, shut down at the end. Whatever it left on its broker stays there."""
    consumer = TaskConsumer(broker_url=url, **{"stopping_grace_period": 5, **options})
    for task in tasks:
        consumer.register_task(task)
    await consumer.startup()
    try:
        yield consumer
    finally:
        await consumer.shutdown()


async def take_runs(manager: TaskManager) -> list[TaskRun[Any, Any]]:
    """Take all that waits off the queues, in the order in which consumers get it."""
    runs: list[TaskRun[Any, Any]] = []
    while payloads := await take(manager.broker):
        runs += [manager.broker.codec.decode(payload, manager) for payload in payloads]
    return runs


async def waiting(manager: TaskManager) -> int:
    """How many runs wait, over all priorities."""
    return sum((await manager.broker.queue_length()).values())
