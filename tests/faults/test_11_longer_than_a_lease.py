"""Row 11: handlers ten times longer than a lease, which await, block the event loop, or sit in a thread. While the
worker lives its runs are its own: none is started twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from apps import slow
from apps.processes import Item, app, queue_all
from harness import Fleet, percentile, until
from results import Figures

from fluidfast.commands.trials.ledger import ATTEMPTED, FINISHED, STARTED, Oracle

KINDS = ("sleeping", "blocking", "threaded")
TASKS = (slow.sleeping, slow.blocking, slow.threaded, slow.quick)


def run(
    make_fleet: Callable[..., Fleet],
    oracle: Oracle,
    seed: int,
    *,
    lease: float,
    leases: float,
    rounds: int,
    plant: str = "",
) -> dict[str, Any]:
    """Each kind at work in a worker of its own, ``rounds`` one after the other, beside workers that sweep."""
    fleet = make_fleet(lease_seconds=lease)
    options: dict[str, Any] = {"app": app("slow"), "env": {"PLANT": plant}}
    # one for each, since what blocks an event loop keeps all of that worker from starting
    workers = fleet.workers(3, config={"max_concurrent_tasks": 1}, **options)
    seconds = lease * leases
    for turn in range(rounds):
        items: list[Item] = [(kind, f"{kind}-{turn}", None, {"seconds": seconds}) for kind in KINDS]
        queue_all(fleet, oracle, TASKS, items, who=f"feeder{turn}")
        count = 3 * turn + 3
        until(lambda n=count: oracle.count(STARTED) >= n, 20, "all three are at work")
        if turn == 0:
            fleet.workers(1, config={"max_concurrent_tasks": 10}, who="idle", **options)
        until(lambda n=count: oracle.count(FINISHED) >= n, seconds + 20, "all three are done")
    fleet.drain(20 + seconds)
    fleet.stop()
    verdict = fleet.verdict().check(seed=seed, killed=())
    assert not verdict.starts
    assert verdict.ok == 3 * rounds
    # the worker of each had its own
    assert {line.who for line in oracle.lines(STARTED) if line.id.endswith("-0")} == {worker.who for worker in workers}
    fleet.assert_clean()
    return {"lease_s": lease, "handler_s": seconds, **verdict.counts()}


def test_ten_leases_long(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    found = run(make_fleet, oracle, fault_seed, lease=0.25, leases=10, rounds=1)
    figures.add(11, "handlers of ten leases: sleeping, blocking the loop, in a thread", **found)


def test_others_do_not_wait_behind_a_blocked_loop(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    """What is pushed while a worker's loop is blocked is for the workers that are not."""
    fleet = make_fleet(lease_seconds=1.0)
    seconds = 3.0
    fleet.workers(1, app=app("slow"), config={"max_concurrent_tasks": 2})
    queue_all(fleet, oracle, TASKS, [("blocking", "blocking-0", None, {"seconds": seconds})], who="feeder0")
    until(lambda: oracle.count(STARTED) == 1, 10, "it is blocked")
    fleet.workers(1, app=app("slow"))
    names = ("high", "medium", "low")
    items: list[Item] = [("quick", f"quick-{i}", names[i % 3], {}) for i in range(60)]
    queue_all(fleet, oracle, TASKS, items)
    fleet.drain(20)
    fleet.stop()
    verdict = fleet.verdict().check(seed=fault_seed, killed=())
    pushed = {line.id: line.at for line in oracle.lines(ATTEMPTED)}
    waits = [line.at - pushed[line.id] for line in oracle.lines(STARTED) if line.id != "blocking-0"]
    figures.add(
        11, "quick runs pushed while the loop of one of two workers is blocked for 3 s", **verdict.counts(),
        wait_s_p50=percentile(waits, 0.5), wait_s_max=max(waits), waited_over_1_s=sum(wait > 1 for wait in waits),
    )  # fmt: skip
    assert max(waits) < seconds - 0.5  # two looks at the loop, a second apart


@pytest.mark.soak
def test_again_and_again(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    found = run(make_fleet, oracle, fault_seed, lease=2.0, leases=10, rounds=15)
    figures.add(11, "handlers of ten leases, again and again", **found)


@pytest.mark.soak
@pytest.mark.parametrize("plant", ["no-keeper", "keeper-in-loop"])
def test_calibration(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, plant: str) -> None:
    with pytest.raises(AssertionError, match="ran twice without a reason"):
        run(make_fleet, oracle, fault_seed, lease=0.4, leases=10, rounds=1, plant=plant)
