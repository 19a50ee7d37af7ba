"""One broker over several shards: what goes where, what holds over all of them, and that one shard's trouble is its
own. That the contract holds on shards as well is seen in ``brokers/``; a real Cluster is in ``test_topologies.py``."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from kits.broker_kit import HIGH, LOW, MEDIUM, Sender, places, put, take, take_all, with_options
from kits.manager_kit import consuming, managing
from kits.waiting import until, within
from test_kill import read, running, work

from fluidfast import RetryPolicy, TaskManager, TaskRun, task
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Claim, Confirm, EnqueueBatch, Settlement
from fluidfast.brokers.redis import sharded as sharded_broker
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.sharded import ShardedChannel, ShardedRedisBroker
from fluidfast.errors import BrokerConnectionError, BrokerError, BrokerURLError

SHARDS = 4


@task(max_concurrency=2)
async def limited(ctx: Any) -> None: ...


@pytest.fixture
def url(redis_url: str, no_leaked_keys: Any) -> str:
    no_leaked_keys.allow("*-tasks-*")
    return with_options(redis_url, shards=SHARDS)


@pytest.fixture
async def broker(url: str) -> AsyncIterator[ShardedRedisBroker]:
    broker = TaskBroker.from_url(url)
    assert isinstance(broker, ShardedRedisBroker)
    yield broker
    await broker.clear()
    await broker.close()


async def waiting(broker: ShardedRedisBroker) -> list[int]:
    """Runs on the queues of each shard."""
    return [sum((await shard.queue_length()).values()) for shard in broker.shards]


# -- the url


def test_one_shard_is_the_plain_broker() -> None:
    for plain in ("redis://h?name=jobs", "redis://h?name=jobs&shards=1"):
        broker = TaskBroker.from_url(plain)
        assert isinstance(broker, RedisTaskBroker)
        assert broker.prefix == "{jobs}"


@pytest.mark.parametrize(
    "server", ["redis://h", "rediss://h", "unix:///s", "redis+sentinel://h/tasks", "redis+cluster://h,i"]
)
def test_shards_stand_on_prefixes_of_their_own(server: str) -> None:
    broker = TaskBroker.from_url(f"{server}?name=jobs&shards=3")
    assert isinstance(broker, ShardedRedisBroker)
    assert [shard.prefix for shard in broker.shards] == ["{jobs:0}", "{jobs:1}", "{jobs:2}"]
    assert broker.name == "jobs"


def test_a_shard_uses_the_registry_and_the_limits_of_its_broker() -> None:
    broker = TaskBroker.from_url("redis://h?shards=2")
    assert isinstance(broker, ShardedRedisBroker)
    broker.register_task(limited)
    broker.use(max_payload_bytes=200, lease_seconds=3)
    for shard in broker.shards:
        assert shard.codec is broker.codec
        assert shard.codec.max_bytes == 200
        assert shard.task_from_registry("limited") is limited
        assert shard.client.options.lease_seconds == 3


@pytest.mark.parametrize("count", ["0", "-1", "x", "", "1.5", "257"])
def test_so_many_shards_there_cannot_be(count: str) -> None:
    with pytest.raises(BrokerURLError, match=r"shards=.* must be a whole number from 1 to 256"):
        TaskBroker.from_url(f"redis://h?shards={count}")


def test_where_shards_are_refused() -> None:
    with pytest.raises(BrokerURLError, match="has no shards"):
        TaskBroker.from_url("memory://?shards=2")
    with pytest.raises(BrokerURLError, match="fleet=mixed and shards"):
        TaskBroker.from_url("redis://h?shards=2&fleet=mixed")
    with pytest.raises(BrokerURLError, match=r"TaskBroker\.from_url"):
        RedisTaskBroker("redis://h?shards=2")


# -- how many


async def test_another_number_of_shards_is_refused(url: str, broker: ShardedRedisBroker) -> None:
    """By each way in, before anything is queued where nobody looks; until a clear of them all."""
    await broker.connect()
    plain = url.removesuffix(f"&shards={SHARDS}")
    for count in (SHARDS + 1, SHARDS - 1, 1):
        other = TaskBroker.from_url(with_options(plain, shards=count))
        ways: list[Callable[[], Any]] = [other.connect, other.channel, other.clear]
        if count > 1:
            ways += [
                lambda o=other: o.delay([(0.0, MEDIUM, b"x")]),
                lambda o=other: o.push_once("key", 60, MEDIUM, b"x"),
            ]
            ways += [lambda o=other: o.queue_payload(MEDIUM, b"x")]
        for way in ways:
            with pytest.raises(BrokerURLError, match=rf"shards={count}, but it is spread over {SHARDS}: .*clear\(\)"):
                await within(way())
        await other.close()
    assert await places(broker) == {}
    same = TaskBroker.from_url(url)
    await same.connect()
    await same.clear()
    await same.close()
    changed = TaskBroker.from_url(with_options(plain, shards=SHARDS + 1))
    await changed.connect()
    await changed.clear()
    await changed.close()


async def test_the_first_to_say_a_number_of_shards_is_one(url: str, broker: ShardedRedisBroker) -> None:
    others = [TaskBroker.from_url(url.replace(f"shards={SHARDS}", f"shards={count}")) for count in (2, 3, 5, 6)]
    answers = await asyncio.gather(*(other.connect() for other in others), return_exceptions=True)
    assert Counter(map(type, answers)) == {BrokerURLError: 3, type(None): 1}
    await others[answers.index(None)].clear()
    for other in others:
        await other.close()


async def test_threads_end_with_the_broker(url: str, broker: ShardedRedisBroker) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("fluidfast-")]

    give_back = broker.releaser("a")
    assert give_back is not None
    await asyncio.to_thread(broker.renewer("a"), [], [])
    await asyncio.to_thread(give_back)
    assert {name.rpartition("_")[0] for name in threads()} == {"fluidfast-leases", "fluidfast-yield"}
    await broker.deregister("a")
    await broker.close()
    await until(lambda: not threads())


# -- producing


async def test_a_producers_batches_go_round(broker: ShardedRedisBroker) -> None:
    sender = Sender(broker)
    told = [await sender.send([], [b"%d" % n]) for n in range(3 * SHARDS)]
    assert await waiting(broker) == [3] * SHARDS
    assert told == list(range(1, 3 * SHARDS + 1))  # how many wait in all
    await broker.forget(sender.id)
    client: Any = broker.redis_cli
    assert [key async for key in client.scan_iter(f"{{{broker.name}:*}}-ff:producer:*")] == []
    assert len(await take_all(broker)) == 3 * SHARDS


async def test_single_runs_and_delayed_ones_go_round(broker: ShardedRedisBroker) -> None:
    for n in range(SHARDS):
        await broker.queue_payload(MEDIUM, b"%d" % n)
    assert await waiting(broker) == [1] * SHARDS
    for n in range(SHARDS):
        await broker.delay([(0.0, MEDIUM, b"later %d" % n)])
    assert [await shard.delayed_length() for shard in broker.shards] == [1] * SHARDS
    await until(lambda: all_promoted(broker))
    assert await waiting(broker) == [2] * SHARDS


async def all_promoted(broker: TaskBroker) -> bool:
    return await broker.promote() is None


async def test_a_batch_that_is_sent_again_goes_to_its_shard(broker: ShardedRedisBroker, url: str) -> None:
    """By whichever process: the number says where it went."""
    sender = Sender(broker)
    for n in range(1, 2 * SHARDS + 1):
        await sender.send([], [b"%d" % n])
    other = TaskBroker.from_url(url)
    again = Sender(other)
    again.id = sender.id
    for n in range(1, 2 * SHARDS + 1):
        await again.send([], [b"%d" % n], sequence=n)
    await other.close()
    assert await waiting(broker) == [2] * SHARDS


class FakeShard:
    """A channel whose answers come when the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []  # number, and that of the one before it
        self.confirms: list[Confirm] = []

    def __call__(self, batch: EnqueueBatch, confirm: Confirm) -> None:
        self.sent.append((batch.sequence, batch.behind))
        self.confirms.append(confirm)


