"""Each batch and each consumer is judged by its own lease, whatever that of the sweeper is."""

from __future__ import annotations

import asyncio
from itertools import permutations
from time import monotonic

import pytest
from kits.broker_kit import LOW, MEDIUM, half_a_lease_later, places, put, take_all, with_options
from kits.waiting import until, within

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.memory.broker import MemoryTaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker

LEASES = (1, 5, 30, 300)


def open_broker(url: str, lease_seconds: float) -> RedisTaskBroker:
    broker = TaskBroker.from_url(with_options(url, lease_seconds=lease_seconds))
    assert isinstance(broker, RedisTaskBroker)
    return broker


async def server_ms(broker: RedisTaskBroker) -> float:
    seconds, micros = await broker.redis_cli.time()
    return float(seconds * 1000 + micros / 1000)


async def left_of(broker: RedisTaskBroker, key: str, name: str) -> float:
    """Seconds until a deadline."""
    deadline = await broker.redis_cli.zscore(key, name)
    assert deadline is not None
    return float(deadline - await server_ms(broker)) / 1000


@pytest.mark.parametrize(("own", "other"), list(permutations(LEASES, 2)))
async def test_each_pair_of_leases(redis_url: str, own: float, other: float) -> None:
    holder, sweeper = open_broker(redis_url, own), open_broker(redis_url, other)
    await put(sweeper, b"claimed")
    claim = await holder.claim("holder", 1)
    await holder.renew("holder", [claim.batch])
    await holder.redis_cli.lpush(holder.keys.inbox("holder", "low"), b"set aside")  # type: ignore[misc]
    deadlines = ((holder.keys.leases, claim.batch), (holder.keys.consumers, "holder"))

    # the sweeper leaves it alone while its own lease runs, also by a clock that went back
    for went_back in (False, True):
        sweeper._went_back = went_back
        for _ in range(3):
            assert await sweeper.reap() == 0
            half_a_lease_later(sweeper)
        for key, name in deadlines:
            assert own - 0.9 < await left_of(holder, key, name) <= own
    assert sweeper.reap_seconds() == min(own / 2, other / 2, 15)

    # by the new time of a clock that went back a day, each ends within its own length
    for key, name in deadlines:
        await holder.redis_cli.zincrby(key, 86_400_000, name)
    sweeper._went_back = True
    assert await sweeper.reap() == 0
    for key, name in deadlines:
        assert own - 0.9 < await left_of(holder, key, name) <= own

    # it ends: the second look comes half of its own lease later
    for key, name in deadlines:
        await holder.redis_cli.zadd(key, {name: 1})
    began = monotonic()
    assert await sweeper.reap() == 0
    for seen in (sweeper._seen_expired, sweeper._seen_silent):
        [sighting] = seen.values()
        assert began + own / 2 <= sighting.confirmed_at <= monotonic() + own / 2
    assert await sweeper.reap() == 0
    half_a_lease_later(sweeper)
    assert await sweeper.reap() == 2
    assert await places(sweeper) == {"medium": 1, "low": 1}
    assert await holder.redis_cli.exists(holder.keys.consumers, holder.keys.consumer_leases) == 0
    assert sorted(await take_all(sweeper)) == [b"claimed", b"set aside"]
    for broker in (holder, sweeper):
        await broker.close()


async def test_a_rolling_change_of_the_setting(redis_url: str) -> None:
    """Consumers come back with another lease, also under the same id, while others have the former one."""
    sweeper = open_broker(redis_url, 5)
    for lease in (*LEASES, *LEASES[::-1]):
        one = open_broker(redis_url, lease)
        await one.renew("same", [])
        await put(one, b"x")
        claim = await one.claim("same", 1)
        assert lease - 0.9 < await left_of(one, one.keys.consumers, "same") <= lease
        assert lease - 0.9 < await left_of(one, one.keys.leases, claim.batch) <= lease
        for key, name in ((one.keys.leases, claim.batch), (one.keys.consumers, "same")):
            await one.redis_cli.zadd(key, {name: 1})
        assert await sweeper.reap() == 0
        for seen in (sweeper._seen_expired, sweeper._seen_silent):
            [sighting] = seen.values()
            assert lease / 2 - 0.9 < sighting.confirmed_at - monotonic() <= lease / 2
        assert await one.renew("same", [claim.batch]) == []  # it lives after all
        half_a_lease_later(sweeper)
        assert await sweeper.reap() == 0
        assert await one.settle(Settlement(claim.batch, whole=True))
        await one.close()
    await sweeper.deregister("same")
    await sweeper.close()


