"""Row 23: deploys, one after the other, while schedules fire and delayed runs wait.

A due time fires once and soon, and everything that was queued before a deploy runs after it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from apps.deployed import PERIOD
from apps.processes import Command, script
from harness import Fleet, until
from results import Figures

from fluidfast.commands.trials.ledger import NOTE, Oracle

LATE_SECONDS = 1.5
"""A scheduler looks every 0.1 s, and asks the broker what fired before it was there; the machine may be busy."""


def fired(oracle: Oracle) -> list[float]:
    """When what the broker accepted was fired, in seconds since the epoch."""
    lines = oracle.lines(NOTE)
    return sorted(float(line.id.removeprefix("fired ")) for line in lines if line.id.startswith("fired "))


def deploy(
    fleet: Fleet, oracle: Oracle, figures: Figures, seed: int, *, deploys: int, pause: tuple[float, float]
) -> None:
    draw = random.Random(seed)

    def start(number: int) -> Command:
        process = script(fleet, f"release{number}", "deployed")
        until(process.is_ready, 30, lambda: f"ready:\n{process.log}")
        return process

    running = start(0)
    until(lambda: fired(oracle), 20, "it has fired once")
    delayed = fleet.producer(count=100, delay=1.5, rate=20)
    queued = fleet.producer(count=300, ms=20, rate=60)
    longest_gone = 0.0
    for number in range(1, deploys + 1):
        time.sleep(draw.uniform(*pause))
        gone = time.monotonic()
        running.terminate()  # the old one stops before the new one is there, as on a machine with one process
        assert running.wait(30) == 0, running.log
        running = start(number)
        longest_gone = max(longest_gone, time.monotonic() - gone)
    delayed.done(60)
    queued.done(60)
    until(lambda: len(fired(oracle)) > 3, 30, "it goes on")
    fleet.drain(30)
    running.terminate()
    assert running.wait(30) == 0
    times = fired(oracle)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    verdict = fleet.verdict().check(seed=seed, killed=())
    figures.add(
        23, f"rolling restarts, every({PERIOD:g} s), delayed runs", deploys=deploys, fired=len(times),
        shortest_gap_s=min(gaps), longest_gap_s=max(gaps), longest_restart_s=longest_gone, **verdict.counts(),
    )  # fmt: skip
    assert min(gaps) >= PERIOD - 0.01, gaps
    assert max(gaps) <= PERIOD + longest_gone + LATE_SECONDS, gaps
    fleet.assert_clean("*-ff:fired:*")


def test_deploys(fleet: Fleet, oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    deploy(fleet, oracle, figures, fault_seed, deploys=3, pause=(0.5, 1.9))


@pytest.mark.soak
def test_a_hundred_deploys(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    deploy(make_fleet(), oracle, figures, fault_seed, deploys=100, pause=(0.1, 4.0))
