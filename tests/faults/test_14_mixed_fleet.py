"""Row 14: aio-fluid and fluidfast on one broker, both ways: nothing is lost while no process of aio-fluid is killed (it
delivers at most once), and a task's ``max_concurrency`` holds over both (``?fleet=mixed``).

aio-fluid has its own Python: ``FLUIDFAST_AIO_PYTHON=/path/to/python``. Without it these are part of the long form,
which makes a virtual environment if it can.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
from apps.mixed import LIMIT, limited
from apps.processes import Command, app
from harness import Fleet, until
from kits.aio_fluid import make_aio_python
from results import Figures

from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.commands.trials.ledger import FINISHED, STARTED, Oracle

GIVEN = os.environ.get("FLUIDFAST_AIO_PYTHON", "")
MIXED = "&fleet=mixed"


@pytest.fixture(scope="session")
def aio_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that can import aio-fluid."""
    return make_aio_python(tmp_path_factory, "aio-fluid")


def aio(fleet: Fleet, python: str, role: str, number: int, **options: Any) -> Command:
    who = f"aio-{role}{number}"
    return Command(fleet, who, [python, app("aio_side")], role=role, limit=LIMIT, **options)


def consumers(fleet: Fleet, python: str, *, ours: int, theirs: int, slots: int = 1) -> None:
    """``slots``: of each of aio-fluid's. Few of them do more: each run takes the lock of its task, and who does not get
    that looks again after 0.1 s (two processes with one slot each: 800 runs a second, with eight each: 300)."""
    started = [aio(fleet, python, "worker", i, concurrency=slots) for i in range(theirs)]
    if ours:
        fleet.workers(ours, app=app("mixed"), config={"max_concurrent_tasks": 8})
    until(lambda: all(process.is_ready() for process in started), 30, "aio-fluid's workers are ready")


def produce(fleet: Fleet, python: str, *, ours: dict[str, int], theirs: dict[str, int], ms: dict[str, float]) -> int:
    """Start a producer for each task; gives how many runs they make in all."""
    for number, (task, count) in enumerate(theirs.items()):
        aio(fleet, python, "producer", number, task=task, count=count, ms=ms[task])
    for task, count in ours.items():
        fleet.producer(count, task=task, ms=ms[task], app=app("mixed"), window=50)
    return sum(ours.values()) + sum(theirs.values())


def most_at_once(oracle: Oracle, task_prefixes: set[str]) -> int:
    """How many runs of these were between start and finish at the same time."""
    events = [
        (line.at, line.word == STARTED)
        for line in oracle.lines(STARTED + FINISHED)
        if line.id.rpartition("-")[0] in task_prefixes
    ]
    running = most = 0
    for _, began in sorted(events):
        running += 1 if began else -1
        most = max(most, running)
    return most


def settle_down(fleet: Fleet, oracle: Oracle, seed: int, count: int, seconds: float) -> dict[str, Any]:
    """Wait for all of it, aio-fluid's process memory included, and judge."""

    def why() -> str:
        return f"{count} runs are done: {oracle.count(FINISHED)}, left {fleet.places()}, ended: {fleet.exits()}"

    for producer in [process for process in fleet.processes if process.options["role"] == "producer"]:
        producer.done(seconds)
    until(lambda: oracle.count(FINISHED) >= count, seconds, why, every=0.1 + count / 100_000)
    fleet.drain(30)
    fleet.stop()
    verdict = fleet.verdict().check(seed=seed, killed=())
    assert verdict.ok == count
    fleet.assert_clean()
    shares: dict[str, int] = {"by_aio_fluid": 0, "by_fluidfast": 0}
    for line in oracle.lines(FINISHED):
        shares["by_aio_fluid" if line.who.startswith("aio") else "by_fluidfast"] += 1
    return {**verdict.counts(), **shares}


def one_way(
    make_fleet: Callable[..., Fleet], oracle: Oracle, seed: int, python: str, count: int, *, there: bool
) -> dict[str, Any]:
    fleet = make_fleet(query=MIXED)
    consumers(fleet, python, ours=2 if there else 0, theirs=0 if there else 2)
    ours, theirs = ({}, {"plain": count}) if there else ({"plain": count}, {})
    produce(fleet, python, ours=ours, theirs=theirs, ms={"plain": 0})
    return settle_down(fleet, oracle, seed, count, 60 + count / 100)


