"""A right that the user of the server lacks is found before anything is lost: when connecting, or by each script."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis
from kits.broker_kit import HIGH, LOW, MEDIUM, half_a_lease_later, put, take_all, with_options
from kits.waiting import within

from fluidfast import TaskManager, TaskRun, task
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Claim, Settlement
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.keys import Keys
from fluidfast.brokers.redis.rights import CONSUMER, PRODUCER, commands_of
from fluidfast.brokers.redis.wakeup import Adoption
from fluidfast.errors import BrokerAuthError, BrokerError

RIGHTS = [right for right in commands_of(CONSUMER, Keys()) if "|" not in right]
USER = "worker"


class Server:
    """One broker name on the session's server, and a user whose rights come and go."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.user_url = url.replace("://", f"://{USER}:secret@", 1)
        self.admin = redis.Redis.from_url(url.partition("?")[0])
        self.grant()

    def grant(self) -> None:
        self.admin.execute_command("ACL", "SETUSER", USER, "reset", "on", ">secret", "~*", "&*", "+@all")

    def revoke(self, *rights: str) -> None:
        self.admin.execute_command("ACL", "SETUSER", USER, *(f"-{right}" for right in rights))

    def payloads(self, keys: Keys) -> Counter[bytes]:
        """How often each is somewhere where it is found again."""
        client: Any = self.admin
        found: Counter[bytes] = Counter()
        for word in ("high", "medium", "low"):
            found.update(client.lrange(keys.queue(word), 0, -1))
            for consumer in client.zrange(keys.consumers, 0, -1):
                found.update(client.lrange(keys.inbox(consumer.decode(), word), 0, -1))
        for batch in client.zrange(keys.leases, 0, -1):
            found.update(client.hvals(keys.lease(batch.decode())))
        found.update(member[1:] for member in client.zrange(keys.delayed, 0, -1))
        found.update(member[1:] for member in client.lrange(keys.suspect, 0, -1))
        found.update(entry.partition(b"\n")[2] for entry in client.lrange(keys.dead, 0, -1))
        return found


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    made = Server(redis_url)
    yield made
    made.admin.execute_command("ACL", "DELUSER", USER)
    made.admin.close()


def open_broker(url: str) -> RedisTaskBroker:
    broker = TaskBroker.from_url(with_options(url, lease_seconds=30))
    assert isinstance(broker, RedisTaskBroker)
    return broker


@pytest.mark.parametrize("right", [*RIGHTS, "multi", "exec", "client|id", "client|unblock"])
async def test_a_consumer_is_told_when_it_connects(server: Server, right: str) -> None:
    broker = open_broker(server.user_url)
    broker.consumes = True
    await broker.connect()
    await broker.close()
    if "|" in right and not server.admin.info()["redis_version"].startswith(("7", "8")):
        pytest.skip("rights to a part of a command came with 7.0")
    server.revoke(right)
    broker = open_broker(server.user_url)
    broker.consumes = True
    with pytest.raises(BrokerAuthError, match=rf"consumer needs: {right.replace('|', '.')}\. Grant it \+") as caught:
        await within(broker.connect())
    assert "secret" not in str(caught.value)
    await broker.close()
    server.grant()
    broker.consumes = True
    await broker.connect()
    await broker.close()
    assert not server.admin.keys(f"{broker.prefix}*"), "trying the rights writes nothing"


async def test_all_that_are_missing_are_named(server: Server) -> None:
    server.revoke("hset", "zadd", "unlink")
    broker = open_broker(server.user_url)
    broker.consumes = True
    with pytest.raises(BrokerAuthError, match=r"unlink, hset, zadd\. Grant it \+unlink \+hset \+zadd "):
        await within(broker.connect())
    await broker.close()


@task
async def note(ctx: TaskRun) -> None: ...


