"""What the campaign found and the core now withstands, each in its smallest form."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis
from harness import Fleet, until
from kits.servers import RedisServer
from proxy import BACK, THERE, FaultProxy
from worker_app import work

from fluidfast import TaskConsumer, TaskRun, task
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.commands.trials.ledger import FINISHED, STARTED
from fluidfast.consume import claiming
from fluidfast.errors import BrokerConnectionError


def name_of(url: str) -> str:
    return url.partition("name=")[2]


async def test_a_consumer_that_nobody_knows_any_more_is_known_before_it_blocks(
    redis_server: RedisServer, redis_url: str
) -> None:
    """The server came back without its data, or the consumer stood still for so long that it was given up. What a push
    then moves to its inbox would be nobody's, if it were killed before its next renewal."""
    broker = RedisTaskBroker(f"{redis_url}&lease_seconds=60")
    await broker.wait("c", 0.01)
    with redis.Redis.from_url(redis_server.url) as client:
        client.delete(broker.keys.consumers)
        assert not (await broker.claim("c", 10, waits=True)).items
        assert client.zscore(broker.keys.consumers, "c") is not None
    await broker.deregister("c")
    await broker.clear()
    await broker.close()


async def test_who_left_is_not_known_again_by_a_late_renewal(redis_server: RedisServer, redis_url: str) -> None:
    """A renewal that is under way while the consumer says goodbye; it left its id in the table of consumers for ever,
    if nobody was there to reap it."""
    consumer = TaskConsumer(broker_url=f"{redis_url}&lease_seconds=0.6", stopping_grace_period=1)
    consumer.register_task(work)
    renewer = consumer.broker.renewer
    calls = 0

    def slow(consumer_id: str) -> Any:
        renew = renewer(consumer_id)

        def renew_slowly(batches: Sequence[str], slots: Sequence[tuple[str, str]]) -> Any:
            nonlocal calls
            calls += 1
            time.sleep(0.3)
            return renew(batches, slots)

        return renew_slowly

    consumer.broker.renewer = slow  # type: ignore[method-assign]
    await consumer.startup()
    async with asyncio.timeout(10):
        while not calls:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await consumer.shutdown()
    with redis.Redis.from_url(redis_server.url) as client:
        assert not client.exists(f"{{{name_of(redis_url)}}}-ff:consumers")


async def test_a_lease_whose_claim_is_not_answered_is_kept(redis_server: RedisServer, redis_url: str) -> None:
    """The answer to a claim was lost, and the connection comes back after more than a lease: the runs are still there,
    and nobody is blamed for them."""
    with FaultProxy(redis_server.port) as proxy:
        broker = RedisTaskBroker(f"{proxy.url_of(redis_url)}&lease_seconds=0.4")
        other = RedisTaskBroker(f"{redis_url}&lease_seconds=0.4")
        await broker.connect()
        broker.client.server.sync_client = other.client.server.sync_client  # type: ignore[method-assign]  # the keeper's way is open
        renew = broker.renewer("c")
        with redis.Redis.from_url(redis_server.url) as client:
            client.lpush(broker.keys.queue("medium"), b"x")
            proxy.cut(BACK, 3)
            claiming = asyncio.create_task(broker.claim("c", 10))
            proxy.every(THERE, 0)
            end = time.monotonic() + 1.6  # four leases
            while time.monotonic() < end:
                assert await asyncio.to_thread(renew, [], []) == []
                assert await other.reap() == 0
                await asyncio.sleep(0.1)
            proxy.forget()
            claim = await claiming
            assert [item.payload for item in claim.items] == [b"x"]
            assert not client.exists(broker.keys.strikes)
        assert await broker.settle(Settlement(claim.batch, whole=True))
        await other.clear()
        await broker.close()
        await other.close()


async def test_a_start_that_is_cut_off_is_tried_again(redis_server: RedisServer, redis_url: str) -> None:
    """The server is there, and the connection ends while the scripts are loaded: no reason to give up."""
    with FaultProxy(redis_server.port) as proxy:
        broker = RedisTaskBroker(proxy.url_of(redis_url))
        cut = proxy.cut(THERE, 2000)
        await broker.connect()
        assert cut.happened
        await broker.close()


async def test_a_retry_that_is_settled_twice_is_tried_once(redis_url: str) -> None:
    """The answer to a settlement is lost; until it is sent again, the retry that it asked for has been promoted."""
    broker = RedisTaskBroker(redis_url)
    await broker.client.script("enqueue", broker.client.declare.enqueue("p"), 1, 1000, 0, 0, 2, 0, b"x", b"y")
    claim = await broker.claim("c", 10)
    settlement = Settlement(claim.batch, done=[claim.items[0].field], retries=[(0.0, 1, b"x")])
    assert await broker.settle(settlement)
    assert await broker.promote() is None
    assert await broker.settle(settlement)
    assert await broker.delayed_length() == 0
    assert (await broker.queue_length())["medium"] == 1
    await broker.clear()
    await broker.close()


