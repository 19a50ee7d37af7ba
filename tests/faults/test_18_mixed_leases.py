"""Row 18: leases of different lengths in one fleet, with workers that are killed and handlers that block: nobody is
judged by another's lease, no inbox is forgotten.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from harness import Fleet, until
from results import Figures

from fluidfast.commands.trials.ledger import STARTED

LEASES = (1.0, 2.0, 5.0, 300.0)
KILLED = LEASES[:3]
"""A worker with the longest lease is never killed: its runs would come back after five minutes, as they should."""


def mixed(fleet: Fleet, figures: Figures, seed: int, *, kills: int, count: int) -> None:
    draw = random.Random(seed)
    leases: dict[str, float] = {}

    def start(lease: float) -> None:
        fleet.set_lease(lease)
        [worker] = fleet.workers(1, config={"max_concurrent_tasks": 5})
        leases[worker.who] = lease

    for lease in LEASES:
        start(lease)
    producer = fleet.producer(count=count, ms=20, rate=200, seed=seed)
    # longer than two sweeps of the quickest: its reaper looks while these keep their loop from everything else
    blocking = fleet.producer(count=max(4, count // 100), task="block", rate=2)
    until(lambda: fleet.oracle.count(STARTED) > 20, 20, "work is going on")
    for _ in range(kills):
        time.sleep(draw.uniform(0.2, 0.6))
        victim = draw.choice([p for p in fleet.living() if leases[p.who] in KILLED and p.is_ready()])
        victim.kill()
        start(leases[victim.who])
    producer.done(60)
    blocking.done(60)
    fleet.drain(60)
    fleet.stop(40)
    verdict = fleet.verdict().check(seed=seed, killed=fleet.killed)
    figures.add(
        18, f"leases of {', '.join(f'{lease:g}' for lease in LEASES)} s in one fleet", kills=kills, **verdict.counts()
    )
    fleet.assert_clean()


def test_leases_of_different_lengths(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    mixed(fleet, figures, fault_seed, kills=3, count=400)


@pytest.mark.soak
def test_leases_of_different_lengths_for_long(
    make_fleet: Callable[..., Fleet], fault_seed: int, figures: Figures
) -> None:
    mixed(make_fleet(), figures, fault_seed, kills=100, count=20_000)