@pytest.mark.parametrize("right", [*commands_of(PRODUCER, Keys()), "multi", "exec", "watch"])
@pytest.mark.parametrize("connected", [False, True], ids=["", "connected"])
async def test_a_producer_is_told_when_it_connects(server: Server, right: str, connected: bool) -> None:
    """Also where the connection was there before, for something else. Without transactions it gets by."""
    manager = TaskManager(broker_url=server.user_url)
    manager.register_task(note)
    if connected:
        await manager.broker.connect()
    server.revoke(right)
    if right in ("multi", "exec", "watch"):
        await within(manager.queue(note, n=1))
        assert (await manager.broker.queue_length())["medium"] == 1
        await manager.broker.clear()
    else:
        with pytest.raises(BrokerAuthError, match=rf"producer needs: {right}\."):
            await within(manager.queue(note, n=1))
    await manager.on_shutdown()


async def deregister(broker: RedisTaskBroker, consumer: str, for_good: int = 0) -> Any:
    return await broker.client.script("deregister", broker.client.declare.deregister(consumer), consumer, for_good, "")


async def prepare(broker: RedisTaskBroker) -> tuple[Claim, Claim]:
    """Something in each place."""
    await put(broker, b"claimed 1", b"claimed 2", b"claimed 3", b"claimed 4")
    claim = await broker.claim("a", 4)
    await put(broker, b"of the dead")
    dead = await broker.claim("dead", 1)
    await broker.renew("dead", [])
    await broker.renew("b", [])
    await broker.renew("a", [claim.batch])
    for consumer, word, payload in (
        ("a", "low", b"inbox 1"), ("a", "low", b"inbox 2"), ("a", "medium", b"moved"), ("dead", "high", b"inbox dead"),
        ("b", "low", b"inbox 3"),
    ):  # fmt: skip
        await broker.redis_cli.lpush(broker.keys.inbox(consumer, word), payload)  # type: ignore[misc]
    await put(broker, b"high 1", b"high 2", priority=HIGH)
    await put(broker, *(b"low %d" % n + b"." * 200 for n in range(20)), priority=LOW)
    await broker.delay([(0.0, MEDIUM, b"due 1"), (0.0, LOW, b"due 2")])
    await broker.redis_cli.lpush(broker.keys.suspect, b"msuspect")  # type: ignore[misc]
    for key, name in ((broker.keys.leases, dead.batch), (broker.keys.consumers, "dead")):
        await broker.redis_cli.zadd(key, {name: 1})
    assert await broker.reap() == 0
    half_a_lease_later(broker)
    return claim, dead


@pytest.mark.parametrize("right", RIGHTS)
async def test_no_script_loses_a_run(server: Server, right: str) -> None:
    """A right is taken away while everything runs; then it comes back."""
    broker = open_broker(server.user_url)
    claim, _ = await prepare(broker)
    fields = [item.field for item in claim.items]
    every = server.payloads(broker.keys)
    assert len(every) == 4 + 1 + 5 + 2 + 20 + 2 + 1
    adoption = Adoption(broker.inboxes.new_batch(), "a", "m", b"moved")
    broker.inboxes.adoptions[adoption.batch] = adoption
    server.revoke(right)

    calls: list[Callable[[], Awaitable[Any]]] = [
        broker.inboxes.adopt,
        broker.promote,
        broker.reap,
        lambda: deregister(broker, "b"),
        lambda: broker.release(claim.batch, fields[3:]),
        lambda: broker.settle(Settlement(claim.batch, done=fields[:1], retries=[(60.0, LOW, b"claimed 1")])),
        lambda: broker.settle(Settlement(claim.batch, done=fields[1:2], dead=[(fields[1], "why")])),
        lambda: broker.claim("a", 10, idle=True),
        lambda: broker.claim("a", 15, idle=False, max_bytes=1000, tasks=("t",)),
        lambda: broker.claim("a", 15, idle=False, waits=True),
        lambda: deregister(broker, "a"),
    ]
    refused = 0
    for call in calls:
        leases = set(server.admin.zrange(broker.keys.leases, 0, -1))  # type: ignore[arg-type]
        try:
            await within(call())
        except BrokerError:
            broker.inboxes.adoptions.clear()
            refused += 1
            assert leases.issuperset(server.admin.zrange(broker.keys.leases, 0, -1)), "one that nobody renews"  # type: ignore[arg-type]
        assert server.payloads(broker.keys) == every
    if right not in ("eval", "set", "del", "pexpire", "lindex", "blmove", "zcard"):
        assert refused
    server.grant()
    for batch in server.admin.zrange(broker.keys.leases, 0, -1):  # type: ignore[union-attr]
        server.admin.zadd(broker.keys.leases, {batch: 1})
    server.admin.delete(broker.keys.strikes)
    await broker.reap()
    half_a_lease_later(broker)
    await broker.reap()
    for consumer in "ab":
        await deregister(broker, consumer, 1)
    await broker.promote()
    taken = set(await take_all(broker))
    left = {member[1:] for member in server.admin.zrange(broker.keys.delayed, 0, -1)}  # type: ignore[union-attr]
    buried = {payload for _, payload in await broker.dead()}
    assert taken | left | buried == set(every)
    await broker.clear()
    await broker.close()


