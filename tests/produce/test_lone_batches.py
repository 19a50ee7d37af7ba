"""A lone batch goes in as a transaction in the place of the script, and no run is queued twice or lost by that."""

from __future__ import annotations

import asyncio

import pytest
import redis
from kits.broker_kit import HIGH, MEDIUM, take
from kits.lone_kit import Withholding, admin, calls, submit
from kits.servers import RedisServer
from kits.waiting import within

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.produce.producer import Producer


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
    assert {name for name, _ in denied} == {command}
    assert sum(count for _, count in denied) <= 2, "it is tried when the broker connects, and once with a batch"
    await producer.close()
    await broker.close()
