"""Row 15: first in, first out within a priority; and what is more urgent waits behind one claim of the rest at most."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from apps.order import step
from apps.processes import Item, app, queue_all
from harness import Fleet, percentile, until
from results import Figures

from fluidfast.commands.trials.ledger import ACKNOWLEDGED, FINISHED, NOTE, STARTED, Oracle

WORDS = ("high", "medium", "low")


def inversions(oracle: Oracle, word: str) -> int:
    """Neighbours among the starts of a priority that were not acknowledged in this order."""
    place = {line.id: i for i, line in enumerate(oracle.lines(ACKNOWLEDGED))}
    started = [place[line.id] for line in oracle.lines(STARTED) if line.id.startswith(word)]
    return sum(one > other for one, other in pairwise(started))


def run(
    make_fleet: Callable[..., Fleet], oracle: Oracle, seed: int, *, count: int, concurrency: int, plant: str = ""
) -> dict[str, Any]:
    """Runs of all priorities, some queued before the one worker is there and some while it works."""
    draw = random.Random(seed)
    fleet = make_fleet()
    items: list[Item] = []
    for i in range(count):
        word = draw.choice(WORDS)
        items.append(("step", f"{word}-{i}", word, {"ms": draw.choice((0, 0, 0, 1, 3))}))
    options: dict[str, Any] = {"app": app("order"), "config": {"max_concurrent_tasks": concurrency}}
    before = count // 3
    queue_all(fleet, oracle, [step], items[:before], who="feeder1")
    fleet.workers(1, env={"PLANT": plant}, **options)
    queue_all(fleet, oracle, [step], items[before:], who="feeder2")
    until(lambda: oracle.count(FINISHED) >= count, 60 + count / 50, "all are done")
    fleet.drain(20)
    fleet.stop()
    verdict = fleet.verdict().check(seed=seed, killed=())
    found = {word: inversions(oracle, word) for word in WORDS}
    fleet.assert_clean()
    assert not any(found.values()), f"inversions: {found}"
    return {"concurrency": concurrency, **verdict.counts(), "inversions": sum(found.values())}


def urgent(
    make_fleet: Callable[..., Fleet],
    oracle: Oracle,
    seed: int,
    *,
    low: int,
    high: int,
    concurrency: int,
    plant: str = "",
) -> dict[str, Any]:
    """A long queue of the least urgent is worked off, and urgent ones come one by one."""
    fleet = make_fleet()
    draw = random.Random(seed)
    ms = [draw.choice((0, 0, 1, 5)) for _ in range(low)]
    queue_all(fleet, oracle, [step], [("step", f"low-{i}", "low", {"ms": ms[i]}) for i in range(low)], at_once=50)
    [worker] = fleet.workers(
        1, env={"PLANT": plant}, app=app("order"), config={"max_concurrent_tasks": concurrency}
    )  # fmt: skip
    until(lambda: oracle.count(STARTED) > 20, 20, "work is going on")
    fed = 0

    def feed() -> Any:
        nonlocal fed
        queue_all(fleet, oracle, [step], [("step", f"high-{fed}", "high", {})], who=f"feeder-{fed}")
        fed += 1
        return fed >= high

    until(feed, 60, "all are fed", every=0.02)
    busy = oracle.count(FINISHED) < low
    until(lambda: oracle.count(FINISHED) >= low + high, 60 + low / 50, "all are done")
    fleet.drain(20)
    fleet.stop()
    verdict = fleet.verdict().check(seed=seed, killed=())
    fleet.assert_clean()
    acknowledged = {line.id: line.at for line in oracle.lines(ACKNOWLEDGED)}
    starts = [(line.at, line.id) for line in oracle.lines(STARTED)]
    notes = list(oracle.lines(NOTE, worker.who))
    behind, waits, claims = [], [], []
    for at, id in starts:
        if not id.startswith("high"):
            continue
        since = acknowledged[id]
        waits.append(at - since)
        behind.append(sum(since < other < at for other, which in starts if which.startswith("low")))
        # claims that were sent after it was acknowledged, and gave others but not it
        asked = 0.0
        claims.append(0)
        for note in notes:
            if note.id == "claiming":
                asked = note.at
            elif note.id.startswith("claim "):
                if id in note.id.split():
                    break
                claims[-1] += since < asked
    largest = max(sum(map(int, note.id.split()[1:4])) for note in notes if note.id.startswith("claim "))
    found = {
        "low": low, "high": high, "concurrency": concurrency, **verdict.counts(),
        "claims_of_lower_passed_by_max": max(claims), "lower_started_before_max": max(behind), "largest_claim": largest,
        "wait_ms_p50": percentile(waits, 0.5) * 1000, "wait_ms_max": max(waits) * 1000,
    }  # fmt: skip
    print(found)
    assert busy, "the queue was worked off before all urgent ones had come"
    assert max(claims) == 0, f"claims passed an urgent one by: {found}"
    # A claim is made when half of what a worker holds has run: what is left of the one before it is in front as well.
    assert max(behind) <= 2 * largest + concurrency
    return found


def test_first_in_first_out(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    found = run(make_fleet, oracle, fault_seed, count=1500, concurrency=1)
    figures.add(15, "order within a priority, one consumer", **found)


def test_urgent_ones_wait_for_one_claim_at_most(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    found = urgent(make_fleet, oracle, fault_seed, low=6000, high=30, concurrency=5)
    figures.add(15, "urgent runs among many that are not", **found)


@pytest.mark.soak
@pytest.mark.parametrize("concurrency", [1, 20])
def test_order_of_many(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures, concurrency: int
) -> None:
    found = run(make_fleet, oracle, fault_seed, count=100_000, concurrency=concurrency)
    figures.add(15, f"order within a priority, one consumer with {concurrency} slots", **found)


@pytest.mark.soak
def test_many_urgent_ones(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    found = urgent(make_fleet, oracle, fault_seed, low=200_000, high=500, concurrency=5)
    figures.add(15, "urgent runs among many that are not, for long", **found)


@pytest.mark.soak
@pytest.mark.parametrize("plant", ["lifo", "low-first"])
def test_calibration(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, plant: str) -> None:
    if plant == "lifo":
        with pytest.raises(AssertionError, match="inversions"):
            run(make_fleet, oracle, fault_seed, count=1500, concurrency=1, plant=plant)
    else:
        with pytest.raises(AssertionError, match="passed an urgent one by"):
            urgent(make_fleet, oracle, fault_seed, low=6000, high=30, concurrency=5, plant=plant)
