"""Servers that go away or hang, and connections that are killed, cancelled or closed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import pytest
import redis
from faults.proxy import THERE, FaultProxy
from kits.broker_kit import take, with_options
from kits.redis_broker_kit import (
    Running,
    StartServer,
    clients,
    consumer_of,
    is_empty,
    is_held,
    limited,
    note,
    ran,
)
from kits.servers import RedisServer
from kits.waiting import pass_time, until, within
from redis.asyncio import Redis

from fluidfast import TaskManager
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker


class TestServerGoesAway:
    async def test_restart(self, start_server: StartServer) -> None:
        """Producer and consumer wait for a server that comes back, and nothing that was confirmed is lost."""
        server = start_server(appendonly="always")
        consumer = consumer_of(with_options(server.url, lease_seconds=1), max_concurrent_tasks=3)
        manager = TaskManager(broker_url=server.url)
        manager.register_task(note)
        confirmed: list[int] = []
        stop = asyncio.Event()

        async def produce() -> None:
            n = 0
            while not stop.is_set():
                await manager.queue("note", n=n)
                confirmed.append(n)
                n += 1

        async with Running(consumer):
            producing = asyncio.create_task(produce())
            for _ in range(2):
                so_far = len(confirmed)
                await until(lambda so_far=so_far: len(confirmed) > so_far + 100)  # type: ignore[misc]
                server.kill()
                server.restart()
            so_far = len(confirmed)
            await until(lambda: len(confirmed) > so_far + 100)
            stop.set()
            await within(producing)
            await until(lambda: set(ran) >= set(confirmed))
            await until(lambda: is_empty(consumer.broker))
            assert consumer.is_running()
        assert set(ran) == set(confirmed)
        again = len(ran) - len(confirmed)
        assert again < 3 * 2000  # what was settled and not yet on disk, or claimed; not everything
        await manager.on_shutdown()

    async def test_an_idle_consumer_comes_back(self, start_server: StartServer) -> None:
        server = start_server()
        consumer = consumer_of(server.url)
        async with Running(consumer):
            await consumer.queue("note", n=1)
            await until(lambda: ran == [1])
            server.restart()
            await within(consumer.queue("note", n=2))
            await until(lambda: ran == [1, 2])

    async def test_shutdown_while_it_is_away(self, start_server: StartServer) -> None:
        server = start_server()
        consumer = consumer_of(server.url, stopping_grace_period=0.1)
        async with Running(consumer):
            await consumer.queue("note", n=1)
            await until(lambda: ran == [1])
            server.kill()
            start = monotonic()
            await within(consumer.shutdown(), 40)
            assert monotonic() - start < 15
        server.restart()


async def test_dead_connections_are_forgotten(broker: RedisTaskBroker) -> None:
    for _ in range(3):
        (await broker.client.blocking_link()).abort()
    link = await broker.client.blocking_link()
    assert broker.client._blocked == {link}


class TestASwallowedCancel:
    """asyncio.wait_for of Python 3.11 may give a result or an error although its caller was cancelled, and redis-py
    sends through it. Who was cancelled ends all the same, and does not try again."""

    @staticmethod
    def swallowing(began: asyncio.Event, result: Any) -> Callable[..., Awaitable[Any]]:
        async def call(*_: Any) -> Any:
            began.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if isinstance(result, Exception):
                    raise result from None
            return result

        return call

    async def ends_cancelled(self, call: Awaitable[Any], began: asyncio.Event) -> None:
        calling = asyncio.ensure_future(call)
        await within(began.wait())
        calling.cancel()
        await asyncio.wait([calling], timeout=5)
        cancelled = calling.cancelled()
        calling.cancel()
        await asyncio.wait([calling])
        assert cancelled

    @pytest.mark.parametrize("error", [None, redis.exceptions.ConnectionError("reset"), OSError("reset")])
    async def test_while_connecting(
        self, broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch, error: Exception | None
    ) -> None:
        await broker.connect()
        make = broker.client.server.connection
        began = asyncio.Event()

        def connection() -> Any:
            made = make()
            if not began.is_set():  # the next one connects: it is what would wait on
                made.connect = self.swallowing(began, error)  # type: ignore[method-assign]
            return made

        monkeypatch.setattr(broker.client.server, "connection", connection)
        await self.ends_cancelled(broker.wait("a", 60), began)
        await broker.deregister("a")

    @pytest.mark.parametrize("result", [b"why", redis.exceptions.ConnectionError("reset")])
    async def test_by_redis_py(
        self, broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch, result: bytes | Exception
    ) -> None:
        await broker.connect()
        began = asyncio.Event()
        monkeypatch.setattr(broker.redis_cli, "get", self.swallowing(began, result))
        await self.ends_cancelled(broker.get_task_aborted("id"), began)


class TestConnectionsAreKilled:
    """What was queued while connections die is there once, in its order."""

    RUNS = 500  # a round

    async def queued(self, broker: TaskBroker) -> list[int]:
        found: list[int] = []
        while some := await take(broker):
            found += [json.loads(payload)["params"]["n"] for payload in some]
        return found

    async def disturb(
        self, how: Callable[[], Awaitable[Any]], rng: random.Random, stop: asyncio.Event,
        progress: Callable[[], int], most: int,
    ) -> None:  # fmt: skip
        """Kill again and again: right after the last time, or when ``most`` more got through, however long that takes
        on this machine."""
        # Not cancelled: asyncio.wait_for, which redis-py uses, may swallow that in Python 3.11.
        while not stop.is_set():
            await how()
            enough = progress() + rng.choice((0, most))
            await until(lambda enough=enough: progress() >= enough or stop.is_set())
            await asyncio.sleep(rng.uniform(0.0005, 0.01))

    async def queue_some(self, manager: TaskManager, how: str, numbers: range) -> None:
        if how == "one by one":
            for n in numbers:
                await manager.queue("note", n=n)
        elif how == "gathered":
            for first in range(0, len(numbers), 250):
                await asyncio.gather(*(manager.queue("note", n=n) for n in numbers[first : first + 250]))
        else:

            async def lane(some: range) -> None:
                for n in some:
                    await manager.queue("note", n=n)

            await asyncio.gather(*(lane(numbers[i::10]) for i in range(10)))

    @pytest.mark.parametrize("what", ["kill", "flush", "both"])
    @pytest.mark.parametrize("how", ["one by one", "gathered", "side by side"])
    async def test_each_is_queued_once(
        self, manager: TaskManager, redis_server: RedisServer, start_server: StartServer, what: str, how: str
    ) -> None:
        server = start_server()
        seed = random.randrange(1 << 32)
        print("seed", seed)
        rng = random.Random(seed)
        async with Redis.from_url(server.url) as client, TaskManager(broker_url=server.url) as manager:
            manager.register_task(note)
            kills = 0

            async def kill() -> None:
                nonlocal kills
                if what != "flush":
                    kills += await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                if what != "kill":
                    await client.script_flush()
                    kills += 1

            await manager.queue("note", n=-1)
            stop = asyncio.Event()
            batches = {"one by one": 200, "gathered": 1, "side by side": 20}[how]
            disturbing = asyncio.create_task(
                self.disturb(kill, rng, stop, lambda: manager._producer.confirmed, batches)
            )
            total = 0
            while kills < 20:  # however quick the machine is
                await self.queue_some(manager, how, range(total, total + self.RUNS))
                total += self.RUNS
            stop.set()
            await within(disturbing)
            found = await self.queued(manager.broker)
        assert sorted(found) == list(range(-1, total))
        if how == "side by side":
            for i in range(10):
                assert [n for n in found if n % 10 == i and n >= 0] == list(range(i, total, 10))
        else:
            assert found == list(range(-1, total))

    async def test_each_is_run_at_least_once(self, start_server: StartServer) -> None:
        """The consumer's connections are killed, not its lease: what it settles, it settles once."""
        server = start_server()
        rng = random.Random(5)
        consumer = consumer_of(server.url, max_concurrent_tasks=10)
        for first in range(0, 2000, 500):
            await asyncio.gather(*(consumer.queue("slow_note", n=n) for n in range(first, first + 500)))
        async with Redis.from_url(server.url) as client:

            async def kill() -> None:
                await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

            stop = asyncio.Event()
            disturbing = asyncio.create_task(self.disturb(kill, rng, stop, lambda: len(ran), 100))
            async with Running(consumer):
                await until(lambda: len(ran) >= 2000)
                stop.set()
                await within(disturbing)
                await until(lambda: is_empty(consumer.broker))
        assert sorted(ran) == list(range(2000))


