"""The contract: who has nothing to do waits, without asking again and again, and is woken by what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest
from kits.broker_kit import HIGH, LOW, MEDIUM, places, put, redis_parts, take
from kits.waiting import pass_time, until, within

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.memory.broker import MemoryTaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.client import RedisClient

Open = Callable[..., TaskBroker]
SOON = 3.0
"""What is woken is so well before this; what is only found by asking again is not."""


class Consumer:
    """Waits for work and notes what it gets."""

    def __init__(self, broker: TaskBroker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.taken: list[bytes] = []
        self.woken = 0
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        while True:
            self.taken += await take(self.broker, consumer=self.name)
            await self.broker.wait(self.name, 60)
            self.woken += 1

    async def settled_down(self, beside: int = 0) -> None:
        """Wait until it waits, and so many others."""
        await blocked(self.broker, self.name, beside)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.broker.deregister(self.name)


async def blocked(broker: TaskBroker, consumer: str, beside: int = 0) -> None:
    """Wait until this consumer's waiting is in place."""
    wanted = len(broker.options.queues)
    for shard in redis_parts(broker):

        async def blocking(shard: RedisTaskBroker = shard) -> bool:
            wakeup = shard._wakeups.get(consumer)
            if wakeup is None or wakeup.woken is None or len(wakeup.links) < wanted:
                return False
            ids = {str(client) for _, client in wakeup.links.values()}
            clients = await shard.redis_cli.client_list()
            return sum(c["id"] in ids and "b" in c["flags"] for c in clients) == wanted

        await until(blocking, f"{consumer} blocks")
    if isinstance(broker, MemoryTaskBroker):
        store = broker.store
        await until(lambda: len(store.waiters) == 1 + beside, f"{consumer} waits")


@pytest.mark.parametrize("priority", [HIGH, MEDIUM, LOW])
async def test_a_push_wakes(broker: TaskBroker, priority: int) -> None:
    consumer = Consumer(broker, "a")
    await consumer.settled_down()
    start = monotonic()
    await put(broker, b"x", priority=priority)
    await until(lambda: consumer.taken == [b"x"])
    assert monotonic() - start < SOON
    await consumer.leave()


async def test_what_is_there_already_is_not_waited_for(broker: TaskBroker) -> None:
    await put(broker, b"x")
    start = monotonic()
    await within(broker.wait("a", 60), SOON)
    assert monotonic() - start < SOON
    assert await take(broker, consumer="a") == [b"x"]
    await broker.deregister("a")


async def test_a_push_between_claim_and_wait_is_not_missed(broker: TaskBroker) -> None:
    for i in range(20):
        assert await take(broker, consumer="a") == []
        await put(broker, b"%d" % i)
        await within(broker.wait("a", 60), SOON)
        assert await take(broker, consumer="a") == [b"%d" % i]
    await broker.deregister("a")


async def test_the_wait_ends_after_its_timeout(broker: TaskBroker) -> None:
    for _ in range(3):
        start = monotonic()
        await broker.wait("a", 0.05)
        assert 0.04 < monotonic() - start < SOON
    await put(broker, b"x")
    await within(broker.wait("a", 60), SOON)
    assert await take(broker, consumer="a") == [b"x"]
    await broker.deregister("a")


@pytest.mark.usefixtures("one_shard")
async def test_one_push_wakes_one_of_many(open_broker: Open) -> None:
    consumers = []
    for i in range(5):
        consumers.append(Consumer(open_broker(), f"c{i}"))
        await consumers[-1].settled_down(i)
    producer = open_broker()
    for n in range(1, 11):
        await put(producer, b"%02d" % n)
        await until(lambda n=n: sum(len(c.taken) for c in consumers) == n)  # type: ignore[misc]
        for consumer in consumers:
            await consumer.broker.queue_length()  # whoever else was woken has had its turn by now
        assert sum(consumer.woken for consumer in consumers) == n
        for consumer in consumers:
            await consumer.settled_down(4)
    assert sorted(p for c in consumers for p in c.taken) == [b"%02d" % n for n in range(1, 11)]
    assert max(len(c.taken) for c in consumers) == 2  # in turn
    for consumer in consumers:
        await consumer.leave()