class TestChannel:
    @pytest.fixture
    def shards(self) -> list[FakeShard]:
        return [FakeShard() for _ in range(2)]

    @pytest.fixture
    def told(self) -> list[tuple[int, object]]:
        return []

    @pytest.fixture
    def send(self, shards: list[FakeShard], told: list[tuple[int, object]]) -> Callable[[int], None]:
        broker = ShardedRedisBroker("redis://h?shards=2")
        broker.number_of = lambda key, sequence=0: sequence % 2  # type: ignore[method-assign]
        channel = ShardedChannel(broker, shards)

        def send(sequence: int) -> None:
            def confirm(waiting: int, exc: Exception | None) -> None:
                told.append((sequence, exc or waiting))

            # as a producer says it: behind the one before, wherever that went
            channel(EnqueueBatch("p", sequence, ([], [b"x"], []), behind=sequence - 1), confirm)

        return send

    def test_behind_is_said_for_each_shard(self, shards: list[FakeShard], send: Callable[[int], None]) -> None:
        for sequence in (1, 2, 3, 4, 5):
            send(sequence)
        assert shards[0].sent == [(2, 0), (4, 2)]
        assert shards[1].sent == [(1, 0), (3, 1), (5, 3)]

    def test_what_is_confirmed_is_not_waited_behind(self, shards: list[FakeShard], send: Callable[[int], None]) -> None:
        send(1)
        shards[1].confirms[0](1, None)
        send(2)
        send(3)
        assert shards[1].sent == [(1, 0), (3, 0)]

    def test_confirmed_in_the_order_of_sending(
        self, shards: list[FakeShard], send: Callable[[int], None], told: list[tuple[int, object]]
    ) -> None:
        for sequence in (1, 2, 3):
            send(sequence)
        shards[0].confirms[0](5, None)
        assert told == []
        refused = BrokerError("full")
        shards[1].confirms[0](0, refused)
        assert told == [(1, refused), (2, 5)]
        shards[1].confirms[1](3, None)
        assert told[2:] == [(3, 8)]  # on both shards


