"""``durability``: a batch is confirmed when a replica has it, or when it is on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from kits.broker_kit import Sender, with_options
from kits.manager_kit import consuming, take_runs, waiting
from kits.servers import RedisServer, ServerBinary, find_servers
from kits.topology_kit import ask, start_replica
from kits.waiting import until, within

from fluidfast import TaskManager, TaskRun, task
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.errors import (
    BrokerConnectionError,
    BrokerError,
    BrokerURLError,
    BufferedRunsLost,
    ConfigError,
    DurabilityUnsupportedError,
    NotDurableError,
)

Start = Callable[..., RedisServer]

OLD = [binary for binary in find_servers().values() if binary.version_info < (7, 2)]


@pytest.fixture
def _waitaof(server_kind: str) -> None:
    if find_servers()[server_kind].version_info < (7, 2):
        pytest.skip("WAITAOF came with 7.2")


@task
async def note(ctx: TaskRun) -> None:
    """Takes anything."""


def managed(server: RedisServer, durability: str, seconds: float = 5, **options: Any) -> TaskManager:
    url = with_options(server.url, durability=durability, durability_seconds=seconds)
    manager = TaskManager(broker_url=url, **options)
    manager.register_task(note)
    return manager


def numbered(count: int) -> Any:
    return ({"n": n} for n in range(count))


def queue_of(server: RedisServer) -> int:
    """How many runs a server has, be it a replica."""
    return int(ask(server, "LLEN", "{redis-task-broker}-queue-medium"))


# -- a replica


async def test_confirmed_means_that_a_replica_has_it(start_server: Start) -> None:
    primary = start_server()
    replica = await start_replica(start_server, primary)
    async with managed(primary, "replica") as manager:
        for n in range(1, 21):
            await manager.queue(note, n=n)
            assert queue_of(replica) == n
        summary = await manager.queue_many(note, numbered(2500))
        assert summary.queued == 2500
        assert queue_of(replica) == 2520
        await asyncio.gather(*(manager.queue(note, n=n) for n in range(300)))
        assert queue_of(replica) == 2820


async def test_of_two_replicas_one_is_enough(start_server: Start) -> None:
    primary = start_server()
    one = await start_replica(start_server, primary)
    two = await start_replica(start_server, primary)
    async with managed(primary, "replica") as manager:
        await manager.queue(note, n=1)
        two.pause()
        await within(manager.queue(note, n=2))
        assert queue_of(one) == 2
        two.resume()


async def test_without_a_replica(start_server: Start) -> None:
    """It is queued, and said not to be safe."""
    server = start_server()
    async with managed(server, "replica", 0.1) as manager:
        begin = monotonic()
        with pytest.raises(NotDurableError, match="1 runs are queued, but not safe by durability='replica'"):
            await manager.queue(note, n=0)
        assert 0.09 < monotonic() - begin < 3
        with pytest.raises(NotDurableError) as caught:
            await manager.queue_many(note, numbered(10))
        assert caught.value.summary.queued == 0, "confirmed are none"
        assert [run.params["n"] for run in await take_runs(manager)] == [0, *range(10)]


async def test_without_a_replica_and_buffered(start_server: Start) -> None:
    server = start_server()
    async with managed(server, "replica", 0.1, delivery="buffered") as manager:
        run = await manager.queue(note, n=0)
        with pytest.raises(BufferedRunsLost) as caught:
            await manager.flush()
        assert caught.value.run_ids == [run.id]
        assert isinstance(caught.value.__cause__, NotDurableError)
        assert [found.id for found in await take_runs(manager)] == [run.id]


async def test_a_replica_that_hangs_and_comes_back(start_server: Start) -> None:
    primary = start_server()
    replica = await start_replica(start_server, primary)
    async with managed(primary, "replica", 0.5) as manager:
        await manager.queue(note, n=0)
        replica.pause()
        with pytest.raises(NotDurableError):
            await manager.queue(note, n=1)
        replica.resume()
        await until(lambda: queue_of(replica) == 2)
        await manager.queue(note, n=2)
        assert queue_of(replica) == 3


async def test_who_consumes_does_not_wait_for_replicas(start_server: Start) -> None:
    """Claims and settles go another way than what waits."""
    primary = start_server()
    replica = await start_replica(start_server, primary)
    url = with_options(primary.url, durability="replica", durability_seconds=3)
    async with consuming(url, note) as consumer:
        await consumer.queue(note, n=0)
        replica.pause()
        begin = monotonic()
        waits = [asyncio.create_task(consumer.queue(note, n=n)) for n in range(1, 4)]
        await until(lambda: consumer.engine.finished == 4)
        await until(lambda: not consumer.engine.settler.leases)
        assert monotonic() - begin < 2.5
        assert not any(wait.done() for wait in waits)
        replica.resume()
        await within(asyncio.gather(*waits))


async def test_a_batch_that_is_sent_again_waits_as_well(start_server: Start) -> None:
    """A connection was lost after the batch arrived. The second sending pushes nothing, but its answer has to mean what
    the first one's would have meant."""
    primary = start_server()
    replica = await start_replica(start_server, primary)
    async with managed(primary, "replica", 0.2) as manager:
        payload = manager.create_task_run(note, n=1).queue_dump_json()
        sender = Sender(manager.broker)
        await sender.send([], [payload])
        replica.pause()
        with pytest.raises(NotDurableError):
            await sender.send([], [payload])
        assert queue_of(primary) == 2
        assert isinstance(manager.broker, RedisTaskBroker)
        assert manager.broker.client._durable_link is not None
        manager.broker.client._durable_link.abort()
        try:  # by another connection
            with pytest.raises(NotDurableError):
                await sender.send([], [payload], sequence=2)
            assert queue_of(primary) == 2
        finally:
            replica.resume()