async def test_many_pushes_wake_many(open_broker: Open) -> None:
    consumers = [Consumer(open_broker(), f"c{i}") for i in range(3)]
    for consumer in consumers:
        await consumer.settled_down(2)
    await put(open_broker(), *(b"%d" % i for i in range(9)))
    await until(lambda: sum(len(c.taken) for c in consumers) == 9)
    for consumer in consumers:
        await consumer.leave()
    assert sorted(p for c in consumers for p in c.taken) == [b"%d" % i for i in range(9)]


async def test_only_for_the_queues_that_are_served(open_broker: Open) -> None:
    consumer = Consumer(open_broker(queues="high"), "a")
    await consumer.settled_down()
    await put(consumer.broker, b"low", priority=LOW)
    await put(consumer.broker, b"high", priority=HIGH)
    await until(lambda: consumer.taken == [b"high"])
    assert await take(open_broker()) == [b"low"]
    await consumer.leave()


@pytest.mark.parametrize("how", ["release", "reap", "promote", "suspect"])
async def test_what_comes_back_wakes(open_broker: Open, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RedisClient, "block_seconds", 60.0)  # it is woken, and does not look again by itself
    other = open_broker(lease_seconds=0.1)
    await put(other, b"x")
    claim = await other.claim("other", 1)
    if how == "suspect":
        await until(other.reap)
        claim = await other.claim("other", 1)
    consumer = Consumer(open_broker(lease_seconds=0.1), "a")
    await consumer.settled_down()
    start = monotonic()
    if how == "release":
        await other.release(claim.batch, [claim.items[0].field])
    elif how in ("reap", "suspect"):
        # the sweep is done by the process that waits, as consumers do
        await until(consumer.broker.reap)
    else:
        await other.settle(Settlement(claim.batch, whole=True, retries=[(0.0, MEDIUM, b"x")]))
        await until(lambda: other.promote() if not consumer.taken else True)
    await until(lambda: consumer.taken == [b"x"])
    assert monotonic() - start < SOON
    await consumer.leave()
    for shard in redis_parts(other):
        await shard.redis_cli.delete(shard.keys.strikes)
    if isinstance(other, MemoryTaskBroker):
        other.store.strikes.clear()


async def test_a_suspect_is_no_reason_not_to_wait(open_broker: Open) -> None:
    """A consumer that runs something may not have it, and must not ask for it in a loop."""
    broker, dying = open_broker(), open_broker(lease_seconds=0.1)
    await put(broker, b"x")
    for _ in range(2):
        await dying.claim("dead", 1)
        await until(dying.reap)
    for _ in range(3):
        assert (await broker.claim("a", 5, idle=False)).suspects == 1
        start = monotonic()
        await broker.wait("a", 0.1)
        assert monotonic() - start >= 0.09
    claim = await broker.claim("a", 1)
    assert await broker.settle(Settlement(claim.batch, whole=True, survived=[claim.items[0].field]))
    await broker.deregister("a")