async def test_queued_once_while_connections_are_cut(url: str, redis_server: Any) -> None:
    seen: Counter[int] = Counter()
    cuts = queued = 0

    @task
    async def count(ctx: TaskRun) -> None: ...

    async with managing(url, count) as manager:
        done = asyncio.Event()

        async def cut() -> None:
            nonlocal cuts
            with redis.Redis.from_url(redis_server.url) as client:
                while not done.is_set():
                    # of ours alone: the server is shared
                    mine = {str(link._transport.get_extra_info("sockname")[1]) for link in links(manager)}
                    for info in client.client_list():
                        if info["addr"].rpartition(":")[2] in mine:
                            cuts += client.client_kill_filter(_id=info["id"])
                    await asyncio.sleep(0.01)

        cutting = asyncio.create_task(cut())
        while cuts < 40 or queued < 20 * SHARDS:  # each shard has its turn, however quickly it is cut
            await asyncio.gather(*(manager.queue(count, n=n) for n in range(queued, queued + 10)))
            queued += 10
        done.set()
        await within(cutting)
        assert min(await waiting(manager.broker)) > 0  # type: ignore[arg-type]
        for payload in await take_all(manager.broker):
            seen[manager.broker.codec.decode(payload, manager).params["n"]] += 1
    assert seen == Counter(range(queued))


def links(manager: TaskManager) -> list[Any]:
    broker = manager.broker
    assert isinstance(broker, ShardedRedisBroker)
    kept = [shard.client._link for shard in broker.shards]
    return [link for link in kept if link is not None and not link.closed]


async def test_a_shard_that_refuses_refuses_its_own_batches(broker: ShardedRedisBroker) -> None:
    broken = broker.shards[1]
    await broker.redis_cli.set(broken.keys.queue("medium"), "no list")
    sender = Sender(broker)
    refused = 0
    for n in range(2 * SHARDS):
        try:
            await sender.send([], [b"%d" % n])
        except BrokerError:
            refused += 1
    assert refused == 2
    await broker.redis_cli.delete(broken.keys.queue("medium"))
    assert await waiting(broker) == [2, 0, 2, 2]
    for n in range(SHARDS):
        await sender.send([], [b"again %d" % n])
    assert await waiting(broker) == [3, 1, 3, 3]


async def test_a_new_channel_opens_only_what_was_lost(url: str) -> None:
    """Each is a connection of its own where it waits for what is durable."""
    broker = TaskBroker.from_url(with_options(url, durability="replica", durability_seconds=0.01))
    assert isinstance(broker, ShardedRedisBroker)
    await broker.channel()
    before = [set(shard.client._blocked) for shard in broker.shards]
    (link,) = before[2]
    link.abort()
    await broker.channel()
    after = [set(shard.client._blocked) for shard in broker.shards]
    assert [len(new - old) for old, new in zip(before, after, strict=True)] == [0, 0, 1, 0]
    await broker.clear()
    await broker.close()


