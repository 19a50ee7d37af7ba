"""Producers that queue one run after the other, and a server that withholds answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

import redis

from fluidfast.brokers.base import TaskBroker
from fluidfast.produce.producer import Producer
from kits.broker_kit import MEDIUM
from kits.servers import RedisServer
from kits.waiting import within

StartServer = Callable[..., RedisServer]


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


class Awaits:
    """A producer whose runs are awaited one by one, so that they go past the event loop; it is looked for an answer
    for as long as it takes."""

    def __init__(self, url: str, look_us: int = 1_000_000) -> None:
        self.broker = TaskBroker.from_url(f"{url}{'&' if '?' in url else '?'}busy_poll_us={look_us}")
        self.producer = Producer(self.broker)
        self.sent: list[bytes] = []

    async def __aenter__(self) -> Awaits:
        await within(self.broker.connect())
        self.link = await self.broker.client.link()  # type: ignore[attr-defined]
        if self.link._poll_seconds:
            self.link._look_seconds = self.link._poll_seconds
        await self.row(5)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await within(self.producer.close())
        await within(self.broker.close())

    async def queue(self, payload: bytes = b"", priority: int = MEDIUM) -> None:
        payload = payload or b"%d" % len(self.sent)
        self.sent.append(payload)
        await self.producer.submit(asyncio.get_running_loop(), priority, payload, None)

    async def row(self, count: int) -> None:
        for _ in range(count):
            await self.queue()

    def _mark(self) -> str:
        return self.broker.keys.producer(self.producer.id)  # type: ignore[attr-defined,no-any-return]

    def marked(self, server: RedisServer) -> int:
        """The number of the last batch, as the server knows it."""
        return int(admin(server, "GET", self._mark()))

    def mark_ms(self, server: RedisServer) -> int:
        """For how long it will."""
        return int(admin(server, "PTTL", self._mark()))

    async def in_the_await(self, payload: bytes = b"") -> bool:
        """Whether it is confirmed without a turn of the event loop. Two before it: the first is not looked for."""
        await self.row(2)
        turns: list[None] = []
        self.producer._turned, self.producer._hold = monotonic(), 1.0  # the event loop had its turn just now
        asyncio.get_running_loop().call_soon(turns.append, None)
        self.producer._awaited = monotonic()  # and so was the last one awaited, however busy the machine is
        await self.queue(payload)
        return not turns