async def test_what_is_delayed_twice_runs_once(redis_url: str) -> None:
    """The same of runs that are delayed when they are queued."""
    broker = RedisTaskBroker(redis_url)
    calls: list[Any] = []
    script = broker.client.script

    async def twice(name: str, *arguments: Any) -> Any:
        calls.append(name)
        result = await script(name, *arguments)
        if name == "delay":
            await broker.promote()
            await script(name, *arguments)
        return result

    broker.client.script = twice  # type: ignore[method-assign]
    await broker.delay([(0.0, 1, b"x")])
    assert calls[0] == "delay"
    assert await broker.delayed_length() == 0
    assert (await broker.queue_length())["medium"] == 1
    await broker.clear()
    await broker.close()


def test_the_inbox_of_a_worker_killed_after_the_server_came_back_empty(
    make_fleet: Callable[..., Fleet], fault_seed: int
) -> None:
    """The same with real processes, as row 2 and row 1 meet."""
    fleet = make_fleet(lease_seconds=6.0)
    [victim] = fleet.workers(1)
    fleet.server.kill()
    fleet.server.restart()
    key = f"{fleet.prefix}-ff:consumers"
    until(lambda: fleet.call("CLIENT", "LIST", "TYPE", "normal").count(b"cmd=blmove") == 3, 20, "it waits again")
    assert fleet.call("ZCARD", key) == 1
    victim.kill()


def test_a_worker_that_stood_still_asks_before_it_starts_more(fleet: Fleet) -> None:
    """What it had claimed and not started is others' by then."""
    fleet.set_lease(0.5)
    [worker] = fleet.workers(1, config={"max_concurrent_tasks": 1})
    fleet.producer(count=6, ms=100).done()
    until(lambda: fleet.oracle.count(STARTED) >= 1, 10, "it has begun")
    worker.pause()
    fleet.workers(1, config={"max_concurrent_tasks": 6})
    fleet.drain(10)
    run_elsewhere = {line.id for line in fleet.oracle.lines(FINISHED)}
    assert len(run_elsewhere) == 6
    resumed_at = time.monotonic()
    worker.resume()
    fleet.producer(count=50, ms=20).done()

    def started_since() -> set[str]:
        return {line.id for line in fleet.oracle.lines(STARTED, worker.who) if line.at > resumed_at}

    until(lambda: started_since() - run_elsewhere, 10, "it goes on")
    fleet.drain(10)
    assert not started_since() & run_elsewhere
    fleet.stop()
    verdict = fleet.verdict().check(killed=(), stopped=fleet.stopped)
    assert verdict.acknowledged == 56


@pytest.mark.parametrize("losses", ["not seen", "seen and not heard of"])
async def test_what_waits_for_a_slot_is_asked_for_when_its_lease_may_be_over(
    redis_url: str, losses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in one process. The first run outlasts a lease that nobody prolongs, or of which the keeper knows that
    it is lost, and the event loop not yet."""
    monkeypatch.setattr(claiming, "HOLD_SECONDS", 60.0)  # else what waits is given back meanwhile
    ran: dict[str, list[int]] = {"first": [], "second": []}
    go_on = asyncio.Event()

    def consumer(who: str) -> TaskConsumer:
        @task(name="step")
        async def step(run: TaskRun[dict[str, int]]) -> None:
            ran[who].append(run.params["n"])
            if who == "first" and run.params["n"] == 1:
                await go_on.wait()

        made = TaskConsumer(broker_url=f"{redis_url}&lease_seconds=0.4", max_concurrent_tasks=1)
        made.register_task(step)
        return made

    def renewer(consumer_id: str) -> Any:
        def renew(batches: Sequence[str], slots: Sequence[tuple[str, str]]) -> list[str]:
            if losses == "not seen":
                raise BrokerConnectionError("there is no way")
            return list(batches)

        return renew

    first, second = consumer("first"), consumer("second")
    first.broker.renewer = renewer  # type: ignore[method-assign]
    first.engine.timeouts.lose_batches = lambda batches: None  # type: ignore[method-assign]
    await first.queue_many("step", [{"n": n} for n in range(6)])
    await first.startup()
    async with asyncio.timeout(10):
        while len(first.engine.slots.ready) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await second.startup()
    async with asyncio.timeout(10):
        while len(ran["second"]) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        go_on.set()
        while first.engine.slots.running or first.engine.slots.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await first.shutdown()
    await second.shutdown()
    assert ran["first"] == [0, 1]
    assert sorted(ran["second"]) == [1, 2, 3, 4, 5]
