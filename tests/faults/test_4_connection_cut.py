"""Row 4: the connection is cut at every byte offset of what is said and of what is answered: nothing is lost, nothing
is queued twice.

Each verb goes through the proxy once for each offset of its command (there) and of its reply (back), alternately by FIN
and by RST. In between somebody else promotes what is due, so that a command that is said again cannot hide behind the
set of delayed runs. Then the same blindly: workers and producers under load, cut every few thousand bytes.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import harness
import pytest
import redis
from harness import UNSURE, Fleet
from kits.servers import RedisServer
from kits.waiting import until
from proxy import BACK, THERE, FaultProxy
from results import Figures
from worker_app import work

from fluidfast import TaskManager
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.commands.trials.ledger import ACKNOWLEDGED

SHORT_CUTS = 300
LONG_CUTS = 10_000


class Scene:
    """A manager behind a proxy, and a client that is not."""

    def __init__(self, manager: TaskManager, proxy: FaultProxy, client: redis.Redis) -> None:
        self.manager = manager
        self.broker: RedisTaskBroker = manager.broker  # type: ignore[assignment]
        self.proxy = proxy
        self.client = client
        self.number = 0

    def ids(self, count: int) -> list[str]:
        """New run ids, all of one length, so that offsets mean the same each time."""
        self.number += count
        return [f"{self.number - i:032x}" for i in range(count)]

    def payloads(self, count: int) -> list[bytes]:
        codec = self.broker.codec
        return [codec.submit(codec.create("work", None, id, {}, self.manager, None)) for id in self.ids(count)]

    def push(self, payloads: list[bytes]) -> None:
        self.client.lpush(self.broker.keys.queue("medium"), *payloads)

    async def claimed(self, payloads: list[bytes]) -> Any:
        """Have these under a lease, without the proxy's faults."""
        self.push(payloads)
        return await self.broker.claim("c", len(payloads))

    def everywhere(self) -> Counter[bytes]:
        """All payloads of the broker, however often, wherever they are."""
        keys, found = self.broker.keys, Counter[bytes]()
        for word in ("high", "medium", "low"):
            found.update(self.client.lrange(keys.queue(word), 0, -1))
            found.update(self.client.lrange(keys.inbox("c", word), 0, -1))
        for key in (*self.client.scan_iter(f"{keys.prefix}-ff:lease:*"),):
            found.update(self.client.hvals(key))
        found.update(member[1:] for member in self.client.zrange(keys.delayed, 0, -1))
        found.update(member[1:] for member in self.client.lrange(keys.suspect, 0, -1))
        found.update(entry.partition(b"\n")[2] for entry in self.client.lrange(keys.dead, 0, -1))
        return found

    def wipe(self) -> None:
        if keys := [
            key for key in self.client.scan_iter(f"{self.broker.keys.prefix}-*") if b"-ff:producer:" not in key
        ]:
            self.client.delete(*keys)


Prepared = tuple[Callable[[], Any], Counter[bytes]]


class Verb:
    """``prepare`` gives what to call while the connection is cut, and what has to be there afterwards."""

    def __init__(self, name: str, prepare: Callable[[Scene], Any]) -> None:
        self.name = name
        self.prepare = prepare


def identity(payload: bytes) -> bytes:
    return payload[7:39]


def ids_of(found: Counter[bytes]) -> Counter[bytes]:
    """By run id: the payload of a run that is queued says when that was."""
    counts: Counter[bytes] = Counter()
    for payload, n in found.items():
        counts[identity(payload)] += n
    return counts


async def armed(scene: Scene) -> None:
    """The server watches the producer's mark for this connection, as it does behind each lone batch."""
    await scene.manager.queue("work", ms=1.0)
    scene.wipe()


async def enqueue(scene: Scene, count: int = 3) -> Prepared:
    await armed(scene)
    ids = scene.ids(count)
    priorities = ("high", "medium", "low")

    async def act() -> None:
        await asyncio.gather(
            *(scene.manager.queue("work", priorities[i % 3], run_id=id, ms=1.0) for i, id in enumerate(ids))
        )

    return act, Counter(id.encode() for id in ids)


