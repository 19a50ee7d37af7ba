"""Row 9: tasks that take their worker down (a segfault, ``os._exit``, memory) among good ones. Each poison is dead
after three workers; every good run finishes, and none of them is blamed, however often it stood beside a poison.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from apps import poison
from apps.processes import Item, app, mourn, queue_all
from harness import Fleet, until
from results import Figures

from fluidfast.commands.trials.ledger import STARTED, Oracle

TASKS = (poison.good, poison.segfault, poison.leave, poison.glutton, poison.hungry)
KINDS = ("segfault", "leave", "glutton")
CONCURRENCY = 10


def mixture(draw: random.Random, good: int, poisons: int, hungry: int) -> list[Item]:
    items: list[Item] = [("good", f"good-{i}", None, {"ms": draw.choice((0, 1, 5))}) for i in range(good)]
    items += [(KINDS[i % 3], f"poison-{KINDS[i % 3]}-{i}", None, {}) for i in range(poisons)]
    items += [("hungry", f"hungry-{i}", None, {}) for i in range(hungry)]
    draw.shuffle(items)
    return items


def work_off(fleet: Fleet, workers: int, seconds: float, env: dict[str, str]) -> int:
    """Have so many workers work until nothing is left, starting another for each that dies. Gives how many died."""
    options: dict[str, Any] = {"app": app("poison"), "config": {"max_concurrent_tasks": CONCURRENCY}, "env": env}
    fleet.workers(workers, ready=0, **options)  # the first run of all may be one that it dies of
    crashes = 0

    def done() -> bool:
        nonlocal crashes
        if died := mourn(fleet):
            crashes += len(died)
            fleet.workers(len(died), ready=0, **options)
        return not fleet.places().keys() - {"dead"}

    until(done, seconds, lambda: f"worked off; left: {fleet.places()}, {crashes} workers died")
    until(lambda: not mourn(fleet) and all(process.is_ready() for process in fleet.living()), 20, "workers are ready")
    fleet.drain(30)
    fleet.stop()
    return crashes


def run(
    fleet: Fleet, oracle: Oracle, seed: int, *, good: int, poisons: int, workers: int, seconds: float, plant: str = ""
) -> dict[str, Any]:
    items = mixture(random.Random(seed), good, poisons, hungry=2)
    queue_all(fleet, oracle, TASKS, items, at_once=100)
    began = time.monotonic()
    crashes = work_off(fleet, workers, seconds, {"PLANT": plant})
    verdict = fleet.verdict().check(seed=seed, killed=fleet.killed)
    dead = sorted(verdict.dead)
    expected = sorted(id for _, id, _, _ in items if id.startswith("poison"))
    blamed = sorted(set(fleet.dead_ids()) - set(expected))
    assert not blamed, f"seed {seed}: good runs in the dead list: {blamed}"
    assert dead == expected
    starts = Counter(line.id for line in oracle.lines(STARTED) if line.id.startswith("poison"))
    assert max(starts.values()) <= 3, starts
    assert verdict.ok + len(verdict.recovered) + len(verdict.duplicated) == good + 2
    fleet.assert_clean("*-ff:dead")
    assert not fleet.call("EXISTS", f"{fleet.prefix}-ff:strikes")
    return {
        "good": good, "poison": poisons, "crashes": crashes, **verdict.counts(), "good_in_the_dead_list": len(blamed),
        "starts_of_a_poison_max": max(starts.values()), "seconds": time.monotonic() - began,
    }  # fmt: skip


def test_a_poison_is_blamed_alone(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    fleet = make_fleet(lease_seconds=0.5)
    found = run(fleet, oracle, fault_seed, good=300, poisons=3, workers=1, seconds=60)
    figures.add(9, "poison among good runs", **found)


@pytest.mark.soak
def test_poison_among_ten_thousand(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    fleet = make_fleet(lease_seconds=1.0)
    found = run(fleet, oracle, fault_seed, good=10_000, poisons=30, workers=2, seconds=900)
    figures.add(9, "poison among good runs, two workers", **found)


@pytest.mark.soak
@pytest.mark.parametrize("plant", ["no-suspects", "no-strikes"])
def test_calibration(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, plant: str) -> None:
    fleet = make_fleet(lease_seconds=0.5)
    red = "good runs in the dead list" if plant == "no-suspects" else "worked off"
    with pytest.raises(AssertionError, match=red):
        run(fleet, oracle, fault_seed, good=300, poisons=3, workers=1, seconds=25, plant=plant)
