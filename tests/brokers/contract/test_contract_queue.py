"""The contract: what goes in comes out once, in its order, within the limits that were asked for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from kits.broker_kit import HIGH, LOW, MEDIUM, Sender, places, put, redis_parts, take, take_all

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import MAX_ENQUEUED, Settlement
from fluidfast.brokers.memory.broker import MemoryTaskBroker
from fluidfast.core.states import TaskPriority

Open = Callable[..., TaskBroker]


def numbered(n: int, prefix: str = "r") -> list[bytes]:
    return [f"{prefix}{i:05d}".encode() for i in range(n)]


@pytest.mark.usefixtures("one_shard")
async def test_fifo_within_a_priority(broker: TaskBroker) -> None:
    payloads = numbered(50)
    await put(broker, *payloads[:20])
    await put(broker, *payloads[20:])
    assert await broker.queue_length() == {"high": 0, "medium": 50, "low": 0}
    assert await take(broker, 7) + await take(broker, 100) == payloads
    assert await take(broker) == []


@pytest.mark.usefixtures("one_shard")
async def test_high_before_medium_before_low(broker: TaskBroker) -> None:
    await put(broker, b"l1", b"l2", priority=LOW)
    await put(broker, b"m1", b"m2", priority=MEDIUM)
    await put(broker, b"h1", b"h2", priority=HIGH)
    assert await broker.queue_length() == {"high": 2, "medium": 2, "low": 2}
    assert await take(broker, 3) == [b"h1", b"h2", b"m1"]
    await put(broker, b"h3", priority=HIGH)
    assert await take(broker) == [b"h3", b"m2", b"l1", b"l2"]


@pytest.mark.usefixtures("one_shard")
async def test_what_comes_next(broker: TaskBroker) -> None:
    assert await broker.fronts() == []
    await put(broker, b"l1", b"l2", priority=LOW)
    await put(broker, b"h1", b"h2", priority=HIGH)
    assert await broker.fronts() == [b"h1", b"l1"]
    assert await take(broker, 1) == [b"h1"]
    assert await broker.fronts() == [b"h2", b"l1"]
    await take_all(broker)


async def test_what_comes_next_of_each_shard(broker: TaskBroker) -> None:
    await put(broker, *numbered(100))
    fronts = await broker.fronts()
    assert fronts
    assert set(fronts) <= set(numbered(100))
    await take_all(broker)
    assert await broker.fronts() == []


async def test_bytes_come_out_as_they_went_in(broker: TaskBroker) -> None:
    payloads = [bytes(range(256)), b"\r\n$5\r\n", b"\x00", "¶ 多".encode(), b"x" * 100_000]
    await put(broker, *payloads)
    assert await take(broker) == payloads


@pytest.mark.usefixtures("one_shard")
async def test_two_equal_payloads_are_two(broker: TaskBroker) -> None:
    await put(broker, b"same", b"same")
    await put(broker, b"same")
    claim = await broker.claim("a", 10)
    assert [item.payload for item in claim.items] == [b"same"] * 3
    assert len({item.field for item in claim.items}) == 3
    assert await broker.settle(Settlement(claim.batch, done=[claim.items[1].field]))
    assert await broker.leased_length() == 2
    assert await broker.settle(Settlement(claim.batch, whole=True))


async def test_whether_it_has_runs(broker: TaskBroker) -> None:
    assert not await broker.has_runs()
    await put(broker, b"run")
    assert await broker.has_runs()
    claim = await broker.claim("a", 10)
    assert await broker.has_runs()
    assert await broker.settle(Settlement(claim.batch, retries=[(0.05, MEDIUM, b"again")], whole=True))
    assert await broker.has_runs()
    await until_promoted(broker)
    assert await broker.has_runs()
    assert await take(broker) == [b"again"]
    assert not await broker.has_runs()


async def until_promoted(broker: TaskBroker) -> None:
    while await broker.promote() is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class TestBatches:
    """A producer's batches. The memory broker takes payloads at once and has no channel."""

    @pytest.fixture(autouse=True)
    def _only_with_a_channel(self, broker: TaskBroker) -> None:
        if isinstance(broker, MemoryTaskBroker):
            pytest.skip("it has no channel: push always takes")

    async def test_push_refers_to_the_channel(self, broker: TaskBroker) -> None:
        assert not broker.push(MEDIUM, b"x")
        assert await places(broker) == {}

    async def test_one_batch_for_three_priorities(self, broker: TaskBroker) -> None:
        waiting = await Sender(broker).send([b"h1", b"h2"], [b"m1"], [b"l1", b"l2", b"l3"])
        assert waiting == 6
        assert await broker.queue_length() == {"high": 2, "medium": 1, "low": 3}
        assert await take(broker) == [b"h1", b"h2", b"m1", b"l1", b"l2", b"l3"]

    async def test_the_same_batch_sent_twice_is_queued_once(self, broker: TaskBroker) -> None:
        sender = Sender(broker)
        await sender.send([], [b"a", b"b"])
        assert await sender.send([], [b"a", b"b"], sequence=1) == 2
        await sender.send([], [b"c"])
        for sequence in (1, 2):
            await sender.send([], [b"a", b"b"], sequence=sequence)
        assert sorted(await take_all(broker)) == [b"a", b"b", b"c"]

    async def test_sequence_numbers_are_each_producers_own(self, broker: TaskBroker) -> None:
        one, two = Sender(broker), Sender(broker)
        await one.send([], [b"a"])
        await two.send([], [b"b"])
        assert sorted(await take_all(broker)) == [b"a", b"b"]

    async def test_a_producer_that_was_forgotten_begins_anew(self, broker: TaskBroker) -> None:
        sender = Sender(broker)
        await sender.send([], [b"a"])
        await broker.forget(sender.id)
        await sender.send([], [b"b"], sequence=1)
        assert await take(broker) == [b"a", b"b"]

    async def test_the_largest_batch(self, broker: TaskBroker) -> None:
        payloads = numbered(MAX_ENQUEUED)
        assert await Sender(broker).send(payloads[:1], payloads[1:]) == MAX_ENQUEUED
        taken = []
        while some := await take(broker):
            assert len(some) <= 1000
            taken += some
        assert taken == payloads