async def enqueue_many(scene: Scene) -> Prepared:
    return await enqueue(scene, 12)


async def enqueue_alone(scene: Scene) -> Prepared:
    """A batch of one queue: a transaction, not the script."""
    return await enqueue(scene, 1)


async def enqueue_in_a_row(scene: Scene) -> Prepared:
    """What one task awaits one by one, which goes past the event loop from the fourth on."""
    for _ in range(4):
        await armed(scene)
    ids = scene.ids(2)

    async def act() -> None:
        for id in ids:
            await scene.manager.queue("work", run_id=id, ms=1.0)

    return act, Counter(id.encode() for id in ids)


async def delay(scene: Scene) -> Prepared:
    payloads = scene.payloads(2)

    async def act() -> None:
        await scene.broker.delay([(0.0, 1, payload) for payload in payloads])

    return act, Counter(map(identity, payloads))


async def claim(scene: Scene) -> Prepared:
    payloads = scene.payloads(3)
    scene.push(payloads)

    async def act() -> None:
        claim = await scene.broker.claim("c", 10, tasks=("work",))
        assert [item.payload for item in claim.items] == payloads

    return act, Counter(map(identity, payloads))


async def settle_whole(scene: Scene) -> Prepared:
    held = await scene.claimed(scene.payloads(3))

    async def act() -> None:
        # the answer "no lease" is right as well: it was settled, and its answer was lost
        await scene.broker.settle(Settlement(held.batch, whole=True, info={"work": ("2026-01-01", 1.0, "success")}))

    return act, Counter()


async def settle_with_retry(scene: Scene) -> Prepared:
    """One is done, one is tried again at once, one is dead, one goes on."""
    payloads = scene.payloads(4)
    held = await scene.claimed(payloads)
    fields = [item.field for item in held.items]
    by_field = {item.field: item.payload for item in held.items}

    async def act() -> None:
        settlement = Settlement(held.batch, done=fields[:3])
        settlement.retries.append((0.0, 1, by_field[fields[1]]))
        settlement.dead.append((fields[2], "no more"))
        assert await scene.broker.settle(settlement)

    return act, Counter(identity(by_field[field]) for field in fields[1:])


async def adopt(scene: Scene) -> Prepared:
    """What has started out of the inbox goes under its lease."""
    [payload] = scene.payloads(1)
    broker = scene.broker
    waiting = asyncio.create_task(broker.wait("c", 60, ()))
    await until(lambda: "c" in broker._wakeups and len(broker._wakeups["c"].pending) == 3)
    scene.push([payload])
    started = await waiting
    assert started is not None
    await broker._wakeups.pop("c").close()

    async def act() -> None:
        await broker.inboxes.adopt()
        assert scene.client.hvals(broker.keys.lease(started.batch)) == [payload]

    return act, Counter([identity(payload)])


async def release(scene: Scene) -> Prepared:
    payloads = scene.payloads(3)
    held = await scene.claimed(payloads)

    async def act() -> None:
        await scene.broker.release(held.batch, [item.field for item in held.items[1:]])

    return act, Counter(map(identity, payloads))


async def renew(scene: Scene) -> Prepared:
    payloads = scene.payloads(1)
    held = await scene.claimed(payloads)

    async def act() -> None:
        assert await scene.broker.renew("c", [held.batch]) == []

    return act, Counter(map(identity, payloads))


async def promote(scene: Scene) -> Prepared:
    payloads = scene.payloads(2)
    scene.client.zadd(scene.broker.keys.delayed, {b"m" + payload: 1.0 for payload in payloads})
    scene.broker._none_delayed = False  # else it looks first, and somebody else may have been quicker

    async def act() -> None:
        await scene.broker.promote()

    return act, Counter(map(identity, payloads))


