"""The producer: what is queued at the same time travels together, and each caller hears what became of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis
from kits.broker_kit import HIGH, LOW, MEDIUM, places, take
from kits.servers import RedisServer
from kits.waiting import pass_time, until, within

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import MAX_ENQUEUED, EnqueueBatch
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.scripts import load
from fluidfast.errors import BrokerConnectionError, BrokerError, BrokerFullError, ConnectionLostError
from fluidfast.produce.producer import MAX_BATCH, MAX_IN_FLIGHT, Producer

StartServer = Callable[..., RedisServer]


@pytest.fixture
async def broker(redis_url: str, no_leaked_keys: Any) -> AsyncIterator[RedisTaskBroker]:
    broker = TaskBroker.from_url(redis_url)
    assert isinstance(broker, RedisTaskBroker)
    yield broker
    await broker.close()


@pytest.fixture
async def producer(broker: RedisTaskBroker) -> AsyncIterator[Producer]:
    producer = Producer(broker)
    yield producer
    await producer.close()


def submit(producer: Producer, payload: bytes, priority: int = MEDIUM) -> asyncio.Future[None]:
    return producer.submit(asyncio.get_running_loop(), priority, payload, None)


def numbered(n: int) -> list[bytes]:
    return [b"%05d" % i for i in range(n)]


async def take_all(broker: TaskBroker) -> list[bytes]:
    taken: list[bytes] = []
    while some := await take(broker):
        taken += some
    return taken


class Batches:
    """Counts the batches that a producer sends."""

    def __init__(self, broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[EnqueueBatch] = []
        channel = broker.channel

        async def counted() -> Any:
            send = await channel()

            def count(batch: EnqueueBatch, confirm: Any) -> None:
                self.sent.append(batch)
                send(batch, confirm)

            return count

        monkeypatch.setattr(broker, "channel", counted)


class TestCoalescing:
    async def test_what_is_submitted_in_one_turn_is_one_batch(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches = Batches(broker, monkeypatch)
        producer.counts = True
        futures = [submit(producer, payload, i % 3) for i, payload in enumerate(numbered(60))]
        assert producer.pending == 60
        await within(asyncio.gather(*futures))
        assert [len(batch) for batch in batches.sent] == [60]
        assert producer.pending == 0
        assert producer.pending_bytes == 0
        assert producer.waiting_total == 60
        assert await broker.queue_length() == {"high": 20, "medium": 20, "low": 20}
        by_priority = [numbered(60)[priority::3] for priority in (HIGH, MEDIUM, LOW)]
        assert await take_all(broker) == [payload for part in by_priority for payload in part]

    async def test_500_gathered_leave_in_few_scripts(self, broker: RedisTaskBroker, producer: Producer) -> None:
        await within(submit(producer, b"first"))

        async def scripts() -> int:
            stats = await broker.redis_cli.info("commandstats")
            return int(stats["cmdstat_evalsha"]["calls"])

        async def queue(payload: bytes) -> None:
            await submit(producer, payload)

        before = await scripts()
        await within(asyncio.gather(*(queue(payload) for payload in numbered(500))))
        assert await scripts() - before <= 2
        assert await take_all(broker) == [b"first", *numbered(500)]

    async def test_what_comes_while_a_batch_is_on_its_way_leaves_with_the_next(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches = Batches(broker, monkeypatch)
        await within(submit(producer, b"0"))
        first = submit(producer, b"1")
        await until(lambda: len(batches.sent) == 2, every=0)
        later = [submit(producer, b"%d" % n) for n in range(2, 12)]
        assert len(batches.sent) == 2
        await within(asyncio.gather(first, *later))
        assert [len(batch) for batch in batches.sent] == [1, 1, 10]
        assert await take_all(broker) == [b"%d" % n for n in range(12)]

    async def test_batches_are_bounded_and_few_are_on_their_way(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches = Batches(broker, monkeypatch)
        most = 0
        futures = []
        for payload in numbered(12 * MAX_BATCH):
            futures.append(submit(producer, payload))
            if len(futures) < MAX_IN_FLIGHT * MAX_BATCH + MAX_ENQUEUED:
                most = max(most, len(producer._in_flight))
        await within(asyncio.gather(*futures))
        assert most == MAX_IN_FLIGHT
        assert max(map(len, batches.sent)) == MAX_ENQUEUED
        assert batches.sent[0].sequence == 1
        assert [batch.sequence for batch in batches.sent] == list(range(1, len(batches.sent) + 1))
        assert await take_all(broker) == numbered(12 * MAX_BATCH)

    async def test_large_payloads_make_small_batches(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches = Batches(broker, monkeypatch)
        payloads = [b"%d" % i * 400_000 for i in range(4)]
        await within(asyncio.gather(*(submit(producer, payload) for payload in payloads)))
        assert [len(batch) for batch in batches.sent] == [3, 1]
        assert await take_all(broker) == payloads


class TestLoneCall:
    async def test_leaves_in_the_same_turn(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches = Batches(broker, monkeypatch)
        await within(submit(producer, b"0"))
        assert len(batches.sent) == 1
        future = submit(producer, b"1")
        assert len(batches.sent) == 1
        await asyncio.sleep(0)  # one turn: no timer, no other task between the call and the socket
        assert len(batches.sent) == 2
        await within(future)
        assert await take_all(broker) == [b"0", b"1"]

    async def test_takes_a_round_trip(self, broker: RedisTaskBroker, producer: Producer) -> None:
        await within(submit(producer, b"0"))
        took = []
        for n in range(50):
            start = time.perf_counter()
            await within(submit(producer, b"%d" % n))
            took.append(time.perf_counter() - start)
        assert sorted(took)[len(took) // 2] < 0.005  # some 0.1 ms; a timer of a loop would be 1 ms and more
        assert len(await take_all(broker)) == 51

    async def test_one_after_the_other_keep_their_order(self, broker: RedisTaskBroker, producer: Producer) -> None:
        for payload in numbered(300):
            await submit(producer, payload)
        assert await take_all(broker) == numbered(300)


class TestCancelled:
    async def test_the_caller_alone(self, broker: RedisTaskBroker, producer: Producer) -> None:
        async def queue(payload: bytes) -> None:
            await submit(producer, payload)

        tasks = [asyncio.create_task(queue(payload)) for payload in numbered(10)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        results = await within(asyncio.gather(*tasks, return_exceptions=True))
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [n == 3 for n in range(10)]
        assert results.count(None) == 9
        assert await take_all(broker) == numbered(10)  # it had been handed over

    async def test_all_callers(self, broker: RedisTaskBroker, producer: Producer) -> None:
        futures = [submit(producer, payload) for payload in numbered(5)]
        for future in futures:
            future.cancel()
        await within(producer.flush())
        assert producer.pending == 0
        assert await take_all(broker) == numbered(5)

    async def test_while_the_way_is_opened(self, broker: RedisTaskBroker, producer: Producer) -> None:
        future = submit(producer, b"1")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await future
        await within(submit(producer, b"2"))
        assert await take_all(broker) == [b"1", b"2"]


class TestRefused:
    async def test_a_refused_batch_fails_its_own_callers_only(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        channel = broker.channel
        refused: list[int] = []

        async def refusing() -> Any:
            send = await channel()

            def some(batch: EnqueueBatch, confirm: Any) -> None:
                if any(b"bad" in payload for group in batch.groups for payload in group):
                    refused.append(batch.sequence)
                    asyncio.get_running_loop().call_soon(confirm, 0, BrokerFullError("no room"))
                else:
                    send(batch, confirm)

            return some

        monkeypatch.setattr(broker, "channel", refusing)
        await within(submit(producer, b"0"))
        bad = [submit(producer, b"bad %d" % i) for i in range(3)]
        await asyncio.sleep(0)
        good = submit(producer, b"1")
        results = await within(asyncio.gather(*bad, good, return_exceptions=True))
        assert [type(result) for result in results] == [BrokerFullError] * 3 + [type(None)]
        assert len(refused) == 1
        await within(submit(producer, b"2"))
        assert await take_all(broker) == [b"0", b"1", b"2"]

    async def test_one_that_cannot_be_written_fails_its_own_callers_only(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        channel = broker.channel

        async def exhausted() -> Any:
            send = await channel()

            def some(batch: EnqueueBatch, confirm: Any) -> None:
                if any(b"bad" in payload for group in batch.groups for payload in group):
                    raise MemoryError("no memory for the command")
                send(batch, confirm)

            return some

        monkeypatch.setattr(broker, "channel", exhausted)
        first = submit(producer, b"bad 0")  # found when the connection is opened
        with pytest.raises(MemoryError):
            await within(first)
        await within(submit(producer, b"0"))
        batches = [producer.submit_batch(MEDIUM, [payload]) for payload in (b"1", b"bad 1", b"2")]
        results = await within(asyncio.gather(*batches, return_exceptions=True))
        assert [type(result) for result in results] == [type(None), MemoryError, type(None)]
        assert producer.pending == producer.pending_bytes == 0
        assert await take_all(broker) == [b"0", b"1", b"2"]

    async def test_one_by_the_server_and_those_behind_it_go_on(self, start_server: StartServer) -> None:
        """Behind a refused batch its successors are on their way already. They are queued, once, in order."""
        broker = TaskBroker.from_url(start_server().url)
        producer = Producer(broker)
        await within(submit(producer, b"0"))
        with redis.Redis.from_url(broker.url.raw) as other:

            def calls() -> int:
                found = other.info("commandstats")["cmdstat_exec"]  # type: ignore[index]
                return int(found["calls"] + found["rejected_calls"])

            before = calls()
            other.config_set("maxmemory", "500kb")
            bad = producer.submit_batch(HIGH, [b"bad"])
            deadline = time.monotonic() + 10
            while calls() == before:  # without a turn of the loop, in which the refusal would be read
                assert time.monotonic() < deadline
            other.config_set("maxmemory", "0")
        good = [producer.submit_batch(MEDIUM, [b"%d" % n]) for n in (1, 2)]
        with pytest.raises(BrokerFullError):
            await within(bad)
        await within(asyncio.gather(*good))
        await within(submit(producer, b"3"))
        assert await take_all(broker) == [b"0", b"1", b"2", b"3"]
        await producer.close()
        await broker.close()

    async def test_nothing_of_a_refused_batch_is_kept(self, broker: RedisTaskBroker, producer: Producer) -> None:
        key = broker.task_queue_names[LOW]
        await broker.redis_cli.set(key, b"of the wrong type")
        futures = [submit(producer, b"%d" % priority, priority) for priority in (HIGH, MEDIUM, LOW)]
        results = await within(asyncio.gather(*futures, return_exceptions=True))
        assert all(isinstance(result, BrokerError) and "WRONGTYPE" in str(result) for result in results)
        await broker.redis_cli.delete(key)
        await within(submit(producer, b"next"))
        assert await take_all(broker) == [b"next"]

    async def test_a_refused_batch_is_not_taken_for_one_that_was_seen(
        self, broker: RedisTaskBroker, producer: Producer, redis_url: str
    ) -> None:
        """The scripts are flushed, a batch is refused for that, and another client loads them again before the next
        batch comes. The first is sent again, and must not be skipped for having a number below the second's."""
        producer.counts = True  # or the first would need no script
        with redis.Redis.from_url(redis_url.partition("?")[0]) as other:

            def calls() -> int:
                return int(other.info("commandstats")["cmdstat_evalsha"]["calls"])  # type: ignore[index]

            for first in (b"0", b"3"):  # when the producer is new to the server, and when it is known
                if first == b"3":
                    await within(submit(producer, b"2.5"))
                else:
                    producer._enter_loop()
                    producer._channel = await broker.channel()
                before = calls()
                other.script_flush()
                one = submit(producer, first)
                await asyncio.sleep(0)
                deadline = time.monotonic() + 10
                while calls() == before:  # without a turn of the loop, in which the refusal would be read
                    assert time.monotonic() < deadline
                other.script_load(load("enqueue").text.decode())
                two = producer.submit_batch(MEDIUM, [b"%d" % (int(first) + 1)])
                await within(asyncio.gather(one, two))
        assert await take_all(broker) == [b"0", b"1", b"2.5", b"3", b"4"]


