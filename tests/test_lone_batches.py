"""A lone batch goes in as a transaction in the place of the script, and no run is queued twice or lost by that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis
from broker_kit import HIGH, MEDIUM, take
from servers import RedisServer
from waiting import within

from fluidfast.broker import TaskBroker
from fluidfast.producer import Producer
from fluidfast.redis_broker import RedisTaskBroker

StartServer = Callable[..., RedisServer]


@pytest.fixture
async def server(start_server: StartServer) -> RedisServer:
    return start_server(acl=["user default on nopass ~* &* +@all", "user eve on >pw ~* &* +@all"])


@pytest.fixture
async def producer(server: RedisServer) -> AsyncIterator[Producer]:
    broker = TaskBroker.from_url(server.url)
    producer = Producer(broker)
    yield producer
    await producer.close()
    await broker.close()


async def submit(producer: Producer, *payloads: bytes, priority: int = MEDIUM) -> None:
    loop = asyncio.get_running_loop()
    await within(asyncio.gather(*[producer.submit(loop, priority, payload, None) for payload in payloads]))


def admin(server: RedisServer, *command: Any) -> Any:
    with redis.Redis(port=server.port) as client:
        return client.execute_command(*command)


def calls(server: RedisServer, command: str) -> int:
    return int(admin(server, "INFO", "commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


class Withholding:
    """In front of a server: cuts the connection that brings ``word``, and passes that on only when ``release`` is set,
    as a network does that was away for a while."""

    def __init__(self, port: int, word: bytes) -> None:
        self.target = port
        self.word = word
        self.held = False
        self.release = asyncio.Event()
        self.passed = asyncio.Event()
        self.serving: set[asyncio.Task[Any]] = set()
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Withholding:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await within(asyncio.gather(*self.serving, return_exceptions=True))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.target)
        self.writers += (writer, to_server)
        back = asyncio.create_task(self.pass_back(from_server, writer))
        try:
            while data := await reader.read(1 << 16):
                if self.word in data and not self.held:
                    self.held = True
                    writer.transport.abort()
                    await self.release.wait()
                    to_server.write(data)
                    to_server.write_eof()
                    await back  # the server has done all of it, and closed
                    self.passed.set()
                    return
                to_server.write(data)
        finally:
            to_server.transport.abort()
            await back

    async def pass_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if not writer.is_closing():
                writer.write(data)


async def test_what_arrives_after_it_was_sent_again(server: RedisServer) -> None:
    async with Withholding(server.port, b"the late one") as network:
        broker = TaskBroker.from_url(f"redis://127.0.0.1:{network.port}")
        producer = Producer(broker)
        await submit(producer, b"first")
        before = calls(server, "exec")
        await submit(producer, b"second")
        assert calls(server, "exec") == before + 1
        await submit(producer, b"the late one")
        assert network.held
        network.release.set()
        await within(network.passed.wait())
        await submit(producer, b"last")
        assert await take(broker, 10) == [b"first", b"second", b"the late one", b"last"]
        await producer.close()
        await broker.close()


async def test_one_by_one_are_transactions_from_the_second_on(producer: Producer, server: RedisServer) -> None:
    await submit(producer, b"first")
    scripts = calls(server, "evalsha")
    for n in range(5):
        await submit(producer, b"%d" % n, b"and more")
    assert calls(server, "evalsha") == scripts
    assert len(await take(producer.broker, 20)) == 11


async def test_those_of_several_queues_and_those_behind_others_go_between(producer: Producer) -> None:
    loop = asyncio.get_running_loop()
    for n in range(3):
        await submit(producer, b"%d" % n)
        both = [producer.submit(loop, priority, b"both", None) for priority in (HIGH, MEDIUM)]
        await within(asyncio.gather(*both))
        await submit(producer, b"alone")
        both = [producer.submit_batch(MEDIUM, [b"behind"]) for _ in range(3)]
        await within(asyncio.gather(*both))
    assert producer.confirmed == 18
    assert sorted(await take(producer.broker, 100)) == sorted(
        [b"0", b"1", b"2", *[b"both"] * 6, *[b"alone"] * 3, *[b"behind"] * 9]
    )


async def test_a_mark_that_is_gone(producer: Producer, server: RedisServer) -> None:
    """As by an hour without a run: the transaction is refused, and the script says what is so."""
    assert isinstance(producer.broker, RedisTaskBroker)
    await submit(producer, b"first")
    assert admin(server, "DEL", producer.broker.keys.producer(producer.id)) == 1
    await submit(producer, b"second")
    await submit(producer, b"third")
    assert await take(producer.broker, 10) == [b"first", b"second", b"third"]


@pytest.mark.parametrize("command", ["multi", "exec", "watch"])
async def test_users_without_the_right_to_it_go_by_the_script(server: RedisServer, command: str) -> None:
    admin(server, "ACL", "SETUSER", "eve", f"-{command}")
    broker = TaskBroker.from_url(server.url_as("eve", "pw"))
    producer = Producer(broker)
    for n in range(4):
        await submit(producer, b"%d" % n)
    assert await take(broker, 10) == [b"0", b"1", b"2", b"3"]
    with redis.Redis(port=server.port) as client:
        denied = [(entry["object"], int(entry["count"])) for entry in client.acl_log()]
    assert denied == [(command, 1)], "it is tried once"
    await producer.close()
    await broker.close()
