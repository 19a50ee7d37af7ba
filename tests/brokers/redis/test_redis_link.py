"""The connection of prebuilt commands: how it waits, and transactions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from kits.waiting import until, within

from fluidfast import TaskBroker, TaskManager
from fluidfast.brokers.redis._resp import pack
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.channel import BEGIN, COMMIT
from fluidfast.brokers.redis.link import POLL_MISSES, Link, LinkLost, ServerReply, Transaction
from fluidfast.errors import BrokerConnectionError

PING = pack(("PING",))


@pytest.fixture
async def open_broker(redis_url: str) -> AsyncIterator[Callable[..., RedisTaskBroker]]:
    opened: list[RedisTaskBroker] = []

    def make(**options: int) -> RedisTaskBroker:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        broker = TaskBroker.from_url(f"{redis_url}{'&' if '?' in redis_url else '?'}{query}")
        assert isinstance(broker, RedisTaskBroker)
        opened.append(broker)
        return broker

    yield make
    for broker in opened:
        await broker.close()


@pytest.fixture
async def link(open_broker: Callable[..., RedisTaskBroker]) -> Link:
    return await open_broker().client.link()


def count_polls(link: Link, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    polls: list[float] = []
    poll = link._poll

    def counted() -> None:
        polls.append(asyncio.get_running_loop().time())
        poll()

    monkeypatch.setattr(link, "_poll", counted)
    return polls


class TestBusyPoll:
    async def test_the_answer_to_a_short_command_is_looked_for(
        self, link: Link, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        polls = count_polls(link, monkeypatch)
        assert await within(link.call(PING)) == b"PONG"
        assert polls
        await asyncio.sleep(0.01)
        seen = len(polls)
        await asyncio.sleep(0.01)
        assert len(polls) == seen, "with nothing due nothing is looked for"
        assert not link._polling

    async def test_not_for_that_to_a_long_one(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        polls = count_polls(link, monkeypatch)
        assert await within(link.call(pack(("ECHO", b"x" * 10_000)))) == b"x" * 10_000
        assert not polls

    async def test_not_when_it_is_off(
        self, open_broker: Callable[..., RedisTaskBroker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        link = await open_broker(busy_poll_us=0).client.link()
        polls = count_polls(link, monkeypatch)
        assert await within(link.call(PING)) == b"PONG"
        assert not polls

    async def test_not_where_there_is_no_core_for_it(
        self, open_broker: Callable[..., RedisTaskBroker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fluidfast.brokers.redis.link.several_cores", lambda: False)
        link = await open_broker().client.link()
        polls = count_polls(link, monkeypatch)
        assert await within(link.call(PING)) == b"PONG"
        assert not polls

    async def test_a_server_that_takes_longer_is_left_alone(
        self, open_broker: Callable[..., RedisTaskBroker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An answer takes 20 ms. It is looked for within the first tenth of a millisecond, a few times, then not."""
        monkeypatch.setattr("fluidfast.brokers.redis.link.POLL_PAUSE", 60.0)
        link = await open_broker(busy_poll_us=100).client.link()
        slow = pack(("BLPOP", f"nothing-{uuid.uuid4().hex}", "0.02"))
        for _ in range(POLL_MISSES):
            polls = count_polls(link, monkeypatch)
            began = asyncio.get_running_loop().time()
            assert await within(link.call(slow)) is None
            assert polls
            # the loop itself may have been late; what came later than that is one last look
            assert sum(at - began > 0.0101 for at in polls) <= 1
        polls = count_polls(link, monkeypatch)
        assert await within(link.call(slow)) is None
        assert await within(link.call(PING)) == b"PONG"
        assert not polls

    async def test_looked_for_again_later(
        self, open_broker: Callable[..., RedisTaskBroker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fluidfast.brokers.redis.link.POLL_PAUSE", 0.0)
        link = await open_broker().client.link()
        for _ in range(POLL_MISSES):
            assert await within(link.call(pack(("BLPOP", f"nothing-{uuid.uuid4().hex}", "0.01")))) is None
        polls = count_polls(link, monkeypatch)
        assert await within(link.call(PING)) == b"PONG"
        assert polls

    @pytest.mark.parametrize("text", ["-1", "x", "1.5"])
    def test_what_is_no_number_of_microseconds_is_refused(self, redis_url: str, text: str) -> None:
        with pytest.raises(ValueError, match="busy_poll_us"):
            TaskBroker.from_url(f"{redis_url}{'&' if '?' in redis_url else '?'}busy_poll_us={text}")


class Answers:
    def __init__(self) -> None:
        self.given: list[tuple[Any, Exception | None]] = []
        self.came = asyncio.Event()

    def __call__(self, reply: Any, exc: Exception | None) -> None:
        self.given.append((reply, exc))
        self.came.set()

    async def one(self) -> tuple[Any, Exception | None]:
        await within(self.came.wait())
        [answer] = self.given
        return answer


class TestTransaction:
    async def test_gives_what_exec_answers_once(self, link: Link) -> None:
        answers = Answers()
        link.send(BEGIN + PING + PING + COMMIT, Transaction(answers, 4))
        after = link.call(pack(("ECHO", "after")))
        assert await answers.one() == ([b"PONG", b"PONG"], None)
        assert await within(after) == b"after"
        assert link.waiting == 0

    async def test_an_error_when_it_is_queued(self, link: Link) -> None:
        answers = Answers()
        link.send(BEGIN + pack(("NO-SUCH-COMMAND",)) + PING + COMMIT, Transaction(answers, 4))
        reply, exc = await answers.one()
        assert reply is None
        assert isinstance(exc, ServerReply)
        assert "unknown command" in str(exc)
        assert await within(link.call(PING)) == b"PONG"

    async def test_an_error_when_it_is_done(self, link: Link) -> None:
        key = f"text-{uuid.uuid4().hex}"
        answers = Answers()
        link.send(
            BEGIN + pack(("SET", key, "x", "PX", 5000)) + pack(("LPUSH", key, "y")) + COMMIT, Transaction(answers, 4)
        )
        reply, exc = await answers.one()
        assert reply is None
        assert isinstance(exc, ServerReply)
        assert str(exc).startswith("WRONGTYPE")

    async def test_a_connection_that_is_lost_or_closed(self, link: Link) -> None:
        lost, closed = Answers(), Answers()
        link.send(BEGIN + PING + PING + COMMIT, Transaction(lost, 4))
        link.abort()
        _, exc = await lost.one()
        assert isinstance(exc, LinkLost)
        link.send(BEGIN + PING + PING + COMMIT, Transaction(closed, 4))
        _, exc = await closed.one()
        assert isinstance(exc, LinkLost)


class Closes:
    """A server that answers some commands of each connection with OK, and says with the last of them that it ends."""

    def __init__(self, answers: int) -> None:
        self.answers = answers
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = self.answers
        while left > 0:
            commands = (await reader.read(1 << 16)).count(b"*")
            if not commands:
                break
            left -= commands
            writer.write(b"+OK\r\n" * commands)
        writer.write_eof()  # no more: a reset, which answers what is written to a closed connection, would tell it too
        while await reader.read(1 << 16):
            pass
        writer.close()


@pytest.mark.parametrize("answers", range(1, 6))
async def test_a_connection_that_ends_while_it_is_made_is_noticed_at_once(answers: int) -> None:
    """Whoever has it at that moment, redis-py or the link that takes it over: another is made, or the call fails."""
    closes = Closes(answers)
    server = await asyncio.start_server(closes, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    manager = TaskManager(broker_url=f"redis://127.0.0.1:{port}")
    connecting = asyncio.create_task(manager.broker.connect())
    try:
        await until(lambda: connecting.done() or closes.connections > 1, seconds=10)  # REPLY_SECONDS are 15
    finally:
        connecting.cancel()
        await asyncio.wait([connecting])
        await manager.on_shutdown()
        server.close()
    if connecting.done() and not connecting.cancelled():
        assert isinstance(connecting.exception(), BrokerConnectionError)
