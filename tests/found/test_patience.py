"""A verb gives up after RECONNECT_SECONDS, wherever the time went: into an answer that does not come, a connection
that is not made, a connection that is cut again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

import pytest
from kits.broker_kit import with_options
from kits.manager_kit import managing
from kits.servers import RedisServer
from kits.topology_kit import start_cluster
from redis.crc import key_slot

from fluidfast import TaskManager, TaskRun, task
from fluidfast.errors import BrokerConnectionError, NotDurableError

Start = Callable[..., RedisServer]
SECONDS = 4.0
"""For what is 30 s."""


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluidfast.brokers.redis.client.RECONNECT_SECONDS", SECONDS)
    monkeypatch.setattr("fluidfast.brokers.url.BrokerOptions.enqueue_timeout", SECONDS)
    monkeypatch.setattr("fluidfast.brokers.redis.client.REPLY_SECONDS", SECONDS / 2)


@task
async def note(ctx: TaskRun) -> None: ...


async def gives_up(call: Awaitable[object], sooner: float = 0.0) -> str:
    """Give the words of the error; the time it took is near SECONDS."""
    began = monotonic()
    with pytest.raises(BrokerConnectionError) as caught:
        async with asyncio.timeout(4 * SECONDS):
            await call
    # less than a pause before the last try, which grows to 1 s
    assert SECONDS - 1.1 - sooner <= monotonic() - began <= 1.45 * SECONDS
    return str(caught.value)


async def later(seconds: float, call: Callable[[], Awaitable[object]]) -> str:
    """Call so many seconds later. The first call that gives up says it to all who queue."""
    await asyncio.sleep(seconds)
    return await gives_up(call(), sooner=seconds)


async def queue_again(manager: TaskManager) -> None:
    """Queue a run as soon as the producer has seen that the server is back."""
    async with asyncio.timeout(4 * SECONDS):
        while True:
            try:
                await manager.queue(note)
            except NotDurableError:  # it has no replica
                return
            except BrokerConnectionError:
                await asyncio.sleep(0.01)
            else:
                return


@pytest.mark.parametrize("options", [{}, {"shards": 2}, {"durability": "replica", "lease_seconds": 1}], ids=str)
async def test_a_server_that_stands_still(start_server: Start, options: dict[str, object]) -> None:
    server = start_server()
    async with managing(with_options(server.url, **options), note) as manager:
        if "durability" in options:
            await manager.broker.connect()
        else:
            await manager.queue(note)
        server.pause()
        try:
            texts = await asyncio.gather(
                gives_up(manager.queue(note)),
                gives_up(manager.queue_many(note, [{"n": n} for n in range(5000)])),
                *(later(n / 10, lambda: manager.queue(note)) for n in range(1, 12)),  # some wait behind those
                gives_up(manager.broker.queue_length()),
                gives_up(manager.broker.delay([(1.0, 1, b"x")])),
                gives_up(manager.broker.push_once("key", 1.0, 1, b"x")),
                gives_up(manager.broker.claim("a", 1)) if not options else asyncio.sleep(0, ""),
                gives_up(manager.broker.get_tasks_info("note")) if not options else asyncio.sleep(0, ""),
            )
        finally:
            server.resume()
        assert "no answer" in texts[0]
        await queue_again(manager)


async def test_a_server_that_is_gone(start_server: Start) -> None:
    server = start_server()
    manager = TaskManager(broker_url=server.url)
    manager.register_task(note)
    await manager.queue(note)
    server.kill()
    await asyncio.gather(gives_up(manager.queue(note)), gives_up(manager.broker.delay([(1.0, 1, b"x")])))
    await manager.on_shutdown()


async def test_a_server_that_never_answered(start_server: Start) -> None:
    """Whoever connects for the first time is told as soon as it is clear."""
    server = start_server()
    server.pause()
    manager = TaskManager(broker_url=server.url)
    manager.register_task(note)
    try:
        with pytest.raises(BrokerConnectionError, match="no answer"):
            async with asyncio.timeout(SECONDS):
                await manager.queue(note)
    finally:
        server.resume()
    await manager.on_shutdown()


async def test_a_slot_that_is_on_its_way_for_long(start_server: Start) -> None:
    cluster = await start_cluster(start_server)
    manager = TaskManager(broker_url=cluster.url)
    manager.register_task(note)
    slot = key_slot(manager.broker.name.encode())
    source = cluster.node_of(slot)
    cluster.begin(slot, source, next(node for node in cluster.nodes if node is not source))
    await asyncio.gather(gives_up(manager.queue(note)), gives_up(manager.broker.delay([(1.0, 1, b"x")])))
    await manager.on_shutdown()
