"""What wakes a consumer is given to it in the same answer, and is neither lost nor held back by that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from broker_kit import HIGH, LOW, MEDIUM, places, put, take
from servers import RedisServer
from waiting import until, within

from fluidfast import task
from fluidfast.broker import Settlement, TaskBroker
from fluidfast.redis_broker import RedisTaskBroker
from fluidfast.redis_wakeup import WakeUp

StartServer = Callable[..., RedisServer]


@pytest.fixture
async def server(start_server: StartServer) -> RedisServer:
    return start_server()


@pytest.fixture
async def broker(server: RedisServer) -> AsyncIterator[RedisTaskBroker]:
    broker = TaskBroker.from_url(server.url)
    assert isinstance(broker, RedisTaskBroker)
    yield broker
    await broker.farewell("a")
    await broker.close()


async def scripts(broker: RedisTaskBroker) -> int:
    found = await broker.redis_cli.info("commandstats")
    return int(found.get("cmdstat_evalsha", {"calls": 0})["calls"])


async def waits(broker: RedisTaskBroker) -> asyncio.Task[None]:
    """A consumer that waits, on the server too."""
    waiting = asyncio.create_task(broker.wait("a", 60))

    async def blocks() -> bool:
        clients = await broker.redis_cli.client_list()
        return sum("b" in client["flags"] for client in clients) == 3

    await until(blocks)
    return waiting


def wakeup_of(broker: RedisTaskBroker) -> WakeUp:
    return broker._wakeups["a"]


async def granted(broker: RedisTaskBroker, *payloads: bytes, priority: int = MEDIUM) -> None:
    waiting = await waits(broker)
    await put(broker, *payloads, priority=priority)
    await within(waiting)
    assert [grant.priority for grant in wakeup_of(broker).granted] == [priority]


async def test_what_wakes_is_claimed_already(broker: RedisTaskBroker) -> None:
    await granted(broker, b"x", b"y")
    assert await places(broker) == {"leased": 1, "medium": 1}
    before = await scripts(broker)
    claim = await broker.claim("a", 10)
    assert await scripts(broker) == before
    assert [(item.field, item.payload) for item in claim.items] == [("m1", b"x")]
    assert claim.at > 0
    assert await broker.settle(Settlement(claim.batch, whole=True))
    assert await take(broker, consumer="a") == [b"y"]


async def test_with_the_flags_of_tasks(broker: RedisTaskBroker) -> None:
    @task
    async def off(_: Any) -> None: ...

    broker.register_task(off)
    await broker.enable_task("off", False)
    await broker.claim("a", 1, waits=True, tasks=("off", "other"))
    await granted(broker, b"x")
    claim = await broker.claim("a", 1, tasks=("off",))
    assert claim.enabled == {"off": False, "other": True}
    assert await broker.settle(Settlement(claim.batch, whole=True))


async def test_what_came_while_it_was_busy_comes_in_its_order(broker: RedisTaskBroker) -> None:
    """The wake-up call of a low queue is still there when the consumer runs something else."""
    await granted(broker, b"high", priority=HIGH)
    assert await take(broker, consumer="a") == [b"high"]
    await put(broker, b"low", priority=LOW)
    await until(lambda: leased(broker, 1))
    await put(broker, b"high 2", priority=HIGH)
    assert await take(broker, 1, consumer="a") == [b"high 2"]
    assert await take(broker, 1, consumer="a") == [b"low"]


async def test_so_does_what_was_granted_beside_it(broker: RedisTaskBroker) -> None:
    waiting = await waits(broker)
    for priority in (LOW, HIGH):
        await put(broker, b"%d" % priority, priority=priority)
    await until(lambda: leased(broker, 2))
    await within(waiting)
    wakeup = wakeup_of(broker)
    await until(lambda: wakeup.collect() or len(wakeup.granted) == 2)
    assert await take(broker, 1, consumer="a") == [b"%d" % HIGH]
    await put(broker, b"later", priority=MEDIUM)
    assert await take(broker, 1, consumer="a") == [b"later"]
    assert await take(broker, 1, consumer="a") == [b"%d" % LOW]


async def leased(broker: RedisTaskBroker, count: int) -> bool:
    return (await places(broker)).get("leased", 0) == count


async def test_given_back_while_the_event_loop_did_not_get_on(broker: RedisTaskBroker) -> None:
    """Another consumer has it by now, and may be running it."""
    give_back = broker.yielder("a")
    assert give_back is not None
    await granted(broker, b"x")
    await asyncio.to_thread(give_back)
    assert await places(broker) == {"medium": 1}
    assert await take(broker, consumer="other") == [b"x"]
    assert await take(broker, consumer="a") == []


async def test_given_back_before_the_answer_was_read(broker: RedisTaskBroker) -> None:
    give_back = broker.yielder("a")
    assert give_back is not None
    waiting = await waits(broker)
    for link, _ in wakeup_of(broker).links.values():
        link._transport.pause_reading()  # type: ignore[attr-defined]
    await put(broker, b"x")
    await until(lambda: leased(broker, 1))
    await asyncio.to_thread(give_back)
    assert await take(broker, consumer="other") == [b"x"]
    for link, _ in wakeup_of(broker).links.values():
        link._transport.resume_reading()  # type: ignore[attr-defined]
    await within(waiting)
    assert await take(broker, consumer="a") == []


async def test_what_was_taken_is_not_given_back(broker: RedisTaskBroker) -> None:
    give_back = broker.yielder("a")
    assert give_back is not None
    await granted(broker, b"x")
    claim = await broker.claim("a", 1)
    await asyncio.to_thread(give_back)
    assert await broker.settle(Settlement(claim.batch, whole=True))


async def test_the_lease_of_an_old_answer_is_looked_at(broker: RedisTaskBroker) -> None:
    """As after a process was stopped for a while: it may be another consumer's by now."""
    for expired in (False, True):
        await granted(broker, b"x")
        [grant] = wakeup_of(broker).granted
        grant.at -= broker.options.lease_seconds / 2
        if expired:
            await broker.release(grant.batch, ["m1"])
            assert await take(broker, consumer="other") == [b"x"]
        claim = await broker.claim("a", 1)
        assert [item.payload for item in claim.items] == ([] if expired else [b"x"])
        assert expired or (claim.batch == grant.batch and await broker.settle(Settlement(claim.batch, whole=True)))


