"""Row 5: the server is at its maxmemory and evicts nothing. Producers get a typed error and no batch is there in part;
whoever consumes goes on claiming, running and settling, which frees; then producers go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import redis
from harness import UNSURE, Fleet, until
from proxy import BACK, THERE, FaultProxy
from results import Figures
from worker_app import work

from fluidfast import TaskManager
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.errors import BrokerFullError

PAD = 2000


def fill(fleet: Fleet, megabytes: int) -> None:
    """Let foreign data take what is left of the memory, to the last few kilobytes."""
    fleet.call("CONFIG", "SET", "maxmemory", f"{megabytes}mb")
    for size in (100_000, 10_000, 1_000, 100):
        try:
            while True:
                fleet.call("RPUSH", "ballast", b"x" * size)
        except redis.exceptions.OutOfMemoryError:
            continue


def relieve(fleet: Fleet) -> None:
    fleet.call("DEL", "ballast")


def full_then_relief(
    fleet: Fleet, seed: int, figures: Figures, what: str, *, count: int, rounds: int, endless: bool = False
) -> None:
    """``endless``: producers go on until the last round is over, else until they have queued ``count``."""
    fleet.workers(2, note=True)
    producers = [fleet.producer(count=count, pad=PAD, window=50, rate=2000, seed=seed) for _ in range(2)]
    retried = fleet.producer(count=count // 10, rate=200, task="fail")
    for _ in range(rounds):
        until(lambda: fleet.oracle.count("K") > 100, 20, "work is going on")
        seen = fleet.oracle.count("R")

        def refused(seen: int = seen) -> bool:
            fill(fleet, 10)  # again, while what is worked off makes room
            return fleet.oracle.count("R") > seen + 20

        until(refused, 20, "producers are refused")
        # What is queued is run and settled although the server is full.
        until(lambda: not fleet.places().keys() - {"delayed"}, 20, lambda: f"it is worked off: {fleet.places()}")
        relieve(fleet)
        acknowledged = fleet.oracle.count("K")
        until(
            lambda acknowledged=acknowledged: (
                fleet.oracle.count("K") > acknowledged + 20 or not fleet.living("producer")
            ),
            20,
            "producers go on",
        )  # type: ignore[misc]
    for producer in (*producers, retried):
        if endless:
            producer.terminate()
        producer.done(60)
    fleet.drain(30)
    fleet.stop()
    errors = {line.id.split()[2] for line in fleet.oracle.notes() if line.id.startswith("refused ")}
    refused_settles = [line.id for line in fleet.oracle.notes() if line.id.startswith("settle ") and " no " in line.id]
    verdict = fleet.verdict().check(seed=seed, killed=())  # a run that was refused and came all the same is unexpected
    figures.add(
        5, what, **verdict.counts(), settles_refused=len(refused_settles), errors=" ".join(sorted(errors)),
        worker_exits=len(fleet.exits()),
    )  # fmt: skip
    assert errors == {"BrokerFullError"}
    assert not refused_settles
    fleet.assert_clean(*UNSURE)


def test_full_then_relief(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    full_then_relief(fleet, fault_seed, figures, "maxmemory reached, then relief", count=2500, rounds=1)


@pytest.mark.soak
def test_full_again_and_again(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    full_then_relief(
        fleet, fault_seed, figures, "maxmemory reached, then relief, again", count=1_000_000, rounds=15, endless=True
    )


async def test_a_batch_is_refused_as_a_whole(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(maxmemory="6mb")
    manager = TaskManager(broker_url=fleet.url)
    manager.register_task(work)
    async with manager:
        with pytest.raises(BrokerFullError) as caught:
            await manager.queue_many("work", ({"pad": "x" * 1000} for _ in range(50_000)))
        queued = caught.value.summary.queued
        assert 0 < queued == fleet.places()["medium"]
        await manager.broker.clear()


async def test_refused_and_accepted_behind_each_other_and_both_answers_lost(make_fleet: Callable[..., Fleet]) -> None:
    """A batch is refused since the server is full; there is room when the next one comes; the connection ends before
    either is known. If the second one were accepted, the first one, sent again, would pass for one that was seen."""
    fleet = make_fleet()
    with FaultProxy(fleet.server.port) as proxy:
        manager = TaskManager(broker_url=proxy.url_of(fleet.url))
        manager.register_task(work)
        async with manager:
            await manager.queue_many("work", [{}])
            before = proxy.passed[THERE]
            await manager.queue_many("work", [{}])
            size = proxy.passed[THERE] - before
            fill(fleet, 8)
            proxy.stall(BACK)
            proxy.stall(THERE, size)
            refused = refusals(fleet)
            calls = []
            for _ in range(2):  # batches of their own, both on their way
                calls.append(asyncio.create_task(manager.queue_many("work", [{}], return_ids=True)))
                await asyncio.sleep(0.02)
            until(lambda: refusals(fleet) > refused, 10, "the first one is refused")
            relieve(fleet)
            before = answered(fleet)
            proxy.flow(THERE)
            async with asyncio.timeout(10):
                while answered(fleet) == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            proxy.cut_all()
            proxy.flow()
            summaries = await asyncio.wait_for(asyncio.gather(*calls), 20)
            found = [payload[7:39].decode() for payload in fleet.call("LRANGE", f"{fleet.prefix}-queue-medium", 0, -1)]
            assert len(found) == 4
            assert {summary.run_ids[0] for summary in summaries} <= set(found)
            await manager.broker.clear()


def refusals(fleet: Fleet) -> int:
    """Transactions and scripts that the server refused or ended."""
    stats = fleet.call("INFO", "commandstats")
    found = [stats[f"cmdstat_{name}"] for name in ("exec", "evalsha") if f"cmdstat_{name}" in stats]
    return sum(int(counts["failed_calls"] + counts["rejected_calls"]) for counts in found)


def answered(fleet: Fleet) -> int:
    """Transactions and scripts that the server has seen."""
    stats = fleet.call("INFO", "commandstats")
    found = [stats[f"cmdstat_{name}"] for name in ("exec", "evalsha") if f"cmdstat_{name}" in stats]
    return sum(int(counts["calls"] + counts["rejected_calls"]) for counts in found)


async def test_a_full_server_answers_every_verb(make_fleet: Callable[..., Fleet]) -> None:
    """What frees is allowed, what grows is refused with BrokerFullError."""
    fleet = make_fleet()
    broker = RedisTaskBroker(fleet.url)
    await broker.connect()
    mark_and_queues = broker.client.declare.enqueue("p")
    await broker.client.script("enqueue", mark_and_queues, 1, 60_000, 0, 0, 5, 0, *(b"%d" % i for i in range(5)))
    await broker.delay([(0.0, 1, b"5")])
    fill(fleet, 8)
    assert await broker.renew("c", []) == []
    assert not (await broker.claim("nobody", 0)).items
    claim = await broker.claim("c", 3)
    assert [item.payload for item in claim.items] == [b"0", b"1", b"2"]
    assert await broker.renew("c", [claim.batch]) == []
    await broker.promote()
    assert await broker.release(claim.batch, [claim.items[0].field]) == 1
    with pytest.raises(BrokerFullError):
        await broker.client.script("enqueue", mark_and_queues, 2, 60_000, 0, 0, 1, 0, b"6")
    with pytest.raises(BrokerFullError):
        await broker.delay([(1.0, 1, b"7")])
    with pytest.raises(BrokerFullError):
        await broker.set_task_aborted("8", "why")
    assert (await broker.queue_length())["medium"] == 4
    assert await broker.delayed_length() == 0
    relieve(fleet)
    await broker.clear()
    await broker.close()