async def take_dead(scene: Scene) -> Prepared:
    payloads = scene.payloads(1)
    scene.client.lpush(scene.broker.keys.dead, b"1 why\n" + payloads[0])

    async def act() -> None:
        await scene.broker.take_dead([("1 why", payloads[0], 1, payloads[0])])

    return act, Counter(map(identity, payloads))


VERBS = [
    Verb("enqueue", enqueue),
    Verb("claim", claim),
    Verb("settle", settle_whole),
    Verb("settle with a retry", settle_with_retry),
    Verb("delay", delay),
    Verb("release", release),
    Verb("promote", promote),
    Verb("take_dead", take_dead),
    Verb("renew", renew),
    Verb("enqueue 12", enqueue_many),
    Verb("enqueue alone", enqueue_alone),
    Verb("adopt", adopt),
]

IN_A_ROW = Verb("enqueue in a row", enqueue_in_a_row)


@asynccontextmanager
async def scene_on(server: RedisServer, name: str, **options: Any) -> AsyncIterator[Scene]:
    client = redis.Redis.from_url(server.url)
    with FaultProxy(server.port) as proxy:
        manager = TaskManager(broker_url=f"{proxy.url_of(server.url)}?name={name}", **options)
        manager.register_task(work)
        stop = asyncio.Event()
        other = RedisTaskBroker(f"{server.url}?name={name}")

        async def promote_always() -> None:
            while not stop.is_set():
                await other.promote()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.004):
                        await stop.wait()

        async with manager:
            await manager.broker.connect()
            promoting = asyncio.create_task(promote_always())
            scene = Scene(manager, proxy, client)
            try:
                yield scene
            finally:
                proxy.forget()
                stop.set()
                await promoting
                scene.wipe()
        await other.close()
    client.close()


async def size_of(scene: Scene, verb: Verb) -> dict[str, int]:
    """Bytes of the verb's command and of its reply."""
    for _ in range(2):  # the first time it may connect
        act, _wanted = await verb.prepare(scene)
        before = dict(scene.proxy.passed)
        await act()
        await asyncio.sleep(0.01)
        after = dict(scene.proxy.passed)
        scene.wipe()
    return {direction: after[direction] - before[direction] for direction in (THERE, BACK)}


async def cut_at(scene: Scene, verb: Verb, direction: str, offset: int, reset: bool) -> tuple[int, int, bool]:
    """One cut: how many runs were lost, how many are there too often, whether it was cut."""
    act, wanted = await verb.prepare(scene)
    cut = scene.proxy.cut(direction, offset, reset=reset)
    async with asyncio.timeout(20):
        await act()
    scene.proxy.forget()
    found = ids_of(scene.everywhere())
    lost = sum((wanted - found).values())
    extra = sum((found - wanted).values())
    scene.wipe()
    return lost, extra, cut.happened


