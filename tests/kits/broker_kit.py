"""Brokers in tests: a way to put payloads in as a producer does, to take them out, and to see where they are."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import EnqueueBatch, Settlement
from fluidfast.brokers.memory.broker import MemoryTaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.sharded import ShardedRedisBroker
from fluidfast.core._time import new_id
from fluidfast.errors import ConnectionLostError

HIGH, MEDIUM, LOW = 0, 1, 2


def with_options(url: str, **options: Any) -> str:
    """A broker's url with more options."""
    more = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{more}" if more else url


class Sender:
    """Sends batches over a broker's channel, as a producer does."""

    def __init__(self, broker: TaskBroker) -> None:
        self.broker = broker
        self.id = new_id()
        self.sequence = 0

    async def send(self, *groups: list[bytes], sequence: int | None = None) -> int:
        """A batch of up to three groups, confirmed. Gives how many runs wait. ``sequence``: of one that is sent
        again."""
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        high, medium, low = (*groups, [], [], [])[:3]
        async with asyncio.timeout(20):
            while True:
                channel = await self.broker.channel()
                done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

                def confirm(waiting: int, exc: Exception | None, done: asyncio.Future[int] = done) -> None:
                    if exc is None:
                        done.set_result(waiting)
                    else:
                        done.set_exception(exc)

                channel(EnqueueBatch(self.id, sequence, (high, medium, low)), confirm)
                try:
                    return await done
                except ConnectionLostError:
                    continue  # under the same number


async def put(broker: TaskBroker, *payloads: bytes, priority: int = MEDIUM) -> None:
    """Queue payloads in their order, the way that the broker takes them."""
    rest = [payload for payload in payloads if not broker.push(priority, payload)]
    if rest:
        groups: list[list[bytes]] = [[], [], []]
        groups[priority] = rest
        sender = Sender(broker)
        await sender.send(*groups)
        await broker.forget(sender.id)


async def take(broker: TaskBroker, limit: int = 1000, consumer: str = "taker", **options: Any) -> list[bytes]:
    """Claim and settle; gives the payloads."""
    claim = await broker.claim(consumer, limit, **options)
    if claim.items:
        survived = [item.field for item in claim.items if item.strikes]
        assert await broker.settle(Settlement(claim.batch, whole=True, survived=survived))
    return [item.payload for item in claim.items]


async def take_all(broker: TaskBroker) -> list[bytes]:
    """Claim and settle until nothing is left. One claim is of one shard, so across shards it is in no order."""
    taken: list[bytes] = []
    while some := await take(broker):
        taken += some
    return taken


def redis_parts(broker: TaskBroker) -> list[RedisTaskBroker]:
    """The shards of a broker, or itself; nothing if it is not on Redis."""
    if isinstance(broker, ShardedRedisBroker):
        return broker.shards
    return [broker] if isinstance(broker, RedisTaskBroker) else []


def half_a_lease_later(sweeper: TaskBroker) -> None:
    """The next sweep acts on what those before have seen, as if half of its lease had passed since."""
    if isinstance(sweeper, MemoryTaskBroker):
        for lease in sweeper.store.leases.values():
            lease.confirmed_at = 0.0
    for part in redis_parts(sweeper):
        for seen in (part._seen_expired, part._seen_silent):
            seen.update({name: sighting._replace(confirmed_at=0.0) for name, sighting in seen.items()})


# All at once: what moves from one place to the next is not to be missed between two questions.
PLACES = """
local prefix = KEYS[1]
local found = {}
for i, name in ipairs({'-queue-high', '-queue-medium', '-queue-low', '-ff:suspect', '-ff:dead'}) do
  found[i] = redis.call('LLEN', prefix .. name)
end
found[6] = redis.call('ZCARD', prefix .. '-ff:delayed')
found[7] = 0
for _, batch in ipairs(redis.call('ZRANGE', prefix .. '-ff:leases', 0, -1)) do
  found[7] = found[7] + redis.call('HLEN', prefix .. '-ff:lease:' .. batch)
end
found[8] = 0
for _, consumer in ipairs(redis.call('ZRANGE', prefix .. '-ff:consumers', 0, -1)) do
  for _, word in ipairs({'high', 'medium', 'low'}) do
    found[8] = found[8] + redis.call('LLEN', prefix .. '-ff:inbox:' .. consumer .. ':' .. word)
  end
end
return found
"""


async def places(broker: TaskBroker) -> dict[str, int]:
    """How many payloads are where, at one moment; places that are empty are left out."""
    if isinstance(broker, ShardedRedisBroker):
        total: Counter[str] = Counter()
        for shard in broker.shards:
            total.update(await places(shard))
        return dict(total)
    if isinstance(broker, RedisTaskBroker):
        counts: list[int] = await broker.redis_cli.eval(PLACES, 1, broker.prefix)  # type: ignore[misc]
    else:
        assert isinstance(broker, MemoryTaskBroker)
        store = broker.store
        leased = sum(len(lease.held) for lease in store.leases.values())
        counts = [
            *store.queue.lengths(),
            len(store.suspects),
            len(store.dead),
            store.queue.delayed_length(),
            leased,
            0,
        ]
    names = ("high", "medium", "low", "suspect", "dead", "delayed", "leased", "inbox")
    return {name: n for name, n in zip(names, counts, strict=True) if n}


def left_in_memory(broker: MemoryTaskBroker) -> list[str]:
    """What a memory broker still keeps, named like the keys of the Redis broker."""
    store = broker.store
    parts: dict[str, Any] = {
        **{f"queue-{name}": n for name, n in zip(("high", "medium", "low"), store.queue.lengths(), strict=True)},
        "ff:delayed": store.queue.delayed_length(),
        "ff:lease": store.leases,
        "ff:strikes": store.strikes,
        "ff:suspect": store.suspects,
        "ff:dead": store.dead,
        "tasks": store.info,
        "ff:slots": {task: slots for task, slots in store.slots.items() if slots},
        "ff:waiters": store.waiters,
        "ff:locks": store.locks,
    }
    return [name for name, part in parts.items() if part]