async def test_a_primary_that_is_killed(start_server: Start) -> None:
    """What was confirmed is on the replica, whenever the primary dies."""
    primary = start_server()
    replica = await start_replica(start_server, primary)
    confirmed = 0

    async def produce(manager: TaskManager) -> None:
        nonlocal confirmed
        for n in range(100_000):
            await manager.queue(note, n=n)
            confirmed += 1

    manager = managed(primary, "replica")
    producing = asyncio.create_task(produce(manager))
    await until(lambda: confirmed > 200 or producing.done())
    primary.kill()
    at_the_kill = confirmed
    producing.cancel()
    with pytest.raises((asyncio.CancelledError, BrokerConnectionError)):
        await producing
    assert queue_of(replica) >= at_the_kill > 200
    manager.intake.producer._in_flight.clear()
    await manager.on_shutdown()


@pytest.mark.parametrize("delay", [0.0, 60.0])
async def test_a_schedule_and_a_delay_wait_as_well(start_server: Start, delay: float) -> None:
    primary = start_server()
    replica = await start_replica(start_server, primary)
    async with managed(primary, "replica", 0.2) as manager:
        n = 0

        async def queue() -> None:
            nonlocal n
            n += 1
            payload = manager.create_task_run(note, n=n).queue_dump_json()
            if delay:
                await manager.broker.delay([(delay, 1, payload)])
            else:
                assert await manager.broker.push_once(f"key {n}", 60, 1, payload)

        await queue()
        replica.pause()
        try:
            with pytest.raises(NotDurableError, match="1 runs are queued, but not safe"):
                await queue()
        finally:
            replica.resume()
        await queue()
        assert queue_of(replica) == (0 if delay else 3)
        assert int(ask(replica, "ZCARD", "{redis-task-broker}-ff:delayed")) == (3 if delay else 0)