def offsets(sizes: dict[str, dict[str, int]], cuts: int, draw: random.Random) -> list[tuple[str, str, int]]:
    """(verb, direction, offset): all of the short replies, where most is at stake; of the rest every k-th from a random
    one on, so that about ``cuts`` come out."""
    short, rest = [], []
    for name, size in sizes.items():
        for where, length in size.items():
            (short if length < 20 else rest).extend((name, where, offset) for offset in range(length))
    step = max(1, len(rest) // max(1, cuts - len(short)))
    return short + rest[draw.randrange(step) :: step]


async def campaign(server: RedisServer, name: str, cuts: int, seed: int, verbs: list[Verb] = VERBS) -> dict[str, Any]:
    draw = random.Random(seed)
    by_name = {verb.name: verb for verb in verbs}
    done = lost = extra = missed = 0
    wrong: list[str] = []
    async with scene_on(server, name) as scene:
        sizes = {verb.name: await size_of(scene, verb) for verb in verbs}
        total = sum(sum(size.values()) for size in sizes.values())
        passes = 0
        while done < cuts and (passes == 0 or total < cuts):
            passes += 1
            for verb_name, direction, offset in offsets(sizes, cuts, draw):
                reset = bool(draw.getrandbits(1))
                one_lost, one_extra, happened = await cut_at(scene, by_name[verb_name], direction, offset, reset)
                done += happened
                missed += not happened
                lost += one_lost
                extra += one_extra
                if one_lost or one_extra:
                    wrong.append(
                        f"{verb_name} {direction} {offset}{' reset' if reset else ''}: -{one_lost} +{one_extra}"
                    )
                if done >= cuts:
                    break
    return {
        "cuts": done, "offsets": total, "cut_not_reached": missed, "lost": lost, "queued_twice": extra,
        "wrong": wrong[:20],
    }  # fmt: skip


async def test_every_kth_byte(redis_server: RedisServer, redis_url: str, fault_seed: int, figures: Figures) -> None:
    name = redis_url.partition("name=")[2]
    found = await campaign(redis_server, name, SHORT_CUTS, fault_seed)
    wrong = found.pop("wrong")
    figures.add(4, "cut at byte offsets of each verb, both ways", **found)
    assert not wrong, wrong
    assert found["cut_not_reached"] == 0
    assert found["cuts"] >= SHORT_CUTS * 0.9


async def test_one_by_one_at_every_kth_byte(
    redis_server: RedisServer, redis_url: str, fault_seed: int, figures: Figures
) -> None:
    name = redis_url.partition("name=")[2] + "&busy_poll_us=1000"  # the answer comes through a proxy
    found = await campaign(redis_server, name, SHORT_CUTS, fault_seed, [IN_A_ROW])
    wrong = found.pop("wrong")
    figures.add(4, "cut at byte offsets of runs that are queued one by one", **found)
    assert not wrong, wrong
    assert found["cuts"] >= SHORT_CUTS * 0.9


@pytest.mark.soak
async def test_every_byte(
    redis_server: RedisServer, redis_url: str, fault_seed: int, figures: Figures, pytestconfig: pytest.Config
) -> None:
    name = redis_url.partition("name=")[2]
    cuts = int(pytestconfig.getoption("--fault-cuts", default=None) or LONG_CUTS)
    found = await campaign(redis_server, name, cuts, fault_seed)
    wrong = found.pop("wrong")
    figures.add(4, "cut at byte offsets of each verb, both ways", **found)
    assert not wrong, wrong
    assert found["cuts"] >= cuts


def under_load(fleet: Fleet, seed: int, figures: Figures, count: int, mean: int) -> None:
    draw = random.Random(seed)
    with FaultProxy(fleet.server.port) as proxy:
        url = proxy.url_of(fleet.url)
        fleet.workers(2, url=url, config={"max_concurrent_tasks": 20})
        producers = [fleet.producer(count=count, url=url, ms=10, window=50, seed=seed) for _ in range(2)]
        # a process that loses its very first connection gives up: the server is not there
        for who in [producer.who for producer in producers]:
            harness.until(lambda who=who: any(fleet.oracle.lines(ACKNOWLEDGED, who)), 30, f"{who} is connected")
        proxy.every(THERE, mean, jitter=draw, reset=True)
        proxy.every(BACK, mean, jitter=draw)
        for producer in producers:
            producer.done(60 + count / 200)
        fleet.drain(40 + count / 1000)  # the producers are faster than the workers, which are cut off too
        proxy.forget()
        fleet.drain(40)
        cuts = proxy.cuts
        fleet.stop()
    # A worker whose settlement was cut off and whose lease ran out while it connected again is no reason to count: it
    # is alive, and has a second. So nothing may run twice.
    verdict = fleet.verdict().check(seed=seed, killed=())
    figures.add(4, "cut every few kB under load", cuts=cuts, worker_exits=len(fleet.exits()), **verdict.counts())
    assert verdict.acknowledged == 2 * count
    assert not verdict.duplicated
    fleet.assert_clean(*UNSURE)


def test_cuts_under_load(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    under_load(fleet, fault_seed, figures, count=2000, mean=60_000)


@pytest.mark.soak
def test_cuts_under_load_for_long(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    under_load(fleet, fault_seed, figures, count=100_000, mean=60_000)
