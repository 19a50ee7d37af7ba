"""Row 22: tasks that end in twenty odd ways, as coroutines, as plain functions and in batches, among good ones.

Every slot and every loop lives on, each odd run ends as a failure that is kept, each good one runs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from apps.odd_ends import ODD, good, odd_async, odd_batch, odd_plain
from apps.processes import Item, app, queue_all
from harness import Fleet, until
from results import Figures

from fluidfast.commands.trials.ledger import FINISHED, Oracle

TASKS = (odd_async, odd_plain, odd_batch, good)


def end_oddly(fleet: Fleet, oracle: Oracle, figures: Figures, seed: int, *, rounds: int) -> None:
    items: list[Item] = []
    for number, way in product(range(rounds), ODD):
        kinds = ("odd_async", "odd_plain", "odd_batch") if way != "a_generator" else ("odd_async", "odd_plain")
        items += [(kind, f"{kind}-{way}-{number}", None, {"way": way}) for kind in kinds]
        items.append(("good", f"good-{way}-{number}", None, {}))
    odd = sum(item[0] != "good" for item in items)
    queue_all(fleet, oracle, TASKS, items, at_once=100)
    [worker] = fleet.workers(1, app=app("odd_ends"), config={"max_concurrent_tasks": 4})
    until(lambda: oracle.count(FINISHED) >= rounds * len(ODD), 600, lambda: f"good ones run: {fleet.places()}")
    fleet.drain(60)
    # all four slots are there: four that sleep run beside each other
    before = oracle.count(FINISHED)
    fleet.producer(count=4, ms=300).done()
    until(lambda: oracle.count(FINISHED) >= before + 4, 20, "every slot lives")
    fleet.stop()
    starts = [line for line in oracle.lines("S", worker.who) if line.id.startswith("producer1-")]
    apart = max(line.at for line in starts) - min(line.at for line in starts)
    verdict = fleet.verdict().check(seed=seed, killed=())
    figures.add(22, f"{len(ODD)} odd ways to end, in coroutines, threads and batches", odd_runs=odd, **verdict.counts())
    assert apart < 0.25, f"four runs of 0.3 s in four slots began {apart:.2f} s apart"
    assert len(verdict.dead) == odd
    assert verdict.ok == rounds * len(ODD) + 4


def test_odd_ends(fleet: Fleet, oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    end_oddly(fleet, oracle, figures, fault_seed, rounds=3)


@pytest.mark.soak
def test_ten_thousand_odd_ends(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    end_oddly(make_fleet(), oracle, figures, fault_seed, rounds=160)