# -- consuming


async def test_claims_go_round(broker: ShardedRedisBroker) -> None:
    for shard in broker.shards:
        await put(shard, b"1", b"2")
    batches = [(await broker.claim("a", 1)).batch for _ in range(2 * SHARDS)]
    numbers = [int(batch.partition(":")[0]) for batch in batches]
    assert sorted(numbers[:SHARDS]) == list(range(SHARDS))
    assert numbers[SHARDS:] == numbers[:SHARDS]
    for batch in batches:
        assert await broker.settle(Settlement(batch, whole=True))
    assert await places(broker) == {}


async def test_high_waits_behind_one_claim_of_each_other_shard_at_most(broker: ShardedRedisBroker) -> None:
    for shard in broker.shards:
        await put(shard, *(b"low" for _ in range(20)), priority=LOW)
    for shard in broker.shards:
        await put(shard, b"high", priority=HIGH)
        taken: list[bytes] = []
        while b"high" not in taken:
            taken += await take(broker, 1)
        assert len(taken) <= SHARDS


@pytest.mark.parametrize("number", range(SHARDS))
async def test_a_push_on_any_shard_wakes(broker: ShardedRedisBroker, number: int) -> None:
    assert await take(broker, consumer="a", waits=True) == []
    waits = asyncio.create_task(broker.wait("a", 60))
    await until(lambda: all(len(shard._wakeups.get("a", Nothing).pending) == 3 for shard in broker.shards))
    await put(broker.shards[number], b"x")
    await within(waits)
    asked: list[int] = []
    for n, shard in enumerate(broker.shards):
        note_claims(shard, n, asked)
    assert await take(broker, consumer="a") == [b"x"]
    assert asked == [number]  # it is known where
    await broker.deregister("a")


class Nothing:
    pending = ()


def note_claims(shard: RedisTaskBroker, number: int, asked: list[int]) -> None:
    claim = shard.claim

    async def noted(*args: Any, **kwargs: Any) -> Claim:
        asked.append(number)
        return await claim(*args, **kwargs)

    shard.claim = noted  # type: ignore[method-assign]


