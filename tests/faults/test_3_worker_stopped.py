"""Row 3: a worker is stopped (SIGSTOP) for three leases and goes on (SIGCONT), believing that it holds what others have
run by then: whatever it says of it is refused.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from harness import Fleet, Process, until
from results import Figures

from fluidfast.commands.trials.ledger import FINISHED

OPTIONS = {"note": True, "config": {"max_concurrent_tasks": 5}}


def claimed_by(fleet: Fleet, worker: Process) -> set[str]:
    """The batches that this worker claimed and that are under lease."""
    leases = {batch.decode() for batch in fleet.call("ZRANGE", f"{fleet.prefix}-ff:leases", 0, -1)}
    said = (line.id.split() for line in fleet.oracle.notes(worker.who))
    return {words[1] for words in said if words[0] == "claim"} & leases


def said_of(fleet: Fleet, worker: Process, batches: set[str]) -> dict[str, int]:
    """What the broker said to this worker about these batches: settlements accepted and refused, renewals refused."""
    counts = {"settled": 0, "settle_refused": 0, "renew_refused": 0}
    for line in fleet.oracle.notes(worker.who):
        words = line.id.split()
        if len(words) > 1 and words[1] in batches:
            if words[0] == "settle":
                counts["settled" if words[2] == "yes" else "settle_refused"] += 1
            elif words[0] == "lost":
                counts["renew_refused"] += 1
    return counts


def stop_while_it_holds(fleet: Fleet, worker: Process) -> set[str]:
    """Gives the batches that it holds as it stands still."""

    def held() -> set[str]:
        worker.pause()
        batches = claimed_by(fleet, worker)
        if not batches:  # between two claims, or it has settled them since it was last looked at
            worker.resume()
        return batches

    until(lambda: claimed_by(fleet, worker), 20, "it has claimed some")
    batches: set[str] = until(held, 20, "it holds some as it is stopped")
    return batches


def stop_for_three_leases(
    fleet: Fleet, worker: Process, start_others: Callable[[], object] = lambda: None
) -> tuple[set[str], dict[str, int]]:
    """Gives the batches that it lost by that, and what had been said of them before."""
    held = stop_while_it_holds(fleet, worker)
    start_others()
    time.sleep(3 * fleet.lease_seconds)
    until(lambda: not claimed_by(fleet, worker), 10, "others have taken what it held")
    before = said_of(fleet, worker, held)
    worker.resume()
    return held, before


def late_starts(fleet: Fleet, worker: Process, at: float) -> int:
    """How many runs this worker started after ``at`` that others had started before it."""
    last = [max(starts, key=lambda start: start[1]) for starts in fleet.verdict().starts.values()]
    return sum(1 for who, when in last if who == worker.who and when > at)


def check_stopped(fleet: Fleet, figures: Figures, seed: int, plant: str = "") -> None:
    [stopped] = fleet.workers(1, plant=plant, **OPTIONS)
    producer = fleet.producer(count=60, ms=200)
    # the other comes when this one stands still: it would run them all on a busy machine, before this one is stopped
    held, before = stop_for_three_leases(fleet, stopped, lambda: fleet.workers(1, plant=plant, **OPTIONS))
    at = time.monotonic()
    producer.done()
    until(lambda: sum(said_of(fleet, stopped, held).values()) > sum(before.values()), 10, "it was told")
    fleet.drain(20)
    # and it is of use again
    fleet.producer(count=200, ms=20).done()
    until(lambda: any(line.at > at for line in fleet.oracle.lines(FINISHED, stopped.who)), 10, "it works again")
    fleet.drain(20)
    fleet.stop()
    said = said_of(fleet, stopped, held)
    stale = said["settled"] - before["settled"]
    verdict = fleet.verdict().check(seed=seed, killed=(), stopped=fleet.stopped)
    figures.add(
        3, "SIGSTOP for three leases", **verdict.counts(), started_after_it_was_lost=late_starts(fleet, stopped, at),
        batches=len(held), stale_settles_accepted=stale,
        settles_refused=said["settle_refused"], renewals_refused=said["renew_refused"],
    )  # fmt: skip
    assert stale == 0
    assert said["settle_refused"] + said["renew_refused"] > 0
    assert verdict.acknowledged == 260
    fleet.assert_clean()


def test_stopped_for_three_leases(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    fleet.set_lease(0.6)
    check_stopped(fleet, figures, fault_seed)


@pytest.mark.soak
def test_stopped_again_and_again(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    """Under load, with tasks of all lengths, and a random one of four workers stopped."""
    draw = random.Random(fault_seed)
    fleet.set_lease(0.6)
    fleet.workers(4, **OPTIONS)
    producer = fleet.producer(count=60_000, ms=5, rate=400)
    slow = fleet.producer(count=3_000, ms=300, rate=20)
    stops = stale = refused = 0
    while producer.alive and stops < 100:
        time.sleep(draw.uniform(0.05, 0.5))
        worker = draw.choice(fleet.living())
        held, before = stop_for_three_leases(fleet, worker)
        time.sleep(0.5)
        after = said_of(fleet, worker, held)
        stops += 1
        stale += after["settled"] - before["settled"]
        refused += sum(after.values()) - sum(before.values())
    for each in (producer, slow):
        each.terminate()
        each.done(60)
    fleet.drain(60)
    fleet.stop()
    verdict = fleet.verdict().check(seed=fault_seed, killed=(), stopped=fleet.stopped)
    figures.add(
        3, "SIGSTOP for three leases, again and again", stops=stops, **verdict.counts(), stale_settles_accepted=stale,
        refusals=refused,
    )  # fmt: skip
    assert stale == 0
    assert refused > 0
    fleet.assert_clean()