class TestWhatWasSetAside:
    """A broker may set a run aside for the one that it wakes. It is never lost, nor held back from the others."""

    @pytest.mark.usefixtures("one_shard")
    async def test_deregister_gives_it_back_in_order(self, open_broker: Open) -> None:
        leaving, other = open_broker(), open_broker()
        waiting = asyncio.create_task(leaving.wait("leaving", 60))
        await blocked(leaving, "leaving")
        for priority in (LOW, MEDIUM, HIGH):
            await put(other, *(b"%d-%d" % (priority, i) for i in range(3)), priority=priority)
        await within(waiting)
        await leaving.deregister("leaving")
        assert await places(other) == {"high": 3, "medium": 3, "low": 3}
        assert await take(other) == [b"%d-%d" % (priority, i) for priority in (HIGH, MEDIUM, LOW) for i in range(3)]

    async def test_deregister_in_the_middle_of_a_wait(self, open_broker: Open) -> None:
        leaving, other = open_broker(), open_broker()
        waiting = asyncio.create_task(leaving.wait("leaving", 60))
        await blocked(leaving, "leaving")
        waiting.cancel()
        await asyncio.wait([waiting])
        await leaving.deregister("leaving")
        await put(other, b"x")
        assert await take(other) == [b"x"]

    async def test_deregister_right_after_the_wait_began(self, broker: TaskBroker) -> None:
        for turns in range(12):
            waiting = asyncio.create_task(broker.wait("a", 60))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            start = monotonic()
            await broker.deregister("a")
            assert monotonic() - start < SOON

    async def test_a_consumer_that_has_no_slot_left_gives_it_back(self, open_broker: Open) -> None:
        busy, other = open_broker(), open_broker()
        waiting = asyncio.create_task(busy.wait("busy", 60))
        await blocked(busy, "busy")
        await put(other, b"high", priority=HIGH)
        await within(waiting)
        await put(other, b"medium 1", b"medium 2")  # it has not said yet that it is busy
        claim = await busy.claim("busy", 1)
        assert [item.payload for item in claim.items] == [b"high"]
        await busy.stop_reserving("busy")
        assert await take(other) == [b"medium 1", b"medium 2"]
        await put(other, b"medium 3")
        assert await take(other) == [b"medium 3"]
        # and then it waits again
        assert await busy.settle(Settlement(claim.batch, whole=True))
        again = Consumer(busy, "busy")
        await again.settled_down()
        await put(other, b"low", priority=LOW)
        await until(lambda: again.taken == [b"low"])
        await again.leave()

    @pytest.mark.usefixtures("one_shard")
    async def test_of_every_priority(self, open_broker: Open) -> None:
        busy, other = open_broker(), open_broker()
        waiting = asyncio.create_task(busy.wait("busy", 60))
        await blocked(busy, "busy")
        waiting.cancel()
        await asyncio.wait([waiting])
        for priority in (LOW, MEDIUM, HIGH):
            await put(other, b"%d" % priority, priority=priority)
        await within(busy.wait("busy", 60))
        claim = await busy.claim("busy", 1)
        assert [item.payload for item in claim.items] == [b"0"]
        await busy.stop_reserving("busy")
        assert await take(other) == [b"1", b"2"]
        assert await busy.settle(Settlement(claim.batch, whole=True))
        await busy.deregister("busy")

    async def test_a_cancelled_waiter_passes_it_on(self, open_broker: Open) -> None:
        one, two = open_broker(), open_broker()
        first = asyncio.create_task(one.wait("one", 60))
        await blocked(one, "one")
        second = Consumer(two, "two")
        await second.settled_down(1)
        await put(one, b"x")
        first.cancel()  # in the same turn of the loop as it is woken, on memory
        await asyncio.wait([first])
        await one.deregister("one")
        await until(lambda: second.taken == [b"x"])
        await second.leave()


async def test_idle_no_more_of_one_who_never_waited(broker: TaskBroker) -> None:
    await broker.stop_reserving("a")
    await broker.deregister("a")


async def test_waiting_is_idle(open_broker: Open) -> None:
    """Who waits asks the server for nothing: fewer than two commands a second, on each shard."""
    broker = open_broker()
    if not (shards := len(redis_parts(broker))):
        pytest.skip("it has no server")
    other = open_broker()
    consumer = Consumer(broker, "a")
    await consumer.settled_down()

    async def commands() -> int:
        stats = await other.redis_cli.info("commandstats")  # type: ignore[attr-defined]
        return sum(s["calls"] for name, s in stats.items() if name.startswith(("cmdstat_evalsha", "cmdstat_blmove")))

    before = await commands()
    await pass_time(0.5)
    assert await commands() - before <= shards
    assert consumer.woken == 0
    await consumer.leave()
