"""Row 12: many idle consumers cost the server next to nothing, and a push wakes one of them, soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from apps.many import pick_up
from apps.processes import script
from harness import Fleet, percentile, until
from results import Figures

from fluidfast import TaskManager
from fluidfast.commands.trials.ledger import ATTEMPTED, FINISHED, NOTE, STARTED, Oracle

WARM_SECONDS = 0.5
IN_SCRIPTS = ("hgetall", "hget", "hset", "llen", "rpop", "time", "zadd", "zrangebyscore", "zrem", "zscore", "exists")
"""What idle consumers do within scripts; what they send is the rest: EVALSHA, BLMOVE, SET, ZRANGE."""


def commands(fleet: Fleet) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in fleet.call("INFO", "commandstats").items()}


def idle_cost(fleet: Fleet, consumers: int, seconds: float) -> dict[str, Any]:
    """Commands a second that the consumers send, each, and those that the server does for them within scripts."""
    began, before = time.monotonic(), commands(fleet)
    time.sleep(seconds)
    after, took = commands(fleet), time.monotonic() - began
    each = {
        name: (count - before.get(name, 0)) / took / consumers
        for name, count in after.items()
        if name != "info" and not name.startswith("client")
    }  # CLIENT SETINFO: a new connection
    sent = sum(rate for name, rate in each.items() if name not in IN_SCRIPTS)
    print({name: round(rate, 3) for name, rate in each.items() if rate})
    return {"sent_s": sent, "with_those_in_scripts_s": sum(each.values()), "for_seconds": took}


async def push(fleet: Fleet, oracle: Oracle, pushes: int, pause: float) -> list[str]:
    """One push at a time, each after the last one is done. Gives what was not picked up by one that was woken alone."""
    wrong = []
    ledger = oracle.ledger("feeder")
    async with TaskManager(broker_url=fleet.url) as manager:
        manager.register_task(pick_up)
        await manager.broker.connect()
        for number in range(pushes):
            woken = oracle.count(NOTE)
            id = f"push-{number}"
            ledger.attempted(id)
            await manager.queue("pick_up", run_id=id)
            ledger.acknowledged(id)
            await asyncio.sleep(pause)
            if (n := oracle.count(NOTE) - woken) != 1:
                wrong.append(f"{id} woke {n}")
    ledger.close()
    return wrong


def run(
    make_fleet: Callable[..., Fleet], oracle: Oracle, seed: int, *,
    processes: int, consumers: int, seconds: float, pushes: int, plant: str = "",
) -> dict[str, Any]:  # fmt: skip
    fleet = make_fleet(lease_seconds=30, extra=["maxclients 10000"])
    started = [script(fleet, f"many{i}", "many", consumers=consumers, plant=plant) for i in range(processes)]
    until(lambda: all(process.is_ready() for process in started), 60, "all are ready")
    number = processes * consumers
    until(lambda: fleet.call("ZCARD", f"{fleet.prefix}-ff:consumers") == number, 30, "all of them wait")
    time.sleep(WARM_SECONDS)
    cost = idle_cost(fleet, number, seconds)
    wrong = asyncio.run(push(fleet, oracle, pushes, 0.05))
    until(lambda: oracle.count(FINISHED) == pushes, 20, "all are done")
    pushed = {line.id: line.at for line in oracle.lines(ATTEMPTED)}
    seconds_each = [line.at - pushed[line.id] for line in oracle.lines(STARTED)]
    verdict = fleet.verdict().check(seed=seed, killed=())
    fleet.stop(30)
    fleet.assert_clean()
    # one whose five seconds are over just now may find it before the one that was woken, or look as if it was
    assert len(wrong) <= pushes // 20, wrong
    assert cost["sent_s"] < 2, cost
    return {
        "consumers": number, **cost, "pushes": pushes, "woke_not_one": len(wrong),
        "pick_up_ms_p50": percentile(seconds_each, 0.5) * 1000, "pick_up_ms_p99": percentile(seconds_each, 0.99) * 1000,
        **verdict.counts(),
    }  # fmt: skip


def test_idle_consumers_cost_little_and_one_wakes(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    found = run(make_fleet, oracle, fault_seed, processes=2, consumers=6, seconds=10, pushes=20)
    figures.add(12, "idle consumers, pushes one at a time", **found)
    assert found["pick_up_ms_p50"] < 100  # a busy machine; the long form looks closer


@pytest.mark.soak
def test_a_hundred(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    found = run(make_fleet, oracle, fault_seed, processes=4, consumers=25, seconds=60, pushes=500)
    figures.add(12, "a hundred idle consumers, pushes one at a time", **found)
    assert found["pick_up_ms_p99"] <= 10


@pytest.mark.soak
@pytest.mark.parametrize("plant", ["polling", "short-calls"])
def test_calibration(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, plant: str) -> None:
    with pytest.raises(AssertionError, match="sent_s" if plant == "short-calls" else "woke"):
        run(make_fleet, oracle, fault_seed, processes=2, consumers=6, seconds=5, pushes=20, plant=plant)
