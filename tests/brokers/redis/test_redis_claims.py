"""Claims that are asked again, and inboxes of consumers that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from faults.proxy import BACK, FaultProxy
from kits.broker_kit import HIGH, places, put, take, with_options
from kits.servers import RedisServer
from kits.waiting import pass_time, until, within

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.wakeup import Inboxes


class TestClaimAskedAgain:
    """The reply to a claim may be lost. Who asks again, under the same batch id, gets the same, or less of it."""

    @pytest.fixture
    def batch_ids(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """Sets the batch id of the claims that follow."""
        return lambda batch: monkeypatch.setattr(Inboxes, "new_batch", lambda _: batch)

    async def test_same_items_in_the_same_order(
        self, broker: RedisTaskBroker, batch_ids: Callable[[str], None]
    ) -> None:
        payloads = [b"%04d" % i for i in range(800)]  # more than a small hash keeps in order
        await put(broker, *payloads, b"next")
        batch_ids("batch-1")
        first = await broker.claim("a", 800)
        assert [item.payload for item in first.items] == payloads
        assert await broker.claim("a", 800) == first
        assert await places(broker) == {"medium": 1, "leased": 800}
        assert await broker.settle(Settlement("batch-1", done=[item.field for item in first.items[1:]]))
        assert (await broker.claim("a", 5)).items == first.items[:1]
        assert await broker.settle(Settlement("batch-1", whole=True))
        batch_ids("batch-2")
        assert [item.payload for item in (await broker.claim("a", 5)).items] == [b"next"]
        assert await broker.settle(Settlement("batch-2", whole=True))

    @pytest.mark.parametrize("less", [{"limit": 3}, {"limit": 800, "max_bytes": 12}])
    async def test_who_asks_for_less_gives_the_rest_back(
        self, broker: RedisTaskBroker, batch_ids: Callable[[str], None], less: dict[str, int]
    ) -> None:
        """To where it came from: it is the next to be taken. One that asks for more gets no more."""
        high, low = ([b"%s%03d" % (letter, i) for i in range(400)] for letter in (b"h", b"l"))
        await put(broker, *high, priority=0)
        await put(broker, *low, priority=2)
        batch_ids("batch-1")
        first = await broker.claim("a", 800)
        assert [item.payload for item in first.items] == high + low
        assert (await broker.claim("a", **less)).items == first.items[:3]
        assert (await broker.claim("a", 800)).items == first.items[:3]
        assert await places(broker) == {"high": 397, "low": 400, "leased": 3}
        assert (await broker.claim("a", 1, max_bytes=0)).items == first.items[:1]
        assert await broker.settle(Settlement("batch-1", whole=True))
        batch_ids("batch-2")
        assert [item.payload for item in (await broker.claim("a", 800)).items] == (high + low)[1:]
        assert await broker.settle(Settlement("batch-2", whole=True))

    async def test_a_suspect_is_alone_the_second_time_too(
        self, redis_url: str, batch_ids: Callable[[str], None]
    ) -> None:
        broker = TaskBroker.from_url(with_options(redis_url, lease_seconds=0.1))
        await put(broker, b"poison")
        for i in range(2):
            batch_ids(f"death-{i}")
            assert len((await broker.claim("a", 10)).items) == 1
            await until(broker.reap)
        await put(broker, b"good")
        batch_ids("batch-1")
        first = await broker.claim("a", 10)
        assert [(item.payload, item.strikes) for item in first.items] == [(b"poison", 2)]
        assert first.alone
        assert await broker.claim("a", 10) == first
        assert await broker.settle(Settlement("batch-1", whole=True, survived=[first.items[0].field]))
        batch_ids("batch-2")
        second = await broker.claim("a", 10)
        assert [item.payload for item in second.items] == [b"good"]
        assert not second.alone
        assert await broker.claim("a", 10) == second
        assert await broker.settle(Settlement("batch-2", whole=True))
        await broker.close()

    async def test_through_a_lost_connection(self, broker: RedisTaskBroker, redis_url: str) -> None:
        await put(broker, *(b"%d" % i for i in range(10)))
        link = await broker.client.link()
        call = link.call

        def cut(command: bytes) -> Any:
            """The command gets through, its reply does not."""
            reply = call(command)
            link.data_received = lambda data: link.abort()  # type: ignore[method-assign]
            return reply

        link.call = cut  # type: ignore[method-assign]
        claim = await within(broker.claim("a", 5))
        assert [item.payload for item in claim.items] == [b"%d" % i for i in range(2)]  # half of what was too much
        assert await places(broker) == {"medium": 8, "leased": 2}
        assert await broker.settle(Settlement(claim.batch, whole=True))
        assert await take(broker) == [b"%d" % i for i in range(2, 10)]

    async def test_one_run_is_given_however_small_the_bound_has_become(self, broker: RedisTaskBroker) -> None:
        await put(broker, b"one", b"two")
        link = await broker.client.link()
        call = link.call

        def cut(command: bytes) -> Any:
            """Neither gets through."""
            link.abort()
            return call(command)

        link.call = cut  # type: ignore[method-assign]
        claim = await within(broker.claim("a", 5, max_bytes=1))
        assert [item.payload for item in claim.items] == [b"one"]
        assert await broker.settle(Settlement(claim.batch, whole=True))
        assert await take(broker) == [b"two"]

    async def test_more_than_the_connection_survives(
        self, broker: RedisTaskBroker, redis_server: RedisServer, redis_url: str
    ) -> None:
        """Else it would be asked for again and again, and prolonged all the while, so that nobody else has it."""
        payloads = [b"%01000d" % i for i in range(200)]
        await put(broker, *payloads)
        taken: list[bytes] = []
        with FaultProxy(redis_server.port) as proxy:
            frail = TaskBroker.from_url(proxy.url_of(redis_url))
            await frail.connect()
            proxy.every(BACK, 100_000)
            while len(taken) < len(payloads):
                claim = await within(frail.claim("a", 200), 10)
                assert await broker.settle(Settlement(claim.batch, whole=True))
                taken += [item.payload for item in claim.items]
            assert proxy.cuts >= 2
            await frail.close()
        assert taken == payloads


async def test_a_run_in_an_inbox_counts_as_there(broker: RedisTaskBroker) -> None:
    inbox = broker.keys.inbox("c", "low")
    await broker.redis_cli.zadd(broker.keys.consumers, {"b": 1, "c": 2})
    assert not await broker.has_runs()
    await broker.redis_cli.lpush(inbox, b"run")  # type: ignore[misc]
    assert await broker.has_runs()
    await broker.redis_cli.delete(inbox, broker.keys.consumers)


async def test_the_inbox_of_a_consumer_that_fell_silent_is_taken(redis_url: str, no_leaked_keys: Any) -> None:
    url = with_options(redis_url, lease_seconds=1)  # it blocks for half of that: long enough for what is put
    dead, alive = TaskBroker.from_url(url), TaskBroker.from_url(url)
    assert isinstance(dead, RedisTaskBroker)
    waiting = asyncio.create_task(dead.wait("dead", 60))
    await until(lambda: dead._wakeups and len(dead._wakeups["dead"].pending) == 3)
    await put(alive, b"h", priority=HIGH)
    await put(alive, b"m1", b"m2")
    await within(waiting)
    await dead.close()  # it does not deregister
    assert (await places(alive)).get("medium", 0) <= 1
    start = monotonic()
    taken = 0
    while taken < 2:
        taken += await alive.reap()
        await pass_time(0.02)
        assert monotonic() - start < 20
    assert await take(alive) == [b"h", b"m1", b"m2"]
    await alive.close()


async def test_a_claim_moves_little_more_than_it_gives(broker: RedisTaskBroker) -> None:
    """What goes beyond its bytes is not popped by the hundreds to be pushed back."""

    async def pushed() -> int:
        stats: Any = await broker.redis_cli.info("commandstats")
        return int(stats.get("cmdstat_rpush", {"calls": 0})["calls"])

    payloads = [b"%03d" % n + b"x" * 1000 for n in range(900)]
    await put(broker, *payloads)
    before = await pushed()
    assert await take(broker, 1000, max_bytes=100 * 1003) == payloads[:100]
    assert await take(broker, 1000, max_bytes=5 * 1003 + 1) == payloads[100:105]
    assert await take(broker, 1000, max_bytes=1) == payloads[105:106]
    assert await pushed() - before <= 32
    assert await take(broker, 1000, max_bytes=1 << 30) == payloads[106:]