async def test_a_shard_that_does_not_answer_is_passed_over(
    broker: ShardedRedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it gives when it does goes back, which is no strike."""
    monkeypatch.setattr(sharded_broker, "LATE_SECONDS", 0.05)
    answers = asyncio.Event()
    slow = broker.shards[2]
    claim = slow.claim

    async def late(*args: Any, **kwargs: Any) -> Claim:
        given = await claim(*args, **kwargs)
        await answers.wait()
        return given

    monkeypatch.setattr(slow, "claim", late)
    for number, shard in enumerate(broker.shards):
        await put(shard, b"%d" % number)
    assert sorted(await within(take_all(broker))) == [b"0", b"1", b"3"]
    assert await slow.leased_length() == 1
    answers.set()
    await until(lambda: not_leased(slow))
    given = await broker.claim("a", 10)
    assert [(item.payload, item.strikes) for item in given.items] == [(b"2", 0)]
    assert await broker.settle(Settlement(given.batch, whole=True))


async def not_leased(broker: TaskBroker) -> bool:
    return await broker.leased_length() == 0


async def test_no_shard_answers(broker: ShardedRedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_broker, "LATE_SECONDS", 0.05)

    async def never(*args: Any, **kwargs: Any) -> Claim:
        return await asyncio.get_running_loop().create_future()

    for shard in broker.shards:
        monkeypatch.setattr(shard, "claim", never)
    with pytest.raises(BrokerConnectionError, match="none of its 4 shards answers"):
        await within(broker.claim("a", 1))


async def test_promotion_does_not_wait_for_a_shard_that_is_not_there(
    broker: ShardedRedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded_broker, "LATE_SECONDS", 0.05)
    answers = asyncio.Event()
    promote = broker.shards[0].promote
    asked = 0

    async def late() -> float | None:
        nonlocal asked
        asked += 1
        await answers.wait()
        return await promote()

    monkeypatch.setattr(broker.shards[0], "promote", late)
    for shard in broker.shards:
        await shard.delay([(0.0, MEDIUM, b"x")])

    async def others_promoted() -> bool:
        await within(broker.promote(), 5)
        return await waiting(broker) == [0, 1, 1, 1]

    await until(others_promoted)
    await within(broker.promote(), 5)
    assert asked == 1
    answers.set()
    await until(lambda: all_promoted(broker))
    assert await waiting(broker) == [1] * SHARDS


async def test_one_shard_that_hangs_costs_no_lease_of_the_others(
    broker: ShardedRedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()

    def hanging(batches: Any, slots: Any) -> list[str]:
        hangs.wait(20)
        raise redis.exceptions.TimeoutError("no answer")

    monkeypatch.setattr(broker.shards[0], "renewer", lambda consumer: hanging)
    for shard in broker.shards:
        await put(shard, b"x")
    claims = [await broker.claim("a", 1) for _ in range(SHARDS)]
    deadlines = [await deadline(broker, claim.batch) for claim in claims]
    renewing = asyncio.create_task(asyncio.to_thread(broker.renewer("a"), [claim.batch for claim in claims], []))

    async def others_prolonged() -> bool:
        now = [await deadline(broker, claim.batch) for claim in claims]
        return sum(new > old for new, old in zip(now, deadlines, strict=True)) == SHARDS - 1

    await until(others_prolonged)
    hangs.set()
    with pytest.raises(redis.exceptions.TimeoutError):
        await within(renewing)


async def test_what_was_set_aside_on_any_shard_is_given_back(broker: ShardedRedisBroker) -> None:
    """By a thread, while the event loop does not get on."""
    give_back = broker.releaser("a")
    assert give_back is not None
    waits = asyncio.create_task(broker.wait("a", 60))
    await until(lambda: all(len(shard._wakeups.get("a", Nothing).pending) == 3 for shard in broker.shards))
    for shard in broker.shards:
        await put(shard, b"x")
    await within(waits)
    await until(lambda: places_are(broker, {"inbox": SHARDS}))
    await asyncio.to_thread(give_back)
    assert await places(broker) == {"medium": SHARDS}
    await broker.deregister("a")


async def test_what_wakes_is_given_by_one_shard_at_a_time(broker: ShardedRedisBroker) -> None:
    for count in (1, SHARDS):
        waits = asyncio.create_task(broker.wait("a", 60, ()))
        await until(lambda: all(len(shard._wakeups.get("a", Nothing).pending) == 3 for shard in broker.shards))
        for shard in broker.shards:
            for link, _ in shard._wakeups["a"].links.values():
                link._transport.pause_reading()  # type: ignore[attr-defined]
        for shard in broker.shards[:count]:
            await put(shard, b"x")
        await until(lambda count=count: places_are(broker, {"inbox": count}))  # type: ignore[misc]
        for shard in broker.shards:
            for link, _ in shard._wakeups["a"].links.values():
                link._transport.resume_reading()  # type: ignore[attr-defined]
        claim = await within(waits)
        assert claim is not None
        assert [item.payload for item in claim.items] == [b"x"]
        assert await broker.settle(Settlement(claim.batch, whole=True))
        taken = 1
        while taken < count:  # what another shard gave at the same time is on its queue again, or in its inbox
            taken += len(await take(broker, consumer="a"))
        assert taken == count
        assert await places(broker) == {}
    await broker.deregister("a")


async def test_nothing_is_held_when_the_waiting_is_cancelled(
    broker: ShardedRedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment in which a shard gives something."""
    shard = broker.shards[0]
    wait = shard.wait

    async def wait_and_cancel(*arguments: Any) -> Claim | None:
        claim = await wait(*arguments)
        assert claim is not None
        waits.cancel()
        return claim

    monkeypatch.setattr(shard, "wait", wait_and_cancel)
    waits = asyncio.create_task(broker.wait("a", 60, ()))
    await until(lambda: all(len(shard._wakeups.get("a", Nothing).pending) == 3 for shard in broker.shards))
    await put(shard, b"x")
    await asyncio.wait([waits])
    assert waits.cancelled()
    await until(lambda: places_are(broker, {"medium": 1}))
    await broker.deregister("a")


async def places_are(broker: TaskBroker, wanted: dict[str, int]) -> bool:
    return await places(broker) == wanted


async def deadline(broker: ShardedRedisBroker, batch: str) -> float:
    held = broker.held_by(batch)
    assert held is not None
    found: Any = await broker.redis_cli.zscore(broker.shards[held[0]].keys.leases, held[1])
    return float(found)


async def test_the_keeper_prolongs_slots(broker: ShardedRedisBroker) -> None:
    assert await broker.acquire(limited, "run-1")
    key = broker.home.keys.slots("limited")
    before: Any = await broker.redis_cli.zscore(key, "run-1")
    renew = broker.renewer("a")

    async def prolonged() -> bool:
        assert await asyncio.to_thread(renew, [], [("limited", "run-1")]) == []
        now: Any = await broker.redis_cli.zscore(key, "run-1")
        return bool(now > before)

    await until(prolonged)
    await broker.deregister("a")


async def test_who_is_idle_gets_a_suspect_whichever_shard_has_it(url: str, broker: ShardedRedisBroker) -> None:
    dying = TaskBroker.from_url(with_options(url, lease_seconds=0.1))
    await put(broker.shards[2], b"suspect")
    for _ in range(2):
        assert (await dying.claim("dead", 1)).items
        await until(dying.reap)
    await dying.close()
    for shard in broker.shards:
        await put(shard, *(b"x" for _ in range(20)))
    told = [await broker.claim("a", 1, idle=False) for _ in range(SHARDS)]
    assert sorted(claim.suspects for claim in told) == [0, 0, 0, 1]
    alone = await broker.claim("a", 1, idle=True)
    assert (alone.alone, [item.payload for item in alone.items]) == (True, [b"suspect"])


async def test_the_keeper_hears_which_were_lost(broker: ShardedRedisBroker) -> None:
    for shard in broker.shards:
        await put(shard, b"x")
    batches = [(await broker.claim("a", 1)).batch for _ in range(SHARDS)]
    assert await broker.settle(Settlement(batches[1], whole=True))
    renew = broker.renewer("a")
    assert await asyncio.to_thread(renew, [*batches, "nobody"], []) == ["nobody", batches[1]]
    assert await broker.renew("a", [*batches, "nobody", "9:x"]) == ["nobody", "9:x", batches[1]]
    await broker.deregister("a")


# -- what there is once


async def test_slots_are_freed_before_the_settlement_and_once(
    broker: ShardedRedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is tried again has the same id: a word that comes late would free the slot of its next attempt."""
    shard = broker.shards[2]
    await put(shard, b"x", b"y")
    claim = await broker.claim("a", 2)
    assert await broker.acquire(limited, "run-1")
    settle = shard.settle
    free_then: list[int] = []

    async def noted(settlement: Settlement) -> bool:
        if settlement.done:
            free_then.append(await broker.current_task_runs("limited"))
            if len(free_then) == 1:
                await settle(settlement)
                raise BrokerConnectionError("its answer is lost")
        return await settle(settlement)

    monkeypatch.setattr(shard, "settle", noted)
    done = [claim.items[0].field]
    settlement = Settlement(claim.batch, done=done, retries=[(0.0, MEDIUM, b"x")], slots=[("limited", "run-1")])
    with pytest.raises(BrokerConnectionError):
        await broker.settle(settlement)
    assert free_then == [0]
    assert await broker.acquire(limited, "run-1")  # the second attempt, by whoever claimed it
    assert await broker.settle(settlement)
    assert await broker.current_task_runs("limited") == 1
    assert await places(broker) == {"leased": 1, "delayed": 1}


async def test_max_concurrency_holds_over_all_shards(url: str) -> None:
    at_once = most = 0
    ended: Counter[int] = Counter()

    @task(max_concurrency=2, rate_limit_retry=RetryPolicy(wait=0.01))
    async def narrow(ctx: TaskRun) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        ended[ctx.params["n"]] += 1

    async with managing(url, narrow) as manager:
        for n in range(100):
            await manager.queue(narrow, n=n)
        assert min(await waiting(manager.broker)) > 0  # type: ignore[arg-type]
        async with consuming(url, narrow, max_concurrent_tasks=8), consuming(url, narrow, max_concurrent_tasks=8):
            await until(lambda: len(ended) == 100, seconds=60)
            await until(lambda: nothing_left(manager), every=0.05)
        assert await manager.broker.current_task_runs("narrow") == 0
    assert most == 2
    assert ended == Counter(range(100))


async def nothing_left(manager: TaskManager) -> bool:
    return await places(manager.broker) == {}


async def test_who_waits_for_a_run_hears_of_it_from_any_shard(url: str) -> None:
    @task
    async def echo(ctx: TaskRun) -> None: ...

    async with managing(url, echo) as manager, consuming(url, echo):
        for _ in range(2 * SHARDS):
            run = await manager.queue_and_wait(echo, timeout=20)
            assert str(run.state) == "success"
        many = await within(asyncio.gather(*(manager.queue_and_wait(echo, timeout=20) for _ in range(50))))
        assert len({run.id for run in many}) == 50


async def test_a_tasks_info_is_of_all_shards(broker: ShardedRedisBroker) -> None:
    broker.register_task(limited)
    await broker.enable_task("limited", False)
    for shard in broker.shards:
        assert (await shard.claim("a", 1, tasks=["limited"])).enabled == {"limited": False}
    for number, second in ((1, 10), (3, 30), (0, 20)):
        await put(broker.shards[number], b"x")
        claim = await broker.claim("a", 1)
        end = f"2026-07-01T00:00:{second}+00:00"
        await broker.settle(Settlement(claim.batch, whole=True, info={"limited": (end, float(second), "success")}))
    (info,) = await broker.get_tasks_info("limited")
    assert info.last_run_end is not None
    assert info.last_run_duration is not None
    assert (info.last_run_end.second, info.last_run_duration.total_seconds(), info.enabled) == (30, 30, False)


async def test_dead_letters_of_all_shards(broker: ShardedRedisBroker) -> None:
    for n in range(10):
        keys = broker.shards[n % SHARDS].keys
        await broker.redis_cli.lpush(keys.dead, b"%d why\n%d" % (1000 + n, n))
    newest = [b"%d" % n for n in range(9, -1, -1)]
    assert [payload for _, payload in await broker.dead()] == newest
    assert [payload for _, payload in await broker.dead(oldest=True)] == newest[::-1]
    pages = [await broker.dead(3, offset) for offset in range(0, 12, 3)]
    assert [payload for page in pages for _, payload in page] == newest
    entries = await broker.dead(2, 4)
    actions: list[tuple[str, bytes, int | None, bytes]] = [(head, body, LOW, b"again") for head, body in entries]
    assert await broker.take_dead([*actions, ("1 no", b"such", None, b"")]) == 2
    assert await broker.take_dead(actions) == 0
    assert await places(broker) == {"dead": 8, "low": 2}


async def test_the_same_entry_on_two_shards_is_two(broker: ShardedRedisBroker) -> None:
    for shard in broker.shards[:2]:
        await broker.redis_cli.lpush(shard.keys.dead, b"1000 why\nx")
    assert await broker.take_dead([("1000 why", b"x", MEDIUM, b"x")]) == 1
    assert await places(broker) == {"dead": 1, "medium": 1}


# -- all of it


async def test_a_killed_worker_loses_nothing(url: str, tmp_path: Path) -> None:
    """Two worker processes over four shards, one of them killed in the middle."""
    async with managing(url, work) as manager:
        broker = manager.broker
        assert isinstance(broker, ShardedRedisBroker)
        ids = [run.id for run in await asyncio.gather(*(manager.queue(work) for _ in range(1000)))]
        for _ in range(90):
            ids += (await manager.queue_many(work, ({} for _ in range(100)), return_ids=True)).run_ids or ()
        assert min(await waiting(broker)) > 0
        files = [tmp_path / "killed", tmp_path / "survives"]
        async with running(url, files[0]) as one, running(url, files[1]) as two:
            await until(lambda: all(len(read(path, "end")) > 500 for path in files))
            one.send_signal(signal.SIGKILL)
            await within(one.wait())
            assert await broker.leased_length() > 0
            assert len(read(files[0], "end")) + len(read(files[1], "end")) < len(ids)
            await until(lambda: nothing_left(manager), seconds=60, every=0.05)
            two.send_signal(signal.SIGTERM)
            assert await within(two.wait()) == 0
        ended = Counter(run_id for path in files for run_id in read(path, "end"))
        assert set(ended) == set(ids), "lost"
        assert await broker.dead() == []
