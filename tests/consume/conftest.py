"""The consumers of these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from kits.broker_kit import left_in_memory, with_options
from kits.consumer_kit import Notes, Start, failing, gated, note, strict
from kits.waiting import within

from fluidfast import TaskConsumer
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.memory.broker import MemoryTaskBroker
from fluidfast.core.task import Task


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
