"""A server that is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import pytest
from kits.broker_kit import HIGH, MEDIUM, places, put, take, with_options
from kits.redis_broker_kit import Running, StartServer, all_promoted, consumer_of, is_empty, note, ran
from kits.servers import RedisServer
from kits.waiting import until, within
from redis.asyncio import Redis

from fluidfast import TaskManager
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement
from fluidfast.errors import BrokerFullError


class TestFull:
    """A server at its maxmemory, noeviction: nothing goes in, and what is in goes on."""

    @pytest.fixture
    async def server(self, start_server: StartServer) -> RedisServer:
        return start_server()

    @pytest.fixture
    async def client(self, server: RedisServer) -> AsyncIterator[Redis]:
        async with Redis.from_url(server.url) as client:
            yield client

    async def fill(self, client: Redis) -> None:
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", "500kb")  # less than it takes by itself

    async def relieve(self, client: Redis) -> None:
        await client.config_set("maxmemory", "0")

    async def test_nothing_is_partially_queued(self, server: RedisServer, client: Redis) -> None:
        async with TaskManager(broker_url=server.url) as manager:
            manager.register_task(note)
            used = int((await client.info("memory"))["used_memory"])
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("maxmemory", str(used + 3_000_000))
            confirmed = 0
            errors: list[BaseException] = []
            while not errors and confirmed < 50_000:
                results = await asyncio.gather(
                    *(manager.queue("note", text="x" * 1000) for _ in range(500)), return_exceptions=True
                )
                errors = [result for result in results if isinstance(result, BaseException)]
                confirmed += len(results) - len(errors)
            assert confirmed
            assert {type(error) for error in errors} == {BrokerFullError}
            assert "maxmemory" in str(errors[0])
            assert (await manager.broker.queue_length())["medium"] == confirmed
            await self.relieve(client)
            await manager.queue("note")
            assert (await manager.broker.queue_length())["medium"] == confirmed + 1

    async def test_claim_and_settle_go_on(self, server: RedisServer, client: Redis) -> None:
        broker = TaskBroker.from_url(with_options(server.url, lease_seconds=0.2))
        other = TaskBroker.from_url(with_options(server.url, lease_seconds=0.2))
        await put(broker, *(b"%03d" % i for i in range(300)))
        await put(broker, b"high", priority=HIGH)
        await broker.delay([(0.0, MEDIUM, b"delayed")])
        await broker.connect()
        abandoned = await other.claim("dead", 1)
        assert [item.payload for item in abandoned.items] == [b"high"]
        await self.fill(client)
        for refused in (put(broker, b"x"), broker.delay([(1.0, MEDIUM, b"x")])):
            with pytest.raises(BrokerFullError):
                await refused
        claim = await broker.claim("a", 200)
        fields = [item.field for item in claim.items]
        assert len(fields) == 200
        assert await broker.renew("a", [claim.batch]) == []
        assert await broker.settle(Settlement(claim.batch, done=fields[:50]))
        assert await broker.renew("a", [claim.batch]) == []
        assert await broker.acquire(note._replace(max_concurrency=1), "run-1")
        retries = [(0.0, MEDIUM, b"again %d" % i) for i in range(5)]
        dead = [(fields[i], "why") for i in range(100, 110)]
        more = Settlement(
            claim.batch, done=fields[50:110], retries=retries, dead=dead, replies=[("me", b"done")],
            slots=[("note", "run-1")], info={"note": ("2026-07-01T00:00:00+00:00", 1.0, "success")},
        )  # fmt: skip
        assert await broker.settle(more)
        assert await broker.release(claim.batch, fields[110:150]) == 40
        await until(lambda: all_promoted(broker))
        with pytest.raises(BrokerFullError):  # it is still full
            await put(broker, b"x")

        async def sweep() -> int:
            assert await broker.renew("a", [claim.batch]) == []
            return await broker.reap()

        assert await until(sweep) == 1  # the abandoned one
        await broker.deregister("a")
        assert await broker.settle(Settlement(claim.batch, whole=True))
        taken = []
        while some := await take(broker):
            taken += some
        expected = [b"%03d" % i for i in [*range(110, 150), *range(200, 300)]]
        assert taken == [b"high", *expected, b"delayed", *(b"again %d" % i for i in range(5))]
        assert await places(broker) == {"dead": 10}
        await self.relieve(client)
        await put(broker, b"x")
        await broker.clear()
        await broker.close()
        await other.close()

    async def test_waiting_does_not_spin(self, server: RedisServer, client: Redis) -> None:
        broker = TaskBroker.from_url(server.url)
        await broker.connect()
        await self.fill(client)
        start = monotonic()
        for _ in range(3):
            assert await take(broker, consumer="a") == []
            await broker.wait("a", 0.2)
        assert monotonic() - start > 0.5
        await self.relieve(client)
        waiting = asyncio.create_task(broker.wait("a", 60))
        await put(broker, b"x")
        await within(waiting)
        assert await take(broker, consumer="a") == [b"x"]
        await broker.deregister("a")
        await broker.close()

    async def test_a_consumer_empties_it(self, server: RedisServer, client: Redis) -> None:
        consumer = consumer_of(with_options(server.url, lease_seconds=0.3))
        for n in range(50):
            await consumer.queue("note", n=n)
        await self.fill(client)
        async with Running(consumer):
            await until(lambda: len(ran) == 50)
            with pytest.raises(BrokerFullError):
                await consumer.queue("note", n=50)
            await until(lambda: is_empty(consumer.broker))
            await self.relieve(client)
            await consumer.queue("note", n=51)
            await until(lambda: 51 in ran)
        assert sorted(ran) == [*range(50), 51]