@pytest.mark.parametrize("how", ["claim", "idle_no_more", "farewell", "close"])
async def test_an_answer_that_is_lost(broker: RedisTaskBroker, how: str) -> None:
    waiting = await waits(broker)
    for link, _ in wakeup_of(broker).links.values():
        link._transport.pause_reading()  # type: ignore[attr-defined]
    await put(broker, b"x")
    await until(lambda: leased(broker, 1))
    if how == "close":
        await broker.close()
        waiting.cancel()
        await asyncio.wait([waiting])
    else:
        for link, _ in list(wakeup_of(broker).links.values()):
            link.abort()
        await within(waiting)
    if how == "idle_no_more":
        await broker.idle_no_more("a")
    elif how == "farewell":
        await broker.farewell("a")
    taken: list[bytes] = []
    for _ in range(3):  # one of three connections had it
        taken += await take(broker, consumer="a" if how in ("claim", "close") else "other")
    assert taken == [b"x"]


async def test_a_server_that_forgot_the_scripts(broker: RedisTaskBroker) -> None:
    waiting = await waits(broker)
    await broker.redis_cli.script_flush()
    await broker.redis_cli.lpush(broker.keys.queue("medium"), b"x")  # type: ignore[misc]
    await within(waiting)
    assert await take(broker, consumer="a") == [b"x"]
    await granted(broker, b"y")
    assert await take(broker, consumer="a") == [b"y"]