async def test_a_server_that_hangs_has_its_connection_ended(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluidfast.brokers.redis.client.REPLY_SECONDS", 0.25)
    server = start_server()
    async with TaskManager(broker_url=server.url) as manager:
        manager.register_task(note)
        await manager.queue("note", n=1)
        server.pause()
        queueing = asyncio.create_task(manager.queue("note", n=2))
        await pass_time(1.0)
        assert not queueing.done()
        server.resume()
        await within(queueing)
        assert (await manager.broker.queue_length())["medium"] == 2


async def test_a_cancelled_call_leaves_no_connection_behind_the_close(start_server: StartServer) -> None:
    """However far it had come."""
    server = start_server()
    brokers: list[TaskBroker] = []
    with redis.Redis.from_url(server.url) as client:
        for turns in range(1, 60):
            broker = TaskBroker.from_url(with_options(server.url, fleet="mixed"))
            brokers.append(broker)  # else the collector ends what is left
            await broker.connect()
            call = asyncio.ensure_future(broker.acquire(limited, f"fence:m1 {turns}"))
            for _ in range(turns % 30):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await broker.close()
        await until(lambda: len(client.client_list()) == 1)


async def test_what_is_asked_again_after_the_broker_was_closed_leaves_no_connection(
    redis_server: RedisServer, redis_url: str
) -> None:
    """By redis-py, whose pool makes a new one."""
    with FaultProxy(redis_server.port) as proxy:
        broker = TaskBroker.from_url(proxy.url_of(redis_url))
        await broker.connect()
        proxy.stall(THERE)
        asking = asyncio.create_task(broker.queue_length())
        await until(lambda: is_held(proxy))
        await broker.close()
        proxy.flow()
        await within(asking)
        await until(lambda: not clients(proxy))
