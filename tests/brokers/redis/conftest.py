"""A broker and a manager on the session's Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from kits.redis_broker_kit import note, ran

from fluidfast import TaskManager
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@pytest.fixture
async def broker(redis_url: str, no_leaked_keys: Any) -> AsyncIterator[RedisTaskBroker]:
    broker = TaskBroker.from_url(redis_url)
    assert isinstance(broker, RedisTaskBroker)
    yield broker
    await broker.close()


@pytest.fixture
async def manager(redis_url: str, no_leaked_keys: Any) -> AsyncIterator[TaskManager]:
    async with TaskManager(broker_url=redis_url) as manager:
        manager.register_task(note)
        yield manager
