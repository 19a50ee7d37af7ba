"""The contract: what is to come later comes no sooner, in the order of its due times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest
from kits.broker_kit import HIGH, LOW, MEDIUM, places, put, take
from kits.waiting import until, within

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement

Open = Callable[..., TaskBroker]


async def promote_all(broker: TaskBroker) -> None:
    async def none_left() -> bool:
        return await broker.promote() is None

    await until(none_left)


async def test_nothing_is_delayed(broker: TaskBroker) -> None:
    assert await broker.promote() is None
    assert await broker.delayed_length() == 0


async def test_no_sooner_than_due(broker: TaskBroker) -> None:
    start = monotonic()
    await broker.delay([(0.15, MEDIUM, b"later")])
    while True:
        left = await broker.promote()
        if left is None:
            break
        assert left <= 0.151
        assert await broker.delayed_length() == 1
        assert await take(broker) == []
        assert monotonic() - start < 10
    assert monotonic() - start >= 0.149
    assert await places(broker) == {"medium": 1}
    assert await take(broker) == [b"later"]


async def test_says_how_long_until_the_next(broker: TaskBroker) -> None:
    await broker.delay([(100.0, MEDIUM, b"b"), (50.0, LOW, b"a")])
    left = await broker.promote()
    assert left is not None
    assert 49 < left <= 50.001
    assert await places(broker) == {"delayed": 2}
    await broker.clear()
    assert await broker.promote() is None


@pytest.mark.usefixtures("one_shard")
async def test_in_the_order_of_due_times(broker: TaskBroker) -> None:
    await broker.delay([(0.03, MEDIUM, b"third"), (0.01, MEDIUM, b"first"), (0.02, MEDIUM, b"second")])
    await broker.delay([(0.015, HIGH, b"high")])
    await put(broker, b"before")
    await promote_all(broker)
    await put(broker, b"after")
    assert await take(broker) == [b"high", b"before", b"first", b"second", b"third", b"after"]


async def test_due_at_once(broker: TaskBroker) -> None:
    await broker.delay([(0.0, MEDIUM, b"a"), (-5.0, LOW, b"b")])
    await promote_all(broker)
    assert await take(broker) == [b"a", b"b"]


async def test_more_than_one_promotion_moves(broker: TaskBroker) -> None:
    payloads = [b"%05d" % i for i in range(2500)]
    await broker.delay([(0.0, LOW, payload) for payload in payloads])
    await promote_all(broker)
    taken = []
    while some := await take(broker):
        taken += some
    assert sorted(taken) == payloads


async def test_bytes_come_out_as_they_went_in(broker: TaskBroker) -> None:
    payloads = [b"h", b"\x00\xff\r\n", b""]
    await broker.delay([(0.0, HIGH, payload) for payload in payloads])
    await promote_all(broker)
    assert sorted(await take(broker)) == sorted(payloads)


async def test_any_consumer_promotes(open_broker: Open) -> None:
    one, two = open_broker(), open_broker()
    await one.delay([(0.0, MEDIUM, b"a")])
    await promote_all(two)
    assert await take(two) == [b"a"]


async def test_what_becomes_due_wakes_who_waits(open_broker: Open) -> None:
    one, two = open_broker(), open_broker()
    await one.delay([(0.05, MEDIUM, b"a")])

    async def promoted() -> bool:
        return await one.promote() is None

    async def consume() -> list[bytes]:
        while not (taken := await take(two, consumer="c")):
            await two.wait("c", 10)
        return taken

    start = monotonic()
    waiting = asyncio.create_task(consume())
    await until(promoted)
    assert await within(waiting) == [b"a"]
    assert monotonic() - start < 5
    await two.deregister("c")


async def test_a_retry_is_delayed(broker: TaskBroker) -> None:
    await put(broker, b"1")
    claim = await broker.claim("a", 1)
    await broker.settle(Settlement(claim.batch, whole=True, retries=[(60.0, LOW, b"2")]))
    assert await places(broker) == {"delayed": 1}
    assert await broker.promote() > 59  # type: ignore[operator]
    await broker.clear()