async def test_of_two_schedulers_one_hears_that_it_is_not_durable(start_server: Start) -> None:
    """The one that queued it."""
    server = start_server()
    async with managed(server, "replica", 0.05) as manager:
        payload = manager.create_task_run(note, n=1).queue_dump_json()
        with pytest.raises(NotDurableError):
            await manager.broker.push_once("key", 60, 1, payload)
        assert not await manager.broker.push_once("key", 60, 1, payload)
        assert await waiting(manager) == 1


# -- the disk


@pytest.mark.usefixtures("_waitaof")
@pytest.mark.parametrize("policy", ["always", "everysec"])
async def test_confirmed_means_that_it_is_on_disk(start_server: Start, policy: Any) -> None:
    server = start_server(appendonly=policy)
    async with managed(server, "fsync") as manager:
        await manager.queue(note, n=-1)
        await manager.queue_many(note, numbered(2000))
        server.kill()
        await asyncio.to_thread(server.restart)
        assert [run.params["n"] for run in await take_runs(manager)] == [-1, *range(2000)]


async def refused(manager: TaskManager, mend: str) -> None:
    """What the server cannot do is said before anything is sent, by each way in and by a worker's start."""
    run = manager.create_task_run(note)
    ways: list[Callable[[], Any]] = [
        lambda: manager.queue(note, n=0),
        lambda: manager.queue(note, n=0),
        lambda: manager.queue_many(note, numbered(3)),
        lambda: manager.broker.push_once("key", 60, 1, run.queue_dump_json()),
        lambda: manager.broker.queue_task(run),
        manager.broker.connect,
    ]
    for way in ways:
        with pytest.raises(DurabilityUnsupportedError, match=mend) as caught:
            await within(way())
        assert isinstance(caught.value, ConfigError)
        assert isinstance(caught.value, BrokerError)
        assert str(caught.value).startswith(f"broker {manager.broker.url}")
        assert "durability='replica'" in str(caught.value)
    assert await waiting(manager) == 0


@pytest.mark.usefixtures("_waitaof")
async def test_without_an_append_only_file(start_server: Start) -> None:
    server = start_server()
    async with managed(server, "fsync", 0.2) as manager:
        await refused(manager, "set appendonly to yes")


@pytest.mark.parametrize("binary", OLD, ids=str)
async def test_a_server_that_is_too_old(binary: ServerBinary) -> None:
    """WAITAOF came with 7.2; WAIT is old enough."""
    with RedisServer(binary, appendonly="always") as server:
        async with managed(server, "fsync") as manager:
            await refused(manager, "update the server")
        async with managed(server, "replica", 0.05) as manager:
            with pytest.raises(NotDurableError):
                await within(manager.queue(note, n=1))


# -- options


async def test_by_the_config(start_server: Start) -> None:
    server = start_server()
    url = with_options(server.url, durability_seconds=0.05)
    async with TaskManager(broker_url=url, durability="replica") as manager:
        manager.register_task(note)
        with pytest.raises(NotDurableError):
            await manager.queue(note)
        assert await waiting(manager) == 1
    url = with_options(url, durability="replica")
    async with TaskManager(broker_url=url, durability="none") as manager:  # the config goes over the URL
        manager.register_task(note)
        await manager.queue(note)


def test_bad_options() -> None:
    with pytest.raises(BrokerURLError, match="durability"):
        TaskManager(broker_url="redis://localhost?durability=paper")
    with pytest.raises(BrokerURLError, match="durability_seconds"):
        TaskManager(broker_url="redis://localhost?durability_seconds=0")
    with pytest.raises(ConfigError, match="durability"):
        TaskManager(durability="paper")


async def test_many_delayed_runs_are_all_kept_if_no_replica_is_there(redis_url: str) -> None:
    """They are several calls of the script."""
    broker = RedisTaskBroker.from_url(with_options(redis_url, durability="replica", durability_seconds=0.01))
    with pytest.raises(NotDurableError, match="5000 runs are queued"):
        await broker.delay([(60.0, 1, b"%d" % n) for n in range(5000)])
    assert await broker.delayed_length() == 5000
    await broker.clear()
    await broker.close()