async def test_leases_of_several_lengths_in_one_process() -> None:
    """The same on memory://."""
    longer, shorter = (TaskBroker.from_url(f"memory://test-leases?lease_seconds={lease}") for lease in (300, 0.05))
    assert isinstance(longer, MemoryTaskBroker)
    await put(longer, b"x")
    claim = await longer.claim("a", 1)
    for _ in range(3):
        assert await shorter.reap() == 0
    longer.store.leases[claim.batch].deadline = -1.0
    for _ in range(3):
        assert await shorter.reap() == 0, "another look half of its own lease later, not of the sweeper's"
    half_a_lease_later(shorter)
    assert await shorter.reap() == 1
    assert await take_all(shorter) == [b"x"]


async def test_what_is_moved_to_an_inbox_is_moved_to_one_that_is_known(redis_url: str) -> None:
    """A consumer that stood still was given up. Before its next call blocks, it is known again: were it killed right
    after a push, nobody would look into its inbox."""
    broker = open_broker(redis_url, 0.4)
    waiting = asyncio.create_task(broker.wait("c", 60))
    await until(lambda: "c" in broker._wakeups and len(broker._wakeups["c"].pending) == 3)
    wakeup = broker._wakeups["c"]
    first = set(wakeup.pending.values())
    wakeup.lives_at -= 60
    await broker.redis_cli.delete(broker.keys.consumers)
    while not waiting.done():  # its calls run out; none is sent again before it is known
        await asyncio.sleep(0.005)
        if not wakeup.pending or not first.isdisjoint(wakeup.pending.values()):
            continue
        assert await broker.redis_cli.zscore(broker.keys.consumers, "c") is not None
    assert await waiting is None
    waiting = asyncio.create_task(broker.wait("c", 60))
    await until(lambda: len(wakeup.pending) == 3 and first.isdisjoint(wakeup.pending.values()))
    assert await broker.redis_cli.zscore(broker.keys.consumers, "c") is not None
    await put(broker, b"x")
    await within(waiting)
    assert await places(broker) == {"inbox": 1}
    await broker.deregister("c")
    assert await take_all(broker) == [b"x"]
    await broker.close()


async def test_who_leaves_while_an_inbox_may_get_something_stays_known(redis_url: str) -> None:
    """A connection was lost a moment ago: the server may serve the call that blocked there yet."""
    broker, sweeper = open_broker(redis_url, 0.2), open_broker(redis_url, 0.2)
    for lost in (True, False):
        await broker.wait("c", 0.01)
        if lost:
            broker._wakeups["c"].lost_at = monotonic()
        await broker.deregister("c")
        assert (await broker.redis_cli.zscore(broker.keys.consumers, "c") is not None) == lost
        await broker.redis_cli.lpush(broker.keys.inbox("c", "low"), b"late")  # type: ignore[misc]
        if lost:
            await until(sweeper.reap)
            assert await places(sweeper) == {"low": 1}
            assert await take_all(sweeper) == [b"late"]
    await broker.redis_cli.delete(broker.keys.inbox("c", "low"))
    for one in (broker, sweeper):
        await one.close()


@pytest.mark.parametrize("priority", [MEDIUM, LOW])
async def test_what_lay_in_the_inbox_of_the_dead_comes_back_as_soon_as_a_lease(redis_url: str, priority: int) -> None:
    """After its lease and two looks, as delivery.md says: what blocks its worker at once is still in the inbox."""
    lease = 1.0
    dead, alive = open_broker(redis_url, lease), open_broker(redis_url, lease)
    waiting = asyncio.create_task(dead.wait("dead", 60))
    await until(lambda: "dead" in dead._wakeups and len(dead._wakeups["dead"].pending) == 3)
    await put(alive, b"x", priority=priority)
    await within(waiting)
    assert await left_of(alive, alive.keys.consumers, "dead") <= lease
    await alive.redis_cli.zadd(alive.keys.consumers, {"dead": await server_ms(alive)})
    began = monotonic()
    while not await alive.reap():  # noqa: ASYNC110
        await asyncio.sleep(alive.reap_seconds())
    assert monotonic() - began >= lease / 2
    assert await take_all(alive) == [b"x"]
    await dead.close()
    await alive.close()
