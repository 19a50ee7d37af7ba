"""Row 17: the event loop ends under a running consumer (Ctrl-C, an exception, a return, a forced exit).

Its runs go back or stay under their lease: none ends as a failure, none is lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from apps.processes import script
from harness import Fleet, until
from results import Figures

from fluidfast.commands.trials.ledger import Oracle

HOW = ("raise", "return", "interrupt", "cancel")


def end_again_and_again(fleet: Fleet, oracle: Oracle, figures: Figures, seed: int, *, ends: int, count: int) -> None:
    draw = random.Random(seed)
    producer = fleet.producer(count=count, ms=40, rate=count / max(4.0, ends * 0.6), seed=seed)
    for number in range(ends):
        consumer = script(
            fleet, f"ends{number}", "loop_ends", how=HOW[number % len(HOW)], seconds=draw.uniform(0.02, 0.3)
        )
        fleet.killed.add(consumer.who)  # its runs may start again elsewhere
        until(lambda c=consumer: not c.alive, 30, lambda c=consumer: f"{c.who} ends:\n{c.log}")  # type: ignore[misc]
        assert consumer.popen.returncode == 0, consumer.log
    producer.done(60)
    fleet.workers(1, config={"max_concurrent_tasks": 50})
    fleet.drain(60)
    fleet.stop()
    verdict = fleet.verdict().check(seed=seed, killed=fleet.killed)
    settled = [line.id for line in oracle.notes() if line.id.startswith(("failure ", "aborted "))]
    figures.add(
        17, "the event loop ends under a consumer", ends=ends, ended_as_failure=len(settled), **verdict.counts()
    )
    assert not settled
    assert not verdict.dead
    fleet.assert_clean()


def test_the_event_loop_ends(fleet: Fleet, oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    end_again_and_again(fleet, oracle, figures, fault_seed, ends=8, count=400)


@pytest.mark.soak
def test_the_event_loop_ends_500_times(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    end_again_and_again(make_fleet(), oracle, figures, fault_seed, ends=500, count=20_000)
