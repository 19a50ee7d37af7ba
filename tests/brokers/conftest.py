"""A case of the contract gets brokers of one name, and leaves nothing behind in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import redis
from broker_kit import left_in_memory, with_options
from servers import leaked_keys

from fluidfast.broker import TaskBroker
from fluidfast.memory_broker import MemoryTaskBroker

Open = Callable[..., TaskBroker]


@pytest.fixture
def keeps() -> list[str]:
    """Names of what the case leaves on purpose, such as "ff:dead" and "tasks"."""
    return []


@pytest.fixture
async def open_broker(broker_url: str, issued_names: list[tuple[str, str]], keeps: list[str]) -> AsyncIterator[Open]:
    """Opens brokers of one name, with options of the url. At the end nothing of them may be left that never expires."""
    opened: list[TaskBroker] = []

    def open_one(**options: object) -> TaskBroker:
        broker = TaskBroker.from_url(with_options(broker_url, **options))
        opened.append(broker)
        return broker

    yield open_one
    left: list[str] = []
    if opened and isinstance(opened[0], MemoryTaskBroker):
        left = left_in_memory(opened[0])
    for broker in opened:
        await broker.close()
    for _, name in issued_names:
        with redis.Redis.from_url(broker_url.partition("?")[0]) as client:
            left += [key.partition("}-")[2] for key in leaked_keys(client, name)]
    assert [name for name in left if not name.startswith(tuple(keeps))] == []


@pytest.fixture
async def broker(open_broker: Open) -> TaskBroker:
    return open_broker()


@pytest.fixture
async def quick(open_broker: Open) -> TaskBroker:
    """A broker whose leases run out in 0.1 s."""
    return open_broker(lease_seconds=0.1)
