"""A case of the contract gets brokers of one name, and leaves nothing behind in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import redis
from kits.broker_kit import left_in_memory, with_options
from kits.servers import leaked_keys

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.memory.broker import MemoryTaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.sharded import ShardedRedisBroker

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
    assert [name for name in left if not name.startswith(("ff:shards", *keeps))] == []


@pytest.fixture
def one_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a case about order: all that it queues is on one shard, if the broker has shards. Order, by priority and by
    age, is promised within a shard and not across them."""

    def second(self: ShardedRedisBroker) -> RedisTaskBroker:
        return self.shards[1]

    monkeypatch.setattr(ShardedRedisBroker, "number_of", lambda self, key, sequence=0: 1)
    monkeypatch.setattr(ShardedRedisBroker, "_next", second)


@pytest.fixture
async def broker(open_broker: Open) -> TaskBroker:
    return open_broker()


@pytest.fixture
async def quick(open_broker: Open) -> TaskBroker:
    """A broker whose leases run out in 0.1 s."""
    return open_broker(lease_seconds=0.1)
