"""Row 20: plain functions hang until a worker has no thread left: later runs wait or go elsewhere, none ends before it
has begun, limits are kept, and the worker ends with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from apps.hung import good, hang, one_at_a_time
from apps.processes import app, queue_all
from harness import Fleet, until
from results import Figures

from fluidfast.commands.trials.ledger import FINISHED, NOTE, STARTED, Oracle


def hang_them_all(fleet: Fleet, oracle: Oracle, figures: Figures, seed: int, *, hung: int, each: int) -> None:
    tasks: Any = (hang, good, one_at_a_time)
    items = [("one_at_a_time", f"single-{i}", "high", {}) for i in range(4)]
    queue_all(fleet, oracle, tasks, items, who="first")
    config = {"max_concurrent_tasks": 4}
    fleet.workers(2, app=app("hung"), config=config)
    until(lambda: len(ended(oracle, "out ")) == 4, 60, "the limited ones have really ended")
    most = most_at_once(oracle)
    mixed = [("hang", f"hang-{i}", None, {}) for i in range(hung)]
    mixed += [("good", f"good-{i}", None, {}) for i in range(each)]
    queue_all(fleet, oracle, tasks, mixed, who="second")
    doomed = 0
    while oracle.count(FINISHED) < each + 4:  # a worker whose threads are all gone ends; its supervisor starts another
        until(lambda: oracle.count(FINISHED) >= each + 4 or dead(fleet), 60, lambda: f"go on: {fleet.places()}")
        for process in dead(fleet):
            assert process.popen.returncode != 0
            assert "hung" in process.log, process.log[-2000:]
            fleet.killed.add(process.who)
            doomed += 1
            fleet.workers(1, app=app("hung"), config=config)
    until(lambda: oracle.count(STARTED) >= hung + each + 4, 60, "all have begun")
    fleet.drain(60, consumers=False)
    for process in fleet.living():
        process.terminate()
    for process in fleet.living():
        process.wait(30)
    verdict = fleet.verdict()
    begun = {line.id for line in oracle.lines(STARTED)}
    unbegun = [id for id in verdict.dead if id not in begun]
    figures.add(
        20, "plain functions that hang until no thread is left", workers_that_ended=doomed, ended_unbegun=len(unbegun),
        most_beside_a_limit_of_1=most, **verdict.counts(),
    )  # fmt: skip
    assert most == 1
    assert not unbegun
    assert not verdict.lost
    assert sum(id.startswith("hang-") for id in verdict.dead) == hung


def most_at_once(oracle: Oracle) -> int:
    """How many of the limited ones were in their function at the same time, at most."""
    steps = [(line.at, line.id.startswith("in ")) for line in oracle.lines(NOTE) if " single-" in line.id]
    inside = most = 0
    for _, enters in sorted(steps):
        inside += 1 if enters else -1
        most = max(most, inside)
    return most


def ended(oracle: Oracle, word: str) -> list[str]:
    return [line.id for line in oracle.lines(NOTE) if line.id.startswith(word)]


def dead(fleet: Fleet) -> list[Any]:
    return [p for p in fleet.processes if not p.alive and p.who not in fleet.killed]


def test_plain_functions_hang(fleet: Fleet, oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    hang_them_all(fleet, oracle, figures, fault_seed, hung=12, each=200)


@pytest.mark.soak
def test_plain_functions_hang_for_long(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    hang_them_all(make_fleet(), oracle, figures, fault_seed, hung=200, each=20_000)
