"""Row 1: workers are killed by SIGKILL in mid-batch, again and again: nothing is lost, what runs twice is what a killed
worker had started, and what it held is back within a lease and two sweeps.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from harness import Fleet, percentile, until
from results import Figures

from fluidfast.commands.trials.ledger import STARTED

CONCURRENCY = 20
RUNNING_MS = 5
IN_FLIGHT = 100
"""Calls that a producer has on its way at a time."""
SETTLE_BATCHES = 10
"""A worker that has finished runs has them settled after some milliseconds: so many times its slots may have turned."""


def kill_again_and_again(
    fleet: Fleet, draw: random.Random, *, kills: int, pause: tuple[float, float], busy: Callable[[], bool]
) -> list[tuple[str, float]]:
    """Kill one of the workers, start another, wait a little. Gives who was killed when."""
    killed = []
    while len(killed) < kills and busy():
        victim = draw.choice([process for process in fleet.living() if process.is_ready()])
        victim.kill()
        killed.append((victim.who, time.monotonic()))
        fleet.workers(1, ready=0, **options())
        until(lambda: any(process.is_ready() for process in fleet.living()), 30, "a worker is ready")
        time.sleep(draw.uniform(*pause))
        assert not fleet.exits()
    until(lambda: all(process.is_ready() for process in fleet.living()), 30, "those started last can be stopped")
    return killed


def options() -> dict[str, Any]:
    return {"config": {"max_concurrent_tasks": CONCURRENCY}}


def recoveries(fleet: Fleet, killed: list[tuple[str, float]]) -> list[float]:
    """Seconds from a kill to the second start of each run that the victim had started and not settled."""
    when = dict(killed)
    found = []
    for starts in fleet.verdict().starts.values():
        ordered = sorted(starts, key=lambda start: start[1])
        found += [later - when[who] for (who, _), (_, later) in pairwise(ordered) if who in when]
    return found


def judge(fleet: Fleet, figures: Figures, seed: int, killed: list[tuple[str, float]], what: str) -> None:
    verdict = fleet.verdict().check(seed=seed, killed=fleet.killed)
    again = verdict.again_per_process()
    seconds = recoveries(fleet, killed)
    figures.add(
        1, what, kills=len(killed), **verdict.counts(), worker_exits=len(fleet.exits()),
        ran_again_per_kill_max=max(again.values(), default=0),
        recovered_s_p50=percentile(seconds, 0.5), recovered_s_max=max(seconds, default=0.0),
        lease_s=fleet.lease_seconds,
    )  # fmt: skip
    # of a producer that was killed, what it had on its way may be queued or not
    assert verdict.open <= IN_FLIGHT
    # what ran again was running, or was finished and not settled yet, when its worker was killed
    assert max(again.values(), default=0) <= CONCURRENCY * SETTLE_BATCHES, again
    # a good run whose third worker is killed as well cannot be told from poison: it is with the dead letters, not lost
    for id in verdict.dead:
        assert all(who in fleet.killed for who, _ in verdict.starts.get(id, ()))
    fleet.assert_clean(*(("*-ff:dead",) if verdict.dead else ()))


def test_killed_in_mid_batch(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    draw = random.Random(fault_seed)
    fleet.workers(3, **options())
    producer = fleet.producer(
        count=6000, ms=RUNNING_MS, rate=1500, priorities=["high", "medium", "low"], seed=fault_seed
    )
    doomed = fleet.producer(count=100_000, ms=RUNNING_MS, rate=300, window=IN_FLIGHT)
    until(lambda: fleet.oracle.count(STARTED) > 200, 20, "work is going on")
    killed = kill_again_and_again(
        fleet, draw, kills=8, pause=(0.1, 0.3), busy=lambda: producer.alive or bool(fleet.places())
    )
    doomed.kill()
    producer.done(30)
    fleet.drain(30)
    fleet.stop()
    assert len(killed) >= 5
    judge(fleet, figures, fault_seed, killed, "kill -9 of workers in mid-batch")


def test_what_was_held_comes_back_within_a_lease_and_two_sweeps(fleet: Fleet, figures: Figures) -> None:
    """One kill, timed: the others are idle, so that nothing but the lease decides when it is run again."""
    [victim] = fleet.workers(1, **options())
    producer = fleet.producer(count=40, ms=60_000)
    producer.done()
    until(lambda: fleet.oracle.count(STARTED) >= CONCURRENCY, 20, "all slots are taken")
    fleet.workers(1, **options())
    victim.kill()
    at = time.monotonic()
    lease = fleet.lease_seconds
    until(lambda: fleet.oracle.count(STARTED) >= 2 * CONCURRENCY, 30, "they are started again")
    took = time.monotonic() - at
    # The last renewal was up to nought seconds ago: a lease. The next sweep sees it, the second one, half a lease
    # later, takes it: and sweeps come every half lease.
    figures.add(1, "time until what a killed worker held runs again", seconds=took, lease_s=lease)
    assert took <= lease + 2 * lease / 2 + 1.0, took
    for process in fleet.living():
        process.kill()


@pytest.mark.soak
def test_a_million_tasks_and_a_thousand_kills(
    make_fleet: Callable[..., Fleet], fault_seed: int, figures: Figures, pytestconfig: pytest.Config
) -> None:
    kills = int(pytestconfig.getoption("--fault-kills", default=None) or 1000)
    fleet = make_fleet(lease_seconds=1.0)
    draw = random.Random(fault_seed)
    count = kills * 1000
    fleet.workers(4, **options())
    producers = [
        fleet.producer(count=count // 2, ms=2, rate=1000, priorities=["high", "medium", "low"], seed=fault_seed + i)
        for i in range(2)
    ]
    until(lambda: fleet.oracle.count(STARTED) > 200, 20, "work is going on")
    killed = kill_again_and_again(
        fleet, draw, kills=kills, pause=(0.0, 0.5), busy=lambda: any(p.alive for p in producers)
    )
    for producer in producers:
        producer.done(600)
    fleet.drain(120)
    fleet.stop()
    judge(fleet, figures, fault_seed, killed, "kill -9 of workers in mid-batch, again and again")