@pytest.mark.parametrize("place", ["queue", "leases", "delayed", "dead", "suspect"])
async def test_nor_where_a_key_is_of_another_type(server: Server, place: str) -> None:
    broker = open_broker(server.url)
    claim, _ = await prepare(broker)
    fields = [item.field for item in claim.items]
    keys = broker.keys
    key = {"queue": keys.queue("low"), "leases": keys.leases, "delayed": keys.delayed}.get(place) or getattr(
        keys, place
    )
    aside = f"{broker.prefix}-aside"
    every = server.payloads(keys)
    if server.admin.exists(key):
        server.admin.rename(key, aside)
    server.admin.set(key, "of another type")
    for call in (
        broker.promote,
        broker.reap,
        lambda: broker.settle(Settlement(claim.batch, done=fields[:1], retries=[(60.0, LOW, b"claimed 1")])),
        lambda: broker.settle(Settlement(claim.batch, done=fields[1:2], dead=[(fields[1], "why")])),
        lambda: broker.claim("a", 10, idle=False),
        lambda: deregister(broker, "a"),
    ):
        try:
            await within(call())
        except BrokerError:
            pass
    server.admin.delete(key)
    if server.admin.exists(aside):
        server.admin.rename(aside, key)
    assert server.payloads(keys) == every
    await broker.clear()
    await broker.close()


@pytest.mark.parametrize("verb", ["enqueue", "delay"])
async def test_what_was_refused_does_not_count_as_seen(server: Server, verb: str) -> None:
    """The answer that says so may be lost: then it is sent again, under its number."""
    broker = open_broker(server.user_url)
    await broker.connect()
    server.revoke("lpush", "zadd")
    declare = broker.client.declare
    arguments: tuple[Any, ...] = (
        (declare.enqueue("p"), 7, 60_000, 0, 0, 1, 0, b"x")
        if verb == "enqueue"
        else (declare.delay("p"), 60_000, 0, b"mx")
    )
    with pytest.raises(BrokerAuthError):
        await broker.client.script(verb, *arguments)
    server.grant()
    await broker.client.script(verb, *arguments)
    await broker.promote()
    assert await take_all(broker) == [b"x"]
    await broker.clear()
    await broker.close()


async def test_a_settlement_goes_as_far_as_the_rights_do(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The run is over; that its task's info cannot be written keeps nobody from their answer."""
    broker = open_broker(server.user_url)
    await put(broker, b"x")
    claim = await broker.claim("a", 1)
    server.revoke("hset")
    info = {"t": ("2026-07-01T10:20:30+00:00", 1.0, "success")}
    assert await broker.settle(Settlement(claim.batch, whole=True, info=info, replies=[("me", b"1")]))
    assert "settled, but not all of their records" in caplog.text
    assert await broker.replies("me", 5) == [b"1"]
    server.grant()
    await broker.clear()
    await broker.close()


async def test_others_use_the_connection_while_rights_are_tried(server: Server) -> None:
    """A transaction is the connection's: what others send meanwhile must not end in it."""
    broker = open_broker(server.user_url)
    await broker.connect()
    await put(broker, *(b"%d" % n for n in range(50)))

    async def claims() -> list[bytes]:
        taken = []
        for _ in range(50):
            claim = await broker.claim("a", 1)
            taken += [item.payload for item in claim.items]
        return taken

    async def opens() -> None:
        for _ in range(5):
            broker.client._tried.clear()
            await broker.channel()

    taken, _ = await asyncio.gather(claims(), opens())
    assert len(taken) == 50
    await broker.clear()
    await broker.close()