class TestLost:
    async def test_a_task_that_opens_at_once(self, broker: RedisTaskBroker, producer: Producer) -> None:
        """With eager tasks the channel is open before the task that opens it is known; and is opened again later."""
        await broker.connect()
        factory = getattr(asyncio, "eager_task_factory", None)  # Python 3.12; without it tasks are as ever
        asyncio.get_running_loop().set_task_factory(factory)
        await within(submit(producer, b"x"))
        link = await broker.client.link()
        link.abort()
        await until(lambda: link.closed)
        await within(submit(producer, b"y"))
        assert await take_all(broker) == [b"x", b"y"]

    async def test_sent_again_until_it_is_answered(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        channel = broker.channel
        losses = 3
        opened = 0

        async def losing() -> Any:
            nonlocal opened
            send = await channel()
            opened += 1

            def some(batch: EnqueueBatch, confirm: Any) -> None:
                nonlocal losses
                if losses:
                    losses -= 1
                    # the batch arrives, the answer does not
                    send(batch, lambda waiting, exc: confirm(0, ConnectionLostError("cut")))
                else:
                    send(batch, confirm)

            return some

        monkeypatch.setattr(broker, "channel", losing)
        futures = [submit(producer, payload) for payload in numbered(10)]
        await asyncio.sleep(0)
        await within(asyncio.gather(*futures))
        assert opened == 4
        assert await take_all(broker) == numbered(10)

    async def test_given_up_after_a_time(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broker.options.enqueue_timeout = 0.5

        async def lost() -> Any:
            return lambda batch, confirm: asyncio.get_running_loop().call_soon(confirm, 0, ConnectionLostError("cut"))

        with monkeypatch.context() as patch:
            patch.setattr(broker, "channel", lost)
            with pytest.raises(BrokerConnectionError, match="unknown"):
                await within(submit(producer, b"lost"))
        assert producer.pending == 0
        broker.options.enqueue_timeout = 30.0
        await until(lambda: not producer._away)
        await within(submit(producer, b"next"))
        assert await take_all(broker) == [b"next"]

    async def test_what_came_meanwhile_is_given_up_with_it_and_was_not_queued(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broker.options.enqueue_timeout = 0.6
        is_back = False
        channel = broker.channel

        async def lost() -> Any:
            if is_back:
                return await channel()
            raise ConnectionLostError("cut")

        monkeypatch.setattr(broker, "channel", lost)
        first = submit(producer, b"first")
        await until(lambda: producer._opening is not None)
        await pass_time(0.3)  # half of its time
        second = submit(producer, b"second")  # nothing calls for it but an answer to the first
        assert producer._count == 1
        with pytest.raises(BrokerConnectionError, match="not queued"):
            await within(first)
        with pytest.raises(BrokerConnectionError, match="not queued"):
            await within(second)
        is_back = True
        await until(lambda: producer._channel is not None)
        await within(submit(producer, b"third"))
        assert await take_all(broker) == [b"third"]

    async def test_a_connection_that_comes_back_too_late(
        self, broker: RedisTaskBroker, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broker.options.enqueue_timeout = 0.6
        channel = broker.channel
        never = asyncio.Event()

        async def late() -> Any:
            monkeypatch.setattr(broker, "channel", channel)
            await never.wait()

        monkeypatch.setattr(broker, "channel", late)
        first = submit(producer, b"first")
        await until(lambda: producer._opening is not None)
        await pass_time(0.3)
        second = submit(producer, b"second")
        assert producer._count == 1
        with pytest.raises(BrokerConnectionError, match="not queued"):
            await within(first)
        with pytest.raises(BrokerConnectionError, match="not queued"):
            await within(second)
        await until(lambda: producer._channel is not None)
        await within(submit(producer, b"third"))
        assert await take_all(broker) == [b"third"]

    async def test_no_server(self) -> None:
        producer = Producer(TaskBroker.from_url("redis://127.0.0.1:1"))
        futures = [submit(producer, b"%d" % n) for n in range(3)]
        results = await within(asyncio.gather(*futures, return_exceptions=True))
        assert [type(result) for result in results] == [BrokerConnectionError] * 3
        with pytest.raises(BrokerConnectionError):
            await within(submit(producer, b"again"))
        await producer.close()
        await producer.broker.close()


class TestClose:
    async def test_waits_for_what_was_handed_over(self, broker: RedisTaskBroker) -> None:
        producer = Producer(broker)
        futures = [submit(producer, payload) for payload in numbered(2500)]
        await within(producer.close())
        assert all(future.done() and future.exception() is None for future in futures)
        assert await take_all(broker) == numbered(2500)

    async def test_leaves_no_mark_and_may_go_on(self, broker: RedisTaskBroker) -> None:
        producer = Producer(broker)

        async def marks() -> list[bytes]:
            return [key async for key in broker.redis_cli.scan_iter(f"*{broker.name}*producer*", count=1000)]

        ids = set()
        for _ in range(3):
            await within(submit(producer, b"x"))
            ids.add(producer.id)
            assert len(await marks()) == 1
            await within(producer.close())
            assert await marks() == []
            await producer.close()
        assert len(ids) == 3
        assert await take_all(broker) == [b"x"] * 3

    async def test_after_the_broker_was_closed(self, broker: RedisTaskBroker) -> None:
        producer = Producer(broker)
        await within(submit(producer, b"1"))
        await producer.close()
        await broker.close()
        await within(submit(producer, b"2"))
        await broker.close()
        await within(submit(producer, b"3"))
        await producer.close()
        assert await take_all(broker) == [b"1", b"2", b"3"]

    async def test_flush(self, broker: RedisTaskBroker, producer: Producer) -> None:
        await producer.flush()
        futures = [submit(producer, payload) for payload in numbered(10)]
        await within(producer.flush())
        assert all(future.done() for future in futures)
        assert await places(broker) == {"medium": 10}
        assert await take_all(broker) == numbered(10)
        assert repr(producer) == f"<Producer of {broker.url}: 0 pending>"


def test_in_one_event_loop_after_another(redis_url: str, no_leaked_keys: Any) -> None:
    broker = TaskBroker.from_url(redis_url)
    producer = Producer(broker)

    async def session(n: int) -> list[bytes]:
        await within(submit(producer, b"%d" % n))
        taken = await take_all(broker)
        submit(producer, b"abandoned")  # nobody waits for it, and the loop ends
        await asyncio.sleep(0)
        await broker.close()
        return taken

    for n in range(1, 4):
        with asyncio.Runner() as runner:
            taken = runner.run(session(n))
            assert [payload for payload in taken if payload != b"abandoned"] == [b"%d" % n]
            assert len(taken) <= n  # what was on its way when the loop ended may have come, once

    async def rest() -> None:
        await take_all(broker)
        await producer.close()
        await broker.close()

    asyncio.run(rest())
