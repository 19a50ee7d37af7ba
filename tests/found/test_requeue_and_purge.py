"""Requeue and purge: each entry that was there, once, whatever others do; and no step that takes the server long."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from fluidfast import TaskManager
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import PAGE_BYTES, PAGE_ENTRIES, Settlement
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.dead import RedisSifter
from fluidfast.errors import BrokerError
from fluidfast.manage.dead import DeadLetters


def run_of(n: int, name: str = "t") -> bytes:
    return b'{"id":"r%06d","task":"%s","params":{}}' % (n, name.encode())


async def give_up(broker: TaskBroker, payloads: list[bytes], kind: str = "dead") -> None:
    """Have runs end in one of the lists, the first first; on shards, each on one of them."""
    for payload in payloads:
        await broker.queue_payload(1, payload)
    left = len(payloads)
    while left:
        claim = await broker.claim("undertaker", 500)
        left -= len(claim.items)
        settlement = Settlement(claim.batch, whole=True)
        getattr(settlement, kind).extend((item.field, "why") for item in claim.items)
        assert await broker.settle(settlement)


async def push(broker: RedisTaskBroker, runs: list[bytes]) -> None:
    """Put many into the list at once, as an older release did."""
    for first in range(0, len(runs), 1000):
        await broker.redis_cli.lpush(
            broker.keys.dead, *(b"1796000000000 why\n" + r for r in runs[first : first + 1000])
        )


async def queued(broker: TaskBroker) -> list[str]:
    """Ids of what waits, in its order; it is taken."""
    ids: list[str] = []
    while (claim := await broker.claim("reader", 1000)).items:
        ids += [msgspec.json.decode(item.payload)["id"] for item in claim.items]
        await broker.settle(Settlement(claim.batch, whole=True))
    return ids


@pytest.fixture(params=["memory", "redis", "shards"])
async def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return f"memory://{request.node.nodeid.encode().hex()[-40:]}"
    redis_url: str = request.getfixturevalue("redis_url")
    return redis_url + ("&shards=3" if request.param == "shards" else "")


@pytest.fixture
async def brokers(url: str) -> AsyncIterator[list[TaskBroker]]:
    """Two, as two operators have."""
    made = [TaskBroker.from_url(url), TaskBroker.from_url(url)]
    yield made
    await made[0].clear()
    for broker in made:
        await broker.close()


async def test_requeue_beside_purge_of_another_task(brokers: list[TaskBroker]) -> None:
    runs = [run_of(n, "ab"[n % 2]) for n in range(1500)]
    random.Random(1).shuffle(runs)
    await give_up(brokers[0], runs)
    first, second = map(DeadLetters, brokers)
    assert await asyncio.gather(first.requeue(task="a"), second.purge(task="b")) == [750, 750]
    assert await first.count() == 0
    assert sorted(await queued(brokers[0])) == [f"r{n:06d}" for n in range(0, 1500, 2)]


async def test_requeue_beside_requeue_of_the_same(brokers: list[TaskBroker]) -> None:
    await give_up(brokers[0], [run_of(n) for n in range(1000)])
    counts = await asyncio.gather(*(DeadLetters(broker).requeue() for broker in brokers))
    assert sum(counts) == 1000
    assert sorted(await queued(brokers[0])) == [f"r{n:06d}" for n in range(1000)]


async def test_purge_beside_requeue_of_the_same(brokers: list[TaskBroker]) -> None:
    await give_up(brokers[0], [run_of(n) for n in range(1000)])
    gave, took = await asyncio.gather(DeadLetters(brokers[0]).requeue(), DeadLetters(brokers[1]).purge())
    assert gave + took == 1000
    assert len(await queued(brokers[0])) == gave


async def test_what_gives_up_meanwhile_stays(brokers: list[TaskBroker]) -> None:
    """A requeued run that gives up again, while the same operation goes on, is not requeued again."""
    await give_up(brokers[0], [run_of(n) for n in range(500)])
    runs: Counter[str] = Counter()

    async def die_again() -> None:
        while True:
            ids = await queued(brokers[1])
            runs.update(ids)
            await give_up(brokers[1], [run_of(int(name[1:])) for name in ids])
            await asyncio.sleep(0)

    dying = asyncio.create_task(die_again())
    try:
        assert await DeadLetters(brokers[0]).requeue(rate=2000) == 500
    finally:
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    assert max(runs.values(), default=1) == 1


async def test_what_is_trimmed_meanwhile_is_not_skipped_over(brokers: list[TaskBroker]) -> None:
    """The list drops its oldest entries while somebody goes through it: none of the others is missed."""
    broker = brokers[0]
    broker.use(max_dead=600)
    await give_up(broker, [run_of(n) for n in range(600)])
    seen: list[bytes] = []
    async with broker.sifter() as sifter:
        new = 0
        while page := await sifter.turn(50):
            seen += [payload for _, payload in page]
            await give_up(broker, [run_of(10_000 + new + n) for n in range(30)])
            new += 30
    assert len(seen) == len(set(seen))
    assert not [payload for payload in seen if b"r01" in payload]  # what came meanwhile
    trimmed = await broker.dead_trimmed()
    missed = {run_of(n) for n in range(600)} - set(seen)
    assert len(missed) <= trimmed


async def test_ids_of_entries_and_of_runs_and_kinds(brokers: list[TaskBroker]) -> None:
    broker = brokers[0]
    await give_up(broker, [run_of(n) for n in range(5)])
    await give_up(broker, [run_of(n) for n in range(5, 10)], "failed")
    letters = DeadLetters(broker)
    by_run = {letter.run_id: letter for letter in await letters.list()}
    assert len(by_run) == 10
    assert {name for name, letter in by_run.items() if letter.kind == "failed"} == {f"r{n:06d}" for n in range(5, 10)}
    assert await letters.purge([by_run["r000001"].id, "r000007"]) == 2
    assert await letters.requeue(kind="dead", task="t") == 4
    assert await letters.purge(kind="failed", reason="why") == 4
    assert (await letters.count(), len(await queued(broker))) == (0, 4)
    with pytest.raises(ValueError, match="kind is 'both'"):
        await letters.count("both")  # type: ignore[arg-type]


async def test_the_newest_of_both_kinds_are_listed(brokers: list[TaskBroker]) -> None:
    for n in range(6):
        await give_up(brokers[0], [run_of(n)], "failed" if n % 2 else "dead")
        await asyncio.sleep(0.002)  # entries are ordered by their millisecond
    letters = DeadLetters(brokers[0])
    assert [letter.run_id for letter in await letters.list(4)] == [f"r{n:06d}" for n in (5, 4, 3, 2)]
    assert [letter.run_id for letter in await letters.list(3, 3)] == [f"r{n:06d}" for n in (2, 1, 0)]
    assert await letters.list(0) == []


async def test_the_same_bytes_twice_are_two(brokers: list[TaskBroker]) -> None:
    broker = brokers[0]
    if isinstance(broker, RedisTaskBroker):
        await push(broker, [b"same"] * 3)
        assert await DeadLetters(broker).requeue(reason="why") == 3
        assert await broker.queue_length() == {"high": 0, "medium": 3, "low": 0}


# -- on Redis: what one step may cost


@pytest.fixture
async def redis_broker(redis_url: str) -> AsyncIterator[RedisTaskBroker]:
    made = RedisTaskBroker(redis_url)
    yield made
    await made.clear()
    await made.close()


async def test_deep_in_a_long_list(redis_broker: RedisTaskBroker) -> None:
    """Too far in to be taken out at once, they leave places that nobody sees, and that go with the rest."""
    broker = redis_broker
    await push(broker, [run_of(n, "other") for n in range(12_000)])
    await push(broker, [run_of(n, "ours") for n in range(12_000, 12_050)])
    await push(broker, [run_of(n, "other") for n in range(12_050, 24_000)])
    letters = DeadLetters(broker)
    assert await letters.requeue(task="ours") == 50
    assert await queued(broker) == [f"r{n:06d}" for n in range(12_000, 12_050)]
    assert await broker.redis_cli.llen(broker.keys.dead) == 24_000  # the server looked at none but these
    assert await letters.count() == 23_950
    around = await letters.list(4, 11_948)
    assert [letter.run_id for letter in around] == ["r012051", "r012050", "r011999", "r011998"]
    assert [payload for _, payload in await broker.dead(2, 11_999, oldest=True)] == [
        run_of(11_999, "other"), run_of(12_050, "other"),
    ]  # fmt: skip
    assert await letters.purge(["r012050", "r023999", "r000000"]) == 3
    assert await letters.count() == 23_947
    assert int(await broker.redis_cli.hget(broker.keys.kept, "dead:gone")) > 0
    broker.use(max_dead=10_000)
    for n in range(15):
        await give_up(broker, [b"new %d" % n])
    assert await letters.count() == 10_000
    assert await letters.purge() == 10_000
    assert not await broker.redis_cli.exists(broker.keys.dead, broker.keys.sifts)


async def test_no_step_reads_or_moves_much(redis_broker: RedisTaskBroker) -> None:
    broker = redis_broker
    large = [b"x" * (PAGE_BYTES // 3) for _ in range(12)]
    await push(broker, [*large[:6], *(run_of(n) for n in range(900)), *large[6:]])
    calls: list[tuple[str, int, int]] = []
    read_bytes: list[int] = []
    script, read = broker.client.script, broker.redis_cli.lrange

    async def watched(name: str, *arguments: Any) -> Any:
        reply = await script(name, *arguments)
        got = reply if isinstance(reply, list) else []
        calls.append((name, max(len(got), (len(arguments) - 4) // 3), sum(map(len, got))))
        return reply

    async def read_watched(*arguments: Any) -> list[bytes]:
        page: list[bytes] = await read(*arguments)
        read_bytes.append(sum(map(len, page)))
        return page

    broker.client.script = watched  # type: ignore[method-assign]
    broker.redis_cli.lrange = read_watched  # type: ignore[method-assign]
    assert len(await broker.dead(10_000)) == 912
    assert await DeadLetters(broker).requeue() == 912
    assert max(count for _, count, _ in calls) <= PAGE_ENTRIES
    assert max(size for _, _, size in calls) <= PAGE_BYTES
    assert max(read_bytes) <= 8 << 20


async def test_a_step_whose_answer_was_lost_is_asked_again(redis_broker: RedisTaskBroker) -> None:
    broker = redis_broker
    await push(broker, [run_of(n) for n in range(30)])
    async with RedisSifter(broker.client, "dead") as sifter:
        page = await sifter.turn(10)
        sifter.pages -= 1
        assert await sifter.turn(10) == page
        actions = [(*entry, 1, entry[1]) for entry in page[:3]]
        assert await sifter.take(actions) == 3
        sifter.taken -= 1
        assert await sifter.take(actions) == 3
        assert len(await queued(broker)) == 3
        assert [payload for _, payload in await sifter.turn(10)] == [run_of(n) for n in range(10, 20)]


async def test_a_place_that_was_lost_is_said(redis_broker: RedisTaskBroker) -> None:
    broker = redis_broker
    await push(broker, [run_of(n) for n in range(3)])
    async with broker.sifter() as sifter:
        assert await sifter.turn(1)
        assert 0 < await broker.redis_cli.pttl(broker.keys.sifts) <= 3_600_000
        await broker.redis_cli.delete(broker.keys.sifts)
        with pytest.raises(BrokerError, match="begin again"):
            await sifter.turn(1)


async def test_a_header_that_is_no_text(redis_broker: RedisTaskBroker) -> None:
    await redis_broker.redis_cli.lpush(redis_broker.keys.dead, b"\xff\xfe no header", b"1 \xe9\nx")
    letters = DeadLetters(redis_broker)
    assert len(await letters.list()) == 2
    assert await letters.purge([letter.id for letter in await letters.list()]) == 2


async def test_many_operators_at_once(redis_url: str) -> None:
    managers = [TaskManager(broker_url=redis_url) for _ in range(4)]
    broker: Any = managers[0].broker
    runs = [run_of(n, f"t{n % 5}") for n in range(3000)]
    random.Random(2).shuffle(runs)
    await push(broker, runs)
    done = await asyncio.gather(
        managers[0].dead.requeue(task="t0"),
        managers[1].dead.requeue(task="t0"),
        managers[2].dead.purge(task="t1"),
        managers[3].dead.requeue(task="t2", rate=5000),
    )
    assert (done[0] + done[1], done[2], done[3]) == (600, 600, 600)
    assert await managers[0].dead.count() == 1200
    ids = await queued(broker)
    assert len(ids) == len(set(ids)) == 1200
    await broker.clear()
    for manager in managers:
        await manager.on_shutdown()
