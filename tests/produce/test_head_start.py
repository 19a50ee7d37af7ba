"""The head start of a lone batch, which adapts to how the answer comes."""

from __future__ import annotations

import asyncio

import pytest
from kits.broker_kit import take
from kits.lone_kit import Awaits, admin
from kits.servers import RedisServer
from kits.waiting import within

from fluidfast.brokers.redis._lane import HeadStart
from fluidfast.brokers.redis._resp import pack


class TestHeadStart:
    """The first byte of the next command is sent ahead of it, where that is quicker."""

    async def test_whatever_comes_next(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:

            async def several() -> None:
                await within(asyncio.gather(awaits.queue(), awaits.queue(), awaits.queue()))

            async def ping() -> None:
                assert await within(awaits.link.call(pack(("PING",)))) == b"PONG"

            start_ahead(awaits)
            for what in (awaits.queue, ping, several, lambda: awaits.queue(b"x" * 10_000), ping):
                await awaits.row(3)
                assert await awaits.in_the_await()
                assert awaits.link.begun
                awaits.producer._task = 0  # what is next goes by the loop
                await what()
                assert not awaits.link.begun
            await awaits.row(800)  # some blocks, with and without
            assert awaits.link is await awaits.broker.client.link()  # type: ignore[attr-defined]
            assert await take(awaits.broker, 1000) == awaits.sent

    async def test_a_connection_that_is_closed(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:
            start_ahead(awaits)
            for turns in (0, 1, 5):
                await awaits.row(3)
                assert await awaits.in_the_await()
                assert awaits.link.begun
                admin(server, "CLIENT", "KILL", "TYPE", "normal")
                for _ in range(turns):
                    await asyncio.sleep(0)
                await awaits.row(5)
                awaits.link = await awaits.broker.client.link()  # type: ignore[attr-defined]
                awaits.link._look_seconds = awaits.link._poll_seconds
                await awaits.row(2)
                start_ahead(awaits)
            assert await take(awaits.broker, 100) == awaits.sent

    @pytest.mark.parametrize(
        ("without", "given"), [(50, 25), (50, 44), (50, 46), (50, 50), (50, 60), (500, 30), (30, 500)]
    )
    def test_the_quicker_way_is_taken(self, without: int, given: int) -> None:
        """If it saves a tenth; the other one is tried now and then."""
        head_start = HeadStart()
        at_first = share(head_start, without, given, 20_000)
        later = share(head_start, without, given, 50_000)
        if given < 0.9 * without:
            assert at_first > 0.8
            assert 0.98 < later < 1
        else:
            assert at_first < 0.25
            assert 0 < later < 0.04

    def test_it_is_noticed_when_that_changes(self) -> None:
        head_start = HeadStart()
        assert share(head_start, 50, 30, 50_000) > 0.9
        assert share(head_start, 50, 60, 1_000) < 0.6  # it does worse: a few blocks
        assert share(head_start, 50, 60, 50_000) < 0.1
        assert share(head_start, 100, 60, 1_000) > 0.6  # the other one does
        assert share(head_start, 100, 60, 50_000) > 0.9

    def test_it_may_take_a_while_to_pay(self) -> None:
        """Two blocks in a row, say, until the kernel lets the server's core sleep later."""
        head_start = HeadStart()
        in_a_row = count = 0
        for _ in range(20_000):
            in_a_row = in_a_row + 1 if head_start.given else 0
            head_start.took(30 if in_a_row > 130 else 60)
            count += head_start.given
        assert count > 15_000

    def test_one_that_takes_long_by_chance(self) -> None:
        head_start = HeadStart()
        assert share(head_start, 50, 30, 50_000) > 0.9
        for _ in range(20):
            head_start.took(1_000)
            assert share(head_start, 50, 30, 1_000) > 0.5


def start_ahead(awaits: Awaits) -> None:
    """For a few blocks, each command that is confirmed in the await gives the next one a head start."""
    lane = awaits.producer._lane
    assert lane is not None
    while not lane.head_start.given:
        lane.head_start.took(10**9)


def share(head_start: HeadStart, without: int, given: int, count: int) -> float:
    """Of so many commands, which take so long, those with a head start."""
    ahead = 0
    for _ in range(count):
        ahead += head_start.given
        head_start.took(given if head_start.given else without)
    return ahead / count