async def test_claim_takes_at_most_the_limit(broker: TaskBroker) -> None:
    await put(broker, *numbered(10))
    claim = await broker.claim("a", 3)
    assert [item.payload for item in claim.items] == numbered(3)
    assert await places(broker) == {"medium": 7, "leased": 3}
    assert not claim.alone
    assert claim.suspects == 0
    assert all(item.strikes == 0 for item in claim.items)
    assert await broker.settle(Settlement(claim.batch, whole=True))
    assert await take(broker) == numbered(10)[3:]


async def test_a_claim_of_none_takes_none(broker: TaskBroker) -> None:
    await put(broker, b"1", b"2")
    assert (await broker.claim("a", 0)).items == []
    assert await take_all(broker) == [b"1", b"2"]


async def test_no_more_than_1000_are_claimed_at_once(broker: TaskBroker) -> None:
    await put(broker, *numbered(1500))
    assert await take(broker, 5000) == numbered(1500)[:1000]
    assert await take(broker, 5000) == numbered(1500)[1000:]


@pytest.mark.usefixtures("one_shard")
async def test_claim_takes_at_most_so_many_bytes_and_one_at_least(broker: TaskBroker) -> None:
    payloads = [letter * 100 for letter in (b"a", b"b", b"c", b"d")]
    await put(broker, b"H" * 50, priority=HIGH)
    await put(broker, *payloads)
    await put(broker, b"L" * 10, priority=LOW)
    assert await take(broker, max_bytes=349) == [b"H" * 50, *payloads[:2]]
    assert await take(broker, max_bytes=99) == payloads[2:3]
    assert await take(broker, max_bytes=1) == payloads[3:]
    assert await take(broker, max_bytes=1) == [b"L" * 10]