def both_ways(
    make_fleet: Callable[..., Fleet], oracle: Oracle, seed: int, python: str, *,
    plain: int, limited: int, seconds: float, query: str = MIXED,
) -> dict[str, Any]:  # fmt: skip
    """Producers and consumers of both, two tasks, one of them under a limit."""
    fleet = make_fleet(query=query)
    consumers(fleet, python, ours=2, theirs=2, slots=2)  # of either, enough to go over the limit alone
    each = {"plain": plain // 2, "limited": limited // 2}
    count = produce(fleet, python, ours=each, theirs=each, ms={"plain": 0, "limited": 40})
    found = settle_down(fleet, oracle, seed, count, seconds)
    prefixes = {p.who for p in fleet.processes if p.options.get("task") == "limited"}
    most = most_at_once(oracle, prefixes)
    by = {line.who[:3] for line in oracle.lines(FINISHED) if line.id.rpartition("-")[0] in prefixes}
    assert most <= LIMIT, f"{most} runs of a task with max_concurrency={LIMIT} at once"
    assert by == {"aio", "wor"}, "one of them ran none of the limited"
    return {**found, "limit": LIMIT, "most_at_once": most, "limited": limited}


async def test_what_runs_at_aio_fluid_takes_slots(redis_url: str, no_leaked_keys: None) -> None:
    """Without aio-fluid: its keys and its lock, as it makes them."""
    broker = RedisTaskBroker(redis_url + MIXED)
    client = broker.redis_cli

    def key(task: str, id: str) -> str:
        return f"{broker.prefix}-task-run-{task}-{id}"

    try:
        await client.set(key("limited", "theirs"), "theirs", ex=60)
        await client.set(key("limited-more", "other"), "other", ex=60)  # another task, whose name begins the same
        assert [await broker.acquire(limited, id) for id in ("a", "b", "a", "c")] == [True, True, True, False]
        await client.delete(key("limited", "theirs"))
        assert await broker.acquire(limited, "c")
        assert await client.exists(key("limited", "c"))  # and it sees ours
        lock = client.lock("tasks:limited", timeout=60)
        await lock.acquire()
        asked = asyncio.create_task(broker.acquire(limited, "d"))
        await asyncio.sleep(0.2)
        assert not asked.done()  # it counts, or adds
        await lock.release()
        assert not await asyncio.wait_for(asked, 5)
        await client.zadd(broker.keys.slots("limited"), {"a": 1})  # whose worker is dead
        assert await broker.acquire(limited, "d")
        assert not await client.exists(key("limited", "a"))
        own = RedisTaskBroker(redis_url)
        await client.set(key("limited", "theirs"), "theirs", ex=60)
        await client.delete(broker.keys.slots("limited"))
        assert [await own.acquire(limited, id) for id in "efgh"] == [True, True, True, False]  # not asked to look
        await own.close()
    finally:
        await broker.clear()
        await broker.close()


short = pytest.mark.soak if not GIVEN else pytest.mark.filterwarnings("error")


@short
def test_theirs_to_ours(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures, aio_python: str
) -> None:
    found = one_way(make_fleet, oracle, fault_seed, aio_python, 500, there=True)
    figures.add(14, "aio-fluid queues, fluidfast consumes", **found)


@short
def test_ours_to_theirs(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures, aio_python: str
) -> None:
    found = one_way(make_fleet, oracle, fault_seed, aio_python, 200, there=False)
    figures.add(14, "fluidfast queues, aio-fluid consumes", **found)


@short
def test_a_limit_holds_over_both(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures, aio_python: str
) -> None:
    found = both_ways(make_fleet, oracle, fault_seed, aio_python, plain=200, limited=40, seconds=90)
    figures.add(14, "both queue, both consume, one task with max_concurrency", **found)


# The long form, a hundred thousand in all.


@pytest.mark.soak
def test_many_of_theirs_to_ours(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures, aio_python: str
) -> None:
    found = one_way(make_fleet, oracle, fault_seed, aio_python, 40_000, there=True)
    figures.add(14, "aio-fluid queues, fluidfast consumes, 40 k", **found)


@pytest.mark.soak
def test_many_of_ours_to_theirs(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures, aio_python: str
) -> None:
    found = one_way(make_fleet, oracle, fault_seed, aio_python, 20_000, there=False)
    figures.add(14, "fluidfast queues, aio-fluid consumes, 20 k", **found)


@pytest.mark.soak
def test_a_limit_holds_over_many(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures, aio_python: str
) -> None:
    found = both_ways(make_fleet, oracle, fault_seed, aio_python, plain=38_000, limited=2000, seconds=600)
    figures.add(14, "both queue, both consume, one task with max_concurrency, 40 k", **found)


@pytest.mark.soak
def test_calibration(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, aio_python: str) -> None:
    """A worker that does not count what runs at aio-fluid's."""
    with pytest.raises(AssertionError, match="at once"):
        both_ways(make_fleet, oracle, fault_seed, aio_python, plain=200, limited=60, seconds=120, query="")