async def test_what_is_over_the_bytes_stays_in_order(broker: TaskBroker) -> None:
    await put(broker, *numbered(100))
    taken: list[bytes] = []
    while some := await take(broker, max_bytes=6 * 7):
        assert len(some) <= 7
        taken += some
    assert taken == numbered(100)


@pytest.mark.usefixtures("one_shard")
async def test_a_consumer_serves_the_queues_that_its_url_names(open_broker: Open) -> None:
    every, some = open_broker(), open_broker(queues="low,high")
    for priority, payload in ((HIGH, b"h"), (MEDIUM, b"m"), (LOW, b"l")):
        await put(every, payload, priority=priority)
    assert some.options.queues == (TaskPriority.high, TaskPriority.low)  # whatever their order there
    served = [name.rpartition("-")[2] for name in some.task_queue_names]
    assert served == ["high", "low"] * max(1, len(redis_parts(some)))
    assert await take(some) == [b"h", b"l"]
    assert await take(some) == []
    assert await every.queue_length() == {"high": 0, "medium": 1, "low": 0}
    assert await take(every) == [b"m"]


async def test_no_queue_at_all(open_broker: Open) -> None:
    nothing = open_broker(queues="")
    await put(nothing, b"x")
    assert nothing.task_queue_names == ()
    assert await take(nothing) == []
    assert await nothing.clear_queue() == {"high": 0, "medium": 1, "low": 0}


async def test_each_payload_goes_to_one_of_many_consumers(open_broker: Open) -> None:
    payloads = numbered(600)
    brokers = [open_broker() for _ in range(3)]
    await put(brokers[0], *payloads)
    taken: list[list[bytes]] = [[] for _ in range(6)]

    async def consume(i: int) -> None:
        while some := await take(brokers[i % 3], 7, consumer=f"c{i}"):
            taken[i] += some

    await asyncio.gather(*(consume(i) for i in range(6)))
    assert sorted(p for part in taken for p in part) == payloads
    assert all(part == sorted(part) for part in taken)


async def test_an_empty_claim_holds_nothing(broker: TaskBroker) -> None:
    claim = await broker.claim("a", 10)
    assert (claim.items, claim.alone, claim.suspects) == ([], False, 0)
    assert await broker.leased_length() == 0
    assert not await broker.settle(Settlement(claim.batch, whole=True))


@pytest.mark.usefixtures("one_shard")
async def test_clear_queue(broker: TaskBroker) -> None:
    for priority, count in ((HIGH, 1), (MEDIUM, 2), (LOW, 3)):
        await put(broker, *numbered(count), priority=priority)
    claim = await broker.claim("a", 1)
    assert await broker.clear_queue(TaskPriority.low) == {"low": 3}
    assert await broker.queue_length() == {"high": 0, "medium": 2, "low": 0}
    await put(broker, b"again", priority=LOW)
    assert await broker.clear_queue() == {"high": 0, "medium": 2, "low": 1}
    assert await broker.clear_queue() == {"high": 0, "medium": 0, "low": 0}
    assert await places(broker) == {"leased": 1}  # what is held is not waiting
    assert await broker.settle(Settlement(claim.batch, whole=True))


@pytest.mark.usefixtures("one_shard")
@pytest.mark.parametrize("seed", range(5))
async def test_sizes_of_all_kinds_within_the_bytes(broker: TaskBroker, seed: int) -> None:
    """As many as fit, in their order, whatever their sizes; one in any case."""
    rng = random.Random(seed)
    left: list[bytes] = []
    for priority in (HIGH, MEDIUM, LOW):
        payloads = [b"%d-%d-" % (priority, n) + b"x" * rng.choice((0, 1, 10, 100, 5000, 20_000)) for n in range(150)]
        await put(broker, *payloads, priority=priority)
        left += payloads
    while left:
        limit, room = rng.randrange(1, 300), rng.choice((1, 1000, 20_000, 100_000, 1 << 20))
        expected, size = left[:1], len(left[0])
        for payload in left[1:limit]:
            if size + len(payload) > room or size >= room:
                break
            expected.append(payload)
            size += len(payload)
        assert await take(broker, limit, max_bytes=room) == expected
        del left[: len(expected)]
